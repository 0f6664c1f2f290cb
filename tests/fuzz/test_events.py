"""Bytes that mean harm: every decoder of events and of the log gives a value or FormatError, and nothing else.

Damage is made at the field level and the checksums set right again, so that what lies behind them is reached.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator.errors import FormatError
from replicator.events.beacon import Beacon, decode_beacon, encode_beacon
from replicator.events.chain import ChainChecker
from replicator.events.chunks import ChunksWritten
from replicator.events.codec import Event, decode_event, encode_event
from replicator.events.digests import crc32c
from replicator.events.frames import Decompressor
from replicator.events.header import HEADER_BYTES, event_crc
from replicator.events.layouts import type_of
from replicator.events.state import StreamState, decode_state, encode_state
from replicator.events.stream_errors import StreamConflictError, StreamDamageError
from replicator.log.interface import Appended
from replicator.log.names import segment_name
from replicator.log.object_log import ObjectLog
from replicator.log.records import decode_entry, encode_marker, require_marker
from replicator.log.segment import HEADER_BYTES as SEGMENT_HEADER_BYTES
from replicator.log.segment import TRAILER_BYTES, SegmentKey, open_segment
from tests.support.event_streams import VOLUME, Script, every_body
from tests.support.memory_objects import MemoryStore

SCRIPT = Script().create().transaction(1, 2, 3)
EVENTS = SCRIPT.events
STATES = [StreamState.start(VOLUME), SCRIPT.state]


def sealed_bodies() -> list[bytes]:
    """An encoded event of every type."""
    header = EVENTS[4].header
    return [bytes(encode_event(replace(header, type=type_of(body)), body).encoded) for body in every_body()]


ENCODED = sealed_bodies()


def checksummed(data: bytes) -> bytes:
    """An event's bytes with length and checksum that fit."""
    changed = bytearray(data)
    struct.pack_into("<I", changed, 8, len(data) - HEADER_BYTES)
    struct.pack_into("<I", changed, 12, event_crc(bytes(changed[:HEADER_BYTES]), [bytes(changed[HEADER_BYTES:])]))
    return bytes(changed)


def consume(event: Event) -> None:
    """Do with a decoded event what a receiver does."""
    if isinstance(event.body, ChunksWritten):
        for _ in Decompressor().iter_chunks(event.body):
            pass
    for state in STATES:
        try:
            ChainChecker(state).accept(event)
        except (StreamDamageError, StreamConflictError):
            continue


def judge(data: bytes) -> None:
    """Decode; if it is an event, it has this one encoding, and can be consumed."""
    try:
        event = decode_event(data)
        assert encode_event(event.header, event.body).encoded == data
        consume(event)
    except FormatError as error:
        assert error.where and error.expected and error.found


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    judge(data)


@given(st.integers(0, len(ENCODED) - 1), st.binary(max_size=120))
def test_any_body_under_a_right_header(which: int, body: bytes) -> None:
    judge(checksummed(ENCODED[which][:HEADER_BYTES] + body))


@given(st.integers(0, len(ENCODED) - 1), st.integers(0), st.binary(min_size=1, max_size=8), st.integers(-9, 9))
@settings(max_examples=400)
def test_any_damage_with_right_checksums(which: int, at: int, new: bytes, longer: int) -> None:
    data = bytearray(ENCODED[which])
    at %= len(data)
    data[at : at + len(new)] = new
    data = data + bytes(longer) if longer > 0 else data[: max(HEADER_BYTES, len(data) + longer)]
    judge(checksummed(bytes(data)))


RECORDS: list[tuple[bytes, Callable[[bytes], object]]] = [
    (encode_state(SCRIPT.state), decode_state),
    (encode_state(Script().create().begin().state), decode_state),
    (encode_beacon(Beacon.of(SCRIPT.state, 1, 2)), decode_beacon),
    (encode_marker(), lambda data: require_marker(data, "marker")),
    (b"RPCE" + encode_marker()[4:], lambda data: decode_entry(data, "entry")),
]


@given(st.sampled_from(RECORDS), st.integers(0), st.binary(min_size=1, max_size=8), st.integers(-5, 5))
@settings(max_examples=300)
def test_records(record: tuple[bytes, Callable[[bytes], object]], at: int, new: bytes, longer: int) -> None:
    whole, decode = record
    data = bytearray(whole)
    at %= len(data)
    data[at : at + len(new)] = new
    data = data + bytes(longer) if longer > 0 else data[: max(16, len(data) + longer)]
    struct.pack_into("<I", data, 8, len(data) - 16)
    struct.pack_into("<I", data, 12, crc32c(bytes(data[16:]), crc32c(bytes(data[:12]))))
    try:
        decode(bytes(data))
    except FormatError as error:
        assert error.where and error.expected and error.found


def segment() -> bytes:
    """A whole segment with a transaction."""
    store = MemoryStore()
    with ObjectLog(store, create=True).writer(VOLUME, 1) as writer:
        assert isinstance(writer.append(writer.state.link, EVENTS), Appended)
    return store.objects[segment_name(VOLUME, 1, 1)]


SEGMENT = segment()


def resealed(data: bytearray) -> bytes:
    """A segment whose header, footer and trailer have checksums that fit what they say."""
    struct.pack_into("<I", data, SEGMENT_HEADER_BYTES - 4, crc32c(bytes(data[: SEGMENT_HEADER_BYTES - 4])))
    trailer = len(data) - TRAILER_BYTES
    offset, length = struct.unpack_from("<II", data, trailer + 8)
    struct.pack_into("<I", data, trailer + 16, crc32c(bytes(data[offset : offset + length])))
    struct.pack_into("<I", data, len(data) - 4, crc32c(bytes(data[trailer:-4])))
    return bytes(data)


@pytest.mark.parametrize("seed", range(8))
def test_segments(seed: int) -> None:
    chance = random.Random(seed)
    key = SegmentKey("there", VOLUME, 1, 1)
    footer = len(SEGMENT) - TRAILER_BYTES - struct.unpack_from("<I", SEGMENT, len(SEGMENT) - TRAILER_BYTES + 12)[0]
    for _ in range(400):
        data = bytearray(SEGMENT)
        for _ in range(chance.choice([1, 1, 2, 5])):
            at = chance.randrange(footer if chance.random() < 0.8 else 0, len(data))
            data[at] = chance.choice([0, 1, 0x7F, 0xFF, chance.randrange(256)])
        try:
            opened = open_segment(resealed(data), key)
            for event in opened.events_from(1):
                consume(event)
        except FormatError as error:
            assert error.where and error.expected and error.found


@given(st.binary(max_size=200))
def test_any_bytes_as_a_segment(data: bytes) -> None:
    with pytest.raises(FormatError):
        open_segment(data, SegmentKey("there", VOLUME, 1, 1))
