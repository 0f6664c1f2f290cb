"""Reference counts in memory: one u32 a block, loaded bitmap by bitmap when first asked for.

The running state of a space map between pdata/spacemap (its form on disk) and those who allocate and
share blocks. The array lies in anonymous memory that the kernel fills page by page, so that counts
nobody asked for cost nothing; clean sections are given back when more than `cache_sections` are loaded (P5).

Beside each count stand flags, which are never given back:

    TAKEN   handed out and not counted yet, or freed and not yet durable: not to be allocated (P6)
    FRESH   allocated since the last commit: no committed structure refers to it (metadata only, where nobody
            but the transaction itself reads such a block, so that it may be used again at once)
    SOLE    the committed state has exactly one reference to it, and the running one has no more

All of it belongs to the owner of the pool's lock but `are_sole`, which anybody may ask at any time. What that looks at
stands still during a commit but for SOLE going where a second reference comes; it is set by `end_transaction` alone,
when the commit is durable, and goes for good with `settle`.

Invariants
  C1  free = blocks with count 0 and not TAKEN; `free_count` is always that number.
  C2  A count that falls to 0 leaves TAKEN behind until `settle`, unless the block is FRESH.
  C3  `overflow` holds every block whose entry in the overflow tree may have changed since the last commit.
  C4  A block that is shared in the committed state or in the running one isn't SOLE (P6): a power cut brings back
      those who let go of it. A block that the committed state alone refers to, once, is SOLE still.
  C5  Sections are loaded, unloaded and moved under `loading`, and a section is clean when it is loaded: what is read
      for it is the committed state, which stays on disk for as long as somebody holds `loading` (pdata/transaction).
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from replicator.errors import DamageError, NoSpaceError
from replicator.pdata.bitmap import ENTRIES_PER_BITMAP, OVERFLOW, Counts
from replicator.pdata.block import Words

TAKEN = np.uint8(1)
FRESH = np.uint8(2)
SOLE = np.uint8(4)
_AHEAD_SECTIONS = 8  # loaded together, since their bitmaps mostly lie together: 128 Ki blocks
_SECTION = np.uint64(ENTRIES_PER_BITMAP)
_ONE = np.uint32(1)
_EMPTY: Words = np.empty(0, dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class CountsMark:
    """Where a CountArray was when somebody began what may have to be undone."""

    arrays: dict[str, Any]
    numbers: dict[str, int]
    lengths: dict[str, int]
    dirty: npt.NDArray[np.bool_]


_ARRAYS = ("values", "flags", "_map", "_flag_map", "loaded", "_known", "section_free")
_NUMBERS = ("nr_blocks", "nr_allocated", "held_count", "_cursor")
_LISTS = ("overflow", "freed", "_counted", "_dropped")


def _anonymous(length_bytes: int) -> mmap.mmap:
    return mmap.mmap(-1, max(length_bytes, mmap.PAGESIZE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class CountArray:
    """Counts and flags of `nr_blocks` blocks; `load(sections)` brings 16,320 counts each from disk, as rows.

    `what` names the space in messages ("data", "metadata"); `recycle` turns FRESH on.
    Not thread-safe but for `are_sole`: the owner of the pool locks.
    """

    def __init__(
        self, what: str, nr_blocks: int, nr_allocated: int, load: Callable[[Words], Counts], *, recycle: bool
    ) -> None:
        self.what = what
        self._load = load
        self._mark = TAKEN | FRESH if recycle else TAKEN
        self.nr_blocks = 0
        self.nr_allocated = nr_allocated
        self.held_count = 0
        self.overflow: list[Words] = []
        self.freed: list[Words] = []
        self._counted: list[Words] = []
        self._dropped: list[Words] = []
        self._journal: list[tuple[npt.NDArray[np.int64], Counts, npt.NDArray[np.uint8]]] | None = None
        self.loading = threading.Lock()
        self.section_free = np.zeros(0, dtype=np.int64)
        self.loaded = np.zeros(0, dtype=bool)
        self._known = np.zeros(0, dtype=bool)
        self.dirty = np.zeros(0, dtype=bool)
        self._map, self._flag_map = _anonymous(0), _anonymous(0)
        self.values: Counts = np.empty(0, dtype=np.uint32)
        self.flags: npt.NDArray[np.uint8] = np.empty(0, dtype=np.uint8)
        self._cursor = 0
        self.grow(nr_blocks)

    @property
    def free_count(self) -> int:
        return self.nr_blocks - self.nr_allocated - self.held_count

    @property
    def sections(self) -> int:
        return len(self.loaded)

    def grow(self, nr_blocks: int) -> None:
        """Go on with `nr_blocks` (never fewer); the new ones are free, their sections loaded by the caller's loader."""
        with self.loading:
            self._grow(nr_blocks)

    def _grow(self, nr_blocks: int) -> None:
        sections = -(-nr_blocks // ENTRIES_PER_BITMAP)
        length = sections * ENTRIES_PER_BITMAP
        values, flags = _anonymous(length * 4), _anonymous(length)
        new_values = np.frombuffer(values, dtype=np.uint32, count=length)
        new_flags = np.frombuffer(flags, dtype=np.uint8, count=length)
        for section in np.flatnonzero(self.loaded).tolist():
            part = slice(section * ENTRIES_PER_BITMAP, (section + 1) * ENTRIES_PER_BITMAP)
            new_values[part] = self.values[part]
        new_flags[: len(self.flags)] = self.flags
        if self.nr_blocks % ENTRIES_PER_BITMAP and nr_blocks > self.nr_blocks:
            self.section_free[-1] = max(self.section_free[-1], 1)  # whoever wrote it may not have counted the tail
        extra = sections - len(self.loaded)
        self.loaded = np.concatenate((self.loaded, np.zeros(extra, dtype=bool)))
        self._known = np.concatenate((self._known, np.zeros(extra, dtype=bool)))
        self.dirty = np.concatenate((self.dirty, np.zeros(extra, dtype=bool)))
        added = np.full(extra, ENTRIES_PER_BITMAP, dtype=np.int64)
        self.section_free = np.concatenate((self.section_free, added))
        self.values, self.flags, self._map, self._flag_map = new_values, new_flags, values, flags
        self.nr_blocks = nr_blocks

    def _bring(self, wanted: npt.NDArray[np.int64]) -> None:
        """Load the sections that aren't there, and what lies around them; under `loading` (C5)."""
        wanted = np.unique(wanted // _AHEAD_SECTIONS)
        group = (wanted[:, None] * _AHEAD_SECTIONS + np.arange(_AHEAD_SECTIONS)).reshape(-1)
        group = group[group < self.sections]
        group = group[~self.loaded[group]]
        if not group.size:
            return
        counts = self._load(group.astype(np.uint64))
        self.values.reshape(-1, ENTRIES_PER_BITMAP)[group] = counts
        new = ~self._known[group]
        flags = self.flags.reshape(-1, ENTRIES_PER_BITMAP)
        flags[group[new]] = np.where(counts[new] == _ONE, SOLE, np.uint8(0))
        self.loaded[group] = True
        self._known[group] = True

    def _inside(self, blocks: Words) -> npt.NDArray[np.int64]:
        if blocks.size and int(blocks.max()) >= self.nr_blocks:
            raise DamageError(f"{self.what} block {int(blocks.max())} lies beyond the {self.nr_blocks} that there are")
        return blocks.astype(np.int64)

    def _ready(self, blocks: Words) -> npt.NDArray[np.int64]:
        self._inside(blocks)
        sections = (blocks // _SECTION).astype(np.int64)
        if not self.loaded[sections].all():
            with self.loading:
                self._bring(sections[~self.loaded[sections]])
        return sections

    def get(self, blocks: Words) -> Counts:
        """The counts of `blocks`."""
        self._ready(blocks)
        found: Counts = self.values[blocks.astype(np.int64)]
        return found

    def are_sole(self, blocks: Words) -> npt.NDArray[np.bool_]:
        """Whether one reference alone leads to each of `blocks`, in the committed state and the running one (C4).

        May be asked by anybody, at any time: it waits for no change of the counts.
        """
        index = self._inside(blocks)
        sections = index // ENTRIES_PER_BITMAP
        if not self._known[sections].all():
            with self.loading:
                self._bring(sections[~self._known[sections]])
        sole: npt.NDArray[np.bool_] = (self.flags[index] & SOLE) != 0
        return sole

    def add(self, blocks: Words) -> None:
        """One more reference to each of `blocks` (as many as it stands there); a first one ends its TAKEN."""
        if not blocks.size:
            return
        sections = self._ready(blocks)
        index = blocks.astype(np.int64)
        self._note(index)
        old = self.values[index]
        np.add.at(self.values, index, _ONE)
        new = self.values[index]
        self.dirty[sections] = True
        self.flags[index[new > _ONE]] &= ~SOLE
        first = blocks[old == 0]
        if first.size:
            first = np.unique(first)
            places = first.astype(np.int64)
            self.nr_allocated += first.size
            self.held_count -= int(np.count_nonzero(self.flags[places] & TAKEN))
            self.flags[places] &= ~TAKEN
            self._counted.append(first)
        over = blocks[new >= OVERFLOW]
        if over.size:
            self.overflow.append(over)

    def drop(self, blocks: Words) -> Words:
        """One reference less to each of `blocks` (as many as it stands there); returns those that have none any more.

        DamageError with nothing dropped when one of them has fewer than that.
        """
        if not blocks.size:
            return _EMPTY
        sections = self._ready(blocks)
        index = blocks.astype(np.int64)
        self._note(index)
        old = self.values[index]
        np.subtract.at(self.values, index, _ONE)
        new = self.values[index]
        if (new >= old).any():
            np.add.at(self.values, index, _ONE)
            raise DamageError(
                f"{self.what} block {int(blocks[new >= old][0])} is referred to more often than its count says",
                mend="replicator pool check names all that is wrong",
            )
        self.dirty[sections] = True
        over = blocks[old >= OVERFLOW]
        if over.size:
            self.overflow.append(over)
        self._dropped.append(blocks[new > 0])
        dead: Words = blocks[new == 0]
        if dead.size:
            dead = np.unique(dead) if (old - new > 1).any() else dead
            self._bury(dead)
        return dead

    def _bury(self, dead: Words) -> None:
        index = dead.astype(np.int64)
        self.nr_allocated -= dead.size
        fresh = (self.flags[index] & FRESH) != 0
        self.flags[index[fresh]] = 0
        later = index[~fresh]
        self.flags[later] |= TAKEN
        self.held_count += later.size
        self.freed.append(dead[~fresh])

    def take(self, count: int) -> Words:
        """Hand out `count` free blocks, ascending from where the last ones were taken, marked TAKEN and FRESH.

        NoSpaceError with nothing taken when there are fewer.
        """
        if count > self.free_count:
            raise NoSpaceError(
                f"{self.what} space is out: {self.free_count} of {self.nr_blocks} blocks are free, {count} are needed",
                mend=f"grow it: replicator pool grow POOL --{self.what} +SIZE",
            )
        if not count:
            return _EMPTY
        found: list[Words] = []
        missing = count
        for section, low in self._places():
            free = self._free_in(section, low)[:missing]
            if free.size:
                self._note(free.astype(np.int64))
                self.flags[free.astype(np.int64)] = self._mark
                found.append(free)
                missing -= free.size
                self._cursor = int(free[-1]) + 1
            if not missing:
                break
        taken: Words = np.concatenate(found) if found else _EMPTY
        self.held_count += taken.size
        if missing:
            self.put_back(taken)
            raise DamageError(
                f"{self.what} space map: {count} blocks should be free, {count - missing} were found",
                mend="replicator pool check names all that is wrong",
            )
        return taken

    def _places(self) -> Iterator[tuple[int, int]]:
        """Where to look for free blocks, as (section, first block): from the cursor on, then from the start."""
        first = min(self._cursor // ENTRIES_PER_BITMAP, self.sections - 1)
        yield first, self._cursor
        for section in chain(range(first + 1, self.sections), range(first + 1)):
            yield section, section * ENTRIES_PER_BITMAP

    def _free_in(self, section: int, low: int) -> Words:
        if not self.loaded[section]:
            if not self.section_free[section]:
                return _EMPTY
            with self.loading:
                self._bring(np.array([section]))
        end = min((section + 1) * ENTRIES_PER_BITMAP, self.nr_blocks)
        part = slice(min(low, end), end)
        free = np.flatnonzero((self.values[part] == 0) & ((self.flags[part] & TAKEN) == 0))
        found: Words = (free + low).astype(np.uint64)
        return found

    def are_reserved(self, blocks: Words) -> bool:
        """Whether these are distinct blocks that were taken, and that nothing refers to yet."""
        if not blocks.size:
            return True
        if int(blocks.max()) >= self.nr_blocks or len(np.unique(blocks)) != len(blocks) or self.get(blocks).any():
            return False
        return bool((self.flags[blocks.astype(np.int64)] & TAKEN).all())

    def put_back(self, blocks: Words) -> None:
        """Blocks that were taken and never counted are free again."""
        index = blocks.astype(np.int64)
        self._note(index)
        self.held_count -= int(np.count_nonzero(self.flags[index] & TAKEN))
        self.flags[index] = 0

    # -- what may have to be undone --------------------------------------------------------------------------

    def mark(self) -> CountsMark:
        """From now on every change is noted, until `forget_mark`, or `undo`."""
        self._journal = []
        return CountsMark(
            {name: getattr(self, name) for name in _ARRAYS},
            {name: getattr(self, name) for name in _NUMBERS},
            {name: len(getattr(self, name)) for name in _LISTS},
            self.dirty.copy(),
        )

    def forget_mark(self) -> None:
        """What was done since the mark stands."""
        self._journal = None

    def undo(self, mark: CountsMark) -> None:
        """Everything is as it was at the mark, growth too."""
        with self.loading:
            for name, value in (*mark.arrays.items(), *mark.numbers.items()):
                setattr(self, name, value)
        for name, length in mark.lengths.items():
            del getattr(self, name)[length:]
        for index, values, flags in reversed(self._journal or []):
            self.values[index], self.flags[index] = values, flags
        self.dirty[: len(mark.dirty)] = mark.dirty
        self.dirty = self.dirty[: len(mark.dirty)]
        self._journal = None

    def _note(self, index: npt.NDArray[np.int64]) -> None:
        if self._journal is not None:
            self._journal.append((index, self.values[index], self.flags[index]))

    def collect_freed(self) -> Words:
        """Blocks freed since the last call; TAKEN until `settle` is called with them, once that is durable (P6)."""
        freed = np.concatenate(self.freed) if self.freed else _EMPTY
        self.freed = []
        return freed

    def end_transaction(self) -> None:
        """The commit is durable: what it counted is no longer FRESH, and what has one reference is SOLE (C4)."""
        for blocks in self._counted:
            self.flags[blocks.astype(np.int64)] &= ~FRESH
        for blocks in chain(self._counted, self._dropped):
            index = blocks.astype(np.int64)
            self.flags[index[self.values[index] == _ONE]] |= SOLE
        self._counted, self._dropped = [], []
        self.dirty[:] = False

    def settle(self, freed: Words) -> None:
        """`freed` may be allocated again: the commit that freed them is durable, and nobody reads them any more."""
        self.put_back(freed)

    def collect_overflow(self) -> Words:
        """The distinct blocks whose overflow entry may have changed since the last call, ascending."""
        touched = np.unique(np.concatenate(self.overflow)) if self.overflow else _EMPTY
        self.overflow = []
        return touched

    def unload(self, keep_sections: int) -> None:
        """Give memory back: clean sections beyond `keep_sections` are forgotten, to be loaded again when asked for."""
        with self.loading:
            clean = np.flatnonzero(self.loaded & ~self.dirty)
            for section in clean[: max(0, int(np.count_nonzero(self.loaded)) - keep_sections)].tolist():
                start, end = section * ENTRIES_PER_BITMAP * 4, (section + 1) * ENTRIES_PER_BITMAP * 4
                low, high = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
                if high > low:
                    self._map.madvise(mmap.MADV_DONTNEED, low, high - low)
                self.loaded[section] = False
