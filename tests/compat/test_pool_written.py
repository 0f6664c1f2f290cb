"""Pools that we wrote pass both thin_checks, and thin_dump says of them what our dump says.

Random trees with shared, split, joined, deleted and discarded parts, overflow counts and metadata snapshots: each image
is one committed state; many are judged side by side.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from replicator.blockdev.file import FileDevice
from replicator.blockdev.memory import MemoryDevice
from replicator.pdata.block import Words
from replicator.thin.dump import dump
from replicator.thin.held import release_metadata_snap, reserve_metadata_snap
from replicator.thin.mapping import TIME_LIMIT
from replicator.thin.metadata import TIME_CAP, PoolMetadata
from replicator.thin.view import PoolView
from tests.support import judges
from tests.support.enginerig import BLOCK, UUID, assert_sound
from tests.support.thinpools import canonical_xml
from tests.unit.thin.test_time import cuts, pool_at

DATA_BLOCKS, SPAN = 6000, 1500


class RandomPool:
    """One pool that random changes are made to, and the images it leaves."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed, self.chance = folder, seed, random.Random(seed)
        self.device = MemoryDevice(8 << 20)
        self.pool = PoolMetadata.format(self.device, BLOCK, DATA_BLOCKS, UUID)
        self.images: list[Path] = []

    def change(self) -> None:
        pool, chance, ids = self.pool, self.chance, self.pool.dev_ids()
        kind = chance.random()
        if kind < 0.1 or not ids:
            pool.create_thin(pool.free_dev_id(chance.randrange(1000)))
        elif kind < 0.28 and len(ids) < 14:
            pool.create_snap(pool.free_dev_id(chance.randrange(100)), chance.choice(ids))
        elif kind < 0.34:
            pool.delete(chance.choice(ids))
        elif kind < 0.40:
            (release_metadata_snap if pool.superblock.held_root else reserve_metadata_snap)(pool)
        elif kind < 0.78:
            self.map(chance.choice(ids), chance.choice((1, 3, 30, 300, 700)))
        else:
            self.unmap(chance.choice(ids), chance.choice((1, 10, 500, 2000)))

    def map(self, dev_id: int, count: int) -> None:
        counts = self.pool.transaction.data.counts
        if counts.free_count < count:
            return
        begin = self.chance.randrange(SPAN)
        run = self.chance.random() < 0.5
        blocks = range(begin, begin + count) if run else sorted(self.chance.sample(range(3 * SPAN), count))
        self.pool.map(dev_id, np.array(blocks, dtype=np.uint64), counts.take(count))

    def unmap(self, dev_id: int, length: int) -> None:
        begin = self.chance.randrange(2 * SPAN)
        pieces: list[Words] = [keys for keys, _ in self.pool.mapped(dev_id, begin, begin + length)]
        keys = np.concatenate([np.empty(0, dtype=np.uint64), *pieces])
        if self.chance.random() < 0.5:
            keys = keys[np.array([self.chance.random() < 0.9 for _ in keys], dtype=bool)]
        self.pool.unmap(dev_id, keys)

    def commit(self) -> None:
        self.pool.commit(lambda: None)
        assert_sound(self.device)
        path = self.folder / f"{self.seed}-{len(self.images)}"
        path.write_bytes(self.device.content())
        self.images.append(path)
        if self.chance.random() < 0.4:
            self.pool = PoolMetadata.open(self.device)


def images(folder: Path, seed: int, commits: int) -> list[Path]:
    """Committed states of one random pool."""
    made = RandomPool(folder, seed)
    for _ in range(commits):
        for _ in range(made.chance.randrange(1, 6)):
            made.change()
        made.commit()
    return made.images


def test_random_pools_pass_both_thin_checks(tmp_path: Path) -> None:
    judges.require("thin-cpp", "thin-rust")
    judges.assert_clean(*(path for seed in range(6) for path in images(tmp_path, seed, 6)))


@pytest.mark.soak
def test_many_random_pools_pass_both_thin_checks(tmp_path: Path) -> None:
    judges.require("thin-cpp", "thin-rust")
    for seed in range(100, 160):
        made = images(tmp_path, seed, 20)
        judges.assert_clean(*made)
        for path in made:
            path.unlink()


@pytest.mark.parametrize("engine", judges.ENGINES)
def test_thin_dump_says_what_ours_does(tmp_path: Path, engine: judges.Engine) -> None:
    judges.require("thin-cpp", "thin-rust")
    for seed in range(20, 23):
        path = images(tmp_path, seed, 6)[-1]
        with FileDevice(path, read_only=True) as device:
            ours = "".join(dump(PoolView.live(device)))
        theirs = judges.thin_tool(engine, "thin_dump").run(path).stdout
        assert canonical_xml(ours) == canonical_xml(theirs)


@pytest.mark.parametrize("start", [TIME_CAP - 3, TIME_LIMIT - 100])
def test_cuts_at_the_end_of_time_pass_both_thin_checks(tmp_path: Path, start: int) -> None:
    judges.require("thin-cpp", "thin-rust")
    pool, made = pool_at(start), []
    for number in range(4):
        pool = PoolMetadata.open(cuts(pool, 50, reopen_every=20).store.device, time_is_capped=True)
        for dev_id in pool.dev_ids()[1:]:
            pool.delete(dev_id)
        pool.commit(lambda: None)
        made.append(tmp_path / str(number))
        made[-1].write_bytes(pool.store.device.pread(pool.store.device.size_bytes, 0))
    judges.assert_clean(*made)
