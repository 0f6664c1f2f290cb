"""Where restore points come from: a pool with its catalogue (and the logs that it names), or a log alone.

Asked by restore, points and serve: which volumes, which points, which one is meant, and opened as a disk.

    source   points                                               bases
    pool     snapshots kept as points, a replica itself (head),   materialised points, the head,
             and the log's transactions that its catalogue        or nothing
             remembers, and newer ones
    log      its transactions                                     nothing

What there is of one volume is offer's (S1 there). Of a pool whose log can't be reached the materialised points and the
head are left; `problem` says why. Of a pool that is asked `alone` they are all there is: its log isn't asked.

Invariants
  S2  A base is leased before it is read, and its row is looked at again under the lease, volume and digest too: a
      dev_id that was given anew meanwhile is never taken for the point that it once was, nor is a head that went on.
  S3  A cut's label names what the members were at that instant: a transaction that was cut later, and has the number
      that an aborted one left behind, is never taken for it.

Failures: NotFoundError (no such source, volume or point), ConflictError, and those of history, pool and log.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from datetime import UTC, tzinfo
from pathlib import Path
from uuid import UUID

from replicator.errors import NotFoundError, ReplicatorError, UnavailableError, UsageError
from replicator.history.groups import GroupPoint, Member
from replicator.history.lineage import Revision
from replicator.history.plan import EmptyBase, Plan, PointUnreachableError, SnapshotBase
from replicator.history.points import (
    ByLabel,
    ByNumber,
    PointSpecification,
    RestorePoint,
    Wanted,
    parse_specification,
)
from replicator.history.resolve import NamedVolume, PointNotFoundError, resolve_volume
from replicator.log.interface import Log
from replicator.log.opening import is_log, log_places, open_log
from replicator.pool.catalogue_schema import LoggedGroup, Role, Snapshot
from replicator.pool.interface import Pool
from replicator.pool.metadata_device import has_metadata
from replicator.pool.origins import open_origin
from replicator.pool.reading import read_beside, read_pool
from replicator.repository.catalogued import CataloguedPool, ReadPool
from replicator.repository.groups import MemberCuts, groups_with
from replicator.repository.head import held_row
from replicator.repository.layers import Layers, collect, no_layers
from replicator.repository.offer import Asked, Offer, read_offer
from replicator.repository.point import Beneath, EmptyDisk, PointDisk
from replicator.repository.remembered import remembered_logs, role_of

_TRIES = 3  # a snapshot may retire between the view and the lease; thrice in a row is no coincidence


@dataclass(frozen=True, slots=True)
class OpenedPoint:
    """A point as a disk, and how it is had; `close` the disk."""

    disk: PointDisk
    volume: NamedVolume
    point: RestorePoint
    plan: Plan
    complete_to_ns: int | None


@dataclass(frozen=True, slots=True)
class RememberedLog:
    """A log, or why it can't be opened."""

    log: Log | None
    problem: ReplicatorError | None = None


