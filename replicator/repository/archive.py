"""Copies a log's events into another log for good: any kind of log into any other, event by event, as they are.

Asked by `replicator log archive`, once or as a daemon. What the target has is where it goes on: nothing is kept beside
it, so it may be ended and started at any place and time. It is registered beside the source, as a receiver is, so that
nothing is trimmed there which it hasn't got.

    source ahead of target      the events between, checked by the chain, are appended with their own bytes and digests
    both alike                  nothing; the beacon is copied, so that the target is complete to where the source is
    target ahead of source      LostEndError: the source lost its end, the target has it
    another history             ForkError or OtherHistoryError, naming both
    the source trimmed between  TrimmedError

    dies …                          in the target                       next run
    before an append                what was there                      goes on behind it
    within one                      a prefix of it (log/interface, L1)  reads the target's tail, goes on behind it
    before the registration         the events                          more is kept at the source than is needed

Invariants
  C1  An event is appended only if the chain accepts it behind the target's tail; so what the source let through beside
      the stream (duplicates, an earlier epoch's events) isn't in the archive.
  C2  The target's last event is compared with the source's of that number before anything is appended.
  C3  Memory: BATCH_BYTES of events, and one event.
  C4  One stream's trouble stops that stream alone; an unknown append is settled by reading, never guessed.
  C5  A volume has one registration, and one on a later timeline lets all of the earlier ones be trimmed. So it goes on
      to a timeline only in a round in which all before it were copied without error; until then the last word stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import NAMESPACE_URL, UUID, uuid5

from replicator.errors import ConflictError, FormatError, ReplicatorError, UnavailableError
from replicator.events.beacon import Beacon
from replicator.events.bodies import TransactionAborted, TransactionCommitted
from replicator.events.chain import ChainChecker, Verdict
from replicator.events.codec import Event
from replicator.events.state import StreamState
from replicator.events.stream_errors import OtherHistoryError
from replicator.history.resolve import NamedVolume, resolve_volume
from replicator.log.errors import LostEndError
from replicator.log.interface import (
    Appended,
    Log,
    Registration,
    StreamReader,
    StreamWriter,
    VolumeEntry,
    Waiter,
)
from replicator.units import MIB

BATCH_BYTES = 8 * MIB
"""Events appended at once: what a Kafka transaction takes, and far more than a round trip costs."""

TRIES = 5
"""Appends in a row whose outcome was unknown, or whose place another archiver took: beyond, somebody should look."""

RENEW_S = 5.0
BEACON_S = 10.0
"""Between two registrations, and two beacons, of one stream: a put each, in an object store a request."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What a round did for one stream: events appended, and where the target stands (durably)."""

    volume: UUID
    name: str
    timeline: int
    event_count: int
    number: int
    sequence: int
    error: ReplicatorError | None = None


@dataclass(slots=True)
class Archiver:
    """Copies `source` into `target`; `names` are the volumes meant, all where it is empty. For one thread."""

    source: Log
    target: Log
    waiter: Waiter
    clock_ns: Callable[[], int]
    names: Sequence[str] = ()
    registered_as: str | None = "archive"
    _streams: dict[tuple[UUID, int], _Stream] = field(default_factory=dict)

    def __enter__(self) -> Archiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the writers; what wasn't synced is dropped, and copied again by the next run."""
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()

    def round(self, *, sync: bool = True) -> list[Copied]:
        """Copy what stands now; `sync`: open transactions too. What is wrong with a stream stands in its row."""
        return [row for entry in self._wanted() for row in self._copied_timelines(entry, sync)]

    def _copied_timelines(self, entry: VolumeEntry, sync: bool) -> list[Copied]:
        """One volume's, ascending (C5)."""
        rows: list[Copied] = []
        for timeline in self.source.timelines(entry.volume):
            is_whole = all(row.error is None for row in rows)
            rows.append(self._copied(entry, timeline, sync, self.registered_as if is_whole else None))
            if is_whole and rows[-1].error is not None:
                self._hold(entry.volume, timeline)
        return rows

    def _hold(self, volume: UUID, timeline: int) -> None:
        """A timeline fails: where nothing of ours holds the source back yet, all of it is kept from there on."""
        receiver = _receiver(self.target)
        with suppress(ReplicatorError):
            registered = any(each.receiver == receiver for each in self.source.registrations(volume))
            if self.registered_as is not None and not registered:
                none_yet = Registration(volume, receiver, self.registered_as, timeline, 0, 0, self.clock_ns())
                self.source.register(none_yet)

    def _wanted(self) -> list[VolumeEntry]:
        entries = self.source.volumes()
        if self._streams and not entries:
            raise UnavailableError(
                f"{self.source.name} had volumes, and shows none now: it isn't mounted, or was emptied"
            )
        named = [NamedVolume(each.volume, each.name, each.host) for each in entries]
        wanted = {resolve_volume(name, named).uuid for name in self.names}
        return [each for each in entries if not wanted or each.volume in wanted]

    def _copied(self, entry: VolumeEntry, timeline: int, sync: bool, registered_as: str | None) -> Copied:
        key = (entry.volume, timeline)
        error, count = None, 0
        try:
            stream = self._streams.get(key) or self._open(key)
            count = stream.copy(sync=sync)
            stream.tell(registered_as, at_once=sync)
        except ReplicatorError as caught:
            error = caught
            if key in self._streams:
                self._streams.pop(key).close()
        durable = self._streams[key].writer.durable if key in self._streams else None
        number = durable.committed.number if durable and durable.committed else 0
        return Copied(entry.volume, entry.name, timeline, count, number, durable.sequence if durable else 0, error)

    def _open(self, key: tuple[UUID, int]) -> _Stream:
        writer = self.target.writer(*key)
        stream = self._streams[key] = _Stream(self.source, self.target, key, writer, self.waiter, self.clock_ns)
        return stream

    def follow(self, every_s: float, report: Callable[[list[Copied], ReplicatorError | None], None]) -> None:
        """Rounds until a stop is asked for; `report` is told each. A log that is away is tried again for ever."""
        while True:
            try:
                report(self.round(sync=False), None)
            except UnavailableError as error:
                report([], error)
            if self.waiter.wait(every_s):
                break
        report(self.round(), None)


