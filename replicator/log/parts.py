"""A stream in parts without its data: what a restore lays over its base, and what a list of restore points needs.

Beside reader: who follows reads every event whole; who restores wants to know which pages stand where, and then only
those that nothing newer covers. Segments offer parts from their footers (SegmentReader); `indexed` makes them from
the events for a log that has no footers, such as Kafka.

    Part    a run of whole events of one transaction at most: its index, the events without chunks, the state behind it
    frame   the pages of one frame, read alone

Invariants
  P1  Parts are consecutive: each begins one behind the last event of the one before; all that stand are given.
  P2  A part ends at the latest with the commit or abort of its transaction, so `state.open` tells whether the one
      that it belongs to goes on.
  P3  What is given was checked: footer, facts and frames by their own checksums. A part's events are not chained to
      each other here; who lays parts over a base checks bases, digests and chunk hashes.
  P4  Of a log that lets more through than the stream (events of an earlier epoch behind a later PublisherOpened, exact
      duplicates), parts hold what a follower would apply, and nothing else: by the same checker.

Failures: SegmentError, LogGapError, TrimmedError, LostEndError; FormatError for a frame that isn't what its row says.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, runtime_checkable

import numpy as np

from replicator._buffer import Buffer
from replicator.errors import FormatError
from replicator.events.bodies import TransactionAborted, TransactionCommitted
from replicator.events.chain import ChainChecker, Verdict
from replicator.events.chunks import ChunksDiscarded, ChunksWritten, ChunksZeroed
from replicator.events.codec import Event
from replicator.events.frames import Decompressor
from replicator.events.state import StreamState
from replicator.log.index import IndexBuilder, SegmentIndex
from replicator.log.interface import StreamReader, Waiter
from replicator.units import MIB

PART_CHUNKS = 1 << 18  # chunks or runs of a part that is made from events: 8 MiB of index, as a segment's
AHEAD_BYTES = 4 * MIB  # events read on behind one that was asked for: what a broker sends at once
KEPT_BYTES = 16 * MIB  # events kept for their other frames: four such runs, for a few threads side by side


@dataclass(frozen=True, slots=True)
class Part:
    """Events [first, last] without their data; `facts` are those without chunks, `state` is behind `last`."""

    first: int
    last: int
    index: SegmentIndex
    facts: tuple[Event, ...]
    state: StreamState

    @property
    def stored_bytes(self) -> int:
        """What its frames take in the log."""
        return int(self.index.frames["stored_bytes"].sum(dtype=np.int64))


@runtime_checkable
class IndexedReader(StreamReader, Protocol):
    """A reader that also gives a stream's parts, and single frames. `frame` may be called from any thread."""

    def parts(self, sequence: int) -> Iterator[Part]:
        """The parts from the one that holds `sequence` on (P1)."""

    def index_of(self, first: int) -> SegmentIndex:
        """The index of the part that begins with `first`, again."""

    def frame(self, first: int, number: int, row: tuple[int, ...], decompressor: Decompressor) -> Buffer:
        """The pages of frame `number` of the part that begins with `first`; `row` is its FRAME_ROW."""


def indexed(reader: StreamReader) -> IndexedReader:
    """`reader` itself if it offers parts, else parts made from its events."""
    return reader if isinstance(reader, IndexedReader) else EventParts(reader)


