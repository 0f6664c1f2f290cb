"""Reply headers as bytes, and the client's decoder on replies of every kind."""

from __future__ import annotations

import pytest

from replicator.nbd import protocol as p
from replicator.nbd import reply as r
from replicator.nbd.coverage import MAX_PIECES, Coverage
from replicator.nbd.failures import NbdFormatError
from replicator.nbd.reply_stream import MAX_PAYLOAD_BYTES, Reply, ReplyStream
from replicator.nbd.request import Request

C = 0x0102030405060708
COOKIE = "0102030405060708"


@pytest.mark.parametrize(
    ("packed", "expected"),
    [
        (r.pack_simple(C), f"67446698 00000000 {COOKIE}"),
        (r.pack_simple(C, p.EINVAL), f"67446698 00000016 {COOKIE}"),
        (r.pack_none(C), f"668e33ef 0001 0000 {COOKIE} 00000000"),
        (r.pack_data(C, 4096, 512, done=True), f"668e33ef 0001 0001 {COOKIE} 00000208 0000000000001000"),
        (r.pack_data(C, 4096, 512, done=False), f"668e33ef 0000 0001 {COOKIE} 00000208 0000000000001000"),
        (r.pack_hole(C, 4096, 512, done=True), f"668e33ef 0001 0002 {COOKIE} 0000000c 0000000000001000 00000200"),
        (r.pack_hole(C, 4096, 512, done=False), f"668e33ef 0000 0002 {COOKIE} 0000000c 0000000000001000 00000200"),
        (r.pack_error(C, p.ENOSPC, "full"), f"668e33ef 0001 8001 {COOKIE} 0000000a 0000001c 0004 66756c6c"),
        (r.pack_error(C, p.EIO, "", 512), f"668e33ef 0001 8002 {COOKIE} 0000000e 00000005 0000 0000000000000200"),
        (r.pack_failure(C, p.EPERM, structured=False, message="x"), f"67446698 00000001 {COOKIE}"),
        (r.pack_failure(C, p.EPERM, structured=True), f"668e33ef 0001 8001 {COOKIE} 00000006 00000001 0000"),
    ],
)
def test_replies_as_bytes(packed: bytes, expected: str) -> None:
    assert packed == bytes.fromhex(expected)


def test_an_error_message_is_cut_between_letters() -> None:
    """4096 bytes at most, and still UTF-8."""
    packed = r.pack_error(C, p.EIO, "x" + "ü" * 3000)
    assert packed[26:].decode() == "x" + "ü" * 2047


READ = Request(p.CMD_READ, C, 1000, 10)
FLUSH = Request(p.CMD_FLUSH, C)
STATUS = Request(p.CMD_BLOCK_STATUS, C, 0, 1 << 20)


def received(request: Request, data: bytes, *, structured: bool = True) -> list[Reply]:
    stream = ReplyStream(structured, frozenset({5}))
    stream.expect(request, bytearray(request.length_bytes) if request.command == p.CMD_READ else b"")
    replies: list[Reply] = []
    stream.receive(data, replies)
    assert (stream.pending == ()) == bool(replies)
    return replies


def chunk(kind: int, payload: bytes, *, done: bool = True, cookie: int = C) -> bytes:
    return r.CHUNK.pack(r.chunk_head(kind, done), cookie, len(payload)) + payload


def status(context: int, *extents: tuple[int, int]) -> bytes:
    words = [context, *(word for extent in extents for word in extent)]
    return b"".join(word.to_bytes(4, "big") for word in words)


@pytest.mark.parametrize(
    "data",
    [
        r.pack_data(C, 1000, 10, done=True) + b"0123456789",
        r.pack_data(C, 1000, 10, done=False) + b"0123456789" + r.pack_none(C),
        r.pack_data(C, 1005, 5, done=False) + b"56789" + r.pack_data(C, 1000, 5, done=True) + b"01234",
    ],
)
def test_data_in_chunks_of_any_order(data: bytes) -> None:
    (reply,) = received(READ, data)
    assert bytes(reply.data) == b"0123456789" and reply.request is READ and not reply.error


def test_holes_are_zeros() -> None:
    (reply,) = received(READ, r.pack_hole(C, 1002, 8, done=False) + r.pack_data(C, 1000, 2, done=True) + b"ab")
    assert bytes(reply.data) == b"ab" + bytes(8)


