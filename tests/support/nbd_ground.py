"""A server of ours inside the test's process, over memory and a file, and a bare client that says what it likes.

Invariant G1: what `serving_ground` makes is stopped and closed when its block ends.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from replicator.blockdev.file import FileDevice
from replicator.blockdev.interface import BlockDevice
from replicator.blockdev.memory import MemoryDevice
from replicator.exporter.address import UnixAddress, connect_unix
from replicator.exporter.exports import Export, Exports
from replicator.exporter.listener import NbdServer, ServerSettings
from replicator.nbd import protocol as p
from replicator.nbd.options import OPTION, InfoRequest
from replicator.nbd.request import Request
from replicator.thin.device import ThinDevice
from replicator.thin.engine import Engine
from replicator.thin.metadata import PoolMetadata
from replicator.thin.opening import open_engine

BLOCK = 65536
BLOCKS = 128
SIZE = 64 * BLOCK


@dataclass(slots=True)
class Ground:
    """A pool with one volume."""

    engine: Engine
    device: ThinDevice
    data: BlockDevice


@contextlib.contextmanager
def made_ground(folder: Path, data: BlockDevice) -> Iterator[Ground]:
    """A pool over memory and `data`, with volume 1."""
    metadata = MemoryDevice(4 << 20)
    pool = PoolMetadata.format(metadata, BLOCK, BLOCKS, b"u" * 16)
    pool.create_thin(1)
    pool.commit(lambda: None)
    engine, _ = open_engine(metadata, data, folder / "dirty")
    try:
        yield Ground(engine, engine.open_device(1, SIZE, read_only=False), data)
    finally:
        engine.close()


@contextlib.contextmanager
def made_file_ground(folder: Path) -> Iterator[Ground]:
    """The same over a file."""
    with FileDevice.create(folder / "data", BLOCKS * BLOCK) as data, made_ground(folder, data) as ground:
        yield ground


class Serving:
    """A server on a Unix socket, and clients of it."""

    def __init__(self, ground: Ground, path: Path, settings: ServerSettings) -> None:
        self.exports = Exports()
        self.exports.put("vol", Export(ground.device))
        self.server = NbdServer(ground.engine.gate, self.exports, settings)
        self.path = path
        self.server.listen(UnixAddress(path))

    @contextlib.contextmanager
    def client(self, *, opened: bool = True) -> Iterator[Client]:
        """A connection, with the default export open."""
        with connect_unix(self.path) as sock:
            sock.settimeout(20)
            client = Client(sock)
            if opened:
                client.open()
            yield client


class Client:
    """Bytes in and out; simple replies."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    def take(self, count: int) -> bytes:
        """Exactly that many bytes."""
        parts = bytearray()
        while len(parts) < count:
            more = self.socket.recv(count - len(parts))
            if not more:
                raise EOFError(f"the server closed after {len(parts)} of {count} bytes")
            parts += more
        return bytes(parts)

    def open(self, name: str = "") -> None:
        """The shortest way into an export."""
        self.take(18)
        self.socket.sendall(struct.pack("!I", 3))
        data = InfoRequest(name).pack()
        self.socket.sendall(OPTION.pack(p.OPTION_MAGIC, p.OPT_GO, len(data)) + data)
        while True:
            _, _, reply, length = struct.unpack("!QIII", self.take(20))
            self.take(length)
            if reply == p.REP_ACK:
                return
            assert reply == p.REP_INFO, reply

    def send(self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b"") -> None:
        """A request with its offset as cookie."""
        self.socket.sendall(Request(command, offset, offset, length, flags).pack() + data)

    def reply(self, data_bytes: int = 0) -> tuple[int, int, bytes]:
        """(cookie, error, data) of a simple reply."""
        magic, error, cookie = struct.unpack("!IIQ", self.take(16))
        assert magic == p.SIMPLE_REPLY_MAGIC
        return cookie, error, b"" if error else self.take(data_bytes)

    def read(self, offset: int, length: int) -> bytes:
        """A READ that succeeds."""
        self.send(p.CMD_READ, offset, length)
        cookie, error, data = self.reply(length)
        assert (cookie, error) == (offset, 0)
        return data

    def write(self, offset: int, data: bytes, *, flags: int = 0) -> int:
        """A WRITE; its error."""
        self.send(p.CMD_WRITE, offset, len(data), flags=flags, data=data)
        cookie, error, _ = self.reply()
        assert cookie == offset
        return error

    def ended(self) -> bool:
        """Whether the server has closed the connection."""
        with contextlib.suppress(ConnectionResetError):
            while self.socket.recv(65536):
                pass
        return True


@contextlib.contextmanager
def serving_ground(ground: Ground, path: Path, settings: ServerSettings | None = None) -> Iterator[Serving]:
    """A server over it, stopped with the block (G1)."""
    made = Serving(ground, path, settings or ServerSettings())
    try:
        yield made
    finally:
        made.server.stop()
