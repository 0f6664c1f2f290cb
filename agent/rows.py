"""The switches that a publisher asks the pool for: what becomes of base, target, position and cut. Pure but `switched`.

    switch      changes, all in one commit
    finished    Position N; no Prepared; the target is the base, named (timeline, N, digest); the old base deleted
    dropped     no Prepared; the target deleted
    rewound     Position q; no Prepared; what equals q is the base, if anything does; other bases, targets deleted
    let_go      bases and targets deleted; Position and Prepared stay

A snapshot that somebody reads can't be deleted: it is hidden instead, and deleted with a later switch.

Invariants
  R1  Only snapshots of purpose base or target are deleted, never one that is held, and never the new base.
  R2  The row of a cut goes when no prepared transaction names one of its snapshots any more.
  R3  The row of a cut of which one member turned out void goes at once: what is committed of it later is no group's.
  R4  What becomes the base is named by its transaction in the view that is switched: a dev_id may be another's by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from uuid import UUID

from agent.decide import Finish, Rewind
from replicator.errors import ConflictError, UnavailableError
from replicator.events.state import StreamState
from replicator.pool.catalogue_schema import Cut, Position, Prepared, Purpose, Role, Snapshot
from replicator.pool.changes import Change, End, Put
from replicator.pool.interface import Pool, StaleSwitchError, Switch
from replicator.pool.view import CatalogueView

TRIES_MAX = 100
"""Of one switch against others' switches: each try that loses means that another won, so this is a storm."""

_OURS = (Purpose.BASE, Purpose.TARGET)


def switched(pool: Pool, build: Callable[[CatalogueView], Switch | None]) -> None:
    """Make the switch that `build` wants of the newest view; None: nothing is to be done (any more)."""
    is_read = False
    for _ in range(TRIES_MAX):
        view = pool.view()
        switch = build(view)
        if switch is None:
            return
        try:
            pool.switch(replace(_hiding(view, switch) if is_read else switch, expected_id=view.at_id))
            return
        except StaleSwitchError:
            continue
        except ConflictError:
            if is_read:
                raise
            is_read = True
    raise UnavailableError("the pool changes faster than a switch can be made")


def finished(view: CatalogueView, finish: Finish, epoch: int) -> Switch | None:
    """N is in the log."""
    prepared, committed = finish.prepared, finish.committed
    if view.prepared_of(prepared.volume) != prepared:
        return None
    position = Position(
        prepared.volume,
        Role.PUBLISHED,
        committed.timeline,
        committed.number,
        committed.digest,
        finish.sequence,
        epoch,
        prepared.timestamp_ns,
    )
    changes: list[Change] = [Put(position), End(Prepared, (prepared.volume,))]
    target = target_of(view, prepared)  # None: it was let go of to make room, before the log's answer came
    if target is not None:
        changes.append(Put(_as_base(target, position)))
    old = () if prepared.base_dev_id is None else (prepared.base_dev_id,)
    keep = None if target is None else target.dev_id
    return _with_deleted(view, prepared.volume, changes, _cuts_of(view, prepared), old, keep=keep)


def dropped(view: CatalogueView, prepared: Prepared, *, is_void: bool = False) -> Switch | None:
    """Nothing of the prepared transaction counts; of a void one the cut goes too, which is no group's then (R3)."""
    if view.prepared_of(prepared.volume) != prepared:
        return None
    changes: list[Change] = [End(Prepared, (prepared.volume,))]
    target = target_of(view, prepared)
    targets = () if target is None else (target.dev_id,)
    cuts = cuts_with(view, prepared) if is_void else _cuts_of(view, prepared)
    return _with_deleted(view, prepared.volume, changes, cuts, targets, keep=None)


def rewound(view: CatalogueView, rewind: Rewind, tail: StreamState, timestamp_ns: int) -> Switch | None:
    """The log's tail, cut at that instant, is where the pool goes on; from its beginning, where nothing is in it.

    None where what equalled the tail went meanwhile (R4): it is to be decided again.
    """
    volume = tail.volume
    position = position_at(tail, timestamp_ns)
    named = tail.committed and (tail.committed.timeline, tail.committed.number, tail.committed.digest)
    equal = (each for each in view.snapshots_of(volume) if (each.timeline, each.number, each.digest) == named)
    known = None if rewind.dev_id is None else next((each for each in equal if each.dev_id == rewind.dev_id), None)
    if known is None and rewind.dev_id is not None:
        return None
    changes: list[Change] = []
    if position is not None:
        changes.append(Put(position))
        if known is not None:
            changes.append(Put(_as_base(known, position)))
    elif view.position(volume, Role.PUBLISHED) is not None:
        changes.append(End(Position, (volume, Role.PUBLISHED)))
    return without_prepared(view, volume, changes, keep=rewind.dev_id)


