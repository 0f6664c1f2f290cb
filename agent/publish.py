"""The publisher of one volume: does what decide says, until pool and log agree.

    facts (pool's rows, log's tail) -> decide -> act -> facts -> … -> Ready

Recovery and the everyday way are one path: a cut leaves a prepared transaction in the pool; the table says the rest.
What a crash leaves behind each line of one round, and who goes on:

    line                                pool                          log          the next one decides
    cut, with Prepared in its switch    Prepared N                    N - 1        Publish
    TransactionBegan, chunks            Prepared N                    N open       Resume
    TransactionCommitted                Prepared N                    N            Finish
    the finishing switch                N, its target is the base     N            Ready

    the finishing switch is one commit: Position N, End(Prepared), target becomes the base, old base deleted (hidden,
    where somebody reads it, and deleted later), the cut's row ended.

Invariants
  P1  The base of N is deleted in the switch that records N, and that is made after N was read back, or acknowledged,
      as committed in the log: never before.
  P2  A block that can't be read, or a lost target, ends the transaction by TransactionAborted; its number comes again.
  P3  Before an epoch is taken, tail and pool were compared and agree.
  P4  An epoch whose claim the log refused isn't ours, though it has the number that we claimed. Nor is one whose
      claim's answer was lost, where another event has its place.
  P5  A tail that was read a while ago refuses nothing and rewinds nothing: another publisher, or a loss, may have
      changed log and pool meanwhile, and it is read again before.

Failures: RefusedError (decide), LogAwayError, UnavailableError (the pool's owner is away), VoidedError (P2, after the
abort: the next cut tries again), StoppedError (a stop was asked for; the open transaction is resumed by the next one).
What one transaction is made of is transmit's affair; deletion, labels and attestations are remark's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from contextlib import closing, suppress
from uuid import UUID

from agent.append import AnswerLostError, Appender, LogAwayError, UnsettledError, log_errors
from agent.context import Context
from agent.decide import (
    UNCHANGED,
    Abort,
    CreateStream,
    Drop,
    Facts,
    Finish,
    OpenStream,
    Outcome,
    Publish,
    Ready,
    Refuse,
    RefusedError,
    Resume,
    Rewind,
    StartTimeline,
    decide,
)
from agent.farewell import Gone
from agent.look_back import beacon_epoch, last_began
from agent.rows import dropped, finished, rewound, switched
from agent.standing import Devices, dev_ids_of, equal_to, parent_of
from agent.transmit import GroupOf, Transmission
from replicator.errors import ReplicatorError
from replicator.events.bodies import (
    PointLabelled,
    PublisherOpened,
    TimelineEnded,
    TimelineStarted,
    TransactionAborted,
    VolumeAttested,
    VolumeCreated,
    VolumeDeleted,
    VolumeRenamed,
)
from replicator.events.chain import seal
from replicator.events.state import Life, StreamState
from replicator.events.values import Link, StateName
from replicator.pool.catalogue_schema import Prepared, Role, Volume

STEPS_MAX = 64
"""Outcomes in a row before Ready: a recovery takes about six; beyond it two publishers are at each other."""

REMEMBERED_MAX = 256
"""Claims without an answer, and transactions that were given up: what a log that comes and goes for days may bring."""

REASON_BYTES_MAX = 1000  # of an abort's reason, as events/values bounds it


class VoidedError(ReplicatorError):
    """A transaction was given up, since its blocks can't be read (any more)."""

    kind = "voided"


