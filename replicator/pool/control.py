"""The control protocol's frames: how calls, answers and typed errors travel between a pool's owner and its clients.

Beneath pool/control_values (what the calls say), pool/remote (the client) and exporter/control (the owner). Pure.

    offset   size   field
    0        4      magic "RPCT"
    4        2      version of this layout: 1
    6        2      kind: 1 = request, 2 = answer, 3 = error
    8        8      call: counts a connection's requests; the answer carries the same number
    16       4      length of the body
    20       4      crc32c of the 20 bytes before, and of the body
    24       n      body: msgpack

Little-endian.

    request's body   [method, arguments]
    answer's body    the result
    error's body     [type, message, mend or nil, details]     the type's name stands in _ERRORS

The first call is `hello`, whose form never changes. Each side says which versions of the calls it speaks; the owner's
version is the one spoken, if the client knows it: a newer client adopts an older owner, a newer owner is refused.

Invariants
  C1  However a stream is split, the frames are the same; what isn't a frame is a FormatError that ends the stream.
  C2  A stream keeps no more than one frame (its limit) and what one call of `receive` brought.
  C3  error_of(body_of_error(e)) has e's type, message and mend; a type that the client doesn't know comes as the
      nearest one that it does.

Failures: FormatError, ConflictError (a newer owner).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

import google_crc32c
import msgspec

from replicator._buffer import Buffer
from replicator.errors import (
    ConflictError,
    DamageError,
    DeviceError,
    FormatError,
    NoSpaceError,
    NotFoundError,
    ReplicatorError,
    SocketError,
    UnavailableError,
    UsageError,
)
from replicator.pdata.transaction import BrokenPoolError
from replicator.pool.interface import StaleSwitchError
from replicator.units import MIB

MAGIC = b"RPCT"
LAYOUT_VERSION = 1
PROTOCOL_VERSION = 1
"""The newest version of the calls that this program speaks."""

OLDEST_PROTOCOL_VERSION = 1
"""The oldest owner that this program can still adopt."""

FRAME_LIMIT_BYTES = 64 * MIB
"""A transaction's largest commit: a million mappings with their blocks are 16 MiB, 100,000 catalogue rows 30 MiB."""

HELLO_LIMIT_BYTES = 4096
"""Before it has said who it is, nobody makes us keep more than this."""

_HEADER = struct.Struct("<4sHHQII")
_SUMMED_BYTES = 20
_TEXT_LIMIT = 16 << 10  # of a message: what explains an error fits, and a flood doesn't
Result = TypeVar("Result")


class Kind(IntEnum):
    """What a frame is."""

    REQUEST = 1
    ANSWER = 2
    ERROR = 3


@dataclass(frozen=True, slots=True)
class Frame:
    """One message: what it is, which call it belongs to, and its msgpack body."""

    kind: Kind
    call: int
    body: bytes

    def pack(self) -> bytes:
        """The frame's bytes."""
        assert len(self.body) <= FRAME_LIMIT_BYTES
        head = _HEADER.pack(MAGIC, LAYOUT_VERSION, self.kind, self.call, len(self.body), 0)[:_SUMMED_BYTES]
        return head + _sum(head, self.body).to_bytes(4, "little") + self.body


class FrameStream:
    """Bytes in, frames out (C1, C2)."""

    def __init__(self, where: str, limit_bytes: int = FRAME_LIMIT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self._where = where
        self._buffer = bytearray()
        self._failure: FormatError | None = None

    @property
    def is_between_frames(self) -> bool:
        """Whether the stream may end here without cutting a frame short."""
        return not self._buffer

    def receive(self, data: Buffer) -> list[Frame]:
        """The frames that `data` completes; rubbish behind them is told by `check`, or at the next `receive`."""
        self.check()
        self._buffer += data
        frames: list[Frame] = []
        try:
            while (frame := self._next()) is not None:
                frames.append(frame)
        except FormatError as error:
            self._failure = error
            if not frames:
                raise
        return frames

    def check(self) -> None:
        """FormatError if what came behind the last frame can't become one."""
        if self._failure is not None:
            raise self._failure

    def _next(self) -> Frame | None:
        if len(self._buffer) < _HEADER.size:
            self._check_beginning()
            return None
        magic, version, kind, call, length, found = _HEADER.unpack_from(self._buffer)
        self._expect("magic", MAGIC, magic)
        self._expect("layout version", LAYOUT_VERSION, version)
        if kind not in list(Kind):
            raise FormatError(self._where, "a request, an answer or an error", f"kind {kind}")
        if length > self.limit_bytes:
            raise FormatError(self._where, f"a body of at most {self.limit_bytes} bytes", str(length))
        end = _HEADER.size + length
        if len(self._buffer) < end:
            return None
        body = bytes(memoryview(self._buffer)[_HEADER.size : end])
        self._expect("checksum", _sum(bytes(self._buffer[:_SUMMED_BYTES]), body), found)
        del self._buffer[:end]
        return Frame(Kind(kind), call, body)

    def _check_beginning(self) -> None:
        """Somebody who speaks another protocol is told at its first byte, not after 24 of them."""
        seen = bytes(self._buffer[: len(MAGIC)])
        if seen != MAGIC[: len(seen)]:
            self._expect("magic", MAGIC, seen)

    def _expect(self, field: str, expected: object, found: object) -> None:
        if expected != found:
            raise FormatError(self._where, f"{field} {expected!r}", repr(found))


def _sum(head: bytes, body: bytes) -> int:
    return int(google_crc32c.extend(google_crc32c.value(head), body))


class _Request(msgspec.Struct, array_like=True, frozen=True):
    method: str
    arguments: msgspec.Raw


def body_of_request(method: str, arguments: object) -> bytes:
    """A request's body; the arguments are one of control_values' structs."""
    return msgspec.msgpack.encode((method, arguments))


def read_request(body: bytes) -> tuple[str, bytes]:
    """(method, its arguments still packed); FormatError for what is none."""
    request = read_body(body, _Request, "a control request")
    return request.method, bytes(request.arguments)


def read_body(body: bytes, kind: type[Result], where: str) -> Result:
    """The value of `kind` that `body` holds; FormatError for anything else."""
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.MsgspecError, ReplicatorError, RecursionError, UnicodeDecodeError, MemoryError) as error:
        raise FormatError(where, getattr(kind, "__name__", str(kind)), str(error)[:200] or "nothing") from error