@dataclass(slots=True)
class Source:
    """A pool, a log, or both; a context manager that closes them.

    `log` is that of all volumes; where it is None, `remembered` names those of the pool, opened when asked for.
    """

    name: str
    pool: ReadPool | None = None
    log: Log | None = None
    remembered: Mapping[Role, str] = field(default_factory=dict)
    places: tuple[Path, ...] = ()
    _offers: dict[UUID, Offer] = field(default_factory=dict)
    _cuts: dict[UUID, tuple[Offer, MemberCuts]] = field(default_factory=dict)
    _members: dict[UUID, NamedVolume] = field(default_factory=dict)
    _opened_logs: dict[str, RememberedLog] = field(default_factory=dict)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close pool and logs."""
        for each in (self.pool, self.log, *(opened.log for opened in self._opened_logs.values())):
            if each is not None:
                each.close()

    def log_of(self, volume: UUID) -> RememberedLog:
        """The log that a volume goes to, or comes from."""
        if self.log is not None or self.pool is None or not self.remembered:
            return RememberedLog(self.log)
        url = self.remembered.get(role_of(self.pool.view(), volume)) or next(iter(self.remembered.values()))
        if url not in self._opened_logs:
            self._opened_logs[url] = _remembered(url)
        return self._opened_logs[url]

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
            logged = self.log_of(volume.uuid)
            asked = Asked(self.name, self.pool, logged.log, logged.problem)
            found = self._offers[volume.uuid] = read_offer(asked, volume)
        return found

    # -- one point -----------------------------------------------------------------------------------------------

    def find(
        self, specification: PointSpecification, *, now_ns: int, accept_gap: bool = False, zone: tzinfo = UTC
    ) -> tuple[Offer, RestorePoint]:
        """The point that is meant, and the offer that it stands in."""
        offer = self.offer(self.volume(specification.volume))

        def found(wanted: PointSpecification) -> RestorePoint:
            return offer.resolve(wanted, now_ns=now_ns, accept_gap=accept_gap, zone=zone)

        try:
            return offer, found(specification)
        except PointNotFoundError:
            cut = self._group_labelled(offer, specification.wanted)
            if cut is None:
                raise
            number = dict(cut.members)[offer.volume.uuid]
            point = found(replace(specification, wanted=ByNumber(None, number)))
            if point != self._cuts_of(offer).point_at(number, cut.number):  # S3
                raise
            return offer, point

    # -- groups --------------------------------------------------------------------------------------------------

    def group_of(self, offer: Offer, point: RestorePoint) -> GroupPoint | None:
        """The group's point that this one is a member's part of."""
        cut = self._cuts_of(offer).cut_of(point)
        return None if cut is None else self._group_point(cut)

    def _cuts_of(self, offer: Offer) -> MemberCuts:
        held = self._cuts.get(offer.volume.uuid)
        if held is None or held[0] is not offer:
            cuts = MemberCuts(offer.volume.uuid, offer.groups, offer.points)
            held = self._cuts[offer.volume.uuid] = offer, cuts
        return held[1]

    def _group_point(self, cut: LoggedGroup) -> GroupPoint:
        """The names are asked for once: each time is a walk through a log's catalogue."""
        self._members = self._members or {each.uuid: each for each in self.volumes()}
        members = []
        for uuid, number in cut.members:
            named = self._members.get(uuid)
            there = named is not None and self._cuts_of(self.offer(named)).point_at(number, cut.number) is not None
            members.append(Member(uuid, named.name if named else "", number, there))
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
            try:
                return self._opened(offer, point, window_chunks)
            except _RetiredError as error:
                self._offers.pop(offer.volume.uuid, None)
                if attempt == _TRIES - 1:
                    raise UnavailableError(error.message, mend="run the same command again") from None
        raise AssertionError("unreachable")

    def reopen(self, before: OpenedPoint) -> OpenedPoint:
        """The very point that was opened before, whatever its number or `latest` means now (S2)."""
        offer = self.offer(self.volume(str(before.volume.uuid)))
        wanted = (before.point.timeline, before.point.number, before.point.digest)
        for point in offer.points:
            if (point.timeline, point.number, point.digest) == wanted:
                return self._opened(offer, point, 0)
        raise UnavailableError(f"{before.disk.name} isn't there any more, or isn't the point that was served")

    def _opened(self, offer: Offer, point: RestorePoint, window_chunks: int) -> OpenedPoint:
        """The point as a disk; where the head went on meanwhile, as it may each second, by a way that needs none."""
        planned = offer.plan(point)
        try:
            disk = self._open_planned(offer, point, planned, window_chunks)
        except _RetiredError as moved:
            if not isinstance(planned.base, SnapshotBase) or not planned.base.is_head:
                raise
            try:
                planned = offer.without_head().plan(point)
            except PointUnreachableError:
                raise moved from None
            disk = self._open_planned(offer, point, planned, window_chunks)
        return OpenedPoint(disk, offer.volume, point, planned, offer.complete_to_of(point))

    def _open_planned(self, offer: Offer, point: RestorePoint, planned: Plan, window_chunks: int) -> PointDisk:
        with ExitStack() as held:
            beneath = self._base(offer, planned, held)
            layers = no_layers()
            if planned.overlay:
                layers = self._layers(offer, planned, beneath.disk.size_bytes)
            kept = held.pop_all()
        name = f"{offer.volume.name}@{point.timeline}:{point.number}"
        beneath = replace(beneath, release=kept.close)
        return PointDisk(name, point.size_bytes, beneath, layers, window_chunks=window_chunks)

    def _layers(self, offer: Offer, planned: Plan, base_size_bytes: int) -> Layers:
        log = self.log_of(offer.volume.uuid).log
        assert log is not None, "a plan with an overlay comes from a log"
        base = planned.base.revision
        after = offer.sequences.get((base.timeline, base.number))
        return collect(log, offer.volume.uuid, planned, base_size_bytes, after)

    def _base(self, offer: Offer, planned: Plan, held: ExitStack) -> Beneath:
        base = planned.base
        if isinstance(base, EmptyBase):
            return Beneath(EmptyDisk())
        assert isinstance(base, SnapshotBase), "folds come with compaction"
        row = self._row(base.dev_id)
        if base.is_head:
            assert offer.head is not None, "it was planned from there"
            if row != offer.head.row:
                raise _RetiredError(f"{offer.volume.name} went on from @{base.revision} meanwhile")
        elif not _is_base(row, offer.volume.uuid, base.revision):
            raise _RetiredError(f"the snapshot {row.dev_id} became another one meanwhile")
        return self._leased(row, held)

    def _row(self, dev_id: int) -> Snapshot:
        assert self.pool is not None, "a snapshot is in a pool"
        try:
            return held_row(self.pool.view(), dev_id)
        except NotFoundError as error:
            raise _RetiredError(error.message) from None

    def _leased(self, snapshot: Snapshot, held: ExitStack) -> Beneath:
        """The device's disk under a lease, and its row as it was before (S2)."""
        assert self.pool is not None, "a snapshot is in a pool"
        try:
            lease = held.enter_context(self.pool.lease([snapshot.dev_id]))
        except NotFoundError as error:
            raise _RetiredError(error.message) from None
        if self._row(snapshot.dev_id) != snapshot:
            raise _RetiredError(f"thin device {snapshot.dev_id} became another point meanwhile")
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


