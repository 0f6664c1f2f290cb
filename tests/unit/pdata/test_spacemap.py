"""A space map's two forms agree: counts that cross three, sections loaded together, growth, what a failure undoes."""

from __future__ import annotations

import numpy as np
import pytest

from replicator.blockdev.memory import MemoryDevice
from replicator.errors import DamageError
from replicator.pdata.bitmap import ENTRIES_PER_BITMAP
from replicator.pdata.block import Words
from replicator.pdata.node import REF_COUNTS
from replicator.pdata.tree import walk
from replicator.thin.metadata import PoolMetadata
from tests.support.enginerig import BLOCK, UUID, assert_sound

SECTIONS = 20


def words(*numbers: int) -> Words:
    return np.array(numbers, dtype=np.uint64)


@pytest.fixture
def pool() -> PoolMetadata:
    """Device 1 with blocks in the first, the tenth and the last section of the data map."""
    pool = PoolMetadata.format(MemoryDevice(8 << 20), BLOCK, SECTIONS * ENTRIES_PER_BITMAP, UUID)
    pool.create_thin(1)
    blocks = words(*(section * ENTRIES_PER_BITMAP + 7 for section in (0, 9, SECTIONS - 1)))
    pool.map(1, words(1, 2, 3), blocks)
    pool.commit(lambda: None)
    return pool


def overflow(pool: PoolMetadata) -> dict[int, int]:
    space = pool.transaction.data
    return {
        int(k): int(v)
        for keys, values in walk(space.store, space.ref_count_root, REF_COUNTS)
        for k, v in zip(keys, values, strict=True)
    }


def reopened(pool: PoolMetadata) -> PoolMetadata:
    pool.commit(lambda: None)
    assert_sound(pool.store.device)
    return PoolMetadata.open(pool.store.device)


def test_counts_from_three_on_stand_in_the_overflow_tree(pool: PoolMetadata) -> None:
    """P1: and no others."""
    for dev_id in range(2, 6):
        pool.create_snap(dev_id, 1)
        pool.map(dev_id, words(9), pool.transaction.data.counts.take(1))  # a leaf of its own, which names them too
    pool = reopened(pool)
    assert overflow(pool) == {7: 5, 9 * ENTRIES_PER_BITMAP + 7: 5, (SECTIONS - 1) * ENTRIES_PER_BITMAP + 7: 5}
    assert pool.transaction.data.counts.get(words(7)).tolist() == [5]
    for dev_id in (2, 3, 4):
        pool.delete(dev_id)
    pool = reopened(pool)
    assert overflow(pool) == {} and pool.transaction.data.counts.get(words(7)).tolist() == [2]


def test_sections_that_lie_together_come_in_one_read(pool: PoolMetadata) -> None:
    pool = reopened(pool)
    counts, before = pool.transaction.data.counts, pool.store.blocks_read
    assert counts.get(words(7)).tolist() == [1] and np.flatnonzero(counts.loaded).tolist() == list(range(8))
    assert pool.store.blocks_read - before == 8
    alone = pool.transaction.data.load_sections(words(9))
    assert alone.shape == (1, ENTRIES_PER_BITMAP) and np.flatnonzero(alone).tolist() == [7]


@pytest.mark.parametrize("how", ["nothing", "map", "snapshot", "delete", "grow"])
def test_what_fails_halfway_was_never_begun(pool: PoolMetadata, how: str) -> None:
    """The commit after it is what it would have been without it."""
    content = pool.store.device.pread(pool.store.device.size_bytes, 0)
    pool, twin = (PoolMetadata.open(MemoryDevice(content=content)) for _ in range(2))
    device, blocks = pool.store.device, pool.transaction.data.counts.take(3)
    twin.transaction.data.counts.take(3)
    for each in (pool, twin):
        each.map(1, words(5), blocks[:1])

    def work(metadata: PoolMetadata) -> None:
        if how == "map":
            metadata.map(1, np.arange(900, dtype=np.uint64), metadata.transaction.data.counts.take(900))
        elif how == "snapshot":
            metadata.create_snap(2, 1)
            metadata.map(1, words(2, 5), blocks[1:])
        elif how == "delete":
            metadata.delete(1)
        elif how == "grow":
            metadata.grow_data((SECTIONS + 3) * ENTRIES_PER_BITMAP)
            metadata.map(1, words(2), metadata.transaction.data.counts.take(1))
        raise DamageError("halfway")

    with pytest.raises(DamageError):
        pool.attempt(work)
    for each in (pool, twin):
        each.commit(lambda: None)
        each.transaction.data.counts.put_back(blocks[1:])
        assert each.transaction.data.counts.free_count == SECTIONS * ENTRIES_PER_BITMAP - 4
    assert_sound(device)
    assert device.pread(device.size_bytes, 0) == twin.store.device.pread(device.size_bytes, 0)


def test_growing_over_a_partial_bitmap_counts_its_tail() -> None:
    """P2."""
    pool = PoolMetadata.format(MemoryDevice(2 << 20), BLOCK, 100, UUID)
    pool.commit(lambda: None)
    pool.grow_data(ENTRIES_PER_BITMAP + 3)
    pool = reopened(pool)
    assert pool.transaction.data.index["nr_free"].tolist() == [ENTRIES_PER_BITMAP, ENTRIES_PER_BITMAP]
    assert len(pool.transaction.data.counts.take(ENTRIES_PER_BITMAP + 3)) == ENTRIES_PER_BITMAP + 3
