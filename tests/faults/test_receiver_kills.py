"""A receiver that dies at any call: its replica is transaction n or n + 1, and the next one goes on to the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from receiver.apply import ApplySettings
from replicator.log.object_log import ObjectLog
from replicator.pool.catalogue_schema import Purpose
from replicator.units import GIB, KIB
from tests.support.mortal import Death, KilledError, mortal_disks, mortal_pool
from tests.support.receivers import applied_number, assert_prefix, follower, memory_log
from tests.support.replica_pools import ReplicaPool
from tests.support.replica_streams import SourceVolume

SIZE = 12 * 65536 + 512


def small_source() -> SourceVolume:
    """Three transactions: one that fills, one aborted and begun again, one that shrinks."""
    source = SourceVolume(11, SIZE)
    source.scribble(8)
    source.transaction()
    discarded = source.scribble(3)
    source.begin()
    source.put_changes(discarded)
    source.abort()
    source.transaction(discarded)
    source.resize(7 * 65536 + 1024)
    source.transaction(source.scribble(3), ["end"])
    return source


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("block_bytes", "step_bytes"), [(64 * KIB, GIB), (64 * KIB, 192 * KIB), (256 * KIB, 256 * KIB)]
)
def test_killed_at_every_call(tmp_path: Path, block_bytes: int, step_bytes: int, after: bool) -> None:
    source, log = small_source(), memory_log()
    source.publish(log)
    settings = ApplySettings(step_bytes)
    at, died = 0, True
    while died:
        at += 1
        died = _killed_once(tmp_path / str(at), source, log, settings, Death(at, after=after), block_bytes)
    assert at > 20


def _killed_once(
    folder: Path, source: SourceVolume, log: ObjectLog, settings: ApplySettings, death: Death, block_bytes: int
) -> bool:
    folder.mkdir()
    replica = ReplicaPool(folder, block_bytes, data_blocks=max(24, (5 << 20) // block_bytes), metadata_bytes=1 << 20)
    pool, disks = mortal_pool(replica.pool, death), mortal_disks(replica.disks, death)
    try:
        follower(replica, source, log, settings=settings, pool=pool, disks=disks).follow(None)
    except KilledError:
        before = applied_number(replica, source)
        replica.kill()
        assert assert_prefix(replica, source) == before
        follower(replica, source, log, settings=settings).follow(None)
    assert assert_prefix(replica, source) == 3
    view = replica.pool.view()
    assert not view.snapshots_of(source.uuid, Purpose.STAGING, hidden=True)
    mapped = sum(each.mapped_blocks for each in replica.pool.facts([view.volume(source.uuid).dev_id]).values())
    assert mapped <= -(-len(source.data) // block_bytes)
    replica.assert_clean()
    return death.came
