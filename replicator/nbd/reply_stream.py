"""ReplyStream: a server's replies, taken apart on the client's side as the bytes come.

    waiting for     bytes                                 then
    a header        16 of a simple reply, 20 of a chunk   by type:
                    READ answered simply, no error        data of the request's length
                    OFFSET_DATA                           8 more for the offset, then data
                    another chunk                         its payload, whole
    data            go into the read's own buffer         a header

Replies come in any order, and their chunks interleaved; the cookie tells whose they are. The layouts stand in reply
and extents.

Invariants
  S1  However the stream is split, the replies are the same.
  S2  Data goes nowhere but into the buffer of the read that it answers, inside it, and each byte once (coverage).
  S3  A read without error has got all its bytes; a block status without error one chunk for each context.
  S4  Kept are at most one header and one payload of 2 MiB, beside what the caller's requests asked for.
  S5  What was answered before a breach of the protocol is known to the caller; the rest stays `pending`.

After an NbdFormatError the connection is of no use, and what is `pending` has no known outcome.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from replicator._buffer import Buffer
from replicator.nbd import protocol as p
from replicator.nbd.coverage import Coverage
from replicator.nbd.extents import Extents, unpack_block_status
from replicator.nbd.failures import NbdFormatError
from replicator.nbd.reply import CHUNK, DATA, SIMPLE
from replicator.nbd.request import Request
from replicator.units import MIB

MAX_PAYLOAD_BYTES = 2 * MIB  # of a chunk that isn't data: qemu sends up to 131,072 descriptors, 1 MiB
_HOLE = struct.Struct("!QI")
_ERROR = struct.Struct("!IH")


class Reply(NamedTuple):
    """What became of one request. A named tuple: a busy client makes tens of thousands a second."""

    request: Request
    error: int = 0
    message: str = ""
    data: Buffer = b""
    extents: dict[int, Extents] | None = None


class _Pending:
    """A request on its way, and what has come of its reply."""

    __slots__ = ("coverage", "error", "extents", "message", "request", "target")

    def __init__(self, request: Request, target: memoryview) -> None:
        self.request = request
        self.target = target
        self.coverage: Coverage | None = None
        self.error = 0
        self.message = ""
        self.extents: dict[int, Extents] = {}

    def cover(self, offset: int, length: int) -> memoryview:
        """The part of the read's buffer that a chunk fills (S2)."""
        if self.coverage is None:
            self.coverage = Coverage(self.request.offset_bytes, self.request.length_bytes)
        self.coverage.add(offset, length)
        begin = offset - self.request.offset_bytes
        return self.target[begin : begin + length]


