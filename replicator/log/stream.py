"""Where a stream's segments are: the tail, the segment that holds an event, and whether one is missing.

The tail is found by descending: the highest folder, the highest name in it. So a million names cost two listings, of
folders and of at most 4,096 names.

Invariants
  D1  A missing name that is at or above `start`, with a later name or a beacon beyond it, is a gap: LogGapError, never
      idleness. A writer goes on at the tail, never in a gap. The beacon of an epoch before the tail's says nothing.
  D2  What is below `start` is trimmed: TrimmedError.
  D3  A segment that has a successor is durable (a segment is put only while its predecessor stands: W1 of writer).
"""

from __future__ import annotations

from contextlib import suppress
from uuid import UUID

from replicator.errors import FormatError, UnavailableError
from replicator.events.beacon import beacon_beyond
from replicator.events.record import RECORD_BYTES_MAX
from replicator.events.state import StreamState, decode_state
from replicator.log import names
from replicator.log.errors import LogGapError, LostEndError, TrimmedError
from replicator.log.objects import ObjectStore
from replicator.log.parts import Part
from replicator.log.segment import (
    PIECE_BYTES,
    SEGMENT_BYTES_MAX,
    Footer,
    Segment,
    SegmentKey,
    check_segment,
    open_segment,
    read_facts,
    read_footer,
)
from replicator.units import KIB

_END_BYTES = 16 * KIB  # a part's footer and facts lie at a segment's end; of most segments that is all there is


