"""C1 to C3 of pool/control and V1, V2 of pool/control_values: any split, hostile bytes, typed errors, versions."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.errors import (
    ConflictError,
    DamageError,
    DeviceError,
    FormatError,
    NoSpaceError,
    NotFoundError,
    ReplicatorError,
    SocketError,
    UnavailableError,
    UsageError,
)
from replicator.pdata.transaction import BrokenPoolError
from replicator.pool.catalogue import StaleViewError
from replicator.pool.catalogue_schema import Setting
from replicator.pool.changes import End, Put
from replicator.pool.control import (
    FRAME_LIMIT_BYTES,
    HELLO_LIMIT_BYTES,
    PROTOCOL_VERSION,
    Frame,
    FrameStream,
    Kind,
    body_of_error,
    body_of_request,
    error_of,
    read_body,
    read_request,
    spoken_version,
)
from replicator.pool.control_values import METHODS, RESERVE_LIMIT, Count, FillingAsked, SwitchAsked, switch_asked
from replicator.pool.interface import Filling, StaleSwitchError, Switch

FRAMES = st.builds(Frame, st.sampled_from(Kind), st.integers(0, (1 << 64) - 1), st.binary(max_size=200))
ERRORS: list[ReplicatorError] = [
    ReplicatorError("a"),
    UsageError("b", mend="c"),
    DamageError("d"),
    FormatError("where", "this", "that", mend="m"),
    ConflictError("e"),
    StaleSwitchError("f"),
    NotFoundError("g"),
    NoSpaceError("h", mend="grow it"),
    DeviceError("reading x", 4096, 5, "Input/output error"),
    SocketError("k"),
    UnavailableError("i"),
    BrokenPoolError("j"),
]


@given(st.lists(FRAMES, max_size=5), st.lists(st.integers(1, 50), max_size=40))
def test_any_split_gives_the_same_frames(frames: list[Frame], steps: list[int]) -> None:
    """C1, and pack and receive are inverse."""
    packed = b"".join(frame.pack() for frame in frames)
    stream, got = FrameStream("test"), []
    for step in [*steps, len(packed)]:
        got += stream.receive(packed[:step])
        packed = packed[step:]
    assert got == frames and stream.is_between_frames


@given(FRAMES, st.data())
def test_no_flipped_bit_goes_unnoticed(frame: Frame, data: st.DataObject) -> None:
    """Either FormatError, or more bytes are awaited; never another frame."""
    packed = bytearray(frame.pack())
    bit = data.draw(st.integers(0, 8 * len(packed) - 1))
    packed[bit // 8] ^= 1 << bit % 8
    try:
        assert FrameStream("test").receive(packed) == []
    except FormatError:
        return


@given(st.binary(max_size=300))
def test_hostile_bytes_give_format_errors_only(data: bytes) -> None:
    for decode in (FrameStream("test").receive, read_request, error_of):
        try:
            decode(data)
        except FormatError:
            continue


@given(st.sampled_from(sorted(METHODS)), st.binary(max_size=200))
def test_hostile_arguments_give_format_errors_only(method: str, data: bytes) -> None:
    for kind in METHODS[method]:
        try:
            value = read_body(data, kind, "test")
            if isinstance(value, SwitchAsked | FillingAsked):
                value.value()
        except (FormatError, UsageError):
            continue


@given(
    st.recursive(st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text() | st.binary(), st.lists)
)
def test_well_formed_rubbish_is_no_switch(thing: object) -> None:
    """msgpack that isn't what a switch is made of."""
    body = msgspec.msgpack.encode({"changes": [thing], "fill": thing, "create": [thing]})
    for changed in (body, msgspec.msgpack.encode({"changes": [[thing, thing, thing]]})):
        with pytest.raises((FormatError, UsageError)):
            read_body(changed, SwitchAsked, "test").value()


def test_a_body_beyond_the_limit_is_refused_by_its_header() -> None:
    """C2: nothing of it is kept, or waited for."""
    head = Frame(Kind.REQUEST, 1, bytes(HELLO_LIMIT_BYTES + 1)).pack()[:24]
    with pytest.raises(FormatError, match="at most 4096"):
        FrameStream("test", HELLO_LIMIT_BYTES).receive(head)
    assert FrameStream("test", FRAME_LIMIT_BYTES).receive(head) == []


def test_another_protocol_is_told_at_its_first_byte() -> None:
    with pytest.raises(FormatError, match="magic"):
        FrameStream("test").receive(b"G")