def let_go(view: CatalogueView, volumes: Iterable[UUID]) -> Switch | None:
    """Bases and targets of these volumes, and nothing else: the prepared row stays until the log was told (relief)."""
    known = [each for uuid in volumes for each in view.snapshots_of(uuid, *_OURS, hidden=True) if not each.held]
    if not known:
        return None
    gone = sorted(each.dev_id for each in known)
    return Switch(changes=tuple(End(Snapshot, (dev_id,)) for dev_id in gone), delete=tuple(gone))


def position_at(tail: StreamState, timestamp_ns: int) -> Position | None:
    """The position of whoever stands at the end of `tail`'s timeline; None before its first transaction."""
    committed = tail.committed
    if committed is None:
        return None
    return Position(
        tail.volume,
        Role.PUBLISHED,
        tail.timeline,
        committed.number,
        committed.digest,
        tail.committed_sequence,
        tail.epoch,
        timestamp_ns,
    )


def without_prepared(view: CatalogueView, volume: UUID, changes: list[Change], *, keep: int | None) -> Switch:
    """`changes`, with no transaction under way any more, and no base or target but `keep`."""
    prepared, cuts = view.prepared_of(volume), []
    if prepared is not None:
        changes = [*changes, End(Prepared, (volume,))]
        cuts = _cuts_of(view, prepared)
    others = [each.dev_id for each in view.snapshots_of(volume, *_OURS)]
    return _with_deleted(view, volume, changes, cuts, others, keep=keep)


def target_of(view: CatalogueView, prepared: Prepared) -> Snapshot | None:
    """The prepared transaction's target, known by its instant: dev_ids are given again."""
    for each in view.snapshots_of(prepared.volume, hidden=True):
        if (each.dev_id, each.timestamp_ns) == (prepared.target_dev_id, prepared.timestamp_ns):
            return each
    return None


def _as_base(snapshot: Snapshot, position: Position) -> Snapshot:
    named = replace(snapshot, timeline=position.timeline, number=position.number, digest=position.digest, hidden=False)
    return named if snapshot.held or snapshot.purpose not in _OURS else replace(named, purpose=Purpose.BASE)


def _cuts_of(view: CatalogueView, prepared: Prepared) -> list[Cut]:
    """R2: the cut that made the target, once nobody else waits for it."""
    waiting = {each.target_dev_id for each in view.prepared if each.volume != prepared.volume}
    return [each for each in cuts_with(view, prepared) if not waiting & set(each.dev_ids)]


def cuts_with(view: CatalogueView, prepared: Prepared) -> list[Cut]:
    """The cut that made the target, if its row is still there."""
    same = (each for each in view.cuts if each.timestamp_ns == prepared.timestamp_ns)
    return [each for each in same if prepared.target_dev_id in each.dev_ids]


def _with_deleted(
    view: CatalogueView,
    volume: UUID,
    changes: list[Change],
    cuts: Iterable[Cut],
    wanted: Iterable[int],
    *,
    keep: int | None,
) -> Switch:
    """`changes`, and the deletion of `wanted`, and of what was hidden before (R1)."""
    known = {each.dev_id: each for each in view.snapshots_of(volume, *_OURS, hidden=True)}
    hidden = {each.dev_id for each in known.values() if each.hidden}
    gone = sorted(
        dev_id for dev_id in {*wanted, *hidden} if dev_id in known and dev_id != keep and not known[dev_id].held
    )
    ends = [*(End(Cut, (each.cut_id,)) for each in cuts), *(End(Snapshot, (dev_id,)) for dev_id in gone)]
    return Switch(changes=(*changes, *ends), delete=tuple(gone))


def _hiding(view: CatalogueView, switch: Switch) -> Switch:
    """The same switch, with what it deletes hidden instead."""
    gone = set(switch.delete)
    rest = [
        change
        for change in switch.changes
        if not (isinstance(change, End) and change.value_type is Snapshot and change.key[0] in gone)
    ]
    hidden = [Put(replace(view.snapshot(dev_id), hidden=True)) for dev_id in switch.delete]
    return replace(switch, changes=(*rest, *hidden), delete=())
