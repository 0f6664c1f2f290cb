"""Requests carried out one at a time, whatever they find: the general way, by a worker or by who may wait.

Below exporter/transmission, whose loop answers the plain ones itself; above thin/device. Each function returns a whole
reply, or raises what the device raised; `failure` makes the reply of that.

    command        by
    READ           device.pread_into, behind its header in one buffer
    WRITE          device.pwrite, inside the gate as a whole (P3)
    TRIM           device.discard
    WRITE_ZEROES   device.write_zeroes, unmapping unless NO_HOLE; in pieces of a WRITE's largest size, so that no cut
                   waits longer for one than for the other
    CACHE          read-ahead of what is mapped
    BLOCK_STATUS   block_status, for each context of the session

Invariants
  X1  An error of the disk, of space or of a broken pool is an error reply, never the end of a connection.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from replicator._buffer import Buffer
from replicator.errors import ConflictError, DeviceError, NoSpaceError, ReplicatorError
from replicator.exporter.block_status import allocation, changed
from replicator.exporter.exports import Export
from replicator.nbd import protocol as p
from replicator.nbd.export import Session
from replicator.nbd.extents import pack_block_status
from replicator.nbd.failures import error_of_errno
from replicator.nbd.reply import DATA, DATA_DONE, SIMPLE, SIMPLE_OK, pack_failure, pack_simple
from replicator.pdata.transaction import BrokenPoolError
from replicator.thin.engine import Engine

_PIECE_BYTES = p.MAX_REQUEST_BYTES  # zeros written within one stay in the gate
_CACHE_BYTES = p.MAX_REQUEST_BYTES  # of a CACHE, which is a hint: no more is read ahead


class NotFastError(ReplicatorError):
    """A FAST_ZERO that would have to write zeros."""


@dataclass(frozen=True, slots=True)
class Request:
    """A valid request with its data, if it is a WRITE; its own copy, since the receive buffer goes on being used."""

    kind: int
    cookie: int
    offset_bytes: int
    length_bytes: int
    data: Buffer = b""

    @property
    def command(self) -> int:
        """CMD_*."""
        return self.kind & 0xFFFF

    @property
    def flags(self) -> int:
        """CMD_FLAG_*."""
        return self.kind >> 16

    @property
    def wants_flush(self) -> bool:
        """Whether its reply has to wait until what it changed is durable."""
        changes = self.command in (p.CMD_WRITE, p.CMD_TRIM, p.CMD_WRITE_ZEROES)
        return changes and bool(self.flags & p.CMD_FLAG_FUA)

    @property
    def held_bytes(self) -> int:
        """What it keeps in memory until it is answered."""
        return self.length_bytes if self.command in (p.CMD_READ, p.CMD_WRITE) else 0


def refuse_broken(engine: Engine) -> None:
    """BrokenPoolError after a failed commit: nothing is acknowledged any more (E3 of thin/engine)."""
    if engine.failed is not None:
        raise BrokenPoolError(engine.failed)


def execute(request: Request, export: Export, session: Session) -> Buffer:
    """The reply to `request`; ReplicatorError for what `failure` answers."""
    device, offset, length = export.device, request.offset_bytes, request.length_bytes
    if request.command == p.CMD_READ:
        return _read(request, export, session)
    if request.command == p.CMD_BLOCK_STATUS:
        return _status(request, export, session)
    if request.command == p.CMD_CACHE:
        return _cache(request, export)
    refuse_broken(device.engine)
    if request.command == p.CMD_WRITE:
        with device.engine.gate.writing():
            device.pwrite(request.data, offset)
    elif request.command == p.CMD_TRIM:
        with device.engine.gate.writing():
            device.discard(offset, length)
    else:
        _write_zeroes(request, export)
    return pack_simple(request.cookie)


def error_value(error: Exception) -> int:
    """The NBD error for what went wrong."""
    if isinstance(error, NotFastError):
        return p.ENOTSUP
    if isinstance(error, NoSpaceError):
        return p.ENOSPC
    if isinstance(error, ConflictError):
        return p.EPERM
    if isinstance(error, DeviceError) and error_of_errno(error.errno) == p.ENOSPC:
        return p.ENOSPC
    return p.EIO


def failure(cookie: int, error: Exception, session: Session) -> bytes:
    """The reply that tells of `error` (X1)."""
    words = error.message if isinstance(error, ReplicatorError) else ""
    return pack_failure(cookie, error_value(error), structured=session.structured, message=words)


def _read(request: Request, export: Export, session: Session) -> bytearray:
    head = DATA.size if session.structured else SIMPLE.size
    reply = bytearray(head + request.length_bytes)
    export.device.pread_into(memoryview(reply)[head:], request.offset_bytes)
    if session.structured:
        DATA.pack_into(reply, 0, DATA_DONE, request.cookie, 8 + request.length_bytes, request.offset_bytes)
    else:
        SIMPLE.pack_into(reply, 0, SIMPLE_OK, request.cookie)
    return reply


def _status(request: Request, export: Export, session: Session) -> bytes:
    device, offset, length = export.device, request.offset_bytes, request.length_bytes
    answers = [
        (
            context.context_id,
            allocation(device, offset, length)
            if context.snapshot is None
            else changed(export.changed_since[context.snapshot], device.block_bytes, offset, length),
        )
        for context in session.contexts
    ]
    return pack_block_status(request.cookie, answers, length, one=bool(request.flags & p.CMD_FLAG_REQ_ONE))


def _write_zeroes(request: Request, export: Export) -> None:
    device, at = export.device, request.offset_bytes
    may_unmap = not request.flags & p.CMD_FLAG_NO_HOLE
    end = at + request.length_bytes
    if request.flags & p.CMD_FLAG_FAST_ZERO and not _unmaps_all(export, at, end):
        raise NotFastError("zeros would have to be written")
    unmaps = may_unmap and device.origin is None
    while at < end:
        step = end - at if unmaps else min(_PIECE_BYTES - at % device.block_bytes, end - at)
        with device.engine.gate.writing():
            device.write_zeroes(at, step, may_unmap=may_unmap)
        at += step


def _unmaps_all(export: Export, begin: int, end: int) -> bool:
    """Whether zeroing [begin, end) writes no data: whole blocks to unmap, and edges in unmapped ones."""
    device = export.device
    if device.origin is not None:
        return False
    edges = {at // device.block_bytes for at in (begin, end) if at % device.block_bytes and at < device.size_bytes}
    return not any(device.entry(block) for block in edges)


def _cache(request: Request, export: Export) -> bytes:
    device = export.device
    fd = device.engine.data.fileno()
    for _, length, place in device.runs(request.offset_bytes, min(request.length_bytes, _CACHE_BYTES)):
        if place >= 0 and fd >= 0:
            os.posix_fadvise(fd, place, length, os.POSIX_FADV_WILLNEED)
    return pack_simple(request.cookie)
