"""Copies a log's events into another log for good: any kind of log into any other, event by event, as they are.

Asked by `replicator log archive`, once or as a daemon. What the target has is where it goes on: nothing is kept beside
it, so it may be ended and started at any place and time. It is registered beside the source, as a receiver is, so that
nothing is trimmed there which it hasn't got (archive_registration), under a UUID of its own (archive_identity).

    source ahead of target      the events between, checked by the chain, are appended with their own bytes and digests
    both alike                  nothing; the beacon is copied, so that the target is complete to where the source is
    target ahead of source      LostEndError: the source lost its end, the target has it
    another history             ForkError or OtherHistoryError, naming both
    the source trimmed between  TrimmedError

    dies …                          in the target                       next run
    before it is registered         nothing of the volume               registers, then copies
    before an append                what was there                      goes on behind it
    within one                      a prefix of it (log/interface, L1)  reads the target's tail, goes on behind it
    before it is registered anew    the events                          more is kept at the source than is needed

Invariants
  C1  An event is appended only if the chain accepts it behind the target's tail; so what the source let through beside
      the stream (duplicates, an earlier epoch's events) isn't in the archive.
  C2  The target's last event is compared with the source's of that number before anything is appended.
  C3  Memory: BATCH_BYTES of events, and one event.
  C4  One stream's trouble stops that stream alone, and a volume that can't be held yet (archive_registration, R4) waits
      for the next round alone. What is wrong beside them (the list of volumes is away, or damaged) ends one round of a
      daemon. An unknown append is settled by reading, never guessed.
  C5  A volume has one registration, and one on a later timeline lets all of the earlier ones be trimmed. So it goes on
      to a timeline only in a round in which all before it were copied without error; until then the last word stands.
  C6  A stop ends a round behind the batch that is being appended. What was taken is made durable then, in a last round;
      one that wasn't cut short copies, for LAST_ROUND_S at most, what came meanwhile.
  C7  Names are resolved once: a volume that is renamed is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID

from replicator.errors import ConflictError, DamageError, FormatError, ReplicatorError, UnavailableError
from replicator.events.beacon import Beacon
from replicator.events.bodies import TransactionAborted, TransactionCommitted
from replicator.events.chain import ChainChecker, Verdict
from replicator.events.codec import Event
from replicator.events.state import StreamState
from replicator.events.stream_errors import GapError
from replicator.history.resolve import NamedVolume, resolve_volume
from replicator.log.interface import Appended, Log, StreamReader, StreamWriter, VolumeEntry, Waiter
from replicator.log.one_history import require_last_event, require_one_history
from replicator.repository.archive_registration import ArchiveRegistration
from replicator.units import MIB

BATCH_BYTES = 8 * MIB
"""Events appended at once: what a Kafka transaction takes, and far more than a round trip costs."""

TRIES = 5
"""Appends in a row whose outcome was unknown, or whose place another archiver took: beyond, somebody should look."""

BEACON_S = 10.0
"""Between two beacons of one stream: a put each, in an object store a request."""

OTHER = "archive into another log, or find out which of both is right"

LAST_ROUND_S = 5.0
"""As long as a person who stopped it waits for what came since the last round."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What a round did for one stream: events appended, and where the target stands (durably).

    `unregistered`: why the source doesn't take the word of how far that is.
    """

    volume: UUID
    name: str
    timeline: int
    event_count: int
    number: int
    sequence: int
    error: ReplicatorError | None = None
    unregistered: ReplicatorError | None = None


@dataclass(slots=True)
class Archiver:
    """Copies `source` into `target`; `names` are the volumes meant, all where it is empty. For one thread.

    `is_stopping` and `beat` are called between any two batches: whether to end, and that it is alive.
    """

    source: Log
    target: Log
    waiter: Waiter
    registration: ArchiveRegistration | None
    names: Sequence[str] = ()
    is_stopping: Callable[[], bool] = lambda: False
    beat: Callable[[], None] = lambda: None
    _meant: frozenset[UUID] | None = None
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
        return self._round(sync, self.is_stopping)

    def _round(self, sync: bool, is_over: Callable[[], bool]) -> list[Copied]:
        """`is_over` cuts it short (C6): streams that are open are looked after, and no more are opened."""
        return [row for entry in self._wanted() for row in self._copied_timelines(entry, sync, is_over)]

    def _copied_timelines(self, entry: VolumeEntry, sync: bool, is_over: Callable[[], bool]) -> list[Copied]:
        """One volume's, ascending (C5)."""
        rows: list[Copied] = []
        is_whole = not is_over()
        timelines = self.source.timelines(entry.volume) if is_whole else self._opened(entry.volume)
        if is_whole and timelines and self.registration is not None:
            try:
                self.registration.hold(entry.volume, timelines[0], self.target)
            except UnavailableError as error:
                self.beat()
                return [Copied(entry.volume, entry.name, timelines[0], 0, 0, 0, error)]
        for timeline in timelines:
            if is_over() and (entry.volume, timeline) not in self._streams:
                break
            rows.append(self._copied(entry, timeline, sync, is_over, is_whole))
            is_whole = is_whole and rows[-1].error is None and not is_over()
        return rows

    def _opened(self, volume: UUID) -> list[int]:
        return sorted(timeline for uuid, timeline in self._streams if uuid == volume)

    def _wanted(self) -> list[VolumeEntry]:
        entries = self.source.volumes()
        if self._streams and not entries:
            raise UnavailableError(
                f"{self.source.name} had volumes, and shows none now: it isn't mounted, or was emptied"
            )
        if self._meant is None:
            named = [NamedVolume(each.volume, each.name, each.host) for each in entries]
            self._meant = frozenset(resolve_volume(name, named).uuid for name in self.names)
        return [each for each in entries if not self._meant or each.volume in self._meant]

    def _copied(
        self, entry: VolumeEntry, timeline: int, sync: bool, is_over: Callable[[], bool], is_whole: bool
    ) -> Copied:
        key = (entry.volume, timeline)
        error, count = None, 0
        try:
            stream = self._streams.get(key) or self._open(key)
            count = stream.copy(sync=sync, is_over=is_over)
            stream.copy_beacon(at_once=sync)
            if self.registration is not None and is_whole:
                self.registration.tell(stream.writer.durable, at_once=sync)
        except ReplicatorError as caught:
            error = caught
            if key in self._streams:
                self._streams.pop(key).close()
        durable = self._streams[key].writer.durable if key in self._streams else None
        number = durable.committed.number if durable and durable.committed else 0
        place = number, durable.sequence if durable else 0
        refusal = self.registration.refusals.get(entry.volume) if self.registration is not None else None
        return Copied(entry.volume, entry.name, timeline, count, *place, error, refusal)

    def _open(self, key: tuple[UUID, int]) -> _Stream:
        writer = self.target.writer(*key)
        stream = self._streams[key] = _Stream(
            self.source, self.target, key, writer, self.waiter, self.beat, writer.durable.sequence
        )
        return stream

    def follow(self, every_s: float, report: Callable[[list[Copied], ReplicatorError | None], None]) -> None:
        """Rounds until a stop is asked for; `report` is told each. A log that is away or damaged is tried for ever."""
        while True:
            self._report_round(report, False, self.is_stopping)
            is_cut_short = self.is_stopping()
            if is_cut_short or self.waiter.wait(every_s):
                break
        until_s = self.waiter.monotonic() + (0.0 if is_cut_short else LAST_ROUND_S)
        self._report_round(report, True, lambda: self.waiter.monotonic() >= until_s)

    def _report_round(
        self,
        report: Callable[[list[Copied], ReplicatorError | None], None],
        sync: bool,
        is_over: Callable[[], bool],
    ) -> None:
        try:
            report(self._round(sync, is_over), None)
        except (UnavailableError, DamageError) as error:  # C4
            report([], error)


