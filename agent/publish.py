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

Failures: RefusedError (decide), LogAwayError, UnavailableError (the pool's owner is away), VoidedError (P2, after the
abort: the next cut tries again), StoppedError (a stop was asked for; the open transaction is resumed by the next one).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from typing import TypeAlias
from uuid import UUID

from agent.append import Appender, LogAwayError, UnsettledError, log_errors
from agent.context import Context
from agent.decide import (
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
    Resume,
    Rewind,
    decide,
)
from agent.delta import Delta, State
from agent.extract import Extractor, Progress
from agent.rows import dropped, finished, rewound, switched
from replicator.errors import DamageError, DeviceError, NotFoundError, ReplicatorError
from replicator.events.bodies import (
    Body,
    ChunkBody,
    GroupCut,
    PublisherOpened,
    TransactionAborted,
    TransactionBegan,
    TransactionCommitted,
    VolumeCreated,
    VolumeRenamed,
)
from replicator.events.state import Life, OpenTransaction, StreamState
from replicator.events.values import Consistency, DeltaKind
from replicator.pool.catalogue_schema import Prepared, Role, Snapshot, Volume
from replicator.pool.interface import Lease
from replicator.pool.view import CatalogueView

STEPS_MAX = 64
"""Outcomes in a row before Ready: a recovery takes about six; beyond it two publishers are at each other."""

REASON_BYTES_MAX = 1000  # of an abort's reason, as events/values bounds it


GroupOf: TypeAlias = Callable[[CatalogueView, Prepared], GroupCut]
"""Makes the group's part of a commit, from what the pool knows then."""


class VoidedError(ReplicatorError):
    """A transaction was given up, since its blocks can't be read (any more)."""

    kind = "voided"


class StoppedError(ReplicatorError):
    """A stop was asked for in the middle of a transaction."""

    kind = "stopped"


