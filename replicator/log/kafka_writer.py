"""Appends events to a stream's topic, in transactions of the broker.

    append  -> events wait in memory, at most COMMIT_BYTES of them
    roll    -> begin, send all, look at each one's answer, commit: durable, and visible to readers

Rolled as a segment is: at TransactionCommitted and TransactionAborted, at the end of an append that leaves no
transaction open or that holds a PublisherOpened, at COMMIT_BYTES, and at `sync`.

The first roll after opening or `settle` takes the stream: the tail is compared, and only then is the transactional id
taken (which aborts what another publisher left open, and fences it), and the tail is compared again. So one that may
not publish fences nobody; and a commit of ours whose answer was lost has ended before anything is built on the tail.

Failure table. `n` is the first event that isn't durable.

    dies or fails at                       what stands                         who goes on
    before the id is taken                 events below n                      settle; sent again from n
    sending                                events below n; the rest is open    settle; the next taking aborts the rest
    the commit                             events below n, or all              AppendUnknown: settle and the next taking
                                                                               tell, whatever the broker still does
    catalogue entry after the commit       all; an old entry                   rewritten at the next PublisherOpened

Invariants
  W1  Between two transactions of one taking nobody else writes: the broker refuses them, or us from then on.
  W2  Every event was accepted by the same checker that readers use, before it was sent.
  W3  After anything but Appended the writer is spent until `settle` (L4), and its publisher is never used again.
  W4  A transaction lies behind the one before, by its offsets: else the broker lost its end, and nothing is committed.
  W5  A commit's answer comes before its marker is written: what is called durable was waited for until it is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from replicator.errors import ConflictError, UnavailableError
from replicator.events.bodies import (
    PublisherOpened,
    TimelineStarted,
    TransactionAborted,
    TransactionCommitted,
    VolumeCreated,
)
from replicator.events.chain import ChainChecker, Verdict
from replicator.events.codec import Event
from replicator.events.state import Life, StreamState, encode_state
from replicator.events.values import Link
from replicator.log.interface import AppendConflict, Appended, AppendOutcome, AppendUnknown, VolumeEntry
from replicator.log.kafka import Message, Publisher
from replicator.log.kafka_errors import FencedError
from replicator.log.kafka_names import STREAM_SETTINGS, entry_key, wrong_settings
from replicator.log.kafka_stream import CAREFUL_OFFSETS, KafkaStream
from replicator.log.records import decode_entry, encode_entry
from replicator.units import MIB

COMMIT_BYTES = 8 * MIB
"""Of events in one transaction of the broker, and one event over: large enough that a commit costs little beside it."""


class KafkaWriter:
    """A StreamWriter over a topic."""

    def __init__(self, stream: KafkaStream, publisher: Callable[[str], Publisher] | None = None) -> None:
        self._stream = stream
        self._make_publisher = publisher or stream.place.client.publisher
        self._publisher: Publisher | None = None
        self._next_offset = 0
        self._waiting: list[Message] = []
        self._waiting_bytes = 0
        self._spent = False
        self._host = ""
        self._opened: Link | None = None
        self._entry: VolumeEntry | None = None
        self._durable = stream.tail(CAREFUL_OFFSETS)
        self._checker = ChainChecker(self._durable)

    @property
    def state(self) -> StreamState:
        """After the last event that was taken."""
        return self._checker.state

    @property
    def durable(self) -> StreamState:
        """After the last event that is known to stand."""
        return self._durable

    def append(self, expected: Link, events: Sequence[Event]) -> AppendOutcome:
        """Take `events`, which hang on `expected` (L2)."""
        self._require_ready()
        if expected != self.state.link:
            return self._conflict(expected, f"the stream stands at {self.state.link}")
        self._spent = True  # until all went well: an exception leaves it so (W3)
        for event in events:
            self._take(event)
            closes = isinstance(event.body, TransactionCommitted | TransactionAborted)
            failed = self._roll() if closes or self._waiting_bytes >= COMMIT_BYTES else None
            if failed:
                return failed
        claims = self._opened is not None and self._opened.sequence > self._durable.sequence
        failed = self._roll() if claims or self.state.open is None else None
        return failed or self._appended()

    def sync(self) -> AppendOutcome:
        """Commit what was taken."""
        self._require_ready()
        self._spent = True
        return self._roll() or self._appended()

    def settle(self) -> StreamState:
        """Read the stream's end again (L3)."""
        self._drop()
        self._durable = self._stream.tail(CAREFUL_OFFSETS)
        self._checker = ChainChecker(self._durable)
        self._spent = False
        return self._durable

    def close(self) -> None:
        """Drop what isn't durable."""
        self._drop()
        self._spent = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _require_ready(self) -> None:
        if self._spent:
            raise ConflictError("the writer must settle before it can append again")

    def _appended(self) -> Appended:
        if not self._waiting:
            self._opened = None
            self._keep_catalogue()
        self._spent = False
        return Appended(self._durable)

    def _conflict(self, expected: Link, reason: str) -> AppendConflict:
        self._drop()
        self._spent = True
        return AppendConflict(self._durable, expected, reason)

    def _drop(self) -> None:
        """W3."""
        self._waiting, self._waiting_bytes, self._opened = [], 0, None
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            publisher.abandon()

    def _take(self, event: Event) -> None:
        """W2."""
        verdict = self._checker.accept(event)
        assert verdict is Verdict.APPLY, f"{event} isn't the next event"
        if isinstance(event.body, VolumeCreated | TimelineStarted | PublisherOpened):
            self._host = event.body.host
        if isinstance(event.body, PublisherOpened):
            self._opened = event.link
        self._waiting.append(Message(b"%d" % event.header.sequence, event.encoded, encode_state(self.state)))
        self._waiting_bytes += event.length_bytes

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
        if first < self._next_offset:  # W4
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
            config = ",".join(f"{name}={value}" for name, value in wrong.items())
            mend = f"kafka-configs.sh --alter --topic {topic} --add-config {config}"
            raise UnavailableError(f"topic {topic} isn't set to keep events", mend=mend)

    def _keep_catalogue(self) -> None:
        """Write the entry where it isn't what the stream says, unless a later timeline has it."""
        state, catalogue = self._durable, self._stream.place.catalogue
        deleted = state.life is Life.DELETED
        if not self._host:
            return
        entry = VolumeEntry(state.volume, state.timeline, state.name, self._host, state.size_bytes, deleted)
        if entry == self._entry:
            return
        key = entry_key(state.volume)
        data = catalogue.get(key)
        known = decode_entry(data, f"{catalogue.topic}, {key.decode()}") if data else None
        if known is None or (known != entry and known.timeline <= entry.timeline):
            catalogue.put(key, encode_entry(entry))
        self._entry = entry
