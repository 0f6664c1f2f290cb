"""`agent rebase`: a pool whose history isn't the log's gets a common base again. A person decides which.

    --from-log        the log's history goes on: its tail is the base, this pool's content the next transaction, found
                      by comparing hashes. For an older copy of the pool that is the only source left, and for a log
                      that lost everything (its volume is published from the beginning again).
    --new-timeline    two histories stay: this pool's content goes on a new timeline, forked from the last transaction
                      that both have, or else from the log's last one, by comparing hashes. The old timeline is ended.

    dies …                            pool                       log                        again
    --from-log, epoch taken           as before: refused         an epoch, T aborted        the same from its beginning
    --from-log, after the switch      at the tail                the same                   nothing left to do
    --new-timeline, number claimed    as before: refused         an empty timeline          the next number is claimed
    --new-timeline, after the switch  on the new timeline        an empty timeline          the publisher begins it
    --from-log on such a timeline     forked from the log's      an empty timeline          the same
                                      last transaction

Invariants
  R1  The pool changes in one switch; what the log has to be told afterwards the publisher finds by its table (decide).
  R2  Nothing of the volume's content changes, here or in the log: only what the next transaction stands on.

Failures: ConflictError (nothing to fork from; the timeline is over), LogAwayError, those of the pool.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from uuid import UUID

from agent.append import Appender, log_errors
from agent.context import Context
from agent.decide import TimelineOverError, VolumeGoneError
from agent.look_back import beacon_epoch
from agent.rows import position_at, switched, without_prepared
from replicator.errors import ConflictError
from replicator.events.bodies import PublisherOpened, TransactionAborted
from replicator.events.state import Life, StreamState
from replicator.events.values import StateName
from replicator.pool.catalogue_schema import Branch, Position, Role, Snapshot
from replicator.pool.changes import Change, End, Put
from replicator.pool.interface import Switch
from replicator.pool.view import CatalogueView
from replicator.repository.logged import LoggedHistory, read_history

_CLAIMS_MAX = 64
"""Numbers tried: each that is taken meanwhile is somebody else's promote."""


def rebase_from_log(context: Context, volume: UUID) -> str:
    """Stand on the log's tail; what was done, for people."""
    view = context.pool().view()
    row, position = view.volume(volume), view.position(volume, Role.PUBLISHED)
    timeline = position.timeline if position else view.lineage(volume).current
    with closing(Appender(context.log, volume, timeline, context.pass_bytes)) as end:
        tail = end.settle()
        if tail.life in (Life.ENDED, Life.DELETED):
            kind = TimelineOverError if tail.life is Life.ENDED else VolumeGoneError
            mend = f"replicator agent rebase {context.pool().path} {row.name} --new-timeline"
            raise kind(f"volume {row.name}: the log's timeline {timeline} is over", mend=mend)
        if tail.life is Life.LIVE:
            tail = _taken_over(context, end, tail, position)
    if tail.life is Life.EMPTY and (forked := _forked_anew(context, volume, timeline)):
        return f"{row.name}: {forked}"
    switched(context.pool(), lambda newest: _at_tail(newest, tail))
    if tail.committed is None:
        return f"{row.name}: the log has no transaction of it; it is published from its beginning"
    return f"{row.name}: stands on the log's transaction {tail.committed.number}; the next one is found by its hashes"


def _forked_anew(context: Context, volume: UUID, timeline: int) -> str:
    """Let a timeline of ours that nothing is in yet fork from the log's last transaction; "" where there is none."""
    with log_errors():
        history = read_history(context.log, volume)
        later = [each for each in context.log.timelines(volume) if each > timeline]
    view, parent = context.pool().view(), _newest(history)
    if later:
        mend = f"replicator agent rebase {context.pool().path} {view.volume(volume).name} --new-timeline"
        raise TimelineOverError(f"volume {view.volume(volume).name}: timeline {later[-1]} took over", mend=mend)
    if parent is None or timeline == parent.timeline:
        return ""
    position = view.position(volume, Role.PUBLISHED)
    base = _base(view, volume, position) if parent == _shared(view, history, position) else None
    switched(context.pool(), lambda newest: _forked(newest, volume, timeline, parent, history, base))
    how = "from its base" if base is not None else "by its hashes"
    where = f"{parent.timeline}:{parent.number}, from which timeline {timeline} goes on"
    return f"stands on the log's transaction {where}; the next one is found {how}"


