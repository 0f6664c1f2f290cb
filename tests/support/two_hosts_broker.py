"""A broker in the manner of Kafka, for the simulation of two hosts: topics of records, transactions, zombies fenced.

    topic        one stream's records, in the order in which they came; each belongs to a transaction
    transaction  open, committed, aborted; readers see committed records before the first open one
    producer     an epoch a volume: who initialises raises it, and aborts the open transaction of the one before

What can befall it: a fetch that doubles, drops, swaps, damages or withholds records; a broker that lets a zombie's
transaction through (`leaks`); a crash that takes the last records, which nobody had flushed, though they were
acknowledged (`crash`); disks that are put back from a copy (`copied`).

A leak lets records of an earlier epoch pass only: what it takes to fence one of the same epoch is the producer's alone.
Of a topic with such records nothing is dropped or swapped: a reader that doesn't get the event that fences them takes
them for what they say they are, and nobody could tell it otherwise. That is two broken promises of a broker at once.
"""

from __future__ import annotations

import copy
import enum
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self
from uuid import UUID

from replicator.errors import ConflictError, ReplicatorError, UnavailableError
from replicator.events.beacon import Beacon, decode_beacon, encode_beacon
from replicator.events.bodies import (
    PublisherOpened,
    TimelineStarted,
    TransactionAborted,
    TransactionCommitted,
    VolumeCreated,
)
from replicator.events.chain import ChainChecker, Verdict
from replicator.events.codec import Event, decode_event
from replicator.events.header import unpack_header
from replicator.events.state import Life, StreamState
from replicator.events.values import Link
from replicator.log.errors import LostEndError, TrimmedError
from replicator.log.interface import (
    AppendConflict,
    Appended,
    AppendOutcome,
    AppendUnknown,
    Registration,
    VolumeEntry,
    Waiter,
)
from tests.support.two_hosts_line import Line

Stream = tuple[UUID, int]


class ProducerFencedError(ReplicatorError):
    """A later producer of this volume was initialised."""


class CommitUnknownError(ReplicatorError):
    """The commit's answer was lost."""


class FetchFault(enum.Enum):
    """What each fetch of a turn does to the records."""

    DOUBLED = "doubled"
    DROPPED = "dropped"
    SWAPPED = "swapped"
    FLIPPED = "flipped"
    WITHHELD = "withheld"


@dataclass(slots=True)
class Topic:
    """Committed records of one stream as bytes (what was aborted nobody sees), and the states at both ends."""

    start: StreamState
    end: StreamState
    records: list[bytes] = field(default_factory=list)

    def add(self, records: list[bytes]) -> None:
        """At its end; what a fenced producer smuggled in leaves the state as it is."""
        self.records += records
        checker = ChainChecker(self.end)
        for record in records:
            checker.accept(decode_event(record))
        self.end = checker.state

    def cut_off(self, count: int) -> None:
        """The last records go."""
        kept = self.records[: len(self.records) - count]
        self.records, self.end = [], self.start
        self.add(kept)


class Broker:
    """The broker itself; `on_committed` hears of records as they become visible."""

    def __init__(self, on_committed: Callable[[Stream, list[bytes]], None]) -> None:
        self.topics: dict[Stream, Topic] = {}
        self.entries: dict[UUID, VolumeEntry] = {}
        self.beacons: dict[UUID, bytes] = {}
        self.claims: set[Stream] = set()
        self.registrations: dict[tuple[UUID, UUID], Registration] = {}
        self.leaks = False
        self.leaked: set[Stream] = set()
        self._producers: dict[UUID, int] = {}
        self._on_committed = on_committed

    def init_producer(self, volume: UUID) -> int:
        """A new producer; the ones before are fenced."""
        self._producers[volume] = self._producers.get(volume, 0) + 1
        return self._producers[volume]

    def transact(self, stream: Stream, producer: int, records: list[bytes]) -> None:
        """One transaction, begun and committed."""
        if producer != self._producers.get(stream[0]):
            epochs = [decode_event(record).header.epoch for record in records]
            if not self.leaks or max(epochs) >= self.topic(stream).end.epoch:
                raise ProducerFencedError("a later producer was initialised")
        self.topic(stream).add(records)
        self._on_committed(stream, records)
        if producer != self._producers.get(stream[0]):
            self.leaked.add(stream)
            raise ProducerFencedError("a later producer was initialised, though the records stand")

    def crash(self, stream: Stream, lost: int) -> None:
        """The last records are gone, though they were acknowledged."""
        self.init_producer(stream[0])  # sequence numbers don't fit any more: whoever produced has to begin again
        self.topics[stream].cut_off(lost)

    def copied(self) -> Callable[[], None]:
        """All that lies on its disks, for who calls what is returned; a broker put back knows no producer."""
        names = ("topics", "entries", "beacons", "claims", "registrations", "leaked")
        left = copy.deepcopy({name: getattr(self, name) for name in names})

        def put_back() -> None:
            for name, value in copy.deepcopy(left).items():
                setattr(self, name, value)
            for volume in self._producers:
                self.init_producer(volume)

        return put_back

    def possible_faults(self, stream: Stream) -> list[FetchFault]:
        """What a fetch of the stream may suffer: where records of an earlier epoch stand, none that hides an event."""
        hiding = (FetchFault.DROPPED, FetchFault.SWAPPED) if stream in self.leaked else ()
        return [each for each in FetchFault if each not in hiding]

    def topic(self, stream: Stream) -> Topic:
        """The stream's topic, made when it is first asked for."""
        start = StreamState.start(*stream)
        return self.topics.setdefault(stream, Topic(start, start))


