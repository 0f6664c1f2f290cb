"""What is wrong in a topic itself: a bit that flipped on the broker's disk, records that no one of us writes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from replicator.errors import FormatError
from replicator.events.beacon import Beacon
from replicator.log.errors import SegmentError
from replicator.log.interface import Appended, Registration
from replicator.log.kafka_address import parse_kafka_url
from replicator.log.kafka_log import KafkaLog
from replicator.log.kafka_names import beacon_key, catalogue_topic, entry_key, registration_key, stream_topic
from replicator.log.kafka_opening import open_kafka
from tests.support import judges
from tests.support.event_streams import VOLUME, Script
from tests.support.kafka_broker import shared

TOO_LARGE = bytes(200_000)


@pytest.fixture
def log() -> Iterator[KafkaLog]:
    """A log with a volume of some transactions."""
    judges.require("kafka")
    with contextlib.closing(open_kafka(shared().url(f"damage-{uuid4().hex}"), True)) as opened:
        with opened.writer(VOLUME, 1) as writer:
            assert isinstance(writer.append(writer.state.link, Script().create().take()), Appended)
            for _ in range(3):
                events = Script(writer.state).transaction(*range(4), compressible=False).take()
                assert isinstance(writer.append(writer.state.link, events), Appended)
        yield opened


def disk_of(topic: str) -> Path:
    """The one segment of a topic on the broker's disk."""
    (segment,) = (shared().folder / "data" / f"{topic}-0").glob("*.log")
    return segment


def flip(topic: str) -> None:
    """A bit in the middle of what the broker has of a topic."""
    with disk_of(topic).open("r+b") as file:
        at = file.seek(0, 2) // 2
        file.seek(at)
        (found,) = file.read(1)
        file.seek(at)
        file.write(bytes([found ^ 1]))


def prefix_of(log: KafkaLog) -> str:
    return parse_kafka_url(log.name).prefix


def test_a_flipped_bit_is_damage_of_its_volume(log: KafkaLog) -> None:
    """Not an outage: asking again doesn't help. What stands before it is handed out."""
    events = list(log.reader(VOLUME, 1).read(1))
    topic = stream_topic(prefix_of(log), VOLUME, 1)
    flip(topic)
    for _ in range(2):
        read = []
        with pytest.raises(SegmentError, match=rf"{topic} offset \d+ \(volume {VOLUME}") as caught:
            for event in log.reader(VOLUME, 1).read(1):
                read.append(event)
        assert caught.value.exit_code == 3 and caught.value.volume == VOLUME
        assert 0 < len(read) < len(events) and read == events[: len(read)]
    flip(topic)
    assert list(log.reader(VOLUME, 1).read(1)) == events, "a disk that is put back is read again"


def test_a_flipped_bit_in_the_catalogue_is_damage(log: KafkaLog) -> None:
    flip(catalogue_topic(prefix_of(log)))
    with pytest.raises(FormatError, match=rf"{catalogue_topic(prefix_of(log))} offset \d+: .*checksum"):
        open_kafka(log.name, False)


def test_odd_records_stop_nobody(log: KafkaLog, caplog: pytest.LogCaptureFixture) -> None:
    """A value that none of us writes is one damaged key, which the next good one mends; other keys are passed over."""
    (entry,) = log.volumes()
    state = log.reader(VOLUME, 1).tail()
    beacon, mine = Beacon.of(state, 5, 6), Registration(VOLUME, UUID(int=7), "site-b", 1, 0, 1, 3)
    log.write_beacon(beacon)
    log.register(mine)
    caplog.set_level(logging.WARNING, "replicator.log")
    log._catalogue.put(b"junk", TOO_LARGE)
    log._catalogue.put(b"k" * 5000, b"value")
    log._catalogue.put(entry_key(VOLUME), TOO_LARGE)
    log._catalogue.put(beacon_key(VOLUME), TOO_LARGE)
    with contextlib.closing(open_kafka(log.name, False)) as other:
        assert [(each.volume, each.name) for each in other.volumes()] == [(VOLUME, entry.name)], "by its stream"
        assert len(list(other.reader(VOLUME, 1).read(1))) == state.sequence
        told = [each.getMessage() for each in caplog.records if "damaged: its value has 200000 bytes" in each.message]
        assert len(told) == 3 and "none of ours" in caplog.text
        other.volumes()
        assert caplog.text.count("200000 bytes") == 3, "told once"
        other.write_beacon(beacon)
        assert other.read_beacon(VOLUME) == log.read_beacon(VOLUME) == beacon, "the next good one wins"
        log._receivers.put(registration_key(VOLUME, mine.receiver), TOO_LARGE)
        with pytest.raises(FormatError):  # trimming waits until it is known what this receiver has
            other.trim(VOLUME, 1, state.sequence)
        log.register(mine)
        assert other.registrations(VOLUME) == [mine]
