"""A client's socket, in the clear or inside TLS: bytes in, bytes out, from several threads.

Below exporter/outbox (which sends) and exporter/connection (which receives). One thread receives; any thread may
seal what is to be sent, under the transport's lock, since OpenSSL's state serves one thread at a time. So TLS goes
through memory: the socket only ever carries bytes, and nobody waits for it inside the lock.

Invariants
  T1  `seal` is called under `lock`, and what it returns is sent in that order.
  T2  receive_into returns 0 at the end of the stream, and after TLS's own goodbye.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Protocol, cast

from replicator._buffer import Buffer
from replicator.units import KIB, MIB

SEND_BUFFER_BYTES = 4 * MIB  # of the kernel: replies of a whole batch go without waiting for the client
_CIPHER_BYTES = 256 * KIB  # of TLS records taken from the socket at once
_SO_SNDBUFFORCE = 32


class Transport(Protocol):
    """The way in and out."""

    socket: socket.socket
    lock: threading.Lock

    def receive_into(self, target: memoryview) -> int:
        """Wait for bytes, and put them at the front of `target`; 0 at the end."""

    def seal(self, data: Buffer) -> Buffer:
        """`data` as it travels; under `lock` (T1)."""


class PlainTransport:
    """A socket in the clear."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.lock = threading.Lock()
        self.receive_into: Callable[[memoryview], int] = sock.recv_into

    def seal(self, data: Buffer) -> Buffer:
        """As it is."""
        return data


class TlsTransport:
    """The same socket, after STARTTLS and `shake_hands`."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.socket = sock
        self.lock = threading.Lock()
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._cipher = bytearray(_CIPHER_BYTES)

    def shake_hands(self) -> None:
        """TLS's own handshake; ssl.SSLError or OSError when it fails."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._send_pending()
                if not self._receive():
                    raise ConnectionError("the client left during TLS's handshake") from None
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self._send_pending()
                raise
            else:
                self._send_pending()
                return

    def receive_into(self, target: memoryview) -> int:
        """Decrypted bytes."""
        while True:
            with self.lock:
                try:
                    return cast(int, self._tls.read(len(target), target))
                except ssl.SSLWantReadError:
                    pass
                except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                    return 0
            if not self._receive():
                return 0

    def seal(self, data: Buffer) -> Buffer:
        """Encrypted; with whatever TLS itself has to say before it."""
        self._tls.write(data)
        return self._outgoing.read()

    def _receive(self) -> bool:
        count = self.socket.recv_into(self._cipher)
        if count:
            with self.lock:
                self._incoming.write(memoryview(self._cipher)[:count])
        return count > 0

    def _send_pending(self) -> None:
        if self._outgoing.pending:
            self.socket.sendall(self._outgoing.read())


def widen(sock: socket.socket) -> None:
    """Give a client's socket its buffers; TCP sends at once."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SEND_BUFFER_BYTES)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