def _taken_over(context: Context, end: Appender, tail: StreamState, position: Position | None) -> StreamState:
    """An epoch of ours, and nothing open: whoever published here before is fenced."""
    epoch = 1 + max(tail.epoch, position.epoch if position else 0, beacon_epoch(context.log, tail))
    end.add(PublisherOpened(epoch, context.host, (), context.clock.now_ns()))
    if tail.open is not None:
        end.add(TransactionAborted(tail.open.number, tail.open.transaction, "rebase"))
    end.flush()
    return end.settle()


def _at_tail(view: CatalogueView, tail: StreamState) -> Switch:
    position = position_at(tail, 0)
    changes: list[Change] = [] if position is None else [Put(position)]
    if position is None and view.position(tail.volume, Role.PUBLISHED) is not None:
        changes = [End(Position, (tail.volume, Role.PUBLISHED))]
    return without_prepared(view, tail.volume, changes, keep=None)


def rebase_to_new_timeline(context: Context, volume: UUID) -> str:
    """Go on, on a timeline of our own; what was done, for people."""
    pool = context.pool()
    view = pool.view()
    row, position = view.volume(volume), view.position(volume, Role.PUBLISHED)
    with log_errors():
        history = read_history(context.log, volume)
    shared = _shared(view, history, position)
    parent = shared or _newest(history)
    if parent is None:
        mend = f"replicator agent rebase {pool.path} {row.name} --from-log"
        raise ConflictError(f"volume {row.name}: the log has no transaction to fork from", mend=mend)
    timeline = _claim(context, volume)
    base = _base(view, volume, position) if shared is not None else None
    switched(pool, lambda newest: _forked(newest, volume, timeline, parent, history, base))
    how = "from its base" if base is not None else "by comparing hashes"
    return f"{row.name}: goes on, on timeline {timeline} behind {parent.timeline}:{parent.number}, {how}"


def _shared(view: CatalogueView, history: LoggedHistory, position: Position | None) -> StateName | None:
    """The pool's last published transaction, if the log has it."""
    if position is None:
        return None
    for each in history.points:
        if (each.number, each.digest) == (position.number, position.digest):
            return StateName(each.timeline, each.number, each.digest)
    return None


def _newest(history: LoggedHistory) -> StateName | None:
    """The log's last transaction, of its newest timeline that has one."""
    found = max(history.points, key=lambda each: (each.timeline, each.number), default=None)
    return None if found is None else StateName(found.timeline, found.number, found.digest)


def _base(view: CatalogueView, volume: UUID, position: Position | None) -> Snapshot | None:
    for each in view.snapshots_of(volume):
        if position is not None and (each.number, each.digest) == (position.number, position.digest):
            return each
    return None


def _claim(context: Context, volume: UUID) -> int:
    """The next timeline's number, which is ours then."""
    with log_errors():
        number = max(context.log.timelines(volume), default=0)
        for _ in range(_CLAIMS_MAX):
            number += 1
            if context.log.claim_timeline(volume, number, context.host):
                return number
    raise ConflictError("others claim one timeline after the other", mend="find out who promotes this volume")


def _forked(
    view: CatalogueView, volume: UUID, timeline: int, parent: StateName, history: LoggedHistory, base: Snapshot | None
) -> Switch:
    """Branch and position, and all branches between: a lineage has no holes. A base that went meanwhile is none."""
    base = base if base is not None and base in view.snapshots else None
    known = {each.timeline for each in view.rows.get(Branch, {}).values() if each.volume == volume}
    digests = {(each.timeline, each.number): each.digest for each in history.points}
    changes: list[Change] = [
        Put(Branch(volume, each.number, each.parent, each.forked_at, digests.get((each.parent, each.forked_at), b"")))
        for each in history.timelines
        if each.parent is not None and each.number not in known
    ]
    changes.append(Put(Branch(volume, timeline, parent.timeline, parent.number, parent.digest)))
    at_ns = 0 if base is None else base.timestamp_ns
    changes.append(Put(Position(volume, Role.PUBLISHED, timeline, parent.number, parent.digest, 0, 0, at_ns)))
    if base is not None:
        changes.append(Put(replace(base, hidden=False)))
    return without_prepared(view, volume, changes, keep=base.dev_id if base is not None else None)
