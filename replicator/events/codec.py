"""A whole event to bytes and back: header, body, checksum, digest.

Invariants
  E1  decode(encode(e)) = e, and encode(decode(b)) = b for every b that decodes (A2, H1).
  E2  Whatever the bytes are, decode returns an event or raises FormatError with where, expected and found; it
      allocates nothing that is longer than its input.

A decoded ChunksWritten holds views into the buffer it came from: keep it no longer than you need it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from replicator._buffer import Buffer
from replicator.events.bodies import Body
from replicator.events.digests import digest128, digest128_parts
from replicator.events.header import HEADER_BYTES, Header, event_crc, pack_header, unpack_header
from replicator.events.layouts import decode_body, encode_body, type_name, type_of
from replicator.events.values import Link, Position


@dataclass(frozen=True, slots=True)
class Event:
    """One record of a stream: header, body, their digest, and the bytes that they are, in one part or several."""

    header: Header
    body: Body
    digest: bytes
    parts: tuple[Buffer, ...] = field(compare=False, repr=False)

    @property
    def encoded(self) -> Buffer:
        """All its bytes as one buffer (a copy where they are in parts: a sink had better write the parts)."""
        return self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)

    @property
    def length_bytes(self) -> int:
        """How many bytes it has."""
        return sum(len(part) for part in self.parts)

    @property
    def link(self) -> Link:
        """Its place in the chain."""
        return Link(self.header.sequence, self.digest)

    @property
    def position(self) -> Position:
        """Its place in the volume's history."""
        return Position(self.header.timeline, self.header.number, self.header.sequence)

    def __str__(self) -> str:
        return f"{type_name(self.header.type)} at {self.position}"


def encode_event(header: Header, body: Body) -> Event:
    """`body` under `header`, as bytes."""
    assert header.type == type_of(body), "the header is of another type"
    parts = encode_body(body)
    length = sum(len(part) for part in parts)
    crc = event_crc(pack_header(header, length, 0), parts)
    whole = (pack_header(header, length, crc), *parts)
    return Event(header, body, digest128_parts(whole), whole)


def decode_event(data: Buffer, where: str = "event") -> Event:
    """The event that `data` is, wholly (E2); `where` names its source in errors."""
    return decode_opened(unpack_header(data, where), digest128(data), data, where)


def decode_opened(header: Header, digest: bytes, data: Buffer, where: str) -> Event:
    """As `decode_event`, where the header was unpacked and the digest computed before (a segment checks all first)."""
    place = f"{where}, volume {header.volume}, timeline {header.timeline}, event {header.sequence}"
    body = decode_body(header.type, memoryview(data)[HEADER_BYTES:], place)
    return Event(header, body, digest, (data,))
