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
  M1  `open_segment` and `check_segment` have checked every byte before they return: header, footer and trailer by
      their crc32c, each event by its own and by the chain up to the footer's state.
  M2  The events of a segment lie in one folder, have consecutive numbers, and belong to one transaction at most.
  M3  A segment is at most SEGMENT_BYTES_MAX long, whatever it holds.

Failure raised: SegmentError with path, volume, sequence number, expected, found.
"""

from __future__ import annotations

import bisect
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
PIECE_BYTES = 4 * MIB  # of a segment that is only checked: few requests to a far store, and little memory

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
class _Trailer:
    """Where the footer is."""

    footer_offset: int
    footer_bytes: int
    footer_crc32c: int
    last: int


def _decode_trailer(data: Buffer, key: SegmentKey, total_bytes: int) -> _Trailer:
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
    return _Trailer(offset, length, footer_crc, last)


def _decode_footer(data: Buffer, key: SegmentKey, trailer: _Trailer) -> Footer:
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


def read_footer(read: Callable[[int, int], Buffer], key: SegmentKey, total_bytes: int) -> tuple[Footer, int]:
    """A segment's footer, and where its events end; `read` takes (offset, length), and may give fewer bytes."""
    trailer = _decode_trailer(read(max(0, total_bytes - TRAILER_BYTES), TRAILER_BYTES), key, total_bytes)
    return _decode_footer(read(trailer.footer_offset, trailer.footer_bytes), key, trailer), trailer.footer_offset


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
    footer, events_end = read_footer(lambda offset, length: view[offset:][:length], key, len(view))
    return Segment(key, footer, _check_events(view[:events_end], key, footer))


def _check_header(data: memoryview, key: SegmentKey) -> None:
    head, crc = bytes(data[: _HEADER.size]), _CRC.unpack_from(data, _HEADER.size)[0]
    if crc32c(head) != crc:
        raise key.wrong(f"a header with crc32c {crc:08x}", f"{crc32c(head):08x}")
    found = _HEADER.unpack(head)
    expected = (_HEADER_MAGIC, _VERSION, 0, key.volume.bytes, key.timeline, key.first, 0)
    if found != expected:
        raise key.wrong(f"a header with {expected}", f"{found}")


def _check_events(data: memoryview, key: SegmentKey, footer: Footer) -> list[_Opened]:
    """Each event's own checksum, number and place, and the chain through all of them; `data` ends with the last one."""
    bounds = _bounds(key, footer, len(data))
    events: list[_Opened] = []
    for i, (begin, end) in enumerate(itertools.pairwise(bounds)):
        events.append(_check_event(data[begin:end], key, begin, key.first + i, events[-1].digest if events else b""))
    _check_end(events[-1].digest, key, footer)
    return events


def check_segment(
    read: Callable[[int, int], Buffer], key: SegmentKey, total_bytes: int, piece_bytes: int = PIECE_BYTES
) -> Footer:
    """A segment's footer, once every byte was checked (M1), a piece at a time; `read` takes (offset, length)."""
    footer, events_end = read_footer(read, key, total_bytes)
    bounds = _bounds(key, footer, events_end)
    digest = b""
    begin, at = 0, 0  # a piece begins with the file's beginning, or with event `at`
    while at < len(bounds) - 1:
        end = max(bisect.bisect_right(bounds, begin + piece_bytes) - 1, at + 1)
        digest = _check_piece(
            read(begin, bounds[end] - begin), begin, bounds[at : end + 1], key, key.first + at, digest
        )
        begin, at = bounds[end], end
    _check_end(digest, key, footer)
    return footer


def _check_piece(data: Buffer, begin: int, bounds: list[int], key: SegmentKey, sequence: int, before: bytes) -> bytes:
    """The digest of the last event in the bytes from `begin` on, all of them checked; the first one is `sequence`."""
    piece, expected = memoryview(data), bounds[-1] - begin
    if len(piece) != expected:
        raise key.wrong(f"{expected} bytes from byte {begin} on", f"{len(piece)}", sequence)
    if begin == 0:
        _check_header(piece[:HEADER_BYTES], key)
    for ordinal, (at, end) in enumerate(itertools.pairwise(bounds)):
        before = _check_event(piece[at - begin : end - begin], key, at, sequence + ordinal, before).digest
    return before


def _bounds(key: SegmentKey, footer: Footer, events_end: int) -> list[int]:
    """Where each event begins, and where the last one ends."""
    bounds: list[int] = [*footer.index.offsets.tolist(), events_end]
    if bounds[0] != HEADER_BYTES:
        raise key.wrong(f"the first event at byte {HEADER_BYTES}", f"{bounds[0]}")
    return bounds


def _check_event(part: memoryview, key: SegmentKey, begin: int, sequence: int, before: bytes) -> _Opened:
    """One event's own checksum, number and place, and that it hangs on `before` (empty: anything)."""
    if len(part) > EVENT_BYTES_MAX:
        raise key.wrong(f"an event of at most {EVENT_BYTES_MAX} bytes", f"{len(part)}", sequence)
    try:
        header = unpack_header(part, f"byte {begin}")
    except FormatError as error:
        raise key.wrong(f"{error.where}: {error.expected}", error.found, sequence) from None
    place = (header.volume, header.timeline, header.sequence)
    if place != (key.volume, key.timeline, sequence):
        raise key.wrong(f"event {sequence} at byte {begin}", f"event {place}", sequence)
    if before and header.previous != before:
        raise key.wrong(f"an event that hangs on {before.hex()}", header.previous.hex(), sequence)
    return _Opened(header, digest128(part), part)


def _check_end(digest: bytes, key: SegmentKey, footer: Footer) -> None:
    """The chain ends where the footer says."""
    if digest != footer.state.digest:
        raise key.wrong(f"a chain that ends with {footer.state.digest.hex()}", digest.hex(), footer.last)


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
