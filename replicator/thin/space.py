"""Data blocks for those who write: a stock taken ahead, so that a first touch never waits for tree work.

Between the data space map (pdata/counts, under the metadata lock) and thin/device. Blocks in the stock are TAKEN in
memory and free on disk: after a crash nobody has them.

Invariants
  K1  A block handed out is in no committed map, in nobody's page table, and room for it is allocated on the data
      device before it is written (P8).
  K2  Room is allocated for blocks that nobody has yet, so never beside a write to the same place (a file system
      without fallocate gets it by reading and writing bytes).
  K3  `low_water` is told once per crossing, and again only after room has been above it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from replicator.errors import NoSpaceError
from replicator.pdata.block import Words
from replicator.pdata.counts import CountArray

STOCK_BLOCKS = 8192  # at 10,000 first touches a second most of a second's worth, longer than any tree work lasts
_AHEAD_BYTES = 16 << 20  # so much room on the data device is allocated at once, ahead of its use


class Preallocating(Protocol):
    """A data device that can promise room ahead."""

    def preallocate(self, offset_bytes: int, length_bytes: int) -> None:
        """Allocate the range; NoSpaceError if there is no room."""


class DataSpace:
    """The stock of free data blocks of one pool; `lock` is the metadata lock that guards `counts`."""

    def __init__(
        self, counts: CountArray, lock: threading.RLock, device: object, block_bytes: int, low_water_blocks: int
    ) -> None:
        self._counts, self._lock = counts, lock
        self._device = device if hasattr(device, "preallocate") else None
        self._block_bytes = block_bytes
        self._ahead_blocks = max(1, _AHEAD_BYTES // block_bytes)
        self._ready: deque[int] = deque()
        self._stock: deque[int] = deque()
        self._readying = threading.Lock()
        self.low_water_blocks = low_water_blocks
        self._told = False
        self.on_low_water: Callable[[int], None] | None = None

    @property
    def free_count(self) -> int:
        """Free blocks, the stock's included."""
        return self._counts.free_count + self.stock_count

    @property
    def block_count(self) -> int:
        """Data blocks in all."""
        return self._counts.nr_blocks

    @property
    def stock_count(self) -> int:
        """Blocks that are to be had without waiting for tree work."""
        return len(self._ready) + len(self._stock)

    def take_one(self) -> int:
        """One free block with room behind it; NoSpaceError when there is none. Waits only when the stock is empty."""
        while True:
            try:
                return self._ready.popleft()
            except IndexError:
                self.ensure_one()

    def ensure_one(self) -> None:
        """A block is ready to be taken (by whoever comes first); NoSpaceError when the pool, or its disk, is full."""
        with self._readying:
            if self._ready:
                return
            if not self._stock:
                self.refill()
            blocks = [self._stock.popleft() for _ in range(min(self._ahead_blocks, len(self._stock)))]
            if not blocks:
                raise NoSpaceError(
                    f"data space is out: none of {self._counts.nr_blocks} blocks is free",
                    mend="grow it: replicator pool grow POOL --data +SIZE; or delete snapshots, or trim volumes",
                )
            made = 0
            try:
                made = self._make_room_for_some(blocks)
            finally:
                self._stock.extendleft(reversed(blocks[made:]))
            self._ready.extend(blocks[:made])

    def take(self, count: int) -> Words:
        """`count` blocks at once, for a receiver that writes them itself; NoSpaceError with nothing taken."""
        with self._lock:
            if count > self._counts.free_count:
                self._put_stock_back()
            blocks = self._counts.take(count)
            self._watch()
        try:
            self._make_room(blocks)
        except BaseException:
            self.give_back(blocks)
            raise
        return blocks

    def refill(self) -> None:
        """Fill the stock, as far as there are free blocks."""
        with self._lock:
            count = min(STOCK_BLOCKS - self.stock_count, self._counts.free_count)
            if count > 0:
                self._stock.extend(self._counts.take(count).tolist())
            self._watch()

    def give_back(self, blocks: Words) -> None:
        """Blocks that were handed out and never mapped."""
        with self._lock:
            self._counts.put_back(blocks)

    def _put_stock_back(self) -> None:
        left = [block for stock in (self._stock, self._ready) for block in _emptied(stock)]
        self._counts.put_back(np.array(left, dtype=np.uint64))

    def _make_room_for_some(self, blocks: list[int]) -> int:
        """Room for the first of `blocks`, as many as the disk has room for; how many. NoSpaceError: not for one."""
        count = len(blocks)
        while True:
            try:
                self._make_room(np.array(blocks[:count], dtype=np.uint64))
            except NoSpaceError:
                if count == 1:
                    raise
                count //= 2
                continue
            return count

    def _make_room(self, blocks: Words) -> None:
        if self._device is None or not blocks.size:
            return
        blocks = np.sort(blocks)
        starts = np.concatenate(([0], np.flatnonzero(blocks[1:] != blocks[:-1] + np.uint64(1)) + 1))
        for begin, length in zip(blocks[starts].tolist(), np.diff(starts, append=len(blocks)).tolist(), strict=True):
            self._device.preallocate(begin * self._block_bytes, length * self._block_bytes)

    def _watch(self) -> None:
        free = self.free_count
        if free >= self.low_water_blocks:
            self._told = False
        elif not self._told:
            self._told = True
            if self.on_low_water is not None:
                self.on_low_water(free)


def _emptied(stock: deque[int]) -> Iterator[int]:
    """What is in `stock` until it is empty, while others may take from it too."""
    while True:
        try:
            yield stock.popleft()
        except IndexError:
            return
