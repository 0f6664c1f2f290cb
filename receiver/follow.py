"""Follows one volume's stream into its replica, for ever: reads, judges, applies, and says what is wrong.

Between a log's reader and apply. A pass begins at the pool's position and reads until it is stopped, or something is
wrong; whatever that is, the next pass begins at the position again, so that nothing in memory has to be trusted.

    what happens                                    activity            tried again
    gap, fork, wrong base, other history, damage    STOPPED             every RETRY_STOPPED_S: the log may be mended
    trimmed events, a name that is taken            STOPPED             likewise
    no room for the next transaction                WAITING_FOR_ROOM    every RETRY_ROOM_S: goes on once grown (P8)
    log or pool away, a log that isn't mounted      UNREACHABLE         with backoff and jitter, for ever
    a log that ends before what we have             STOPPED             every RETRY_STOPPED_S: it lost its end
    anything else that failed                       STOPPED             likewise

Invariants
  W1  One volume's trouble stops that volume alone.
  W2  `since` of a failure is when it began, however often it was met again.
  W3  Events that were applied, and those of an earlier epoch, are skipped and counted.
  W4  `alive_s` moves on with each event, look and try: who is stuck in a call shows (the daemon's watchdog).
  W5  The log's end is compared with what is applied (log/one_history): shorter is a lost end; an earlier epoch's that
      grew past us, or a gap behind another event in our last one's place, is another history. But a log that isn't
      there at all is away (receiver/log_access), not short.
  W6  A beacon counts as soon as all transactions are applied: events between them, such as a publisher's opening, which
      each pass reads anew, don't hold up *complete to*.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from receiver.access import Access, PoolAccess
from receiver.apply import Applier, ApplySettings
from receiver.attest import Attester
from receiver.errors import ANEW, LOST_END, ReplicaConflictError
from receiver.facts import Activity, Progress, complete_to_ns
from receiver.mends import named
from receiver.registering import Registrar
from replicator.errors import (
    ConflictError,
    DamageError,
    FormatError,
    NoSpaceError,
    ReplicatorError,
    UnavailableError,
)
from replicator.events.bodies import TimelineStarted, TransactionBegan, VolumeAttested
from replicator.events.chain import ChainChecker, Verdict
from replicator.events.codec import Event
from replicator.events.state import Life, StreamState
from replicator.events.stream_errors import GapError, StreamConflictError
from replicator.history.protection import Failure
from replicator.log.errors import LostEndError, TrimmedError
from replicator.log.interface import Log, StreamReader, Waiter
from replicator.log.one_history import require_last_event, require_one_history
from replicator.log.parts import IndexedReader

IDLE_S = 2.0
"""After so long without events the beacon and later timelines are looked at."""

LOOK_S = 2.0
"""How often the log's tail is asked for while events come: it costs two small reads."""

RETRY_STOPPED_S = 30.0
RETRY_ROOM_S = 2.0
_BACKOFF_FIRST_S = 0.25
_BACKOFF_LONGEST_S = 30.0
_FOR_A_PERSON = (DamageError, StreamConflictError, ReplicaConflictError, TrimmedError)
_PASSING = (UnavailableError, ConflictError)  # a ConflictError that isn't for a person: an owner that changes


@dataclass(frozen=True, slots=True)
class World:
    """What a follower stands on; tests pass their own clock, patience and chance.

    `name`: register beside the log under it (None: don't). `require_log` raises UnavailableError where the log isn't.
    """

    pools: PoolAccess
    log: Log
    waiter: Waiter
    clock_ns: Callable[[], int]
    chance: Callable[[], float]
    stopping: Callable[[], bool]
    settings: ApplySettings = field(default_factory=ApplySettings)
    report: Callable[[str, UUID, ReplicatorError], None] = field(default=lambda *_: None)
    name: str | None = None
    attester: Attester | None = None
    require_log: Callable[[], None] = field(default=lambda: None)


def retry_delay_s(attempt: int, chance: float) -> float:
    """Before the next try of what can't be reached: doubling, each time a factor in [0.5, 1)."""
    return float(min(_BACKOFF_LONGEST_S, _BACKOFF_FIRST_S * 2.0 ** min(attempt, 16)) * (0.5 + 0.5 * chance))


