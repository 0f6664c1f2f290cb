"""Reads and follows the segments of a stream, and single chunks out of one.

    next name there    load it, check every byte, make sure that it is durable, hand its events out
    not there          trimmed, a gap, or nothing new yet (stream.check_end)

Invariants
  R1  No event is handed out before all of its segment was checked (M1), nor before its name is durable: the log's
      host can't lose by a power cut what a reader built upon (D3, T4).
  R2  One segment is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

from replicator._buffer import Buffer
from replicator.errors import FormatError
from replicator.events.codec import Event
from replicator.events.frames import Decompressor
from replicator.events.state import StreamState
from replicator.log.index import SegmentIndex
from replicator.log.interface import Waiter
from replicator.log.parts import Part
from replicator.log.segment import Segment
from replicator.log.stream import SegmentStream


class SegmentReader:
    """A StreamReader over segments."""

    def __init__(self, stream: SegmentStream) -> None:
        self._stream = stream
        self._decompressor = Decompressor()

    def tail(self) -> StreamState:
        """The state at the stream's end."""
        return self._stream.tail()

    def start(self) -> StreamState:
        """The state before the first event that is kept."""
        return self._stream.start()

    def read(self, sequence: int) -> Iterator[Event]:
        """The events from `sequence` on that stand now."""
        assert sequence >= 1, "events are counted from 1"
        begin = self._stream.locate(sequence)
        while True:
            segment = self._load_durable(begin)
            if segment is not None:
                yield from segment.events_from(sequence)
                begin = segment.footer.last + 1
            elif not self._stream.check_end(begin):
                return

    def _load_durable(self, first: int) -> Segment | None:
        """R1."""
        segment = self._stream.load(first)
        if segment is not None and self._stream.store.size(self._stream.name_of(segment.footer.last + 1)) is None:
            self._stream.store.settle(self._stream.name_of(first))
        return segment

    def follow(self, sequence: int, waiter: Waiter, timeout_s: float) -> Iterator[Event]:
        """The events from `sequence` on, and those that come."""
        while True:
            for event in self.read(sequence):
                yield event
                sequence = event.header.sequence + 1
            if not self._await(sequence, waiter, timeout_s):
                self._stream.check_end(sequence)
                return

    def _await(self, sequence: int, waiter: Waiter, timeout_s: float) -> bool:
        """Whether the segment at `sequence` came in time."""
        deadline = waiter.monotonic() + timeout_s
        name = self._stream.name_of(sequence)
        while self._stream.store.size(name) is None:
            left_s = deadline - waiter.monotonic()
            if left_s <= 0 or waiter.wait(min(self._stream.store.poll_s, left_s)):
                return False
        return True

    def parts(self, sequence: int) -> Iterator[Part]:
        """The parts from the one that holds `sequence` on, each a segment without its data (log/parts)."""
        begin = self._stream.locate(sequence)
        while True:
            part = self._stream.part(begin)
            if part is not None:
                yield part
                begin = part.last + 1
            elif not self._stream.check_end(begin):
                return

    def index_of(self, first: int) -> SegmentIndex:
        """The index of the segment that begins with `first`."""
        footer = self._stream.footer(first)
        if footer is None:
            raise self._stream.key_of(first).wrong("the segment that was there before", "nothing")
        return footer.index

    def frame(self, first: int, number: int, row: tuple[int, ...], decompressor: Decompressor) -> Buffer:
        """The pages of one frame by one ranged read; from any thread that brings its own decompressor."""
        offset, stored_bytes, raw_bytes, crc, event, codec = row
        name, key = self._stream.name_of(first), self._stream.key_of(first)
        stored = self._stream.store.get_range(name, offset, stored_bytes)
        if stored is None or len(stored) != stored_bytes:
            found = "nothing" if stored is None else f"{len(stored)} bytes"
            raise key.wrong(f"{stored_bytes} bytes of frame {number} at {offset}", found, first + event)
        try:
            return decompressor.expand_checked(codec, raw_bytes, stored, crc)
        except FormatError as error:
            raise key.wrong(
                f"{error.where} {number} at {offset}: {error.expected}", error.found, first + event
            ) from None
