"""How to get a restore point from what is there: a base, and the transactions to lay over it, newest wins.

Behind resolve (which point), before whoever reads: restore, serve and verify, from a replica pool or a log.

    base                 where it is                                   cost counted
    SnapshotBase         a materialised point in the pool, or the      transactions behind it
                         replica's volume itself
    FoldBase             a fold under `base/` in the log               transactions behind it
    EmptyBase            before transaction 1: the volume as zeros     all of them

Invariants
  A1  The base is an ancestor of the target, or the target itself: points of a branch that was left are never used.
  A2  The overlay's stretches are contiguous from the base to the target, and each stands in the log.
  A3  Of all bases that satisfy A1 and A2 the one with the fewest transactions is taken; of equals the snapshot.

Failures: PointUnreachableError with the transactions that are missing behind the nearest base.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from replicator.errors import NotFoundError
from replicator.history.lineage import Lineage, Revision, Stretch, absent, between
from replicator.history.points import RestorePoint


@dataclass(frozen=True, slots=True)
class SnapshotBase:
    """A materialised point: a thin device of the pool that is asked; `is_head`: its volume itself."""

    revision: Revision
    dev_id: int
    is_head: bool = False


@dataclass(frozen=True, slots=True)
class FoldBase:
    """A fold in the log that equals the revision."""

    revision: Revision


@dataclass(frozen=True, slots=True)
class EmptyBase:
    """Nothing: the volume before its first transaction reads as zeros."""

    @property
    def revision(self) -> Revision:
        return Revision(1, 0)


Base: TypeAlias = SnapshotBase | FoldBase | EmptyBase
_PREFERENCE = {SnapshotBase: 0, FoldBase: 1, EmptyBase: 2}


@dataclass(frozen=True, slots=True)
class Inventory:
    """What is there: materialised points of a pool, folds of a log, and the transactions that still stand in it.

    `head` is the point that the pool's volume itself is.
    """

    points: tuple[RestorePoint, ...] = ()
    folds: tuple[Revision, ...] = ()
    standing: tuple[Stretch, ...] = ()
    head: RestorePoint | None = None

    @property
    def held(self) -> tuple[RestorePoint, ...]:
        """The points that the pool has whole."""
        return self.points if self.head is None else (*self.points, self.head)


@dataclass(frozen=True, slots=True)
class Plan:
    """Read `base`, then lay `overlay` over it, oldest first."""

    target: Revision
    base: Base
    overlay: tuple[Stretch, ...]

    @property
    def transaction_count(self) -> int:
        return sum(each.count for each in self.overlay)


class PointUnreachableError(NotFoundError):
    """The target can't be had: `missing` are the transactions that are gone."""

    def __init__(self, target: Revision, missing: tuple[Stretch, ...]) -> None:
        gone = ", ".join(map(str, missing)) or "its timeline"
        super().__init__(f"restore point {target} can't be had any more: {gone} is gone from the log")
        self.target = target
        self.missing = missing


def plan(target: Revision, inventory: Inventory, lineage: Lineage) -> Plan:
    """The cheapest way to `target`; PointUnreachableError where there is none."""
    if not lineage.knows(target.timeline):
        raise PointUnreachableError(target, ())
    path = lineage.path(target.timeline, target.number)
    nearest_missing: tuple[Stretch, ...] = ()
    for base in _bases(target, inventory, lineage):
        overlay = between(base.revision.number, path)
        missing = absent(overlay, inventory.standing)
        if not missing:
            return Plan(target, base, overlay)
        nearest_missing = nearest_missing or missing
    raise PointUnreachableError(target, nearest_missing)


def _bases(target: Revision, inventory: Inventory, lineage: Lineage) -> list[Base]:
    """All bases on the target's path, nearest first (A1, A3)."""
    found: list[Base] = [base for base in _all_bases(inventory) if lineage.is_ancestor(base.revision, target)]
    return sorted(found, key=lambda base: (-base.revision.number, _PREFERENCE[type(base)]))


def _all_bases(inventory: Inventory) -> Iterable[Base]:
    for point in inventory.held:
        if point.dev_id is not None:
            revision = Revision(point.timeline, point.number, point.digest)
            yield SnapshotBase(revision, point.dev_id, point is inventory.head)
    yield from (FoldBase(each) for each in inventory.folds)
    yield EmptyBase()
