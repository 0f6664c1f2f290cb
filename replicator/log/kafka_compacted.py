"""A compacted topic as a small table: the last value of each key. For the catalogue, beacons and registrations.

The table is kept, and read on from where it was read to, so that a look costs one question to the broker.

Invariants
  T1  What `get` and `keys` answer holds all that stood in the topic when they were asked.
  T2  A topic that ends before what was read (a broker restored from an older copy) is read again from its beginning.
  T3  At most ENTRIES_MAX keys, of KEY_BYTES_MAX, and RECORD_BYTES_MAX for each value are held; more keys are a
      FormatError. A record whose key is none of ours is passed over, and a larger value counts as a damaged one, b"",
      until the key's next record: whoever may write may write such, and must stop nobody else's reading by it.
  T4  A producer that failed is never used again (kafka, G2).
"""

from __future__ import annotations

import logging
import threading

from replicator.errors import FormatError
from replicator.events.record import RECORD_BYTES_MAX
from replicator.log.kafka import Client, Producer
from replicator.log.kafka_consumers import Consumers
from replicator.log.kafka_errors import OffsetGoneError
from replicator.log.kafka_records import Record

KEY_BYTES_MAX = 128  # two UUIDs and a slash have 73
ENTRIES_MAX = 100_000  # thirty thousand volumes with entry, beacon, and a receiver: 25 MB

_LOG = logging.getLogger("replicator.log")


class CompactedTopic:
    """One of them; from any thread."""

    def __init__(self, client: Client, consumers: Consumers, topic: str) -> None:
        self._client, self._consumers, self.topic = client, consumers, topic
        self._reading, self._writing = threading.Lock(), threading.Lock()
        self._table: dict[bytes, bytes] = {}
        self._offset = 0
        self._producer: Producer | None = None

    def get(self, key: bytes) -> bytes | None:
        """The key's value."""
        with self._reading:
            self._refresh()
            return self._table.get(key)

    def items(self, begin: str) -> dict[bytes, bytes]:
        """All whose key begins so."""
        with self._reading:
            self._refresh()
            return {key: value for key, value in self._table.items() if key.startswith(begin.encode())}

    def put(self, key: bytes, value: bytes | None) -> None:
        """Replace the key's value; None strikes it off."""
        with self._writing:
            producer, self._producer = self._producer or self._client.producer(), None
            try:
                producer.put(self.topic, key, value)
            except BaseException:
                producer.abandon()
                raise
            self._producer = producer

    def close(self) -> None:
        """Let go of the producer."""
        with self._writing:
            producer, self._producer = self._producer, None
            if producer is not None:
                producer.abandon()

    def _refresh(self) -> None:
        try:
            self._read_on()
        except OffsetGoneError:  # T2: trimmed by compaction, or cut by the broker
            self._table, self._offset = {}, 0
            self._read_on()

    def _read_on(self) -> None:
        with self._consumers.borrow(self.topic) as consumer:
            if self._offset == 0:
                begin, end = consumer.bounds()
                self._offset = begin
            else:
                end = consumer.end()
            if end < self._offset:
                raise OffsetGoneError(f"topic {self.topic} ends at {end}, {self._offset} was read")
            if end == self._offset:
                return
            consumer.seek(self._offset)
            for record in consumer.read_until(end):
                self._take(record)
            self._offset = end

    def _take(self, record: Record) -> None:
        """T3."""
        key, value = record.key, record.value
        where = f"topic {self.topic} offset {record.offset}"
        if key is None or len(key) > KEY_BYTES_MAX:
            _LOG.warning("%s: a record whose key is none of ours is passed over", where)
            return
        if value is None:
            self._table.pop(key, None)
            return
        if len(value) > RECORD_BYTES_MAX:
            _LOG.warning("%s: key %r counts as damaged: its value has %d bytes", where, key, len(value))
            value = b""
        self._table[key] = value
        if len(self._table) > ENTRIES_MAX:
            raise FormatError(f"topic {self.topic}", f"at most {ENTRIES_MAX} keys", "more")