@given(st.lists(FRAMES, max_size=3), st.integers(1, 100))
def test_frames_before_rubbish_are_heard_however_it_is_split(frames: list[Frame], step: int) -> None:
    """C1, where the stream isn't one to its end."""
    packed = b"".join(frame.pack() for frame in frames) + b"rubbish"
    stream, got = FrameStream("test"), []
    with pytest.raises(FormatError):
        for begin in range(0, len(packed), step):
            got += stream.receive(packed[begin : begin + step])
        stream.check()
    assert got == frames


@pytest.mark.parametrize("body", [b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc1", b""])
def test_deep_and_huge_bodies_are_format_errors(body: bytes) -> None:
    for decode in (read_request, error_of):
        with pytest.raises(FormatError):
            decode(body)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_arrive_as_what_they_are(error: ReplicatorError) -> None:
    """C3: type, message and mend; and what the class is made of."""
    found = error_of(body_of_error(error))
    assert (type(found), found.message, found.mend) == (type(error), error.message, error.mend)
    if isinstance(error, FormatError) and isinstance(found, FormatError):
        assert (found.where, found.expected, found.found) == (error.where, error.expected, error.found)
    if isinstance(error, DeviceError) and isinstance(found, DeviceError):
        assert (found.what, found.offset_bytes, found.errno) == (error.what, error.offset_bytes, error.errno)


def test_an_unknown_type_arrives_as_the_nearest_known_one() -> None:
    assert type(error_of(body_of_error(StaleViewError("x")))) is UnavailableError
    assert type(error_of(msgspec.msgpack.encode(["NewError", "x", None, []]))) is ReplicatorError
    assert type(error_of(msgspec.msgpack.encode(["DeviceError", "x", None, []]))) is DeviceError


def test_a_request_is_a_method_and_its_arguments() -> None:
    method, packed = read_request(body_of_request("reserve", Count(5)))
    assert method == "reserve" and read_body(packed, Count, "test") == Count(5)


def test_a_newer_owner_is_refused_and_an_older_one_adopted() -> None:
    assert spoken_version(PROTOCOL_VERSION, 7) == PROTOCOL_VERSION
    assert spoken_version(1, 7, own_version=3) == 1
    with pytest.raises(ConflictError, match="process 7") as refusal:
        spoken_version(PROTOCOL_VERSION + 1, 7)
    assert refusal.value.mend is not None and "update" in refusal.value.mend
    with pytest.raises(ConflictError, match="older"):
        spoken_version(0, 7)


def test_a_switch_travels_whole() -> None:
    """V1: rows, arrays, totals."""
    words = np.arange(4, dtype=np.uint64)
    filling = Filling(3, words, words + np.uint64(1 << 39), words.reshape(2, 2))
    rows = (Put(Setting("a", "b")), End(Setting, ("c",)))
    switch = Switch(rows, (1, 2), ((5, 1),), (filling,), (9,), 77, 1000, 2000)
    found = read_body(msgspec.msgpack.encode(switch_asked(switch)), SwitchAsked, "test").value()
    assert (found.changes, found.create, found.snapshot, found.delete) == (rows, (1, 2), ((5, 1),), (9,))
    assert (found.expected_id, found.grow_data_blocks, found.grow_metadata_blocks) == (77, 1000, 2000)
    (got,) = found.fill
    for name in ("virtual_blocks", "data_blocks", "unmapped"):
        assert (getattr(got, name) == getattr(filling, name)).all() and getattr(got, name).flags.writeable
    assert read_body(msgspec.msgpack.encode(switch_asked(Switch())), SwitchAsked, "test").value() == Switch()


@pytest.mark.parametrize(
    "asked",
    [
        FillingAsked(1, bytes(7), bytes(8), b""),
        FillingAsked(1, bytes(8), b"", b""),
        FillingAsked(1, b"", b"", bytes(8)),
        FillingAsked(1, b"", b"", b"\1" + bytes(15)),
    ],
)
def test_crooked_fillings_are_format_errors(asked: FillingAsked) -> None:
    with pytest.raises(FormatError):
        asked.value()


def test_no_more_is_reserved_at_once_than_the_limit() -> None:
    """V2, also in what comes over the wire."""
    for count in (-1, RESERVE_LIMIT + 1):
        with pytest.raises(FormatError):
            read_body(msgspec.msgpack.encode({"count": count}), Count, "test")
