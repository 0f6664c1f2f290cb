"""What BLOCK_STATUS answers: where a device has blocks of its own, and what changed since a snapshot, as byte runs.

Asked by exporter/execution; packed by nbd/extents. Runs come a stretch of the page table at a time, vectorised, and
only as far as the reply takes them.

    context                        unmapped, no origin behind it   unmapped over the origin   mapped
    base:allocation                HOLE | ZERO                     0                          0

    context                        data block of the snapshot's    another, or added, or gone
    replicator:changed:SNAPSHOT    0                               CHANGED

Invariants
  S1  Runs are consecutive from the offset on and cover the length asked for; none is empty.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from replicator.exporter.exports import ChangedRuns
from replicator.nbd.protocol import STATE_CHANGED, STATE_HOLE, STATE_ZERO
from replicator.thin.device import ThinDevice
from replicator.thin.table import STRETCH_BLOCKS, STRETCH_MASK, STRETCH_SHIFT

_NOTHING = STATE_HOLE | STATE_ZERO
_PIECE_BLOCKS = 1 << 20  # blocks asked of a snapshot's provider at once: at most 8 MiB of runs


def allocation(device: ThinDevice, offset_bytes: int, length_bytes: int) -> Iterator[tuple[int, int]]:
    """(length, flags) of `base:allocation` in the range (S1)."""
    end = offset_bytes + length_bytes
    covered = device.origin.size_bytes if device.origin is not None else 0
    for begin, last, mapped in _mapped(device, offset_bytes, end):
        if mapped or begin >= covered:
            yield last - begin, 0 if mapped else _NOTHING
        else:
            yield min(last, covered) - begin, 0
            if last > covered:
                yield last - covered, _NOTHING


def _mapped(device: ThinDevice, begin: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """(first byte, one behind the last, whether mapped) of runs of the device within [begin, end)."""
    size = device.block_bytes
    at = begin
    while at < end:
        block = at // size
        low = block & STRETCH_MASK
        stretch = device.stretch(block >> STRETCH_SHIFT)
        high = min(STRETCH_BLOCKS, low + -(-(end - at) // size) + 1)
        mapped = np.asarray(stretch)[low:high] != 0
        edges = np.flatnonzero(mapped[1:] != mapped[:-1]) + 1
        first = block - low
        state = bool(mapped[0])
        for edge in (*(edges + low).tolist(), high):
            last = min((first + edge) * size, end)
            if last > at:
                yield at, last, state
            at, state = max(at, last), not state


def changed(provider: ChangedRuns, block_bytes: int, offset_bytes: int, length_bytes: int) -> Iterator[tuple[int, int]]:
    """(length, flags) of `replicator:changed:SNAPSHOT` in the range (S1)."""
    end = offset_bytes + length_bytes
    at = offset_bytes
    while at < end:
        block = at // block_bytes
        last_block = min(-(-end // block_bytes), block + _PIECE_BLOCKS)
        for first, last in provider(block, last_block).tolist():
            begin_bytes, end_bytes = max(first * block_bytes, at), min(last * block_bytes, end)
            if begin_bytes > at:
                yield begin_bytes - at, 0
            if end_bytes > begin_bytes:
                yield end_bytes - begin_bytes, STATE_CHANGED
            at = max(at, end_bytes)
        piece_end = min(last_block * block_bytes, end)
        if piece_end > at:
            yield piece_end - at, 0
            at = piece_end
