"""A log with a plan: its n-th operation fails before or after it was done, answers "unknown", or kills the caller."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from types import TracebackType
from typing import Self, TypeVar
from uuid import UUID

from replicator.errors import UnavailableError
from replicator.events.beacon import Beacon
from replicator.events.codec import Event
from replicator.events.state import StreamState
from replicator.events.values import Link
from replicator.log.interface import (
    AppendOutcome,
    AppendUnknown,
    Log,
    Registration,
    StreamReader,
    StreamWriter,
    VolumeEntry,
    Waiter,
)

Value = TypeVar("Value")


class LogFault(Enum):
    """What happens at the n-th operation."""

    AWAY_BEFORE = "unreachable, nothing done"
    AWAY_AFTER = "unreachable, though it was done"
    UNKNOWN_BEFORE = "answers unknown, nothing done"
    UNKNOWN_AFTER = "answers unknown, though it was done"
    KILLED_BEFORE = "the publisher is killed before"
    KILLED_AFTER = "the publisher is killed after"


class KilledError(BaseException):
    """The publisher's process is dead: nothing catches it."""


class FaultyLog:
    """A Log over `log`; operation `at` (from 1) meets `fault`, and those of the next `length` - 1 too."""

    def __init__(self, log: Log, at: int = 0, fault: LogFault = LogFault.AWAY_BEFORE, length: int = 1) -> None:
        self._log, self._at, self._fault, self._length = log, at, fault, length
        self.operations = 0
        self.is_away = False

    @property
    def met(self) -> bool:
        """Whether the fault happened."""
        return 0 < self._at <= self.operations

    def call(self, do: Callable[[], Value], unknown: Callable[[], Value] | None = None) -> Value:
        """One operation."""
        if self.is_away:
            raise UnavailableError("the log is away")
        self.operations += 1
        if not self._at <= self.operations < self._at + self._length or not self._at:
            return do()
        if self._fault in (LogFault.AWAY_AFTER, LogFault.UNKNOWN_AFTER, LogFault.KILLED_AFTER):
            do()
        if self._fault in (LogFault.KILLED_BEFORE, LogFault.KILLED_AFTER):
            raise KilledError
        if unknown is not None and self._fault in (LogFault.UNKNOWN_BEFORE, LogFault.UNKNOWN_AFTER):
            return unknown()
        raise UnavailableError("injected")

    @property
    def name(self) -> str:
        return "faulty"

    def volumes(self) -> list[VolumeEntry]:
        return self.call(self._log.volumes)

    def timelines(self, volume: UUID) -> list[int]:
        return self.call(lambda: self._log.timelines(volume))

    def claim_timeline(self, volume: UUID, timeline: int, host: str) -> bool:
        return self.call(lambda: self._log.claim_timeline(volume, timeline, host))

    def writer(self, volume: UUID, timeline: int) -> StreamWriter:
        return FaultyWriter(self, self.call(lambda: self._log.writer(volume, timeline)))

    def reader(self, volume: UUID, timeline: int) -> StreamReader:
        return FaultyReader(self, self._log.reader(volume, timeline))

    def read_beacon(self, volume: UUID) -> Beacon | None:
        return self.call(lambda: self._log.read_beacon(volume))

    def write_beacon(self, beacon: Beacon) -> None:
        self.call(lambda: self._log.write_beacon(beacon))

    def register(self, registration: Registration) -> None:
        self.call(lambda: self._log.register(registration))

    def registrations(self, volume: UUID) -> list[Registration]:
        return self.call(lambda: self._log.registrations(volume))

    def forget(self, volume: UUID, receiver: UUID) -> bool:
        return self.call(lambda: self._log.forget(volume, receiver))

    def trim(self, volume: UUID, timeline: int, below_sequence: int) -> int:
        return self.call(lambda: self._log.trim(volume, timeline, below_sequence))

    def close(self) -> None:
        self._log.close()


class FaultyWriter:
    """A StreamWriter of a FaultyLog."""

    def __init__(self, log: FaultyLog, writer: StreamWriter) -> None:
        self._log, self._writer = log, writer

    @property
    def state(self) -> StreamState:
        return self._writer.state

    @property
    def durable(self) -> StreamState:
        return self._writer.durable

    def append(self, expected: Link, events: Sequence[Event]) -> AppendOutcome:
        return self._log.call(lambda: self._writer.append(expected, events), self._unknown)

    def sync(self) -> AppendOutcome:
        return self._log.call(self._writer.sync, self._unknown)

    def settle(self) -> StreamState:
        return self._log.call(self._writer.settle)

    def close(self) -> None:
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _unknown(self) -> AppendOutcome:
        return AppendUnknown(self._writer.durable, "injected")


class FaultyReader:
    """A StreamReader of a FaultyLog."""

    def __init__(self, log: FaultyLog, reader: StreamReader) -> None:
        self._log, self._reader = log, reader

    def tail(self) -> StreamState:
        return self._log.call(self._reader.tail)

    def start(self) -> StreamState:
        return self._log.call(self._reader.start)

    def read(self, sequence: int) -> Iterator[Event]:
        return self._log.call(lambda: self._reader.read(sequence))

    def follow(self, sequence: int, waiter: Waiter, timeout_s: float) -> Iterator[Event]:
        return self._reader.follow(sequence, waiter, timeout_s)
