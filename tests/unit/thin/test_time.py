"""The snapshot counter near the end of its 24 bits: a thousand cuts under writes, the rule of sharing kept throughout.

thin_check doesn't look at times, so the rule is worked out here once more, by plain walks over the trees: a mapping
that two live devices reach has a time below both's snapshotted_time (the kernel would overwrite it in place otherwise).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from replicator.blockdev.interface import BlockDevice
from replicator.blockdev.memory import MemoryDevice
from replicator.errors import ConflictError
from replicator.thin.mapping import TIME_LIMIT, data_blocks, times
from replicator.thin.metadata import TIME_CAP, PoolMetadata
from replicator.thin.view import PoolView
from tests.support.enginerig import BLOCK, UUID, assert_sound

SPAN = 600


def assert_sharing_rule(device: BlockDevice) -> None:
    """By data block: whoever shares it says so by the times."""
    view, reach = PoolView.live(device), defaultdict[int, list[tuple[int, int, int]]](list)
    for entry in view.devices():
        snapshotted = entry.details.snapshotted_time
        for _, values in view.mappings(entry.root):
            for block, time in zip(data_blocks(values).tolist(), times(values).tolist(), strict=True):
                reach[block].append((entry.dev_id, time, snapshotted))
    for block, sharers in reach.items():
        assert len(sharers) == 1 or all(time < snapshotted for _, time, snapshotted in sharers), (block, sharers)


def pool_at(time: int) -> PoolMetadata:
    """A pool with one device of a few blocks, whose clock stands at `time`."""
    pool = PoolMetadata.format(MemoryDevice(2 << 20), BLOCK, 4000, UUID)
    pool.create_thin(1)
    pool.superblock = replace(pool.superblock, time=time)
    pool.map(1, np.arange(400, dtype=np.uint64), pool.transaction.data.counts.take(400))
    pool.commit(lambda: None)
    return pool


def cuts(pool: PoolMetadata, count: int, *, reopen_every: int) -> PoolMetadata:
    """Write, cut, drop the oldest snapshot but two; the mark of the cap is carried over each reopening."""
    rng = np.random.default_rng(7)
    for number in range(count):
        blocks = np.unique(rng.integers(0, SPAN, 5)).astype(np.uint64)
        pool.map(1, blocks, pool.transaction.data.counts.take(len(blocks)))
        if number % 3 == 2:
            pool.commit(lambda: None)
        pool.create_snap(1000 + number, 1)
        if number > 2:
            pool.delete(1000 + number - 3)
        pool.commit(lambda: None)
        if number % reopen_every == reopen_every - 1:
            pool = PoolMetadata.open(pool.store.device, time_is_capped=pool.time_is_capped)
        if number % 50 == 0 or number < 12:
            assert_sound(pool.store.device)
            assert_sharing_rule(pool.store.device)
    return pool


@pytest.mark.parametrize(
    ("start", "count", "last", "capped"),
    [
        (TIME_LIMIT - 100, 1000, TIME_LIMIT - 99, True),
        (TIME_CAP - 3, 100, TIME_CAP + 1, True),
        (TIME_LIMIT - 2, 100, TIME_LIMIT - 1, True),
        (0, 100, 100, False),
    ],
)
def test_a_thousand_cuts(start: int, count: int, last: int, capped: bool) -> None:
    pool = cuts(pool_at(start), count, reopen_every=97)
    assert_sound(pool.store.device)
    assert (pool.superblock.time, pool.time_is_capped) == (last, capped)


def test_at_the_end_of_24_bits_cuts_are_refused_and_all_else_goes_on() -> None:
    pool = pool_at(TIME_LIMIT - 1)
    with pytest.raises(ConflictError, match="24 bits") as refused:
        pool.create_snap(2, 1)
    assert refused.value.exit_code == 4 and refused.value.mend
    pool.map(1, np.arange(9, dtype=np.uint64), pool.transaction.data.counts.take(9))
    pool.commit(lambda: None)
    assert [entry.dev_id for entry in PoolView.live(pool.store.device).devices()] == [1]
    assert_sound(pool.store.device)


def test_after_another_writer_the_clock_goes_up_once_more() -> None:
    """The mark is forgotten (the superblock isn't the catalogue's): one more step, then it stands again."""
    pool = cuts(pool_at(TIME_LIMIT - 100), 3, reopen_every=99)
    assert pool.superblock.time == TIME_LIMIT - 99
    foreign = PoolMetadata.open(pool.store.device)
    for dev_id in foreign.dev_ids()[1:]:
        foreign.delete(dev_id)
    foreign.map(1, np.arange(9, dtype=np.uint64), foreign.transaction.data.counts.take(9))
    foreign.commit(lambda: None)
    assert_sharing_rule(foreign.store.device)
    pool = cuts(PoolMetadata.open(foreign.store.device), 5, reopen_every=99)
    assert pool.superblock.time == TIME_LIMIT - 98
    assert_sharing_rule(pool.store.device)


def test_time_stands_while_nothing_is_mapped() -> None:
    pool = pool_at(5)
    for dev_id in range(2, 12):
        pool.create_snap(dev_id, 1)
        pool.commit(lambda: None)
    assert pool.superblock.time == 6
    assert_sharing_rule(pool.store.device)


def test_a_mapping_put_with_the_current_time_makes_the_clock_move() -> None:
    pool = pool_at(5)
    pool.create_snap(2, 1)
    pool.map(1, np.arange(3, dtype=np.uint64), pool.transaction.data.counts.take(3), time=6)
    pool.create_snap(3, 1)
    pool.commit(lambda: None)
    assert pool.superblock.time == 7
    assert_sound(pool.store.device)
