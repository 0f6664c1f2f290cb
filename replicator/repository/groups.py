"""Which cuts of groups belong to a volume, and to a point of it; over rows of the catalogue and events of the log.

Invariants
  N1  A cut that catalogue and log both know is one.
  N2  A point belongs to the first cut that has its number: the one that it was made at, not those at which the volume
      was still the same; never to one that was before it, of which another transaction had the number.
  N3  A volume's cuts and points are walked once, to be found by the volume's number: a cut a second is 86,400 a day.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
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


class MemberCuts:
    """The cuts of one volume, oldest first, and its points, by its numbers (N3)."""

    def __init__(self, volume: UUID, cuts: Iterable[LoggedGroup], points: Iterable[RestorePoint]) -> None:
        self._cuts: dict[int, list[LoggedGroup]] = {}
        self._points: dict[int, list[RestorePoint]] = {}
        for cut in cuts:
            for number in {number for uuid, number in cut.members if uuid == volume}:
                self._cuts.setdefault(number, []).append(cut)
        for point in points:
            self._points.setdefault(point.number, []).append(point)

    def cut_of(self, point: RestorePoint) -> LoggedGroup | None:
        """The cut that `point` was made at (N2); on a branch that counted on from a fork, the one of its instant."""
        alike = self._cuts.get(point.number, [])
        at = bisect_left(alike, point.timestamp_ns, key=lambda each: each.number)
        return alike[at] if at < len(alike) else None

    def point_at(self, number: int, instant_ns: int) -> RestorePoint | None:
        """The point that the volume was at when its `number` stood in a cut of `instant_ns`, if it can be had.

        A number comes again after an abort, on another timeline, or once a log lost its end: what was cut later isn't
        meant, and of several the last one before is.
        """
        alike = [each for each in self._points.get(number, []) if each.timestamp_ns <= instant_ns]
        return max(alike, key=lambda each: (each.timestamp_ns, each.timeline), default=None)
