"""What a publisher has to do next, from what the pool remembers and what the log's tail says: a pure function.

The heart of publishing: pool and log each may be behind, after a crash of either side at any line; this table says how
they come together again. p is the pool's last published transaction, q the log's last committed one, R the transaction
that the pool has prepared (its number is p + 1), T the one that is open at the tail.

    tail                                        pool                              outcome
    timeline ended, or a later one is claimed   any                               refused: TimelineOverError
    volume deleted                              any                               refused: VolumeGoneError
    epoch later than any that we took, or may   any                               refused: FencedError
      have taken; or the same, by another
    q > p, not (q = p + 1 and R is it)          any                               refused: PoolOlderError
    q = p, another digest                       any                               refused: PoolOlderError
    q = p, T isn't R, nor one of ours that the  any                               refused: PoolOlderError
      pool gave up
    nothing yet                                 p > 0, not begun by a rebase      refused: LostEndError
    nothing yet                                 p = 0                             CreateStream
    nothing yet, on a timeline that a rebase    its parent                        StartTimeline
      claimed
    any other                                   epoch at the tail isn't ours      OpenStream
    q = p + 1 and R is it                       R                                 Finish
    q < p, T                                    any                               Abort T
    q < p                                       something that equals q, or not   Rewind to q
    q = p, T was given up: its abort is lost    any                               Abort T
    q = p, T = R                                R void, or a snapshot of it gone  Abort T
    q = p, T = R                                R                                 Resume behind the log's last event
    q = p                                       no R                              Ready
    q = p                                       R void, a snapshot gone, same as  Drop R; OpenStream first where an
                                                the base, or of another number    append's answer was lost
    q = p                                       R                                 Publish R

Refusals come first: who may not publish appends nothing and fences nobody.

A prepared transaction without a base, where the log has a committed one, is found by comparing hashes (compare). So it
is after a rewind to what no snapshot here equals, and after a base was dropped to make room (relief).

Invariants
  D1  Every outcome but Ready and the refusals changes pool or log so that the same table gives another row; the
      chain of them ends in Ready.
  D2  No outcome but Rewind lets go of a base before its successor is committed in the log; Rewind lets go of those
      that the log has no use for.
  D3  What may still come to stand in the log isn't forgotten: Drop, which appends nothing, comes after its place is
      taken by another event. Otherwise a commit that lands late is a transaction that the pool doesn't know.

Failures raised by refuse(): the conflicts above, each with the command that mends it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

from replicator.errors import ConflictError
from replicator.events.state import Life, OpenTransaction, StreamState
from replicator.events.values import StateName
from replicator.pool.catalogue_schema import Position, Prepared


class RefusedError(ConflictError):
    """This volume may not be published from here; a person decides."""

    kind = "refused"


class FencedError(RefusedError):
    """A later publisher took the volume over."""

    kind = "fenced"


class TimelineOverError(RefusedError):
    """The timeline ended, or a promote claimed its successor."""

    kind = "timeline-over"


class VolumeGoneError(RefusedError):
    """The stream says that the volume was deleted."""

    kind = "volume-gone"


class PoolOlderError(RefusedError):
    """The log has what the pool never prepared: the pool is an older copy, or another history."""

    kind = "pool-older"


class LostEndError(RefusedError):
    """The log has nothing of what was published, though it has other volumes: it may be another log."""

    kind = "log-lost-end"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one volume, in the pool and in the log.

    `epoch`: ours, None before we took one; `claimed`: the last one that is ours, or may be. `given_up`: we aborted T,
    or tried to. `committed_transaction`: the UUID of the log's last committed transaction, where it matters.
    `equal_to_tail`: a snapshot that equals it. `void`: why the prepared transaction can't be sent. `parent`: what a
    rebase forked this timeline from, where it did. `taker`: the host that fenced us, where known. `disputed`: an
    append's answer was lost, and nothing that we appended since is known to stand.
    """

    pool_path: str
    volume: str
    tail: StreamState
    position: Position | None = None
    prepared: Prepared | None = None
    base_there: bool = True
    target_there: bool = True
    unchanged: bool = False
    void: str | None = None
    epoch: int | None = None
    claimed: int = 0
    given_up: bool = False
    taker: str = ""
    successor: int | None = None
    committed_transaction: UUID | None = None
    equal_to_tail: int | None = None
    parent: StateName | None = None
    disputed: bool = False

    @property
    def published(self) -> int:
        """p."""
        return self.position.number if self.position else 0

    @property
    def committed(self) -> int:
        """q."""
        return self.tail.committed.number if self.tail.committed else 0

    @property
    def is_finished(self) -> bool:
        """q = p + 1 and R is it."""
        prepared = self.prepared
        if prepared is None or self.committed_transaction != prepared.transaction_uuid:
            return False
        return self.committed == prepared.number == self.published + 1

    @property
    def is_ours_open(self) -> bool:
        """T = R."""
        opened, prepared = self.tail.open, self.prepared
        if opened is None or prepared is None:
            return False
        return (opened.number, opened.transaction) == (prepared.number, prepared.transaction_uuid)


@dataclass(frozen=True, slots=True)
class CreateStream:
    """Append VolumeCreated."""


@dataclass(frozen=True, slots=True)
class StartTimeline:
    """End the parent's timeline, and append TimelineStarted to ours."""

    parent: StateName


