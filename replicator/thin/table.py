"""The page table of one device: virtual block → data block and whether it may be overwritten in place, in packed form.

Asked for every request by thin/device and the exporter's loop; filled a stretch at a time from the mapping tree (P5).

    stretch    4,096 entries of 64 bits (memoryview of u64), or None where it isn't loaded
    entry      bits 63..24  data block
               bits 23..0   stamp: 0 = nothing mapped (the whole entry is 0), 1 = shared, else the epoch at which the
                            device came to own the block

A block may be overwritten in place iff its stamp is the device's epoch; a cut raises the epoch, which makes every
entry shared at once without touching any. Stamps have 24 bits: at the end of them the table is emptied and the epochs
begin again.

A table is a list of its stretches, which is what the loops that serve requests are fast with; one that is longer than
any of our own volumes may be (LISTED) holds those that are loaded, by their number.

Invariants
  G1  At most `limit` stretches are loaded; the one loaded first goes first.
  G2  An entry says what the mapping tree says under all acknowledged changes that aren't in it yet.
"""

from __future__ import annotations

from collections import deque
from typing import cast

import numpy as np

from replicator.pdata.block import Words

STRETCH_SHIFT = 12
STRETCH_BLOCKS = 1 << STRETCH_SHIFT
STRETCH_MASK = STRETCH_BLOCKS - 1
STAMP_BITS = 24
STAMP_MASK = (1 << STAMP_BITS) - 1
SHARED = 1
FIRST_EPOCH = 2
DEFAULT_LIMIT = 4096  # stretches: 128 MiB of entries, 1 TiB of volume in 64 KiB blocks
LISTED = 1 << 22  # stretches: a list of 32 MiB, 1 PiB of volume in 64 KiB blocks
_LEAST_SECTIONS = 16


def sections_beside(stretches: int) -> int:
    """How many bitmaps' counts to keep where page tables keep so many stretches: of as many blocks, and a quarter more
    that only snapshots have. A section is of four stretches' blocks, and takes 48 KiB."""
    return max(_LEAST_SECTIONS, stretches * 5 // 16)


class _Loaded(dict[int, memoryview | None]):
    """What is loaded of a table that is too long for a list; it is indexed like one."""

    def __missing__(self, index: int) -> None:
        return None

    def __setitem__(self, index: int, stretch: memoryview | None) -> None:
        if stretch is None:
            self.pop(index, None)
        else:
            super().__setitem__(index, stretch)


class MappingTable:
    """The loaded stretches of one device; its owner locks what changes it."""

    def __init__(self, length_blocks: int, limit: int = DEFAULT_LIMIT) -> None:
        is_listed = length_blocks <= LISTED << STRETCH_SHIFT
        self.stretches: list[memoryview | None] = [] if is_listed else cast("list[memoryview | None]", _Loaded())
        self._order: deque[int] = deque()
        self._limit = max(1, limit)
        self._length_blocks = 0
        self.resize(length_blocks)

    def resize(self, length_blocks: int) -> None:
        """Go on with `length_blocks`."""
        count = -(-length_blocks // STRETCH_BLOCKS)
        if length_blocks < self._length_blocks:
            self.clear()  # what lies beyond is unmapped, and must not show again when the device grows (G2)
            if isinstance(self.stretches, list):
                del self.stretches[count:]
        self._length_blocks = length_blocks
        if isinstance(self.stretches, list):
            self.stretches.extend([None] * (count - len(self.stretches)))

    def install(self, index: int, entries: Words) -> memoryview:
        """Put a loaded stretch in its place; the oldest one goes when there are too many (G1)."""
        view = entries.data
        if self.stretches[index] is None:
            if len(self._order) >= self._limit:
                self.stretches[self._order.popleft()] = None
            self._order.append(index)
        self.stretches[index] = view
        return view

    def clear(self) -> None:
        """Forget everything; it is loaded again when asked for."""
        for index in self._order:
            self.stretches[index] = None
        self._order.clear()

    def set_entry(self, virtual_block: int, entry: int) -> None:
        """Change one entry, if its stretch is loaded."""
        stretch = self.stretches[virtual_block >> STRETCH_SHIFT]
        if stretch is not None:
            stretch[virtual_block & STRETCH_MASK] = entry

    def clear_run(self, begin: int, end: int) -> None:
        """Nothing is mapped in [begin, end) any more."""
        while begin < end:
            index, low = begin >> STRETCH_SHIFT, begin & STRETCH_MASK
            high = min(STRETCH_BLOCKS, low + end - begin)
            stretch = self.stretches[index]
            if stretch is not None:
                np.asarray(stretch)[low:high] = 0
            begin += high - low
