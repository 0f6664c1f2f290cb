"""Reads a replica's points again, and compares every chunk with what the log says it must be.

Beside a running receiver or without one. The expected hash of a chunk is that of the last event up to the point that
touched it; those of all chunks are folded from the log, a window of the volume at a time.

    event             the chunk's hash from then on
    ChunksDiscarded   that of zeros
    ChunksZeroed      that of zeros
    ChunksWritten     the event's own

A chunk that no event ever touched reads as zeros. Where the log was trimmed, a chunk that no event which is left
touches is counted as unknown: it isn't compared, and the point isn't found equal.

Invariants
  V1  Memory: 17 bytes a chunk of the window, and a batch of data.
  V2  An aborted transaction's events say nothing.
  V3  What was read counts only while the lease on the point stood.
  V4  A transaction whose beginning was trimmed has the size that the stream's state knows, and says of what was trimmed
      of it nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

import numpy as np
import numpy.typing as npt

from receiver.draft import ZERO_HASH
from replicator.errors import NotFoundError, UnavailableError
from replicator.events.bodies import TransactionBegan, TransactionCommitted
from replicator.events.chunks import ChunksDiscarded, ChunksWritten, ChunksZeroed
from replicator.events.digests import digest128
from replicator.events.values import chunk_count_of
from replicator.history.lineage import Lineage
from replicator.log.interface import Log
from replicator.pool.interface import Lease
from replicator.units import CHUNK_BYTES

WINDOW_CHUNKS = 1 << 22
"""256 GiB of volume: 68 MiB of hashes; a larger volume's log is read once for each window."""

LISTED_MAX = 16
"""Chunks that an answer names: a person looks at the first ones."""

Read = Callable[[int, int], bytes]
"""(length_bytes, offset_bytes) -> what the point reads there."""

_READ_CHUNKS = 16  # 1 MiB at once


@dataclass(frozen=True, slots=True)
class Verified:
    """What a point came to: chunks compared, and those that differ (the first of them, and how many)."""

    volume: UUID
    timeline: int
    number: int
    chunk_count: int
    unknown_count: int
    differing_count: int
    differing: tuple[int, ...]

    @property
    def is_equal(self) -> bool | None:
        """Whether every chunk is what the log says; None where none differs, but not all could be compared."""
        if self.differing_count:
            return False
        return None if self.unknown_count else True


@dataclass(frozen=True, slots=True)
class Target:
    """The point that is verified: its place in the volume's history, and its size."""

    volume: UUID
    timeline: int
    number: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Hashes:
    """What one event says: rows of a window, and their chunks' hashes."""

    rows: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint64]


class Window:
    """The expected hashes of the chunks [begin, end), folded from events."""

    def __init__(self, begin: int, end: int) -> None:
        self.begin, self.end = begin, end
        self._zero = np.frombuffer(ZERO_HASH, dtype=np.uint64)
        self.hashes = np.tile(self._zero, (end - begin, 1))
        self.known = np.full(end - begin, True)

    def of(self, body: ChunksWritten) -> Hashes:
        """What the event says of the window's chunks."""
        chunks = body.chunk_indices.astype(np.int64)
        inside = (chunks >= self.begin) & (chunks < self.end)
        rows = np.frombuffer(body.hashes, dtype=np.uint64).reshape(-1, 2)
        return Hashes(chunks[inside] - self.begin, rows[inside])

    def take(self, said: Hashes | ChunksDiscarded | ChunksZeroed) -> None:
        """One event of a committed transaction."""
        if isinstance(said, Hashes):
            self.hashes[said.rows], self.known[said.rows] = said.hashes, True
        else:
            for begin, end in said.iter_runs():
                self.clear(begin, end)

    def clear(self, begin: int, end: int) -> None:
        """These chunks are zeros."""
        low, high = max(begin, self.begin) - self.begin, min(end, self.end) - self.begin
        if low < high:
            self.hashes[low:high] = self._zero
            self.known[low:high] = True


def fold(log: Log, target: Target, lineage: Lineage, window: Window) -> None:
    """Fold the log's transactions up to the target into `window` (V2)."""
    found = target.number == 0
    for stretch in lineage.path(target.timeline, target.number):
        found = _fold_timeline(log, target, stretch.timeline, stretch.end - 1, window) or found
    if not found:
        raise NotFoundError(f"the log {log.name} doesn't hold transaction {target.timeline}:{target.number}")


def _fold_timeline(log: Log, target: Target, timeline: int, last: int, window: Window) -> bool:
    """Fold one timeline up to transaction `last`; whether that is the target."""
    reader = log.reader(target.volume, timeline)
    start = reader.start()
    if start.sequence:
        window.known[:] = False  # what was trimmed isn't known; what comes is
    said: list[Hashes | ChunksDiscarded | ChunksZeroed] = []
    size_bytes = start.open.size_bytes if start.open is not None else start.size_bytes  # V4
    for event in reader.read(start.sequence + 1):
        body = event.body
        if isinstance(body, TransactionBegan):
            said, size_bytes = [], body.size_bytes
        elif isinstance(body, ChunksWritten):
            said.append(window.of(body))
        elif isinstance(body, ChunksDiscarded | ChunksZeroed):
            said.append(body)
        elif isinstance(body, TransactionCommitted):
            window.clear(chunk_count_of(size_bytes), window.end)  # beyond the end nothing is left
            for each in said:
                window.take(each)
            if body.number == last:
                return timeline == target.timeline
    return False


def verify_point(
    log: Log, target: Target, lineage: Lineage, read: Read, lease: Lease, window_chunks: int = WINDOW_CHUNKS
) -> Verified:
    """Read the whole point and compare; UnavailableError when the lease fell meanwhile (V3)."""
    count = chunk_count_of(target.size_bytes)
    differing: list[int] = []
    differing_count = unknown_count = 0
    for begin in range(0, count, window_chunks):
        window = Window(begin, min(count, begin + window_chunks))
        fold(log, target, lineage, window)
        unknown_count += int((~window.known).sum())
        found = _differing(window, target.size_bytes, read)
        differing_count += len(found)
        differing = (differing + found)[:LISTED_MAX]
        if not lease.stands:
            raise UnavailableError("the pool's owner went away while a point was verified")
    compared = count - unknown_count
    place = target.volume, target.timeline, target.number
    return Verified(*place, compared, unknown_count, differing_count, tuple(differing))


def _differing(window: Window, size_bytes: int, read: Read) -> list[int]:
    """The chunks of the window that read otherwise."""
    found = []
    for begin in range(window.begin, window.end, _READ_CHUNKS):
        end = min(window.end, begin + _READ_CHUNKS)
        length = min(end * CHUNK_BYTES, size_bytes) - begin * CHUNK_BYTES
        data = read(length, begin * CHUNK_BYTES).ljust((end - begin) * CHUNK_BYTES, b"\0")
        for chunk in range(begin, end):
            inside = (chunk - begin) * CHUNK_BYTES
            row = chunk - window.begin
            is_equal = digest128(data[inside : inside + CHUNK_BYTES]) == window.hashes[row].tobytes()
            if window.known[row] and not is_equal:
                found.append(chunk)
    return found
