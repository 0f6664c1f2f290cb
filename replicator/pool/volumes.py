"""What users do with volumes and snapshots: pure plans over a view, carried out by compare-and-swap on any Pool.

Called by the command line, agent and receiver. Each operation reads the view at id N, plans a Switch for it, and asks
for N → N+1; whoever comes second reads again and plans anew, so that of two clients none loses what it did (S3-44).

    operation         in one switch                                                            then
    create            thin device, Volume
    snapshot          snapshot of the live device, Snapshot row
    clone             snapshot of any device, Volume with the source's size and origin
    rename            Volume or Snapshot row
    rollback          snapshot of the snapshot becomes the volume, the old device is deleted
    delete volume     Volume and device gone, its snapshots hidden                             their space: sweep
    delete snapshot   hidden, without a name                                                   its space: sweep

A device that goes with a switch gives its space back in the background (pool/deleting).

    dies …                        on disk                            mended by
    before the switch             what was there                     -
    between the switch and sweep  hidden snapshots, in no list       the next sweep: at opening, or of a later delete

A volume that is open for writing is neither deleted nor rolled back: the switch is refused whole. An exporter whose
clients all have gone from it closes it for that (exporter/process, E3).

Volumes and users' snapshots share one space of names, since both are exported under theirs.

Invariants
  U1  No two volumes or users' snapshots have one name; a conflict says which there is.
  U2  Snapshots and clones have the external origin of their volume, without being told (S3-36).
  U3  A volume that a transaction is being published of, or that has snapshots, is deleted only when that is said.
  U4  A row whose device the kernel deleted behind our back can be deleted, and a volume so lost rolled back.
  U5  Who looked at a snapshot acts on that one or on none, however long it thought about it: ids are given again.
  U6  An id is given again only when the ids behind it were given, as long as one owner has the pool.

Failures: NotFoundError, ConflictError (name taken, in use, too many races), NoSpaceError, UsageError.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeVar
from uuid import UUID, uuid4

from replicator.errors import ConflictError, NotFoundError
from replicator.history.names import check_name
from replicator.history.points import TIMELINE_LIMIT
from replicator.pool.catalogue_schema import (
    DEV_ID_LIMIT,
    Branch,
    Cut,
    LoggedPoint,
    Origin,
    Position,
    Prepared,
    Purpose,
    Role,
    Setting,
    Snapshot,
    Volume,
)
from replicator.pool.changes import Change, End, EndBelow, Put
from replicator.pool.deleting import being_deleted
from replicator.pool.interface import DeviceFacts, Pool, StaleSwitchError, Switch
from replicator.pool.view import CatalogueView

DELETED_SETTING = "deleted "
"""With the volume's UUID behind it: a deleted volume that the log wasn't told of yet (agent/farewell reads it)."""

TRIES_LIMIT = 1000
"""Races lost in a row before somebody must be switching in a loop; each round one of the rivals goes on."""

_NAMED = 8
Result = TypeVar("Result")
_OF_PUBLISHING = (Purpose.BASE, Purpose.TARGET, Purpose.STAGING)  # the agent's and the receiver's own, nobody's to keep


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """One line of `volume list`."""

    name: str
    uuid: UUID
    dev_id: int
    size_bytes: int
    mapped_blocks: int
    origin: Origin | None
    snapshots: tuple[str, ...]


def list_volumes(view: CatalogueView, devices: Mapping[int, DeviceFacts]) -> list[VolumeFacts]:
    """The volumes by name, with what their devices map."""
    return [
        VolumeFacts(
            volume.name,
            volume.uuid,
            volume.dev_id,
            volume.size_bytes,
            devices[volume.dev_id].mapped_blocks if volume.dev_id in devices else 0,
            volume.origin,
            tuple(each.name for each in view.snapshots_of(volume.uuid) if each.name),
        )
        for volume in view.volumes
    ]


def create_volume(
    pool: Pool, name: str, size_bytes: int, origin: Origin | None = None, *, uuid: UUID | None = None
) -> Volume:
    """An empty volume, or one over an external origin; `uuid` where it is that of another pool's volume."""
    made = Volume(uuid or uuid4(), name, 0, size_bytes, time.time_ns(), origin)

    def plan(view: CatalogueView) -> tuple[Switch, Volume]:
        _require_free_name(view, name)
        if any(each.uuid == made.uuid for each in view.volumes):
            raise ConflictError(f"the pool has the volume {made.uuid} already")
        volume = replace(made, dev_id=free_dev_id(pool, view))
        return Switch(create=(volume.dev_id,), changes=(Put(volume),)), volume

    return switched(pool, plan)


def create_snapshot(pool: Pool, volume: str | UUID, name: str, *, labels: tuple[str, ...] = ()) -> Snapshot:
    """A user's snapshot of a volume, as it is at an instant of this call."""
    check_name(name)

    def plan(view: CatalogueView) -> tuple[Switch, Snapshot]:
        source = view.volume(volume)
        _require_free_name(view, name)
        dev_id = free_dev_id(pool, view)
        made = Snapshot(dev_id, source.uuid, Purpose.USER, time.time_ns(), source.size_bytes, labels=labels, name=name)
        return Switch(snapshot=((dev_id, source.dev_id),), changes=(Put(made),)), made

    return switched(pool, plan)


