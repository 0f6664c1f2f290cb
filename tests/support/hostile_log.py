"""A log that lets through what it shouldn't: behind chosen events of the stream its readers hand out others as well.

Over an object log in memory. `between[n]` comes behind event n: duplicates, events of a publisher that was fenced, or
of another history. Its readers have no parts, as a broker's have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast
from uuid import UUID

from replicator.events.codec import Event
from replicator.events.state import StreamState
from replicator.log.interface import Log, StreamReader, Waiter
from replicator.log.object_log import ObjectLog


def hostile(
    log: ObjectLog,
    between: Mapping[int, Sequence[Event]],
    volume: UUID | None = None,
    *,
    tail: StreamState | None = None,
) -> Log:
    """`log` with `between`, for one volume or for all; `tail`: what its readers take for the stream's end."""
    return cast("Log", _HostileLog(log, between, volume, tail))


class _HostileLog:
    def __init__(
        self, log: ObjectLog, between: Mapping[int, Sequence[Event]], volume: UUID | None, tail: StreamState | None
    ) -> None:
        self._log, self._between, self._volume, self._tail = log, between, volume, tail

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)

    def reader(self, volume: UUID, timeline: int) -> StreamReader:
        real = self._log.reader(volume, timeline)
        return _HostileReader(real, self._between if self._volume in (None, volume) else {}, self._tail)


class _HostileReader:
    def __init__(self, reader: StreamReader, between: Mapping[int, Sequence[Event]], tail: StreamState | None) -> None:
        self._reader, self._between, self._tail = reader, between, tail

    def tail(self) -> StreamState:
        return self._tail or self._reader.tail()

    def start(self) -> StreamState:
        return self._reader.start()

    def read(self, sequence: int) -> Iterator[Event]:
        for event in self._reader.read(sequence):
            yield event
            yield from self._between.get(event.header.sequence, ())

    def follow(self, sequence: int, waiter: Waiter, timeout_s: float) -> Iterator[Event]:
        for event in self._reader.follow(sequence, waiter, timeout_s):
            yield event
            yield from self._between.get(event.header.sequence, ())
