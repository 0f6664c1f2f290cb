"""NbdPipeline and NbdDevice against a server that the test speaks for: lost, silent, confused, limited."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Iterator

import pytest

from replicator.blockdev.nbd import NbdDevice
from replicator.blockdev.nbd_connection import NbdConnection
from replicator.blockdev.nbd_pipeline import NbdPipeline
from replicator.errors import DeviceError, UnavailableError
from replicator.nbd import protocol as p
from replicator.nbd.client import ClientSession
from replicator.nbd.failures import NbdFormatError
from replicator.nbd.options import BlockSizeInfo
from replicator.nbd.reply import pack_simple
from replicator.nbd.uri import NbdUri

SIZE = 1 << 20


@contextlib.contextmanager
def connected(
    flags: int = p.TRANSMIT_HAS_FLAGS, block_size: BlockSizeInfo | None = None
) -> Iterator[tuple[NbdConnection, socket.socket]]:
    """A connection past its handshake, and the server's end of its socket for the test to speak."""
    ours, theirs = socket.socketpair()
    session = ClientSession(SIZE, flags, block_size=block_size or BlockSizeInfo())
    with ours, theirs:
        yield NbdConnection(NbdUri(host="test"), ours, session), theirs


@contextlib.contextmanager
def talking(timeout_s: float = 60) -> Iterator[tuple[NbdPipeline, socket.socket]]:
    """The same with a pipeline over it."""
    with connected() as (connection, server), NbdPipeline(connection, timeout_s=timeout_s) as pipe:
        yield pipe, server


def test_a_lost_connection_leaves_what_is_pending() -> None:
    """L2, L3: what was answered is given out first; what wasn't stays known; every later call says why."""
    with talking() as (pipe, server):
        first, second = pipe.write(0, b"a"), pipe.write(1, b"b")
        server.sendall(pack_simple(first))
        assert [reply.request.cookie for reply in pipe.collect(1)] == [first]
        server.shutdown(socket.SHUT_RDWR)
        for call in (pipe.collect, pipe.collect, pipe.flush):
            with pytest.raises(UnavailableError):
                call()
        assert [request.cookie for request in pipe.pending] == [second]


def test_what_was_answered_before_the_end_is_given_out() -> None:
    with talking() as (pipe, server):
        first = pipe.write(0, b"a")
        pipe.write(1, b"b")
        server.sendall(pack_simple(first))
        server.shutdown(socket.SHUT_WR)
        assert [reply.request.cookie for reply in pipe.collect(2)] == [first]
        with pytest.raises(UnavailableError):
            pipe.collect()


def test_a_server_that_never_answers() -> None:
    with talking(timeout_s=0.05) as (pipe, _):
        pipe.flush()
        assert pipe.collect(0) == []
        with pytest.raises(UnavailableError, match="no answer"):
            pipe.collect()


def test_a_server_that_talks_nonsense() -> None:
    with talking() as (pipe, server):
        pipe.flush()
        server.sendall(bytes(16))
        with pytest.raises(NbdFormatError):
            pipe.collect()


def test_a_server_that_reads_nothing_until_it_is_heard() -> None:
    """More to write than a socket holds, while more replies come than a socket holds."""
    with talking() as (pipe, server):
        cookies = [pipe.write(0, bytes(1 << 20)) for _ in range(16)] + [pipe.read(0, 1 << 20) for _ in range(16)]

        def serve() -> None:
            server.sendall(b"".join(pack_simple(cookie) + bytes(1 << 20) for cookie in cookies[16:]))
            left = 16 * (28 + (1 << 20)) + 16 * 28
            while left:
                left -= len(server.recv(1 << 20))
            server.sendall(b"".join(map(pack_simple, cookies[:16])))

        serving = threading.Thread(target=serve)
        serving.start()
        assert {reply.request.cookie for reply in pipe.collect(32)} == set(cookies)
        serving.join()


class Scripted(NbdDevice):
    """A device over one connection that the test made."""

    def __init__(self, connection: NbdConnection) -> None:
        self._made = connection
        super().__init__(connection.uri)

    def _connect(self) -> NbdConnection:
        return self._made


def answering(server: socket.socket, *answers: bytes) -> threading.Thread:
    """A thread that gives these answers, one for each thing it hears."""

    def serve() -> None:
        for answer in answers:
            server.recv(1 << 16)
            server.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_a_failed_flush_bars_later_ones() -> None:
    """N1: even when the server would say "done" the next time."""
    with connected(p.TRANSMIT_HAS_FLAGS | p.TRANSMIT_SEND_FLUSH) as (connection, server):
        device = Scripted(connection)
        serving = answering(server, pack_simple(1, p.EIO))
        for _ in range(2):
            with pytest.raises(DeviceError) as caught:
                device.flush()
            assert caught.value.errno == errno.EIO
        serving.join()


def test_a_lost_connection_fails_the_device() -> None:
    """N2."""
    with connected() as (connection, server):
        device = Scripted(connection)
        server.shutdown(socket.SHUT_RDWR)
        for _ in range(2):
            with pytest.raises(DeviceError) as caught:
                device.pread(1, 0)
            assert caught.value.errno == errno.ENOTCONN


def test_a_server_with_a_minimum_block() -> None:
    """Reads are widened to it, writes that don't fit are refused, discards narrowed to nothing aren't sent."""
    with connected(p.TRANSMIT_HAS_FLAGS | p.TRANSMIT_SEND_TRIM, block_size=BlockSizeInfo(512, 4096, 65536)) as (
        connection,
        server,
    ):
        device = Scripted(connection)
        serving = answering(server, pack_simple(1) + bytes(511) + b"ab" + bytes(511))
        assert device.pread(2, 511) == b"ab"
        serving.join()
        with pytest.raises(DeviceError, match="multiples of 512"):
            device.pwrite(b"x", 0)
        device.discard(1, 1022)
        device.flush()
        assert device.block_status(1, 5) == [(5, 0)]


def test_zeros_where_the_server_has_no_word_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replicator.blockdev.nbd._LARGEST_DATA_BYTES", 8)
    with connected() as (connection, server):
        device = Scripted(connection)
        serving = answering(server, pack_simple(1), pack_simple(2))
        device.write_zeroes(0, 12)
        serving.join()
