"""Reference counts in memory: what is free, taken, shared, and how often; loaded bitmap by bitmap when first asked for.

The running state of a space map between pdata/spacemap (its form on disk) and those who allocate and
share blocks; pdata/sections keeps it in bounded memory. Beside each count stand flags:

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
  C5  Between commits, SOLE and a count of one are the same but for blocks that are TAKEN, so that the flags of a clean
      section without such blocks follow from its counts (L2 of pdata/sections).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from replicator.errors import DamageError, NoSpaceError
from replicator.pdata.bitmap import ENTRIES_PER_BITMAP, OVERFLOW, Counts
from replicator.pdata.block import Words
from replicator.pdata.sections import FRESH, PIECE_BLOCKS, SOLE, TAKEN, Index, Sections

_ONE = np.uint32(1)
_EMPTY: Words = np.empty(0, dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class CountsMark:
    """Where a CountArray was when somebody began what may have to be undone."""

    arrays: dict[str, Any]
    numbers: dict[str, int]
    lengths: dict[str, int]
    dirty: npt.NDArray[np.bool_]
    large: dict[int, int]


_ARRAYS = ("values", "flags", "_map", "_flag_map", "loaded", "_used", "section_free")
_NUMBERS = ("nr_blocks", "nr_allocated", "held_count", "_cursor")
_LISTS = ("overflow", "freed", "_counted", "_dropped")


class CountArray(Sections):
    """Counts and flags of `nr_blocks` blocks; `load(sections)` brings 16,320 counts each from disk, as rows.

    `what` names the space in messages ("data", "metadata"); `recycle` turns FRESH on.
    Not thread-safe but for `are_sole`: the owner of the pool locks.
    """

    def __init__(
        self, what: str, nr_blocks: int, nr_allocated: int, load: Callable[[Words], Counts], *, recycle: bool
    ) -> None:
        super().__init__(what, load)
        self._mark = TAKEN | FRESH if recycle else TAKEN
        self.nr_allocated = nr_allocated
        self.held_count = 0
        self.overflow: list[Words] = []
        self.freed: list[Words] = []
        self._counted: list[Words] = []
        self._dropped: list[Words] = []
        self._journal: list[tuple[Index, Counts, npt.NDArray[np.uint8]]] | None = None
        self._cursor = 0
        self.grow(nr_blocks)

    @property
    def free_count(self) -> int:
        return self.nr_blocks - self.nr_allocated - self.held_count

    def grow(self, nr_blocks: int) -> None:
        """Go on with `nr_blocks` (never fewer); the new ones are free, their sections loaded by the caller's loader."""
        with self.loading:
            self._grow(nr_blocks)

    def get(self, blocks: Words) -> Counts:
        """The counts of `blocks`."""
        index = self._inside(blocks)
        with self.loading:
            self._ready(index)
            return self._read(index)

    def are_sole(self, blocks: Words) -> npt.NDArray[np.bool_]:
        """Whether one reference alone leads to each of `blocks`, in the committed state and the running one (C4).

        May be asked by anybody, at any time: it waits for no change of the counts, but for one that is just being
        written down where a section isn't loaded.
        """
        index = self._inside(blocks)
        sections = index // ENTRIES_PER_BITMAP
        unloads, loaded = self.unloads, self.loaded
        if loaded[sections].all():
            sole: npt.NDArray[np.bool_] = (self.flags[index] & SOLE) != 0
            if unloads == self.unloads:  # L3
                self._used[sections] = self._now
                return sole
        sole = np.empty(len(index), dtype=bool)
        wanted = np.unique(sections)
        for low in range(0, len(wanted), self.limit):
            part = np.isin(sections, wanted[low : low + self.limit])
            with self.loading:
                self._ready(index[part])
                sole[part] = (self.flags[index[part]] & SOLE) != 0
        return sole

    def add(self, blocks: Words) -> None:
        """One more reference to each of `blocks` (as many as it stands there); a first one ends its TAKEN."""
        for low in range(0, len(blocks), PIECE_BLOCKS):
            with self.loading:
                self._add(blocks[low : low + PIECE_BLOCKS])

    def _add(self, blocks: Words) -> None:
        index = self._inside(blocks)
        sections = self._ready(index)
        old = self._note(index)
        new = self._shift(index, old, 1)
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

        DamageError when one of them has fewer than that: with nothing dropped of the PIECE_BLOCKS around it. What was
        dropped before is undone by whoever set a mark; without one the pool goes on as broken.
        """
        dead = [_EMPTY]
        for low in range(0, len(blocks), PIECE_BLOCKS):
            with self.loading:
                dead.append(self._drop(blocks[low : low + PIECE_BLOCKS]))
        return dead[-1] if len(dead) <= 2 else np.concatenate(dead)

    def _drop(self, blocks: Words) -> Words:
        index = self._inside(blocks)
        sections = self._ready(index)
        old = self._note(index)
        new = self._shift(index, old, -1)
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
            with self.loading:
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
        if not self.loaded[section] and not self.section_free[section]:
            return _EMPTY
        self._ready(np.array([section * ENTRIES_PER_BITMAP]))
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
        index = self._inside(blocks)
        with self.loading:
            self._ready(index)
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
            dict(self.large),
        )

    def forget_mark(self) -> None:
        """What was done since the mark stands."""
        self._journal = None

    def undo(self, mark: CountsMark) -> None:
        """Everything is as it was at the mark, growth too."""
        journal = self._journal or []
        with self.loading:
            for name, value in (*mark.arrays.items(), *mark.numbers.items()):
                setattr(self, name, value)
            self.dirty[: len(mark.dirty)] = mark.dirty
            self.dirty = self.dirty[: len(mark.dirty)]
            self.unloads += 1
            self.large = {**mark.large, **self.large}  # a section that was loaded then may be forgotten by now
            if journal:
                self._ready(np.concatenate([index for index, _, _ in journal]))
            for index, counts, flags in reversed(journal):
                self._write(index, counts)
                self.flags[index] = flags
        for name, length in mark.lengths.items():
            del getattr(self, name)[length:]
        self._journal = None

    def _note(self, index: Index) -> Counts:
        """The counts of these blocks, which are about to change."""
        counts = self._read(index)
        if self._journal is not None:
            self._journal.append((index, counts, self.flags[index]))
        return counts

    def collect_freed(self) -> Words:
        """Blocks freed since the last call; TAKEN until `settle` is called with them, once that is durable (P6)."""
        freed = np.concatenate(self.freed) if self.freed else _EMPTY
        self.freed = []
        return freed

    def end_transaction(self) -> None:
        """The commit is durable: what it counted is no longer FRESH, and what has one reference is SOLE (C4)."""
        with self.loading:
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
