"""The transmission phase of one connection: requests in, replies out, as fast as one thread of Python goes.

Driven by exporter/connection. Many requests are parsed from one receive buffer; replies are packed into one arena, and
sent at once when the buffer holds no whole request any more, or the arena is full.

    request                                           carried out by
    READ of one mapped block, in the page cache       run: preadv with RWF_NOWAIT into the arena
    READ of several, or of nothing                    the same, a step slower (plain)
    WRITE within one block of the device's own        _write: pwrite from the receive buffer
    WRITE that needs neither a read nor a wait        device.pwrite from the receive buffer (plain)
    FLUSH; FUA, when the rest is done                 engine.flush; the committer answers
    READ above 256 KiB, WRITE above the buffer        this thread, piece by piece or whole (bulk)
    all else, and what would block                    workers, which answer out of order

Invariants
  L1  While blocks are looked up, read or written, the slot shows the gate's generation; it is IDLE whenever this
      thread waits for its client, for workers or for the kernel's buffers.
  L2  Writes stand between enter and leave; a write of several blocks within one (P3). Nobody waits for a client inside.
  L3  The receive buffer is used again only after its requests were carried out, or copied for a worker.
  L4  Memory: receive buffer, arena, one large write, and what InFlight admits; unsent replies stop the reading.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from functools import partial

from replicator._buffer import Buffer
from replicator.errors import ReplicatorError
from replicator.exporter.bulk import Budget, LargeRead, drop_data, receive_data
from replicator.exporter.execution import Request, execute, failure, refuse_broken
from replicator.exporter.exports import Export
from replicator.exporter.outbox import Outbox
from replicator.exporter.plain import Found, Plain
from replicator.exporter.receiving import RECEIVE_BYTES, Receiving
from replicator.exporter.transport import Transport
from replicator.exporter.workers import InFlight, Workers
from replicator.nbd import protocol as p
from replicator.nbd.export import Session
from replicator.nbd.reply import DATA, DATA_DONE, SIMPLE, SIMPLE_OK, pack_failure, pack_hole, pack_simple
from replicator.nbd.request import KIND_LIMIT, REQUEST, REQUEST_HEAD, unfinished_request, validate
from replicator.pdata.transaction import BrokenPoolError
from replicator.thin.gate import IDLE
from replicator.thin.table import STAMP_BITS, STAMP_MASK, STRETCH_MASK, STRETCH_SHIFT
from replicator.units import KIB, MIB, PAGE_BYTES

INLINE_BYTES = 256 * KIB  # of a READ that the loop answers itself: what clients copy disks with
ARENA_BYTES = 1 * MIB + 64 * KIB
_FULL_BYTES = ARENA_BYTES - INLINE_BYTES - 16 * KIB  # one more reply always fits: with data, or with words
_PIECE_BYTES = 64 * KIB  # of a WRITE that goes to the file in one piece (plain.overwrite)
_PAGE_MASK = PAGE_BYTES - 1

_log = logging.getLogger(__name__)
_REQUEST_BYTES, _WRITE, _DISC = p.REQUEST_BYTES, p.CMD_WRITE, p.CMD_DISC


class Transmission:
    """One client at one export, after the handshake."""

    def __init__(
        self, transport: Transport, arrived: bytes, outbox: Outbox, workers: Workers, budget: Budget,
        export: Export, session: Session,
    ) -> None:  # fmt: skip
        self._transport, self._outbox, self._workers, self._budget = transport, outbox, workers, budget
        self._export, self._session = export, session
        self._device, self._engine = export.device, export.device.engine
        self._gate = self._engine.gate
        self._slot = self._gate.register()
        self._receiving = Receiving(transport, arrived)
        self._arena = memoryview(bytearray(ARENA_BYTES))
        self._plain = Plain(export)
        self._writable = not export.refuses_writes
        self._structured = session.structured
        self._head_bytes = DATA.size if session.structured else SIMPLE.size
        self._inside = False
        self.in_flight = InFlight()

    def close(self) -> None:
        """Leave the gate, and wait until nothing of this client's is being carried out."""
        self._rest()
        self._gate.unregister(self._slot)
        self.in_flight.wait_for_none()

    # -- the loop --------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the client disconnects; NbdFormatError for what isn't NBD, OSError when it is gone."""
        receiving, slot, gate, device = self._receiving, self._slot, self._gate, self._device
        arena, size, stretches, structured = self._arena, device.block_bytes, device.table.stretches, self._structured
        fd, nowait, preadv, unpack = self._plain.fd, self._plain.nowait, os.preadv, REQUEST.unpack_from
        buffer, head_bytes, at = receiving.buffer, self._head_bytes, 0
        more = receiving.end > 0 or receiving.fill()
        while more:
            slot.generation = gate.generation
            position, last, limit = receiving.position, receiving.end - _REQUEST_BYTES, device.size_bytes
            while position <= last:
                head, cookie, offset, length = unpack(buffer, position)
                kind, data = head ^ REQUEST_HEAD, position + _REQUEST_BYTES
                if kind & 0xFFFF == _WRITE and kind < KIND_LIMIT:
                    if data + length > receiving.end:
                        break
                    position = data + length
                    at = self._write(kind, cookie, offset, length, data, at)
                    continue
                if kind:
                    if kind >= KIND_LIMIT or kind & 0xFFFF == _DISC:
                        break
                    position, at = data, self._other(kind, cookie, offset, length, data, at)
                    continue
                position, block, begin = data, offset // size, at + head_bytes
                inside = offset - block * size
                if inside + length <= size and 0 < length <= INLINE_BYTES and offset + length <= limit:
                    try:
                        entry = stretches[block >> STRETCH_SHIFT][block & STRETCH_MASK]
                        place = (entry >> STAMP_BITS) * size + inside
                        if entry and preadv(fd, (arena[begin : begin + length],), place, nowait) == length:
                            if structured:
                                DATA.pack_into(arena, at, DATA_DONE, cookie, 8 + length, offset)
                            else:
                                SIMPLE.pack_into(arena, at, SIMPLE_OK, cookie)
                            at = begin + length
                            if at > _FULL_BYTES:
                                at = self._pause(at)
                            continue
                    except (OSError, TypeError, IndexError):
                        pass
                at = self._other(kind, cookie, offset, length, data, at)
            receiving.position = position
            self._send(at)
            at, more = 0, self._receive()

    def _write(self, kind: int, cookie: int, offset: int, length: int, data: int, at: int) -> int:
        """A WRITE with its data in the receive buffer from `data` on; where the arena's next reply goes."""
        device = self._device
        block = offset // device.block_bytes
        inside = offset - block * device.block_bytes
        if kind == _WRITE and self._writable and inside + length <= device.block_bytes and length <= _PIECE_BYTES:
            if not self._inside:
                self._gate.enter()
                self._inside = True
            try:
                entry = device.table.stretches[block >> STRETCH_SHIFT][block & STRETCH_MASK]  # type: ignore[index]  # None: the TypeError below
                if (
                    entry & STAMP_MASK == device.epoch
                    and not (inside | length) & _PAGE_MASK
                    and length
                    and offset + length <= device.size_bytes
                    and self._engine.failed is None
                ):
                    source = self._receiving.view[data : data + length]
                    place = (entry >> STAMP_BITS) * device.block_bytes + inside
                    if os.pwrite(self._plain.fd, source, place) == length:
                        SIMPLE.pack_into(self._arena, at, SIMPLE_OK, cookie)
                        return at + SIMPLE.size if at <= _FULL_BYTES else self._pause(at + SIMPLE.size)
            except (OSError, TypeError, IndexError):
                pass
        return self._other(kind, cookie, offset, length, data, at)

    # -- all that isn't plain ----------------------------------------------------------------------------------

    def _other(self, kind: int, cookie: int, offset: int, length: int, data: int, at: int) -> int:
        """Any request, whole in the buffer; where the arena's next reply goes."""
        session, command = self._session, kind & 0xFFFF
        if session.export.size_bytes != self._device.size_bytes:
            session = replace(session, export=replace(session.export, size_bytes=self._device.size_bytes))
            self._session = session
        if error := validate(kind, offset, length, session):
            return self._reply(pack_failure(cookie, error, structured=self._structured), at)
        if command == p.CMD_READ:
            return self._read(Request(kind, cookie, offset, length), at)
        if command == _WRITE:
            return self._write_blocks(kind, cookie, offset, length, data, at)
        if command == p.CMD_FLUSH:
            at = self._make_room(0, at)
            self.in_flight.begin(0)
            self._engine.flush(partial(self._flushed, cookie, 0))
            return at
        return self._submit(Request(kind, cookie, offset, length), at)

    def _read(self, request: Request, at: int) -> int:
        cookie, offset, length = request.cookie, request.offset_bytes, request.length_bytes
        if length > INLINE_BYTES:
            self._send(at)
            self._read_large(request)
            self._slot.generation = self._gate.generation
            return 0
        begin = at + self._head_bytes
        target = self._arena[begin : begin + length]
        found = self._plain.read(target, offset)
        if found is Found.LATER:
            return self._submit(request, at)
        if found is Found.HOLE and self._structured:
            return self._reply(pack_hole(cookie, offset, length, done=True), at)
        if found is Found.HOLE:
            target[:] = bytes(length)
        if self._structured:
            DATA.pack_into(self._arena, at, DATA_DONE, cookie, 8 + length, offset)
        else:
            SIMPLE.pack_into(self._arena, at, SIMPLE_OK, cookie)
        return begin + length if begin + length <= _FULL_BYTES else self._pause(begin + length)

    def _read_large(self, request: Request) -> None:
        large = LargeRead(request, self._export, self._session, self._arena, self._outbox)
        if large.in_one_part:
            self.in_flight.wait_for_none()
        large.answer(self._pread_into)

    def _pread_into(self, target: memoryview, offset: int) -> None:
        self._slot.generation = self._gate.generation
        try:
            self._device.pread_into(target, offset)
        finally:
            self._slot.generation = IDLE

    def _write_blocks(self, kind: int, cookie: int, offset: int, length: int, data: int, at: int) -> int:
        if not self._inside:
            self._gate.enter()
            self._inside = True
        source = self._receiving.view[data : data + length]
        try:
            refuse_broken(self._engine)
            if not (self._plain.overwrite(source, offset) or self._plain.write(source, offset)):
                return self._submit(Request(kind, cookie, offset, length, bytes(source)), at)
        except ReplicatorError as error:
            return self._reply(failure(cookie, error, self._session), at)
        if kind == _WRITE:
            return self._reply(pack_simple(cookie), at)
        at = self._make_room(0, at)
        self.in_flight.begin(0)
        self._engine.flush(partial(self._flushed, cookie, 0))
        return at

    def _write_large(self, kind: int, cookie: int, offset: int, length: int) -> bool:
        """A WRITE that the buffer can't hold; False when the client left."""
        if error := validate(kind, offset, length, self._session):
            if not drop_data(self._receiving, length):
                return False
            self._outbox.send(memoryview(pack_failure(cookie, error, structured=self._structured)))
            return True
        with self._budget.share(length):
            payload = receive_data(self._receiving, self._transport.socket, length)
            if payload is None:
                return False
            self.in_flight.begin(0)
            self._slot.generation = self._gate.generation
            self._carry_out(Request(kind, cookie, offset, length, payload), 0)
            self._slot.generation = IDLE
        return True

    # -- answers of others -------------------------------------------------------------------------------------

    def _submit(self, request: Request, at: int) -> int:
        held = request.held_bytes
        at = self._make_room(held, at)
        self.in_flight.begin(held)
        self._workers.submit(partial(self._carry_out, request, held))
        return at

    def _carry_out(self, request: Request, held_bytes: int) -> None:
        """A request that began in flight, to its reply; by a worker, or by this thread if it is large."""
        try:
            reply = execute(request, self._export, self._session)
        except Exception as error:  # noqa: BLE001 - whatever it was, the client has to be answered (X1 of execution)
            if not isinstance(error, ReplicatorError):
                _log.exception("%s: a request failed", self._device.name)
            reply = failure(request.cookie, error, self._session)
        else:
            if request.wants_flush:
                self._engine.flush(partial(self._flushed, request.cookie, held_bytes))
                return
        self._answer(reply, held_bytes)

    def _flushed(self, cookie: int, held_bytes: int, reason: str | None) -> None:
        """The committer's answer to a FLUSH, or to the flush behind a FUA."""
        error = BrokenPoolError(reason) if reason else None
        self._answer(failure(cookie, error, self._session) if error else pack_simple(cookie), held_bytes)

    def _answer(self, reply: Buffer, held_bytes: int) -> None:
        try:
            self._outbox.put(reply)
        finally:
            self.in_flight.end(held_bytes)

    # -- the arena, the gate and the buffer --------------------------------------------------------------------

    def _reply(self, reply: bytes, at: int) -> int:
        self._arena[at : at + len(reply)] = reply
        at += len(reply)
        return at if at <= _FULL_BYTES else self._pause(at)

    def _make_room(self, held_bytes: int, at: int) -> int:
        """Until one more job may begin, and the client takes its replies (L4); where the arena goes on."""
        if self.in_flight.has_room(held_bytes) and not self._outbox.has_backlog:
            return at
        self._send(at)
        self.in_flight.wait_for_room(held_bytes)
        self._outbox.drain()
        self._slot.generation = self._gate.generation
        return 0

    def _pause(self, at: int) -> int:
        """Send the full arena in the middle of a batch."""
        self._send(at)
        self._slot.generation = self._gate.generation
        return 0

    def _rest(self) -> None:
        if self._inside:
            self._inside = False
            self._gate.leave()
        self._slot.generation = IDLE

    def _send(self, at: int) -> None:
        """The batch is over, or interrupted: what was answered goes to the client (L1, L2)."""
        self._rest()
        if at:
            self._outbox.send(self._arena[:at])
        elif self._outbox.has_backlog:
            self._outbox.drain()

    def _receive(self) -> bool:
        """Wait for a request that is whole, or for more of it; False when there will be none."""
        receiving = self._receiving
        while receiving.position != receiving.end:
            request = unfinished_request(receiving.buffer, receiving.position, receiving.end)
            if request is None:
                return receiving.fill()
            kind, cookie, offset, length, data = request
            if kind & 0xFFFF != _WRITE:
                return kind & 0xFFFF != _DISC
            if _REQUEST_BYTES + length <= RECEIVE_BYTES:
                return data + length <= receiving.end or receiving.fill(_REQUEST_BYTES + length)
            receiving.position = data
            if not self._write_large(kind, cookie, offset, length):
                return False
        return receiving.fill()
