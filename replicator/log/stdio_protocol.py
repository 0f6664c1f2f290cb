"""The protocol in which an object store is served over two pipes: frames and their bodies. Pure.

Spoken by stdio_client (who asks) and stdio_server (`replicator log serve`). Little-endian.

    frame
        0   4   magic    "RPIO"
        4   1   version  1
        5   1   kind     see below
        6   2   zero
        8   4   number   of the request; a reply has that of the request it answers
        12  4   bytes    of the body, at most BODY_BYTES_MAX
        16  4   crc32c   of bytes 0 to 16, and the body
        20  ..  body

    request        body                                answer
    hello          u16 protocol, bool create, text path  welcome, or failed
    create         u32 sink, text name                 none: what fails is told by commit
    write          u32 sink, the bytes                 none
    commit         u32 sink                            done: 1 stands, 0 the name was taken
    abort          u32 sink                            none
    put            text name, blob                     done
    put_if_absent  text name, blob                     done: 1 or 0
    get            text name, u64 limit                done: its size, then data … (none above limit), or absent
    get_range      text name, u64 offset, u64 bytes    the same, for the part
    size           text name                           done: the size, or absent
    children       text prefix                         done: their count, data …: the names, each ending with \\n
    delete, drop_folder, settle, sweep: text name      done

    answer         body
    welcome        u16 protocol, bool append_only, text path
    done           u64 value
    absent         none
    data           bytes; the last one of an answer is shorter than DATA_BYTES, perhaps empty
    failed         text kind, text message, text mend ("" for none)

A client asks one thing at a time; `create`, `write` and `abort` have no answer, so that a segment streams without
waiting. Whoever doesn't understand the other ends the connection: there is no way back into step.

Invariants
  F1  A frame is taken only after its magic, version, length and checksum were found right.
  F2  No body is longer than BODY_BYTES_MAX, and nothing is allocated for one that says it is.
  F3  Decoding raises FormatError and nothing else, whatever the bytes are.
  F4  A failure can be sent whatever its text is, and what was received of one is printable and at most TEXT_MAX long.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from replicator._buffer import Buffer
from replicator.errors import (
    ConflictError,
    FormatError,
    NoSpaceError,
    NotFoundError,
    ReplicatorError,
    UnavailableError,
    UsageError,
)
from replicator.events.digests import crc32c
from replicator.events.fields import BLOB, BOOL, TEXT, U16, U32, U64, FieldCodec, FieldReader
from replicator.log.errors import ForbiddenError, PutUnknownError
from replicator.units import KIB, MIB

PROTOCOL = 1
DATA_BYTES = MIB
BODY_BYTES_MAX = DATA_BYTES + 4 * KIB  # a write's data and its sink; a small object has 64 KiB
TEXT_MAX = 2000  # characters of a message that crosses
NOT_MOUNTED = "is its disk mounted on the far host?"
"""The mend where a log's marker isn't found, at both ends."""
LISTING_BYTES_MAX = 64 * MIB  # of all names in one folder: two million of them
_HEAD = struct.Struct("<4sBBHII")
_CRC = struct.Struct("<I")
HEAD_BYTES = _HEAD.size + _CRC.size
MAGIC, _VERSION = b"RPIO", 1
NUMBERS = 1 << 32  # of requests, and of sinks: after the last one they begin again


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 1
    CREATE = 2
    WRITE = 3
    COMMIT = 4
    ABORT = 5
    PUT = 6
    PUT_IF_ABSENT = 7
    GET = 8
    GET_RANGE = 9
    SIZE = 10
    CHILDREN = 11
    DELETE = 12
    DROP_FOLDER = 13
    SETTLE = 14
    SWEEP = 15
    WELCOME = 128
    DONE = 129
    ABSENT = 130
    DATA = 131
    FAILED = 132


_BODIES: dict[Kind, tuple[FieldCodec, ...]] = {
    Kind.HELLO: (U16, BOOL, TEXT),
    Kind.CREATE: (U32, TEXT),
    Kind.COMMIT: (U32,),
    Kind.ABORT: (U32,),
    Kind.PUT: (TEXT, BLOB),
    Kind.PUT_IF_ABSENT: (TEXT, BLOB),
    Kind.GET: (TEXT, U64),
    Kind.GET_RANGE: (TEXT, U64, U64),
    Kind.SIZE: (TEXT,),
    Kind.CHILDREN: (TEXT,),
    Kind.DELETE: (TEXT,),
    Kind.DROP_FOLDER: (TEXT,),
    Kind.SETTLE: (TEXT,),
    Kind.SWEEP: (TEXT,),
    Kind.WELCOME: (U16, BOOL, TEXT),
    Kind.DONE: (U64,),
    Kind.ABSENT: (),
    Kind.FAILED: (TEXT, TEXT, TEXT),
}
_ERRORS: tuple[type[ReplicatorError], ...] = (
    UsageError,
    ConflictError,
    NotFoundError,
    NoSpaceError,
    PutUnknownError,
    ForbiddenError,
    UnavailableError,
)


@dataclass(frozen=True, slots=True)
class Head:
    """A frame's head, checked but for its checksum, which covers the body."""

    kind: Kind
    number: int
    body_bytes: int
    crc32c: int
    head_crc32c: int

    def check(self, body: Buffer) -> None:
        """FormatError unless the checksum is that of head and body (F1)."""
        found = crc32c(body, self.head_crc32c) if len(body) else self.head_crc32c
        if found != self.crc32c:
            raise FormatError(f"{self.kind.name.lower()} frame", f"crc32c {self.crc32c:08x}", f"{found:08x}")


