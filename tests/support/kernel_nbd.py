"""The kernel's NBD client by its netlink interface: a disk that outlives its server. Runs in the guest.

The program nbd-client 3.24 can ask the kernel for a connection, but neither for patience when the server dies nor for
another socket afterwards: its -persist fails what is in flight. The kernel itself can do both (linux,
include/uapi/linux/nbd-netlink.h): NBD_CMD_CONNECT with a time for which dead connections are waited for, and
NBD_CMD_RECONFIGURE with a new socket, upon which what was not answered is sent again.

    message      nlmsghdr (length u32, type u16, flags u16, sequence u32, port u32), genlmsghdr (command u8, version u8,
                 reserved u16), attributes
    attribute    length u16 with these four bytes, type u16, value, padded to four; little endian

Invariant: a request that was in flight at the death waits TIMEOUT_S, and is then sent over the new socket.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from replicator.blockdev.nbd_connection import connect
from replicator.errors import ReplicatorError
from replicator.nbd.uri import NbdUri

TIMEOUT_S = 3  # until a request that the dead server had is sent again
PATIENCE_S = 60  # for a server that is away
POLL_S = 0.1
_GENERIC, _CONTROL, _GET_FAMILY = 16, 16, 3
_FAMILY_NAME, _FAMILY_ID = 2, 1
_CONNECT, _DISCONNECT, _RECONFIGURE = 1, 2, 3
_INDEX, _SIZE, _BLOCK, _TIMEOUT, _SERVER_FLAGS, _SOCKETS, _DEAD_TIMEOUT = 1, 2, 3, 4, 5, 7, 8
_SOCKET_ITEM, _SOCKET_FD, _NESTED = 1, 1, 0x8000
_REQUEST_ACK = 1 | 4


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _u64(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=Q", value))


def _sockets(fd: int) -> bytes:
    item = _attribute(_SOCKET_ITEM | _NESTED, _attribute(_SOCKET_FD, struct.pack("=I", fd)))
    return _attribute(_SOCKETS | _NESTED, item)


class Netlink:
    """Generic netlink, to the family "nbd"."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _GENERIC)
        self._socket.bind((0, 0))
        answer = self._call(_CONTROL, _GET_FAMILY, _attribute(_FAMILY_NAME, b"nbd\0"))
        self._family = _u16_attribute(answer[20:], _FAMILY_ID)

    def nbd(self, command: int, *attributes: bytes) -> None:
        """One command; OSError if the kernel refuses it."""
        self._call(self._family, command, *attributes)

    def _call(self, family: int, command: int, *attributes: bytes) -> bytes:
        body = struct.pack("=BBH", command, 1, 0) + b"".join(attributes)
        self._socket.send(struct.pack("=IHHII", 16 + len(body), family, _REQUEST_ACK, 1, 0) + body)
        answer = b""
        while True:
            data = self._socket.recv(65536)
            if struct.unpack_from("=H", data, 4)[0] != 2:  # not NLMSG_ERROR, which is also the acknowledgement
                answer = data
                continue
            error = -struct.unpack_from("=i", data, 16)[0]
            if error:
                raise OSError(error, os.strerror(error))
            return answer


def _u16_attribute(attributes: bytes, wanted: int) -> int:
    at = 0
    while at < len(attributes):
        length, kind = struct.unpack_from("=HH", attributes, at)
        if kind == wanted:
            return int(struct.unpack_from("=H", attributes, at + 4)[0])
        at += length + (-length % 4)
    raise LookupError("the kernel has no nbd family")


@contextlib.contextmanager
def lasting_disk(uri: str, index: int = 0) -> Iterator[Path]:
    """/dev/nbdINDEX on the export that `uri` names, kept through every death of its server."""
    link, watched = Netlink(), [_dial(uri)]
    sock, size, flags = watched[0]
    link.nbd(
        _CONNECT,
        _attribute(_INDEX, struct.pack("=I", index)),
        _u64(_SIZE, size),
        _u64(_BLOCK, 4096),
        _u64(_TIMEOUT, TIMEOUT_S),
        _u64(_SERVER_FLAGS, flags),
        _u64(_DEAD_TIMEOUT, PATIENCE_S),
        _sockets(sock.fileno()),
    )
    ending = threading.Event()
    watcher = threading.Thread(target=_keep, args=(uri, index, watched, ending))
    watcher.start()
    try:
        yield Path(f"/dev/nbd{index}")
    finally:
        ending.set()
        watcher.join()
        link.nbd(_DISCONNECT, _attribute(_INDEX, struct.pack("=I", index)))


def _keep(uri: str, index: int, watched: list[tuple[socket.socket, int, int]], ending: threading.Event) -> None:
    """Give the kernel another socket whenever the one it has is dead."""
    link = Netlink()
    while not ending.wait(POLL_S):
        poll = select.poll()
        poll.register(watched[0][0], select.POLLRDHUP)
        if not poll.poll(0):
            continue
        with contextlib.suppress(ReplicatorError):  # the server isn't there yet
            there = _dial(uri)
            link.nbd(_RECONFIGURE, _attribute(_INDEX, struct.pack("=I", index)), _sockets(there[0].fileno()))
            watched[0][0].close()
            watched[0] = there


def _dial(uri: str) -> tuple[socket.socket, int, int]:
    """A socket past the handshake, with simple replies, and the export's size and flags."""
    connection = connect(NbdUri.parse(uri), structured=False, contexts=())
    connection.socket.settimeout(None)
    export = connection.session
    return connection.socket, export.size_bytes, export.flags
