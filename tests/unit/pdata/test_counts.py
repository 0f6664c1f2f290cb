"""Reference counts in memory: what is free, taken, fresh, shared on disk; and what comes of wrong numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from replicator.errors import DamageError, NoSpaceError
from replicator.pdata.bitmap import ENTRIES_PER_BITMAP, Counts
from replicator.pdata.block import Words
from replicator.pdata.counts import CountArray


def words(*numbers: int) -> Words:
    return np.array(numbers, dtype=np.uint64)


def nothing(_: int) -> Counts:
    return np.zeros(ENTRIES_PER_BITMAP, dtype=np.uint32)


def made(
    blocks: int = 100, *, recycle: bool = False, load: Callable[[int], Counts] = nothing, used: int = 0
) -> CountArray:
    return CountArray("data", blocks, used, load, recycle=recycle)


def test_taken_blocks_are_neither_free_nor_counted() -> None:
    counts = made(5)
    taken = counts.take(3)
    assert taken.tolist() == [0, 1, 2] and (counts.free_count, counts.nr_allocated) == (2, 0)
    counts.put_back(words(1))
    assert counts.free_count == 3
    counts.add(words(0, 2))
    assert (counts.free_count, counts.nr_allocated) == (3, 2)
    assert counts.take(3).tolist() == [3, 4, 1]  # on from the last one, then from the start
    with pytest.raises(NoSpaceError, match="space is out") as refused:
        counts.take(1)
    assert refused.value.mend and counts.take(0).size == 0


def test_freed_blocks_stay_taken_until_settled() -> None:
    counts = made(3)
    counts.add(counts.take(3))
    counts.end_transaction()
    assert counts.drop(words(1)).tolist() == [1]
    assert counts.free_count == 0
    freed = counts.collect_freed()
    counts.end_transaction()
    assert counts.free_count == 0
    counts.settle(freed)
    assert counts.take(1).tolist() == [1]


def test_fresh_metadata_blocks_may_be_taken_again_at_once_until_the_commit() -> None:
    counts = made(3, recycle=True)
    counts.add(counts.take(2))
    counts.drop(words(0))
    assert counts.free_count == 2 and counts.collect_freed().size == 0
    counts.end_transaction()
    counts.drop(words(1))
    assert counts.free_count == 2 and counts.collect_freed().tolist() == [1]


def test_a_block_may_stand_there_several_times() -> None:
    counts = made()
    counts.add(words(7, 7, 9, 7))
    assert counts.get(words(7, 9)).tolist() == [3, 1] and counts.nr_allocated == 2
    assert counts.collect_overflow().tolist() == [7]
    assert counts.drop(words(7, 7)).size == 0
    assert counts.drop(words(7, 9)).tolist() == [7, 9]
    counts.add(words(5, 5))
    assert counts.drop(words(5, 5)).tolist() == [5]


def test_dropping_more_than_there_is_changes_nothing() -> None:
    counts = made()
    counts.add(words(1, 2, 2))
    for wrong in (words(3), words(1, 1), words(2, 1, 1)):
        with pytest.raises(DamageError, match="referred to more often"):
            counts.drop(wrong)
        assert counts.get(words(1, 2, 3)).tolist() == [1, 2, 0]
    with pytest.raises(DamageError, match="beyond"):
        counts.add(words(100))


@pytest.mark.parametrize(("before", "drops", "touched"), [(1, 0, False), (2, 0, True), (3, 0, True), (3, 1, True)])
def test_the_overflow_tree_hears_of_what_crosses_three(before: int, drops: int, touched: bool) -> None:
    counts = made()
    for _ in range(before):
        counts.add(words(4))
    counts.collect_overflow()
    (counts.drop if drops else counts.add)(words(4))
    assert counts.collect_overflow().tolist() == ([4] if touched else [])


def test_who_let_go_counts_until_the_commit() -> None:
    """C4: a power cut brings back who shared it."""
    counts = made()
    counts.add(words(1, 1, 2))
    counts.end_transaction()
    assert counts.is_exclusive(words(1, 2, 3)).tolist() == [False, True, False]
    counts.drop(words(1))
    assert counts.get(words(1)).tolist() == [1] and not counts.is_exclusive(words(1))[0]
    counts.mark_left(words(2))
    assert not counts.is_exclusive(words(2))[0]
    counts.end_transaction()
    assert counts.is_exclusive(words(1, 2)).all()


def test_sections_are_loaded_when_asked_for_and_given_back() -> None:
    loaded: list[int] = []

    def load(section: int) -> Counts:
        loaded.append(section)
        return np.full(ENTRIES_PER_BITMAP, section + 1, dtype=np.uint32)

    counts = made(3 * ENTRIES_PER_BITMAP, load=load, used=3 * ENTRIES_PER_BITMAP)
    assert counts.get(words(0, 2 * ENTRIES_PER_BITMAP)).tolist() == [1, 3] and loaded == [0, 2]
    counts.add(words(5))
    counts.unload(0)
    assert counts.loaded.tolist() == [True, False, False]  # what is dirty stays
    assert counts.get(words(2 * ENTRIES_PER_BITMAP + 9)).tolist() == [3] and loaded == [0, 2, 2]


def test_growing_keeps_what_is_there_and_looks_into_the_old_tail() -> None:
    """A bitmap whose index entry says 0 free, its tail not counted (thin_restore 0.9.0), has room after growing."""
    full = np.zeros(ENTRIES_PER_BITMAP, dtype=np.uint32)
    full[:10] = 1
    counts = made(10, load=lambda _: full, used=10)
    counts.section_free[:] = 0
    counts.grow(12)
    assert counts.take(2).tolist() == [10, 11]
    counts.grow(ENTRIES_PER_BITMAP + 5)
    assert counts.free_count == ENTRIES_PER_BITMAP + 5 - 12


def test_a_map_that_lies_about_free_blocks_is_damage() -> None:
    counts = made(10, load=lambda _: np.ones(ENTRIES_PER_BITMAP, dtype=np.uint32), used=5)
    with pytest.raises(DamageError, match="should be free"):
        counts.take(3)
    assert counts.held_count == 0
