"""Reads and follows a stream's topic.

    records below the last stable offset    each checked, handed out in the topic's order
    there                                   nothing new yet, or a gap: the beacon says that more stood here

Invariants
  R1  Nothing is handed out that isn't committed, and no record is left out between two that are.
  R2  A record whose number is beyond the next one's is a LogGapError, unless its epoch is an earlier one (then it was
      let in beside the fence, and whoever judges the chain skips it: kafka_stream, K3).
  R3  Where the broker has trimmed what comes next, it is looked for again: TrimmedError if it is gone, else it goes on.
  R4  One fetch is in memory at a time (kafka.FETCH_BYTES), and its records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from replicator.events.beacon import beacon_beyond
from replicator.events.codec import Event
from replicator.events.state import StreamState
from replicator.log.errors import LogGapError, LostEndError
from replicator.log.interface import Waiter
from replicator.log.kafka import Consumer
from replicator.log.kafka_errors import OffsetGoneError
from replicator.log.kafka_names import beacon_key
from replicator.log.kafka_records import Record
from replicator.log.kafka_stream import KafkaStream

LISTEN_S = 0.15  # a follower sleeps so long at once, unless an event comes
PAUSE_S = 0.05  # and then so long by its own clock, which may be asked to stop; an event waits meanwhile


class KafkaReader:
    """A StreamReader over a topic."""

    def __init__(self, stream: KafkaStream) -> None:
        self._stream = stream

    def tail(self) -> StreamState:
        """The state at the stream's end."""
        return self._stream.tail()

    def start(self) -> StreamState:
        """The state before the first event that is kept."""
        return self._stream.start()

    def read(self, sequence: int) -> Iterator[Event]:
        """The events from `sequence` on that stand now."""
        assert sequence >= 1, "events are counted from 1"
        if self._is_there(sequence):
            yield from self._located(_Place(sequence), self._to_end)

    def follow(self, sequence: int, waiter: Waiter, timeout_s: float) -> Iterator[Event]:
        """The events from `sequence` on, and those that come."""
        deadline = waiter.monotonic() + timeout_s
        while not self._is_there(sequence):
            if waiter.monotonic() >= deadline or waiter.wait(min(1.0, timeout_s)):
                return

        def on(consumer: Consumer, place: _Place) -> Iterator[Event]:
            records: list[Record] | None = []
            while records is not None:
                yield from self._events(place, records)
                yield from self._to_end(consumer, place)
                records = self._await(consumer, place, waiter, timeout_s)

        yield from self._located(_Place(sequence), on)

    def _located(self, place: _Place, read_on: Callable[[Consumer, _Place], Iterator[Event]]) -> Iterator[Event]:
        """Read on from `place`; again from where it is now, where that was trimmed meanwhile (R3)."""
        gone_at = 0
        while True:
            try:
                with self._stream.borrow() as consumer:
                    consumer.seek(self._stream.locate(consumer, place.sequence))
                    yield from read_on(consumer, place)
                return
            except OffsetGoneError:
                if gone_at == place.sequence:
                    raise
                gone_at = place.sequence
                place.begin_again()

    def _is_there(self, sequence: int) -> bool:
        """Whether there is a topic; one that isn't holds a stream without events."""
        stream = self._stream
        if stream.consumers.has_topic(stream.topic):
            return True
        if sequence > 1:
            raise LostEndError(stream.volume, stream.timeline, sequence, 0)
        return False

    def _to_end(self, consumer: Consumer, place: _Place) -> Iterator[Event]:
        """To the stream's present end."""
        while True:
            yield from self._events(place, consumer.read_until(consumer.end()))
            if not self._came(consumer, place.sequence):
                return

    def _events(self, place: _Place, records: Iterable[Record]) -> Iterator[Event]:
        hints = self._stream.place.hints
        for record in records:
            event = place.take(self._stream, record)
            if event is not None:
                hints.put(self._stream.topic, place.sequence, record.offset + 1)
                yield event

    def _await(self, consumer: Consumer, place: _Place, waiter: Waiter, timeout_s: float) -> list[Record] | None:
        """The first records that come in time; None if none do."""
        deadline = waiter.monotonic() + timeout_s
        while True:
            records = consumer.poll(LISTEN_S)
            if records:
                return records
            left_s = deadline - waiter.monotonic()
            if left_s <= 0:
                return [] if self._came(consumer, place.sequence) else None
            if waiter.wait(min(PAUSE_S, left_s)):
                return None

    def _came(self, consumer: Consumer, sequence: int) -> bool:
        """Called at the end: True if more came meanwhile; LogGapError where the beacon says that more stood here."""
        evidence = self._evidence_beyond(sequence)
        if consumer.end() > consumer.position:
            return True
        if evidence:
            stream = self._stream
            path = f"{stream.place.name}: {stream.topic}"
            raise LogGapError(stream.volume, stream.timeline, sequence, path, evidence)
        return False

    def _evidence_beyond(self, sequence: int) -> str:
        stream = self._stream
        data = stream.place.catalogue.get(beacon_key(stream.volume))
        beacon = beacon_beyond(data, stream.timeline, sequence)
        return f"a beacon at event {beacon.sequence}" if beacon and beacon.epoch >= stream.tail().epoch else ""


class _Place:
    """Where a reader stands: the number to come, and the latest epoch that it met."""

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self._epoch = 0
        self._begun = False

    def begin_again(self) -> None:
        """What is read next may lie before the place, as at first."""
        self._begun = False

    def take(self, stream: KafkaStream, record: Record) -> Event | None:
        """The record's event; None for what lies before the place where reading began (R2)."""
        event = stream.event(record)
        header = event.header
        if header.sequence < self.sequence and not self._begun:
            return None
        if header.sequence > self.sequence and header.epoch >= self._epoch:
            stream.place.hints.clear()  # so that the next look isn't misled, if one of them was wrong
            found = f"event {header.sequence} at offset {record.offset}"
            raise LogGapError(stream.volume, stream.timeline, self.sequence, stream.topic, found)
        self._begun = True
        self._epoch = max(self._epoch, header.epoch)
        if header.sequence == self.sequence:
            self.sequence += 1
        return event
