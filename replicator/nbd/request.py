"""Requests of the transmission phase: packed by a client, parsed by the buffer and validated by a server.

    offset  size  field
    0       4     magic 0x25609513
    4       2     command flags
    6       2     command
    8       8     cookie: the client's, returned in the reply
    16      8     offset
    24      4     length
    28      length bytes of data, of a WRITE only

Big-endian. A server that answers some hundred thousand of these a second can't afford an object each, so magic,
flags and command are read as one 64-bit *head*; what is left of it without the magic is the *kind*,
flags << 16 | command: 0 is a READ without flags, 1 a WRITE without flags. The fast path compares kinds and knows
that all else needs `validate`.

parse_requests takes 0.3 µs a request. Where even that is too much: REQUEST.iter_unpack over the whole headers of a
buffer takes 0.12, and is right as long as each head is REQUEST_HEAD (a READ); the first other one ends it.

Invariants
  R1  parse_requests takes whole requests only, and takes the same ones however the stream is split.
  R2  A wrong magic is raised when it is the first in the buffer, so that all requests before it are answered.
  R3  validate answers 0 only for a request that may be carried out as it stands: in range, allowed, of known flags.

Decided where the specification leaves a choice: a request of no bytes is EINVAL, as with nbdkit; a READ or WRITE
above 32 MiB is EINVAL (with DF, EOVERFLOW); EPERM for writing to a read-only export comes before any look at the range;
writing beyond the end is ENOSPC, anything else beyond it EINVAL; FAST_ZERO with NO_HOLE is ENOTSUP, since to keep
blocks allocated they have to be written; FUA is accepted with every command.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TypeAlias

from replicator._buffer import Buffer
from replicator.nbd import protocol as p
from replicator.nbd.export import Session
from replicator.nbd.failures import NbdFormatError

REQUEST_FIELDS = struct.Struct("!IHHQQI")  # magic, flags, command, cookie, offset, length
REQUEST = struct.Struct("!QQQI")  # head, cookie, offset, length
REQUEST_HEAD = p.REQUEST_MAGIC << 32  # head == REQUEST_HEAD | kind
KIND_LIMIT = 1 << 32

RequestFields: TypeAlias = tuple[int, int, int, int, int]
"""kind, cookie, offset_bytes, length_bytes, and where in the buffer the request's data begins."""

_WRITES = frozenset({p.CMD_WRITE, p.CMD_TRIM, p.CMD_WRITE_ZEROES})
_FLAGS_OF = {
    p.CMD_READ: p.CMD_FLAG_FUA | p.CMD_FLAG_DF,
    p.CMD_WRITE: p.CMD_FLAG_FUA,
    p.CMD_FLUSH: p.CMD_FLAG_FUA,
    p.CMD_TRIM: p.CMD_FLAG_FUA,
    p.CMD_CACHE: p.CMD_FLAG_FUA,
    p.CMD_WRITE_ZEROES: p.CMD_FLAG_FUA | p.CMD_FLAG_NO_HOLE | p.CMD_FLAG_FAST_ZERO,
    p.CMD_BLOCK_STATUS: p.CMD_FLAG_FUA | p.CMD_FLAG_REQ_ONE,
}


@dataclass(frozen=True, slots=True)
class Request:
    """One request as a value, for whoever has the time: the client's side, logs and tests."""

    command: int
    cookie: int
    offset_bytes: int = 0
    length_bytes: int = 0
    flags: int = 0

    def pack(self) -> bytes:
        """The 28 bytes of its header; the data of a WRITE goes behind them."""
        head = REQUEST_HEAD | self.flags << 16 | self.command
        return REQUEST.pack(head, self.cookie, self.offset_bytes, self.length_bytes)


def parse_requests(buffer: Buffer, begin: int, end: int, requests: list[RequestFields]) -> int:
    """Append all whole requests in buffer[begin:end] to `requests`; where the first unfinished one begins.

    NbdFormatError if the first one hasn't the magic (R2).
    """
    unpack, append = REQUEST.unpack_from, requests.append
    position, last = begin, end - p.REQUEST_BYTES
    while position <= last:
        head, cookie, offset, length = unpack(buffer, position)
        kind = head ^ REQUEST_HEAD
        following = after = position + p.REQUEST_BYTES
        if kind:
            if kind >= KIND_LIMIT:
                if position == begin:
                    raise _wrong_magic(head)
                break
            if kind & 0xFFFF == p.CMD_WRITE:
                following += length
                if following > end:
                    break
        append((kind, cookie, offset, length, after))
        position = following
    return position


def unfinished_request(buffer: Buffer, position: int, end: int) -> RequestFields | None:
    """The request at `position`, where parse_requests stopped: a WRITE whose data isn't there yet, or None.

    None means that its header isn't whole either. A server takes the data of a large one straight into a buffer
    of its own, or drops it if `validate` says no: either way `length_bytes` of data follow on the wire.
    """
    if position + p.REQUEST_BYTES > end:
        return None
    head, cookie, offset, length = REQUEST.unpack_from(buffer, position)
    kind = head ^ REQUEST_HEAD
    if kind >= KIND_LIMIT:
        raise _wrong_magic(head)
    return kind, cookie, offset, length, position + p.REQUEST_BYTES


def _wrong_magic(head: int) -> NbdFormatError:
    return NbdFormatError("NBD request", f"magic {p.REQUEST_MAGIC:#x}", f"{head >> 32:#x}")


def validate(kind: int, offset: int, length: int, session: Session) -> int:
    """The NBD error that a request deserves, or 0: everything the specification has a server refuse.

    `kind` is flags << 16 | command; DISC, which has no reply, is the caller's.
    """
    command, flags = kind & 0xFFFF, kind >> 16
    if command not in _FLAGS_OF or flags & ~_FLAGS_OF[command]:
        return p.EINVAL
    if command == p.CMD_FLUSH:
        return p.EINVAL if offset or length else 0
    if command in _WRITES and session.export.read_only:
        return p.EPERM
    if length == 0 or offset + length > session.export.size_bytes:
        return p.ENOSPC if length and command in (p.CMD_WRITE, p.CMD_WRITE_ZEROES) else p.EINVAL
    if command in (p.CMD_READ, p.CMD_WRITE) and length > p.MAX_REQUEST_BYTES:
        return p.EOVERFLOW if flags & p.CMD_FLAG_DF else p.EINVAL
    return _validate_agreed(command, flags, session)


def _validate_agreed(command: int, flags: int, session: Session) -> int:
    """What depends on the handshake: DF and BLOCK_STATUS need what was agreed on there."""
    if flags & p.CMD_FLAG_DF and not session.structured:
        return p.EINVAL
    if command == p.CMD_BLOCK_STATUS and not session.contexts:
        return p.EINVAL
    both = p.CMD_FLAG_FAST_ZERO | p.CMD_FLAG_NO_HOLE
    return p.ENOTSUP if command == p.CMD_WRITE_ZEROES and flags & both == both else 0