@pytest.mark.parametrize(
    ("request_", "data", "structured", "error", "message"),
    [
        (READ, r.pack_simple(C, p.EIO), False, p.EIO, ""),
        (READ, r.pack_error(C, p.EIO, "bad disk"), True, p.EIO, "bad disk"),
        (READ, r.pack_data(C, 1000, 1, done=False) + b"x" + r.pack_error(C, p.EIO, "", 1001), True, p.EIO, ""),
        (READ, chunk(0x8123, b"\0\0\0\x16\0\x01?more"), True, p.EINVAL, "?"),
        (READ, r.pack_error(C, p.EIO, "a")[:5] + b"\0" + r.pack_error(C, p.EIO, "a")[6:]
         + r.pack_error(C, p.EINVAL, "b"), True, p.EIO, "a"),
        (FLUSH, r.pack_simple(C), True, 0, ""),
        (FLUSH, r.pack_simple(C, p.EIO), True, p.EIO, ""),
        (FLUSH, r.pack_none(C), True, 0, ""),
        (STATUS, r.pack_simple(C, p.EINVAL), True, p.EINVAL, ""),
    ],
)  # fmt: skip
def test_outcomes(request_: Request, data: bytes, structured: bool, error: int, message: str) -> None:
    (reply,) = received(request_, data, structured=structured)
    assert (reply.error, reply.message) == (error, message)


def test_block_status() -> None:
    """A last descriptor that reaches beyond the request is cut."""
    (reply,) = received(STATUS, chunk(p.REPLY_BLOCK_STATUS, status(5, (4096, 3), (1 << 20, 0))))
    assert reply.extents == {5: [(4096, 3), ((1 << 20) - 4096, 0)]}


BREACHES = [
    (READ, b"\x67\x44\x66\x99" + bytes(12), True),
    (READ, r.pack_simple(C + 1), False),
    (READ, r.pack_simple(C) + bytes(10), True),
    (READ, r.pack_none(C), False),
    (READ, r.pack_none(C), True),
    (READ, r.pack_data(C, 1000, 9, done=True) + bytes(9), True),
    (READ, r.pack_data(C, 999, 10, done=True), True),
    (READ, r.pack_data(C, 1001, 10, done=True), True),
    (READ, r.pack_data(C, 1000, 0, done=True), True),
    (READ, r.pack_data(C, 1000, 6, done=False) + bytes(6) + r.pack_data(C, 1005, 5, done=True), True),
    (READ, r.pack_hole(C, 1000, 0, done=True), True),
    (READ, r.pack_hole(C, 1000, 4096, done=True), True),
    (READ, chunk(p.REPLY_NONE, b"", done=False), True),
    (READ, chunk(p.REPLY_NONE, b"x"), True),
    (READ, chunk(7, b""), True),
    (READ, chunk(p.REPLY_BLOCK_STATUS, status(5, (10, 0))), True),
    (READ, chunk(p.REPLY_ERROR, b"\0\0\0\5"), True),
    (READ, chunk(p.REPLY_ERROR, b"\0\0\0\0\0\0"), True),
    (READ, chunk(p.REPLY_ERROR, b"\0\0\0\5\0\2x"), True),
    (READ, chunk(p.REPLY_ERROR_OFFSET, b"\0\0\0\5\0\0"), True),
    (READ, r.CHUNK.pack(r.chunk_head(p.REPLY_ERROR, True), C, MAX_PAYLOAD_BYTES + 1), True),
    (FLUSH, r.pack_data(C, 0, 10, done=True), True),
    (FLUSH, r.pack_hole(C, 0, 10, done=True), True),
    (STATUS, r.pack_simple(C), True),
    (STATUS, r.pack_none(C), True),
    (STATUS, chunk(p.REPLY_BLOCK_STATUS, status(6, (4096, 0))), True),
    (STATUS, chunk(p.REPLY_BLOCK_STATUS, status(5, (4096, 0)), done=False) * 2, True),
    (STATUS, chunk(p.REPLY_BLOCK_STATUS, status(5)), True),
    (STATUS, chunk(p.REPLY_BLOCK_STATUS, status(5, (0, 0))), True),
    (STATUS, chunk(p.REPLY_BLOCK_STATUS, status(5, (1 << 20, 0), (1, 0))), True),
    (STATUS, chunk(p.REPLY_BLOCK_STATUS, status(5, (1, 0)) + b"x"), True),
]


@pytest.mark.parametrize(("request_", "data", "structured"), BREACHES)
def test_breaches_of_the_protocol(request_: Request, data: bytes, structured: bool) -> None:
    with pytest.raises(NbdFormatError):
        received(request_, data, structured=structured)


def test_what_came_before_a_breach_is_known() -> None:
    """S5: of two requests the answered one is given out, the other stays pending."""
    stream = ReplyStream()
    other = Request(p.CMD_FLUSH, 9)
    stream.expect(FLUSH)
    stream.expect(other)
    replies: list[Reply] = []
    with pytest.raises(NbdFormatError):
        stream.receive(r.pack_simple(C) + bytes(16), replies)
    assert replies == [Reply(FLUSH)] and stream.pending == (other,)


def test_a_reply_scattered_into_too_many_pieces() -> None:
    """V2: memory doesn't follow the server's whim."""
    coverage = Coverage(0, 1 << 20)
    with pytest.raises(NbdFormatError):
        for piece in range(MAX_PIECES + 1):
            coverage.add(piece * 2, 1)
