"""The 128 bytes before each body: who, where in the stream, what came before, and what the stream has come to.

Little-endian.

    offset  size  field
    0       4     magic           "RPEV"
    4       1     version         1
    5       1     type            see `layouts`
    6       2     flags           0; bit 0 is kept for an encrypted body; unknown flags are refused
    8       4     body_bytes      what follows the header
    12      4     crc32c          of the whole event, with these four bytes as zeros
    16      16    volume          UUID
    32      4     timeline
    36      4     epoch           the publisher's; 0 in the first event of a timeline
    40      8     sequence        1, 2, 3 ... within the timeline
    48      8     number          the open transaction, or else the last committed one (0: none)
    56      8     began           sequence number of the open transaction's TransactionBegan; 0 outside
    64      8     committed       sequence number of the timeline's last TransactionCommitted; 0: none
    72      8     cursor          the first chunk that the present phase may still touch
    80      8     chunks          that the open transaction touches so far
    88      8     pages           that it wrote so far
    96      8     stored_bytes    of its frames so far
    104     1     phase           0 outside, 1 began, 2 discards, 3 zeroes, 4 writes
    105     3     zero
    108     4     key_id          0: not encrypted; kept for the key of an encrypted body
    112     16    previous        digest of the event before; of the fork's commit in a TimelineStarted

`number` to `phase` are the running counts: the stream *after* this event. So the last event alone tells a
publisher where to go on, and which two older events to fetch for the names (`began`, `committed`).

Invariants
  H1  Magic, version, flags, lengths and the crc32c are checked before anything else is believed.
  H2  digest(event) = xxh3-128 of its encoded bytes, which hold `previous`: a digest names the whole history.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from uuid import UUID

from replicator._buffer import Buffer
from replicator.errors import FormatError
from replicator.events.digests import crc32c
from replicator.events.values import (
    CHUNK_LIMIT,
    TIMELINE_LIMIT,
    Phase,
    require_digest,
    require_number,
    require_range,
)
from replicator.units import KIB, MIB

MAGIC = b"RPEV"
VERSION = 1
HEADER_BYTES = 128
EVENT_BYTES_MAX = MIB + 256 * KIB  # 1 MiB of frames, runs or hashes, and their tables
_LAYOUT = struct.Struct("<4sBBHII16sIIQQQQQQQQBHBI16s")
_CRC_OFFSET = 12


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before a body; see the table."""

    type: int
    volume: UUID
    timeline: int
    epoch: int
    sequence: int
    number: int
    began: int
    committed: int
    cursor: int
    chunks: int
    pages: int
    stored_bytes: int
    phase: Phase
    previous: bytes

    def __post_init__(self) -> None:
        require_range(self.timeline, 1, TIMELINE_LIMIT, "Header.timeline")
        for name in ("number", "began", "committed", "chunks", "pages", "stored_bytes"):
            require_number(getattr(self, name), f"Header.{name}")
        require_range(self.sequence, 1, 1 << 63, "Header.sequence")
        require_range(self.cursor, 0, CHUNK_LIMIT + 1, "Header.cursor")
        require_digest(self.previous, "Header.previous")


def pack_header(header: Header, body_bytes: int, crc: int) -> bytes:
    """The 128 bytes."""
    return _LAYOUT.pack(
        MAGIC, VERSION, header.type, 0, body_bytes, crc, header.volume.bytes, header.timeline, header.epoch,
        header.sequence, header.number, header.began, header.committed, header.cursor, header.chunks, header.pages,
        header.stored_bytes, header.phase, 0, 0, 0, header.previous,
    )  # fmt: skip


def event_length(data: Buffer, where: str) -> int:
    """How long the event is that begins `data`; FormatError if none can begin so. The crc isn't checked yet."""
    if len(data) < HEADER_BYTES:
        raise FormatError(where, f"a header of {HEADER_BYTES} bytes", f"{len(data)} bytes")
    magic, version, _, flags, body_bytes = struct.unpack_from("<4sBBHI", data)
    for name, expected, found in (("magic", MAGIC, magic), ("version", VERSION, version), ("flags", 0, flags)):
        if expected != found:
            raise FormatError(f"{where}, {name}", repr(expected), repr(found))
    if body_bytes > EVENT_BYTES_MAX - HEADER_BYTES:
        raise FormatError(f"{where}, body_bytes", f"at most {EVENT_BYTES_MAX - HEADER_BYTES}", str(body_bytes))
    return HEADER_BYTES + int(body_bytes)


def unpack_header(data: Buffer, where: str) -> Header:
    """The header of the event that is exactly `data` (H1)."""
    length = event_length(data, where)
    if length != len(data):
        raise FormatError(where, f"an event of {length} bytes", f"{len(data)} bytes")
    fields = _LAYOUT.unpack_from(data)
    found = event_crc(bytes(data[:HEADER_BYTES]), [memoryview(data)[HEADER_BYTES:]])
    if found != fields[5]:
        raise FormatError(f"{where}, crc32c", f"{fields[5]:08x}", f"{found:08x}")
    phase, zero2, zero1, key_id, previous = fields[17:]
    if zero2 or zero1 or key_id or phase > Phase.WRITES:
        raise FormatError(f"{where}, phase and key", "a phase, zeros, key id 0", f"{phase}, {zero2}, {zero1}, {key_id}")
    try:
        return Header(*(fields[2], UUID(bytes=fields[6]), *fields[7:17], Phase(phase), previous))
    except FormatError as error:
        raise FormatError(f"{where}, {error.where}", error.expected, error.found) from None


def event_crc(head: bytes, parts: list[Buffer]) -> int:
    """The crc32c of an event with `head` as its header, its own field taken as zeros."""
    crc = crc32c(head[:_CRC_OFFSET] + b"\0\0\0\0" + head[_CRC_OFFSET + 4 :])
    for part in parts:
        crc = crc32c(part, crc) if len(part) else crc
    return crc