def encode_head(kind: Kind, number: int, parts: list[Buffer]) -> bytes:
    """The head of a frame whose body is `parts`, one behind the other."""
    length = sum(len(part) for part in parts)
    assert length <= BODY_BYTES_MAX, "a body outgrew its frame"
    head = _HEAD.pack(MAGIC, _VERSION, kind, 0, number, length)
    crc = crc32c(head)
    for part in parts:
        crc = crc32c(part, crc) if len(part) else crc
    return head + _CRC.pack(crc)


def decode_head(data: Buffer) -> Head:
    """The head in the first HEAD_BYTES of a frame (F1, F2)."""
    if len(data) != HEAD_BYTES:
        raise FormatError("frame", f"a head of {HEAD_BYTES} bytes", f"{len(data)}")
    magic, version, kind, zero, number, length = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise FormatError("frame", repr(MAGIC), repr(bytes(data)))
    if version != _VERSION or zero:
        raise FormatError("frame", f"version {_VERSION}", f"{version}", mend="install one version at both ends")
    if length > BODY_BYTES_MAX:
        raise FormatError("frame", f"at most {BODY_BYTES_MAX} bytes", f"{length}")
    try:
        known = Kind(kind)
    except ValueError:
        raise FormatError("frame", "a known kind", f"{kind}") from None
    return Head(known, number, length, _CRC.unpack_from(data, _HEAD.size)[0], crc32c(bytes(data[: _HEAD.size])))


def encode_body(kind: Kind, *values: Any) -> bytes:
    """The body of every kind but write and data."""
    return b"".join(codec.write(value) for codec, value in zip(_BODIES[kind], values, strict=True))


def decode_body(kind: Kind, body: Buffer) -> tuple[Any, ...]:
    """Its values (F3)."""
    if kind not in _BODIES:
        raise FormatError("frame", "a frame with fields", kind.name.lower())
    reader = FieldReader(body, f"{kind.name.lower()} frame")
    values = tuple(codec.read(reader) for codec in _BODIES[kind])
    reader.finish()
    return values


def encode_failure(error: ReplicatorError) -> bytes:
    """A failed answer's body (F4)."""
    message, mend = (sendable(text[:TEXT_MAX]) for text in (error.message, error.mend or ""))
    return encode_body(Kind.FAILED, error.kind, message, mend)


def sendable(text: str) -> str:
    """`text`, with an escape for what has no UTF-8: a byte of a file's name, say."""
    return text.encode("utf-8", "backslashreplace").decode()


def printable(text: str) -> str:
    """`text` without control characters: what another host wrote steers no terminal, and is one line."""
    return "".join(each if each.isprintable() else " " for each in text)


def decode_failure(body: Buffer, where: str) -> ReplicatorError:
    """The error that a failed answer tells, with where it came from (F4)."""
    kind, *texts = decode_body(Kind.FAILED, body)
    message, mend = (printable(text[:TEXT_MAX]) for text in texts)
    told = f"{where}: {message}"
    for each in _ERRORS:
        if each.kind == kind:
            return each(told, mend=mend or None)
    if kind == FormatError.kind:
        return FormatError(where, "what the far end understands", message, mend=mend or None)
    return ReplicatorError(told, mend=mend or None)


def read_frame(read: Callable[[int], Buffer]) -> tuple[Head, Buffer] | None:
    """The next frame of a stream, whole; None at its end. `read` gives so many bytes, or fewer at the end."""
    first = read(HEAD_BYTES)
    if not len(first):
        return None
    head = decode_head(first)
    body = read(head.body_bytes)
    if len(body) != head.body_bytes:
        raise FormatError("frame", f"a body of {head.body_bytes} bytes", f"{len(body)}")
    head.check(body)
    return head, body
