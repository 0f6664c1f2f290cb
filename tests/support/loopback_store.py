"""A server of objects in this process: the far end of an SSH log without ssh, for what needs no line in between."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from replicator._buffer import Buffer
from replicator.errors import FormatError, UnavailableError
from replicator.log.rights import Rights
from replicator.log.stdio_client import RemoteStore
from replicator.log.stdio_connection import Connection
from replicator.log.stdio_pipes import DescriptorPipes
from replicator.log.stdio_server import StoreServer

LIMIT_S = 20.0


class LoopbackChannel:
    """A Channel to a StoreServer that runs in a thread."""

    def __init__(self, root: Path, rights: Rights = Rights.ALL) -> None:
        self._ours, theirs = socket.socketpair()
        self._ours.settimeout(LIMIT_S)
        self.error: FormatError | None = None
        self._thread = threading.Thread(target=self._serve, args=(root, theirs, rights), daemon=True)
        self._thread.start()

    def _serve(self, root: Path, end: socket.socket, rights: Rights) -> None:
        with end:
            try:
                StoreServer(root, DescriptorPipes(end.fileno(), end.fileno()), rights).run()
            except FormatError as error:
                self.error = error
            except OSError:
                return

    def send(self, parts: list[Buffer]) -> None:
        """All of these."""
        self._ours.sendall(b"".join(bytes(part) for part in parts))

    def receive(self, length_bytes: int) -> Buffer:
        """So many bytes; fewer at the end."""
        data = b""
        while len(data) < length_bytes and (more := self._ours.recv(length_bytes - len(data))):
            data += more
        return data

    def ended(self, seen: bytes) -> UnavailableError:
        """It ended."""
        return UnavailableError(f"the server ended, having said {seen!r}")

    def finish(self) -> bytes:
        """Say that nothing more comes; what the server says until its end."""
        self._ours.shutdown(socket.SHUT_WR)
        return bytes(self.receive(1 << 30))

    def close(self) -> None:
        """End it."""
        self._ours.close()
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive(), "the server hangs"


def loopback_store(root: Path, rights: Rights = Rights.ALL, *, create: bool = True) -> RemoteStore:
    """The objects in the folder `root`, through the protocol."""

    def connect(is_known: bool) -> Connection:
        return Connection(LoopbackChannel(root, rights), "loopback:", str(root), create=create and not is_known)

    return RemoteStore("loopback:", connect)
