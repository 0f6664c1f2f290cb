"""Requests: their bytes, parsing by the buffer (R1, R2), and every error that validate decides (R3)."""

from __future__ import annotations

import pytest

from replicator.nbd import protocol as p
from replicator.nbd.export import Context, Export, Session
from replicator.nbd.failures import NbdFormatError
from replicator.nbd.request import Request, RequestFields, parse_requests, unfinished_request, validate

SIZE = 1 << 30
MIB = 1 << 20
READ_4K = bytes.fromhex("25609513 0000 0000 0000000000000007 0000000000001000 00001000")
WRITE_3 = bytes.fromhex("25609513 0001 0001 ffffffffffffffff 0000000000000200 00000003") + b"abc"
FLUSH = bytes.fromhex("25609513 0000 0003 0000000000000009 0000000000000000 00000000")


@pytest.mark.parametrize(
    ("request_", "header"),
    [
        (Request(p.CMD_READ, 7, 4096, 4096), READ_4K),
        (Request(p.CMD_WRITE, (1 << 64) - 1, 512, 3, p.CMD_FLAG_FUA), WRITE_3[:28]),
        (Request(p.CMD_FLUSH, 9), FLUSH),
    ],
)
def test_a_request_as_bytes(request_: Request, header: bytes) -> None:
    assert request_.pack() == header


def parsed(data: bytes, begin: int = 0) -> tuple[list[RequestFields], int]:
    requests: list[RequestFields] = []
    return requests, parse_requests(data, begin, len(data), requests)


def test_a_buffer_of_requests_is_parsed_at_once() -> None:
    """Kinds hold flags and command; the data of a WRITE is found by its position."""
    buffer = b"--" + READ_4K + WRITE_3 + FLUSH
    requests, end = parsed(buffer, begin=2)
    assert requests == [(0, 7, 4096, 4096, 30), (0x10001, (1 << 64) - 1, 512, 3, 58), (3, 9, 0, 0, 89)]
    assert buffer[58:61] == b"abc" and end == len(buffer)


@pytest.mark.parametrize("cut", range(len(READ_4K), len(READ_4K + WRITE_3)))
def test_an_unfinished_request_stays(cut: int) -> None:
    """R1: not one byte of it is consumed; with a whole header it can be looked at."""
    data = (READ_4K + WRITE_3)[:cut]
    requests, end = parsed(data)
    assert len(requests) == 1 and end == 28
    unfinished = unfinished_request(data, end, len(data))
    assert unfinished == ((0x10001, (1 << 64) - 1, 512, 3, 56) if cut >= 56 else None)


def test_a_wrong_magic_comes_after_what_was_right() -> None:
    """R2: the requests before it are answered, then the connection ends."""
    bad = b"\0" + WRITE_3[1:]
    requests, end = parsed(READ_4K + bad)
    assert len(requests) == 1 and end == 28
    for call in (lambda: parsed(bad), lambda: unfinished_request(bad, 0, len(bad))):
        with pytest.raises(NbdFormatError):
            call()


WRITABLE = Session(Export("disk", SIZE), structured=True, contexts=(Context(1, p.BASE_ALLOCATION),))
READ_ONLY = Session(Export("disk", SIZE, read_only=True), structured=True)
SIMPLE = Session(Export("disk", SIZE))
FUA, NO_HOLE, DF = p.CMD_FLAG_FUA, p.CMD_FLAG_NO_HOLE, p.CMD_FLAG_DF
REQ_ONE, FAST = p.CMD_FLAG_REQ_ONE, p.CMD_FLAG_FAST_ZERO