class EndOfObject:
    """Ranged reads of one object, answered from its end where that was read already."""

    def __init__(self, store: ObjectStore, name: str, size_bytes: int) -> None:
        self._store, self._name = store, name
        self._begin = max(0, size_bytes - _END_BYTES)
        self._end = store.get_range(name, self._begin, size_bytes - self._begin) or b""

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Those bytes, or fewer where the object ends before."""
        if offset_bytes >= self._begin:
            return self._end[offset_bytes - self._begin :][:length_bytes]
        return self._store.get_range(self._name, offset_bytes, length_bytes) or b""


class SegmentStream:
    """The segments of one timeline of one volume, as they stand in a store."""

    def __init__(self, store: ObjectStore, volume: UUID, timeline: int) -> None:
        self.store = store
        self.volume = volume
        self.timeline = timeline

    def name_of(self, sequence: int) -> str:
        """The object of the segment that begins with `sequence`."""
        return names.segment_name(self.volume, self.timeline, sequence)

    def key_of(self, sequence: int) -> SegmentKey:
        """How errors name it."""
        path = f"{self.store.name}/{self.name_of(sequence)}"
        return SegmentKey(path, self.volume, self.timeline, sequence)

    def start(self) -> StreamState:
        """The state before the first event that is kept."""
        name = names.start_name(self.volume, self.timeline)
        data = self.store.get(name, RECORD_BYTES_MAX)
        if data is None:
            return StreamState.start(self.volume, self.timeline)
        return decode_state(data, f"{self.store.name}/{name}")

    def folders(self) -> list[int]:
        """The folders that there are, ascending; the last may be empty."""
        return names.folders_in(self.store.children(names.timeline_prefix(self.volume, self.timeline)))

    def firsts_in(self, folder: int) -> list[int]:
        """The first sequence numbers of the folder's segments, ascending."""
        return names.sequences_in(self.store.children(names.folder_name(self.volume, self.timeline, folder)), folder)

    def last_first(self) -> int | None:
        """The first sequence number of the last segment."""
        for folder in reversed(self.folders()):
            firsts = self.firsts_in(folder)
            if firsts:
                return firsts[-1]
        return None

    def holder_of(self, sequence: int) -> int | None:
        """The first number of the segment that holds `sequence`, if any does by its name; its end isn't looked at."""
        if self.store.size(self.name_of(sequence)) is not None:
            return sequence
        below = [first for first in self.firsts_in(names.folder_of(sequence)) if first <= sequence]
        return below[-1] if below else None

    def load(self, first: int) -> Segment | None:
        """The segment that begins with `first`, every byte checked; None if it isn't there."""
        key = self.key_of(first)
        try:
            data = self.store.get(self.name_of(first), SEGMENT_BYTES_MAX)
        except FormatError as error:
            if error.expected != f"at most {SEGMENT_BYTES_MAX} bytes":  # what the store itself didn't understand
                raise
            raise key.wrong(error.expected, error.found) from None
        return None if data is None else open_segment(data, key)

    def footer(self, first: int) -> Footer | None:
        """The footer alone of the segment that begins with `first`, by ranged reads."""
        name, key = self.name_of(first), self.key_of(first)
        size = self.store.size(name)
        if size is None:
            return None
        return read_footer(lambda begin, length: self.store.get_range(name, begin, length) or b"", key, size)[0]

    def part(self, first: int) -> Part | None:
        """The segment that begins with `first` without its data, by one ranged read where that holds all of it."""
        name, key = self.name_of(first), self.key_of(first)
        size = self.store.size(name)
        if size is None:
            return None
        end = EndOfObject(self.store, name, size)
        footer, events_end = read_footer(end.read, key, size)
        facts = read_facts(end.read, key, footer.index, events_end)
        return Part(first, footer.last, footer.index, facts, footer.state)

    def state_before(self, first: int) -> StreamState:
        """The state before the segment that begins with `first`; LogGapError if its predecessor isn't there."""
        below = [other for other in self.firsts_in(names.folder_of(first - 1)) if other < first]
        footer = self.footer(below[-1]) if below else None
        if footer is None or footer.last != first - 1:
            missing = footer.last + 1 if footer else first - 1
            raise LogGapError(self.volume, self.timeline, missing, self.name_of(missing), f"segment {first}")
        return footer.state

    def check_end(self, sequence: int) -> bool:
        """Called where the segment at `sequence` isn't there: True if it came meanwhile, False if it is yet to come.

        Raises TrimmedError (D2) or LogGapError (D1).
        """
        evidence = self._evidence_beyond(sequence)
        if self.store.size(self.name_of(sequence)) is not None:
            return True
        self._require_kept(sequence)  # read last: a trim writes it before it deletes
        if evidence:
            name = self.name_of(sequence)
            raise LogGapError(self.volume, self.timeline, sequence, f"{self.store.name}/{name}", evidence)
        return False

    def _require_kept(self, sequence: int) -> None:
        """D2."""
        start = self.start().sequence
        if sequence <= start:
            raise TrimmedError(self.volume, self.timeline, sequence, start)

    def _evidence_beyond(self, sequence: int) -> str:
        """What shows that an event at or beyond `sequence` stood in the log; empty if nothing does."""
        last = self.last_first()
        if last is not None and last > sequence:
            return f"segment {self.name_of(last)}"
        data = None
        with suppress(FormatError):  # one that is too large says as little as a damaged one
            data = self.store.get(names.beacon_name(self.volume), RECORD_BYTES_MAX)
        beacon = beacon_beyond(data, self.timeline, sequence)
        return f"a beacon at event {beacon.sequence}" if beacon and beacon.epoch >= self.tail().epoch else ""

    def tail(self) -> StreamState:
        """The state at the stream's end, from the last footer alone."""
        last = self.last_first()
        footer = self.footer(last) if last is not None else None
        return footer.state if footer else self.start()

    def checked_end(self) -> tuple[StreamState, int | None]:
        """As `tail`, with the last segment read whole and made durable (D3), and where that begins; None: no segment.

        Whether the log lost its end is for the publisher to find, who knows what it published.
        """
        last = self.last_first()
        if last is None:
            return self.start(), None
        footer = self._checked(last)
        self.store.settle(self.name_of(last))
        return footer.state, last

    def _checked(self, first: int) -> Footer:
        """The footer of the segment that begins with `first`, every byte checked; a large one isn't held whole."""
        name = self.name_of(first)
        gone = UnavailableError(f"{name} went away from {self.store.name} while it was read")
        size = self.store.size(name)
        if size is None or size <= PIECE_BYTES:
            segment = self.load(first)
            if segment is None:
                raise gone
            return segment.footer

        def read(offset: int, length: int) -> bytes:
            data = self.store.get_range(name, offset, length)
            if data is None:
                raise gone
            return data

        return check_segment(read, self.key_of(first), size)

    def locate(self, sequence: int) -> int:
        """The first number of the segment that holds `sequence`; `sequence` itself if it is the next to come.

        Raises TrimmedError (D2), LogGapError (D1), or LostEndError if the stream ends before.
        """
        self._require_kept(sequence)
        first = self.holder_of(sequence)
        footer = self.footer(first) if first is not None else None
        if first is not None and footer is not None and footer.last >= sequence:
            return first
        if not self.check_end(sequence):
            end = self.tail().sequence
            if sequence > end + 1:
                raise LostEndError(self.volume, self.timeline, sequence, end)
        return sequence
