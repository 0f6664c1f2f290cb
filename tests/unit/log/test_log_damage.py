"""Segments that are torn, cut short, flipped, swapped or missing: found before an event is handed out, and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from replicator.errors import ConflictError, FormatError, NotFoundError
from replicator.events.frames import chunk_hash
from replicator.events.state import encode_state
from replicator.log import names
from replicator.log.errors import LogGapError, LostEndError, SegmentError
from replicator.log.index import DISCARDED, ZEROED
from replicator.log.interface import Appended, Registration
from replicator.log.object_log import ObjectLog, directory_log
from replicator.log.records import decode_entry, encode_marker, require_marker
from replicator.log.segment import SEGMENT_BYTES_MAX, Footer, SegmentKey, check_segment, open_segment
from tests.support.chunk_places import cleared, find, index_at, pages_at
from tests.support.event_streams import OTHER_VOLUME, VOLUME, Script, chunk_of
from tests.support.memory_objects import MemoryStore

KEY = SegmentKey("there", VOLUME, 1, 3)

Check = Callable[[bytes], Footer]


def whole_at_once(data: bytes) -> Footer:
    return open_segment(data, KEY).footer


def in_pieces(piece_bytes: int) -> Check:
    """As the tail's segment is checked where it is large."""
    return lambda data: check_segment(lambda at, length: data[at : at + length], KEY, len(data), piece_bytes)


CHECKS = {"whole": whole_at_once, "by_event": in_pieces(1), "some_events": in_pieces(600), "in_one": in_pieces(1 << 20)}


@pytest.fixture(params=CHECKS)
def check(request: pytest.FixtureRequest) -> Check:
    """Every way to check all bytes of a segment."""
    return CHECKS[request.param]


@pytest.fixture
def store() -> MemoryStore:
    """Segments that begin with 1, 3, 8 and 13; that of 3 holds a transaction."""
    store, script = MemoryStore(), Script().create()
    with ObjectLog(store, create=True).writer(VOLUME, 1) as writer:
        for _ in range(4):
            assert isinstance(writer.append(writer.state.link, script.take()), Appended)
            script.transaction()
    return store


def firsts_of(store: MemoryStore) -> list[int]:
    """The segments' first numbers."""
    return names.sequences_in(store.children(names.folder_name(VOLUME, 1, 0)), 0)


def test_a_start_that_no_trim_wrote_lets_nothing_be_deleted_that_a_receiver_needs(store: MemoryStore) -> None:
    log = ObjectLog(store)
    log.register(Registration(VOLUME, UUID(int=7), "replica", 1, 1, 9, 99))
    store.put(names.start_name(VOLUME, 1), encode_state(log.reader(VOLUME, 1).tail()))
    log.trim(VOLUME, 1, 0)
    assert firsts_of(store) == [1, 3, 8, 13], "nothing was asked for"
    log.trim(VOLUME, 1, 1 << 40)
    assert firsts_of(store) == [8, 13], "receiver 7 has verified up to event 9"


def name_of(first: int) -> str:
    return names.segment_name(VOLUME, 1, first)


def read(store: MemoryStore) -> list[int]:
    """The numbers of the events that a reader gets."""
    return [event.header.sequence for event in ObjectLog(store).reader(VOLUME, 1).read(1)]


def test_names_and_folders() -> None:
    assert name_of(4097) == f"{VOLUME}/0000000001/0000000000000001/00000000000000004097"
    assert names.sequences_in(["00000000000000004097", "00000000000000000001", "x", ".7"], 1) == [4097]
    assert names.uuids_in([str(VOLUME), str(VOLUME).upper(), "temporary"]) == [VOLUME]


def test_every_flipped_byte_is_found_before_an_event(store: MemoryStore, check: Check) -> None:
    whole = store.objects[name_of(3)]
    assert len(list(open_segment(whole, KEY).events_from(3))) == 5
    footer = check(whole)
    assert (footer.last, footer.state) == (7, open_segment(whole, KEY).footer.state)
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 0x10
        with pytest.raises(SegmentError) as caught:
            check(bytes(flipped))
        assert caught.value.path == "there" and caught.value.volume == VOLUME
        assert 3 <= caught.value.sequence <= 7


def test_a_segment_cut_short_or_too_long_is_found(store: MemoryStore, check: Check) -> None:
    whole = store.objects[name_of(3)]
    for length in range(len(whole)):
        with pytest.raises(SegmentError):
            check(whole[:length])
    for longer in (whole + b"\0", whole + whole, b"\0" + whole):
        with pytest.raises(SegmentError):
            check(longer)


@pytest.mark.parametrize("piece_bytes", [1, 600, 1 << 20])
def test_a_segment_that_shrinks_under_its_reader_is_found(store: MemoryStore, piece_bytes: int) -> None:
    whole = store.objects[name_of(3)]
    events_end = len(whole) - int.from_bytes(whole[-36:-32], "little") - 48

    def shrunk(at: int, length: int) -> bytes:
        return whole[at : at + length] if at >= events_end else whole[:40][at : at + length]

    with pytest.raises(SegmentError, match="bytes from byte"):
        check_segment(shrunk, KEY, len(whole), piece_bytes)


