"""Clients that mean harm, or are broken: each ends its own connection at most, and others are served on."""

from __future__ import annotations

import os
import resource
import struct

import pytest

from replicator.exporter import bulk
from replicator.exporter.transmission import ARENA_BYTES
from replicator.exporter.transport import SEND_BUFFER_BYTES
from replicator.nbd import protocol as p
from replicator.nbd.request import Request
from tests.support.nbd_ground import BLOCK, SIZE, Ground, Serving


def still_served(serving: Serving) -> None:
    """Somebody else reads and writes."""
    with serving.client() as other:
        assert other.write(SIZE - 512, b"o" * 512) == 0
        assert other.read(SIZE - 512, 512) == b"o" * 512


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", bytes(5000), b"\xff" * 100, os.urandom(100_000)])
def test_garbage_instead_of_a_handshake(serving: Serving, garbage: bytes) -> None:
    with serving.client(opened=False) as client:
        client.socket.sendall(garbage)
        still_served(serving)
        assert client.ended()


@pytest.mark.parametrize("garbage", [b"\0" * 28, b"\xff" * 28, struct.pack("!I", p.REQUEST_MAGIC + 1) + bytes(24)])
def test_garbage_instead_of_requests(serving: Serving, garbage: bytes) -> None:
    with serving.client() as client:
        client.socket.sendall(Request(p.CMD_READ, 0, 0, 512).pack() + garbage)
        assert client.reply(512)[1] == 0
        assert client.ended()
    still_served(serving)


def test_a_request_that_stops_in_the_middle(serving: Serving) -> None:
    for stump in (b"%", Request(p.CMD_READ, 0).pack()[:27], Request(p.CMD_WRITE, 0, 0, 4096).pack() + b"x" * 4095):
        with serving.client() as client:
            client.socket.sendall(stump)
            still_served(serving)


@pytest.mark.parametrize("length", [1 << 31, (1 << 32) - 1, p.MAX_REQUEST_BYTES + 1])
@pytest.mark.parametrize("command", [p.CMD_READ, p.CMD_TRIM, p.CMD_WRITE_ZEROES, p.CMD_CACHE])
def test_huge_lengths_are_refused(serving: Serving, command: int, length: int) -> None:
    with serving.client() as client:
        for offset in (0, SIZE - 1, (1 << 64) - 1):
            client.send(command, offset, length)
            assert client.reply()[1] in (p.EINVAL, p.ENOSPC)
        assert client.read(0, 1) == b"\0"


def test_a_huge_write_that_isnt_valid_is_dropped(serving: Serving) -> None:
    with serving.client() as client:
        client.send(p.CMD_WRITE, 0, 40 << 20)
        piece = bytes(1 << 20)
        for _ in range(40):
            client.socket.sendall(piece)
        assert client.reply()[1] == p.ENOSPC
        assert client.read(0, 4096) == bytes(4096)


def test_unknown_commands_and_flags(serving: Serving) -> None:
    with serving.client() as client:
        for command, flags in ((8, 0), (0xFFFF, 0), (p.CMD_READ, 1 << 15), (p.CMD_FLUSH, p.CMD_FLAG_DF)):
            client.send(command, 0, 512, flags=flags)
            assert client.reply()[1] == p.EINVAL
        assert client.read(0, 1) == b"\0"


def test_a_client_that_never_reads_is_bounded(serving: Serving, ground: Ground) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with serving.client() as greedy:
        greedy.write(0, b"d" * SIZE)
        burst = b"".join(Request(p.CMD_READ, at, (at % 32) * BLOCK, 2 * BLOCK).pack() for at in range(2000))
        greedy.socket.setblocking(False)
        sent = 0
        while sent < len(burst):
            try:
                sent += greedy.socket.send(burst[sent:])
            except BlockingIOError:
                break
        still_served(serving)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        assert grown < 2 * SEND_BUFFER_BYTES + 8 * ARENA_BYTES + SIZE + (16 << 20)
    still_served(serving)


def test_large_writes_share_a_budget() -> None:
    budget = bulk.Budget(100)
    with budget.share(60), budget.share(40):
        pass
    with pytest.raises(KeyError), budget.share(100):
        raise KeyError
    with budget.share(100):
        pass


def test_one_client_too_many_is_turned_away(serving: Serving) -> None:
    with serving.client() as one, serving.client() as two, serving.client() as three, serving.client() as four:
        with serving.client(opened=False) as fifth:
            assert fifth.socket.recv(1) == b""
        for client in (one, two, three, four):
            assert client.read(0, 1) == b"\0"
        one.send(p.CMD_DISC)
        assert one.ended()
