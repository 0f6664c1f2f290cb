"""What a pool and its log offer of one volume: its restore points, what bars others, and whether both tell one history.

Beneath source, over logged (the log), catalogued (the pool) and history/divided (where they disagree).

What a pool holds are its snapshots, and of a replica the volume itself (head).

    the pool has                                    the log has            history
    nothing of it, or only what the log has too     its transactions       one
    a transaction, by (timeline, number, digest),   another one, or none   two: divided; nothing is merged
    as a snapshot, remembered, or as its position

Invariants
  S1  A point is listed only if it can be had: held, or all that lies between it and a base still stands.
  O1  The pool is asked before the log: what it knows of the log is older than what the log says then.
  O2  Of two histories each one's points are planned by its own lineage and on its own bases.

Failures: those of the log's readers, where there is no pool; damage is no failure, but told (`damage`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, tzinfo
from uuid import UUID

from replicator.errors import DamageError, ReplicatorError
from replicator.history.divided import Divided, History
from replicator.history.lineage import Lineage, Revision, Stretch, Timeline, absent
from replicator.history.plan import Inventory, Plan, SnapshotBase, plan
from replicator.history.points import Latest, PointSpecification, RestorePoint, merged
from replicator.history.resolve import BeyondCompleteError, NamedVolume, PointNotFoundError, resolve
from replicator.log.interface import Log
from replicator.pool.catalogue_schema import LoggedGroup, LoggedPoint, Purpose, Role
from replicator.pool.view import CatalogueView
from replicator.repository.catalogued import ReadPool
from replicator.repository.groups import groups_with
from replicator.repository.head import Head, head_of, point_at
from replicator.repository.labels import valid_labels
from replicator.repository.logged import LoggedHistory, read_standing

_A_REPLICAS = "name a replica's pool instead of the log: it has points, and goes on from them with what the log has"
_PASSING = "or name a point before it by its number (points list shows them); --accept-gap takes the newest of them"


@dataclass(frozen=True, slots=True)
class Offer:
    """What there is of one volume: its points (S1), how they hang together, and what bars others.

    `unkept`: the pool itself is at this point, later than all that can be had without its log. `problem`: that can't be
    reached. `damage`: what it has behind all this can't be read. `divided`: pool and log have two histories;
    `inventory` and `sequences` are then the log's, and so is `complete_to_ns` in any case. `head`: the replica itself,
    one of the points. `end`: the log's last transaction, if that is known. `away`: what only an
    unreachable log has.
    """

    volume: NamedVolume
    points: tuple[RestorePoint, ...]
    lineage: Lineage
    inventory: Inventory
    complete_to_ns: int | None
    sequences: Mapping[tuple[int, int], int]
    problem: ReplicatorError | None = None
    groups: tuple[LoggedGroup, ...] = ()
    damage: DamageError | None = None
    divided: Divided | None = None
    unkept: RestorePoint | None = None
    head: Head | None = None
    end: Revision | None = None
    away: tuple[RestorePoint, ...] = ()

    @property
    def trimmed(self) -> str | None:
        """Why nothing can be had, where there were points once; None where there are some, or never were."""
        if self.points or self.end is None or self.damage is not None or self.divided is not None:
            return None
        return (
            f"the log of {self.volume.name!r} was trimmed: without its first transactions none of the others,"
            f" up to @{self.end.number}, can be had from it alone"
        )

    def is_head(self, point: RestorePoint) -> bool:
        """Whether the pool's volume itself is this point, so that nothing else is needed to have it."""
        return self.head is not None and not point.materialised and self.head.is_at(point)

    def without_head(self) -> Offer:
        """The same where the head isn't read: it went on to another transaction."""
        return replace(self, head=None, inventory=replace(self.inventory, head=None))

    def history_of(self, point: RestorePoint) -> str | None:
        """Which of two histories the point belongs to: "pool", "log" or "both"; None where there is but one."""
        return None if self.divided is None else self.divided.side_of(point)

    def complete_to_of(self, point: RestorePoint) -> int | None:
        """Up to when the history that the point belongs to is known to be complete."""
        return None if self.history_of(point) == "pool" else self.complete_to_ns

    def plan(self, point: RestorePoint) -> Plan:
        """How to get the point (O2)."""
        target = _named(point)
        if point.dev_id is not None:
            return Plan(target, SnapshotBase(target, point.dev_id), ())
        if self.head is not None and self.head.is_at(point):
            return Plan(target, SnapshotBase(target, self.head.row.dev_id, True), ())
        return plan(target, self.inventory, self.divided.log.lineage if self.divided is not None else self.lineage)

    def resolve(
        self, wanted: PointSpecification, *, now_ns: int, accept_gap: bool = False, zone: tzinfo = UTC
    ) -> RestorePoint:
        """The point that is meant; what damage may hide isn't answered with what is left."""
        if self.divided is not None:
            return self._had(
                self.divided, self.divided.resolve(wanted, now_ns=now_ns, accept_gap=accept_gap, zone=zone), zone
            )
        try:
            found = resolve(
                wanted,
                self.points,
                now_ns=now_ns,
                complete_to_ns=self.complete_to_ns,
                lineage=self.lineage,
                accept_gap=accept_gap,
                zone=zone,
                away=self.away,
            )
        except (PointNotFoundError, BeyondCompleteError):
            if self.damage is not None and not accept_gap:
                raise self._damaged() from None
            if self.trimmed is not None:
                raise PointNotFoundError(self.trimmed, (), mend=_A_REPLICAS) from None
            raise
        if self.damage is not None and not accept_gap and isinstance(wanted.wanted, Latest) and not self._is_end(found):
            raise self._damaged()
        return found

    def _is_end(self, point: RestorePoint) -> bool:
        """Whether damage can hide nothing behind the point: it is the log's last transaction."""
        return self.end == _named(point)

    def _had(self, divided: Divided, meant: RestorePoint, zone: tzinfo) -> RestorePoint:
        for each in self.points:
            if _named(each) == _named(meant):
                return each
        whose = divided.pool.name if divided.is_only_the_pools(meant) else divided.log.name
        raise PointNotFoundError(
            f"{meant.describe(zone)} is known to {whose} alone, and can't be had: {divided.message(zone)}",
            self.points,
            mend=divided.mend,
        )

    def _damaged(self) -> DamageError:
        """The damage, with what can be done."""
        assert self.damage is not None
        if _PASSING not in (self.damage.mend or ""):
            self.damage.mend = f"{self.damage.mend or 'mend the log'}; {_PASSING}"
        return self.damage


