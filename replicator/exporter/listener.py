"""The NBD server of one pool: its listeners, its connections, and the end of both.

The top of the exporter's NBD half: whoever has the pool open makes one, fills its exports and tells it where to listen.

    listen     a Unix socket (mode and owner: exporter/address) or TCP, any number of them, while it runs
    unlisten   takes no more clients there; those that came stay
    stop       takes no more clients and requests, answers what is in flight, and closes; in that order

The engine is closed after `stop`, not before: FLUSHes in flight wait for its committer.

Invariants
  V1  At most `connections_max` clients at a time; one more is closed at once, unheard.
  V2  After `stop` no thread of the server is left, and its socket files are gone.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from dataclasses import dataclass, field

from replicator.errors import ConflictError
from replicator.exporter.address import Address, UnixAddress, bind, unlink_own
from replicator.exporter.bulk import Budget
from replicator.exporter.connection import Connection, Security, Staff
from replicator.exporter.exports import Exports
from replicator.exporter.manners import Manners
from replicator.exporter.outbox import Drainer
from replicator.exporter.workers import WORKERS, Workers
from replicator.thin.gate import Gate

CONNECTIONS_MAX = 64  # sixteen clients with four connections each; a connection may hold 12 MiB
STOP_LIMIT_S = 10.0
_ACCEPT_PAUSE_S = 0.1  # after a failed accept (no descriptors left): don't spin

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What bounds a server, and who may come."""

    connections_max: int = CONNECTIONS_MAX
    workers: int = WORKERS
    security: Security = field(default_factory=Security)


@dataclass(slots=True)
class _Listener:
    socket: socket.socket
    address: Address
    inode: int
    thread: threading.Thread | None = None


class NbdServer:
    """Serves `exports`, all of one pool, whose engine has `gate`."""

    def __init__(self, gate: Gate, exports: Exports, settings: ServerSettings | None = None) -> None:
        self.exports = exports
        self._settings = settings or ServerSettings()
        self._staff = Staff(exports, Workers(gate, self._settings.workers), Drainer(), Budget(), Manners())
        self._lock = threading.Lock()
        self._listeners: dict[Address, _Listener] = {}
        self._connections: dict[Connection, threading.Thread] = {}
        self._stopping = False

    @property
    def connection_count(self) -> int:
        """Clients that are connected now."""
        with self._lock:
            return len(self._connections)

    def addresses(self) -> list[Address]:
        """Where it listens."""
        with self._lock:
            return list(self._listeners)

    def listen(self, address: Address) -> Address:
        """Take clients at `address` from now on; the address with the port that it got. ConflictError: it is taken."""
        sock, bound = bind(address)
        inode = bound.path.lstat().st_ino if isinstance(bound, UnixAddress) else 0
        listener = _Listener(sock, bound, inode)
        thread = threading.Thread(target=self._accept, args=(listener,), name="nbd-listener", daemon=True)
        with self._lock:
            if not self._stopping:
                listener.thread = thread
                self._listeners[bound] = listener
                thread.start()
                return bound
        sock.close()
        if isinstance(bound, UnixAddress):
            unlink_own(bound.path, inode)
        raise ConflictError("the server is being stopped")

    def unlisten(self, address: Address) -> bool:
        """Take no more clients there; whether it listened there."""
        with self._lock:
            listener = self._listeners.pop(address, None)
        if listener is None:
            return False
        if isinstance(address, UnixAddress):
            unlink_own(address.path, listener.inode)
        listener.socket.shutdown(socket.SHUT_RDWR)
        if listener.thread is not None:
            listener.thread.join()
        listener.socket.close()
        return True

    def stop(self, limit_s: float = STOP_LIMIT_S) -> None:
        """Stop accepting, answer what is in flight for at most `limit_s`, close everything (V2); once."""
        with self._lock:
            before, self._stopping = self._stopping, True
        if before:
            return
        for address in self.addresses():
            self.unlisten(address)
        with self._lock:
            connections = dict(self._connections)
        until = time.monotonic() + limit_s
        for connection in connections:
            connection.stop()
        for connection, thread in connections.items():
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                connection.cut()
        for thread in connections.values():
            thread.join()
        self._staff.workers.close()
        self._staff.drainer.close()

    def _accept(self, listener: _Listener) -> None:
        while True:
            try:
                sock = listener.socket.accept()[0]
            except OSError as error:
                if self._stopping or listener.address not in self.addresses():
                    return
                _log.warning("%s: a client couldn't be accepted: %s", listener.address, error)
                time.sleep(_ACCEPT_PAUSE_S)
                continue
            self._admit(sock)

    def _admit(self, sock: socket.socket) -> None:
        """Serve a client in a thread of its own, if there is room for it (V1)."""
        connection = Connection(sock, self._staff, self._settings.security)
        thread = threading.Thread(target=self._serve, args=(connection,), name="nbd-connection", daemon=True)
        with self._lock:
            has_room = len(self._connections) < self._settings.connections_max and not self._stopping
            if has_room:
                self._connections[connection] = thread
                thread.start()
        if not has_room:
            _log.warning("an NBD client was turned away: %d are connected", self._settings.connections_max)
            sock.close()

    def _serve(self, connection: Connection) -> None:
        try:
            connection.run()
        finally:
            with self._lock:
                del self._connections[connection]
