"""Devices, snapshots and mappings of one pool, as the format's operations say: fields, counts, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from replicator.blockdev.memory import MemoryDevice
from replicator.errors import ConflictError, FormatError, NotFoundError, UsageError
from replicator.pdata.bitmap import ENTRIES_PER_BITMAP
from replicator.pdata.block import Words
from replicator.pdata.node import MAPPING
from replicator.pdata.tree import walk
from replicator.thin.committed import Committed
from replicator.thin.dirty import DirtySet
from replicator.thin.folding import fold_into, overlay, unmap_range
from replicator.thin.mapping import DEV_ID_LIMIT
from replicator.thin.metadata import PoolMetadata
from replicator.thin.superblock import NEEDS_CHECK, read_superblock
from tests.support.enginerig import BLOCK, UUID, assert_sound


def words(*numbers: int) -> Words:
    return np.array(numbers, dtype=np.uint64)


def run(begin: int, end: int) -> Words:
    return np.arange(begin, end, dtype=np.uint64)


@pytest.fixture
def pool() -> PoolMetadata:
    """Device 1 with blocks 0..299 mapped, committed."""
    pool = PoolMetadata.format(MemoryDevice(2 << 20), BLOCK, 2000, UUID)
    pool.create_thin(1)
    pool.map(1, run(0, 300), pool.transaction.data.counts.take(300))
    commit(pool)
    return pool


def commit(pool: PoolMetadata) -> None:
    pool.commit(lambda: None)
    assert_sound(pool.store.device)


def exclusive(pool: PoolMetadata, dev_id: int, begin: int, end: int) -> list[bool]:
    return [bool(own) for own in Committed(pool.superblock, pool.transaction).mapped(dev_id, begin, end).own]


def test_a_new_pool_uses_nine_blocks_as_the_kernels_does() -> None:
    device = MemoryDevice(8 << 20)
    PoolMetadata.format(device, BLOCK, ENTRIES_PER_BITMAP, UUID).commit(lambda: None)
    assert_sound(device)
    superblock = read_superblock(device)
    assert superblock.metadata_space_map.nr_allocated == 9 and superblock.data_space_map.nr_allocated == 0
    assert (superblock.time, superblock.transaction_id, superblock.held_root) == (0, 0, 0)
    with pytest.raises(ConflictError, match="isn't empty"):
        PoolMetadata.format(device, BLOCK, 10, UUID)


def test_a_pool_that_needs_a_check_isnt_opened(pool: PoolMetadata) -> None:
    device = MemoryDevice(content=pool.store.device.pread(2 << 20, 0))
    superblock = read_superblock(device)
    device.pwrite(replace(superblock, flags=NEEDS_CHECK).pack(), 0)
    with pytest.raises(ConflictError, match="NEEDS_CHECK"):
        PoolMetadata.open(device)
    with pytest.raises(FormatError):
        PoolMetadata.open(MemoryDevice(1 << 20))


def test_a_snapshots_fields(pool: PoolMetadata) -> None:
    pool.set_transaction_id(0, 7)
    pool.create_snap(2, 1)
    commit(pool)
    origin, snapshot = pool.device(1), pool.device(2)
    assert pool.superblock.time == 1 and origin.root == snapshot.root
    assert pool.transaction.metadata.counts.get(words(origin.root)).tolist() == [2]
    fields = [(d.mapped_blocks, d.transaction_id, d.creation_time, d.snapshotted_time) for d in (origin, snapshot)]
    assert fields == [(300, 0, 0, 1), (300, 7, 1, 1)]


def test_a_write_after_a_snapshot_shares_all_but_its_path(pool: PoolMetadata) -> None:
    pool.create_snap(2, 1)
    new = pool.transaction.data.counts.take(3)
    pool.map(1, run(7, 10), new)
    commit(pool)
    counts = pool.transaction.data.counts
    values = [value for _, part in pool.mapped(1, 0, 300) for value in part.tolist()]
    assert values[7:10] == [(int(block) << 24) | 1 for block in new]
    old = [value >> 24 for _, part in pool.mapped(2, 0, 300) for value in part.tolist()]
    assert counts.get(words(*old[7:10])).tolist() == [1, 1, 1] and counts.get(words(old[10])).tolist() == [2]
    assert pool.device(1).mapped_blocks == 300 and counts.nr_allocated == 303


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda pool: pool.create_thin(1), ConflictError),
        (lambda pool: pool.create_snap(1, 1), ConflictError),
        (lambda pool: pool.create_snap(2, 3), NotFoundError),
        (lambda pool: pool.create_thin(DEV_ID_LIMIT), UsageError),
        (lambda pool: pool.delete(9), NotFoundError),
        (lambda pool: pool.map(9, words(1), words(1)), NotFoundError),
        (lambda pool: pool.set_transaction_id(3, 4), ConflictError),
        (lambda pool: pool.grow_data(10), UsageError),
        (lambda pool: pool.grow_metadata(10), UsageError),
    ],
)
def test_a_refusal_changes_nothing(
    pool: PoolMetadata, act: Callable[[PoolMetadata], object], error: type[Exception]
) -> None:
    before = pool.superblock
    with pytest.raises(error):
        act(pool)
    assert (pool.superblock, pool.dev_ids(), pool.store.pending) == (before, [1], {})


def test_deleting_gives_back_what_only_it_had(pool: PoolMetadata) -> None:
    pool.create_snap(2, 1)
    pool.map(2, run(0, 5), pool.transaction.data.counts.take(5))
    commit(pool)
    pool.delete(1)
    assert pool.find(1) is None and pool.dev_ids() == [2]
    pool.create_thin(1)  # ids are given again
    commit(pool)
    assert pool.transaction.data.counts.nr_allocated == 300 and pool.device(1).mapped_blocks == 0
    pool.delete(2)
    pool.delete(1)
    commit(pool)
    assert pool.transaction.data.counts.nr_allocated == 0 and pool.transaction.metadata.counts.nr_allocated == 9


def test_free_ids_are_looked_for_from_a_start(pool: PoolMetadata) -> None:
    pool.create_thin(DEV_ID_LIMIT - 1)
    assert (pool.free_dev_id(), pool.free_dev_id(5), pool.free_dev_id(DEV_ID_LIMIT - 1)) == (2, 5, 2)


def test_growing_data_over_a_partial_bitmap_and_metadata(pool: PoolMetadata) -> None:
    pool.grow_data(3 * ENTRIES_PER_BITMAP)
    commit(pool)
    count = 2 * ENTRIES_PER_BITMAP
    pool.map(1, run(1000, 1000 + count), pool.transaction.data.counts.take(count))
    commit(pool)
    pool.store.device.grow(80 << 20)
    pool.grow_metadata((80 << 20) // 4096)
    commit(pool)
    pool = PoolMetadata.open(pool.store.device)
    assert pool.transaction.metadata.counts.nr_blocks == (80 << 20) // 4096
    assert pool.device(1).mapped_blocks == 300 + count


def test_unmapping_ranges_in_pieces(pool: PoolMetadata) -> None:
    unmap_range(pool, 1, 10, 1 << 20, but=words(12, 200))
    commit(pool)
    found = [key for keys, _ in walk(pool.store, pool.device(1).root, MAPPING) for key in keys.tolist()]
    assert found == [*range(10), 12, 200] and pool.device(1).mapped_blocks == 12


# -- whose a block is ------------------------------------------------------------------------------------------


def test_a_block_is_exclusive_unless_something_above_it_is_shared(pool: PoolMetadata) -> None:
    assert all(exclusive(pool, 1, 0, 300))
    pool.create_snap(2, 1)
    commit(pool)
    assert not any(exclusive(pool, 1, 0, 300))
    pool.map(1, words(3), pool.transaction.data.counts.take(1))
    commit(pool)
    assert [n for n, own in enumerate(exclusive(pool, 1, 0, 300)) if own] == [3]
    assert [n for n, own in enumerate(exclusive(pool, 2, 0, 300)) if own] == [3]
    assert exclusive(pool, 1, 500, 600) == []


@pytest.mark.parametrize("how", ["overwritten", "deleted", "deleted-then-written", "unmapped"])
def test_a_sharer_that_is_gone_counts_until_the_commit(pool: PoolMetadata, how: str) -> None:
    """P6: a power cut before the commit brings it back, so nothing of it may be overwritten in place."""
    pool.create_snap(2, 1)
    commit(pool)
    durable = Committed(pool.superblock, pool.transaction)
    if how == "overwritten":
        pool.map(1, run(0, 300), pool.transaction.data.counts.take(300))
    elif how == "unmapped":
        pool.unmap(1, run(0, 300))
    else:
        pool.delete(1)
    if how == "deleted-then-written":
        pool.map(2, words(5), pool.transaction.data.counts.take(1))
    assert not any(durable.mapped(2, 0, 300).own)
    commit(pool)
    assert all(exclusive(pool, 2, 0, 300))


@pytest.mark.parametrize("how", ["overwritten", "unmapped", "deleted"])
def test_what_a_commit_lets_go_of_stays_its_own_until_then(pool: PoolMetadata, how: str) -> None:
    """The durable state reads the same from the first change of a transaction to its end."""
    durable = Committed(pool.superblock, pool.transaction)
    before = durable.mapped(1, 0, 300)
    if how == "overwritten":
        pool.map(1, run(0, 300), pool.transaction.data.counts.take(300))
    elif how == "unmapped":
        pool.unmap(1, run(0, 300))
    else:
        pool.delete(1)
    block0 = pool.seal()
    for _ in ("sealed", "written"):
        now = durable.mapped(1, 0, 300)
        assert all(now.own) and all((a == b).all() for a, b in zip(before, now, strict=True))
        pool.write(block0, lambda: None)
    pool.finish(lambda: check_still_there(durable))


def check_still_there(durable: Committed) -> None:
    """Nothing that the old state reaches is to be had before `show` has returned (X4)."""
    assert len(durable.mapped(1, 0, 300).blocks) == 300


# -- folding ---------------------------------------------------------------------------------------------------


def dirty(*records: tuple[int, int, int, int]) -> DirtySet:
    rows = [(dev_id << 32 | kind, begin, value) for dev_id, kind, begin, value in records]
    return DirtySet.of_records(np.array(rows, dtype=np.uint64).reshape(-1, 3))


def test_a_dirty_set_is_folded_and_what_was_in_vain_comes_back(pool: PoolMetadata) -> None:
    a, b, c, d = pool.transaction.data.counts.take(4).tolist()
    changes = dirty((1, 1, 5, a), (1, 2, 0, 10), (1, 1, 6, b), (1, 1, 6, c), (77, 1, 1, d), (1, 2, 290, 99))
    vain = fold_into(pool, changes)
    commit(pool)
    assert sorted(np.concatenate(vain).tolist()) == [a, b, d]  # device 77 is no more
    assert pool.device(1).mapped_blocks == 281
    assert next(pool.mapped(1, 0, 20))[0].tolist() == [6, *range(10, 20)]


def test_dirty_changes_over_a_stretch() -> None:
    entries = np.arange(100, 116, dtype=np.uint64)
    changes = dirty((1, 1, 33, 7), (1, 2, 30, 3), (1, 2, 46, 9), (1, 1, 47, 8), (1, 1, 48, 9), (1, 1, 31, 9))
    overlay(entries, 32, changes, 3)
    changed = {n: value for n, value in enumerate(entries.tolist()) if value != 100 + n}
    assert changed == {0: 0, 1: 7 << 24 | 3, 14: 0, 15: 8 << 24 | 3}
    entries = np.zeros(8, dtype=np.uint64)
    overlay(entries, 0, dirty((1, 1, 2, 5), (1, 1, 2, 6), (1, 1, 9, 7)), 4)
    assert entries.tolist() == [0, 0, 6 << 24 | 4, 0, 0, 0, 0, 0]