class Follower:
    """One volume's follower; `run` in a thread of its own, `progress` from any."""

    def __init__(self, world: World, volume: UUID, name: str) -> None:
        self._world, self.volume = world, volume
        self._turn = threading.Lock()
        self._progress = Progress(volume, name)
        self._attempts = 0
        self._looked_s = float("-inf")
        self._registrar = None
        if world.name is not None:
            self._registrar = Registrar(world.log, world.name, world.clock_ns, world.waiter.monotonic)
        self._receiver: UUID | None = None
        self.alive_s = world.waiter.monotonic()

    @property
    def progress(self) -> Progress:
        """What is known now."""
        with self._turn:
            return self._progress

    def run(self) -> None:
        """Follow until a stop is asked for; never raises."""
        while not self._world.stopping():
            try:
                self.follow(IDLE_S)
            except ReplicatorError as error:
                delay_s = self._met(error)
                self._world.report(self.progress.activity, self.volume, error)
                self._beat()
                self._world.waiter.wait(delay_s)
                self._beat()

    def follow(self, idle_s: float | None) -> None:
        """One pass: until a stop is asked for, or (None) to the log's present end. Raises what is wrong."""
        access = self._world.pools.current()
        try:
            self._pass(access, idle_s)
        except ReplicatorError as error:
            if isinstance(error, UnavailableError):
                self._world.pools.drop_if_gone(access)
            if isinstance(error, DamageError):
                self._world.require_log()
            mend = _mend_of(error)
            error.mend = mend and named(mend, access.pool.path, self._world.log.name, self.progress.name)
            raise

    def _pass(self, access: Access, idle_s: float | None) -> None:
        applier = Applier(access.pool, access.disks, self.volume, access.dev_ids, self._world.settings)
        checker = ChainChecker(applier.state)
        self._tell_applied(applier)
        if self._registrar is not None:
            self._receiver = access.pool.view().pool.uuid
        try:
            while True:
                reader = self._world.log.reader(self.volume, checker.state.timeline)
                self._look(reader, applier, checker)
                for event in self._events(reader, checker.state, idle_s):
                    self._take(access, applier, checker, event)
                    if self._world.stopping():
                        return
                    self._look(reader, applier, checker, every_s=LOOK_S)
                self._look(reader, applier, checker)
                if self._next_timeline(access, applier, checker):
                    continue
                self._fine()
                self._register(applier)
                if idle_s is None or self._world.stopping():
                    return
        finally:
            applier.close()
            if idle_s is None or self._world.stopping():
                self._register(applier, at_once=True)

    def _events(self, reader: StreamReader, state: StreamState, idle_s: float | None) -> Iterator[Event]:
        if idle_s is None:
            return reader.read(state.sequence + 1)
        return reader.follow(state.sequence + 1, self._world.waiter, idle_s)

    def _take(self, access: Access, applier: Applier, checker: ChainChecker, event: Event) -> None:
        self._beat()
        try:
            verdict = checker.accept(event)
        except GapError:
            require_last_event(self._world.log.reader(self.volume, checker.state.timeline), checker.state)
            raise
        if verdict is not Verdict.APPLY:
            return
        before = applier.position
        applier.apply(event, checker.state)
        if applier.position is not before:
            self._fine()
            self._register(applier)
        if isinstance(event.body, VolumeAttested) and self._world.attester is not None:
            self._world.attester.take(access, self.volume, applier.name, event.body)

    def _next_timeline(self, access: Access, applier: Applier, checker: ChainChecker) -> bool:
        """Go on to the timeline that forks at what we have; False where there is none (yet)."""
        state, log = checker.state, self._world.log
        for timeline in log.timelines(self.volume):
            first = next(log.reader(self.volume, timeline).read(1), None) if timeline > state.timeline else None
            if first is None:
                continue  # ours, or claimed, and nothing is in it yet
            parent = first.body.parent if isinstance(first.body, TimelineStarted) else None
            if parent and parent.timeline == state.timeline and parent.number > state.number:
                return False  # it forks ahead of us: the transactions up to there come first
            self._take(access, applier, checker, first)
            return True
        return False

    # -- facts -------------------------------------------------------------------------------------------------

    def _look(
        self, reader: StreamReader, applier: Applier, checker: ChainChecker, *, every_s: float | None = None
    ) -> None:
        """Compare with the log's tail and beacon; with `every_s` not more often than that."""
        now_s = self._world.waiter.monotonic()
        if every_s is not None and now_s - self._looked_s < every_s:
            return
        self._looked_s = now_s
        self._beat()
        applier.refresh()
        tail, state = reader.tail(), applier.state
        require_one_history(reader, tail, state)
        number, newest_ns = self._tell_applied(applier)
        ahead = max(0, (tail.committed.number if tail.committed else 0) - number)
        if self.progress.failure is None:
            self._set(activity=Activity.APPLYING if state.open else Activity.FOLLOWING)
        oldest_ns = _next_cut_ns(reader, state) if ahead else None
        self._set(waiting_count=ahead, oldest_waiting_ns=oldest_ns, skipped=checker.skipped)
        self._read_beacon(tail if _is_all(tail, state) else state, newest_ns)

    def _tell_applied(self, applier: Applier) -> tuple[int, int | None]:
        """What the pool has; the number of the newest transaction, and its timestamp."""
        state, position = applier.state, applier.position
        number = position.number if position else 0
        newest_ns = position.timestamp_ns if position and position.number else None
        self._set(
            name=applier.name if position else self.progress.name,
            timeline=state.timeline,
            number=number,
            newest_ns=newest_ns,
            size_bytes=state.size_bytes,
            staged_chunks=state.open.counts.chunks if state.open else 0,
            deleted=state.life is Life.DELETED,
        )
        return number, newest_ns

    def _register(self, applier: Applier, *, at_once: bool = False) -> None:
        """Renew what this receiver says of the volume beside the log, if it is due."""
        if self._registrar is not None and self._receiver is not None:
            self._registrar.renew(self._receiver, applier.position, at_once=at_once)
            self._set(registered=self._registrar.registered)

    def _beat(self) -> None:
        """W4."""
        self.alive_s = self._world.waiter.monotonic()

    def _read_beacon(self, state: StreamState, newest_ns: int | None) -> None:
        """`state`: what is applied, or the tail where that has no transaction more (W6)."""
        try:
            beacon = self._world.log.read_beacon(self.volume)
        except FormatError:  # a torn or foreign beacon says nothing: the stream decides
            beacon = None
        alive = beacon.alive_at_ns if beacon else self.progress.alive_at_ns
        reached = complete_to_ns(state, newest_ns, beacon, self.progress.complete_to_ns)
        self._set(complete_to_ns=reached, alive_at_ns=alive)

    def _fine(self) -> None:
        """It goes on: what was wrong is over."""
        self._attempts = 0
        if self.progress.failure is not None:
            self._set(activity=Activity.FOLLOWING, failure=None)

    def _met(self, error: ReplicatorError) -> float:
        """Note what is wrong; how long to wait."""
        activity, delay_s = self._judge(error)
        known = self.progress.failure
        since_ns = known.since_ns if known else self._world.clock_ns()
        self._set(activity=activity, failure=Failure(since_ns, error.message, error.mend))
        self._attempts += 1
        return delay_s

    def _judge(self, error: ReplicatorError) -> tuple[Activity, float]:
        if isinstance(error, NoSpaceError):
            return Activity.WAITING_FOR_ROOM, RETRY_ROOM_S
        if isinstance(error, _PASSING) and not isinstance(error, _FOR_A_PERSON):
            return Activity.UNREACHABLE, retry_delay_s(self._attempts, self._world.chance())
        return Activity.STOPPED, RETRY_STOPPED_S

    def _set(self, **changes: Any) -> None:
        with self._turn:
            self._progress = replace(self._progress, **changes)


def _mend_of(error: ReplicatorError) -> str | None:
    """What mends it where a replica met it, whoever raised it."""
    if isinstance(error, LostEndError):
        return LOST_END
    return error.mend or (ANEW if isinstance(error, StreamConflictError) else None)


def _is_all(tail: StreamState, state: StreamState) -> bool:
    """Whether the log's end has no transaction that isn't applied (W6)."""
    return (tail.timeline, tail.committed) == (state.timeline, state.committed)


def _next_cut_ns(reader: StreamReader, state: StreamState) -> int | None:
    """When the transaction that comes next was cut: since then the replica is behind."""
    if state.open is not None:
        return state.open.timestamp_ns
    for event in _facts_behind(reader, state.sequence):
        if isinstance(event.body, TransactionBegan):
            return event.body.timestamp_ns
    return None


def _facts_behind(reader: StreamReader, sequence: int) -> Iterator[Event]:
    """The events behind `sequence`, without data where the log offers that."""
    if not isinstance(reader, IndexedReader):
        yield from reader.read(sequence + 1)
        return
    for part in reader.parts(sequence + 1):
        yield from (event for event in part.facts if event.header.sequence > sequence)