def test_a_damaged_event_is_named_by_its_number(store: MemoryStore) -> None:
    whole = bytearray(store.objects[name_of(3)])
    segment = open_segment(bytes(whole), KEY)
    offset = int(segment.footer.index.offsets[2])
    whole[offset + 130] ^= 1
    store.objects[name_of(3)] = bytes(whole)
    with pytest.raises(SegmentError, match=f"memory:/{name_of(3)}.*volume {VOLUME}, event 5.*crc32c") as caught:
        read(store)
    assert caught.value.sequence == 5 and caught.value.exit_code == 3


@pytest.mark.parametrize("wrong", [SegmentKey("x", OTHER_VOLUME, 1, 3), SegmentKey("x", VOLUME, 2, 3)])
def test_another_streams_segment_is_refused(store: MemoryStore, wrong: SegmentKey) -> None:
    with pytest.raises(SegmentError, match="header"):
        open_segment(store.objects[name_of(3)], wrong)


def test_a_segment_under_another_name_is_refused(store: MemoryStore) -> None:
    store.objects[name_of(8)] = store.objects[name_of(3)]
    with pytest.raises(SegmentError):
        read(store)


def test_damage_at_the_tail_stops_the_writer_too(store: MemoryStore) -> None:
    store.objects[name_of(13)] = store.objects[name_of(13)][:-100]
    log = ObjectLog(store)
    with pytest.raises(SegmentError):
        log.writer(VOLUME, 1)
    with pytest.raises(SegmentError):
        log.reader(VOLUME, 1).tail()


def test_a_missing_segment_is_a_gap(store: MemoryStore) -> None:
    del store.objects[name_of(8)]
    with pytest.raises(LogGapError, match="event 8 is missing") as caught:
        read(store)
    assert caught.value.sequence == 8
    with pytest.raises(LogGapError):
        list(ObjectLog(store).reader(VOLUME, 1).read(9))
    with pytest.raises(LogGapError):
        ObjectLog(store).trim(VOLUME, 1, 13)


def test_an_enormous_object_is_not_read(store: MemoryStore) -> None:
    store.objects[name_of(3)] = bytes(SEGMENT_BYTES_MAX + 1)
    with pytest.raises(SegmentError, match="at most"):
        read(store)
    store.objects[names.beacon_name(VOLUME)] = bytes(1 << 20)
    with pytest.raises(FormatError):
        ObjectLog(store).read_beacon(VOLUME)


@pytest.mark.parametrize("data", [b"damaged", bytes(1 << 20)], ids=["damaged", "too large"])
def test_a_damaged_beacon_says_nothing_to_a_reader(store: MemoryStore, data: bytes) -> None:
    store.objects[names.beacon_name(VOLUME)] = data
    assert read(store) == list(range(1, 18))
    with pytest.raises(FormatError):
        ObjectLog(store).read_beacon(VOLUME)


def test_the_index_finds_each_chunk_by_ranged_reads(store: MemoryStore) -> None:
    reader = ObjectLog(store).reader(VOLUME, 1)
    first, index = index_at(reader, 5)
    assert first == 3 and index.chunks.tolist() == [1, 2, 7]
    for chunk in (1, 2, 7):
        place = find(index, chunk)
        assert place is not None and place.event == 3 and place.mask == 0xFFFF
        assert pages_at(reader, first, place) == chunk_of(chunk)
        assert place.digest == chunk_hash(chunk_of(chunk))
    assert [find(index, chunk) for chunk in (0, 8, 1 << 40)] == [None] * 3
    assert [cleared(index, chunk) for chunk in (899, 900, 920, 929, 930, 950)] == [0, DISCARDED, ZEROED, ZEROED, 0, 1]
    with pytest.raises(LostEndError):
        index_at(reader, 99)


def test_a_frame_read_alone_is_checked(store: MemoryStore) -> None:
    reader = ObjectLog(store).reader(VOLUME, 1)
    first, index = index_at(reader, 3)
    place = find(index, 2)
    assert place is not None
    whole = bytearray(store.objects[name_of(3)])
    whole[place.offset_bytes + 2] ^= 1
    store.objects[name_of(3)] = bytes(whole)
    with pytest.raises(FormatError, match="crc32c"):
        pages_at(reader, first, place)
    store.objects[name_of(3)] = bytes(whole[: place.offset_bytes + 1])
    with pytest.raises(SegmentError):
        pages_at(reader, first, place)


def test_a_directory_that_is_no_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no log directory"):
        directory_log(tmp_path / "absent")
    with pytest.raises(NotFoundError, match="no log directory"):
        directory_log(tmp_path / "absent" / "deeper", create=True)
    with pytest.raises(NotFoundError, match="not a log"):
        directory_log(tmp_path)
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ConflictError, match=r"thesis\.txt"):
        directory_log(tmp_path, create=True)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / names.MARKER).write_bytes(encode_marker()[:-1])
    with pytest.raises(FormatError):
        directory_log(tmp_path)


def test_small_records_refuse_what_they_are_not() -> None:
    with pytest.raises(FormatError):
        require_marker(b"", "marker")
    with pytest.raises(FormatError):
        decode_entry(encode_marker(), "entry")
    assert UUID(str(VOLUME)) == VOLUME