@dataclass(slots=True)
class _Stream:
    """One timeline of one volume on its way."""

    source: Log
    target: Log
    key: tuple[UUID, int]
    writer: StreamWriter
    waiter: Waiter
    beat: Callable[[], None]
    _counted: int
    _beacon: tuple[Beacon | None, float] = (None, float("-inf"))

    def close(self) -> None:
        self.writer.close()

    def copy(self, *, sync: bool, is_over: Callable[[], bool]) -> int:
        """Append what the source has beyond the target; how many events that no call before has counted."""
        for _ in range(TRIES):
            if self._try_copy(sync=sync, is_over=is_over):
                counted, self._counted = self._counted, max(self._counted, self.writer.state.sequence)
                return self._counted - counted
            self.writer.settle()
        raise ConflictError(
            f"{self.target.name}: {TRIES} appends in a row failed, or others took their place",
            mend="let one archiver alone copy into it",
        )

    def _try_copy(self, *, sync: bool, is_over: Callable[[], bool]) -> bool:
        """One pass; False where the writer has to settle first (C4)."""
        self.beat()
        if not is_over() and not self._append_all(is_over):
            return False
        if sync and self.writer.durable.sequence < self.writer.state.sequence:
            return isinstance(self.writer.sync(), Appended)
        return True

    def _append_all(self, is_over: Callable[[], bool]) -> bool:
        """Batch by batch, until it is over (C6); False where one wasn't taken."""
        reader, state = self.source.reader(*self.key), self.writer.state
        tail = reader.tail()
        require_one_history(reader, tail, state, OTHER)
        if tail.sequence == state.sequence:
            return True
        for batch in _batches(_new_events(reader, state)):
            if not isinstance(self.writer.append(self.writer.state.link, batch), Appended):
                return False
            self.beat()
            if is_over():
                break
        return True

    def copy_beacon(self, *, at_once: bool) -> None:
        """Copy the source's word about the tail, where that is due."""
        now_s = self.waiter.monotonic()
        if at_once or now_s - self._beacon[1] >= BEACON_S:
            self._copy_beacon(self.writer.durable, now_s)

    def _copy_beacon(self, durable: StreamState, now_s: float) -> None:
        """If it is what the target has too."""
        with suppress(FormatError):
            beacon = self.source.read_beacon(self.key[0])
            if beacon is not None and beacon != self._beacon[0] and beacon.matches(durable):
                self.target.write_beacon(beacon)
                self._beacon = beacon, now_s


def _new_events(reader: StreamReader, state: StreamState) -> Iterable[Event]:
    """The events behind `state`, accepted by the chain (C1); read from the last common one on, where it's kept (C2)."""
    checker = ChainChecker(state)
    begin = state.sequence if state.sequence > reader.start().sequence else state.sequence + 1
    for event in reader.read(max(1, begin)):
        try:
            verdict = checker.accept(event)
        except GapError:
            require_last_event(reader, checker.state, OTHER)
            raise
        if verdict is Verdict.APPLY:
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
