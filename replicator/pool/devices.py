"""Thin devices by the names that people give: volumes, users' snapshots, `thin-ID`; held still while they are read.

For commands that read whole devices (export, diff), beside an owner or without one. A snapshot is read under a lease.
A live volume is cut for it: a hidden snapshot, leased, and dropped at the end on every path.

    dies …                            on disk                          mended by
    before the switch                 what was there                   -
    between the switch and the end    a hidden snapshot, in no list    the next sweep (pool/volumes): its lease is gone

In a foreign pool nothing is cut: nobody writes it while it is read (pool/reading).

Failures: NotFoundError (with the names there are), ConflictError, UnavailableError.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from replicator.errors import ConflictError, NotFoundError, ReplicatorError
from replicator.pdata.node import MAPPING
from replicator.pdata.tree import walk
from replicator.pool.catalogue_schema import Origin, Purpose, Role, Snapshot, Volume
from replicator.pool.changes import Put
from replicator.pool.interface import Lease, Pool, Switch
from replicator.pool.leasing import leased_rows
from replicator.pool.opening import open_pool
from replicator.pool.reader import PoolReader
from replicator.pool.reading import read_beside, read_pool
from replicator.pool.view import CatalogueView
from replicator.pool.volumes import delete_row, free_dev_id, origin_of, sweep_hidden, switched

_THIN = re.compile(r"thin-(\d{1,8})", re.ASCII)
_CUT_TRIES = 16  # somebody's sweep may take the new cut before it is leased; sixteen times in a row is a fault
_HIGHEST = 1 << 63


@dataclass(frozen=True, slots=True)
class Named:
    """What a name stands for: `live`, a volume that may be written, or `snapshot`; neither where no row names it."""

    name: str
    dev_id: int
    size_bytes: int
    origin: Origin | None = None
    live: Volume | None = None
    snapshot: Snapshot | None = None


@dataclass(frozen=True, slots=True)
class Still:
    """A device that stays as it is, under `lease`; `dev_id` is the cut's where it is of a live volume."""

    name: str
    dev_id: int
    size_bytes: int
    origin: Origin | None
    lease: Lease

    @property
    def root(self) -> int:
        """The root of its mapping tree."""
        return self.lease.devices[self.dev_id].root


def find(reader: PoolReader, name: str) -> Named:
    """The volume, snapshot or `thin-ID` of that name; NotFoundError with the names that there are."""
    view = reader.view()
    snapshot = view.snapshot_named(name)
    if snapshot is not None:
        return Named(name, snapshot.dev_id, snapshot.size_bytes, origin_of(view, snapshot), snapshot=snapshot)
    try:
        volume = view.volume(name)
    except NotFoundError:
        found = _THIN.fullmatch(name)
        if found is None or not reader.facts([int(found[1])]):
            raise _unknown(reader, view, name) from None
        return _by_number(reader, view, int(found[1]), name)
    return Named(name, volume.dev_id, volume.size_bytes, volume.origin, volume)


def refuse_replica(view: CatalogueView, volume: Volume) -> None:
    """ConflictError for a volume that follows a log: what is changed here, its next transaction wouldn't fit."""
    if view.position(volume.uuid, Role.APPLIED) is not None:
        raise ConflictError(
            f"{volume.name} is a replica: it follows its log",
            mend=f"change it at its source; or work on a copy: replicator volume clone POOL {volume.name} NAME",
        )


def refuse_renaming_replica(view: CatalogueView, name: str) -> None:
    """The same, where `name` is a volume's: a snapshot of a replica is this pool's own."""
    if view.snapshot_named(name) is None:
        with suppress(NotFoundError):  # whoever renames it tells all the names there are
            refuse_replica(view, view.volume(name))


