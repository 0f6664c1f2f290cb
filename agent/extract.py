"""One transaction's content as event bodies: discards, then zeroes, then writes, each by ascending chunk.

Second half of extracting: chunks and their bytes (delta) come in, bodies go out to publish. Reading and comparing are
this thread's; hashing and compressing are done by a few workers, a slab of whole frames each.

    pass        looks at                                             gives
    discards    the changed blocks alone                             ChunksDiscarded: unmapped, no origin behind
    zeroes      the beginning of each other chunk, all of it         ChunksZeroed: zeros now, not zeros in the base
                where that is zeros; not for FULL
    writes      target and base of the rest, 64 chunks at a time     ChunksWritten: the pages that differ; for FULL
                                                                     whole chunks that aren't zeros

    slab        128 rows of 64 KiB: at most 63 carried from the last one, and 64 read

Invariants
  X1  The same base and target give the same bodies: frames and events are cut greedily from the transaction's
      beginning, wherever reading is cut.
  X2  bodies(after) gives what bodies(nothing) gives behind the event that left the stream at `after`.
  X3  Memory: `threads` + 2 slabs, one base of 4 MiB, and the frames of one event.

Failures: those of delta.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from agent.delta import ChunkList, Delta, Rows, runs_of
from replicator.events.bodies import ChunkBody
from replicator.events.chunks import RUNS_PER_EVENT_MAX, ChunksDiscarded, ChunksZeroed
from replicator.events.frames import LEVEL_DEFAULT, Compressor, Frame, written_events
from replicator.events.pages import Masks, changed_pages_many, page_counts, whole_masks
from replicator.events.values import Phase
from replicator.units import CHUNK_BYTES, PAGE_BYTES, PAGES_PER_CHUNK

READ_CHUNKS = 64
"""Chunks read at once: 4 MiB, long enough for the disk, short enough for a processor's cache to see twice."""

THREADS_DEFAULT = 2
"""Workers that hash and compress: two take what one reader gives (measured)."""

_FRAME_PAGES = 64  # 256 KiB, as events/frames cuts them
_SLAB_CHUNKS = 2 * READ_CHUNKS  # an unfinished frame has at most 63 chunks of one page each
_PEEK_CHUNKS = 1024  # beginnings looked at together


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a transaction's events have come: the phase, and the first chunk that the phase may still touch."""

    phase: Phase = Phase.BEGAN
    cursor: int = 0

    def first_of(self, phase: Phase) -> int | None:
        """Where `phase` goes on; None when it is over."""
        if self.phase > phase:
            return None
        return self.cursor if self.phase is phase else 0


class Extractor:
    """The bodies of one transaction, from its Delta."""

    def __init__(self, delta: Delta, *, level: int = LEVEL_DEFAULT, threads: int = THREADS_DEFAULT) -> None:
        self._delta = delta
        self._level, self._threads = level, max(1, threads)
        self._local = threading.local()
        self._base: Rows | None = None if delta.is_full else np.empty((READ_CHUNKS, CHUNK_BYTES), dtype=np.uint8)

    def chunk_bound(self) -> int:
        """The most chunks that `bodies` will touch."""
        return self._delta.chunk_bound()

    def bodies(self, after: Progress | None = None) -> Generator[ChunkBody, None, None]:
        """The transaction's content behind `after`, lazily (X2)."""
        progress = after or Progress()
        begin = progress.first_of(Phase.DISCARDS)
        if begin is not None:
            yield from map(ChunksDiscarded, _packed_runs(self._delta.removed(begin)))
        begin = progress.first_of(Phase.ZEROES)
        if begin is not None:
            known = self._delta.zeroed(begin)
            yield from map(ChunksZeroed, _packed_runs(self._zeroed(begin) if known is None else known))
        yield from written_events(self._frames(progress.first_of(Phase.WRITES) or 0))

    # -- zeroes ------------------------------------------------------------------------------------------------

    def _zeroed(self, begin: int) -> Iterator[npt.NDArray[np.uint64]]:
        for part in self._delta.kept(begin, _PEEK_CHUNKS):
            maybe = self._delta.begin_with_zeros(part)
            maybe[-1] = True  # the volume's last chunk may be short, and what lies behind its end is anything
            candidates = part.only(maybe)
            for low in range(0, len(candidates), READ_CHUNKS):
                yield from self._turned_to_zeros(candidates.only(slice(low, low + READ_CHUNKS)))

    def _turned_to_zeros(self, part: ChunkList) -> Iterator[npt.NDArray[np.uint64]]:
        assert self._base is not None, "a full transaction has no zeroes"
        rows = self._base[: len(part)]
        self._delta.read_target(part, rows)
        zeros = part.only(~_is_something(rows))
        if len(zeros):
            rows = self._base[: len(zeros)]
            self._delta.read_base(zeros, rows)
            was_something = _is_something(rows)
            if was_something.any():
                yield zeros.chunks[was_something]

    # -- writes ------------------------------------------------------------------------------------------------

    def _frames(self, begin: int) -> Iterator[Frame]:
        """The frames of all chunks from `begin` on, in order; workers are ahead by at most `threads` + 1 slabs."""
        slabs = [_Slab() for _ in range(self._threads + 2)]
        pending: deque[tuple[Future[list[Frame]], _Slab]] = deque()
        with ThreadPoolExecutor(self._threads, thread_name_prefix="compress") as workers:
            slab = slabs.pop()
            for part in self._delta.kept(begin, READ_CHUNKS):
                slab.add(part, self._read(part, slab.room(len(part))))
                closed = slab.closed_rows()
                if not closed:
                    slab.compact()
                    continue
                if not slabs:
                    frames, free = pending.popleft()
                    yield from frames.result()
                    slabs.append(free)
                after = slabs.pop()
                slab.carry_to(after, closed)
                pending.append((workers.submit(self._pack, slab, closed), slab))
                slab = after
            for frames, _ in pending:
                yield from frames.result()
            yield from self._pack(slab, slab.count)  # by nobody else: a small transaction needs no worker at all

    def _read(self, part: ChunkList, rows: Rows) -> Masks:
        """Fill `rows` with the target; the masks of what travels."""
        self._delta.read_target(part, rows)
        if self._base is None:
            return np.where(_is_something(rows), whole_masks(len(part)), np.uint16(0)).astype("<u2")
        blank, masks = self._delta.blank(part), np.empty(len(part), dtype="<u2")
        for begin, end in runs_of(blank[1:] == blank[:-1]):
            some, target = slice(begin, end), rows[begin:end]
            if blank[begin]:
                masks[some] = _pages_of_something(target)
            else:
                base = self._base[some]
                self._delta.read_base(part.only(some), base)
                changed = changed_pages_many(base.reshape(-1).data, target.reshape(-1).data)
                masks[some] = np.where(_is_something(target), changed, np.uint16(0))
        return masks

    def _pack(self, slab: _Slab, count: int) -> list[Frame]:
        """In a worker: hash and compress."""
        compressor = getattr(self._local, "compressor", None)
        if compressor is None:
            compressor = self._local.compressor = Compressor(self._level)
        packed: list[Frame] = compressor.pack(
            slab.indices[:count], slab.masks[:count], slab.rows[:count].reshape(-1).data
        )
        return packed


