"""Every reader of bytes that others hand us, as a fuzzing target: what it reads, and inputs that it accepts.

    metadata, dirty         of a pool that somebody else wrote, or a disk damaged
    catalogue               an SQLite file
    nbd …                   both ends of the protocol, negotiation and transmission
    control …               both ends of the control socket
    event, record, segment  what a log's store hands out
    stdio                   the frames of `log serve`, both ends

Checksums are made right again for most inputs, so that what lies behind them is reached.
"""

from __future__ import annotations

import contextlib
import functools
import io
import struct
from collections.abc import Callable
from dataclasses import replace

from replicator.errors import FormatError, NoSpaceError, ReplicatorError
from replicator.events.beacon import Beacon, decode_beacon, encode_beacon
from replicator.events.chunks import ChunksWritten
from replicator.events.codec import decode_event, encode_event
from replicator.events.digests import crc32c
from replicator.events.frames import Decompressor
from replicator.events.header import HEADER_BYTES, event_crc
from replicator.events.layouts import type_of
from replicator.events.state import decode_state, encode_state
from replicator.log import stdio_protocol as stdio
from replicator.log.interface import Appended
from replicator.log.names import segment_name
from replicator.log.object_log import ObjectLog
from replicator.log.records import decode_entry, encode_marker, require_marker
from replicator.log.segment import SegmentKey, open_segment
from replicator.nbd import protocol as p
from replicator.nbd import reply as r
from replicator.nbd.client import ClientHandshake, Wish
from replicator.nbd.export import Context, Export, Session
from replicator.nbd.handshake import Tls
from replicator.nbd.options import (
    BlockSizeInfo,
    ContextRequest,
    ExportInfo,
    InfoRequest,
    pack_context,
    pack_option,
    pack_option_reply,
)
from replicator.nbd.reply_stream import Reply, ReplyStream
from replicator.nbd.request import Request, RequestFields, parse_requests, unfinished_request, validate
from replicator.nbd.server import GREETING, ServerHandshake
from replicator.pool.control import (
    Frame,
    FrameStream,
    Kind,
    body_of_error,
    body_of_request,
    error_of,
    read_body,
    read_request,
)
from replicator.pool.control_values import METHODS, Count, DevIds, Held, Nothing
from tests.support.event_streams import VOLUME, Script, every_body
from tests.support.fuzz_pools import catalogue_file, dirty_file, edits, read_catalogue, read_dirty, read_metadata
from tests.support.fuzzing import Target
from tests.support.memory_objects import MemoryStore
from tests.support.nbd_server import MemoryExports

_SCRIPT = Script().create().transaction(1, 2, 3)


# -- NBD ---------------------------------------------------------------------------------------------------------------

_CLIENT = b"\0\0\0\3" + b"".join((
    pack_option(p.OPT_STRUCTURED_REPLY),
    pack_option(p.OPT_LIST),
    pack_option(p.OPT_SET_META_CONTEXT, ContextRequest("disk", ("base:allocation",)).pack()),
    pack_option(p.OPT_INFO, InfoRequest("disk", (1, 2, 3)).pack()),
    pack_option(p.OPT_GO, InfoRequest("disk", (3,)).pack()),
))  # fmt: skip
_SERVER = GREETING + b"".join((
    pack_option_reply(p.OPT_STRUCTURED_REPLY, p.REP_ACK),
    pack_option_reply(p.OPT_SET_META_CONTEXT, p.REP_META_CONTEXT, pack_context(1, "base:allocation")),
    pack_option_reply(p.OPT_SET_META_CONTEXT, p.REP_ACK),
    pack_option_reply(p.OPT_GO, p.REP_INFO, ExportInfo(1 << 20, 1).pack()),
    pack_option_reply(p.OPT_GO, p.REP_INFO, BlockSizeInfo().pack()),
    pack_option_reply(p.OPT_GO, p.REP_ACK),
))  # fmt: skip
_REQUESTS = b"".join((
    Request(p.CMD_READ, 1, 0, 4096).pack(),
    Request(p.CMD_WRITE, 2, 0, 64).pack() + bytes(64),
    Request(p.CMD_BLOCK_STATUS, 3, 0, 4096, p.CMD_FLAG_REQ_ONE).pack(),
))  # fmt: skip
_REPLIES = b"".join((
    r.pack_data(1, 0, 16, done=False) + bytes(16),
    r.pack_hole(1, 16, 16, done=True),
    r.pack_error(2, p.ENOSPC, "full", 64),
    r.CHUNK.pack(r.chunk_head(p.REPLY_BLOCK_STATUS, True), 3, 12) + bytes([0, 0, 0, 1, 0, 0, 16, 0, 0, 0, 0, 3]),
    r.pack_simple(4),
))  # fmt: skip