class VolumePublisher:
    """One volume's way into the log; for one thread."""

    def __init__(self, context: Context, volume: UUID, given_up: Iterable[UUID] = ()) -> None:
        """`given_up`: what another publisher of this process aborted."""
        self.volume = volume
        self._context = context
        self._appender: Appender | None = None
        self._epoch: int | None = None
        self._given_up = deque(given_up, REMEMBERED_MAX)  # the transactions that we aborted, each once
        self._taken = 0  # the last epoch that is ours for sure
        self._unheard: dict[Link, int] = {}  # the epochs since then whose claims weren't answered, by their events
        self._successor: int | None = None
        self._seen = 0  # the tail's number when pool and log last agreed
        self._disputed = False  # an append's answer was lost: until our next epoch stands, it may come to stand
        self.lost_cut = False  # the last `settle_down` let go of a cut that the log doesn't have: another one is needed
        self._transmission = Transmission(context, volume)

    @property
    def durable(self) -> StreamState | None:
        """The log's tail as far as it stands for sure; None before the first look."""
        return self._appender.durable if self._appender is not None and self._appender.is_settled else None

    def settle_down(self, group: GroupOf | None = None) -> StreamState:
        """Act until pool and log agree and nothing is under way; the tail then. `group` makes a commit's group."""
        self.lost_cut = is_fresh = False
        for _ in range(STEPS_MAX):
            try:
                outcome = decide(self._facts())
                if isinstance(outcome, Refuse | Rewind) and not is_fresh:  # P5
                    self._end.settle()
                    is_fresh = True
                    continue
                if isinstance(outcome, Ready):
                    self._rename()
                    self._seen = self._end.state.sequence
                    return self._end.state
                self._act(outcome, group)
            except UnsettledError as error:
                self._disputed |= isinstance(error, AnswerLostError)
        raise LogAwayError("pool and log don't come to agree: is another publisher at work?")

    def begun_anew(self) -> VolumePublisher:
        """One that knows nothing of the stream any more but what this one gave up: its history was changed."""
        self.close()
        return VolumePublisher(self._context, self.volume, self._given_up)

    def look_again(self) -> None:
        """Read the log's tail before the next step: something may have changed it."""
        if self._appender is not None:
            self._appender.close()
        self._appender = None

    def refusal(self) -> RefusedError | None:
        """Why it may not be published from here, by a fresh look; nothing is done."""
        self.look_again()
        outcome = decide(self._facts())
        return outcome.error if isinstance(outcome, Refuse) else None

    def sync(self) -> None:
        """Make what was sent durable: less to send again after a stop."""
        if self._appender is not None and self._appender.is_settled:
            self._appender.sync()

    def close(self) -> None:
        """Let go of the log; an open transaction stays as it is."""
        self.look_again()

    # -- what is no transaction --------------------------------------------------------------------------------

    def say(self, body: PointLabelled | VolumeAttested, group: GroupOf | None = None) -> None:
        """Append one fact about a point that the log has; twice, at worst, where an answer was lost."""
        for _ in range(STEPS_MAX):
            try:
                self.settle_down(group)
                self._end.add(body)
                self._end.flush()
                return
            except UnsettledError:
                continue
        raise LogAwayError("pool and log don't come to agree: is another publisher at work?")

    def bury(self, gone: Gone) -> bool:
        """Append VolumeDeleted, if the log still ends with what we published; whether it stands now (P3)."""
        for _ in range(STEPS_MAX):
            try:
                tail = self._tail(gone.timeline)
                committed = tail.committed
                named = (committed.number, committed.digest) if committed is not None else (0, b"")
                if tail.life is not Life.LIVE or self._successor is not None or named != (gone.number, gone.digest):
                    return tail.life is Life.DELETED
                if 0 < self._claimed(tail) < tail.epoch:
                    return False
                if self._epoch != tail.epoch:
                    self._take_epoch(1 + max(tail.epoch, self._epoch or 0, gone.epoch))
                elif tail.open is not None:
                    self._end.add(TransactionAborted(tail.open.number, tail.open.transaction, "the volume was deleted"))
                else:
                    self._end.add(VolumeDeleted(self._context.clock.now_ns()))
                    self._end.sync()
            except UnsettledError:
                continue
        raise LogAwayError("the stream's end doesn't settle: is another publisher at work?")

    # -- facts -------------------------------------------------------------------------------------------------

    @property
    def _end(self) -> Appender:
        assert self._appender is not None, "look at the tail first"
        return self._appender

    def _tail(self, timeline: int) -> StreamState:
        if self._appender is None:
            with log_errors():
                timelines = self._context.log.timelines(self.volume)
            self._successor = min((each for each in timelines if each > timeline), default=None)
            self._appender = Appender(self._context.log, self.volume, timeline, self._context.pass_bytes)
        return self._end.state if self._end.is_settled else self._end.settle()

    def _require_log(self, published: int) -> None:
        """A log without any volume, to which we have published, isn't there: it isn't taken for an emptied one."""
        log = self._context.log
        with log_errors():
            is_there = bool(log.volumes())
        if not is_there:
            mend = "mount it, or put it back"
            raise LogAwayError(f"{log.name} holds nothing, though {published} transactions were published", mend=mend)

    def _facts(self) -> Facts:
        pool = self._context.pool()
        view = pool.view()
        volume, prepared = view.volume(self.volume), view.prepared_of(self.volume)
        position = view.position(self.volume, Role.PUBLISHED)
        timeline = position.timeline if position else view.lineage(self.volume).current
        tail = self._tail(timeline)
        if tail.life is Life.ENDED and self._successor is None:  # claimed since we looked: who took over is named
            self.look_again()
            tail = self._tail(timeline)
        if position is not None and tail.life is Life.EMPTY:
            self._require_log(position.number)
        there = Devices.of(view, pool.facts(dev_ids_of(prepared)), prepared, position) if prepared else Devices()
        published = position.number if position else 0
        return Facts(
            str(pool.path),
            volume.name,
            tail,
            position,
            prepared,
            base_there=there.base,
            target_there=there.target,
            unchanged=there.unchanged,
            void=self._transmission.void_reason(prepared),
            epoch=self._epoch,
            claimed=self._claimed(tail),
            given_up=tail.open is not None and tail.open.transaction in self._given_up,
            taker=self._taker(tail),
            successor=self._successor,
            committed_transaction=self._transaction_of(tail, prepared),
            equal_to_tail=equal_to(view, self.volume, tail, published),
            parent=parent_of(view, self.volume, timeline),
            disputed=self._disputed,
        )

    def _claimed(self, tail: StreamState) -> int:
        """The last epoch that is ours, or may be (P4)."""
        return max(self._taken, *(epoch for link, epoch in self._unheard.items() if _may_stand(link, epoch, tail)), 0)

    def _taker(self, tail: StreamState) -> str:
        """The host that took a later epoch than ours, for the message alone: what hinders reading it doesn't count."""
        if 0 < (claimed := self._claimed(tail)) < tail.epoch:
            with suppress(ReplicatorError):
                for event in self._context.log.reader(self.volume, tail.timeline).read(self._seen + 1):
                    if isinstance(event.body, PublisherOpened) and event.body.epoch > claimed:
                        return event.body.host
        return ""

    def _transaction_of(self, tail: StreamState, prepared: Prepared | None) -> UUID | None:
        """The UUID of the log's last transaction, where it has the number of the prepared one."""
        if prepared is None or tail.committed is None or tail.committed.number != prepared.number:
            return None
        known = self._transmission.committed_as(tail.committed)
        if known is not None:
            return known
        began = last_began(self._context.log, tail)
        return began.transaction if began is not None else None

    # -- acts --------------------------------------------------------------------------------------------------

    def _act(self, outcome: Outcome, group: GroupOf | None) -> None:
        pool = self._context.pool()
        if isinstance(outcome, Refuse):
            raise outcome.error
        if isinstance(outcome, CreateStream):
            self._create()
        elif isinstance(outcome, StartTimeline):
            self._start_timeline(outcome.parent)
        elif isinstance(outcome, OpenStream):
            self._take_epoch(outcome.epoch)
        elif isinstance(outcome, Publish):
            self._transmission.send(self._end, outcome.prepared, None, group)
        elif isinstance(outcome, Resume):
            self._transmission.send(self._end, outcome.prepared, outcome.opened, group)
        elif isinstance(outcome, Abort):
            reason = outcome.reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore")
            if outcome.opened.transaction not in self._given_up:
                self._given_up.append(outcome.opened.transaction)
            self._end.add(TransactionAborted(outcome.opened.number, outcome.opened.transaction, reason))
            self._end.flush()
        elif isinstance(outcome, Finish):
            epoch = self._end.state.epoch
            switched(pool, lambda view: finished(view, outcome, epoch))
        elif isinstance(outcome, Drop):
            self.lost_cut = outcome.reason != UNCHANGED
            self._drop(outcome.prepared)
        elif isinstance(outcome, Rewind):
            self._rewind(outcome)

    def _drop(self, prepared: Prepared) -> None:
        """P2: who is told is the caller, once the transaction is gone everywhere."""
        reason = self._transmission.void_reason(prepared)
        switched(self._context.pool(), lambda view: dropped(view, prepared, is_void=reason is not None))
        if reason is not None:
            self._transmission.forget_void(prepared)
            raise VoidedError(f"the transaction was given up: {reason}", mend="the next cut tries again")

    def _rewind(self, outcome: Rewind) -> None:
        self.lost_cut, tail = True, self._end.state
        has = tail.committed.number if tail.committed else "none"
        how = "the base is still there" if outcome.dev_id is not None else "found by comparing hashes with those it has"
        self._context.report(
            f"the log lost its end: its last transaction is {has}; what is missing is sent again, {how}"
        )
        began = last_began(self._context.log, tail)
        at_ns = began.timestamp_ns if began is not None else 0
        switched(self._context.pool(), lambda view: rewound(view, outcome, tail, at_ns))
        self._epoch = None  # another one outdates the beacon that tells of the end that is lost

    def _create(self) -> None:
        volume, now = self._row(), self._context.clock.now_ns()
        self._end.add(VolumeCreated(volume.name, volume.size_bytes, self._context.host, now))
        self._take_epoch(1)

    def _start_timeline(self, parent: StateName) -> None:
        """A rebase claimed our timeline: the old one is ended first, so that nobody publishes both."""
        volume, host, now = self._row(), self._context.host, self._context.clock.now_ns()
        ours = self._end.state.timeline
        with closing(Appender(self._context.log, self.volume, parent.timeline, self._context.pass_bytes)) as old:
            if old.settle().life in (Life.LIVE, Life.DELETED):
                old.add(TimelineEnded(ours, host, now))
                old.sync()
        self._end.add(TimelineStarted(parent, volume.name, volume.size_bytes, host, now))
        self._take_epoch(1)

    def _take_epoch(self, epoch: int) -> None:
        """P3; the tail is read again afterwards, before anything is built on it."""
        settings = (("level", str(self._context.level)),)
        epoch = max(epoch, 1 + beacon_epoch(self._context.log, self._end.state))
        body = PublisherOpened(epoch, self._context.host, settings, self._context.clock.now_ns())
        opened = seal(self._end.state, body)[1].link
        self._unheard[opened] = epoch
        while len(self._unheard) > REMEMBERED_MAX:
            del self._unheard[next(iter(self._unheard))]
        try:
            self._end.add(body)
            self._end.flush()
        except UnsettledError as error:
            if not isinstance(error, AnswerLostError):
                del self._unheard[opened]  # P4: another event has its place
            raise
        self._taken, self._unheard = epoch, {}
        self._epoch, self._disputed = epoch, False
        self._end.settle()

    def _rename(self) -> None:
        name = self._row().name
        if name != self._end.state.name:
            self._end.add(VolumeRenamed(name, self._context.clock.now_ns()))
            self._end.flush()

    def _row(self) -> Volume:
        return self._context.pool().view().volume(self.volume)


def _may_stand(link: Link, epoch: int, tail: StreamState) -> bool:
    """Whether that PublisherOpened may be in the log, or come to be: epochs go up, before it and behind it."""
    if tail.sequence == link.sequence:
        return tail.digest == link.digest
    return tail.epoch > epoch if tail.sequence > link.sequence else tail.epoch != epoch