class BrokerLog:
    """A Log over the broker, through one process's line; its fetches suffer `fetch_fault` until somebody ends it."""

    def __init__(self, broker: Broker, line: Line, chance: random.Random) -> None:
        self.broker, self.line, self._chance = broker, line, chance
        self.fetch_fault: FetchFault | None = None

    @property
    def name(self) -> str:
        """How messages name it."""
        return "broker:"

    def volumes(self) -> list[VolumeEntry]:
        """The catalogue."""
        return self.line.call(lambda: sorted(self.broker.entries.values(), key=lambda entry: entry.name))

    def timelines(self, volume: UUID) -> list[int]:
        """Those with events, or claimed."""
        known = {*(key for key, topic in self.broker.topics.items() if topic.records), *self.broker.claims}
        return self.line.call(lambda: sorted({each[1] for each in known if each[0] == volume}))

    def claim_timeline(self, volume: UUID, timeline: int, host: str) -> bool:
        """Of two exactly one."""

        def claim() -> bool:
            is_free = (volume, timeline) not in self.broker.claims
            self.broker.claims.add((volume, timeline))
            return is_free

        return self.line.call(claim)

    def writer(self, volume: UUID, timeline: int) -> BrokerWriter:
        """A writer at the end."""
        return BrokerWriter(self, (volume, timeline))

    def reader(self, volume: UUID, timeline: int) -> BrokerReader:
        """A reader."""
        return BrokerReader(self, (volume, timeline))

    def read_beacon(self, volume: UUID) -> Beacon | None:
        """The last one."""
        data = self.line.call(lambda: self.broker.beacons.get(volume))
        return None if data is None else decode_beacon(data)

    def write_beacon(self, beacon: Beacon) -> None:
        """Replace it."""
        self.line.call(lambda: self.broker.beacons.update({beacon.volume: encode_beacon(beacon)}))

    def register(self, registration: Registration) -> None:
        """What a receiver says of a volume."""
        key = registration.volume, registration.receiver
        self.line.call(lambda: self.broker.registrations.update({key: registration}))

    def registrations(self, volume: UUID) -> list[Registration]:
        """What receivers said."""
        return self.line.call(lambda: [each for each in self.broker.registrations.values() if each.volume == volume])

    def forget(self, volume: UUID, receiver: UUID) -> bool:
        """Strike one off."""
        return self.line.call(lambda: self.broker.registrations.pop((volume, receiver), None) is not None)

    def trim(self, volume: UUID, timeline: int, below_sequence: int) -> int:
        """Delete the records below."""
        return self.line.call(lambda: self._trim((volume, timeline), below_sequence))

    def close(self) -> None:
        """Nothing is held."""

    def _trim(self, stream: Stream, below: int) -> int:
        topic = self.broker.topics[stream]
        checker = ChainChecker(topic.start)
        kept = 0
        for record in topic.records[:-1]:
            event = decode_event(record)
            if event.header.sequence >= below or event.header.epoch < checker.state.epoch:
                break
            checker.accept(event)
            kept += 1
        del topic.records[:kept]
        topic.start = checker.state
        return checker.state.sequence + 1

    def fetch(self, stream: Stream, sequence: int) -> list[bytes]:
        """The visible records from the first on that isn't before `sequence`, as they come."""
        records = self.line.call(lambda: list(self.broker.topic(stream).records))
        while records and unpack_header(records[0], "record").sequence < sequence:
            del records[0]
        fault = self.fetch_fault
        at = self._chance.randrange(len(records)) if records else 0
        if fault is FetchFault.DOUBLED and records:
            records[at + 1 : at + 1] = records[max(0, at - self._chance.randrange(6)) : at + 1]
        elif fault is FetchFault.DROPPED and at < len(records) - 1:
            del records[at]
        elif fault is FetchFault.SWAPPED and at + 1 < len(records):
            records[at], records[at + 1] = records[at + 1], records[at]
        elif fault is FetchFault.FLIPPED and records:
            damaged = bytearray(records[at])
            damaged[self._chance.randrange(len(damaged))] ^= 1 << self._chance.randrange(8)
            records[at] = bytes(damaged)
        elif fault is FetchFault.WITHHELD:
            del records[at:]
        return records

    def end_of(self, stream: Stream) -> StreamState:
        """The stream's end, as it truly stands."""
        return self.line.call(lambda: self.broker.topic(stream).end)