@dataclass(frozen=True, slots=True)
class Asked:
    """Who is asked: a pool, a log, or both; `problem` is why a pool's log isn't there."""

    name: str
    pool: ReadPool | None
    log: Log | None
    problem: ReplicatorError | None = None


def read_offer(asked: Asked, volume: NamedVolume) -> Offer:
    """What there is of `volume`."""
    view = asked.pool.view() if asked.pool is not None else None
    remembered = asked.pool.points(volume.uuid) if asked.pool is not None else []
    known = _Known(volume, view, remembered)
    history, problem = _history(asked, volume.uuid, known)
    cuts = [*(asked.pool.groups() if asked.pool else ()), *(history.groups if history else ())]
    groups = groups_with(volume.uuid, cuts)
    if history is not None and asked.log is not None and known.is_denied(history):
        return _divided_offer(asked, known, read_standing(asked.log, volume.uuid), groups)
    return _joined_offer(known, history, problem, groups)


def _told_apart(points: Iterable[RestorePoint], lineage: Lineage) -> list[RestorePoint]:
    """The points by their full names where there are several timelines: a number alone means the current one's."""
    if len(lineage.timelines) == 1:
        return list(points)
    return [replace(each, branched=True) for each in points]


def _history(asked: Asked, volume: UUID, known: _Known) -> tuple[LoggedHistory | None, ReplicatorError | None]:
    """What the log adds to what the catalogue remembers; where there is a pool, a log that is away is no end."""
    if asked.log is None:
        return None, asked.problem
    try:
        history = read_standing(asked.log, volume, known.anchors())
        if not history.denied and known.has_unseen(history):
            history = read_standing(asked.log, volume)
        return history, None
    except ReplicatorError as error:
        if asked.pool is None:
            raise
        return None, error


