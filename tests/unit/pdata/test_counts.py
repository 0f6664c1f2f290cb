"""Reference counts in memory: what is free, taken, fresh, shared on disk; and what comes of wrong numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from replicator.errors import DamageError, NoSpaceError
from replicator.pdata.bitmap import ENTRIES_PER_BITMAP, Counts
from replicator.pdata.block import Words
from replicator.pdata.counts import CountArray
from replicator.pdata.sections import LARGE


def words(*numbers: int) -> Words:
    return np.array(numbers, dtype=np.uint64)


def nothing(sections: Words) -> Counts:
    return np.zeros((len(sections), ENTRIES_PER_BITMAP), dtype=np.uint32)


def made(
    blocks: int = 100, *, recycle: bool = False, load: Callable[[Words], Counts] = nothing, used: int = 0
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


def test_a_block_is_sole_by_the_committed_state_and_the_running_one() -> None:
    """C4: a power cut brings back who shared it; who is alone stays so, until another comes."""
    counts = made()
    counts.add(words(1, 1, 2, 4))
    assert not counts.are_sole(words(1, 2, 4)).any()
    counts.end_transaction()
    assert counts.are_sole(words(1, 2, 3, 4)).tolist() == [False, True, False, True]
    counts.drop(words(1, 2))
    counts.add(words(4))
    assert counts.get(words(1, 2, 4)).tolist() == [1, 0, 2]
    assert counts.are_sole(words(1, 2, 4)).tolist() == [False, True, False]
    counts.drop(words(4))
    assert not counts.are_sole(words(4))[0]
    counts.end_transaction()
    assert counts.are_sole(words(1, 2, 4)).tolist() == [True, True, True]  # 2 is read no more
    counts.settle(counts.collect_freed())
    assert not counts.are_sole(words(2))[0]


def test_a_shared_block_that_nobody_has_any_more_isnt_sole() -> None:
    counts = made()
    counts.add(words(1, 1))
    counts.end_transaction()
    counts.drop(words(1, 1))
    assert not counts.are_sole(words(1))[0]


def test_sections_are_loaded_together_when_asked_for_and_given_back() -> None:
    loaded: list[list[int]] = []

    def load(sections: Words) -> Counts:
        loaded.append(sections.tolist())
        return np.full((len(sections), ENTRIES_PER_BITMAP), 1, dtype=np.uint32) * sections[:, None].astype(np.uint32)

    counts = made(20 * ENTRIES_PER_BITMAP, load=load, used=20 * ENTRIES_PER_BITMAP)
    assert counts.get(words(9, 2 * ENTRIES_PER_BITMAP)).tolist() == [0, 2] and loaded == [list(range(8))]
    assert counts.are_sole(words(ENTRIES_PER_BITMAP, 19 * ENTRIES_PER_BITMAP)).tolist() == [True, False]
    assert loaded[1:] == [[16, 17, 18, 19]]
    counts.add(words(5))
    counts.unload(0)
    assert np.flatnonzero(counts.loaded).tolist() == [0]  # what is dirty stays
    assert counts.are_sole(words(ENTRIES_PER_BITMAP))[0] and loaded[2:] == [list(range(1, 8))]
    assert counts.get(words(2 * ENTRIES_PER_BITMAP + 9)).tolist() == [2] and len(loaded) == 3


def test_growing_keeps_what_is_there_and_looks_into_the_old_tail() -> None:
    """A bitmap whose index entry says 0 free, its tail not counted (thin_restore 0.9.0), has room after growing."""
    full = np.zeros((1, ENTRIES_PER_BITMAP), dtype=np.uint32)
    full[0, :10] = 1
    counts = made(10, load=lambda sections: full if sections[0] == 0 else nothing(sections), used=10)
    counts.section_free[:] = 0
    counts.grow(12)
    assert counts.take(2).tolist() == [10, 11]
    counts.grow(ENTRIES_PER_BITMAP + 5)
    assert counts.free_count == ENTRIES_PER_BITMAP + 5 - 12


def test_a_map_that_lies_about_free_blocks_is_damage() -> None:
    counts = made(10, load=lambda _: np.ones((1, ENTRIES_PER_BITMAP), dtype=np.uint32), used=5)
    with pytest.raises(DamageError, match="should be free"):
        counts.take(3)
    assert counts.held_count == 0


def test_a_large_count_is_found_again_where_growth_was_undone() -> None:
    """Its section was forgotten meanwhile, and the arrays of before are taken back as loaded."""
    disk = np.zeros(3 * ENTRIES_PER_BITMAP, dtype=np.uint32)
    disk[5] = LARGE + 3
    rows = disk.reshape(3, ENTRIES_PER_BITMAP)
    counts = made(2 * ENTRIES_PER_BITMAP, load=lambda sections: rows[sections.astype(np.int64)], used=1)
    assert counts.get(words(5)).tolist() == [LARGE + 3]
    mark = counts.mark()
    counts.grow(3 * ENTRIES_PER_BITMAP)
    counts.get(words(5))
    counts.unload(0)
    counts.undo(mark)
    assert counts.get(words(5)).tolist() == [LARGE + 3]
