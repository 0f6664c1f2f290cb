"""Trimming a Kafka log: `keep=`, by the records' own timestamps, which the broker gives; and beside a reader."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from uuid import uuid4

import pytest

from replicator.log.errors import TrimmedError
from replicator.log.interface import Appended
from replicator.log.kafka import Client
from replicator.log.kafka_address import parse_kafka_url
from replicator.log.kafka_log import KafkaLog
from replicator.log.kafka_opening import open_kafka
from tests.support import judges, kafka_broker
from tests.support.event_streams import VOLUME, Script

HOUR_NS = 3600 * 1_000_000_000


class Clock:
    """The instant that a test says."""

    def __init__(self) -> None:
        self.at_ns = time.time_ns()

    def __call__(self) -> int:
        return self.at_ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock) -> Iterator[KafkaLog]:
    """A log whose events are kept for an hour."""
    judges.require("kafka")
    address = parse_kafka_url(kafka_broker.shared().url(f"trim-{uuid4().hex}", keep="1h"))
    made = KafkaLog(address, Client(address), create=True, clock_ns=clock)
    yield made
    made.close()


def published(log: KafkaLog, script: Script) -> int:
    """One more transaction; its last event's number."""
    with log.writer(VOLUME, 1) as writer:
        assert isinstance(writer.append(writer.state.link, script.transaction().take()), Appended)
    return script.state.sequence


def test_nothing_younger_than_keep_is_trimmed(log: KafkaLog, clock: Clock) -> None:
    script = Script().create()
    published(log, script)
    old = published(log, script)
    between_ns = time.time_ns() + 1_000_000
    while time.time_ns() < between_ns + 1_000_000:  # the records' timestamps are whole milliseconds
        log.reader(VOLUME, 1).tail()
    published(log, script)
    end = published(log, script)
    reader = log.reader(VOLUME, 1)
    events = list(reader.read(1))
    clock.at_ns = time.time_ns()
    assert log.trim(VOLUME, 1, end) == 1, "all of it is younger than an hour"
    clock.at_ns = between_ns + HOUR_NS
    kept = log.trim(VOLUME, 1, end)
    assert kept == old + 1, "what came after that instant is younger than an hour, what came before isn't"
    assert list(reader.read(kept)) == events[old:]
    clock.at_ns = time.time_ns() + HOUR_NS + 1_000_000_000
    assert old + 1 < log.trim(VOLUME, 1, end) <= end, "an hour later the rest may go, but for the last event"
    assert reader.tail() == script.state


def test_a_reader_that_is_overtaken_by_a_trim_is_told_so(log: KafkaLog, clock: Clock) -> None:
    """What it has fetched it hands out; then it is told what is gone, or goes on where nothing is (L6)."""
    script = Script().create()
    with log.writer(VOLUME, 1) as writer:
        for i in range(8):
            sent = script.transaction(*range(i * 16, i * 16 + 16), compressible=False).take()
            assert isinstance(writer.append(writer.state.link, sent), Appended)
    clock.at_ns = time.time_ns() + 2 * HOUR_NS
    with contextlib.closing(open_kafka(log.name, False)) as other:
        reading = other.reader(VOLUME, 1).read(1)
        read = [next(reading)]
        kept = log.trim(VOLUME, 1, script.state.sequence)
        with pytest.raises(TrimmedError) as caught:
            for event in reading:
                read.append(event)
        assert [event.header.sequence for event in read] == list(range(1, caught.value.sequence))
        assert caught.value.start == kept - 1
