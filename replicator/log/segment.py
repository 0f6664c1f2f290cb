"""The file format of a segment: a run of whole events of one stream, and a footer that makes it searchable.

Little-endian.

    header, 48 bytes
        0   4   magic      "RPSG"
        4   2   version    1
        6   2   flags      0; unknown ones are refused
        8   16  volume     UUID
        24  4   timeline
        28  8   first      sequence number of the first event
        36  8   zero
        44  4   crc32c     of bytes 0 to 44
    events, one behind the other (events/header)
    footer
        0   16  counts     events, frames, chunks, runs, u32 each
        16  ..  index      see `index`
        ..  ..  state      the stream's state after the last event (events/state), u32 length before it
    trailer, 48 bytes
        0   4   magic      "RPSE"
        4   2   version    1
        6   2   flags      0
        8   4   footer_offset
        12  4   footer_bytes
        16  4   footer_crc32c
        20  8   first
        28  8   last       sequence number of the last event
        36  4   total_bytes
        40  4   zero
        44  4   crc32c     of bytes 0 to 44

Invariants
  M1  `open_segment` has checked every byte before it returns: header, footer and trailer by their crc32c, each event by
      its own and by the chain up to the footer's state.
  M2  The events of a segment lie in one folder, have consecutive numbers, and belong to one transaction at most.
  M3  A segment is at most SEGMENT_BYTES_MAX long, whatever it holds.

Failure raised: SegmentError with path, volume, sequence number, expected, found.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from uuid import UUID

from replicator._buffer import Buffer
from replicator.errors import FormatError
from replicator.events.codec import Event, decode_event, decode_opened
from replicator.events.digests import crc32c, digest128
from replicator.events.fields import BLOB, U32, FieldReader
from replicator.events.header import EVENT_BYTES_MAX, Header, unpack_header
from replicator.events.state import StreamState, decode_state, encode_state
from replicator.log.errors import SegmentError
from replicator.log.index import IndexBuilder, SegmentIndex, decode_index
from replicator.log.names import FOLDER_NUMBERS, folder_of
from replicator.log.objects import ObjectSink
from replicator.units import MIB

ROLL_BYTES = 64 * MIB
ROLL_CHUNKS = 1 << 18  # bounds the index to 8 MiB where chunks shrink to nothing
SEGMENT_BYTES_MAX = 2 * ROLL_BYTES  # events, one event over, and the largest footer, rounded up

_HEADER = struct.Struct("<4sHH16sIQQ")
_TRAILER = struct.Struct("<4sHHIIIQQII")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CRC.size
TRAILER_BYTES = _TRAILER.size + _CRC.size
_HEADER_MAGIC, _TRAILER_MAGIC, _VERSION = b"RPSG", b"RPSE", 1


@dataclass(frozen=True, slots=True)
class SegmentKey:
    """Which segment it must be: errors name it so."""

    path: str
    volume: UUID
    timeline: int
    first: int

    def wrong(self, expected: str, found: str, sequence: int | None = None) -> SegmentError:
        """The error for this segment."""
        return SegmentError(self.path, self.volume, self.first if sequence is None else sequence, expected, found)


@dataclass(frozen=True, slots=True)
class Footer:
    """The index and the state at a segment's end; `last` is its last event's number."""

    index: SegmentIndex
    state: StreamState

    @property
    def last(self) -> int:
        """The last event's sequence number."""
        return self.state.sequence


