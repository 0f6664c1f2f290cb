"""Which cuts of groups belong to a volume, and to a point of it; over rows of the catalogue and events of the log.

Invariants
  N1  A cut that catalogue and log both know is one.
  N2  A point belongs to the first cut that has its number: the one that it was made at, not those at which the volume
      was still the same; never to one that was before it, of which another transaction had the number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID

from replicator.events.bodies import TransactionCommitted
from replicator.history.points import RestorePoint
from replicator.pool.catalogue_schema import LoggedGroup
from replicator.repository.labels import valid_labels


def logged_group(body: TransactionCommitted) -> LoggedGroup | None:
    """The cut that a member's commit tells of."""
    if body.group is None:
        return None
    return LoggedGroup(body.group.group, body.group.number, body.group.members, valid_labels(body.labels))


def groups_with(volume: UUID, cuts: Iterable[LoggedGroup]) -> tuple[LoggedGroup, ...]:
    """The cuts that `volume` is a member of, oldest first (N1)."""
    found = {(each.uuid, each.number): each for each in cuts if any(uuid == volume for uuid, _ in each.members)}
    return tuple(sorted(found.values(), key=lambda each: each.number))


def group_cut_of(cuts: Sequence[LoggedGroup], point: RestorePoint) -> LoggedGroup | None:
    """The cut that `point` was made at (N2); on a branch that counted on from a fork, the one of its instant."""
    alike = [
        each for each in cuts if each.number >= point.timestamp_ns and (point.volume, point.number) in each.members
    ]
    return next((each for each in alike if each.number == point.timestamp_ns), alike[0] if alike else None)