class _Known:
    """What a pool knows of one volume's history; nothing, where there is no pool."""

    def __init__(self, volume: NamedVolume, view: CatalogueView | None, remembered: list[LoggedPoint]) -> None:
        self.volume, self.view, self.remembered = volume, view, remembered
        rows = view.snapshots_of(volume.uuid, Purpose.POINT) if view is not None else []
        self.held = [each.restore_point() for each in rows if each.number]
        self.head = head_of(view, volume.uuid) if view is not None else None

    @property
    def here(self) -> list[RestorePoint]:
        """All that the pool holds, as points: the volume itself without a device, since that may go on from it."""
        return self.held if self.head is None else [*self.held, replace(self.head.point, dev_id=None)]

    def anchors(self) -> dict[int, LoggedPoint]:
        """The last point of each timeline that is remembered: the log is looked at from there on."""
        found: dict[int, LoggedPoint] = {}
        for each in self.remembered:
            if each.timeline not in found or found[each.timeline].sequence < each.sequence:
                found[each.timeline] = each
        return found

    def positions(self, history: LoggedHistory | None) -> list[RestorePoint]:
        """What the volume is published or applied up to, by the log's own word; after a rebase that is to come."""
        if self.view is None:
            return []
        lineage = _joined_lineage(self.view, self.volume.uuid, history)
        found = (self.view.position(self.volume.uuid, role) for role in Role)
        known = [point_at(each, lineage) for each in found if each is not None and each.number and each.sequence]
        return _told_apart(known, lineage)

    def unkept(self) -> RestorePoint | None:
        """Its position, if no point that can be had without the log is as new."""
        newest = max((each.number for each in self.here), default=0)
        return next((each for each in self.positions(None) if each.number > newest), None)

    def is_denied(self, history: LoggedHistory) -> bool:
        """Whether the log lacks a transaction that the pool has, or has another one of its number."""
        digests = self._digests(history)
        return bool(history.denied) or any(
            self._is_beyond(each, history) or _differs(each, digests.get((each.timeline, each.number)))
            for each in (*self.here, *self.positions(history))
        )

    def has_unseen(self, history: LoggedHistory) -> bool:
        """Whether there is a snapshot that only the whole log can be held against."""
        digests = self._digests(history)
        standing = {(each.timeline): range(each.begin, each.end) for each in history.standing}
        return any(
            (each.timeline, each.number) not in digests and each.number in standing.get(each.timeline, ())
            for each in (*self.here, *self.positions(history))
        )

    def _digests(self, history: LoggedHistory) -> dict[tuple[int, int], bytes]:
        """What the log has, by its own word, and where it bears them out by what is remembered of it."""
        listed = [*(each for each in self.remembered if each.timeline not in history.denied), *history.points]
        return {(each.timeline, each.number): each.digest for each in listed}

    @staticmethod
    def _is_beyond(point: RestorePoint, history: LoggedHistory) -> bool:
        if history.damage is not None and point.timeline not in history.committed:
            return False
        return point.number > history.committed.get(point.timeline, 0)


def _named(point: RestorePoint) -> Revision:
    """Which transaction it is."""
    return Revision(point.timeline, point.number, point.digest)


def _differs(point: RestorePoint, digest: bytes | None) -> bool:
    return bool(point.digest and digest) and point.digest != digest


def _joined_offer(
    known: _Known, history: LoggedHistory | None, problem: ReplicatorError | None, groups: tuple[LoggedGroup, ...]
) -> Offer:
    """One history: each point once, with the snapshot of one and the labels of both."""
    lineage = _joined_lineage(known.view, known.volume.uuid, history)
    head = known.head.point if known.head is not None else None
    inventory = Inventory(tuple(known.held), (), history.standing if history else (), head)
    logged = [*known.remembered, *(history.points if history else ())]
    points = merged([*known.held, *(each.restore_point() for each in logged), *known.here])
    labels = history.labels if history else {}
    told = _told_apart([_labelled(each, labels) for each in points], lineage)
    had = reachable(told, inventory, lineage)
    return Offer(
        known.volume,
        tuple(had),
        lineage,
        inventory,
        history.complete_to_ns if history else None,
        {(each.timeline, each.number): each.sequence for each in logged},
        problem,
        groups,
        history.damage if history else None,
        unkept=known.unkept() if history is None else None,
        head=known.head,
        end=history.end if history else None,
        away=() if problem is None else tuple(set(told).difference(had)),
    )


