"""The log between the two hosts of the simulation: objects, or a broker, with handles for what befalls it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol
from uuid import UUID

from replicator.events.codec import decode_event
from replicator.log.interface import Log
from replicator.log.object_log import ObjectLog
from replicator.log.segment import SegmentKey, open_segment
from tests.support.two_hosts_broker import Broker, BrokerLog, FetchFault, Stream
from tests.support.two_hosts_line import Line
from tests.support.two_hosts_objects import ClientStore, SharedObjects
from tests.support.two_hosts_truth import Truth

Disturbance = tuple[str, set[str], bool]
"""What was done, the errors that it explains, and whether a reader may miss the newest events without a word."""


class LogModel(Protocol):
    """One log, and what can befall it."""

    def connect(self, line: Line) -> Log:
        """A process's log."""

    def disturb(self, log: Log, volume: UUID) -> Disturbance:
        """Something befalls the next reading through `log`."""

    def clear_sight(self, log: Log) -> None:
        """That is over."""

    def damage(self, volume: UUID) -> Disturbance | None:
        """Something befalls the log itself, until it is mended; None: there is nothing yet."""

    def lose_end(self, volume: UUID) -> int:
        """The last events are gone; how many."""

    def copied(self) -> Callable[[], None]:
        """A copy of all that the log has now, its beacons too, is made; what puts that in its place."""

    def mend(self) -> None:
        """What was damaged is put back."""


class ClientLog(ObjectLog):
    """The object log of one process."""

    def __init__(self, client: ClientStore) -> None:
        super().__init__(client)
        self.client = client


class ObjectModel:
    """The object log."""

    def __init__(self, truth: Truth, chance: random.Random) -> None:
        self._truth, self._chance = truth, chance
        self.shared = SharedObjects(self._stands)
        ObjectLog(self.shared, create=True)

    def connect(self, line: Line) -> Log:
        """Through a store of its own."""
        return ClientLog(ClientStore(self.shared, line))

    def _stands(self, name: str, data: bytes) -> None:
        volume, timeline, _, first = name.split("/")
        key = SegmentKey(name, UUID(volume), int(timeline), int(first))
        for event in open_segment(data, key).events_from(key.first):
            self._truth.stands(event)

    def disturb(self, log: Log, volume: UUID) -> Disturbance:
        """One client sees the newest segments late, or a later one before an earlier one."""
        names = self.shared.segments(f"{volume}/{1:010d}")
        assert isinstance(log, ClientLog)
        hidden = log.client.hidden
        if self._chance.random() < 0.5 and len(names) > 1:
            hidden.add(self._chance.choice(names[:-1]))
            return "later segment before an earlier one", {"LogGapError", "LostEndError"}, False
        hidden.update(names[len(names) - self._chance.randrange(1, 4) :] if names else ())
        return "newest segments seen late", {"LogGapError", "LostEndError"}, True

    def clear_sight(self, log: Log) -> None:
        """All is seen again."""
        assert isinstance(log, ClientLog)
        log.client.hidden.clear()

    def damage(self, volume: UUID) -> Disturbance | None:
        """A flipped bit, a torn end, or a missing segment."""
        names = [each for each in self.shared.segments(f"{volume}/{1:010d}") if each not in self.shared.damaged]
        if len(names) < 2:
            return None
        what = self._chance.random()
        if what < 0.4:
            name = self._chance.choice(names)
            flipped = bytearray(self.shared.objects[name])
            flipped[self._chance.randrange(len(flipped))] ^= 1 << self._chance.randrange(8)
            self.shared.damage(name, bytes(flipped))
            return "flipped bit", {"SegmentError", "FormatError"}, False
        if what < 0.7:
            data = self.shared.objects[names[-1]]
            self.shared.damage(names[-1], data[: self._chance.randrange(len(data))])
            return "torn tail", {"SegmentError", "FormatError"}, False
        self.shared.damage(self._chance.choice(names[:-1]), None)
        return "missing segment", {"LogGapError", "LostEndError"}, False

    def lose_end(self, volume: UUID) -> int:
        """Segments that nobody had synced; what is missing right below them is no hole any more, but lost with them."""
        names = self.shared.segments(f"{volume}/{1:010d}")
        first = len(names) - self._chance.randrange(1, min(len(names), 6) + 1) if names else 0
        while first > 0 and names[first - 1] not in self.shared.objects:
            first -= 1
        gone = names[first:]
        for name in gone:
            self.shared.lose(name)
        return self._truth.loses((volume, 1), int(gone[0].rpartition("/")[2])) if gone else 0

    def copied(self) -> Callable[[], None]:
        """The objects."""
        return self.shared.copied()

    def mend(self) -> None:
        """From another copy."""
        self.shared.mend()


class BrokerModel:
    """The broker."""

    def __init__(self, truth: Truth, chance: random.Random, *, leaks: bool) -> None:
        self._truth, self._chance = truth, chance
        self.broker = Broker(self._stands)
        self.broker.leaks = chance.random() < 0.7 or leaks

    def connect(self, line: Line) -> Log:
        """A client."""
        return BrokerLog(self.broker, line, self._chance)

    def _stands(self, stream: Stream, records: list[bytes]) -> None:
        for record in records:
            self._truth.stands(decode_event(record))

    def disturb(self, log: Log, volume: UUID) -> Disturbance:
        """Fetches go wrong: a turn's first one looks at facts, a later one is applied."""
        assert isinstance(log, BrokerLog)
        fault = self._chance.choice(self.broker.possible_faults((volume, 1)))
        log.fetch_fault = fault
        names: dict[FetchFault, set[str]] = {
            FetchFault.DROPPED: {"GapError"},
            FetchFault.SWAPPED: {"GapError", "ReorderedError"},
            FetchFault.FLIPPED: {"FormatError"},
        }
        return f"fetch {fault.value}", names.get(fault, set()), fault is FetchFault.WITHHELD

    def clear_sight(self, log: Log) -> None:
        """Fetches go well again."""
        assert isinstance(log, BrokerLog)
        log.fetch_fault = None

    def damage(self, volume: UUID) -> Disturbance | None:
        """The broker checks its own disks."""
        return None

    def lose_end(self, volume: UUID) -> int:
        """Records that the broker had acknowledged and not flushed; those of fenced publishers are no events."""
        topic = self.broker.topics.get((volume, 1))
        if topic is None or not topic.records:
            return 0
        before = topic.end.sequence
        self.broker.crash((volume, 1), self._chance.randrange(1, min(len(topic.records), 12) + 1))
        return self._truth.loses((volume, 1), topic.end.sequence + 1) if topic.end.sequence < before else 0

    def copied(self) -> Callable[[], None]:
        """The broker's disks."""
        return self.broker.copied()

    def mend(self) -> None:
        """Nothing is broken for good."""


def log_model(kind: str, truth: Truth, chance: random.Random, *, leaks: bool) -> LogModel:
    """The log of that kind; `leaks`: a broker that is sure to let zombies through."""
    return ObjectModel(truth, chance) if kind == "objects" else BrokerModel(truth, chance, leaks=leaks)
