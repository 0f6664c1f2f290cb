"""Trees as they are read and as they die: keys found, ranges walked, leaves counted and dropped, cycles refused."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from replicator.blockdev.memory import MemoryDevice
from replicator.errors import FormatError
from replicator.pdata.block import Words
from replicator.pdata.node import MAPPING, TOP_LEVEL, encode
from replicator.pdata.tree import leaf_bound, leaf_count, lookup, lookup_one, walk
from replicator.pdata.update import LEAF_COST
from replicator.thin.metadata import PoolMetadata
from tests.support.enginerig import BLOCK, UUID, assert_sound

COUNT = 70_000  # 278 leaves under two nodes under a root
STEP = 3


def words(*numbers: int) -> Words:
    return np.array(numbers, dtype=np.uint64)


@pytest.fixture(scope="module")
def grown() -> bytes:
    """A pool whose device 1 maps every third block."""
    device = MemoryDevice(4 << 20)
    pool = PoolMetadata.format(device, BLOCK, 100_000, UUID)
    pool.create_thin(1)
    pool.map(1, np.arange(0, COUNT * STEP, STEP, dtype=np.uint64), pool.transaction.data.counts.take(COUNT))
    pool.commit(lambda: None)
    return device.content()


@pytest.fixture
def pool(grown: bytes) -> PoolMetadata:
    return PoolMetadata.open(MemoryDevice(content=grown))


def keys_of(pool: PoolMetadata, begin: int = 0, end: int | None = None) -> list[int]:
    pieces = walk(pool.store, pool.device(1).root, MAPPING, begin, end)
    return [key for keys, _ in pieces for key in keys.tolist()]


def test_keys_are_found_and_others_are_not(pool: PoolMetadata) -> None:
    root = pool.device(1).root
    found, values = lookup(pool.store, root, words(0, 1, 3, 99_999, COUNT * STEP - 3, COUNT * STEP), MAPPING)
    assert found.tolist() == [True, False, True, True, True, False] and values[0] >> 24 != values[2] >> 24
    assert lookup_one(pool.store, root, 4, MAPPING) is None and lookup_one(pool.store, root, 6, MAPPING) is not None
    assert lookup_one(pool.store, root, -1, MAPPING) is None and lookup_one(pool.store, root, 1 << 64, MAPPING) is None
    assert not lookup(pool.store, root, words(), MAPPING)[0].size


@pytest.mark.parametrize(
    ("begin", "end"), [(0, None), (0, 0), (5, 4), (1, 3), (1, 4), (700, 900), (COUNT * STEP, None)]
)
def test_a_walk_gives_its_range(pool: PoolMetadata, begin: int, end: int | None) -> None:
    last = COUNT * STEP if end is None else end
    assert keys_of(pool, begin, end) == [key for key in range(0, COUNT * STEP, STEP) if begin <= key < last]


def test_leaves_are_counted_and_bounded(pool: PoolMetadata) -> None:
    root = pool.device(1).root
    leaves = leaf_count(pool.store, root, MAPPING)
    assert COUNT // 252 <= leaves <= COUNT // 84
    bounds = [0]
    while bounds[-1] < COUNT * STEP:
        bounds.append(leaf_bound(pool.store, root, MAPPING, (bounds[-1], COUNT * STEP), 10))
    assert len(bounds) - 1 == -(-leaves // 10) and all(low < high for low, high in pairwise(bounds))
    assert leaf_bound(pool.store, root, MAPPING, (0, 50), 1) == 50
    assert leaf_bound(pool.store, root, MAPPING, (COUNT * STEP, 1 << 40), 1) == 1 << 40


@pytest.mark.parametrize(
    "reader", [leaf_count, lambda s, r, k: list(walk(s, r, k)), lambda s, r, k: lookup_one(s, r, 0, k)]
)
def test_a_cycle_ends(reader: object) -> None:
    """T1, T2: a node that is its own child."""
    device = MemoryDevice(1 << 20)
    block = words(3)
    device.pwrite(encode(block, np.array([1]), words(0), block, False, TOP_LEVEL).tobytes(), 3 * 4096)
    store = PoolMetadata.format(device, BLOCK, 10, UUID).store
    with pytest.raises(FormatError):
        reader(store, 3, TOP_LEVEL)  # type: ignore[operator] # one of the three above


@pytest.mark.parametrize("budget", [1, 40 * LEAF_COST, 10_000 * LEAF_COST])
def test_a_tree_that_dies_in_slices_loses_its_first_leaves(pool: PoolMetadata, budget: int) -> None:
    before, slices = keys_of(pool), 0
    while not pool.shrink_dying(1, budget):
        pool.commit(lambda: None)
        slices += 1
        if slices % 64 == 0:
            assert_sound(pool.store.device)
        left = keys_of(pool) if slices % 16 == 1 else None
        if left is not None:
            assert left == before[len(before) - len(left) :] and pool.device(1).mapped_blocks == len(left)
    pool.commit(lambda: None)
    assert_sound(pool.store.device)
    assert pool.transaction.data.counts.nr_allocated == 0 and pool.dev_ids() == []
    assert (slices == 0) == (budget >= 1000 * LEAF_COST)


def test_what_others_share_costs_next_to_nothing(pool: PoolMetadata) -> None:
    pool.create_snap(2, 1)
    assert pool.deletion_cost(1, 1 << 20) == 0
    pool.map(1, words(0, 90_000), pool.transaction.data.counts.take(2))
    assert pool.deletion_cost(1, 1 << 20) == 2 * LEAF_COST == pool.deletion_cost(2, 1 << 20)
    assert pool.shrink_dying(1, LEAF_COST) is False and pool.device(1).mapped_blocks < COUNT
    while not pool.shrink_dying(1, LEAF_COST):
        pass
    pool.commit(lambda: None)
    assert_sound(pool.store.device)
    assert pool.device(2).mapped_blocks == COUNT == pool.transaction.data.counts.nr_allocated