class SegmentBuilder:
    """Writes one segment into a sink, event by event."""

    def __init__(self, sink: ObjectSink, before: StreamState) -> None:
        self._sink = sink
        self._index = IndexBuilder()
        self._first = before.sequence + 1
        self.state = before
        head = _HEADER.pack(_HEADER_MAGIC, _VERSION, 0, before.volume.bytes, before.timeline, self._first, 0)
        self.length_bytes = HEADER_BYTES
        sink.write([head + _CRC.pack(crc32c(head))])

    def add(self, event: Event, after: StreamState) -> None:
        """Write `event`, which leads to `after`."""
        self._index.add(event, self.length_bytes)
        self._sink.write(list(event.parts))
        self.length_bytes += event.length_bytes
        self.state = after

    @property
    def full(self) -> bool:
        """Whether the next event must begin another segment (M2, M3)."""
        crowded = max(self._index.chunk_count, self._index.run_count) >= ROLL_CHUNKS
        boundary = (self.state.sequence + 1) % FOLDER_NUMBERS == 0
        return self.length_bytes >= ROLL_BYTES or crowded or boundary

    def commit(self) -> bool:
        """Write footer and trailer, and put it under its name."""
        index = self._index.build()
        counts = b"".join(U32.write(count) for count in index.counts)
        footer = b"".join([counts, *index.encode(), BLOB.write(encode_state(self.state))])
        total = self.length_bytes + len(footer) + TRAILER_BYTES
        trailer = _TRAILER.pack(
            _TRAILER_MAGIC, _VERSION, 0, self.length_bytes, len(footer), crc32c(footer), self._first,
            self.state.sequence, total, 0,
        )  # fmt: skip
        self._sink.write([footer, trailer + _CRC.pack(crc32c(trailer))])
        return self._sink.commit()

    def abort(self) -> None:
        """Drop it."""
        self._sink.abort()


@dataclass(frozen=True, slots=True)
class TrailerFields:
    """Where the footer is."""

    footer_offset: int
    footer_bytes: int
    footer_crc32c: int
    last: int


def decode_trailer(data: Buffer, key: SegmentKey, total_bytes: int) -> TrailerFields:
    """The last TRAILER_BYTES of a segment of `total_bytes`."""
    smallest = HEADER_BYTES + TRAILER_BYTES
    if len(data) != TRAILER_BYTES or not smallest < total_bytes <= SEGMENT_BYTES_MAX:
        raise key.wrong(f"a segment of {smallest} to {SEGMENT_BYTES_MAX} bytes", f"{total_bytes} bytes")
    head, crc = bytes(data[: _TRAILER.size]), _CRC.unpack_from(data, _TRAILER.size)[0]
    if crc32c(head) != crc:
        raise key.wrong(f"a trailer at byte {total_bytes - TRAILER_BYTES} with crc32c {crc:08x}", f"{crc32c(head):08x}")
    magic, version, flags, offset, length, footer_crc, first, last, total, zero = _TRAILER.unpack(head)
    found = (magic, version, flags, first, total, zero, offset + length + TRAILER_BYTES)
    expected = (_TRAILER_MAGIC, _VERSION, 0, key.first, total_bytes, 0, total_bytes)
    if found != expected:
        raise key.wrong(f"a trailer with {expected}", f"{found}")
    if offset < HEADER_BYTES or not first <= last or folder_of(first) != folder_of(last):
        raise key.wrong("events of one folder", f"{first} to {last}, footer at {offset}")
    return TrailerFields(offset, length, footer_crc, last)


def decode_footer(data: Buffer, key: SegmentKey, trailer: TrailerFields) -> Footer:
    """The footer that `trailer` points to."""
    found = crc32c(data)
    if found != trailer.footer_crc32c or len(data) != trailer.footer_bytes:
        raise key.wrong(f"a footer with crc32c {trailer.footer_crc32c:08x}", f"{found:08x} in {len(data)} bytes")
    reader = FieldReader(data, "footer")
    try:
        events, frames, chunks, runs = (int(U32.read(reader)) for _ in range(4))
        index = decode_index(reader, (events, frames, chunks, runs), trailer.footer_offset)
        state = decode_state(BLOB.read(reader), "footer, state")
        reader.finish()
    except FormatError as error:
        raise key.wrong(f"{error.where}: {error.expected}", error.found) from None
    found_place = (state.volume, state.timeline, state.sequence, events)
    expected = (key.volume, key.timeline, trailer.last, trailer.last - key.first + 1)
    if found_place != expected:
        raise key.wrong(f"a state and count of {expected}", f"{found_place}", trailer.last)
    return Footer(index, state)


@dataclass(frozen=True, slots=True)
class _Opened:
    """An event that was checked and not yet decoded."""

    header: Header
    digest: bytes
    data: memoryview


