"""Appends events to a stream's topic, in transactions of the broker.

    append  -> events wait in memory, at most COMMIT_BYTES of them
    roll    -> begin, send all, look at each one's answer, commit: durable, and visible to readers

Rolled as a segment is: at TransactionCommitted and TransactionAborted, at the end of an append that leaves no
transaction open or that holds a PublisherOpened, at COMMIT_BYTES, and at `sync`.

The first roll after opening or `settle` takes the stream: the tail is compared, and only then is the transactional id
taken (which aborts what another publisher left open, and fences it), and the tail is compared again, once every
transaction in the topic has ended (W5). So one that may not publish fences nobody; and a commit of ours whose answer
was lost has ended before anything is built on the tail.

Failure table. `n` is the first event that isn't durable.

    dies or fails at                       what stands                         who goes on
    before the id is taken, or when a      events below n                      settle; sent again from n
    transaction stays open
    sending                                events below n; the rest is open    settle; the next taking aborts the rest
    the commit                             events below n, or all              AppendUnknown: settle and the next taking
                                                                               tell, whatever the broker still does
    catalogue entry after the commit       all; an old entry                   rewritten at the next PublisherOpened

Invariants, beside those of every writer (rolling, G1 to G3)
  W1  Between two transactions of one taking nobody else writes: the broker refuses them, or us from then on.
  W2  After anything but Appended the publisher of the client is never used again.
  W3  A transaction lies behind the one before, by its offsets: else the broker lost its end, and nothing is committed.
  W4  A commit's answer comes before its marker is written: what is called durable was waited for until it is seen.
  W5  Nothing is sent behind a transaction that stays open: readers see nothing behind it, so each try would commit one
      more copy that nobody sees, until it ends. A broker that lost its end may have such a one, which no timeout ends.
"""

from __future__ import annotations

from collections.abc import Callable

from replicator.errors import UnavailableError
from replicator.events.codec import Event
from replicator.events.state import StreamState, encode_state
from replicator.log.interface import AppendOutcome, AppendUnknown
from replicator.log.kafka import Publisher
from replicator.log.kafka_errors import FencedError
from replicator.log.kafka_names import STREAM_SETTINGS, entry_key, settings_mend, wrong_settings
from replicator.log.kafka_records import Message
from replicator.log.kafka_stream import CAREFUL_OFFSETS, KafkaStream
from replicator.log.rolling import RollingWriter
from replicator.units import MIB

COMMIT_BYTES = 8 * MIB
"""Of events in one transaction of the broker, and one event over: large enough that a commit costs little beside it."""


class KafkaWriter(RollingWriter):
    """A StreamWriter over a topic."""

    def __init__(self, stream: KafkaStream, publisher: Callable[[str], Publisher] | None = None) -> None:
        self._stream = stream
        self._make_publisher = publisher or stream.place.client.publisher
        self._publisher: Publisher | None = None
        self._next_offset = 0
        self._waiting: list[Message] = []
        self._waiting_bytes = 0
        super().__init__()

    def _read_tail(self) -> StreamState:
        return self._stream.tail(CAREFUL_OFFSETS)

    def _gather(self, event: Event, before: StreamState) -> None:
        self._waiting.append(Message(b"%d" % event.header.sequence, event.encoded, encode_state(self.state)))
        self._waiting_bytes += event.length_bytes

    def _is_full(self) -> bool:
        return self._waiting_bytes >= COMMIT_BYTES

    def _has_gathered(self) -> bool:
        return bool(self._waiting)

    def _drop(self) -> None:
        """W2."""
        self._waiting, self._waiting_bytes = [], 0
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            publisher.abandon()

    def _roll(self) -> AppendOutcome | None:
        """Commit what waits; None when it stands, or when nothing waits."""
        if not self._waiting:
            return None
        try:
            publisher = self._publisher or self._taken()
            if publisher is None:
                return self._conflict(self._durable.link, "somebody else appended meanwhile")
            first, last = publisher.send(self._stream.topic, self._waiting)
        except FencedError as error:
            return self._conflict(self._durable.link, error.message)
        except UnavailableError:
            self._drop()
            raise
        if first < self._next_offset:  # W3
            reason = f"the broker lost its end: offset {first} is given again, {self._next_offset} was to come"
            return self._conflict(self._durable.link, reason)
        try:
            publisher.commit()
            self._stream.await_visible(last)
        except UnavailableError as error:
            self._drop()
            return AppendUnknown(self._durable, error.message)
        self._next_offset = last + 2  # behind the marker
        self._waiting, self._waiting_bytes = [], 0
        self._durable = self.state
        return None

    def _taken(self) -> Publisher | None:
        """A publisher that has the stream to itself; None if it doesn't end where we do."""
        stream = self._stream
        if stream.tail(CAREFUL_OFFSETS).link != self._durable.link:
            return None
        self._require_topic()
        publisher = self._make_publisher(stream.topic)
        try:
            publisher.fence()
            stream.await_ended()
            if stream.tail(CAREFUL_OFFSETS).link != self._durable.link:
                publisher.abandon()
                return None
        except BaseException:
            publisher.abandon()
            raise
        self._publisher = publisher
        self._next_offset = 0
        return publisher

    def _require_topic(self) -> None:
        """Make the topic where it isn't there, and see that nothing deletes from it."""
        client, topic = self._stream.place.client, self._stream.topic
        if not self._stream.consumers.has_topic(topic) and client.create_topic(topic, STREAM_SETTINGS):
            return
        wrong = wrong_settings(client.topic_settings(topic))
        if wrong:
            mend = settings_mend(client.tool("configs"), topic, wrong)
            raise UnavailableError(f"topic {topic} isn't set to keep events", mend=mend)

    def _on_opened(self) -> None:
        """Taking the transactional id has aborted what others left open."""

    def _read_entry(self) -> tuple[bytes | None, str]:
        catalogue, key = self._stream.place.catalogue, entry_key(self._durable.volume)
        return catalogue.get(key), f"{catalogue.topic}, {key.decode()}"

    def _write_entry(self, data: bytes) -> None:
        self._stream.place.catalogue.put(entry_key(self._durable.volume), data)
