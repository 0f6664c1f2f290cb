"""The contract of parts (log/parts, P1 to P3), on every log, by its own reader and by the one made from events."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import pytest

from replicator.events.chunks import ChunksDiscarded, ChunksWritten, ChunksZeroed
from replicator.events.codec import Event
from replicator.events.frames import Decompressor
from replicator.log import parts as parts_module
from replicator.log.errors import TrimmedError
from replicator.log.interface import Log, StreamReader
from replicator.log.object_log import ObjectLog, directory_log
from replicator.log.opening import open_log
from replicator.log.parts import KEPT_BYTES, EventParts, IndexedReader, indexed
from tests.support import judges, kafka_broker
from tests.support.event_streams import VOLUME
from tests.support.far_logs import FarServers
from tests.support.memory_objects import MemoryStore
from tests.support.volume_histories import History

DATA = (ChunksDiscarded, ChunksZeroed, ChunksWritten)


def opened(place: str, tmp_path: Path, servers: FarServers) -> Log:
    if place == "directory":
        return directory_log(tmp_path / "log", create=True)
    if place == "memory":
        return ObjectLog(MemoryStore(), create=True)
    if place == "s3":
        return open_log(servers.s3_url(f"parts/{uuid4().hex}"), create=True)
    if place == "ssh":
        return open_log(servers.ssh_url(tmp_path / "log"), create=True)
    judges.require("kafka")
    return open_log(kafka_broker.shared().url(f"parts-{uuid4().hex}"), create=True)


PLACES = ["directory", "memory", "s3", "ssh", "directory from events", "memory from events", "kafka from events"]


@pytest.fixture(params=PLACES)
def reader(request: pytest.FixtureRequest, tmp_path: Path, far_servers: FarServers) -> Iterator[IndexedReader]:
    place, _, how = request.param.partition(" ")
    log = opened(place, tmp_path, far_servers)
    history = History(log, random.Random(3), 5 * 65536 + 512)
    for i in range(6):
        history.transaction(resize=i == 3, abort_first=i == 2)
    history.close()
    found = log.reader(VOLUME, 1)
    yield EventParts(found) if how else indexed(found)
    log.close()


def test_parts_cover_the_stream(reader: IndexedReader) -> None:
    events = list(reader.read(1))
    parts = list(reader.parts(1))
    assert parts[0].first == 1 and parts[-1].state == reader.tail() and parts[-1].last == events[-1].header.sequence
    assert all(before.last + 1 == after.first for before, after in pairwise(parts))
    facts = [event for part in parts for event in part.facts]
    assert facts == [event for event in events if not isinstance(event.body, DATA)]
    for part in parts:
        assert part.state.sequence == part.last and reader.index_of(part.first).counts == part.index.counts


def test_frames_are_those_of_the_events(reader: IndexedReader) -> None:
    decompressor = Decompressor()
    for part in reader.parts(1):
        inside = [event.body for event in reader.read(part.first)][: part.last - part.first + 1]
        stored = [
            bytes(decompressor.expand(row[1], row[2], frame))
            for body in inside
            if isinstance(body, ChunksWritten)
            for row, frame in zip(body.frame_rows.tolist(), body.frames, strict=True)
        ]
        found = [
            bytes(reader.frame(part.first, number, row, decompressor))
            for number, row in enumerate(part.index.frames.tolist())
        ]
        assert found == stored


class Counted:
    """A reader that counts how often it is asked to read, and offers no parts of its own."""

    def __init__(self, reader: StreamReader) -> None:
        self._reader = reader
        self.reads = 0
        self.tail, self.start, self.follow = reader.tail, reader.start, reader.follow

    def read(self, sequence: int) -> Iterator[Event]:
        """Counted."""
        self.reads += 1
        return self._reader.read(sequence)


@pytest.mark.parametrize("kept_bytes", [KEPT_BYTES, 1], ids=["as it is", "next to nothing kept"])
def test_an_event_is_read_once_for_all_its_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_bytes: int
) -> None:
    monkeypatch.setattr(parts_module, "KEPT_BYTES", kept_bytes)
    log = directory_log(tmp_path / "log", create=True)
    history = History(log, random.Random(3), 40 * 65536)
    history.transaction()
    history.transaction()
    history.close()
    counted = Counted(log.reader(VOLUME, 1))
    reader, decompressor = EventParts(counted), Decompressor()
    parts = [part for part in reader.parts(1) if len(part.index.frames)]
    counted.reads = frames = 0
    for part in parts:
        for number, row in enumerate(part.index.frames.tolist()):
            assert len(reader.frame(part.first, number, row, decompressor)) == row[2]
            frames += 1
    assert reader._kept_bytes == sum(event.length_bytes for event in reader._kept.values())
    assert len(reader._kept) == 1 or reader._kept_bytes <= kept_bytes
    assert frames > 2 and (counted.reads <= 2 or kept_bytes == 1), f"{counted.reads} reads for {frames} frames"


def test_parts_may_begin_anywhere(reader: IndexedReader) -> None:
    parts = list(reader.parts(1))
    for part in parts:
        for sequence in (part.first, part.last):
            found = list(reader.parts(sequence))
            assert [each.last for each in found] == [each.last for each in parts if each.last >= sequence]
    assert list(reader.parts(parts[-1].last + 1)) == []


def test_trimmed_parts_are_gone(tmp_path: Path) -> None:
    log = directory_log(tmp_path / "log", create=True)
    history = History(log, random.Random(3), 65536)
    for _ in range(4):
        history.transaction()
    history.close()
    kept = log.trim(VOLUME, 1, history.state.sequence)
    reader = log.reader(VOLUME, 1)
    with pytest.raises(TrimmedError):
        list(reader.parts(kept - 1))
    assert next(iter(reader.parts(kept))).first == kept
