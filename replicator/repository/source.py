"""Where restore points come from: a pool with its catalogue (and the log that it names), or a log alone.

Asked by restore, points and serve: which volumes, which points, which one is meant, and opened as a disk.

    source   points                                               bases
    pool     snapshots kept as points, and the log's transactions materialised points, or nothing
             that its catalogue remembers, and newer ones
    log      its transactions                                     nothing

Of a pool whose log can't be read the materialised points are left; `problem` says why.

Invariants
  S1  A point is listed only if it can be had: materialised, or all that lies between it and a base still stands.
  S2  A base is leased before it is read, and its row is looked at again under the lease: a dev_id that was given anew
      meanwhile is never taken for the point that it once was.

Failures: NotFoundError (no such source, volume or point), ConflictError, and those of history, pool and log.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from datetime import UTC, tzinfo
from pathlib import Path
from uuid import UUID

from replicator.errors import NotFoundError, ReplicatorError, UnavailableError, UsageError
from replicator.history.groups import GroupPoint, Member
from replicator.history.lineage import Lineage, Revision, Stretch, Timeline, absent
from replicator.history.plan import EmptyBase, Inventory, Plan, SnapshotBase, plan
from replicator.history.points import (
    ByLabel,
    ByNumber,
    PointSpecification,
    RestorePoint,
    Wanted,
    merged,
    parse_specification,
)
from replicator.history.resolve import NamedVolume, PointNotFoundError, resolve, resolve_volume
from replicator.log.interface import Log
from replicator.log.opening import is_log, log_places, open_log
from replicator.pool.catalogue_schema import LoggedGroup, LoggedPoint, Purpose, Snapshot
from replicator.pool.interface import Pool
from replicator.pool.origins import open_origin
from replicator.pool.reading import read_beside, read_pool
from replicator.pool.view import CatalogueView
from replicator.repository.catalogued import CataloguedPool, ReadPool
from replicator.repository.groups import group_cut_of, groups_with
from replicator.repository.labels import valid_labels
from replicator.repository.layers import Layers, collect, no_layers
from replicator.repository.logged import LoggedHistory, read_history
from replicator.repository.point import Beneath, EmptyDisk, PointDisk
from replicator.repository.remembered import LOG_SETTING

_TRIES = 3  # a snapshot may retire between the view and the lease; thrice in a row is no coincidence


@dataclass(frozen=True, slots=True)
class Offer:
    """What there is of one volume: its points (S1), how they hang together, and what bars others."""

    volume: NamedVolume
    points: tuple[RestorePoint, ...]
    lineage: Lineage
    inventory: Inventory
    complete_to_ns: int | None
    sequences: dict[tuple[int, int], int]
    problem: ReplicatorError | None = None
    groups: tuple[LoggedGroup, ...] = ()

    def has(self, number: int) -> bool:
        """Whether transaction `number` of the current lineage can be had; 0, nothing, always can."""
        return number == 0 or any(each.number == number for each in self.points)


@dataclass(frozen=True, slots=True)
class OpenedPoint:
    """A point as a disk, and how it is had; `close` the disk."""

    disk: PointDisk
    volume: NamedVolume
    point: RestorePoint
    plan: Plan
    complete_to_ns: int | None


@dataclass(slots=True)
class Source:
    """A pool, a log, or both; a context manager that closes them."""

    name: str
    pool: ReadPool | None = None
    log: Log | None = None
    log_problem: ReplicatorError | None = None
    places: tuple[Path, ...] = ()
    _offers: dict[UUID, Offer] = field(default_factory=dict)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close pool and log."""
        if self.pool is not None:
            self.pool.close()
        if self.log is not None:
            self.log.close()

    def volumes(self) -> list[NamedVolume]:
        """Those of the pool, or of the log where there is no pool."""
        if self.pool is not None:
            return [NamedVolume(each.uuid, each.name) for each in self.pool.view().volumes]
        assert self.log is not None
        return [NamedVolume(each.volume, each.name, each.host) for each in self.log.volumes()]

    def volume(self, wanted: str) -> NamedVolume:
        """The volume of that name or UUID."""
        return resolve_volume(wanted, self.volumes())

    def offer(self, volume: NamedVolume) -> Offer:
        """What there is of a volume, read once."""
        found = self._offers.get(volume.uuid)
        if found is None:
            found = self._offers[volume.uuid] = self._read_offer(volume)
        return found

    def _read_offer(self, volume: NamedVolume) -> Offer:
        view = self.pool.view() if self.pool is not None else None
        remembered = self.pool.points(volume.uuid) if self.pool is not None else []
        history, problem = self._history(volume.uuid, remembered)
        lineage = _joined_lineage(view, volume.uuid, history)
        snapshots = view.snapshots_of(volume.uuid, Purpose.POINT) if view is not None else []
        held = [each.restore_point() for each in snapshots if each.number]
        inventory = Inventory(tuple(held), (), history.standing if history else ())
        logged = [*remembered, *(history.points if history else ())]
        labels = dict(history.labels) if history else {}
        points = merged([*held, *(each.restore_point() for each in logged)])
        points = [_labelled(each, labels) for each in points]
        return Offer(
            volume,
            tuple(reachable(points, inventory, lineage)),
            lineage,
            inventory,
            history.complete_to_ns if history else None,
            {(each.timeline, each.number): each.sequence for each in logged},
            problem,
            groups_with(
                volume.uuid, [*(self.pool.groups() if self.pool else ()), *(history.groups if history else ())]
            ),
        )

    def _history(
        self, volume: UUID, remembered: list[LoggedPoint]
    ) -> tuple[LoggedHistory | None, ReplicatorError | None]:
        """What the log adds to what the catalogue remembers; where there is a pool, a log that is away is no end."""
        if self.log is None:
            return None, self.log_problem
        after: dict[int, int] = {}
        for each in remembered:
            after[each.timeline] = max(after.get(each.timeline, 0), each.sequence)
        try:
            return read_history(self.log, volume, after), None
        except ReplicatorError as error:
            if self.pool is None:
                raise
            return None, error

    # -- one point -----------------------------------------------------------------------------------------------

    def find(
        self, specification: PointSpecification, *, now_ns: int, accept_gap: bool = False, zone: tzinfo = UTC
    ) -> tuple[Offer, RestorePoint]:
        """The point that is meant, and the offer that it stands in."""
        offer = self.offer(self.volume(specification.volume))

        def found(wanted: PointSpecification) -> RestorePoint:
            return resolve(
                wanted,
                offer.points,
                now_ns=now_ns,
                complete_to_ns=offer.complete_to_ns,
                lineage=offer.lineage,
                accept_gap=accept_gap,
                zone=zone,
            )

        try:
            return offer, found(specification)
        except PointNotFoundError:
            cut = self._group_labelled(offer, specification.wanted)
            if cut is None:
                raise
            return offer, found(replace(specification, wanted=ByNumber(None, dict(cut.members)[offer.volume.uuid])))

    # -- groups --------------------------------------------------------------------------------------------------

    def group_of(self, offer: Offer, point: RestorePoint) -> GroupPoint | None:
        """The group's point that this one is a member's part of."""
        cut = group_cut_of(offer.groups, point)
        return None if cut is None else self._group_point(cut)

    def _group_point(self, cut: LoggedGroup) -> GroupPoint:
        names = {each.uuid: each for each in self.volumes()}
        members = []
        for uuid, number in cut.members:
            named = names.get(uuid)
            members.append(
                Member(uuid, named.name if named else "", number, named is not None and self.offer(named).has(number))
            )
        return GroupPoint(cut.uuid, cut.number, tuple(members), cut.labels)

    def _group_labelled(self, offer: Offer, wanted: Wanted) -> LoggedGroup | None:
        """The whole group's cut of that label: a member that hadn't changed has no point of its own for it."""
        if not isinstance(wanted, ByLabel):
            return None
        everybodys = [cut for each in self.volumes() for cut in self.offer(each).groups]
        found = [each for each in groups_with(offer.volume.uuid, everybodys) if wanted.label in each.labels]
        return next((each for each in reversed(found) if self._group_point(each).is_whole), None)

    def open_point(
        self, text: str, *, now_ns: int, accept_gap: bool = False, zone: tzinfo = UTC, window_chunks: int = 0
    ) -> OpenedPoint:
        """`VOLUME@POINT` as a disk, to be closed (S2)."""
        specification = parse_specification(text, zone)
        for attempt in range(_TRIES):
            offer, point = self.find(specification, now_ns=now_ns, accept_gap=accept_gap, zone=zone)
            planned = plan(Revision(point.timeline, point.number, point.digest), offer.inventory, offer.lineage)
            try:
                disk = self._open_planned(offer, point, planned, window_chunks)
            except _RetiredError as error:
                self._offers.pop(offer.volume.uuid, None)
                if attempt == _TRIES - 1:
                    raise UnavailableError(error.message, mend="run the same command again") from None
                continue
            return OpenedPoint(disk, offer.volume, point, planned, offer.complete_to_ns)
        raise AssertionError("unreachable")

    def _open_planned(self, offer: Offer, point: RestorePoint, planned: Plan, window_chunks: int) -> PointDisk:
        with ExitStack() as held:
            beneath = self._base(planned, held)
            layers = no_layers()
            if planned.overlay:
                layers = self._layers(offer, planned, beneath.disk.size_bytes)
            kept = held.pop_all()
        name = f"{offer.volume.name}@{point.timeline}:{point.number}"
        beneath = replace(beneath, release=kept.close)
        return PointDisk(name, point.size_bytes, beneath, layers, window_chunks=window_chunks)

    def _layers(self, offer: Offer, planned: Plan, base_size_bytes: int) -> Layers:
        assert self.log is not None, "a plan with an overlay comes from a log"
        base = planned.base.revision
        after = offer.sequences.get((base.timeline, base.number))
        return collect(self.log, offer.volume.uuid, planned, base_size_bytes, after)

    def _base(self, planned: Plan, held: ExitStack) -> Beneath:
        if isinstance(planned.base, EmptyBase):
            return Beneath(EmptyDisk())
        assert isinstance(planned.base, SnapshotBase), "folds come with compaction"
        snapshot = self._snapshot(planned.base.dev_id)
        beneath = self._leased(snapshot, held)
        place = (snapshot.timeline, snapshot.number)
        if place != (planned.base.revision.timeline, planned.base.revision.number):
            raise _RetiredError(f"the snapshot {snapshot.dev_id} became another one meanwhile")
        return beneath

    def _snapshot(self, dev_id: int) -> Snapshot:
        assert self.pool is not None, "a snapshot is in a pool"
        try:
            return self.pool.view().snapshot(dev_id)
        except NotFoundError as error:
            raise _RetiredError(error.message) from None

    def _leased(self, snapshot: Snapshot, held: ExitStack) -> Beneath:
        """The snapshot's disk under a lease, and its row as it was before (S2)."""
        assert self.pool is not None, "a snapshot is in a pool"
        try:
            lease = held.enter_context(self.pool.lease([snapshot.dev_id]))
        except NotFoundError as error:
            raise _RetiredError(error.message) from None
        if self._snapshot(snapshot.dev_id) != snapshot:
            raise _RetiredError(f"the snapshot {snapshot.dev_id} became another one meanwhile")
        rows = self.pool.view().volumes
        row = next((each.origin for each in rows if each.uuid == snapshot.volume), None)
        origin = held.enter_context(closing(open_origin(row))) if row is not None else None
        return Beneath(self.pool.disk(snapshot.dev_id, snapshot.size_bytes, origin, lease=lease))

    # -- a snapshot by its name ----------------------------------------------------------------------------------

    def open_snapshot(self, name: str) -> PointDisk:
        """A user's snapshot as a disk, to be closed; NotFoundError names those there are."""
        if self.pool is None:
            raise NotFoundError(f"{self.name} is a log, and has no snapshot {name!r}")
        view = self.pool.view()
        snapshot = view.snapshot_named(name)
        if snapshot is None:
            known = ", ".join(sorted(each.name for each in view.snapshots if each.name and not each.hidden)) or "none"
            raise NotFoundError(f"there is no snapshot {name!r}; there are: {known}")
        with ExitStack() as held:
            beneath = self._leased(snapshot, held)
            kept = held.pop_all()
        return PointDisk(name, snapshot.size_bytes, replace(beneath, release=kept.close))