class ReplyStream:
    """The decoder of one connection: `expect` each request before it is sent, then feed what arrives."""

    def __init__(self, structured: bool = False, context_ids: frozenset[int] = frozenset()) -> None:
        self._structured = structured
        self._context_ids = context_ids
        self._pending: dict[int, _Pending] = {}
        self._partial = b""
        self._filling: _Pending | None = None
        self._room = memoryview(b"")
        self._last_chunk = False

    @property
    def pending(self) -> tuple[Request, ...]:
        """The requests without a whole reply, in the order they were expected."""
        return tuple(waiting.request for waiting in self._pending.values())

    def __len__(self) -> int:
        return len(self._pending)

    def expect(self, request: Request, target: Buffer = b"") -> None:
        """Wait for the reply to `request`; a READ's data goes into `target`, writable and of its length."""
        assert request.cookie not in self._pending, "a cookie in flight isn't used again"
        assert request.command != p.CMD_READ or len(target) == request.length_bytes
        self._pending[request.cookie] = _Pending(request, memoryview(target))

    def receive(self, data: Buffer, replies: list[Reply]) -> None:
        """Append the replies that are whole with `data`; also those before an NbdFormatError (S5)."""
        view = memoryview(self._partial + bytes(data) if self._partial else data)
        at = 0
        while True:
            if self._filling is not None:
                at = self._fill(view, at, replies)
                if self._filling is not None:
                    break
            following = self._take(view, at, replies)
            if following == at:
                break
            at = following
        self._partial = bytes(view[at:])

    def _fill(self, view: memoryview, at: int, replies: list[Reply]) -> int:
        """Move data into the read that it belongs to."""
        waiting, taken = self._filling, min(len(self._room), len(view) - at)
        assert waiting is not None
        self._room[:taken] = view[at : at + taken]
        self._room = self._room[taken:]
        if not self._room:
            self._filling = None
            if self._last_chunk:
                replies.append(self._finish(waiting))
        return at + taken

    def _take(self, view: memoryview, at: int, replies: list[Reply]) -> int:
        """Take one header with what belongs to it; where it ends, or `at` if it isn't whole."""
        if len(view) - at < SIMPLE.size:
            return at
        head, cookie = SIMPLE.unpack_from(view, at)
        waiting = self._pending.get(cookie)
        magic = head >> 32
        if magic not in (p.SIMPLE_REPLY_MAGIC, p.STRUCTURED_REPLY_MAGIC):
            raise NbdFormatError("NBD reply", "the magic of a reply", f"{magic:#x}")
        if waiting is None:
            raise NbdFormatError("NBD reply", "the cookie of a request in flight", f"{cookie:#x}")
        if magic == p.STRUCTURED_REPLY_MAGIC:
            return self._take_chunk(view, at, head, waiting, replies)
        self._take_simple(waiting, head & 0xFFFFFFFF, replies)
        return at + SIMPLE.size

    def _take_simple(self, waiting: _Pending, error: int, replies: list[Reply]) -> None:
        command = waiting.request.command
        if self._structured and (command == p.CMD_READ or (command == p.CMD_BLOCK_STATUS and not error)):
            raise NbdFormatError("NBD reply", f"chunks in answer to command {command}", "a simple reply")
        waiting.error = error
        if command == p.CMD_READ and not error and waiting.request.length_bytes:
            self._start_filling(waiting, waiting.request.offset_bytes, waiting.request.length_bytes, True)
        else:
            replies.append(self._finish(waiting))

    def _start_filling(self, waiting: _Pending, offset: int, length: int, last: bool) -> None:
        self._room = waiting.cover(offset, length)
        self._filling, self._last_chunk = waiting, last

    def _take_chunk(self, view: memoryview, at: int, head: int, waiting: _Pending, replies: list[Reply]) -> int:
        if not self._structured:
            raise NbdFormatError("NBD reply", "a simple reply", "a structured one, not agreed on")
        if len(view) - at < CHUNK.size:
            return at
        length: int = CHUNK.unpack_from(view, at)[2]
        reply_type, last = head & 0xFFFF, bool(head >> 16 & p.REPLY_FLAG_DONE)
        if reply_type == p.REPLY_OFFSET_DATA:
            return self._take_data(view, at, waiting, length, last)
        if length > MAX_PAYLOAD_BYTES:
            raise NbdFormatError(f"NBD reply of type {reply_type}", f"at most {MAX_PAYLOAD_BYTES} bytes", f"{length}")
        end = at + CHUNK.size + length
        if end > len(view):
            return at
        self._take_payload(waiting, reply_type, bytes(view[at + CHUNK.size : end]), last)
        if last:
            replies.append(self._finish(waiting))
        return end

    def _take_data(self, view: memoryview, at: int, waiting: _Pending, length: int, last: bool) -> int:
        if waiting.request.command != p.CMD_READ or length <= 8:
            raise NbdFormatError("NBD reply of data", "a READ and more than 8 bytes", f"{waiting.request}, {length}")
        if len(view) - at < DATA.size:
            return at
        _, _, _, offset = DATA.unpack_from(view, at)
        self._start_filling(waiting, offset, length - 8, last)
        return at + DATA.size

    def _take_payload(self, waiting: _Pending, reply_type: int, payload: bytes, last: bool) -> None:
        command = waiting.request.command
        if reply_type & p.REPLY_ERROR_BIT:
            _take_error(waiting, reply_type, payload)
        elif reply_type == p.REPLY_NONE and not payload and last:
            pass
        elif reply_type == p.REPLY_OFFSET_HOLE and command == p.CMD_READ and len(payload) == _HOLE.size:
            offset, length = _HOLE.unpack(payload)
            room = waiting.cover(offset, length)
            room[:] = bytes(len(room))
        elif reply_type == p.REPLY_BLOCK_STATUS and command == p.CMD_BLOCK_STATUS:
            context_id, extents = unpack_block_status(payload, waiting.request.length_bytes)
            if context_id not in self._context_ids or context_id in waiting.extents:
                raise NbdFormatError("NBD block status", "a selected context, once", f"context {context_id}")
            waiting.extents[context_id] = extents
        else:
            found = f"type {reply_type} with {len(payload)} bytes, last: {last}"
            raise NbdFormatError("NBD reply", f"a chunk that answers command {command}", found)

    def _finish(self, waiting: _Pending) -> Reply:
        """The whole reply (S3)."""
        request = waiting.request
        del self._pending[request.cookie]
        if waiting.error:
            return Reply(request, waiting.error, waiting.message)
        if request.command == p.CMD_READ:
            if request.length_bytes and (waiting.coverage is None or not waiting.coverage.complete):
                raise NbdFormatError("NBD reply", f"all {request.length_bytes} bytes of a READ", "fewer")
            return Reply(request, data=waiting.target)
        if request.command == p.CMD_BLOCK_STATUS:
            if waiting.extents.keys() != self._context_ids:
                raise NbdFormatError(
                    "NBD block status", f"{len(self._context_ids)} contexts", f"{len(waiting.extents)}"
                )
            return Reply(request, extents=waiting.extents)
        return Reply(request)


def _take_error(waiting: _Pending, reply_type: int, payload: bytes) -> None:
    """Note an error chunk; the first one's words are kept."""
    tail = 8 if reply_type == p.REPLY_ERROR_OFFSET else 0
    if len(payload) < _ERROR.size + tail:
        raise NbdFormatError("NBD reply of an error", f"at least {_ERROR.size + tail} bytes", f"{len(payload)}")
    error, length = _ERROR.unpack_from(payload)
    if error == 0 or length > len(payload) - _ERROR.size - tail:
        raise NbdFormatError("NBD reply of an error", "an error and its message", f"error {error}, length {length}")
    if not waiting.error:
        waiting.error = error
        waiting.message = payload[_ERROR.size : _ERROR.size + length].decode(errors="replace")[: p.MAX_STRING_BYTES]
