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

import os
from dataclasses import replace
from functools import partial

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
from replicator.nbd.failures import NbdFormatError
from replicator.nbd.reply import DATA, DATA_DONE, SIMPLE, SIMPLE_OK, pack_failure, pack_hole, pack_simple
from replicator.nbd.request import KIND_LIMIT, REQUEST, REQUEST_HEAD, unfinished_request, validate
from replicator.pdata.transaction import BrokenPoolError
from replicator.thin.gate import IDLE
from replicator.thin.table import STAMP_BITS, STAMP_MASK, STRETCH_MASK, STRETCH_SHIFT
from replicator.units import KIB, MIB, PAGE_BYTES

INLINE_BYTES = 256 * KIB  # of a READ that the loop answers itself: what clients copy disks with
ARENA_BYTES = 1 * MIB + 64 * KIB
_FULL_BYTES = ARENA_BYTES - INLINE_BYTES - 16 * KIB  # one more reply always fits: with data, or with words
_PAGE_MASK = PAGE_BYTES - 1
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
        buffer, head_bytes, at = receiving.buffer, DATA.size if structured else SIMPLE.size, 0
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
                        entry = stretches[block >> STRETCH_SHIFT][block & STRETCH_MASK]  # type: ignore[index] # caught
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
        if kind == _WRITE and self._writable and inside + length <= device.block_bytes:
            if not self._inside:
                self._gate.enter()
                self._inside = True
            try:
                entry = device.table.stretches[block >> STRETCH_SHIFT][block & STRETCH_MASK]  # type: ignore[index] # caught
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
