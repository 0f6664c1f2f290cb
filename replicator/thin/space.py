"""Data blocks for those who write: a stock taken ahead, so that a first touch never waits for tree work.

Between the data space map (pdata/counts, under the metadata lock) and thin/device. Blocks in the stock are TAKEN in
memory and free on disk: after a crash nobody has them.

Invariants
  K1  A block handed out is in no committed map, in nobody's page table, and room for it is allocated on the data
      device before it is written (P8).
  K2  `low_water` is told once per crossing, and again only after room has been above it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np

from replicator.errors import NoSpaceError
from replicator.pdata.block import Words
from replicator.pdata.counts import CountArray

STOCK_BLOCKS = 8192  # at 10,000 first touches a second most of a second's worth, longer than any tree work lasts
_WINDOW_BYTES = 16 << 20  # room on the data device is allocated in stretches of this size


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
        self._window_blocks = max(1, _WINDOW_BYTES // block_bytes)
        self._windows: set[int] = set()
        self._stock: deque[int] = deque()
        self.low_water_blocks = low_water_blocks
        self._told = False
        self.on_low_water: Callable[[int], None] | None = None

    @property
    def free_count(self) -> int:
        """Free blocks, the stock's included."""
        return self._counts.free_count + len(self._stock)

    def take_one(self) -> int:
        """One free block; NoSpaceError when there is none. The stock is refilled only when it is empty."""
        try:
            return self._stock.popleft()
        except IndexError:
            self.refill()
        try:
            return self._stock.popleft()
        except IndexError:
            raise NoSpaceError(
                f"data space is out: none of {self._counts.nr_blocks} blocks is free",
                mend="grow it: replicator pool grow POOL --data +SIZE; or delete snapshots, or trim volumes",
            ) from None

    def take(self, count: int) -> Words:
        """`count` blocks at once, for a receiver that writes them itself; NoSpaceError with nothing taken."""
        with self._lock:
            if count > self._counts.free_count:
                self._put_stock_back()
            blocks = self._counts.take(count)
            self._make_room(blocks)
            self._watch()
            return blocks

    def refill(self) -> None:
        """Fill the stock, as far as there are free blocks."""
        with self._lock:
            count = min(STOCK_BLOCKS - len(self._stock), self._counts.free_count)
            if count > 0:
                blocks = self._counts.take(count)
                self._make_room(blocks)
                self._stock.extend(blocks.tolist())
            self._watch()

    def give_back(self, blocks: Words) -> None:
        """Blocks that were handed out and never mapped."""
        with self._lock:
            self._counts.put_back(blocks)

    def _put_stock_back(self) -> None:
        left = np.array(list(self._stock), dtype=np.uint64)
        self._stock.clear()
        self._counts.put_back(left)

    def _make_room(self, blocks: Words) -> None:
        if self._device is None or not blocks.size:
            return
        for window in np.unique(blocks // np.uint64(self._window_blocks)).tolist():
            if window in self._windows:
                continue
            begin = window * self._window_blocks
            length = min(self._window_blocks, self._counts.nr_blocks - begin)
            try:
                self._device.preallocate(begin * self._block_bytes, length * self._block_bytes)
            except NoSpaceError:
                self._counts.put_back(blocks)
                raise
            self._windows.add(window)

    def _watch(self) -> None:
        free = self.free_count
        if free >= self.low_water_blocks:
            self._told = False
        elif not self._told:
            self._told = True
            if self.on_low_water is not None:
                self.on_low_water(free)
