"""A writable clone of a point that is replayed: the nearest snapshot's blocks, and only what differs written."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from uuid import uuid4

import pytest

from replicator.errors import ConflictError
from replicator.log.object_log import directory_log
from replicator.pool.catalogue_schema import Purpose, Setting, Snapshot, Volume
from replicator.pool.changes import Put
from replicator.pool.creation import PoolPlan, create_pool
from replicator.pool.interface import CutRequest, Switch
from replicator.pool.opening import OwnedPool, own_pool
from replicator.pool.reading import read_beside
from replicator.pool.volumes import create_volume
from replicator.repository.cloning import clone_named, joined
from replicator.repository.logged import read_history
from replicator.repository.remembered import LOG_SETTING
from replicator.units import CHUNK_BYTES, KIB, MIB
from tests.support.kept_points import pool_with_point
from tests.support.volume_histories import NAME, History

SIZE = 40 * CHUNK_BYTES + 1536


def content(pool: OwnedPool, volume: Volume | Snapshot) -> bytes:
    with read_beside(pool) as reader, reader.disk(volume.dev_id, volume.size_bytes) as disk:
        return disk.pread(volume.size_bytes, 0)


def whole_blocks(pool: OwnedPool, volume: Volume) -> bytes:
    """What the mapped blocks read, the last one's tail behind the volume's end too."""
    size = -(-volume.size_bytes // pool.block_bytes) * pool.block_bytes
    with read_beside(pool) as reader, reader.disk(volume.dev_id, size) as disk:
        return disk.pread(size, 0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("block_bytes", [64 * KIB, 256 * KIB])
def test_it_is_the_point_whatever_lies_between(tmp_path: Path, seed: int, block_bytes: int) -> None:
    pool, history = pool_with_point(tmp_path, seed, block_bytes, kept=2, transactions=5)
    with pool:
        for number in (1, 3, 4, 5):
            volume = clone_named(pool, f"{NAME}@{number}", f"clone-{number}", UTC)
            expected = history.contents[1, number]
            assert volume.size_bytes == len(expected) and content(pool, volume) == expected
            assert not any(whole_blocks(pool, volume)[len(expected) :])
            (facts,) = pool.facts((volume.dev_id,)).values()
            assert facts.mapped_blocks <= -(-len(expected) // block_bytes), "nothing beyond the end"
        (point,) = pool.view().snapshots_of(history.volume, Purpose.POINT)
        assert content(pool, point) == history.contents[1, 2], "what it was made of is as it was"


def test_only_what_differs_is_written(tmp_path: Path) -> None:
    log = tmp_path / "log"
    history = History(directory_log(log, create=True), random.Random(1), SIZE)
    history.write(0, random.Random(2).randbytes(SIZE))
    history.write(5 * CHUNK_BYTES + 100, b"a change")
    history.write(20 * CHUNK_BYTES, bytes(CHUNK_BYTES))
    history.close()
    create_pool(tmp_path / "pool", PoolPlan(size_bytes=64 * MIB, metadata_bytes=4 * MIB))
    with own_pool(tmp_path / "pool") as pool:
        pool.switch(Switch(changes=(Put(Setting(LOG_SETTING, str(log))),)))
        volume = create_volume(pool, NAME, SIZE, uuid=history.volume)
        device = pool.engine.open_device(volume.dev_id, SIZE, read_only=False)
        with pool.engine.gate.writing():
            device.pwrite(history.contents[1, 1], 0)
        made = pool.cut(CutRequest(uuid4(), (volume.uuid,), Purpose.POINT))
        logged = {each.number: each for each in read_history(history.log, history.volume).points}
        row = replace(pool.view().snapshot(made.dev_ids[0]), number=1, digest=logged[1].digest)
        pool.switch(Switch(changes=(Put(row), *(Put(each) for each in logged.values()))))
        before = pool.status().data_free_blocks
        cloned = clone_named(pool, f"{NAME}@3", "clone", UTC)
        assert content(pool, cloned) == history.contents[1, 3]
        assert before - pool.status().data_free_blocks == 1, "one block differs, one is zeros now"
        with pytest.raises(ConflictError, match="already"):
            clone_named(pool, f"{NAME}@3", "clone", UTC)
        assert not [each for each in pool.view().snapshots if each.purpose is Purpose.STAGING]


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([], []),
        ([(0, 10)], [(0, 64)]),
        ([(10, 20), (30, 70), (128, 129)], [(0, 192)]),
        ([(64, 65), (200, 201), (299, 300)], [(64, 128), (192, 300)]),
    ],
)
def test_ranges_are_joined_on_the_grid(ranges: list[tuple[int, int]], expected: list[tuple[int, int]]) -> None:
    assert list(joined(ranges, 64, 300)) == expected