def _in_pieces(data: bytes, receive: Callable[[bytes], object], step: int) -> None:
    for begin in range(0, len(data), step):
        receive(data[begin : begin + step])


def _negotiate_as_server(data: bytes) -> None:
    for tls in Tls:
        _in_pieces(data, ServerHandshake(MemoryExports([Export("disk", 1 << 20)]), tls).receive, 50)


def _negotiate_as_client(data: bytes) -> None:
    _in_pieces(data, ClientHandshake(Wish("disk", contexts=("base:allocation",))).receive, 50)


def _read_requests(data: bytes) -> None:
    session = Session(Export("disk", 1 << 20), True, (Context(1, p.BASE_ALLOCATION),))
    requests: list[RequestFields] = []
    end = parse_requests(data, 0, len(data), requests)
    unfinished_request(data, end, len(data))
    for kind, _, offset, length, _ in requests:
        assert validate(kind, offset, length, session) or offset + length <= 1 << 20


def _read_replies(data: bytes) -> None:
    stream, target = ReplyStream(True, frozenset({1})), bytearray(32)
    stream.expect(Request(p.CMD_READ, 1, 0, 32), target)
    stream.expect(Request(p.CMD_WRITE, 2, 0, 128))
    stream.expect(Request(p.CMD_BLOCK_STATUS, 3, 0, 4096))
    stream.expect(Request(p.CMD_FLUSH, 4))
    replies: list[Reply] = []
    _in_pieces(data, lambda part: stream.receive(part, replies), 30)
    assert len(target) == 32


# -- the control socket ------------------------------------------------------------------------------------------------


def _calls() -> tuple[bytes, ...]:
    arguments: dict[str, object] = {"reserve": Count(5), "lease": DevIds([1, 2]), "hold": Held(True)}
    bodies = [body_of_request(method, arguments.get(method, Nothing())) for method in METHODS]
    return tuple(Frame(Kind.REQUEST, 1, body).pack() for body in bodies)


def _resealed_frame(data: bytes) -> bytes:
    """A control frame whose length and checksum fit what came."""
    if len(data) < 24:
        return data
    head = data[:16] + (len(data) - 24).to_bytes(4, "little")
    return head + crc32c(data[24:], crc32c(head)).to_bytes(4, "little") + data[24:]


def _answer_call(data: bytes) -> None:
    """The owner's end: frames, the method, its arguments, and what they come to."""
    for whole in (data, _resealed_frame(data)):
        for frame in FrameStream("client").receive(whole):
            method, arguments = read_request(frame.body)
            if method in METHODS:
                asked = read_body(arguments, METHODS[method][0], method)
                value = getattr(asked, "value", None)
                if callable(value):
                    value()


def _take_answer(data: bytes) -> None:
    """The client's end: any call's answer, or an error."""
    for whole in (data, _resealed_frame(data)):
        for frame in FrameStream("owner").receive(whole):
            if frame.kind is Kind.ERROR:
                assert isinstance(error_of(frame.body), ReplicatorError)
                continue
            for method in METHODS:
                with contextlib.suppress(FormatError):
                    read_body(frame.body, METHODS[method][1], method)


def _answers() -> tuple[bytes, ...]:
    errors = (FormatError("a", "b", "c"), NoSpaceError("full", mend="grow it"))
    return (*(Frame(Kind.ERROR, 1, body_of_error(each)).pack() for each in errors), *_calls())


# -- a log -------------------------------------------------------------------------------------------------------------


def _consume(data: bytes) -> None:
    event = decode_event(data)
    assert encode_event(event.header, event.body).encoded == data
    if isinstance(event.body, ChunksWritten):
        for _ in Decompressor().iter_chunks(event.body):
            pass


def _read_event(data: bytes) -> None:
    changed = bytearray(data)
    if len(data) >= HEADER_BYTES:
        struct.pack_into("<I", changed, 8, len(data) - HEADER_BYTES)
        struct.pack_into("<I", changed, 12, event_crc(bytes(changed[:HEADER_BYTES]), [bytes(changed[HEADER_BYTES:])]))
    _consume(bytes(changed))