class EventParts:
    """Parts made from events, for a log without footers. An event's offset in its part counts events, not bytes.

    A restore asks frame by frame, in the order of the volume, which a first transaction's events have too: an event is
    read with those behind it, and they are kept, the latest KEPT_BYTES.
    """

    def __init__(self, reader: StreamReader) -> None:
        self._reader = reader
        self._firsts: dict[int, bytes] = {}  # digests of parts' first events, once something was skipped (P4)
        self._turn = threading.Lock()
        self._kept: OrderedDict[int, Event] = OrderedDict()
        self._kept_bytes = 0

    def tail(self) -> StreamState:
        """The state at the stream's end."""
        return self._reader.tail()

    def start(self) -> StreamState:
        """The state before the first event that is kept."""
        return self._reader.start()

    def read(self, sequence: int) -> Iterator[Event]:
        """The events from `sequence` on."""
        return self._reader.read(sequence)

    def follow(self, sequence: int, waiter: Waiter, timeout_s: float) -> Iterator[Event]:
        """The events from `sequence` on, and those that come."""
        return self._reader.follow(sequence, waiter, timeout_s)

    def parts(self, sequence: int) -> Iterator[Part]:
        """The parts from `sequence` on: the state before it is folded from the first event that is kept."""
        checker = ChainChecker(self._reader.start())
        gathered = _Gathered(checker.state.sequence + 1)
        for event in self._reader.read(checker.state.sequence + 1):
            if checker.accept(event) is not Verdict.APPLY:
                continue
            if not gathered.count and (checker.skipped.stale or checker.skipped.duplicates):
                self._firsts[gathered.first] = event.digest
            gathered.add(event)
            if gathered.is_whole(event):
                if checker.state.sequence >= sequence:
                    yield gathered.part(checker.state)
                gathered = _Gathered(checker.state.sequence + 1)
        if gathered.count and checker.state.sequence >= sequence:
            yield gathered.part(checker.state)

    def index_of(self, first: int) -> SegmentIndex:
        """The index of the part that begins with `first`."""
        gathered = _Gathered(first)
        for event in self._linked(first):
            gathered.add(event)
            if gathered.is_whole(event):
                break
        return gathered.builder.build()

    def frame(self, first: int, number: int, row: tuple[int, ...], decompressor: Decompressor) -> Buffer:
        """The pages of one frame, from its event, which is read again unless it is kept."""
        _, stored_bytes, raw_bytes, crc, ordinal, codec = row
        with self._turn:
            event = self._kept.get(first + ordinal) or self._read_on(first, ordinal)
        body = event.body
        if isinstance(body, ChunksWritten):
            for stored, crc_there in zip(body.frames, body.frame_rows["crc32c"].tolist(), strict=True):
                if crc_there == crc and len(stored) == stored_bytes:
                    return decompressor.expand_checked(codec, raw_bytes, stored, crc)
        raise FormatError(f"event {first + ordinal}", f"frame {number} with crc32c {crc:08x}", "no such frame")

    def _read_on(self, first: int, ordinal: int) -> Event:
        """An event of the part, with those behind it that hang on it, which are kept; under the lock."""
        events = islice(self._linked(first), ordinal, None) if self._firsts else self._reader.read(first + ordinal)
        found = next(events, None)
        if found is None:
            raise FormatError(f"event {first + ordinal}", "an event that was there", "the end of the stream")
        self._keep(found)
        last, ahead_bytes = found, 0
        for event in events:
            ahead_bytes += event.length_bytes
            if event.header.previous != last.digest or ahead_bytes > AHEAD_BYTES:
                break
            self._keep(event)
            last = event
        return found

    def _keep(self, event: Event) -> None:
        """Keep an event, and let go of the oldest beyond KEPT_BYTES."""
        if self._kept.setdefault(event.header.sequence, event) is event:
            self._kept_bytes += event.length_bytes
        while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
            _, gone = self._kept.popitem(last=False)
            self._kept_bytes -= gone.length_bytes

    def _linked(self, first: int) -> Iterator[Event]:
        """The part's events from `first` on: each hangs on the one before (P4)."""
        expected, last = first, self._firsts.get(first)
        for event in self._reader.read(first):
            hangs = event.digest == last if expected == first else event.header.previous == last
            if event.header.sequence == expected and (hangs or last is None):
                expected, last = expected + 1, event.digest
                yield event


class _Gathered:
    """Events that will make the next part."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.count = 0
        self.builder = IndexBuilder()
        self._facts: list[Event] = []

    def add(self, event: Event) -> None:
        """Take `event`."""
        self.builder.add(event, self.count)
        self.count += 1
        if not isinstance(event.body, ChunksDiscarded | ChunksZeroed | ChunksWritten):
            self._facts.append(event)

    def is_whole(self, event: Event) -> bool:
        """Whether the part ends with `event` (P2), so that the same events always make the same parts."""
        ends = isinstance(event.body, TransactionCommitted | TransactionAborted)
        return ends or max(self.builder.chunk_count, self.builder.run_count) >= PART_CHUNKS

    def part(self, state: StreamState) -> Part:
        """The part."""
        return Part(self.first, state.sequence, self.builder.build(), tuple(self._facts), state)