class VolumePublisher:
    """One volume's way into the log; for one thread."""

    def __init__(self, context: Context, volume: UUID) -> None:
        self.volume = volume
        self._context = context
        self._appender: Appender | None = None
        self._epoch: int | None = None
        self._successor: int | None = None
        self._void: tuple[UUID, str] | None = None
        self._committed: tuple[int, UUID] | None = None

    @property
    def durable(self) -> StreamState | None:
        """The log's tail as far as it stands for sure; None before the first look."""
        return self._appender.durable if self._appender is not None and self._appender.is_settled else None

    def settle_down(self, group: GroupOf | None = None) -> StreamState:
        """Act until pool and log agree and nothing is under way; the tail then. `group` makes a commit's group."""
        for _ in range(STEPS_MAX):
            try:
                outcome = decide(self._facts())
                if isinstance(outcome, Ready):
                    self._rename()
                    return self._end.state
                self._act(outcome, group)
            except UnsettledError:
                continue
        raise LogAwayError("pool and log don't come to agree: is another publisher at work?")

    def look_again(self) -> None:
        """Read the log's tail before the next step: something may have changed it."""
        if self._appender is not None:
            self._appender.close()
        self._appender = None

    def sync(self) -> None:
        """Make what was sent durable: less to send again after a stop."""
        if self._appender is not None and self._appender.is_settled:
            self._appender.sync()

    def close(self) -> None:
        """Let go of the log; an open transaction stays as it is."""
        self.look_again()

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
        if position is not None and tail.life is Life.EMPTY:
            self._require_log(position.number)
        base_there = target_there = unchanged = False
        if prepared is not None:
            wanted = [each for each in (prepared.base_dev_id, prepared.target_dev_id) if each is not None]
            there = pool.facts(wanted)
            base, target = there.get(prepared.base_dev_id or -1), there.get(prepared.target_dev_id)
            base_there, target_there = base is not None, target is not None
            same = base is not None and target is not None and base.root == target.root
            unchanged = same and _is_same_size(view, prepared) and not _labels(view, prepared)
        void = self._void[1] if self._void and prepared and self._void[0] == prepared.transaction_uuid else None
        published = position.number if position else 0
        return Facts(
            str(pool.path),
            volume.name,
            tail,
            position,
            prepared,
            base_there=base_there,
            target_there=target_there,
            unchanged=unchanged,
            void=void,
            epoch=self._epoch,
            successor=self._successor,
            committed_transaction=self._transaction_of(tail, prepared),
            equal_to_tail=_equal_to(view, self.volume, tail, published),
        )

    def _transaction_of(self, tail: StreamState, prepared: Prepared | None) -> UUID | None:
        """The UUID of the log's last transaction, where it has the number of the prepared one."""
        if prepared is None or tail.committed is None or tail.committed.number != prepared.number:
            return None
        if self._committed is not None and self._committed[0] == prepared.number:
            return self._committed[1]
        with log_errors():
            reader = self._context.log.reader(self.volume, tail.timeline)
            before = next(reader.read(tail.committed_sequence - 1))
            began = next(reader.read(before.header.began))
        return began.body.transaction if isinstance(began.body, TransactionBegan) else None

    # -- acts --------------------------------------------------------------------------------------------------

    def _act(self, outcome: Outcome, group: GroupOf | None) -> None:
        pool = self._context.pool()
        if isinstance(outcome, Refuse):
            raise outcome.error
        if isinstance(outcome, CreateStream):
            self._create()
        elif isinstance(outcome, OpenStream):
            self._open(outcome.epoch)
        elif isinstance(outcome, Publish):
            self._publish(outcome.prepared, None, group)
        elif isinstance(outcome, Resume):
            self._publish(outcome.prepared, outcome.opened, group)
        elif isinstance(outcome, Abort):
            reason = outcome.reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore")
            self._end.add(TransactionAborted(outcome.opened.number, outcome.opened.transaction, reason))
            self._end.flush()
        elif isinstance(outcome, Finish):
            epoch = self._end.state.epoch
            switched(pool, lambda view: finished(view, outcome, epoch))
        elif isinstance(outcome, Drop):
            switched(pool, lambda view: dropped(view, outcome.prepared))
            if self._void is not None:
                reason, self._void = self._void[1], None
                raise VoidedError(f"the transaction was given up: {reason}", mend="the next cut tries again")
        elif isinstance(outcome, Rewind):
            epoch, sequence = self._end.state.epoch, self._end.state.committed_sequence
            switched(pool, lambda view: rewound(view, self.volume, outcome, epoch, sequence))

    def _create(self) -> None:
        volume, now = self._row(), self._context.clock.now_ns()
        self._end.add(VolumeCreated(volume.name, volume.size_bytes, self._context.host, now))
        self._take_epoch(1)

    def _open(self, epoch: int) -> None:
        self._take_epoch(epoch)

    def _take_epoch(self, epoch: int) -> None:
        """P3; the tail is read again afterwards, before anything is built on it."""
        settings = (("level", str(self._context.level)),)
        self._end.add(PublisherOpened(epoch, self._context.host, settings, self._context.clock.now_ns()))
        self._end.flush()
        self._epoch = epoch
        self._end.settle()

    def _rename(self) -> None:
        name = self._row().name
        if name != self._end.state.name:
            self._end.add(VolumeRenamed(name, self._context.clock.now_ns()))
            self._end.flush()

    def _row(self) -> Volume:
        return self._context.pool().view().volume(self.volume)

    # -- one transaction ---------------------------------------------------------------------------------------

    def _publish(
        self,
        prepared: Prepared,
        opened: OpenTransaction | None,
        group: GroupOf | None,
    ) -> None:
        """Append the transaction, or what is left of it, and its end."""
        pool = self._context.pool()
        view = pool.view()
        target = view.snapshot(prepared.target_dev_id)
        with ExitStack() as stack:
            extractor = self._extractor(stack, view, prepared)
            if extractor is None:
                return  # a device went meanwhile: the facts say so now
            progress = Progress(opened.phase, opened.cursor) if opened else None
            bodies = stack.enter_context(closing(self._bodies(prepared, extractor, progress)))
            for body in self._guarded(prepared, bodies):
                self._end.add(body)
                self._context.tell()
                if self._context.clock.is_stopping:
                    raise StoppedError("stopped in the middle of a transaction, which the next start goes on with")
        if self._void is None:
            self._commit(prepared, target, group(view, prepared) if group else None)

    def _extractor(self, stack: ExitStack, view: CatalogueView, prepared: Prepared) -> Extractor | None:
        pool = self._context.pool()
        volume = view.volume(self.volume)
        dev_ids = [each for each in (prepared.base_dev_id, prepared.target_dev_id) if each is not None]
        try:
            lease: Lease = stack.enter_context(pool.lease(dev_ids))
        except NotFoundError:
            return None
        base = None
        if prepared.base_dev_id is not None:
            base = State(lease.devices[prepared.base_dev_id].root, view.snapshot(prepared.base_dev_id).size_bytes)
        target = State(lease.devices[prepared.target_dev_id].root, prepared.size_bytes)
        files = stack.enter_context(self._context.files(pool))
        origin = stack.enter_context(self._context.origin(volume.origin)) if volume.origin else None
        delta = Delta(files, base, target, origin=origin, stands=lambda: lease.stands)
        return Extractor(delta, level=self._context.level, threads=self._context.threads)

    def _bodies(
        self, prepared: Prepared, extractor: Extractor, progress: Progress | None
    ) -> Generator[TransactionBegan | ChunkBody, None, None]:
        if progress is None:
            yield self._began(prepared, extractor)
        with closing(extractor.bodies(progress)) as bodies:
            yield from bodies

    def _began(self, prepared: Prepared, extractor: Extractor) -> TransactionBegan:
        state = self._end.state
        kind = DeltaKind.FULL if state.committed is None else DeltaKind.DELTA
        at = max(prepared.timestamp_ns, state.timestamp_ns)
        size, bound = prepared.size_bytes, extractor.chunk_bound()
        transaction = prepared.transaction_uuid
        return TransactionBegan(prepared.number, transaction, state.committed, at, size, bound, kind)

    def _guarded(self, prepared: Prepared, bodies: Iterator[Body]) -> Iterator[Body]:
        """The bodies; where one can't be read the transaction is void (P2), and they end."""
        while True:
            try:
                body = next(bodies, None)
            except (DeviceError, DamageError) as error:
                self._void = (prepared.transaction_uuid, error.message)
                return
            if body is None:
                return
            yield body

    def _commit(self, prepared: Prepared, target: Snapshot, group: GroupCut | None) -> None:
        opened = self._end.state.open
        assert opened is not None, "a transaction is open"
        consistency = Consistency[target.consistency.name]
        self._end.add(TransactionCommitted(prepared.number, opened.counts, consistency, target.labels, group))
        self._end.flush()
        self._committed = (prepared.number, prepared.transaction_uuid)


def _is_same_size(view: CatalogueView, prepared: Prepared) -> bool:
    assert prepared.base_dev_id is not None
    return view.snapshot(prepared.base_dev_id).size_bytes == prepared.size_bytes


def _labels(view: CatalogueView, prepared: Prepared) -> tuple[str, ...]:
    return view.snapshot(prepared.target_dev_id).labels


def _equal_to(view: CatalogueView, volume: UUID, tail: StreamState, published: int) -> int | None:
    """A snapshot that equals the log's tail, where the log is behind the pool."""
    committed = tail.committed
    if committed is None or committed.number >= published:
        return None
    named = (committed.timeline, committed.number, committed.digest)
    found = [each for each in view.snapshots_of(volume) if (each.timeline, each.number, each.digest) == named]
    return found[0].dev_id if found else None