def _is_base(row: Snapshot, volume: UUID, revision: Revision) -> bool:
    """Whether the snapshot is this transaction of this volume, as far as digests are known."""
    alike = (row.volume, row.timeline, row.number) == (volume, revision.timeline, revision.number)
    return alike and (row.digest == revision.digest or not row.digest or not revision.digest)


class _RetiredError(NotFoundError):
    """The snapshot went away, or the head went on, between looking and leasing."""


def require_source(text: str) -> None:
    """Refuse what is neither a pool nor a log."""
    if is_log(text) or (not text.startswith(("dm:", "lvm:")) and has_metadata(Path(text))):
        return
    if text.startswith(("dm:", "lvm:")):
        mend = "name the log that it is published to"
        raise UsageError(f"{text}: kernel pools can't be restored from yet", mend=mend)
    raise NotFoundError(
        f"{text} is neither a pool nor a log", mend="name a pool's directory, or a log: a directory that has one"
    )


def open_source(text: str, *, beside: Pool | None = None, alone: bool = False) -> Source:
    """The pool or log that `text` names, a pool with the logs that it remembers; `beside`: that pool, open here.

    `alone`: the pool without its log, which is its snapshots.
    """
    require_source(text)
    if is_log(text):
        if alone:
            raise UsageError(f"{text} is a log", mend="name a pool, or leave --from-pool out")
        return Source(text, log=open_log(text), places=log_places(text))
    path = Path(text)
    pool = CataloguedPool(read_pool(path) if beside is None else read_beside(beside))
    try:
        urls = {} if alone else remembered_logs(pool.view())
        places = (path, *(place for url in urls.values() for place in log_places(url)))
    except BaseException:
        pool.close()
        raise
    return Source(text, pool, remembered=urls, places=places)


def _remembered(url: str) -> RememberedLog:
    try:
        return RememberedLog(open_log(url))
    except ReplicatorError as error:
        return RememberedLog(None, error)