@dataclass(slots=True)
class _Stream:
    """One timeline of one volume on its way."""

    source: Log
    target: Log
    key: tuple[UUID, int]
    writer: StreamWriter
    waiter: Waiter
    clock_ns: Callable[[], int]
    _registered: tuple[int, float] = (-1, float("-inf"))
    _beacon: tuple[Beacon | None, float] = (None, float("-inf"))

    def close(self) -> None:
        self.writer.close()

    def copy(self, *, sync: bool) -> int:
        """Append what the source has beyond the target; how many events."""
        begin = self.writer.durable.sequence
        for _ in range(TRIES):
            if self._try_copy(sync=sync):
                return self.writer.state.sequence - begin
            self.writer.settle()
        raise ConflictError(
            f"{self.target.name}: {TRIES} appends in a row failed, or others took their place",
            mend="let one archiver alone copy into it",
        )

    def _try_copy(self, *, sync: bool) -> bool:
        """One pass; False where the writer has to settle first (C4)."""
        reader, state = self.source.reader(*self.key), self.writer.state
        tail = reader.tail()
        _require_one_history(tail, state)
        if tail.sequence > state.sequence:
            for batch in _batches(_new_events(reader, state)):
                if not isinstance(self.writer.append(self.writer.state.link, batch), Appended):
                    return False
        if sync and self.writer.durable.sequence < self.writer.state.sequence:
            return isinstance(self.writer.sync(), Appended)
        return True

    def tell(self, name: str | None, *, at_once: bool) -> None:
        """Copy the beacon, and register at the source how far the target stands, where either is due."""
        now_s, durable = self.waiter.monotonic(), self.writer.durable
        if at_once or now_s - self._beacon[1] >= BEACON_S:
            self._copy_beacon(durable, now_s)
        moved = durable.sequence != self._registered[0]
        if name is None or not durable.sequence or not (at_once or (moved and now_s - self._registered[1] >= RENEW_S)):
            return
        receiver = _receiver(self.target)
        number = durable.committed.number if durable.committed else 0
        place = self.key[1], number, durable.sequence
        with suppress(ReplicatorError):  # a source that can't be written to: the copy counts, not the word about it
            self.source.register(Registration(self.key[0], receiver, name, *place, self.clock_ns()))
            self._registered = durable.sequence, now_s

    def _copy_beacon(self, durable: StreamState, now_s: float) -> None:
        """The source's word about the tail, if that is what the target has too."""
        with suppress(FormatError):
            beacon = self.source.read_beacon(self.key[0])
            if beacon is not None and beacon != self._beacon[0] and beacon.matches(durable):
                self.target.write_beacon(beacon)
                self._beacon = beacon, now_s


def _receiver(target: Log) -> UUID:
    """As what the archive `target` is registered at its source."""
    return uuid5(NAMESPACE_URL, target.name)


def _require_one_history(tail: StreamState, state: StreamState) -> None:
    """C2, as far as the tails tell."""
    if tail.sequence < state.sequence:
        raise LostEndError(state.volume, state.timeline, state.sequence + 1, tail.sequence)
    if tail.sequence == state.sequence and tail.digest != state.digest:
        what = f"event {state.sequence} is {tail.digest.hex()} in the log, {state.digest.hex()} in the archive"
        raise OtherHistoryError(state, what, mend="archive into another log, or find out which of both is right")


def _new_events(reader: StreamReader, state: StreamState) -> Iterable[Event]:
    """The events behind `state`, accepted by the chain (C1); read from the last common one on, where it's kept (C2)."""
    checker = ChainChecker(state)
    begin = state.sequence if state.sequence > reader.start().sequence else state.sequence + 1
    for event in reader.read(max(1, begin)):
        if checker.accept(event) is Verdict.APPLY:
            yield event


def _batches(events: Iterable[Event]) -> Iterable[list[Event]]:
    """Up to BATCH_BYTES of events each, ended by a commit or an abort (C3)."""
    batch: list[Event] = []
    size_bytes = 0
    for event in events:
        batch.append(event)
        size_bytes += len(event.encoded)
        if size_bytes >= BATCH_BYTES or isinstance(event.body, TransactionCommitted | TransactionAborted):
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch
