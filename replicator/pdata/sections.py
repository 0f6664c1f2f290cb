"""Counts and flags of blocks in bounded memory: a section is what one bitmap covers, and comes and goes whole.

The store beneath pdata/counts, which says what the flags mean. Two arrays lie in anonymous memory that the kernel fills
page by page, so that sections nobody asked for cost nothing; clean sections go when more than `limit` are loaded, those
first that were asked for longest ago (P5).

    values   u16   the count, or LARGE: then it stands in `large`
    flags    u8    TAKEN, FRESH, SOLE

A count of LARGE or more takes as many metadata leaves that refer to the block, of 252 entries each: the largest
metadata device has no room for more than 32,000 of them, which bounds `large`.

Invariants
  L1  Sections are loaded, unloaded and moved under `loading`, and a section is clean when it is loaded: what is read
      for it is the committed state, which stays on disk for as long as somebody holds `loading` (pdata/transaction).
  L2  A section that is dirty, or holds a block that is TAKEN, isn't unloaded; what is told of any other follows from
      its counts on disk: SOLE where the count is one.
  L3  `unloads` changes before anything of a loaded section does that isn't a change of its counts: who reads without
      `loading` looks at it before and after.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from replicator.errors import DamageError
from replicator.pdata.bitmap import ENTRIES_PER_BITMAP, OVERFLOW, Counts
from replicator.pdata.block import Words

TAKEN = np.uint8(1)
FRESH = np.uint8(2)
SOLE = np.uint8(4)
LARGE = 1 << 15
PIECE_BLOCKS = LARGE  # changed at once, so that no u16 below LARGE runs over
DEFAULT_LIMIT = 1280  # sections: 60 MiB at most; a terabyte in 64 KiB blocks, and a quarter more
_AHEAD_SECTIONS = 8  # loaded together, where all have room: their bitmaps mostly lie together
_ONE = np.uint16(1)
_SLACK = 8  # an eighth of `limit` is let grow before what is old is looked for

Index = npt.NDArray[np.int64]


def _anonymous(length_bytes: int) -> mmap.mmap:
    return mmap.mmap(-1, max(length_bytes, mmap.PAGESIZE), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _give_back(memory: mmap.mmap, start: int, end: int, *, whole_first: bool, whole_last: bool) -> None:
    """Forget [start, end) bytes; a page that the neighbour has too goes only where that is unloaded."""
    page = mmap.PAGESIZE
    low = start // page * page if whole_first else -(-start // page) * page
    high = min(-(-end // page) * page, len(memory)) if whole_last else end // page * page
    if high > low:
        memory.madvise(mmap.MADV_DONTNEED, low, high - low)


class Sections:
    """The sections of one space; `load(sections)` brings 16,320 counts each from disk, as rows.

    Not thread-safe but for what its docstrings say: the owner of the pool locks.
    """

    def __init__(self, what: str, load: Callable[[Words], Counts]) -> None:
        self.what = what
        self.limit = DEFAULT_LIMIT
        self._load = load
        self.nr_blocks = 0
        self.loading = threading.RLock()
        self.unloads = 0
        self.section_free: Index = np.zeros(0, dtype=np.int64)
        self.loaded: npt.NDArray[np.bool_] = np.zeros(0, dtype=bool)
        self.dirty: npt.NDArray[np.bool_] = np.zeros(0, dtype=bool)
        self.large: dict[int, int] = {}
        self._used: Index = np.zeros(0, dtype=np.int64)
        self._now = 0
        self._stuck = 0  # sections beyond `limit` that couldn't be unloaded: not looked at again each time
        self._map, self._flag_map = _anonymous(0), _anonymous(0)
        self.values: npt.NDArray[np.uint16] = np.empty(0, dtype=np.uint16)
        self.flags: npt.NDArray[np.uint8] = np.empty(0, dtype=np.uint8)

    @property
    def sections(self) -> int:
        return len(self.loaded)

    def _grow(self, nr_blocks: int) -> None:
        sections = -(-nr_blocks // ENTRIES_PER_BITMAP)
        length = sections * ENTRIES_PER_BITMAP
        values, flags = _anonymous(length * 2), _anonymous(length)
        new_values = np.frombuffer(values, dtype=np.uint16, count=length)
        new_flags = np.frombuffer(flags, dtype=np.uint8, count=length)
        for section in np.flatnonzero(self.loaded).tolist():
            part = slice(section * ENTRIES_PER_BITMAP, (section + 1) * ENTRIES_PER_BITMAP)
            new_values[part], new_flags[part] = self.values[part], self.flags[part]
        if self.nr_blocks % ENTRIES_PER_BITMAP and nr_blocks > self.nr_blocks:
            self.section_free[-1] = max(self.section_free[-1], 1)  # whoever wrote it may not have counted the tail
        extra = sections - len(self.loaded)
        self.unloads += 1
        self.loaded = np.concatenate((self.loaded, np.zeros(extra, dtype=bool)))
        self.dirty = np.concatenate((self.dirty, np.zeros(extra, dtype=bool)))
        self._used = np.concatenate((self._used, np.zeros(extra, dtype=np.int64)))
        added = np.full(extra, ENTRIES_PER_BITMAP, dtype=np.int64)
        self.section_free = np.concatenate((self.section_free, added))
        self.values, self.flags, self._map, self._flag_map = new_values, new_flags, values, flags
        self.nr_blocks = nr_blocks

    # -- loading and unloading -------------------------------------------------------------------------------

    def _inside(self, blocks: Words) -> Index:
        if blocks.size and int(blocks.max()) >= self.nr_blocks:
            raise DamageError(f"{self.what} block {int(blocks.max())} lies beyond the {self.nr_blocks} that there are")
        return blocks.astype(np.int64)

    def _ready(self, index: Index) -> Index:
        """The sections of the blocks `index`, all loaded, and not unloaded before the next call; under `loading`."""
        sections: Index = index // ENTRIES_PER_BITMAP
        self._now += 1
        self._used[sections] = self._now
        if not self.loaded[sections].all():
            self._bring(sections[~self.loaded[sections]])
        return sections

    def _bring(self, wanted: Index) -> None:
        """Load the sections that aren't there, and what lies around them where there is room for all (L1)."""
        ahead = _AHEAD_SECTIONS if self.sections <= self.limit else 1
        group = (np.unique(wanted // ahead)[:, None] * ahead + np.arange(ahead)).reshape(-1)
        group = group[group < self.sections]
        group = group[~self.loaded[group]]
        for low in range(0, len(group), _AHEAD_SECTIONS):
            self._install(group[low : low + _AHEAD_SECTIONS])
        self._used[group] = self._now
        if np.count_nonzero(self.loaded) > self.limit + self.limit // _SLACK + self._stuck:
            self._unload(self.limit, older_than=self._now)

    def _install(self, group: Index) -> None:
        counts = self._load(group.astype(np.uint64))
        for section, row in zip(group.tolist(), counts, strict=True):
            part = slice(section * ENTRIES_PER_BITMAP, (section + 1) * ENTRIES_PER_BITMAP)
            self.values[part] = np.minimum(row, np.uint32(LARGE))
            self.flags[part] = (row == np.uint32(1)).view(np.uint8) * SOLE
            if int(row.max()) >= LARGE:
                self._remember(np.arange(part.start, part.stop), row)
        self.loaded[group] = True

    def _unload(self, keep_sections: int, older_than: int) -> None:
        over = int(np.count_nonzero(self.loaded)) - keep_sections
        clean = np.flatnonzero(self.loaded & ~self.dirty & (self._used < older_than))
        for section in clean[np.argsort(self._used[clean], kind="stable")].tolist():
            if over <= 0:
                break
            over -= self._unload_one(section)
        self._stuck = max(0, over + keep_sections - self.limit)

    def _unload_one(self, section: int) -> bool:
        """Forget a clean section, unless a block of it is TAKEN (L2)."""
        start, end = section * ENTRIES_PER_BITMAP, (section + 1) * ENTRIES_PER_BITMAP
        if (self.flags[start:end] & TAKEN).any():
            return False
        self.unloads += 1
        self.loaded[section] = False
        first = not section or not self.loaded[section - 1]
        last = section + 1 == self.sections or not self.loaded[section + 1]
        _give_back(self._map, start * 2, end * 2, whole_first=first, whole_last=last)
        _give_back(self._flag_map, start, end, whole_first=first, whole_last=last)
        for block in [each for each in self.large if start <= each < end]:
            del self.large[block]
        return True

    def unload(self, keep_sections: int | None = None) -> None:
        """Give memory back: clean sections beyond `keep_sections` (the limit) are forgotten, to be loaded again."""
        with self.loading:
            self._unload(self.limit if keep_sections is None else keep_sections, older_than=self._now + 1)

    # -- counts, under `loading` and loaded ------------------------------------------------------------------

    def _read(self, index: Index) -> Counts:
        found = self.values[index].astype(np.uint32)
        for at in np.flatnonzero(found == LARGE).tolist():
            found[at] = self.large[int(index[at])]
        return found

    def _write(self, index: Index, counts: Counts) -> None:
        """Set the counts of blocks."""
        if self.large:
            for block in index[self.values[index] == LARGE].tolist():
                self.large.pop(block, None)  # may stand there twice
        self.values[index] = np.minimum(counts, np.uint32(LARGE))
        self._remember(index, counts)

    def _remember(self, index: Index, counts: Counts) -> None:
        large = counts >= LARGE
        self.large.update(zip(index[large].tolist(), counts[large].tolist(), strict=True))

    def _shift(self, index: Index, old: Counts, by: int) -> Counts:
        """Raise (1) or lower (-1) the counts of at most PIECE_BLOCKS blocks, as often as each stands there.

        Returns what they are then; DamageError with nothing changed when one would fall below none.
        """
        if int(old.max()) < LARGE:
            at = np.add.at if by > 0 else np.subtract.at
            at(self.values, index, _ONE)
            new = self.values[index].astype(np.uint32)
            if by < 0 and (new >= old).any():
                np.add.at(self.values, index, _ONE)
                raise self._referred_too_often(int(index[new >= old][0]))
            if by < 0 or int(new.max()) < LARGE:
                return new
            self.values[index] = old  # some became LARGE: those are kept elsewhere
        blocks, back, times = np.unique(index, return_inverse=True, return_counts=True)
        total = self._read(blocks).astype(np.int64) + by * times
        if (total < 0).any():
            raise self._referred_too_often(int(blocks[total < 0][0]))
        self._write(blocks, total.astype(np.uint32))
        shifted: Counts = total.astype(np.uint32)[back]
        return shifted

    def _referred_too_often(self, block: int) -> DamageError:
        return DamageError(
            f"{self.what} block {block} is referred to more often than its count says",
            mend="replicator pool check names all that is wrong",
        )

    def narrowed(self, sections: Index) -> npt.NDArray[np.uint8]:
        """The counts of these loaded sections as a bitmap knows them, as rows: 0, 1, 2, and 3 for three or more."""
        rows = self.values.reshape(-1, ENTRIES_PER_BITMAP)[sections]
        return np.minimum(rows, np.uint16(OVERFLOW)).astype(np.uint8)
