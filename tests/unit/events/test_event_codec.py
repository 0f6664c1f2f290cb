"""Every body to bytes and back; what breaks a value's rules can't be built; what breaks the format can't be read."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from uuid import UUID

import pytest

from replicator.errors import FormatError
from replicator.events import bodies as b
from replicator.events.beacon import Beacon, decode_beacon, encode_beacon
from replicator.events.chunks import ChunksDiscarded, ChunksZeroed
from replicator.events.codec import decode_event, encode_event
from replicator.events.digests import NO_DIGEST, crc32c, digest128
from replicator.events.header import EVENT_BYTES_MAX, HEADER_BYTES, Header, event_crc
from replicator.events.layouts import type_of
from replicator.events.state import StreamState, decode_state, encode_state
from replicator.events.values import Consistency, Counts, DeltaKind, Link, Phase, Position, StateName
from tests.support.event_streams import NAME, SIZE_BYTES, VOLUME, Script, every_body, written
from tests.support.packed_runs import pack_runs


def header_for(body: b.Body) -> Header:
    return Header(type_of(body), VOLUME, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, Phase.WRITES, bytes(range(16)))


@pytest.mark.parametrize("body", every_body(), ids=lambda body: type(body).__name__)
def test_every_body_survives_its_bytes(body: b.Body) -> None:
    event = encode_event(header_for(body), body)
    decoded = decode_event(event.encoded)
    assert decoded == event
    assert encode_event(decoded.header, decoded.body).encoded == event.encoded
    assert event.digest == digest128(event.encoded)


def test_the_header_has_the_documented_offsets() -> None:
    body = b.VolumeDeleted(6)
    data = bytes(encode_event(header_for(body), body).encoded)
    assert len(data) == HEADER_BYTES + 8
    assert data[:4] == b"RPEV" and data[4] == 1 and data[5] == 11
    assert struct.unpack_from("<HI", data, 6) == (0, 8)
    assert data[16:32] == VOLUME.bytes
    assert struct.unpack_from("<II8Q", data, 32) == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    assert data[104] == Phase.WRITES and data[105:112] == bytes(7)
    assert data[112:128] == bytes(range(16))
    assert struct.unpack_from("<I", data, 12)[0] == crc32c(data[:12] + bytes(4) + data[16:])


def damaged(data: bytes, offset: int, new: bytes) -> bytes:
    """`data` with `new` at `offset`, and a checksum that fits again."""
    changed = bytearray(data)
    changed[offset : offset + len(new)] = new
    crc = event_crc(bytes(changed[:HEADER_BYTES]), [bytes(changed[HEADER_BYTES:])])
    struct.pack_into("<I", changed, 12, crc)
    return bytes(changed)


@pytest.mark.parametrize(
    ("offset", "new", "where"),
    [
        (0, b"RPEX", "magic"),
        (4, b"\x02", "version"),
        (5, b"\x63", "event"),
        (6, b"\x01", "flags"),
        (8, b"\xff\xff\xff\x7f", "body_bytes"),
        (8, b"\x07", "event of"),
        (32, bytes(4), "timeline"),
        (40, bytes(8), "sequence"),
        (72, b"\xff" * 8, "cursor"),
        (104, b"\x05", "phase"),
        (105, b"\x01", "phase"),
        (108, b"\x01", "phase"),
        (128, b"\xff" * 8, "timestamp"),
    ],
)
def test_a_wrong_field_is_named(offset: int, new: bytes, where: str) -> None:
    body = b.VolumeDeleted(6)
    data = bytes(encode_event(header_for(body), body).encoded)
    with pytest.raises(FormatError, match=where):
        decode_event(damaged(data, offset, new))


def test_every_flipped_bit_is_found() -> None:
    body = b.VolumeRenamed("disk-2", 5)
    data = bytes(encode_event(header_for(body), body).encoded)
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            decode_event(flipped)


@pytest.mark.parametrize("body", every_body(), ids=lambda body: type(body).__name__)
def test_cut_short_and_trailing_bytes_are_refused(body: b.Body) -> None:
    data = bytes(encode_event(header_for(body), body).encoded)
    for length in {0, 1, HEADER_BYTES - 1, HEADER_BYTES, len(data) // 2, len(data) - 1}:
        with pytest.raises(FormatError):
            decode_event(data[:length])
    with pytest.raises(FormatError):
        decode_event(data + b"\0")
    longer = data[:8] + struct.pack("<I", len(data) - HEADER_BYTES + 1) + data[12:] + b"\0"
    with pytest.raises(FormatError):
        decode_event(damaged(longer, 0, b"R"))


@pytest.mark.parametrize(
    "build",
    [
        lambda: b.VolumeCreated("", SIZE_BYTES, "h", 1),
        lambda: b.VolumeCreated("..", SIZE_BYTES, "h", 1),
        lambda: b.VolumeCreated("a/b", SIZE_BYTES, "h", 1),
        lambda: b.VolumeCreated("a@b", SIZE_BYTES, "h", 1),
        lambda: b.VolumeCreated("a\nb", SIZE_BYTES, "h", 1),
        lambda: b.VolumeCreated("ä" * 128, SIZE_BYTES, "h", 1),
        lambda: b.VolumeCreated("\ud800", SIZE_BYTES, "h", 1),
        lambda: b.VolumeCreated("a", 0, "h", 1),
        lambda: b.VolumeCreated("a", 513, "h", 1),
        lambda: b.VolumeCreated("a", 1 << 63, "h", 1),
        lambda: b.VolumeCreated("a", SIZE_BYTES, "h" * 1025, 1),
        lambda: b.VolumeCreated("a", SIZE_BYTES, "h", -1),
        lambda: b.PublisherOpened(0, "h", (), 1),
        lambda: b.PublisherOpened(1, "h", (("b", ""), ("a", "")), 1),
        lambda: b.PublisherOpened(1, "h", tuple((f"{i:03}", "") for i in range(65)), 1),
        lambda: b.TransactionBegan(0, VOLUME, None, 1, SIZE_BYTES, 1, DeltaKind.FULL),
        lambda: b.TransactionBegan(1, VOLUME, None, 1, SIZE_BYTES, 1, DeltaKind.DELTA),
        lambda: b.TransactionBegan(2, VOLUME, NAME, 1, SIZE_BYTES, 1, DeltaKind.FULL),
        lambda: b.TransactionBegan(1, VOLUME, None, 1, SIZE_BYTES, -1, DeltaKind.FULL),
        lambda: b.TransactionCommitted(1, Counts(), Consistency.CRASH, ("12",), None),
        lambda: b.TransactionCommitted(1, Counts(), Consistency.CRASH, ("latest",), None),
        lambda: b.TransactionCommitted(1, Counts(), Consistency.CRASH, ("-5m",), None),
        lambda: b.TransactionCommitted(1, Counts(), Consistency.CRASH, ("a", "a"), None),
        lambda: b.GroupCut(VOLUME, 1, ()),
        lambda: b.GroupCut(VOLUME, 1, ((UUID(int=2), 1), (UUID(int=1), 1))),
        lambda: b.VolumeAttested(NAME, SIZE_BYTES, 4096, bytes(63)),
        lambda: b.VolumeAttested(NAME, 1 << 50, 1, b""),
        lambda: b.TimelineEnded(1, "h", 1),
        lambda: ChunksDiscarded(b""),
        lambda: ChunksDiscarded(bytes(15)),
        lambda: ChunksDiscarded(pack_runs([(3, 3)])),
        lambda: ChunksZeroed(pack_runs([(3, 5), (5, 6)])),
        lambda: ChunksZeroed(pack_runs([(3, 5), (4, 6)])),
        lambda: ChunksZeroed(pack_runs([(0, (1 << 47) + 1)])),
        lambda: ChunksZeroed(pack_runs([(2 * i, 2 * i + 1) for i in range(65537)])),
        lambda: StateName(0, 1, NO_DIGEST),
        lambda: StateName(1, 0, NO_DIGEST),
        lambda: StateName(1, 1, b"short"),
        lambda: Link(-1, NO_DIGEST),
        lambda: Counts(-1),
    ],
)
def test_what_breaks_the_rules_cannot_be_built(build: Callable[[], object]) -> None:
    with pytest.raises(FormatError):
        build()


@pytest.mark.parametrize(
    "change",
    [
        {"indices": b""},
        {"masks": bytes(8)},
        {"hashes": bytes(16)},
        {"frames": ()},
        {"frame_table": b""},
        {"frame_table": bytes(16)},
        {"indices": struct.pack("<4Q", 3, 0, 4, 90)},
        {"indices": struct.pack("<4Q", 0, 3, 4, 1 << 47)},
        {"masks": struct.pack("<4H", 1, 1, 1, 1)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_written_tables_must_agree(change: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        dataclasses.replace(written(0, 3, 4, 90), **change)  # type: ignore[arg-type]  # wrong on purpose


def test_the_largest_events_fit() -> None:
    runs = ChunksDiscarded(pack_runs([(2 * i, 2 * i + 1) for i in range(65536)]))
    event = encode_event(header_for(runs), runs)
    assert len(event.encoded) <= EVENT_BYTES_MAX
    assert decode_event(event.encoded) == event
    assert runs.chunk_count == 65536 and runs.first_chunk == 0 and runs.end_chunk == 131071
    assert runs.iter_runs()[:2] == [(0, 1), (2, 3)]


def test_state_and_beacon_survive_their_bytes() -> None:
    script = Script().create().transaction().begin()
    for state in (StreamState.start(VOLUME, 3), script.state):
        assert decode_state(encode_state(state)) == state
    beacon = Beacon.of(script.state, 10, 20)
    assert decode_beacon(encode_beacon(beacon)) == beacon
    assert beacon.matches(script.state) and not beacon.matches(Script().create().state)
    with pytest.raises(FormatError):
        Beacon.of(script.state, 20, 10)
    data = bytearray(encode_beacon(beacon))
    for i in range(len(data)):
        data[i] ^= 4
        with pytest.raises(FormatError):
            decode_beacon(data)
        data[i] ^= 4
    for wrong in (b"", bytes(data[:-1]), bytes(data) + b"\0", encode_state(script.state)):
        with pytest.raises(FormatError):
            decode_beacon(wrong)


def test_places_are_told_in_words() -> None:
    event = Script().create().events[1]
    assert str(event) == "PublisherOpened at timeline 1, transaction 0, event 2"
    assert event.position == Position(1, 0, 2) and event.link == Link(2, event.digest)
    assert str(NAME) == "1:7 (000102030405)"