def clone(pool: Pool, source: str | UUID | int | Snapshot, name: str) -> Volume:
    """A new, writable volume from a volume, a user's snapshot (by name) or any snapshot (its row, or dev_id)."""
    uuid, created_ns = uuid4(), time.time_ns()

    def plan(view: CatalogueView) -> tuple[Switch, Volume]:
        dev_id, size_bytes, origin = _source(view, source)
        _require_free_name(view, name)
        made = Volume(uuid, name, free_dev_id(pool, view), size_bytes, created_ns, origin)
        return Switch(snapshot=((made.dev_id, dev_id),), changes=(Put(made),)), made

    return switched(pool, plan)


def rename(pool: Pool, old: str | UUID, new: str) -> None:
    """Give a volume, or a user's snapshot, another name."""
    check_name(new)

    def plan(view: CatalogueView) -> tuple[Switch, None]:
        row = _named(view, old)
        if row.name != new:
            _require_free_name(view, new)
        return Switch(changes=(Put(replace(row, name=new)),)), None

    switched(pool, plan)


def rollback(pool: Pool, volume: str | UUID, snapshot: str | int) -> Volume:
    """Set a volume back to one of its snapshots, size included; nobody may have it open for writing."""

    def plan(view: CatalogueView) -> tuple[Switch, Volume]:
        before, target = view.volume(volume), _snapshot(view, snapshot)
        if target.volume != before.uuid:
            raise ConflictError(f"{_told(target)} isn't a snapshot of {before.name}")
        after = replace(before, dev_id=free_dev_id(pool, view), size_bytes=target.size_bytes)
        new = (after.dev_id, target.dev_id)
        return Switch(snapshot=(new,), delete=_there(pool, before.dev_id), changes=(Put(after),)), after

    return switched(pool, plan)


def resize(pool: Pool, volume: str | UUID, size_bytes: int) -> int:
    """Another size for a volume, live or not; returns the transaction id."""
    return pool.resize(pool.view().volume(volume).uuid, size_bytes)


def delete_volume(
    pool: Pool, volume: str | UUID, *, with_snapshots: bool = False, while_published: bool = False
) -> None:
    """Delete a volume; its names are gone at once, its space comes back as soon as nobody reads it (U3)."""

    def plan(view: CatalogueView) -> tuple[Switch, None]:
        row = view.volume(volume)
        snapshots = view.snapshots_of(row.uuid, hidden=True)
        _refuse_dependents(view, row, snapshots, with_snapshots, while_published)
        gone: list[Change] = [End(Volume, (row.uuid,))]
        gone += [Put(replace(each, hidden=True, name="")) for each in snapshots]
        gone += [End(Position, (row.uuid, role)) for role in Role if view.position(row.uuid, role) is not None]
        gone += _farewell(view.position(row.uuid, Role.PUBLISHED))
        gone += [EndBelow(kind, (row.uuid,), TIMELINE_LIMIT) for kind in (LoggedPoint, Branch)]
        if view.prepared_of(row.uuid) is not None:
            gone.append(End(Prepared, (row.uuid,)))
        return Switch(delete=_there(pool, row.dev_id), changes=tuple(gone)), None

    switched(pool, plan)
    sweep_hidden(pool)


def _farewell(position: Position | None) -> list[Change]:
    """What the next agent needs to tell the log that the volume is gone."""
    if position is None:
        return []
    value = f"{position.timeline} {position.number} {position.digest.hex()} {position.epoch}"
    return [Put(Setting(f"{DELETED_SETTING}{position.volume}", value))]


def delete_snapshot(pool: Pool, snapshot: str | int | Snapshot) -> None:
    """Delete a user's snapshot (by name) or any other (its row, or dev_id)."""

    def plan(view: CatalogueView) -> tuple[Switch, None]:
        row = _snapshot(view, snapshot)
        if row.held:
            raise ConflictError(f"{_told(row)} is held", mend="release it first: replicator points release")
        return Switch(changes=(Put(replace(row, hidden=True, name="")),)), None

    switched(pool, plan)
    sweep_hidden(pool)


def sweep_hidden(pool: Pool) -> int:
    """Give back the space of hidden snapshots that nobody reads; how many went. Those being filled stay."""
    swept = 0
    for row in pool.view().snapshots:
        if row.hidden and row.purpose is not Purpose.STAGING:
            with contextlib.suppress(ConflictError, NotFoundError):  # being read; or another client swept it
                delete_row(pool, row)
                swept += 1
    return swept


def delete_row(pool: Pool, row: Snapshot) -> None:
    """Delete a snapshot with its device, if its row is still what it was: ConflictError while it is read (U5)."""

    def plan(view: CatalogueView) -> tuple[Switch, None]:
        if view.snapshot(row.dev_id) != row:
            raise NotFoundError(f"{_told(row)} was deleted or changed meanwhile")
        return Switch(delete=_there(pool, row.dev_id), changes=(End(Snapshot, (row.dev_id,)),)), None

    switched(pool, plan)