def _events() -> tuple[bytes, ...]:
    header = _SCRIPT.events[4].header
    return tuple(bytes(encode_event(replace(header, type=type_of(body)), body).encoded) for body in every_body())


def _read_record(data: bytes) -> None:
    """Beacons, states, entries and markers, with a checksum that fits; one of them must take it."""
    changed = bytearray(data)
    if len(data) >= 16:
        struct.pack_into("<I", changed, 8, len(data) - 16)
        struct.pack_into("<I", changed, 12, crc32c(bytes(changed[16:]), crc32c(bytes(changed[:12]))))
    refusal: FormatError | None = None
    for decode in (
        decode_state,
        decode_beacon,
        lambda each: require_marker(each, "m"),
        lambda each: decode_entry(each, "e"),
    ):
        try:
            decode(bytes(changed))
            return
        except FormatError as error:
            refusal = error
    assert refusal is not None
    raise refusal


@functools.cache
def _segment() -> bytes:
    store = MemoryStore()
    with ObjectLog(store, create=True).writer(VOLUME, 1) as writer:
        assert isinstance(writer.append(writer.state.link, _SCRIPT.events), Appended)
    return bytes(store.objects[segment_name(VOLUME, 1, 1)])


def _read_segment(data: bytes) -> None:
    opened = open_segment(data, SegmentKey("there", VOLUME, 1, 1))
    for event in opened.events_from(1):
        if isinstance(event.body, ChunksWritten):
            for _ in Decompressor().iter_chunks(event.body):
                pass


def _read_stdio(data: bytes) -> None:
    """Frames as both ends read them, and the bodies as every kind of frame."""
    head = bytearray(data[: stdio.HEAD_BYTES])
    if len(data) >= stdio.HEAD_BYTES:
        body = data[stdio.HEAD_BYTES :]
        struct.pack_into("<I", head, 12, len(body))
        struct.pack_into("<I", head, 16, crc32c(body, crc32c(bytes(head[:16]))))
    stream = io.BytesIO(bytes(head) + data[stdio.HEAD_BYTES :])
    while (frame := stdio.read_frame(stream.read)) is not None:
        found, read = frame
        if found.kind is stdio.Kind.FAILED:
            assert isinstance(stdio.decode_failure(read, "far"), ReplicatorError)
        elif found.kind not in (stdio.Kind.WRITE, stdio.Kind.DATA):
            stdio.decode_body(found.kind, read)


def _stdio_frames() -> tuple[bytes, ...]:
    kinds = stdio.Kind
    values: tuple[tuple[stdio.Kind, tuple[object, ...]], ...] = (
        (kinds.HELLO, (1, True, "/srv/log")),
        (kinds.CREATE, (1, "a/b")),
        (kinds.PUT, ("a/b", b"data")),
        (kinds.GET_RANGE, ("a/b", 5, 7)),
        (kinds.WELCOME, (1, False, "/srv/log")),
        (kinds.FAILED, ("conflict", "taken", "wait")),
    )
    bodies = [(kind, stdio.encode_body(kind, *fields)) for kind, fields in values]
    return tuple(stdio.encode_head(kind, 7, [body]) + body for kind, body in bodies)


def targets() -> dict[str, Target]:
    """All of them, by name."""
    made = (
        Target("metadata", edits(), read_metadata),
        Target("dirty", (dirty_file(),), read_dirty),
        Target("catalogue", (catalogue_file(),), read_catalogue),
        Target("nbd negotiation, server", (_CLIENT,), _negotiate_as_server),
        Target("nbd negotiation, client", (_SERVER,), _negotiate_as_client),
        Target("nbd requests", (_REQUESTS,), _read_requests),
        Target("nbd replies", (_REPLIES,), _read_replies),
        Target("control, owner", _calls(), _answer_call),
        Target("control, client", _answers(), _take_answer),
        Target("event", _events(), _read_event),
        Target(
            "record",
            (encode_state(_SCRIPT.state), encode_beacon(Beacon.of(_SCRIPT.state, 1, 2)), encode_marker()),
            _read_record,
        ),
        Target("segment", (_segment(),), _read_segment),
        Target("stdio", _stdio_frames(), _read_stdio),
    )
    return {target.name: target for target in made}
