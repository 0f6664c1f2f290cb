"""Requests that can be answered without waiting: what of them, by looking; and the reading itself.

Beside exporter/transmission's loop, for what is a step less plain than one block. Nothing here waits for a disk, for
tree work or for a commit: what would is told so, and goes to a worker.

    a read       of blocks whose stretches are loaded and whose pages are cached; unmapped ones are zeros
    a write      of blocks that are the device's own, or provisioned with nothing to read but what is cached

Invariants
  P1  `read` either fills all of its target, or says that somebody else has to (the target is then undefined).
  P2  After a vain `overwrite` the same write may be carried out again: both stand in one stay in the gate.
  P3  `write` carries a write out only where device.pwrite seems to do so without leaving the gate: others may take the
      room meanwhile, and it waits then, which is right and slow.
  P4  A block that is to be copied is read once: what showed that it is cached is what goes to its copy.
  P5  A request was valid when it came, and the device may be smaller since: nothing is written beyond its end, whatever
      the page table has there yet, and what the table has no more goes to a worker, which answers with the error.
"""

from __future__ import annotations

import errno
import os
from enum import Enum

from replicator.exporter.exports import Export
from replicator.thin.device import Copied
from replicator.thin.table import STAMP_BITS, STAMP_MASK, STRETCH_MASK, STRETCH_SHIFT
from replicator.units import KIB, PAGE_BYTES

_PAGE_MASK = PAGE_BYTES - 1
_ZEROS = bytes(256 * KIB)
_PIECE_BYTES = 64 * KIB


class Found(Enum):
    """What a read came to."""

    DATA = "data"
    HOLE = "hole"
    LATER = "later"


class Plain:
    """The plain requests of one export."""

    def __init__(self, export: Export) -> None:
        self._device = export.device
        self._stretches = export.device.table.stretches
        self.fd = export.device.engine.data.fileno()
        self.nowait = _nowait_flag(self.fd)
        self._scratch: memoryview | None = None
        self._copied: Copied | None = None

    def read(self, target: memoryview, offset_bytes: int) -> Found:
        """Fill `target` (at most 256 KiB) without waiting; HOLE when all of it is unmapped, and then not filled."""
        end = offset_bytes + len(target)
        pieces = self._pieces(offset_bytes, end)
        if pieces is None:
            return Found.LATER
        if len(pieces) == 1 and pieces[0][2] < 0:
            return Found.HOLE
        for begin, last, place in pieces:
            part = target[begin - offset_bytes : last - offset_bytes]
            if place < 0:
                part[:] = _ZEROS[: len(part)]
            elif not self._read_cached(part, place):
                return Found.LATER
        return Found.DATA

    def _read_cached(self, part: memoryview, place: int) -> bool:
        try:
            return os.preadv(self.fd, (part,), place, self.nowait) == len(part)
        except OSError:
            return False

    def _pieces(self, begin: int, end: int) -> list[tuple[int, int, int]] | None:
        """(first byte, one behind the last, place on the data device or -1) in order; None if that takes waiting."""
        device, size = self._device, self._device.block_bytes
        pieces: list[tuple[int, int, int]] = []
        at = begin
        while at < end:
            block = at // size
            last = min((block + 1) * size, end)
            try:
                stretch = self._stretches[block >> STRETCH_SHIFT]
            except IndexError:  # P5
                return None
            if stretch is None:
                return None
            entry = stretch[block & STRETCH_MASK]
            if not entry and device.origin is not None:
                return None
            place = (entry >> STAMP_BITS) * size + at - block * size if entry else -1
            if pieces and _goes_on(pieces[-1], place):
                pieces[-1] = (pieces[-1][0], last, pieces[-1][2])
            else:
                pieces.append((at, last, place))
            at = last
        return pieces

    def overwrite(self, source: memoryview, offset_bytes: int) -> bool:
        """Write whole pages of blocks that are all the device's own; False when that isn't what they are, or it failed.

        Inside the gate. In pieces of 64 KiB: pages that were written in larger ones are slow to change in small ones.
        """
        device, size = self._device, self._device.block_bytes
        at, end = offset_bytes, offset_bytes + len(source)
        if (at | end) & _PAGE_MASK or self.fd < 0 or end > device.size_bytes:  # P5
            return False
        places = []
        while at < end:
            block = at // size
            last = min((block + 1) * size, end, at + _PIECE_BYTES)
            stretch = self._stretches[block >> STRETCH_SHIFT]
            entry = stretch[block & STRETCH_MASK] if stretch is not None else 0
            if entry & STAMP_MASK != device.epoch:
                return False
            places.append((at - offset_bytes, last - offset_bytes, (entry >> STAMP_BITS) * size + at - block * size))
            at = last
        try:
            return all(os.pwrite(self.fd, source[low:high], place) == high - low for low, high, place in places)
        except OSError:
            return False

    def write(self, source: memoryview, offset_bytes: int) -> bool:
        """device.pwrite, inside the gate, if that waits for nothing (P3); False, with nothing done, if it may."""
        self._copied = None
        if not self._may_write(offset_bytes, len(source)):
            return False
        self._device.pwrite(source, offset_bytes, self._copied)
        return True

    def _may_write(self, offset_bytes: int, length_bytes: int) -> bool:
        device, size = self._device, self._device.block_bytes
        at, end, fresh = offset_bytes, offset_bytes + length_bytes, 0
        if self.fd < 0 or end > device.size_bytes:  # P5
            return False
        while at < end:
            block = at // size
            last = min((block + 1) * size, end)
            stretch = self._stretches[block >> STRETCH_SHIFT]
            if stretch is None:
                return False
            entry = stretch[block & STRETCH_MASK]
            if entry & STAMP_MASK == device.epoch:
                if (at | last) & _PAGE_MASK and not self._edges_cached(entry, at - block * size, last - block * size):
                    return False
            elif last - at == size or (self._copy_cached(block, entry) if entry else device.origin is None):
                fresh += 1
            else:
                return False
            at = last
        return not fresh or device.engine.has_room(fresh)

    def _copy_cached(self, block: int, entry: int) -> bool:
        """Read a block that is to be copied (P4); whether it is in memory."""
        size = self._device.block_bytes
        if size > len(_ZEROS):
            return False
        if self._scratch is None:
            self._scratch = memoryview(bytearray(size))
        self._copied = Copied(block, entry, self._scratch)
        return self._read_cached(self._scratch, (entry >> STAMP_BITS) * size)

    def _edges_cached(self, entry: int, begin: int, end: int) -> bool:
        """Whether the pages that a write changes in part are in memory."""
        place = (entry >> STAMP_BITS) * self._device.block_bytes
        probe = memoryview(bytearray(1))
        return all(self._read_cached(probe, place + at) for at in (begin, end - 1))


def _goes_on(piece: tuple[int, int, int], place: int) -> bool:
    begin, last, before = piece
    return place < 0 if before < 0 else place == before + last - begin


def _nowait_flag(fd: int) -> int:
    """RWF_NOWAIT, or 0 where the file system doesn't know it (those keep files in memory, or wait)."""
    if fd < 0:
        return os.RWF_NOWAIT
    try:
        os.preadv(fd, (bytearray(1),), 0, os.RWF_NOWAIT)
    except OSError as error:
        return 0 if error.errno in (errno.EOPNOTSUPP, errno.EINVAL) else os.RWF_NOWAIT
    return os.RWF_NOWAIT