class BrokerReader:
    """A StreamReader: raw records from a position on, judged by whoever reads."""

    def __init__(self, log: BrokerLog, stream: Stream) -> None:
        self._log, self._stream = log, stream

    def tail(self) -> StreamState:
        """Folded."""
        return self._log.end_of(self._stream)

    def start(self) -> StreamState:
        """Before the first that is kept."""
        return self._log.broker.topic(self._stream).start

    def read(self, sequence: int) -> Iterator[Event]:
        """All records from the first on that isn't before `sequence`: whoever reads judges the chain."""
        return self._raw(sequence)

    def follow(self, sequence: int, waiter: Waiter, timeout_s: float) -> Iterator[Event]:
        """All records as they stand, for whoever judges the chain; what comes later is the next turn's."""
        yield from self._raw(sequence)
        waiter.wait(timeout_s)

    def _raw(self, sequence: int) -> Iterator[Event]:
        start = self.start().sequence
        if sequence <= start:
            raise TrimmedError(*self._stream, sequence, start)
        end = self._log.end_of(self._stream).sequence
        if sequence > end + 1:
            raise LostEndError(*self._stream, sequence, end)
        yield from map(decode_event, self._log.fetch(self._stream, sequence))


class BrokerWriter:
    """A StreamWriter: what an append closes goes out as one transaction.

    Written by itself, not over log/rolling: a mistake there must not be the model's, too.
    """

    def __init__(self, log: BrokerLog, stream: Stream) -> None:
        self._log, self._stream = log, stream
        self._producer: int | None = None
        self._gathered: list[Event] = []
        self._is_spent = False
        self._durable = log.end_of(stream)
        self._checker = ChainChecker(self._durable)
        self._host = ""

    @property
    def state(self) -> StreamState:
        """After what was taken."""
        return self._checker.state

    @property
    def durable(self) -> StreamState:
        """After what stands."""
        return self._durable

    def append(self, expected: Link, events: Sequence[Event]) -> AppendOutcome:
        """Take `events`; send them where a transaction ends, or none is open."""
        if self._is_spent:
            raise ConflictError("settle first")
        if expected != self.state.link:
            return self._conflict(f"the stream stands at {self.state.link}")
        closes = False
        for event in events:
            assert self._checker.accept(event) is Verdict.APPLY
            self._gathered.append(event)
            closes |= isinstance(event.body, TransactionCommitted | TransactionAborted | PublisherOpened)
            if isinstance(event.body, VolumeCreated | TimelineStarted | PublisherOpened):
                self._host = event.body.host
        return self.sync() if closes or self.state.open is None else Appended(self._durable)

    def sync(self) -> AppendOutcome:
        """Send what was taken."""
        events, self._gathered = self._gathered, []
        if not events:
            return Appended(self._durable)
        self._is_spent = True
        broker, line = self._log.broker, self._log.line
        records = [bytes(event.encoded) for event in events]
        try:
            if self._producer is None:
                self._producer = line.call(lambda: broker.init_producer(self._stream[0]))
                if self._log.end_of(self._stream) != self._durable:
                    return self._conflict("somebody appended meanwhile")
            producer = self._producer
            line.call(lambda: broker.transact(self._stream, producer, records), CommitUnknownError)
        except ProducerFencedError as error:
            return self._conflict(error.message)
        except CommitUnknownError as error:
            self._producer = None
            return AppendUnknown(self._durable, error.message)
        except UnavailableError:
            self._producer = None
            raise
        self._durable = self._checker.state
        self._keep_entry()
        self._is_spent = False
        return Appended(self._durable)

    def settle(self) -> StreamState:
        """Read the end again."""
        self._gathered = []
        self._durable = self._log.end_of(self._stream)
        self._checker = ChainChecker(self._durable)
        self._is_spent = False
        return self._durable

    def close(self) -> None:
        """Drop what wasn't sent."""
        self._gathered, self._is_spent = [], True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _conflict(self, reason: str) -> AppendConflict:
        self._gathered, self._is_spent, self._producer = [], True, None
        return AppendConflict(self._durable, self.state.link, reason)

    def _keep_entry(self) -> None:
        state = self._durable
        deleted = state.life is Life.DELETED
        known = self._log.broker.entries.get(state.volume)
        host = self._host or (known.host if known else "")
        if host:
            entry = VolumeEntry(state.volume, state.timeline, state.name, host, state.size_bytes, deleted)
            self._log.broker.entries[state.volume] = replace(entry)
