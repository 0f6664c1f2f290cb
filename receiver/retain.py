"""Retires materialised points of a replica by the policy: snapshots go, the points stay, as folds of the log.

Run beside the followers, a round now and then. What is retired is hidden first, in one switch, and deleted afterwards,
a switch each, so that no commit grows with their number; a point that somebody reads is shown again, and left alone for
some rounds.

    dies …                     on disk                              next round
    after hiding               hidden points                        deletes them
    between two deletes        the others hidden                    deletes them

Invariants
  R1  What history/retention lets stay is never hidden; what is leased is never deleted (the pool refuses it).
  R2  A round hides and deletes at most ROUND_POINTS points, the densest first.
  R3  Staging snapshots aren't points: their follower ends them.
  R4  Rows are changed by compare-and-swap: a label that is given meanwhile is kept, and keeps its point.
  R5  What was hidden is what is deleted, or shown again; never what was given its dev_id meanwhile.
  R6  This host's clock alone retires nothing: ages are counted up to what is known of the source (Y5 of
      history/retention), which is what was applied, and what its beacon said since.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from uuid import UUID

from receiver.replica import metadata_used
from replicator.errors import ConflictError, NotFoundError
from replicator.history.points import RestorePoint
from replicator.history.retention import RetentionPolicy, to_retire
from replicator.pool.catalogue_schema import Purpose, Role, Snapshot
from replicator.pool.changes import Put
from replicator.pool.interface import Pool, Switch
from replicator.pool.view import CatalogueView
from replicator.pool.volumes import delete_row, switched

ROUND_POINTS = 32
"""Each delete walks a mapping tree, beside which the followers' commits have to wait."""

_LEFT_ALONE_ROUNDS = 10

_NOTHING_HEARD: Mapping[UUID, int] = {}


@dataclass(frozen=True, slots=True)
class Round:
    """What a round did: dev_ids that were hidden, and deleted; those that were in use; how full the metadata is."""

    hidden: tuple[int, ...]
    deleted: tuple[int, ...]
    in_use: tuple[int, ...]
    metadata_used: float


class Retainer:
    """Keeps a pool's points to `policy`; for one thread."""

    def __init__(self, policy: RetentionPolicy, clock_ns: Callable[[], int]) -> None:
        self._policy, self._clock_ns = policy, clock_ns
        self._in_use: dict[int, int] = {}
        self._heard: Mapping[UUID, int] = _NOTHING_HEARD

    def round(self, pool: Pool, heard: Mapping[UUID, int] = _NOTHING_HEARD) -> Round:
        """Hide what is due, and delete what is hidden; `heard`: up to when volumes are known to be complete (R6)."""
        self._heard = heard
        self._in_use = {dev_id: rounds - 1 for dev_id, rounds in self._in_use.items() if rounds > 1}
        used = metadata_used(pool.status())
        due = self._hide(pool, used)
        deleted, in_use = list[int](), list[int]()
        for snapshot in _hidden(pool.view())[:ROUND_POINTS]:
            with suppress(NotFoundError):  # another sweep came first, or a label: the next round looks again
                (deleted if self._delete(pool, snapshot) else in_use).append(snapshot.dev_id)
        return Round(tuple(each.dev_id for each in due), tuple(deleted), tuple(in_use), used)

    def _hide(self, pool: Pool, used: float) -> list[Snapshot]:
        """Hide what is due (R4); what was."""

        def plan(view: CatalogueView) -> tuple[Switch, list[Snapshot]]:
            due = self._due(view, used)[:ROUND_POINTS]
            return Switch(changes=tuple(Put(replace(each, hidden=True)) for each in due)), due

        return switched(pool, plan) if self._due(pool.view(), used) else []

    def _due(self, view: CatalogueView, used: float) -> list[Snapshot]:
        """The snapshots that retire now, densest first."""
        found: list[Snapshot] = []
        for volume in view.volumes:
            points = [self._point(each) for each in view.snapshots_of(volume.uuid, Purpose.POINT) if each.number]
            heard_ns = self._heard_ns(view, volume.uuid)
            for point in to_retire(points, self._clock_ns(), self._policy, used, heard_ns):
                assert point.dev_id is not None
                found.append(view.snapshot(point.dev_id))
        return found

    def _heard_ns(self, view: CatalogueView, volume: UUID) -> int:
        """The last instant of the source's clock that is known of (R6)."""
        position = view.position(volume, Role.APPLIED)
        return max(position.timestamp_ns if position is not None else 0, self._heard.get(volume, 0))

    def _point(self, snapshot: Snapshot) -> RestorePoint:
        return snapshot.restore_point(leased=snapshot.dev_id in self._in_use)

    def _delete(self, pool: Pool, snapshot: Snapshot) -> bool:
        """Delete one hidden point; False where somebody reads it. NotFoundError where another deleted it (R5)."""
        try:
            delete_row(pool, snapshot)
        except ConflictError:
            if not _is_left_head(pool.view(), snapshot):
                switched(pool, lambda view: (_shown(view, snapshot), None))
            self._in_use[snapshot.dev_id] = _LEFT_ALONE_ROUNDS
            return False
        return True


def _shown(view: CatalogueView, snapshot: Snapshot) -> Switch:
    """Show it again, with whatever its row says now (R4, R5)."""
    return Switch(changes=(Put(replace(view.still(snapshot), hidden=False)),))


def _hidden(view: CatalogueView) -> list[Snapshot]:
    """Points that are being deleted (R3)."""
    return [each for each in view.snapshots if each.hidden and each.purpose is Purpose.POINT]


def _is_left_head(view: CatalogueView, snapshot: Snapshot) -> bool:
    """Whether it was a head before, and is no point: another snapshot may have its number, or none."""
    return not snapshot.number or any(
        each.number == snapshot.number and each.timeline == snapshot.timeline and each.dev_id != snapshot.dev_id
        for each in view.snapshots_of(snapshot.volume, Purpose.POINT)
    )
