"""Frames out of the log, decompressed, an LRU of bounded bytes: neighbours that were written together share a frame.

Asked by point for every page; any number of threads ask at once, each with a decompressor of its own.

Invariants
  F1  At most `limit_bytes` of pages are kept, and one frame more a thread that is being read.
  F2  Two threads that miss one frame at once both read it: dearer than a wait, but nobody waits for a disk with a lock.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from replicator.events.frames import Decompressor
from replicator.repository.layers import Layers
from replicator.units import MIB

FRAMES_BYTES = 256 * MIB
"""Decompressed pages kept: a thousand frames. Pages that were written at random lie in many of them, and a restore in
the order of the volume comes back to each: what doesn't fit is read and expanded again."""


class FrameCache:
    """The frames of some layers."""

    def __init__(self, layers: Layers, limit_bytes: int = FRAMES_BYTES) -> None:
        self._layers = layers
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._own = threading.local()
        self._pages: OrderedDict[tuple[int, int], memoryview] = OrderedDict()
        self.held_bytes = 0

    def pages(self, part: int, number: int, row: tuple[int, ...]) -> memoryview:
        """The pages of frame `number` of a part; `row` is its FRAME_ROW."""
        key = (part, number)
        with self._lock:
            found = self._pages.get(key)
            if found is not None:
                self._pages.move_to_end(key)
                return found
        found = memoryview(self._layers.frame(part, number, row, self._decompressor()))
        with self._lock:
            if key not in self._pages:
                self._pages[key] = found
                self.held_bytes += len(found)
            while self.held_bytes > self._limit_bytes and len(self._pages) > 1:
                _, gone = self._pages.popitem(last=False)
                self.held_bytes -= len(gone)
        return found

    def _decompressor(self) -> Decompressor:
        if not hasattr(self._own, "decompressor"):
            self._own.decompressor = Decompressor()
        decompressor: Decompressor = self._own.decompressor
        return decompressor