class _RetiredError(NotFoundError):
    """The snapshot went away between looking and leasing."""


def open_source(text: str, *, beside: Pool | None = None) -> Source:
    """The pool or log that `text` names, a pool with the log that it remembers; `beside`: that pool, open here."""
    if is_log(text):
        return Source(text, log=open_log(text), places=log_places(text))
    if text.startswith(("dm:", "lvm:")):
        mend = "name the log that it is published to"
        raise UsageError(f"{text}: kernel pools can't be restored from yet", mend=mend)
    path = Path(text)
    if not (path / "metadata").exists():
        raise NotFoundError(
            f"{text} is neither a pool nor a log", mend="name a pool's directory, or a log: a directory that has one"
        )
    pool = CataloguedPool(read_pool(path) if beside is None else read_beside(beside))
    try:
        log, problem = _log_of(pool.view())
    except BaseException:
        pool.close()
        raise
    places = (path,) if log is None else (path, *log_places(log.name))
    return Source(text, pool, log, problem, places)


def _log_of(view: CatalogueView) -> tuple[Log | None, ReplicatorError | None]:
    url = view.setting(LOG_SETTING)
    if not url:
        return None, None
    try:
        return open_log(url), None
    except ReplicatorError as error:
        return None, error


def _joined_lineage(view: CatalogueView | None, volume: UUID, history: LoggedHistory | None) -> Lineage:
    """The timelines that pool and log know together; whoever knows a timeline's parent is believed."""
    known: dict[int, Timeline] = {}
    for lineage in (view.lineage(volume) if view is not None else None, history.lineage if history else None):
        for each in lineage.timelines if lineage is not None else ():
            if each.number not in known or each.parent is not None:
                known[each.number] = each
    kept = (each if each.parent is None or each.parent in known else Timeline(each.number) for each in known.values())
    return Lineage(tuple(sorted(kept, key=lambda each: each.number)) or (Timeline(1),))


def _labelled(point: RestorePoint, labels: dict[tuple[int, int], tuple[str, ...]]) -> RestorePoint:
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
    return [each for each in points if each.materialised or _is_reachable(each, ways.get(each.timeline))]


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
    held = (Revision(each.timeline, each.number) for each in inventory.points if each.dev_id is not None)
    return floor, sorted([0, *(each.number for each in held if lineage.is_ancestor(each, tip))])
