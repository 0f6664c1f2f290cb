"""Sixteen clients of an NBD server that mean harm, each a process of its own.

    python -m tests.support.hostile SOCKET SECONDS KIND…

    disconnect   comes, begins a handshake, a request or a write, and hangs up in the middle; again, 20 times a second
    stall        opens the export, sends half a write, then says nothing more; or asks for much and takes nothing
    flood        asks for more than anybody needs: reads without taking answers, options without end, big lengths
    lie          wrong magics, lengths, flags, offsets beyond the end, names of 4,096 letters

Sixteen processes, dealt out to the kinds that are named, until the time is over or SIGTERM comes; then one line with
what each kind did.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import random
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from replicator.exporter.address import connect_unix
from replicator.nbd import protocol as p
from replicator.nbd.options import OPTION
from replicator.nbd.request import Request
from tests.support.nbd_ground import Client

CLIENTS = 16
_PAUSE_S = 0.05
_STALL_S = 0.5
Deed = Callable[[socket.socket, random.Random], None]
_ended = multiprocessing.get_context("fork").RawValue("b")  # shared by all clients: whether they are to end now


def _option(number: int, data: bytes) -> bytes:
    return OPTION.pack(p.OPTION_MAGIC, number, len(data)) + data


def _disconnect(sock: socket.socket, chance: random.Random) -> None:
    how = chance.randrange(4)
    if how == 0:
        sock.sendall(struct.pack("!I", 3)[: chance.randrange(4)])
        return
    Client(sock).open("vol")
    if how == 1:
        sock.sendall(Request(p.CMD_READ, 0, 0, 4096).pack()[: chance.randrange(28)])
    elif how == 2:
        sock.sendall(Request(p.CMD_WRITE, 0, 0, 65536).pack() + bytes(chance.randrange(65536)))
    else:
        sock.sendall(Request(p.CMD_READ, 0, 0, 65536).pack() * 8)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _stall(sock: socket.socket, chance: random.Random) -> None:
    Client(sock).open("vol")
    if chance.random() < 0.5:
        sock.sendall(Request(p.CMD_WRITE, 0, 0, 1 << 20).pack() + bytes(1 << 19))
    else:
        _send_until_full(sock, Request(p.CMD_READ, 0, 0, 1 << 20).pack() * 64)
    time.sleep(_STALL_S)


def _flood(sock: socket.socket, chance: random.Random) -> None:
    if chance.random() < 0.3:
        Client(sock).take(18)
        _send_until_full(sock, struct.pack("!I", 3) + _option(p.OPT_LIST, b"") * 2000)
    else:
        Client(sock).open("vol")
        length = chance.choice((4096, 65536, 1 << 20, p.MAX_REQUEST_BYTES))
        _send_until_full(sock, Request(p.CMD_READ, 0, 0, length).pack() * 4000)
    time.sleep(_PAUSE_S)


def _lie(sock: socket.socket, chance: random.Random) -> None:
    client = Client(sock)
    how = chance.randrange(5)
    if how == 0:
        sock.sendall(chance.randbytes(4096))
    elif how == 1:
        client.take(18)
        name = struct.pack("!I", 4096) + b"n" * 4096 + struct.pack("!H", 0)
        sock.sendall(struct.pack("!I", 3) + _option(p.OPT_GO, name) + OPTION.pack(p.OPTION_MAGIC, p.OPT_GO, 1 << 31))
    else:
        client.open("vol")
        offset = chance.choice((1 << 40, (1 << 64) - 1, (1 << 64) - 4096))
        command = chance.choice((p.CMD_READ, p.CMD_WRITE, p.CMD_TRIM, p.CMD_BLOCK_STATUS, 99))
        length = chance.choice((0, 1 << 31, (1 << 32) - 1))
        sock.sendall(Request(command, 1, offset, length, chance.choice((0, 1 << 15))).pack())
        sock.sendall(chance.randbytes(28 * 64))
    sock.settimeout(_PAUSE_S)
    with contextlib.suppress(TimeoutError):
        while sock.recv(65536):
            pass


def _send_until_full(sock: socket.socket, data: bytes) -> None:
    sock.setblocking(False)
    view = memoryview(data)
    with contextlib.suppress(BlockingIOError):
        while view:
            view = view[sock.send(view) :]
    sock.settimeout(1)


DEEDS: dict[str, Deed] = {"disconnect": _disconnect, "stall": _stall, "flood": _flood, "lie": _lie}


def _misbehave(path: Path, kind: str, end: float, seed: int) -> int:
    """One client, as often as the server hears it; how often that was."""
    chance, did = random.Random(seed), 0
    while time.monotonic() < end and not _ended.value:
        with contextlib.suppress(OSError, EOFError, AssertionError, struct.error), connect_unix(path) as sock:
            sock.settimeout(max(0.1, min(10.0, end - time.monotonic())))
            did += 1
            DEEDS[kind](sock, chance)
        time.sleep(_PAUSE_S)
    return did


def _end(*_: object) -> None:
    _ended.value = 1


def main(path: str, seconds: str, *kinds: str) -> None:
    """Misbehave until the time is over."""
    end = time.monotonic() + float(seconds)
    signal.signal(signal.SIGTERM, _end)
    print("ready", flush=True)
    clients = [kinds[number % len(kinds)] for number in range(CLIENTS)]
    did: Counter[str] = Counter()
    with ProcessPoolExecutor(CLIENTS, multiprocessing.get_context("fork")) as pool:
        jobs = {pool.submit(_misbehave, Path(path), kind, end, seed): kind for seed, kind in enumerate(clients)}
        for job, kind in jobs.items():
            did[kind] += job.result()
    print(json.dumps(did), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
