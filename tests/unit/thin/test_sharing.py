"""Whose a block is, at every depth: shared roots, nodes, leaves, data blocks, in ranges that begin anywhere."""

from __future__ import annotations

import numpy as np
import pytest

from replicator.blockdev.memory import MemoryDevice
from replicator.pdata.block import Words
from replicator.thin.committed import Committed
from replicator.thin.metadata import PoolMetadata
from tests.support.enginerig import BLOCK, UUID, assert_sound

COUNT = 70_000  # three levels of nodes


def words(*numbers: int) -> Words:
    return np.array(numbers, dtype=np.uint64)


@pytest.fixture(scope="module")
def state() -> Committed:
    """Device 1 with a snapshot, 2; since then it wrote blocks 7 and 50,000, and unmapped 60,000."""
    pool = PoolMetadata.format(MemoryDevice(4 << 20), BLOCK, COUNT + 10_000, UUID)
    pool.create_thin(1)
    pool.map(1, np.arange(COUNT, dtype=np.uint64), pool.transaction.data.counts.take(COUNT))
    pool.create_snap(2, 1)
    pool.map(1, words(7, 50_000), pool.transaction.data.counts.take(2))
    pool.unmap(1, words(60_000))
    pool.create_thin(3)
    pool.commit(lambda: None)
    assert_sound(pool.store.device)
    return Committed(pool.superblock, pool.transaction)


@pytest.mark.parametrize(
    ("begin", "end"), [(0, COUNT), (0, 1), (7, 8), (8, 50_001), (50_001, 60_000), (69_999, 1 << 40)]
)
def test_only_what_was_written_since_is_its_own(state: Committed, begin: int, end: int) -> None:
    found = state.mapped(1, begin, end)
    there = [block for block in range(begin, min(end, COUNT)) if block != 60_000]
    assert found.blocks.tolist() == there
    assert found.blocks[found.own].tolist() == [block for block in (7, 50_000) if begin <= block < end]
    base = state.mapped(2, begin, end)
    replaced = [block for block in (7, 50_000, 60_000) if begin <= block < end]
    assert base.blocks[base.own].tolist() == replaced  # nobody else has these any more
    same = np.isin(base.blocks, words(*replaced), invert=True)
    assert (base.data_blocks[same] == found.data_blocks[~np.isin(found.blocks, words(*replaced))]).all()


def test_an_empty_device_and_a_range_beyond_the_end_have_nothing(state: Committed) -> None:
    assert not state.mapped(3, 0, 1 << 40).blocks.size and not state.mapped(1, COUNT, COUNT + 4096).own.size
