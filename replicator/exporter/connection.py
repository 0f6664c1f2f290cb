"""One client from its first byte to its last: handshake, TLS where it is asked for, transmission, farewell.

Run by a thread of its own, which exporter/listener starts. What the protocol says is decided by nbd/server (the
handshake) and exporter/transmission; here are the socket, the limits of patience, and the end.

    what ends it                                   what the client gets
    DISC, ABORT, end of stream                     answers to what is in flight
    bytes that aren't NBD, a failed TLS handshake  nothing more; a line in the log
    no export opened within HANDSHAKE_LIMIT_S      nothing more; a line in the log
    stop: its export or the server goes            answers to what is in flight

Invariants
  C1  Whatever a client does ends its own connection at most; its socket, slot and place in the registry are given back.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import time
from dataclasses import dataclass

from replicator.errors import ReplicatorError
from replicator.exporter.bulk import Budget
from replicator.exporter.exports import Exports
from replicator.exporter.manners import Manners, peer_of
from replicator.exporter.outbox import Drainer, Outbox
from replicator.exporter.transmission import Transmission
from replicator.exporter.transport import PlainTransport, TlsTransport, Transport, widen
from replicator.exporter.workers import Workers
from replicator.nbd.export import Session
from replicator.nbd.handshake import Hangup, Send, StartTls, Tls
from replicator.nbd.server import GREETING, Begin, ServerHandshake
from replicator.units import KIB

HANDSHAKE_LIMIT_S = 30.0
_FAREWELL_S = 10.0  # for a client to take its last replies
_HANDSHAKE_BYTES = 64 * KIB

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Security:
    """TLS of a server: its stance, and the context with certificate, key and who may come."""

    tls: Tls = Tls.NONE
    context: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        assert (self.tls is Tls.NONE) == (self.context is None)


@dataclass(frozen=True, slots=True)
class Staff:
    """Who serves all connections of a server."""

    exports: Exports
    workers: Workers
    drainer: Drainer
    budget: Budget
    manners: Manners


class Connection:
    """One client; `run` in its own thread, `stop` and `cut` from any other."""

    def __init__(self, sock: socket.socket, staff: Staff, security: Security) -> None:
        self._socket, self._staff, self._security = sock, staff, security
        self._transport: Transport = PlainTransport(sock)
        self._said_goodbye = False
        self.peer = peer_of(sock)

    def run(self) -> None:
        """From the greeting to the end; never raises (C1)."""
        peer, manners = self.peer, self._staff.manners
        try:
            with contextlib.closing(self._socket):
                if not manners.admit(self._socket, peer):
                    return
                widen(self._socket)
                begun = self._shake_hands()
                if not (self._said_goodbye if begun is None else self._transmit(*begun)):
                    manners.ended_badly(peer)
        except (OSError, ReplicatorError) as error:
            manners.ended_badly(peer)
            _log.warning("NBD connection closed: %s", error)
        except Exception:  # noqa: BLE001 - a fault of ours ends one connection, not the server (C1)
            _log.exception("NBD connection closed by a fault of ours")

    def stop(self) -> None:
        """Take no more requests; what is in flight is answered."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def cut(self) -> None:
        """Don't even wait for that."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    # -- the handshake -----------------------------------------------------------------------------------------

    def _shake_hands(self) -> tuple[Session, bytes] | None:
        """What the client opened and what it sent behind that; None when it left without."""
        until = time.monotonic() + HANDSHAKE_LIMIT_S
        handshake = ServerHandshake(self._staff.exports, self._security.tls)
        buffer = memoryview(bytearray(_HANDSHAKE_BYTES))
        self._wait_until(until)
        self._say(GREETING)
        while count := self._transport.receive_into(buffer):
            for event in handshake.receive(buffer[:count]):
                self._wait_until(until)
                if isinstance(event, Send):
                    self._say(event.data)
                elif isinstance(event, StartTls):
                    self._start_tls(handshake)
                elif isinstance(event, Begin):
                    self._socket.settimeout(None)
                    return event.session, handshake.leftover
                elif isinstance(event, Hangup):
                    if event.error is not None:
                        raise event.error
                    self._said_goodbye = True
                    return None
            self._wait_until(until)
        return None

    def _wait_until(self, until: float) -> None:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"no export was opened within {HANDSHAKE_LIMIT_S:.0f} s")
        self._socket.settimeout(left)

    def _say(self, data: bytes) -> None:
        with self._transport.lock:
            sealed = self._transport.seal(data)
        self._socket.sendall(sealed)

    def _start_tls(self, handshake: ServerHandshake) -> None:
        assert self._security.context is not None
        inside = TlsTransport(self._socket, self._security.context)
        inside.shake_hands()
        self._transport = inside
        handshake.tls_started()

    # -- transmission and farewell -----------------------------------------------------------------------------

    def _transmit(self, session: Session, arrived: bytes) -> bool:
        """Serve it to its end; whether it took all of its replies."""
        name = session.export.name
        export = self._staff.exports.enter(name, self)
        if export is None:
            return True
        try:
            outbox = Outbox(self._transport, self._staff.drainer)
            transmission = Transmission(
                self._transport, arrived, outbox, self._staff.workers, self._staff.budget, export, session
            )
            taken = False
            try:
                transmission.run()
            finally:
                transmission.close()
                taken = self._take_leave(outbox)
            return taken
        finally:
            self._staff.exports.leave(name, self)

    def _take_leave(self, outbox: Outbox) -> bool:
        """The last replies, to a client that takes them soon; whether it did."""
        try:
            outbox.drain(_FAREWELL_S)
        except OSError:
            return False
        finally:
            outbox.close()
        return True