VERDICTS = [
    (p.CMD_READ, 0, 0, 1, WRITABLE, 0),
    (p.CMD_READ, 0, SIZE - 1, 1, WRITABLE, 0),
    (p.CMD_READ, 0, 0, 32 * MIB, WRITABLE, 0),
    (p.CMD_READ, DF | FUA, 5, 7, WRITABLE, 0),
    (p.CMD_READ, 0, 0, 4096, READ_ONLY, 0),
    (p.CMD_READ, 0, 0, 32 * MIB + 1, WRITABLE, p.EINVAL),
    (p.CMD_READ, DF, 0, 32 * MIB + 1, WRITABLE, p.EOVERFLOW),
    (p.CMD_READ, DF, 0, 4096, SIMPLE, p.EINVAL),
    (p.CMD_READ, 0, 0, 0, WRITABLE, p.EINVAL),
    (p.CMD_READ, 0, SIZE, 1, WRITABLE, p.EINVAL),
    (p.CMD_READ, 0, SIZE - 1, 2, WRITABLE, p.EINVAL),
    (p.CMD_READ, 0, (1 << 64) - 1, 2, WRITABLE, p.EINVAL),
    (p.CMD_READ, NO_HOLE, 0, 1, WRITABLE, p.EINVAL),
    (p.CMD_READ, REQ_ONE, 0, 1, WRITABLE, p.EINVAL),
    (p.CMD_READ, 1 << 5, 0, 1, WRITABLE, p.EINVAL),
    (p.CMD_READ, 1 << 15, 0, 1, WRITABLE, p.EINVAL),
    (p.CMD_WRITE, FUA, SIZE - 1, 1, WRITABLE, 0),
    (p.CMD_WRITE, 0, SIZE - 1, 2, WRITABLE, p.ENOSPC),
    (p.CMD_WRITE, 0, 0, 0, WRITABLE, p.EINVAL),
    (p.CMD_WRITE, 0, 0, 32 * MIB + 1, WRITABLE, p.EINVAL),
    (p.CMD_WRITE, DF, 0, 1, WRITABLE, p.EINVAL),
    (p.CMD_WRITE, 0, 0, 1, READ_ONLY, p.EPERM),
    (p.CMD_WRITE, 0, SIZE, 1, READ_ONLY, p.EPERM),
    (p.CMD_FLUSH, 0, 0, 0, WRITABLE, 0),
    (p.CMD_FLUSH, FUA, 0, 0, READ_ONLY, 0),
    (p.CMD_FLUSH, 0, 1, 0, WRITABLE, p.EINVAL),
    (p.CMD_FLUSH, 0, 0, 1, WRITABLE, p.EINVAL),
    (p.CMD_TRIM, FUA, 0, SIZE, WRITABLE, 0),
    (p.CMD_TRIM, 0, 1, SIZE, WRITABLE, p.EINVAL),
    (p.CMD_TRIM, NO_HOLE, 0, 1, WRITABLE, p.EINVAL),
    (p.CMD_TRIM, 0, 0, 1, READ_ONLY, p.EPERM),
    (p.CMD_CACHE, 0, 0, SIZE, WRITABLE, 0),
    (p.CMD_CACHE, 0, 0, SIZE, READ_ONLY, 0),
    (p.CMD_CACHE, 0, 1, SIZE, WRITABLE, p.EINVAL),
    (p.CMD_WRITE_ZEROES, FUA | NO_HOLE, 3, 5, WRITABLE, 0),
    (p.CMD_WRITE_ZEROES, FAST, 0, SIZE, WRITABLE, 0),
    (p.CMD_WRITE_ZEROES, FAST | NO_HOLE, 0, SIZE, WRITABLE, p.ENOTSUP),
    (p.CMD_WRITE_ZEROES, 0, 1, SIZE, WRITABLE, p.ENOSPC),
    (p.CMD_WRITE_ZEROES, 0, 0, 1, READ_ONLY, p.EPERM),
    (p.CMD_BLOCK_STATUS, REQ_ONE, 0, SIZE, WRITABLE, 0),
    (p.CMD_BLOCK_STATUS, 0, 1, SIZE, WRITABLE, p.EINVAL),
    (p.CMD_BLOCK_STATUS, 0, 0, 1, READ_ONLY, p.EINVAL),
    (p.CMD_BLOCK_STATUS, DF, 0, 1, WRITABLE, p.EINVAL),
    (8, 0, 0, 1, WRITABLE, p.EINVAL),
    (0xFFFF, 0, 0, 1, WRITABLE, p.EINVAL),
]


@pytest.mark.parametrize(("command", "flags", "offset", "length", "session", "error"), VERDICTS)
def test_validate(command: int, flags: int, offset: int, length: int, session: Session, error: int) -> None:
    assert validate(flags << 16 | command, offset, length, session) == error
