"""Can bytes hurt either end of NBD? Of random and mutated ones, only the room's own error comes out."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from replicator.errors import NotFoundError, UnavailableError, UsageError
from replicator.nbd import protocol as p
from replicator.nbd import reply as r
from replicator.nbd.client import ClientHandshake, Wish
from replicator.nbd.export import Context, Export, Session
from replicator.nbd.failures import NbdFormatError, NbdRefusedError
from replicator.nbd.handshake import StartTls, Tls
from replicator.nbd.options import (
    BlockSizeInfo,
    ContextRequest,
    ExportInfo,
    InfoRequest,
    pack_context,
    pack_option,
    pack_option_reply,
    unpack_context,
    unpack_info,
    unpack_server,
)
from replicator.nbd.reply_stream import Reply, ReplyStream
from replicator.nbd.request import Request, RequestFields, parse_requests, unfinished_request, validate
from replicator.nbd.server import GREETING, ServerHandshake
from replicator.nbd.uri import NbdUri
from tests.support.nbd_server import MemoryExports

CLIENT = b"\0\0\0\3" + b"".join([
    pack_option(p.OPT_STRUCTURED_REPLY),
    pack_option(p.OPT_LIST),
    pack_option(p.OPT_LIST_META_CONTEXT, ContextRequest("disk", ("base:",)).pack()),
    pack_option(p.OPT_SET_META_CONTEXT, ContextRequest("disk", ("base:allocation",)).pack()),
    pack_option(p.OPT_INFO, InfoRequest("disk", (1, 2, 3)).pack()),
    pack_option(p.OPT_GO, InfoRequest("disk", (3,)).pack()),
])  # fmt: skip
SERVER = GREETING + b"".join([
    pack_option_reply(p.OPT_STRUCTURED_REPLY, p.REP_ACK),
    pack_option_reply(p.OPT_SET_META_CONTEXT, p.REP_META_CONTEXT, pack_context(1, "base:allocation")),
    pack_option_reply(p.OPT_SET_META_CONTEXT, p.REP_ACK),
    pack_option_reply(p.OPT_GO, p.REP_INFO, ExportInfo(1 << 20, 1).pack()),
    pack_option_reply(p.OPT_GO, p.REP_INFO, BlockSizeInfo().pack()),
    pack_option_reply(p.OPT_GO, p.REP_ACK),
])  # fmt: skip
REQUESTS = b"".join([
    Request(p.CMD_READ, 1, 0, 4096).pack(),
    Request(p.CMD_WRITE, 2, 0, 64).pack() + bytes(64),
    Request(p.CMD_BLOCK_STATUS, 3, 0, 4096, p.CMD_FLAG_REQ_ONE).pack(),
])  # fmt: skip
REPLIES = b"".join([
    r.pack_data(1, 0, 16, done=False) + bytes(16),
    r.pack_hole(1, 16, 16, done=True),
    r.pack_error(2, p.ENOSPC, "full", 64),
    r.CHUNK.pack(r.chunk_head(p.REPLY_BLOCK_STATUS, True), 3, 12) + bytes([0, 0, 0, 1, 0, 0, 16, 0, 0, 0, 0, 3]),
    r.pack_simple(4),
])  # fmt: skip


def mutated(data: bytes) -> st.SearchStrategy[bytes]:
    """`data` with some bytes replaced, some cut out, some put in; or anything."""

    def change(places: list[tuple[int, int, bytes]]) -> bytes:
        changed = bytearray(data)
        for place, removed, inserted in places:
            changed[place : place + removed] = inserted
        return bytes(changed)

    place = st.tuples(st.integers(0, len(data)), st.integers(0, 5), st.binary(max_size=5))
    return st.lists(place, min_size=1, max_size=4).map(change) | st.binary(max_size=200)


@given(mutated(CLIENT), st.sampled_from(Tls))
def test_a_server_survives_any_client(data: bytes, tls: Tls) -> None:
    """Errors are events; what is kept is bounded by what came."""
    machine = ServerHandshake(MemoryExports([Export("disk", 1 << 20)]), tls)
    for begin in range(0, len(data), 50):
        events = machine.receive(data[begin : begin + 50])
        if StartTls() in events:
            machine.tls_started()


@given(mutated(SERVER), st.booleans(), st.booleans())
def test_a_client_survives_any_server(data: bytes, listing: bool, tls: bool) -> None:
    machine = ClientHandshake(Wish("disk", tls=tls, contexts=("base:allocation",), listing=listing))
    with contextlib.suppress(NbdFormatError, NbdRefusedError, NotFoundError, UnavailableError):
        for begin in range(0, len(data), 50):
            if StartTls() in machine.receive(data[begin : begin + 50]):
                machine.tls_started()


@given(mutated(REQUESTS))
def test_a_server_survives_any_request(data: bytes) -> None:
    """And each has a verdict."""
    session = Session(Export("disk", 1 << 20), True, (Context(1, p.BASE_ALLOCATION),))
    requests: list[RequestFields] = []
    with contextlib.suppress(NbdFormatError):
        end = parse_requests(data, 0, len(data), requests)
        unfinished_request(data, end, len(data))
    for kind, _, offset, length, at in requests:
        error = validate(kind, offset, length, session)
        assert error or offset + length <= 1 << 20
        assert kind & 0xFFFF != p.CMD_WRITE or at + length <= len(data)


@given(mutated(REPLIES))
def test_a_client_survives_any_reply(data: bytes) -> None:
    """A read's buffer has the length it had; what was answered and what is pending is everything."""
    stream = ReplyStream(True, frozenset({1}))
    target = bytearray(32)
    stream.expect(Request(p.CMD_READ, 1, 0, 32), target)
    stream.expect(Request(p.CMD_WRITE, 2, 0, 128))
    stream.expect(Request(p.CMD_BLOCK_STATUS, 3, 0, 4096))
    stream.expect(Request(p.CMD_FLUSH, 4))
    replies: list[Reply] = []
    with contextlib.suppress(NbdFormatError):
        for begin in range(0, len(data), 30):
            stream.receive(data[begin : begin + 30], replies)
    assert len(target) == 32
    assert len(replies) + len(stream) >= 3  # a reply that broke S3 is neither


@given(st.binary(max_size=100))
def test_option_data_of_any_bytes(data: bytes) -> None:
    """O2."""
    for decode in (InfoRequest.unpack, ContextRequest.unpack, unpack_server, unpack_context, unpack_info):
        with contextlib.suppress(NbdFormatError):
            decode(data)


@given(st.text() | st.builds("nbd{}://{}".format, st.sampled_from(["", "s", "+unix", "s+unix"]), st.text()))
def test_uris_of_any_text(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert NbdUri.parse(str(NbdUri.parse(text)))
