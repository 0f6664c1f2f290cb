"""What users do with volumes and snapshots: pure plans over a view, carried out by compare-and-swap on any Pool.

Called by the command line, agent and receiver. Each operation reads the view at id N, plans a Switch for it, and asks
for N → N+1; whoever comes second reads again and plans anew, so that of two clients none loses what it did (S3-44).

    operation    in one switch                                                          then
    create       thin device, Volume
    snapshot     snapshot of the live device, Snapshot row
    clone        snapshot of any device, Volume with the source's size and origin
    rename       Volume or Snapshot row
    rollback     snapshot of the snapshot becomes the volume; the old device hidden     space back: sweep
    delete       the name goes, the devices are hidden                                  space back: sweep

    dies …                        on disk                            mended by
    before the switch             what was there                     -
    between the switch and sweep  hidden snapshots, in no list       the next sweep: at opening, or of a later delete

Volumes and users' snapshots share one space of names, since both are exported under theirs.

Invariants
  U1  No two volumes or users' snapshots have one name; a conflict says which there is.
  U2  Snapshots and clones have the external origin of their volume, without being told (S3-36).
  U3  A volume that a transaction is being published of, or that has snapshots, is deleted only when that is said.

Failures: NotFoundError, ConflictError (name taken, in use, too many races), NoSpaceError, UsageError.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from uuid import UUID, uuid4

from replicator.errors import ConflictError, NotFoundError, ReplicatorError
from replicator.history.names import check_name
from replicator.pool.catalogue_schema import (
    DEV_ID_LIMIT,
    Cut,
    LoggedPoint,
    Origin,
    Position,
    Prepared,
    Purpose,
    Role,
    Snapshot,
    Volume,
)
from replicator.pool.changes import Change, End, EndBelow, Put
from replicator.pool.interface import DeviceFacts, Pool, StaleSwitchError, Switch
from replicator.pool.view import CatalogueView

TRIES_LIMIT = 1000
"""Races lost in a row before somebody must be switching in a loop; each round one of the rivals goes on."""

_NAMED = 8


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
        volume = replace(made, dev_id=free_dev_id(view, pool.facts(())))
        return Switch(create=(volume.dev_id,), changes=(Put(volume),)), volume

    return switched(pool, plan)


def create_snapshot(pool: Pool, volume: str | UUID, name: str, *, labels: tuple[str, ...] = ()) -> Snapshot:
    """A user's snapshot of a volume, as it is at an instant of this call."""
    check_name(name)

    def plan(view: CatalogueView) -> tuple[Switch, Snapshot]:
        source = view.volume(volume)
        _require_free_name(view, name)
        dev_id = free_dev_id(view, pool.facts(()))
        made = Snapshot(
            dev_id, source.uuid, Purpose.USER, time.time_ns(), source.size_bytes, labels=labels, name=name
        )
        return Switch(snapshot=((dev_id, source.dev_id),), changes=(Put(made),)), made

    return switched(pool, plan)


def clone(pool: Pool, source: str | UUID | int, name: str) -> Volume:
    """A new, writable volume from a volume, a user's snapshot (by name) or any snapshot (by dev_id)."""
    uuid, created_ns = uuid4(), time.time_ns()

    def plan(view: CatalogueView) -> tuple[Switch, Volume]:
        dev_id, size_bytes, origin = _source(view, source)
        _require_free_name(view, name)
        made = Volume(uuid, name, free_dev_id(view, pool.facts(())), size_bytes, created_ns, origin)
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
        dev_id = free_dev_id(view, pool.facts(()))
        after = replace(before, dev_id=dev_id, size_bytes=target.size_bytes)
        hidden = _hidden(before)
        return Switch(snapshot=((dev_id, target.dev_id),), changes=(Put(after), Put(hidden))), after

    made = switched(pool, plan)
    sweep_hidden(pool)
    return made


def resize(pool: Pool, volume: str | UUID, size_bytes: int) -> int:
    """Another size for a volume, live or not; returns the transaction id."""
    return pool.resize(pool.view().volume(volume).uuid, size_bytes)


def delete_volume(pool: Pool, volume: str | UUID, *, with_snapshots: bool = False, while_published: bool = False) -> None:
    """Delete a volume; its names are gone at once, its space comes back as soon as nobody reads it (U3)."""

    def plan(view: CatalogueView) -> tuple[Switch, None]:
        row = view.volume(volume)
        snapshots = view.snapshots_of(row.uuid, hidden=True)
        _refuse_dependents(view, row, snapshots, with_snapshots, while_published)
        gone: list[Change] = [End(Volume, (row.uuid,)), Put(_hidden(row))]
        gone += [Put(replace(each, hidden=True, name="")) for each in snapshots]
        gone += [End(Position, (row.uuid, role)) for role in Role if view.position(row.uuid, role) is not None]
        gone += [EndBelow(LoggedPoint, (row.uuid,), 1 << 31)]
        if view.prepared_of(row.uuid) is not None:
            gone.append(End(Prepared, (row.uuid,)))
        return Switch(changes=tuple(gone)), None

    switched(pool, plan)
    sweep_hidden(pool)


def delete_snapshot(pool: Pool, snapshot: str | int) -> None:
    """Delete a user's snapshot (by name) or any other (by dev_id)."""

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
            gone = Switch(delete=(row.dev_id,), changes=(End(Snapshot, (row.dev_id,)),))
            with contextlib.suppress(ConflictError, NotFoundError):  # being read; or another client swept it
                pool.switch(gone)
                swept += 1
    return swept


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
