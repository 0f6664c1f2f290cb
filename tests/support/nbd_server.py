"""A small NBD server over replicator.nbd and memory: for tests of clients, ours and foreign ones.

One thread a connection, one request after the other: what the exporter does for speed isn't here. Every export has a
MemoryDevice of its own; the first half of a disk counts as data, the second as a hole, and every snapshot as changed
in its first block.

Invariant S1: all threads have ended and all sockets are closed when the block ends.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence

from replicator.blockdev.memory import MemoryDevice
from replicator.nbd import protocol as p
from replicator.nbd import reply as replies
from replicator.nbd.export import Export, Session
from replicator.nbd.extents import pack_block_status
from replicator.nbd.failures import NbdFormatError
from replicator.nbd.handshake import Hangup, Send, StartTls, Tls
from replicator.nbd.request import RequestFields, parse_requests, validate
from replicator.nbd.server import GREETING, Begin, ServerHandshake


class MemoryExports:
    """Exports by name, each with a disk; the first is also the default one."""

    def __init__(self, exports: Sequence[Export]) -> None:
        self._exports = {export.name: export for export in exports}
        self._default = exports[0]
        self._disks: dict[str, MemoryDevice] = {}
        self._making = threading.Lock()

    def listed(self) -> Sequence[Export]:
        """All of them."""
        return tuple(self._exports.values())

    def find(self, name: str) -> Export | None:
        """By name; "" is the first."""
        return self._exports.get(name, self._default if name == "" else None)

    def disk(self, name: str) -> MemoryDevice:
        """What stands behind an export; zeros at first, made when it's asked for."""
        with self._making:
            if name not in self._disks:
                self._disks[name] = MemoryDevice(self._exports[name].size_bytes)
            return self._disks[name]


@contextlib.contextmanager
def serving_memory(
    listener: socket.socket, exports: MemoryExports, *, tls: Tls = Tls.NONE, context: ssl.SSLContext | None = None
) -> Iterator[None]:
    """Serve on `listener` until the block ends (S1)."""
    connections: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = listener.accept()[0]
                connections.append(connection)
                arguments = (connection, exports, tls, context)
                threads.append(threading.Thread(target=_serve, args=arguments, daemon=True))
                threads[-1].start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()
        listener.close()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


def _serve(sock: socket.socket, exports: MemoryExports, tls: Tls, context: ssl.SSLContext | None) -> None:
    with contextlib.suppress(OSError, NbdFormatError), contextlib.ExitStack() as stack:
        stack.callback(sock.close)
        sock.sendall(GREETING)
        handshake = ServerHandshake(exports, tls)
        while data := sock.recv(65536):
            for event in handshake.receive(data):
                if isinstance(event, Send):
                    sock.sendall(event.data)
                elif isinstance(event, StartTls):
                    assert context is not None
                    sock = stack.enter_context(context.wrap_socket(sock, server_side=True))
                    handshake.tls_started()
                elif isinstance(event, Begin):
                    _transmit(sock, handshake.leftover, event.session, exports.disk(event.session.export.name))
                    return
                elif isinstance(event, Hangup):
                    return


def _transmit(sock: socket.socket, arrived: bytes, session: Session, disk: MemoryDevice) -> None:
    buffer = bytearray(arrived)
    while True:
        requests: list[RequestFields] = []
        end = parse_requests(buffer, 0, len(buffer), requests)
        for request in requests:
            if request[0] & 0xFFFF == p.CMD_DISC:
                return
            sock.sendall(_answer(request, memoryview(bytes(buffer)), session, disk))
        del buffer[:end]
        data = sock.recv(1 << 20)
        if not data:
            return
        buffer += data


def _answer(request: RequestFields, buffer: memoryview, session: Session, disk: MemoryDevice) -> bytes:
    kind, cookie, offset, length, at = request
    error = validate(kind, offset, length, session)
    command = kind & 0xFFFF
    if error:
        return replies.pack_failure(cookie, error, structured=session.structured, message="not so")
    if command == p.CMD_READ:
        data = disk.pread(length, offset)
        head = (
            replies.pack_data(cookie, offset, length, done=True) if session.structured else replies.pack_simple(cookie)
        )
        return head + data
    if command == p.CMD_BLOCK_STATUS:
        answers = [(context.context_id, _runs(context.snapshot, offset, disk)) for context in session.contexts]
        return pack_block_status(cookie, answers, length, one=bool(kind >> 16 & p.CMD_FLAG_REQ_ONE))
    if command == p.CMD_WRITE:
        disk.pwrite(buffer[at : at + length], offset)
    elif command in (p.CMD_TRIM, p.CMD_WRITE_ZEROES):
        disk.discard(offset, length)
    return replies.pack_none(cookie) if session.structured else replies.pack_simple(cookie)


def _runs(snapshot: str | None, offset: int, disk: MemoryDevice) -> Iterator[tuple[int, int]]:
    """From `offset` on: half data and half hole; against a snapshot, the first 64 KiB changed."""
    border = disk.size_bytes // 2 if snapshot is None else 65536
    before, behind = (0, p.STATE_HOLE | p.STATE_ZERO) if snapshot is None else (p.STATE_CHANGED, 0)
    yield max(border - offset, 0), before
    yield disk.size_bytes - max(offset, border), behind
