"""Requests too large for a connection's buffers, by its own thread: large reads, large writes, data nobody wants.

Beside exporter/transmission. A large read is sent a piece at a time, each looked up when it is its turn, so that a
client that doesn't take it holds one piece only. A large write is received whole before the gate is entered, since it
must not stand on both sides of a cut (P3); what such writes hold together is bounded for the server.

    READ, structured              chunks for each piece, of data and of holes; an error chunk where a piece fails
    READ, simple or DF, ≤ 1 MiB   whole, in the arena
    READ, simple or DF, larger    read once to see that it can be read, then a piece at a time, nothing in between;
                                  what fails in spite of that ends the connection, as the specification demands
    WRITE that isn't valid        its data is received and dropped, then the error is told

Invariants
  B1  No more than one piece, or one write within the budget, is in memory for a connection.
  B2  A client that has a share of the budget and sends nothing for STALL_LIMIT_S is disconnected.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from replicator.errors import ReplicatorError
from replicator.exporter.block_status import allocation
from replicator.exporter.execution import Request, failure
from replicator.exporter.exports import Export
from replicator.exporter.outbox import Outbox
from replicator.exporter.receiving import Receiving
from replicator.nbd import protocol as p
from replicator.nbd.export import Session
from replicator.nbd.reply import pack_data, pack_error, pack_hole, pack_simple
from replicator.units import KIB, MIB

PIECE_BYTES = 256 * KIB
WHOLE_BYTES = 1 * MIB  # of a reply that has to be in one part and is still made in the arena
BUDGET_BYTES = 128 * MIB  # of large writes of all connections: four of the largest
STALL_LIMIT_S = 30.0


class Budget:
    """Memory for large writes, shared by all connections of a server."""

    def __init__(self, total_bytes: int = BUDGET_BYTES) -> None:
        self._free = total_bytes
        self._changed = threading.Condition()

    @contextmanager
    def share(self, length_bytes: int) -> Iterator[None]:
        """Wait for `length_bytes`, and hold them inside the block."""
        with self._changed:
            self._changed.wait_for(lambda: self._free >= length_bytes)
            self._free -= length_bytes
        try:
            yield
        finally:
            with self._changed:
                self._free += length_bytes
                self._changed.notify_all()


def receive_data(receiving: Receiving, sock: socket.socket, length_bytes: int) -> bytearray | None:
    """The data of a large write, whose header was taken from the buffer; None when the client left (B2)."""
    data = bytearray(length_bytes)
    view = memoryview(data)
    part = receiving.take(length_bytes)
    view[: len(part)] = part
    at = len(part)
    sock.settimeout(STALL_LIMIT_S)
    while at < length_bytes:
        count = receiving.receive_into(view[at:])
        if not count:
            return None
        at += count
    sock.settimeout(None)
    return data


def drop_data(receiving: Receiving, length_bytes: int) -> bool:
    """Take that much from the client for nothing; False when it left."""
    left = length_bytes - len(receiving.take(length_bytes))
    while left:
        if not receiving.fill():
            return False
        left -= len(receiving.take(left))
    return True


class LargeRead:
    """One READ above the loop's bound; `send` is called outside of the slot's protection."""

    def __init__(self, request: Request, export: Export, session: Session, arena: memoryview, outbox: Outbox) -> None:
        self._request, self._device, self._session = request, export.device, session
        self._arena, self._outbox = arena, outbox

    @property
    def in_one_part(self) -> bool:
        """Whether nothing may come between its pieces."""
        return not self._session.structured or bool(self._request.flags & p.CMD_FLAG_DF)

    def answer(self, reading: Callable[[memoryview, int], None]) -> None:
        """Read by `reading(target, offset)` and send; OSError when the client is gone."""
        if not self.in_one_part:
            self._answer_in_chunks(reading)
        elif self._request.length_bytes <= WHOLE_BYTES:
            self._answer_whole(reading)
        else:
            self._answer_streaming(reading)

    def _answer_in_chunks(self, reading: Callable[[memoryview, int], None]) -> None:
        cookie, end = self._request.cookie, self._request.offset_bytes + self._request.length_bytes
        for offset, length in self._pieces():
            try:
                for begin, size, is_hole in self._parts(offset, length):
                    done = begin + size == end
                    if is_hole:
                        self._outbox.send(memoryview(pack_hole(cookie, begin, size, done=done)))
                        continue
                    head = pack_data(cookie, begin, size, done=done)
                    reply = self._arena[: len(head) + size]
                    reading(reply[len(head) :], begin)
                    reply[: len(head)] = head
                    self._outbox.send(reply)
            except ReplicatorError as error:
                self._outbox.send(memoryview(pack_error(cookie, p.EIO, error.message, offset)))
                return

    def _parts(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """(offset, length, whether it is a hole) of a piece. One that is written meanwhile may be told as it was.

        No data block is touched by looking whether there is one, so the slot needn't protect it.
        """
        for size, flags in allocation(self._device, offset, length):
            yield offset, size, bool(flags & p.STATE_HOLE)
            offset += size

    def _answer_whole(self, reading: Callable[[memoryview, int], None]) -> None:
        head = self._head()
        reply = self._arena[: len(head) + self._request.length_bytes]
        try:
            reading(reply[len(head) :], self._request.offset_bytes)
        except ReplicatorError as error:
            self._outbox.send(memoryview(failure(self._request.cookie, error, self._session)))
            return
        reply[: len(head)] = head
        self._outbox.send(reply)

    def _answer_streaming(self, reading: Callable[[memoryview, int], None]) -> None:
        try:
            for offset, length in self._pieces():
                reading(self._arena[:length], offset)
        except ReplicatorError as error:
            self._outbox.send(memoryview(failure(self._request.cookie, error, self._session)))
            return
        self._outbox.send(memoryview(self._head()))
        for offset, length in self._pieces():
            try:
                reading(self._arena[:length], offset)
            except ReplicatorError as error:
                raise ConnectionAbortedError(f"a read failed in the middle of its reply: {error}") from error
            self._outbox.send(self._arena[:length])

    def _head(self) -> bytes:
        request = self._request
        if self._session.structured:
            return pack_data(request.cookie, request.offset_bytes, request.length_bytes, done=True)
        return pack_simple(request.cookie)

    def _pieces(self) -> Iterator[tuple[int, int]]:
        end = self._request.offset_bytes + self._request.length_bytes
        for offset in range(self._request.offset_bytes, end, PIECE_BYTES):
            yield offset, min(PIECE_BYTES, end - offset)
