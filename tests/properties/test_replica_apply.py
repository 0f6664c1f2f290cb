"""Applied = the source's bytes at every transaction, for blocks of one chunk and of many, whatever the steps are."""

from __future__ import annotations

from pathlib import Path

import pytest

from receiver.apply import Applier, ApplySettings
from receiver.dev_ids import DevIds
from replicator.events.chain import ChainChecker, Verdict
from replicator.events.codec import Event
from replicator.pool.catalogue_schema import Purpose, Role
from replicator.units import GIB, KIB, MIB
from tests.support.replica_pools import ReplicaPool
from tests.support.replica_streams import SourceVolume, random_source

BLOCKS = [64 * KIB, 256 * KIB, MIB]
SIZE = 40 * 65536 + 5 * 512


def apply_all(replica: ReplicaPool, source: SourceVolume, events: list[Event], settings: ApplySettings) -> None:
    applier = Applier(replica.pool, replica.disks, source.uuid, DevIds(replica.pool), settings)
    checker = ChainChecker(applier.state)
    try:
        for event in events:
            if checker.accept(event) is not Verdict.APPLY:
                continue
            applier.apply(event, checker.state)
            assert_whole(replica, source)
    finally:
        applier.close()


def assert_whole(replica: ReplicaPool, source: SourceVolume) -> None:
    """The head is exactly one transaction, and each materialised point exactly its own."""
    view = replica.pool.view()
    position = view.position(source.uuid, Role.APPLIED)
    assert position is not None
    if position.number:
        assert replica.head(source.uuid) == source.images[position.number]


@pytest.mark.parametrize("step_bytes", [GIB, 256 * KIB])
@pytest.mark.parametrize("block_bytes", BLOCKS)
@pytest.mark.parametrize("seed", range(3))
def test_the_replica_is_the_source_at_every_transaction(
    tmp_path: Path, seed: int, block_bytes: int, step_bytes: int
) -> None:
    source = random_source(seed, SIZE, 8)
    replica = ReplicaPool(tmp_path, block_bytes)
    apply_all(replica, source, source.events, ApplySettings(step_bytes))
    for snapshot in replica.pool.view().snapshots_of(source.uuid, Purpose.POINT):
        assert replica.read(snapshot.dev_id, snapshot.size_bytes) == source.images[snapshot.number]
    assert sorted(each.number for each in replica.pool.points(source.uuid, 100)) == list(range(1, 9))
    replica.assert_clean(others_too=True)
