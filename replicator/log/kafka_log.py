"""The Kafka log as a Log: one topic per volume and timeline, and two compacted ones beside (`kafka_names`).

Trimming, failure table: one call to the broker moves the topic's log start, at once and for every reader.

    dies                          what is left
    before the call               the old stream, whole
    after the call                the new start; a broker that crashes before it noted that may come back with the old

Invariants
  Q1  What is deleted ends before an anchor: an event with no transaction open after it, whose state is the new start
      (kafka_stream, K2). It counts as trimmed, and its record stays.
  Q2  The last event is never trimmed, nor one younger than `keep` by the broker's clock, nor one that a registered
      receiver hasn't verified (L10).
  Q3  A log whose compacted topics would lose keys is refused, by whoever may ask for their settings: without marker and
      entries nobody finds it, and without registrations a trim goes past a receiver.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from uuid import UUID

from replicator.errors import NotFoundError, UnavailableError
from replicator.events.beacon import Beacon, decode_beacon, encode_beacon
from replicator.log.discovery import found_registration, found_volume
from replicator.log.interface import Registration, VolumeEntry, trim_limit
from replicator.log.kafka import Client, Consumer
from replicator.log.kafka_address import KafkaAddress
from replicator.log.kafka_compacted import CompactedTopic
from replicator.log.kafka_consumers import Consumers
from replicator.log.kafka_errors import DeniedError
from replicator.log.kafka_names import (
    COMPACTED_SETTINGS,
    MARKER_KEY,
    STREAM_SETTINGS,
    beacon_key,
    catalogue_topic,
    entry_key,
    receivers_topic,
    registration_key,
    settings_mend,
    stream_topic,
    timelines_in,
    uuids_under,
    wrong_compacted_settings,
)
from replicator.log.kafka_reader import KafkaReader
from replicator.log.kafka_stream import KafkaPlace, KafkaStream
from replicator.log.kafka_writer import KafkaWriter
from replicator.log.records import (
    encode_marker,
    encode_registration,
    require_marker,
)


class KafkaLog:
    """A Log over a broker's topics."""

    def __init__(
        self,
        address: KafkaAddress,
        client: Client,
        *,
        create: bool = False,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._address, self._client, self._clock_ns = address, client, clock_ns
        self._consumers = Consumers(client)
        catalogue = CompactedTopic(client, self._consumers, catalogue_topic(address.prefix))
        self._receivers = CompactedTopic(client, self._consumers, receivers_topic(address.prefix))
        self._place = KafkaPlace(address.url, address.prefix, client, self._consumers, catalogue)
        self._catalogue = catalogue
        try:
            self._require_log(create)
        except BaseException:
            self.close()
            raise

    def _require_log(self, create: bool) -> None:
        found = []
        for topic in (self._catalogue.topic, self._receivers.topic):
            if not self._consumers.has_topic(topic):
                if not create:
                    raise NotFoundError(f"{self.name} is not a log: there is no topic {topic}")
                if self._client.create_topic(topic, COMPACTED_SETTINGS):
                    continue
            found.append(topic)
        self._require_compacted(found)
        marker = self._catalogue.get(MARKER_KEY)
        if marker is None and create:
            marker = encode_marker()
            self._catalogue.put(MARKER_KEY, marker)
        if marker is None:
            raise NotFoundError(f"{self.name} is not a log: topic {self._catalogue.topic} has no marker")
        require_marker(marker, f"topic {self._catalogue.topic}, its marker")

    def _require_compacted(self, topics: list[str]) -> None:
        """Q3."""
        for topic in topics:
            try:
                wrong = wrong_compacted_settings(self._client.topic_settings(topic))
            except DeniedError:
                return
            if wrong:
                mend = settings_mend(self._client.tool("configs"), topic, wrong)
                raise UnavailableError(f"topic {topic} isn't set to keep its keys", mend=mend)

    @property
    def name(self) -> str:
        """How messages name it; it opens the log again."""
        return self._address.url

    def volumes(self) -> list[VolumeEntry]:
        """The catalogue, by name and UUID."""
        found = self._catalogue.items("volume/")
        entries = []
        for volume in uuids_under(list(found), "volume/"):
            where = f"topic {self._catalogue.topic}, volume {volume}"
            entry = found_volume(self, volume, partial(found.get, entry_key(volume)), where)
            if entry is not None:
                entries.append(entry)
        return sorted(entries, key=lambda entry: (entry.name, entry.volume))

    def timelines(self, volume: UUID) -> list[int]:
        """The timelines of `volume`, ascending: those that have a topic."""
        return timelines_in(self._client.topics(), self._address.prefix, volume)

    def claim_timeline(self, volume: UUID, timeline: int, host: str) -> bool:
        """Take the number of a new timeline: make its topic. Who has it stands in its first event."""
        return self._client.create_topic(stream_topic(self._address.prefix, volume, timeline), STREAM_SETTINGS)

    def writer(self, volume: UUID, timeline: int) -> KafkaWriter:
        """A writer at the stream's end."""
        return KafkaWriter(KafkaStream(self._place, volume, timeline))

    def reader(self, volume: UUID, timeline: int) -> KafkaReader:
        """A reader."""
        return KafkaReader(KafkaStream(self._place, volume, timeline))

    def read_beacon(self, volume: UUID) -> Beacon | None:
        """The volume's last beacon."""
        data = self._catalogue.get(beacon_key(volume))
        return None if data is None else decode_beacon(data, f"topic {self._catalogue.topic}, beacon of {volume}")

    def write_beacon(self, beacon: Beacon) -> None:
        """Replace the volume's beacon."""
        self._catalogue.put(beacon_key(beacon.volume), encode_beacon(beacon))

    def register(self, registration: Registration) -> None:
        """Replace what this receiver said of this volume."""
        key = registration_key(registration.volume, registration.receiver)
        self._receivers.put(key, encode_registration(registration))

    def registrations(self, volume: UUID) -> list[Registration]:
        """What the volume's receivers said last, by name."""
        found = self._receivers.items(f"{volume}/")
        registrations = []
        for receiver in uuids_under(list(found), f"{volume}/"):
            read = partial(found.get, registration_key(volume, receiver))
            registration = found_registration(volume, receiver, read, f"topic {self._receivers.topic}")
            if registration is not None:
                registrations.append(registration)
        return sorted(registrations, key=lambda each: (each.name, each.receiver))

    def forget(self, volume: UUID, receiver: UUID) -> bool:
        """Strike a receiver off."""
        key = registration_key(volume, receiver)
        if self._receivers.get(key) is None:
            return False
        self._receivers.put(key, None)
        return True

    def trim(self, volume: UUID, timeline: int, below_sequence: int) -> int:
        """Delete what is below an anchor below `below_sequence` (Q1, Q2); the first sequence number that is kept."""
        stream = KafkaStream(self._place, volume, timeline)
        if not self._consumers.has_topic(stream.topic):
            return 1
        limit = trim_limit(self.registrations(volume), timeline, below_sequence)
        with stream.borrow() as consumer:
            bounds = consumer.bounds()
            start = stream.start_at(consumer, *bounds).sequence
            anchor = self._anchor(stream, consumer, bounds, start, limit - 1)
        if anchor is None:
            return start + 1
        self._client.delete_below(stream.topic, anchor[0])
        return anchor[1] + 1

    def _anchor(
        self, stream: KafkaStream, consumer: Consumer, bounds: tuple[int, int], start: int, highest: int
    ) -> tuple[int, int] | None:
        """(offset, number) of the last event above `start` and up to `highest` that may become the anchor."""
        begin, end = bounds
        old_ms = self._clock_ns() // 1_000_000 - int(self._address.keep_s * 1000)
        young = consumer.offset_since(old_ms)
        last, last_old = (stream.last_before(consumer, begin, each) for each in (end, end if young is None else young))
        if last is None or last_old is None:
            return None
        number = min(highest, stream.header(last).sequence - 1, stream.header(last_old).sequence)
        while number > start:
            record = stream.first_at(consumer, stream.locate(consumer, number), end)
            assert record is not None, "an event below the last one is there"
            state = stream.state(record)
            if state.open is None:
                return record.offset, state.sequence
            number = state.open.began - 1
        return None

    def close(self) -> None:
        """Let go of the connections."""
        self._catalogue.close()
        self._receivers.close()
        self._consumers.close()
        self._client.close()
