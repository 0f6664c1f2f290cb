"""A stream's topic on a broker that is none: whose damage it is that a reader meets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from replicator.log.errors import SegmentError
from replicator.log.kafka import Client, Consumer
from replicator.log.kafka_address import parse_kafka_url
from replicator.log.kafka_compacted import CompactedTopic
from replicator.log.kafka_consumers import Consumers
from replicator.log.kafka_errors import DamagedRecordError
from replicator.log.kafka_names import catalogue_topic, stream_topic
from replicator.log.kafka_reader import KafkaReader
from replicator.log.kafka_records import Record
from replicator.log.kafka_stream import KafkaPlace, KafkaStream
from tests.support.event_streams import VOLUME

STREAM, CATALOGUE = stream_topic("backup", VOLUME, 1), catalogue_topic("backup")


class OneRecord:
    """A consumer of a topic without records, or of one whose only record is damaged."""

    position = 0

    def __init__(self, topic: str, *, is_damaged: bool) -> None:
        self.topic, self._is_damaged = topic, is_damaged

    def bounds(self) -> tuple[int, int]:
        return 0, self.end()

    def end(self) -> int:
        return int(self._is_damaged)

    def seek(self, offset: int) -> None:
        assert offset == 0

    def read_until(self, end: int) -> Iterator[Record]:
        if end:
            raise DamagedRecordError(self.topic, 0, "another checksum")
        yield from ()

    def close(self) -> None:
        """Nothing is held."""


class OneDamaged(Client):
    """A broker whose topics are empty but for one, which is damaged."""

    def __init__(self, damaged: str) -> None:
        super().__init__(parse_kafka_url("kafka://nobody.invalid/backup"))
        self._damaged = damaged

    def has_topic(self, topic: str) -> bool:
        return True

    def consumer(self, topic: str) -> Consumer:
        return cast("Consumer", OneRecord(topic, is_damaged=topic == self._damaged))


def read_beside(damaged: str) -> list[object]:
    """All events, where that topic is damaged."""
    client = OneDamaged(damaged)
    consumers = Consumers(client)
    place = KafkaPlace("kafka://b/backup", "backup", client, consumers, CompactedTopic(client, consumers, CATALOGUE))
    return list(KafkaReader(KafkaStream(place, VOLUME, 1)).read(1))


def test_a_damaged_stream_is_damage_of_its_volume() -> None:
    with pytest.raises(SegmentError, match=f"{STREAM} offset 0 .*another checksum") as caught:
        read_beside(STREAM)
    assert caught.value.volume == VOLUME


def test_a_damaged_catalogue_is_told_as_that() -> None:
    """It is looked at for the beacon while the stream is read."""
    with pytest.raises(DamagedRecordError, match=f"topic {CATALOGUE} offset 0: .*another checksum") as caught:
        read_beside(CATALOGUE)
    assert STREAM not in caught.value.message and caught.value.mend and "broker's disk" in caught.value.mend


def test_without_damage_it_is_empty() -> None:
    assert read_beside("none of them") == []
