"""Counts in bounded memory: what comes and goes tells the same as what stays, however little room there is."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from replicator.errors import DamageError
from replicator.pdata.bitmap import ENTRIES_PER_BITMAP, Counts
from replicator.pdata.block import Words
from replicator.pdata.counts import CountArray
from replicator.pdata.sections import LARGE, PIECE_BLOCKS

SECTIONS = 12
BLOCKS = SECTIONS * ENTRIES_PER_BITMAP - 777
SPOTS = np.concatenate(
    [np.arange(6, dtype=np.uint64) + np.uint64(max(0, edge * ENTRIES_PER_BITMAP - 3)) for edge in range(SECTIONS)]
)


class Disk:
    """What a commit leaves: the counts that a CountArray loads its sections from."""

    def __init__(self, limit: int) -> None:
        self.counts = np.zeros(SECTIONS * ENTRIES_PER_BITMAP, dtype=np.uint32)
        self.loads = 0
        self.array = CountArray("data", BLOCKS, 0, self._load, recycle=False)
        self.array.limit = limit
        self.free: Words = np.empty(0, dtype=np.uint64)

    def _load(self, sections: Words) -> Counts:
        self.loads += len(sections)
        rows: Counts = self.counts.reshape(SECTIONS, ENTRIES_PER_BITMAP)[sections.astype(np.int64)]
        return rows

    def commit(self) -> None:
        """As the transaction does it: dirty sections are written, what was freed the last time is settled."""
        array = self.array
        for section in np.flatnonzero(array.dirty).tolist():
            part = np.arange(section * ENTRIES_PER_BITMAP, min((section + 1) * ENTRIES_PER_BITMAP, BLOCKS))
            self.counts[part] = array.get(part.astype(np.uint64))
            array.section_free[section] = ENTRIES_PER_BITMAP - np.count_nonzero(self.counts[part])
        array.end_transaction()
        array.settle(self.free)
        self.free = array.collect_freed()
        array.unload()


def told(array: CountArray) -> list[list[int]]:
    """Everything that anybody may ask, section by section, and in one go."""
    parts = [array.get(SPOTS[at : at + 6]) for at in range(0, len(SPOTS), 6)]
    sole = array.are_sole(SPOTS)
    return [np.concatenate(parts).tolist(), sole.tolist(), [array.free_count, array.nr_allocated, array.held_count]]


@pytest.mark.parametrize("seed", range(6))
def test_room_for_one_section_tells_what_room_for_all_tells(seed: int) -> None:
    """The same changes, commits and undone attempts on both; what is asked meanwhile never differs."""
    chance = np.random.default_rng(seed)
    few, all_of_it = Disk(1), Disk(SECTIONS)
    most = 0
    for number in range(150):
        some = chance.choice(SPOTS, int(chance.integers(1, 9)))
        kind, mark = chance.choice(("add", "drop", "take", "commit"), p=(0.4, 0.3, 0.15, 0.15)), number % 7 == 0
        for disk in (few, all_of_it):
            array = disk.array
            before, found = (told(array), array.mark()) if mark and kind != "commit" else (None, None)
            if kind == "add":
                array.add(some[~np.isin(some, np.concatenate([disk.free, *array.freed]))])  # P6
            elif kind == "drop":
                array.drop(np.unique(some[array.get(some) > 0]))
            elif kind == "take":
                array._cursor = int(some[0])
                array.put_back(array.take(len(some))[::2])
            else:
                disk.commit()
            if found is not None:
                array.undo(found)
                assert told(array) == before
        assert told(few.array) == told(all_of_it.array), (number, kind)
        few.array.unload()
        most = max(most, int(np.count_nonzero(few.array.loaded)))
    for disk in (few, all_of_it):
        disk.commit()
        disk.commit()
    held = few.array.held_count
    print(f"{few.loads} loads with room for one, {all_of_it.loads} with room for all; at most {most} loaded")
    assert few.loads > 5 * all_of_it.loads
    assert held == all_of_it.array.held_count


def test_memory_is_bounded_where_nothing_changes() -> None:
    """Neither who looks up counts nor who asks what is sole leaves more sections loaded than there is room for."""
    disk = Disk(2)
    for array_asks in (disk.array.get, disk.array.are_sole):
        for section in range(SECTIONS):
            array_asks(np.array([section * ENTRIES_PER_BITMAP], dtype=np.uint64))
            assert np.count_nonzero(disk.array.loaded) <= 3
    disk.array.are_sole(np.arange(0, BLOCKS, ENTRIES_PER_BITMAP // 2, dtype=np.uint64))
    assert np.count_nonzero(disk.array.loaded) <= 3


def test_what_is_taken_stays() -> None:
    """A block that is handed out, and stands on no disk, isn't forgotten for want of room (L2)."""
    disk = Disk(1)
    taken = disk.array.take(3)
    disk.commit()
    told(disk.array)
    assert disk.array.are_reserved(taken) and disk.array.held_count == 3
    disk.array.put_back(taken)
    told(disk.array)
    assert not disk.array.are_reserved(taken) and disk.array.take(3).tolist() == [3, 4, 5]


def test_counts_beyond_sixteen_bits() -> None:
    """What LARGE snapshots share: through commits, unloading, undoing, and down again; also many times in one call."""
    disk = Disk(1)
    array, block, other = disk.array, np.array([5], dtype=np.uint64), np.array([6], dtype=np.uint64)
    array.add(np.repeat(block, LARGE - 1))
    array.add(np.concatenate((other, block)))
    assert array.get(np.array([5, 6, 5], dtype=np.uint64)).tolist() == [LARGE, 1, LARGE]
    mark = array.mark()
    array.add(np.repeat(block, 3 * PIECE_BLOCKS + 5))
    assert array.get(block).tolist() == [LARGE + 3 * PIECE_BLOCKS + 5]
    array.undo(mark)
    assert array.get(block).tolist() == [LARGE] and array.large == {5: LARGE}
    with pytest.raises(DamageError, match="more often"):
        array.drop(np.concatenate((block, other, other)))
    assert array.get(np.array([5, 6], dtype=np.uint64)).tolist() == [LARGE, 1]
    array.add(np.repeat(block, 70_000))
    disk.commit()
    told(array)
    assert not array.loaded[0] and not array.large
    assert array.get(block).tolist() == [LARGE + 70_000] and array.narrowed(np.array([0]))[0, :7].tolist()[5:] == [3, 1]
    assert array.drop(np.repeat(block, LARGE + 69_999)).size == 0
    assert array.get(block).tolist() == [1] and not array.large
    assert not array.are_sole(block)[0]
    assert array.drop(block).tolist() == [5]


def test_who_asks_beside_the_owner_is_told_right() -> None:
    """L3: a second thread asks all the time what is sole, while sections come and go under it."""
    disk = Disk(1)
    disk.array.add(SPOTS[SPOTS % np.uint64(2) == 0])
    disk.commit()
    expected = disk.array.are_sole(SPOTS).tolist()
    wrong: list[object] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            for at in range(0, len(SPOTS), 6):
                if disk.array.are_sole(SPOTS[at : at + 6]).tolist() != expected[at : at + 6]:
                    wrong.append(at)

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        for _ in range(40):
            told(disk.array)
            disk.array.put_back(disk.array.take(4))
    finally:
        ended.set()
        asker.join()
    assert not wrong and disk.loads > 40 * SECTIONS