def _by_number(reader: PoolReader, view: CatalogueView, dev_id: int, name: str) -> Named:
    for volume in view.volumes:
        if volume.dev_id == dev_id:
            return Named(name, dev_id, volume.size_bytes, volume.origin, volume)
    for row in view.snapshots:
        if row.dev_id == dev_id:
            return Named(name, dev_id, row.size_bytes, origin_of(view, row), snapshot=row)
    return Named(name, dev_id, _mapped_end(reader, dev_id))


def _mapped_end(reader: PoolReader, dev_id: int) -> int:
    """Where the highest mapped block ends, since nothing else says how long the device is."""
    with reader.lease([dev_id]) as lease:
        last = 0
        for keys, _ in walk(reader.metadata_store(), lease.devices[dev_id].root, MAPPING, 0, _HIGHEST):
            last = int(keys[-1]) + 1
    return last * reader.block_bytes


def _unknown(reader: PoolReader, view: CatalogueView, name: str) -> NotFoundError:
    names = [each.name for each in view.volumes] + [
        each.name for each in view.snapshots if each.name and not each.hidden
    ]
    known = ", ".join(sorted(names)) or "none"
    return NotFoundError(f"{reader.path} has no volume or snapshot {name!r}; it has: {known}")


@contextmanager
def held_still(path: Path, names: Sequence[str]) -> Iterator[tuple[PoolReader, list[Still]]]:
    """These devices of the pool at `path`, as they are at one instant each, and a reader for them."""
    with ExitStack() as stack:
        reader = stack.enter_context(read_pool(path))
        found = [find(reader, name) for name in names]
        foreign = not (path / "catalog.db").exists()
        if foreign or not any(each.live for each in found):
            lease = stack.enter_context(reader.lease([each.dev_id for each in found]))
            _require_same(reader.view(), found)
            yield reader, [Still(each.name, each.dev_id, each.size_bytes, each.origin, lease) for each in found]
            return
    with ExitStack() as stack:  # the shared lock is let go of first: a cut is a change
        pool = stack.enter_context(closing(open_pool(path)))
        reader = stack.enter_context(read_beside(pool))
        found = [find(reader, name) for name in names]
        sweep_hidden(pool)
        yield reader, [stack.enter_context(_still(pool, each)) for each in found]


@contextmanager
def _still(pool: Pool, named: Named) -> Iterator[Still]:
    if named.live is None:
        with pool.lease([named.dev_id]) as lease:
            _require_same(pool.view(), [named])
            yield Still(named.name, named.dev_id, named.size_bytes, named.origin, lease)
        return
    with _cut(pool, named.live) as (row, lease):
        yield Still(named.name, row.dev_id, row.size_bytes, named.origin, lease)


@contextmanager
def _cut(pool: Pool, volume: Volume) -> Iterator[tuple[Snapshot, Lease]]:
    """A hidden snapshot of a live volume, leased, for as long as the block lasts."""

    def plan(view: CatalogueView) -> tuple[Switch, Snapshot]:
        now = view.volume(volume.uuid)
        row = Snapshot(free_dev_id(pool, view), now.uuid, Purpose.USER, time.time_ns(), now.size_bytes, hidden=True)
        return Switch(snapshot=((row.dev_id, now.dev_id),), changes=(Put(row),)), row

    for _ in range(_CUT_TRIES):
        row = switched(pool, plan)
        try:
            with ExitStack() as held:
                try:
                    lease = held.enter_context(leased_rows(pool, [row]))
                except NotFoundError:
                    continue
                yield row, lease
                return
        finally:
            _drop(pool, row)
    raise ConflictError(f"{_CUT_TRIES} cuts of {volume.name} were swept away by others", mend="try again")


def _require_same(view: CatalogueView, found: Sequence[Named]) -> None:
    """NotFoundError where a snapshot went before its lease, and perhaps another has its id."""
    for each in found:
        if each.snapshot is not None:
            view.still(each.snapshot)


def _drop(pool: Pool, row: Snapshot) -> None:
    with suppress(ReplicatorError):  # whoever sweeps next takes it: nobody leases it any more
        delete_row(pool, row)