class Segment:
    """A segment whose every byte was checked (M1)."""

    def __init__(self, key: SegmentKey, footer: Footer, events: list[_Opened]) -> None:
        self.key = key
        self.footer = footer
        self._events = events

    def events_from(self, sequence: int) -> Iterator[Event]:
        """Its events from `sequence` on, decoded one by one."""
        for opened in self._events[max(0, sequence - self.key.first) :]:
            yield decode_opened(opened.header, opened.digest, opened.data, self.key.path)


def open_segment(data: Buffer, key: SegmentKey) -> Segment:
    """The segment that `data` is, wholly (M1)."""
    view = memoryview(data)
    if len(view) <= HEADER_BYTES + TRAILER_BYTES:
        raise key.wrong(f"more than {HEADER_BYTES + TRAILER_BYTES} bytes", f"{len(view)} bytes")
    _check_header(view[:HEADER_BYTES], key)
    trailer = decode_trailer(view[-TRAILER_BYTES:], key, len(view))
    footer = decode_footer(view[trailer.footer_offset : -TRAILER_BYTES], key, trailer)
    return Segment(key, footer, _check_events(view[: trailer.footer_offset], key, footer))


def _check_header(data: memoryview, key: SegmentKey) -> None:
    head, crc = bytes(data[: _HEADER.size]), _CRC.unpack_from(data, _HEADER.size)[0]
    if crc32c(head) != crc:
        raise key.wrong(f"a header with crc32c {crc:08x}", f"{crc32c(head):08x}")
    found = _HEADER.unpack(head)
    expected = (_HEADER_MAGIC, _VERSION, 0, key.volume.bytes, key.timeline, key.first, 0)
    if found != expected:
        raise key.wrong(f"a header with {expected}", f"{found}")


def _check_events(data: memoryview, key: SegmentKey, footer: Footer) -> list[_Opened]:
    """Each event's own checksum, number and place, and the chain through all of them."""
    offsets = [*footer.index.offsets.tolist(), len(data)]
    if offsets[0] != HEADER_BYTES:
        raise key.wrong(f"the first event at byte {HEADER_BYTES}", f"{offsets[0]}")
    events: list[_Opened] = []
    for i, (begin, end) in enumerate(itertools.pairwise(offsets)):
        sequence = key.first + i
        part = data[begin:end]
        if len(part) > EVENT_BYTES_MAX:
            raise key.wrong(f"an event of at most {EVENT_BYTES_MAX} bytes", f"{len(part)}", sequence)
        try:
            header = unpack_header(part, f"byte {begin}")
        except FormatError as error:
            raise key.wrong(f"{error.where}: {error.expected}", error.found, sequence) from None
        place = (header.volume, header.timeline, header.sequence)
        if place != (key.volume, key.timeline, sequence):
            raise key.wrong(f"event {sequence} at byte {begin}", f"event {place}", sequence)
        if events and header.previous != events[-1].digest:
            raise key.wrong(f"an event that hangs on {events[-1].digest.hex()}", header.previous.hex(), sequence)
        events.append(_Opened(header, digest128(part), part))
    if events[-1].digest != footer.state.digest:
        raise key.wrong(f"a chain that ends with {footer.state.digest.hex()}", events[-1].digest.hex(), footer.last)
    return events


def read_facts(
    read: Callable[[int, int], bytes], key: SegmentKey, index: SegmentIndex, events_end: int
) -> tuple[Event, ...]:
    """The events without chunks, each checked by its own checksum and place; `read` takes (offset, length)."""
    data = {*index.frames["event"].tolist(), *index.runs["event"].tolist()}
    bounds = [*index.offsets.tolist(), events_end]
    facts = []
    for ordinal, (begin, end) in enumerate(itertools.pairwise(bounds)):
        if ordinal in data:
            continue
        sequence = key.first + ordinal
        if end - begin > EVENT_BYTES_MAX:
            raise key.wrong(f"an event of at most {EVENT_BYTES_MAX} bytes", f"{end - begin}", sequence)
        try:
            event = decode_event(read(begin, end - begin), f"byte {begin}")
        except FormatError as error:
            raise key.wrong(f"{error.where}: {error.expected}", error.found, sequence) from None
        header = event.header
        if (header.volume, header.timeline, header.sequence) != (key.volume, key.timeline, sequence):
            raise key.wrong(f"event {sequence} at byte {begin}", str(event), sequence)
        facts.append(event)
    return tuple(facts)
