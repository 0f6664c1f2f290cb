"""Hostile bytes at either end of an SSH log: a typed error, an end, bounded memory, and nothing outside the folder."""

from __future__ import annotations

import contextlib
import gc
import random
import resource
from collections.abc import Callable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from replicator._buffer import Buffer
from replicator.errors import FormatError, ReplicatorError, UnavailableError
from replicator.log.rights import Rights
from replicator.log.ssh_channel import ProcessChannel
from replicator.log.stdio_client import RemoteStore
from replicator.log.stdio_connection import Connection
from replicator.log.stdio_protocol import (
    BODY_BYTES_MAX,
    HEAD_BYTES,
    PROTOCOL,
    Kind,
    decode_body,
    decode_head,
    encode_body,
    encode_head,
)
from tests.support.event_streams import VOLUME
from tests.support.loopback_store import LoopbackChannel

GROWTH_KIB = 64 * 1024
COLLECT_EVERY = 20
KINDS = [*Kind]


def frame(kind: Kind, number: int, body: bytes) -> bytes:
    return encode_head(kind, number, [body]) + body


HELLO = frame(Kind.HELLO, 1, encode_body(Kind.HELLO, PROTOCOL, True, ""))


@given(st.binary(max_size=200))
def test_any_bytes_as_a_head_or_a_body(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        decode_head(data[:HEAD_BYTES])
    for kind in KINDS:
        try:
            decode_body(kind, data)
        except FormatError:
            continue


def hostile_stream(rng: random.Random) -> bytes:
    """A greeting, perhaps, and then frames that are right, wrong, torn, too long, or no frames at all."""
    said = HELLO if rng.random() < 0.9 else b""
    for number in range(2, rng.randrange(3, 30)):
        kind = rng.choice(KINDS)
        names = [f"{VOLUME}/0000000001/claim", "../../x", "replicator-log", f"beacons/{VOLUME}", "\0", "x" * 60_000]
        name = rng.choice(names)
        body = rng.choice(
            [
                rng.randbytes(rng.randrange(0, 64)),
                encode_body(Kind.SIZE, name),
                encode_body(Kind.CREATE, rng.randrange(3), name),
                encode_body(Kind.COMMIT, rng.randrange(3)),
                encode_body(Kind.PUT, name, rng.randbytes(100)),
                encode_body(Kind.GET_RANGE, name, rng.choice((0, 1 << 63)), rng.choice((0, 5, (1 << 64) - 1))),
                encode_body(Kind.GET, name, (1 << 64) - 1),
            ]
        )
        whole = bytearray(frame(kind, number, body))
        if rng.random() < 0.2:
            whole[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        said += bytes(whole[: rng.randrange(len(whole))] if rng.random() < 0.05 else whole)
    return said


def test_a_hostile_client_gets_an_error_and_an_end(tmp_path: Path) -> None:
    root = tmp_path / "in" / "log"
    root.parent.mkdir()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ends = 0
    for seed in range(400):
        channel = LoopbackChannel(root, list(Rights)[seed % len(Rights)])
        try:
            channel.send([hostile_stream(random.Random(seed))])
            answer = channel.finish()
        except OSError:
            answer = b""
        channel.close()
        ends += channel.error is not None
        assert answer == b"" or decode_head(answer[:HEAD_BYTES]).kind in KINDS
        if not seed % COLLECT_EVERY:
            gc.collect()  # what is counted is what one client makes us hold, not how late Python lets go of it
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH_KIB
    allowed = ("temporary", "beacons", "catalogue", str(VOLUME), "replicator-log")
    assert {path.name for path in root.iterdir()} <= set(allowed)
    assert [path.name for path in tmp_path.iterdir()] == ["in"] and [path.name for path in root.parent.iterdir()] == [
        "log"
    ]
    assert not list((root / "temporary").iterdir()), "a client that went left an unfinished object"
    print(f"{ends} of 400 were ended for what they sent")
    assert ends > 300


class Says:
    """A Channel whose far end says `data`, whatever it is asked."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.closed = False

    def send(self, parts: list[Buffer]) -> None:
        """Taken."""

    def receive(self, length_bytes: int) -> Buffer:
        """The next of what it says."""
        found, self._data = self._data[:length_bytes], self._data[length_bytes:]
        return found

    def ended(self, seen: bytes) -> UnavailableError:
        """It said no more."""
        return UnavailableError(f"ended, having said {seen!r}")

    def close(self) -> None:
        """Over."""
        self.closed = True


WELCOME = frame(Kind.WELCOME, 1, encode_body(Kind.WELCOME, PROTOCOL, False, "/srv/log"))


def hostile_answer(rng: random.Random, number: int) -> bytes:
    """What a hostile server answers."""
    huge = frame(Kind.DONE, number, encode_body(Kind.DONE, rng.choice((0, 3, (1 << 64) - 1))))
    data = b"".join(frame(Kind.DATA, number, rng.randbytes(rng.randrange(40))) for _ in range(3))
    whole = bytearray(
        rng.choice(
            [
                huge,
                huge + data,
                data,
                frame(Kind.ABSENT, number, b""),
                frame(
                    Kind.FAILED, number, encode_body(Kind.FAILED, rng.choice(("format", "x", "conflict")), "m\0", "")
                ),
                frame(rng.choice(KINDS), rng.randrange(4), rng.randbytes(rng.randrange(40))),
                rng.randbytes(rng.randrange(200)),
            ]
        )
    )
    if whole and rng.random() < 0.3:
        whole[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
    return bytes(whole)


def test_a_hostile_server_is_an_error_at_the_client() -> None:
    asks = [
        lambda store: store.get("replicator-log", 100),
        lambda store: store.get_range("replicator-log", 0, 100),
        lambda store: store.size("replicator-log"),
        lambda store: store.children(""),
        lambda store: store.put("replicator-log", b"x"),
        lambda store: store.put_if_absent("replicator-log", b"x"),
    ]
    errors = 0
    for seed in range(3000):
        rng = random.Random(seed)
        greeting = WELCOME if rng.random() < 0.9 else hostile_answer(rng, 1)
        said = greeting + hostile_answer(rng, 2)

        def connect(_is_known: bool, said: bytes = said) -> Connection:
            return Connection(Says(said), "far:", "", create=False)

        store = RemoteStore("far:", connect)
        try:
            asks[seed % len(asks)](store)
        except ReplicatorError as error:
            errors += 1
            assert error.message.isprintable()
    print(f"{errors} of 3000 answers were errors")
    assert errors > 1000


def test_an_endless_answer_is_cut_off() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    endless = frame(Kind.DATA, 2, bytes(1 << 20))

    class Endless(Says):
        def receive(self, length_bytes: int) -> Buffer:
            while len(self._data) < length_bytes:
                self._data += endless
            return super().receive(length_bytes)

    started = WELCOME + frame(Kind.DONE, 2, encode_body(Kind.DONE, 1 << 40))
    asks: list[Callable[[RemoteStore], object]] = [
        lambda store: store.get("replicator-log", 5 << 20),
        lambda store: store.children(""),
    ]
    for ask in asks:
        channel = Endless(started)
        store = RemoteStore("far:", lambda _, channel=channel: Connection(channel, "far:", "", create=False))  # type: ignore[misc]  # a default binds it
        try:
            ask(store)
        except FormatError as error:
            assert "at most" in error.expected or "at most" in error.message
        else:
            raise AssertionError("an endless answer was taken")
        assert channel.closed
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 3 * GROWTH_KIB + BODY_BYTES_MAX


def test_a_program_that_is_no_replicator() -> None:
    for line, word in (("echo Welcome to this host", "Welcome to this host"), ("exit 3", "exit status 3")):
        channel = ProcessChannel(["sh", "-c", line], "host")
        try:
            Connection(channel, "ssh://host/log", "/log", create=False)
        except UnavailableError as error:
            assert word in error.message
        else:
            raise AssertionError("a shell was taken for a server")
