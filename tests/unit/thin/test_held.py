"""The metadata snapshot: what it freezes, what it costs, and that it comes and goes as the format says."""

from __future__ import annotations

import numpy as np
import pytest

from replicator.blockdev.memory import MemoryDevice
from replicator.errors import ConflictError, NotFoundError
from replicator.pdata.block import Words
from replicator.thin.dump import dump
from replicator.thin.held import release_metadata_snap, reserve_metadata_snap
from replicator.thin.metadata import PoolMetadata
from replicator.thin.superblock import read_superblock
from replicator.thin.view import PoolView
from tests.support.enginerig import BLOCK, UUID, assert_sound


def words(*numbers: int) -> Words:
    return np.array(numbers, dtype=np.uint64)


def commit(pool: PoolMetadata) -> None:
    """Durable, and sound by our own check."""
    pool.commit(lambda: None)
    assert_sound(pool.store.device)


@pytest.fixture
def pool() -> PoolMetadata:
    """Device 1 with 300 blocks, and its untouched snapshots 2 and 3: three entries of the top level name one root."""
    pool = PoolMetadata.format(MemoryDevice(2 << 20), BLOCK, 2000, UUID)
    pool.create_thin(1)
    pool.map(1, np.arange(300, dtype=np.uint64), pool.transaction.data.counts.take(300))
    pool.create_snap(2, 1)
    pool.create_snap(3, 1)
    commit(pool)
    return pool


def frozen(pool: PoolMetadata) -> str:
    """The held copy as XML."""
    return "".join(dump(PoolView.held(pool.store.device)))


def mappings(pool: PoolMetadata) -> str:
    """The live devices as XML, without the superblock's line."""
    return "".join(dump(PoolView.live(pool.store.device))).split("\n", 1)[1]


def test_the_copy_is_as_the_format_says(pool: PoolMetadata) -> None:
    before = pool.superblock
    block = reserve_metadata_snap(pool)
    commit(pool)
    live, copy = read_superblock(pool.store.device), read_superblock(pool.store.device, block)
    assert live.held_root == block == copy.block and copy.held_root == 0
    assert copy.data_space_map.pack() == copy.metadata_space_map.pack() == bytes(32)
    assert (copy.time, copy.transaction_id, copy.uuid) == (before.time, before.transaction_id, before.uuid)
    roots = words(copy.data_mapping_root, copy.device_details_root, block)
    assert pool.transaction.metadata.counts.get(roots).tolist() == [2, 2, 1]


def test_there_is_one_at_a_time(pool: PoolMetadata) -> None:
    with pytest.raises(ConflictError, match="no metadata snapshot"):
        release_metadata_snap(pool)
    reserve_metadata_snap(pool)
    with pytest.raises(ConflictError, match="already"):
        reserve_metadata_snap(pool)
    release_metadata_snap(pool)  # in the same transaction
    commit(pool)
    with pytest.raises(NotFoundError):
        PoolView.held(pool.store.device)


@pytest.mark.parametrize("between", [False, True], ids=["one-transaction", "two-transactions"])
def test_writes_after_it_leave_the_frozen_mappings_alone(pool: PoolMetadata, between: bool) -> None:
    expected = mappings(pool)
    reserve_metadata_snap(pool)
    if between:
        commit(pool)
    take = pool.transaction.data.counts.take
    pool.map(1, words(7, 8, 400), take(3))
    pool.create_snap(4, 2)
    pool.unmap(2, np.arange(0, 290, 3, dtype=np.uint64))
    pool.create_thin(5)
    commit(pool)
    pool.delete(3)
    pool.map(2, words(1), take(1))
    commit(pool)
    assert frozen(pool).split("\n", 1)[1] == expected
    assert [entry.dev_id for entry in PoolView.live(pool.store.device).devices()] == [1, 2, 4, 5]


def test_what_changed_in_the_same_transaction_is_in_it(pool: PoolMetadata) -> None:
    pool.map(2, words(5), pool.transaction.data.counts.take(1))
    reserve_metadata_snap(pool)
    pool.map(2, words(6), pool.transaction.data.counts.take(1))
    commit(pool)
    held, live = PoolView.held(pool.store.device), PoolView.live(pool.store.device)
    block = words(5, 6)
    then, now = (view.lookup(view.device(2).root, block)[1].tolist() for view in (held, live))
    assert then[0] == now[0] and then[1] != now[1]


def test_releasing_gives_back_all_that_it_took(pool: PoolMetadata) -> None:
    counts = pool.transaction.metadata.counts, pool.transaction.data.counts
    used = [each.nr_allocated for each in counts]
    reserve_metadata_snap(pool)
    commit(pool)
    pool.map(1, words(7), pool.transaction.data.counts.take(1))
    commit(pool)
    pool.unmap(1, words(7))
    for dev_id in (1, 2):
        pool.delete(dev_id)
    commit(pool)
    assert counts[1].nr_allocated == used[1]  # the held copy still names what nobody else has
    release_metadata_snap(pool)
    commit(pool)
    assert [each.nr_allocated for each in counts] == used
    assert [entry.details.mapped_blocks for entry in PoolView.live(pool.store.device).devices()] == [300]


def test_many_devices_with_one_root_are_counted_each(pool: PoolMetadata) -> None:
    """The upper leaf names one root many times; when it is copied, each entry of the copy counts."""
    for dev_id in range(10, 200):
        pool.create_snap(dev_id, 1)
    commit(pool)
    reserve_metadata_snap(pool)
    commit(pool)
    pool.create_thin(500)
    commit(pool)
    assert pool.transaction.metadata.counts.get(words(pool.device(1).root)).tolist() == [2 * 193]
    release_metadata_snap(pool)
    commit(pool)
    assert pool.transaction.metadata.counts.get(words(pool.device(1).root)).tolist() == [193]


@pytest.mark.parametrize("committed", [False, True])
def test_releasing_devices_of_several_depths_gives_all_back(pool: PoolMetadata, committed: bool) -> None:
    """The held copy alone reaches trees of one level and of two: both go, with their data blocks."""
    pool.create_thin(4)
    pool.map(4, words(7), pool.transaction.data.counts.take(1))
    commit(pool)
    reserve_metadata_snap(pool)
    for dev_id in (1, 2, 3, 4):
        if committed:
            commit(pool)
        pool.delete(dev_id)
    release_metadata_snap(pool)
    commit(pool)
    assert pool.transaction.data.counts.nr_allocated == 0