def _divided_offer(asked: Asked, known: _Known, history: LoggedHistory, groups: tuple[LoggedGroup, ...]) -> Offer:
    """Two histories: the log's points, on the snapshots that it bears out, and the pool's other snapshots (O2)."""
    assert asked.log is not None, "a log that denies something is there"
    lineage = _joined_lineage(known.view, known.volume.uuid, history)
    told = _told_apart([_labelled(each.restore_point(), history.labels) for each in history.points], lineage)
    remembered = [each.restore_point() for each in known.remembered]
    pools = merged([*known.held, *remembered, *known.here, *known.positions(history)])
    pools_lineage = _joined_lineage(known.view, known.volume.uuid, None)
    divided = Divided(
        known.volume.name,
        History.of(f"the pool {asked.name}", _told_apart(pools, lineage), pools_lineage),
        History.of(f"the log {asked.log.name}", told, history.lineage),
        f"choose one: replicator restore {asked.log.name} {known.volume.name}@POINT has the log's points,"
        f" replicator restore {asked.name} {known.volume.name}@POINT --from-pool the pool's snapshots;"
        f" a new replica follows the log: replicator receiver run NEW_POOL --log {asked.log.name}",
    )
    common = [each for each in known.held if divided.side_of(each) == "both"]
    ours = [each for each in known.here if divided.is_only_the_pools(each)]
    known_here = {_named(each) for each in ours}
    alike = [each for each in remembered if _named(each) in known_here]
    head = known.head.point if known.head is not None and divided.side_of(known.head.point) == "both" else None
    inventory = Inventory(tuple(common), (), history.standing, head)
    points = reachable(merged([*common, *told]), inventory, history.lineage)
    return Offer(
        known.volume,
        tuple(_told_apart(merged([*points, *alike, *ours]), lineage)),
        lineage,
        inventory,
        history.complete_to_ns,
        {(each.timeline, each.number): each.sequence for each in history.points},
        None,
        groups,
        history.damage,
        divided,
        head=known.head,
        end=history.end,
    )


def _joined_lineage(view: CatalogueView | None, volume: UUID, history: LoggedHistory | None) -> Lineage:
    """The timelines that pool and log know together; whoever knows a timeline's parent is believed."""
    known: dict[int, Timeline] = {}
    for lineage in (view.lineage(volume) if view is not None else None, history.lineage if history else None):
        for each in lineage.timelines if lineage is not None else ():
            if each.number not in known or each.parent is not None:
                known[each.number] = each
    kept = (each if each.parent is None or each.parent in known else Timeline(each.number) for each in known.values())
    return Lineage(tuple(sorted(kept, key=lambda each: each.number)) or (Timeline(1),))


def _labelled(point: RestorePoint, labels: Mapping[tuple[int, int], tuple[str, ...]]) -> RestorePoint:
    """`point` with the labels that it got in the log since the catalogue last heard of it."""
    more = labels.get((point.timeline, point.number))
    return point if more is None else replace(point, labels=valid_labels((*point.labels, *more)))


def reachable(points: Iterable[RestorePoint], inventory: Inventory, lineage: Lineage) -> list[RestorePoint]:
    """The points that can be had (S1), in their order; agrees with history/plan, at one search a point."""
    ways = {
        each.timeline: (each, *_ways(each, inventory, lineage))
        for each in inventory.standing
        if lineage.knows(each.timeline)
    }
    head = inventory.head
    return [
        each
        for each in points
        if each.materialised or _is_reachable(each, ways.get(each.timeline)) or (head and _named(each) == _named(head))
    ]


def _is_reachable(point: RestorePoint, way: tuple[Stretch, int, list[int]] | None) -> bool:
    """Whether a base lies on the way to the point, and nothing is missing between them."""
    if way is None or not way[0].begin <= point.number < way[0].end:
        return False
    _, floor, bases = way
    at = bisect_right(bases, point.number)
    return at > 0 and bases[at - 1] >= floor


def _ways(stretch: Stretch, inventory: Inventory, lineage: Lineage) -> tuple[int, list[int]]:
    """(the lowest number from which all stands up to the stretch, the numbers of bases on that path, ascending)."""
    path = lineage.path(stretch.timeline, stretch.end - 1)
    floor = 0
    for each in reversed(path):
        if missing := absent((each,), inventory.standing):
            floor = missing[-1].end - 1
            break
    tip = Revision(stretch.timeline, stretch.end - 1)
    held = (Revision(each.timeline, each.number) for each in inventory.held if each.dev_id is not None)
    return floor, sorted([0, *(each.number for each in held if lineage.is_ancestor(each, tip))])
