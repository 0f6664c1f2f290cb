"""Events and logs of version 1 stay readable for ever: the golden bytes decode, and encode to themselves."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from replicator.events.chain import ChainChecker, Verdict
from replicator.events.codec import decode_event, encode_event
from replicator.events.frames import Decompressor
from replicator.events.state import Life, StreamState, decode_state, encode_state
from replicator.log.object_log import directory_log
from replicator.units import PAGE_BYTES
from tests.support.chunk_places import find, index_at, pages_at

GOLDEN = Path(__file__).parent / "events-v1"
EVENTS = sorted((GOLDEN / "events").iterdir())


@pytest.fixture(scope="module")
def made() -> ModuleType:
    """The script that made the files."""
    spec = importlib.util.spec_from_file_location("make_events_v1", GOLDEN / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_today_encodes_the_same_bytes(made: ModuleType) -> None:
    stored = {
        str(path.relative_to(GOLDEN)): path.read_bytes()
        for folder in ("events", "states", "log")
        for path in (GOLDEN / folder).rglob("*")
        if path.is_file()
    }
    assert made.files() == stored


@pytest.mark.parametrize("path", EVENTS, ids=lambda path: path.stem)
def test_an_event_decodes_and_encodes_to_itself(path: Path) -> None:
    event = decode_event(path.read_bytes(), str(path.name))
    assert type(event.body).__name__ == path.stem.rpartition("-")[2]
    assert encode_event(event.header, event.body).encoded == path.read_bytes()


def test_every_type_is_there_and_the_chain_holds(made: ModuleType) -> None:
    checker = ChainChecker(StreamState.start(made.VOLUME))
    types = set()
    for path in EVENTS:
        event = decode_event(path.read_bytes())
        types.add(event.header.type)
        if event.header.timeline == 1:
            assert checker.accept(event) is Verdict.APPLY
    assert types == set(range(1, 15))
    assert checker.state.life is Life.ENDED and checker.state.committed is not None
    assert checker.state.committed.digest == decode_event(EVENTS[6].read_bytes()).digest


def test_the_frames_expand() -> None:
    body = decode_event((GOLDEN / "events" / "1-06-ChunksWritten.event").read_bytes()).body
    chunks = list(Decompressor().iter_chunks(body))  # type: ignore[arg-type]  # the file says which type it is
    assert [(chunk.chunk, chunk.mask) for chunk in chunks] == [(3, 1), (64, 1)]
    assert chunks[0].pages == bytes(PAGE_BYTES)
    assert bytes(chunks[1].pages[:512]) == bytes(range(256)) * 2


@pytest.mark.parametrize("name", ["empty", "open"])
def test_states_decode_and_encode_to_themselves(name: str) -> None:
    data = (GOLDEN / "states" / f"{name}.state").read_bytes()
    state = decode_state(data)
    assert encode_state(state) == data
    assert (state.open is not None) == (name == "open")


def test_the_log_is_read_where_it_stands(made: ModuleType) -> None:
    log = directory_log(GOLDEN / "log")
    (entry,) = log.volumes()
    assert (entry.volume, entry.timeline, entry.name, entry.host) == (made.VOLUME, 2, "disk-2", "beta.example")
    assert log.timelines(made.VOLUME) == [1, 2]
    first, second = log.reader(made.VOLUME, 1), log.reader(made.VOLUME, 2)
    assert first.start().sequence == 2
    read = [event.encoded for event in first.read(3)] + [event.encoded for event in second.read(1)]
    assert read == [path.read_bytes() for path in EVENTS[2:]]
    beacon = log.read_beacon(made.VOLUME)
    assert beacon is not None and beacon.matches(second.tail())
    begin, index = index_at(first, 6)
    place = find(index, 64)
    assert place is not None and pages_at(first, begin, place)[:4] == b"\0\1\2\3"