def drop_cut(pool: Pool, cut_id: UUID) -> None:
    """Forget a cut's id, once its client knows what it made."""
    with contextlib.suppress(NotFoundError):
        pool.switch(Switch(changes=(End(Cut, (cut_id,)),)))


def switched(pool: Pool, plan: Callable[[CatalogueView], tuple[Switch, Result]]) -> Result:
    """Carry out what `plan` says of the newest view, as a compare-and-swap; planned anew after each lost race."""
    for _ in range(TRIES_LIMIT):
        view = pool.view()
        switch, result = plan(view)
        try:
            pool.switch(replace(switch, expected_id=view.at_id))
        except StaleSwitchError:
            continue
        return result
    raise ConflictError(f"{TRIES_LIMIT} switches of others came first", mend="end what switches without a pause")


def free_dev_id(pool: Pool, view: CatalogueView) -> int:
    """A thin device id that neither the catalogue nor the metadata has: the first behind the last one given (U6)."""
    taken = {each.dev_id for each in view.volumes} | {each.dev_id for each in view.snapshots}
    taken |= being_deleted(view).keys()
    first = max(1, pool.status().next_dev_id)
    for dev_id in chain(range(first, DEV_ID_LIMIT), range(1, first)):
        if dev_id not in taken and not pool.facts((dev_id,)):
            return dev_id
    raise ConflictError("all 16,777,215 device ids are in use", mend="delete snapshots that nobody needs")


def _there(pool: Pool, dev_id: int) -> tuple[int, ...]:
    """The device as what a switch deletes; none if another engine, which knows no names, has deleted it (U4)."""
    return (dev_id,) if pool.facts((dev_id,)) else ()


def _require_free_name(view: CatalogueView, name: str) -> None:
    check_name(name)
    if any(each.name == name for each in view.volumes):
        raise ConflictError(
            f"there is a volume {name!r} already", mend="take another name, or delete or rename that one"
        )
    if any(each.name == name and not each.hidden for each in view.snapshots):
        raise ConflictError(f"there is a snapshot {name!r} already", mend="take another name, or delete that one")


def _source(view: CatalogueView, source: str | UUID | int | Snapshot) -> tuple[int, int, Origin | None]:
    """(dev_id, size, external origin) of what a clone is made of (U2)."""
    row = _snapshot(view, source) if isinstance(source, int | Snapshot) else _named(view, source)
    if isinstance(row, Volume):
        return row.dev_id, row.size_bytes, row.origin
    return row.dev_id, row.size_bytes, origin_of(view, row)


def origin_of(view: CatalogueView, row: Volume | Snapshot) -> Origin | None:
    """The external origin behind a volume or a snapshot: the volume's (U2)."""
    if isinstance(row, Volume):
        return row.origin
    found = [each.origin for each in view.volumes if each.uuid == row.volume]
    return found[0] if found else None


def _named(view: CatalogueView, name: str | UUID) -> Volume | Snapshot:
    """The volume or users' snapshot of that name; NotFoundError names what there is."""
    if isinstance(name, str) and (snapshot := view.snapshot_named(name)) is not None:
        return snapshot
    try:
        return view.volume(name)
    except NotFoundError:
        names = [each.name for each in view.volumes] + [each.name for each in view.snapshots if each.name]
        raise NotFoundError(f"there is no volume or snapshot {name}; there are: {_list(names)}") from None


def _snapshot(view: CatalogueView, snapshot: str | int | Snapshot) -> Snapshot:
    if not isinstance(snapshot, str):
        found = view.snapshot(snapshot) if isinstance(snapshot, int) else view.still(snapshot)
        if found.hidden:
            raise NotFoundError(f"{_told(found)} is deleted already")
        return found
    named = view.snapshot_named(snapshot)
    if named is None:
        names = [each.name for each in view.snapshots if each.name and not each.hidden]
        raise NotFoundError(f"there is no snapshot {snapshot!r}; there are: {_list(names)}")
    return named


def _refuse_dependents(
    view: CatalogueView, row: Volume, snapshots: Sequence[Snapshot], with_snapshots: bool, while_published: bool
) -> None:
    """U3."""
    if view.prepared_of(row.uuid) is not None and not while_published:
        raise ConflictError(f"a transaction of {row.name} is being published", mend="stop the agent first, or wait")
    kept = [each for each in snapshots if not each.hidden and each.purpose not in _OF_PUBLISHING]
    if kept and not with_snapshots:
        told = _list([each.name or f"@{each.number}" for each in kept])
        raise ConflictError(
            f"{row.name} has {len(kept)} snapshots and points: {told}", mend="delete them first, or with the volume"
        )
    held = [each for each in kept if each.held]
    if held:
        raise ConflictError(f"{_told(held[0])} is held", mend="release it first: replicator points release")


def _told(row: Snapshot) -> str:
    return f"the snapshot {row.name}" if row.name else f"the snapshot {row.dev_id} (point {row.number})"


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (", ".join(sorted(names)[:_NAMED]) or "none") + more