@dataclass(frozen=True, slots=True)
class OpenStream:
    """Append PublisherOpened with this epoch, and read the tail again."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Publish:
    """Append the prepared transaction from its beginning."""

    prepared: Prepared


@dataclass(frozen=True, slots=True)
class Resume:
    """Append what is left of the prepared transaction."""

    prepared: Prepared
    opened: OpenTransaction


@dataclass(frozen=True, slots=True)
class Finish:
    """The log has the prepared transaction: tell the pool."""

    prepared: Prepared
    committed: StateName
    sequence: int


@dataclass(frozen=True, slots=True)
class Abort:
    """Append TransactionAborted."""

    opened: OpenTransaction
    reason: str


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget the prepared transaction: nothing of it counts in the log."""

    prepared: Prepared
    reason: str


@dataclass(frozen=True, slots=True)
class Rewind:
    """The log lost its end: go back to its tail, whose content the thin device `dev_id` still is; None: none is.

    `committed` None: the stream is there, without any transaction.
    """

    committed: StateName | None
    dev_id: int | None


@dataclass(frozen=True, slots=True)
class Ready:
    """Pool and log agree, and nothing is under way: the next cut may come."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nothing may be published."""

    error: RefusedError


Outcome: TypeAlias = (
    CreateStream | StartTimeline | OpenStream | Publish | Resume | Finish | Abort | Drop | Rewind | Ready | Refuse
)

UNCHANGED = "nothing changed"
LOST_END = "the log lost its end"


def decide(facts: Facts) -> Outcome:
    """The table's first row that fits."""
    refused = _refusal(facts)
    if refused is not None:
        return Refuse(refused)
    tail = facts.tail
    if tail.life is Life.EMPTY:
        return CreateStream() if facts.parent is None else StartTimeline(facts.parent)
    if facts.epoch is None or facts.epoch != tail.epoch:
        return _open(facts)
    if facts.is_finished:
        assert facts.prepared is not None and tail.committed is not None
        return Finish(facts.prepared, tail.committed, tail.committed_sequence)
    if facts.committed < facts.published:
        return _go_back(facts)
    return _go_on(facts)


def _open(facts: Facts) -> OpenStream:
    """The next epoch."""
    return OpenStream(1 + max(facts.tail.epoch, facts.epoch or 0, facts.position.epoch if facts.position else 0))


def _go_back(facts: Facts) -> Outcome:
    """q < p."""
    if facts.tail.open is not None:
        return Abort(facts.tail.open, LOST_END)
    return Rewind(facts.tail.committed, facts.equal_to_tail)


def _go_on(facts: Facts) -> Outcome:
    """q = p."""
    prepared, opened = facts.prepared, facts.tail.open
    if opened is not None and facts.given_up and not facts.is_ours_open:
        return Abort(opened, LOST_END)
    if prepared is None:
        return Ready()
    broken = facts.void
    if broken is None and not facts.target_there:
        broken = "the target is gone"
    if broken is None and prepared.base_dev_id is not None and not facts.base_there:
        broken = "the base is gone"
    if opened is not None:
        return Abort(opened, broken) if broken else Resume(prepared, opened)
    if prepared.number != facts.tail.next_number:
        broken = broken or f"the log expects transaction {facts.tail.next_number}"
    if facts.unchanged:
        broken = broken or UNCHANGED
    if not broken:
        return Publish(prepared)
    return _open(facts) if facts.disputed else Drop(prepared, broken)  # D3


def _refusal(facts: Facts) -> RefusedError | None:
    tail, volume = facts.tail, f"volume {facts.volume}"
    rebase = f"replicator agent rebase {facts.pool_path} {facts.volume}"
    if tail.life is Life.ENDED or facts.successor is not None:
        successor = f"; timeline {facts.successor} took over" if facts.successor else ""
        return TimelineOverError(
            f"{volume}: timeline {tail.timeline} has ended{successor}", mend=f"{rebase} --new-timeline"
        )
    if tail.life is Life.DELETED:
        return VolumeGoneError(f"{volume}: the log says that it was deleted", mend=f"{rebase} --new-timeline")
    ours = max(facts.epoch or 0, facts.claimed)
    if 0 < ours < tail.epoch:
        where = f" on {facts.taker}" if facts.taker else ""
        return FencedError(
            f"{volume}: another publisher{where} took it over (epoch {tail.epoch}, ours is {ours})",
            mend="stop one of the two: only one host may publish a volume",
        )
    return _other_history(facts, volume, rebase)


def _other_history(facts: Facts, volume: str, rebase: str) -> RefusedError | None:
    """Whether pool and log tell different histories."""
    tail, position = facts.tail, facts.position
    either = f"{rebase} --new-timeline|--from-log"
    ours = f"the pool's last published transaction is {facts.published}"
    if facts.committed < facts.published:
        if tail.life is not Life.EMPTY or facts.parent is not None:
            return None
        return LostEndError(
            f"{volume}: the log has nothing of it any more, {ours}: it lost all, or is another log",
            mend=f"put the log back; or {rebase} --from-log, which publishes the volume from its beginning",
        )
    if facts.committed > facts.published:
        if facts.is_finished and tail.open is None:
            return None
        return PoolOlderError(
            f"{volume}: the log has transaction {facts.committed}, {ours}: the pool is an older copy", mend=either
        )
    if position is not None and tail.committed is not None and tail.committed.digest != position.digest:
        return PoolOlderError(
            f"{volume}: transaction {position.number} is {tail.committed.digest.hex()} in the log,"
            f" and {position.digest.hex()} in the pool: two histories",
            mend=either,
        )
    if tail.open is not None and not facts.is_ours_open and not facts.given_up:
        return PoolOlderError(
            f"{volume}: the log holds an open transaction {tail.open.number} that the pool never prepared", mend=either
        )
    return None