# -- errors --------------------------------------------------------------------------------------------------------

_ERRORS: dict[str, type[ReplicatorError]] = {
    each.__name__: each
    for each in (
        ReplicatorError,
        UsageError,
        DamageError,
        FormatError,
        ConflictError,
        StaleSwitchError,
        NotFoundError,
        NoSpaceError,
        DeviceError,
        SocketError,
        UnavailableError,
        BrokenPoolError,
    )
}


class _Error(msgspec.Struct, array_like=True, frozen=True):
    type: str
    message: str
    mend: str | None
    details: list[str | int]


def body_of_error(error: ReplicatorError) -> bytes:
    """An error's body: the nearest type that clients know, what it says, and what its class is made of."""
    name = next(each.__name__ for each in type(error).__mro__ if _ERRORS.get(each.__name__) is each)
    details: list[Any] = []
    if isinstance(error, FormatError):
        details = [error.where[:_TEXT_LIMIT], error.expected[:_TEXT_LIMIT], error.found[:_TEXT_LIMIT]]
    elif isinstance(error, DeviceError):
        details = [error.what[:_TEXT_LIMIT], error.offset_bytes, error.errno]
    mend = None if error.mend is None else error.mend[:_TEXT_LIMIT]
    return msgspec.msgpack.encode(_Error(name, error.message[:_TEXT_LIMIT], mend, details))


def error_of(body: bytes) -> ReplicatorError:
    """The error that a body stands for (C3)."""
    found = read_body(body, _Error, "a control error")
    kind = _ERRORS.get(found.type, ReplicatorError)
    made: ReplicatorError
    if issubclass(kind, FormatError):
        where, expected, what = ([str(each) for each in found.details] + [""] * 3)[:3]
        made = kind(where, expected, what, mend=found.mend)
    elif issubclass(kind, DeviceError):
        numbers = [each for each in found.details if isinstance(each, int)]
        offset, number = (*numbers, 0, 0)[:2]
        made = kind(str(found.details[0]) if found.details else "", offset, number, "", mend=found.mend)
    else:
        made = kind(found.message, mend=found.mend)
    made.message = found.message
    return made


# -- versions ------------------------------------------------------------------------------------------------------


class HelloAsked(msgspec.Struct, frozen=True):
    """Who calls; sent first on every connection. Fields are only ever added, with a default."""

    version: int
    pid: int
    role: str = "own"


class HelloAnswer(msgspec.Struct, frozen=True):
    """Who has the pool: its process, who started it ("agent", "receiver", "own"), and what it was started with."""

    version: int
    pid: int
    started_by: str
    settings: dict[str, str]
    pool: str
    block_bytes: int
    instance: str


def spoken_version(owner_version: int, owner_pid: int, own_version: int = PROTOCOL_VERSION) -> int:
    """The version to speak with that owner; ConflictError when it is newer, or older than we remember."""
    if owner_version > own_version:
        raise ConflictError(
            f"the pool is open in process {owner_pid}, which speaks control protocol {owner_version}; this program"
            f" knows {own_version}",
            mend="update this program to the owner's release; or stop the owner, and start it from this release",
        )
    if owner_version < OLDEST_PROTOCOL_VERSION:
        raise ConflictError(
            f"the pool is open in process {owner_pid}, which speaks control protocol {owner_version}, older than any"
            f" that this program knows ({OLDEST_PROTOCOL_VERSION})",
            mend="stop the owner, and start it from this release",
        )
    return owner_version