@dataclass(slots=True)
class _Slab:
    """Rows on their way to a worker: target's bytes, chunk numbers and masks."""

    rows: Rows = field(default_factory=lambda: np.empty((_SLAB_CHUNKS, CHUNK_BYTES), dtype=np.uint8))
    indices: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(_SLAB_CHUNKS, dtype=np.uint64))
    masks: Masks = field(default_factory=lambda: np.zeros(_SLAB_CHUNKS, dtype="<u2"))
    count: int = 0

    def room(self, count: int) -> Rows:
        """The rows that the next `count` chunks are read into."""
        return self.rows[self.count : self.count + count]

    def add(self, part: ChunkList, masks: Masks) -> None:
        """`part` was read into `room`."""
        end = self.count + len(part)
        self.indices[self.count : end], self.masks[self.count : end] = part.chunks, masks
        self.count = end

    def closed_rows(self) -> int:
        """How many rows from the first on make whole frames, to which nothing can be added any more."""
        kept = np.flatnonzero(self.masks[: self.count])
        ends = np.cumsum(page_counts(self.masks[kept]))
        begin = 0
        while begin < len(kept):
            before = int(ends[begin - 1]) if begin else 0
            end = int(np.searchsorted(ends, before + _FRAME_PAGES, side="right"))
            if end == len(kept) and int(ends[-1]) - before <= _FRAME_PAGES - 1:
                break
            begin = end
        return int(kept[begin - 1]) + 1 if begin else 0

    def compact(self) -> None:
        """Drop the rows that don't travel."""
        self.carry_to(self, 0)

    def carry_to(self, other: _Slab, begin: int) -> None:
        """The rows from `begin` on that travel, as the first ones of `other`."""
        kept = np.flatnonzero(self.masks[begin : self.count]) + begin
        for row, source in enumerate(kept.tolist()):
            if other is not self or row != source:
                other.rows[row] = self.rows[source]
        indices, masks = self.indices[kept], self.masks[kept]
        other.indices[: len(kept)], other.masks[: len(kept)] = indices, masks
        other.count = len(kept)


def _is_something(rows: Rows) -> npt.NDArray[np.bool_]:
    """Which rows aren't all zeros; most are settled by their first page."""
    words = rows.view(np.uint64)
    found: npt.NDArray[np.bool_] = np.any(words[:, : PAGE_BYTES // 8], axis=1)
    for row in np.flatnonzero(~found).tolist():
        found[row] = words[row].any()
    return found


def _pages_of_something(rows: Rows) -> Masks:
    """Which pages aren't all zeros: those that differ from a base that has nothing there."""
    words = rows.view(np.uint64).reshape(-1, PAGES_PER_CHUNK, PAGE_BYTES // 8)
    return np.packbits(words.any(axis=2), axis=1, bitorder="little").reshape(-1).view("<u2")


def _packed_runs(pieces: Iterable[npt.NDArray[np.uint64]]) -> Iterator[bytes]:
    """Ascending chunks as maximal runs, packed for an event each."""
    table = np.empty((0, 2), dtype="<u8")
    for chunks in pieces:
        edges = np.flatnonzero(chunks[1:] != chunks[:-1] + np.uint64(1))
        begins = chunks[np.concatenate(([0], edges + 1))]
        ends = chunks[np.concatenate((edges, [len(chunks) - 1]))] + np.uint64(1)
        rows = np.stack((begins, ends), axis=1)
        if len(table) and table[-1, 1] == rows[0, 0]:
            rows[0, 0] = table[-1, 0]
            table = table[:-1]
        table = np.concatenate((table, rows))
        while len(table) > RUNS_PER_EVENT_MAX:
            yield table[:RUNS_PER_EVENT_MAX].astype("<u8").tobytes()
            table = table[RUNS_PER_EVENT_MAX:]
    if len(table):
        yield table.astype("<u8").tobytes()


assert _FRAME_PAGES % PAGES_PER_CHUNK == 0
