"""One transaction on its way: the events of a prepared cut, from its beginning, or from behind what the log has.

Called by publish for Publish and Resume. What the transaction is made of decides how its changes are found:

    base of Prepared    the log's last commit    kind      found by
    a snapshot          any                      DELTA     thin/diff of the two trees, page by page
    none                none                     FULL      all that isn't zero
    none                some                     REBASE    comparing hashes with those in the log (compare)

Invariants
  T1  Before a transaction's first event the log's tail is looked at: it is what we appended, or nothing is sent.
  T2  A block that can't be read, or a comparison that comes out larger than the log was told, makes the transaction
      void, by its UUID: the next decision aborts it.
  T3  Base and target are the snapshots that the facts spoke of, also under their lease: dev_ids are given again.

Failures: StoppedError (a stop was asked for), UnsettledError (T1), and those of delta, compare and append.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from typing import TypeAlias
from uuid import UUID

from agent.append import Appender, UnsettledError, log_errors
from agent.context import Context
from agent.delta import Delta, State
from agent.extract import Extractor, Progress
from agent.rows import target_of
from replicator.errors import DamageError, DeviceError, NotFoundError, ReplicatorError
from replicator.events.bodies import Body, ChunkBody, GroupCut, TransactionBegan, TransactionCommitted
from replicator.events.state import OpenTransaction
from replicator.events.values import Consistency, DeltaKind, StateName, chunk_count_of
from replicator.pool.catalogue_schema import Prepared, Role, Snapshot
from replicator.pool.interface import Lease
from replicator.pool.leasing import leased_rows
from replicator.pool.view import CatalogueView

GroupOf: TypeAlias = Callable[[CatalogueView, Prepared], GroupCut | None]
"""Makes the group's part of a commit, from what the pool knows then; None where the cut is no group's any more."""


class StoppedError(ReplicatorError):
    """A stop was asked for in the middle of a transaction."""

    kind = "stopped"


class Transmission:
    """Sends one volume's transactions; remembers which one turned out void, and which one was committed last."""

    def __init__(self, context: Context, volume: UUID) -> None:
        self._context, self._volume = context, volume
        self._void: tuple[UUID, str] | None = None
        self._committed: tuple[StateName, UUID] | None = None

    def void_reason(self, prepared: Prepared | None) -> str | None:
        """Why this transaction can't be sent, if it turned out so (T2)."""
        known = self._void is not None and prepared is not None and self._void[0] == prepared.transaction_uuid
        return self._void[1] if known and self._void is not None else None

    def forget_void(self, prepared: Prepared) -> None:
        """The transaction is gone."""
        if self._void is not None and self._void[0] == prepared.transaction_uuid:
            self._void = None

    def committed_as(self, committed: StateName) -> UUID | None:
        """The UUID of the transaction that `committed` is, if it is the last that we committed.

        Not by its number: a log that lost its end gets a number again, and the answer to that commit may be lost.
        """
        return self._committed[1] if self._committed is not None and self._committed[0] == committed else None

    def send(self, end: Appender, prepared: Prepared, opened: OpenTransaction | None, group: GroupOf | None) -> None:
        """Append the transaction, or what is left of it behind `opened`, and its commit."""
        if opened is None:
            self._require_tail(end)
        view = self._context.pool().view()
        with ExitStack() as stack:
            try:
                extractor = self._extractor(stack, end, view, prepared)
                if extractor is None:
                    return  # a device went meanwhile: the facts say so now
                progress = Progress(opened.phase, opened.cursor) if opened else None
                if opened is not None and extractor.chunk_bound() > opened.chunk_bound:
                    raise DamageError("the log was trimmed since it began: more would have to be sent than it was told")
            except (DeviceError, DamageError) as error:
                self._void = (prepared.transaction_uuid, error.message)
                return
            bodies = stack.enter_context(closing(self._bodies(end, prepared, extractor, progress)))
            for body in self._guarded(prepared, bodies):
                end.add(body)
                self._go_on()
        if self.void_reason(prepared) is None:
            self._commit(end, view, prepared, group)

    def _require_tail(self, end: Appender) -> None:
        """T1; a log that was replaced by an older copy is noticed here, before anything hangs on what is gone."""
        with log_errors():
            tail = self._context.log.reader(self._volume, end.durable.timeline).tail()
        appended = end.durable.link
        if tail.link != appended:
            end.doubt()
            raise UnsettledError(f"the log ends at event {tail.link.sequence}, not at {appended.sequence}, our last")

    def _go_on(self) -> None:
        """Between two events: signs of life, and whether a stop was asked for."""
        self._context.tell()
        if self._context.clock.is_stopping:
            raise StoppedError("stopped in the middle of a transaction, which the next start goes on with")

    # -- what is sent ------------------------------------------------------------------------------------------

    def _extractor(self, stack: ExitStack, end: Appender, view: CatalogueView, prepared: Prepared) -> Extractor | None:
        pool = self._context.pool()
        rows = _rows_of(view, prepared)
        if rows is None:
            return None
        try:
            lease: Lease = stack.enter_context(leased_rows(pool, rows))
        except NotFoundError:
            return None
        delta = self._delta(stack, end, view, prepared, lease)
        return Extractor(delta, level=self._context.level, threads=self._context.threads)

    def _delta(self, stack: ExitStack, end: Appender, view: CatalogueView, prepared: Prepared, lease: Lease) -> Delta:
        volume = view.volume(self._volume)
        target = State(lease.devices[prepared.target_dev_id].root, prepared.size_bytes)
        files = stack.enter_context(self._context.files(self._context.pool()))
        origin = stack.enter_context(self._context.origin(volume.origin)) if volume.origin else None
        committed = end.state.committed
        if prepared.base_dev_id is None and committed is not None:
            from agent.compare import ComparedDelta, known_at  # needed once in a year, and half as much as all else

            with log_errors():
                known = known_at(self._context.log, self._volume, committed, chunk_count_of(prepared.size_bytes))
            return ComparedDelta(files, target, known, origin=origin, stands=lambda: lease.stands, tell=self._go_on)
        base = None
        if prepared.base_dev_id is not None:
            root, size_bytes = lease.devices[prepared.base_dev_id].root, view.snapshot(prepared.base_dev_id).size_bytes
            base = State(root, size_bytes)
        return Delta(files, base, target, origin=origin, stands=lambda: lease.stands)

    def _bodies(
        self, end: Appender, prepared: Prepared, extractor: Extractor, progress: Progress | None
    ) -> Generator[TransactionBegan | ChunkBody, None, None]:
        if progress is None:
            yield _began(end, prepared, extractor)
        with closing(extractor.bodies(progress)) as bodies:
            yield from bodies

    def _guarded(self, prepared: Prepared, bodies: Iterator[Body]) -> Iterator[Body]:
        """The bodies; where one can't be read the transaction is void (T2), and they end."""
        while True:
            try:
                body = next(bodies, None)
            except (DeviceError, DamageError) as error:
                self._void = (prepared.transaction_uuid, error.message)
                return
            if body is None:
                return
            yield body

    def _commit(self, end: Appender, view: CatalogueView, prepared: Prepared, group: GroupOf | None) -> None:
        opened, target = end.state.open, view.snapshot(prepared.target_dev_id)
        assert opened is not None, "a transaction is open"
        consistency, members = Consistency[target.consistency.name], group(view, prepared) if group else None
        end.add(TransactionCommitted(prepared.number, opened.counts, consistency, target.labels, members))
        end.flush()
        assert end.state.committed is not None, "this commit"
        self._committed = (end.state.committed, prepared.transaction_uuid)


def _rows_of(view: CatalogueView, prepared: Prepared) -> list[Snapshot] | None:
    """Target and base, if there is one; None where one of them went (T3)."""
    target, position = target_of(view, prepared), view.position(prepared.volume, Role.PUBLISHED)
    if target is None or prepared.base_dev_id is None:
        return None if target is None else [target]
    for each in view.snapshots_of(prepared.volume, hidden=True):
        named = position is not None and (each.number, each.digest) == (position.number, position.digest)
        if each.dev_id == prepared.base_dev_id and named:
            return [target, each]
    return None


def _began(end: Appender, prepared: Prepared, extractor: Extractor) -> TransactionBegan:
    state = end.state
    kind = DeltaKind.DELTA if prepared.base_dev_id is not None else DeltaKind.REBASE
    if state.committed is None:
        kind = DeltaKind.FULL
    at = max(prepared.timestamp_ns, state.timestamp_ns)
    size, bound = prepared.size_bytes, extractor.chunk_bound()
    return TransactionBegan(prepared.number, prepared.transaction_uuid, state.committed, at, size, bound, kind)
