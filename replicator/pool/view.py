"""A pool's catalogue as of one transaction id: what every reader and the owner itself look things up in.

Made by Catalogue.view from SQLite, or by `after` from the view before: the owner evolves its own, and doesn't read
back what it has just written. Logged points aren't in it (there may be millions): Catalogue.points reads them.

Invariants
  M1  view(N).after(changes, N + 1) equals view(N + 1) once those changes were staged.
  M2  A view never changes; who holds one holds a consistent past.
  M3  A snapshot is known again by its volume and its instant: dev_ids are given again.

Failures: NotFoundError (names what there is), ConflictError (a name that two volumes have).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import UUID

from replicator.errors import ConflictError, NotFoundError
from replicator.history.resolve import NamedVolume, resolve_volume
from replicator.pool.catalogue_schema import (
    Branch,
    Cut,
    PoolIdentity,
    Position,
    Prepared,
    Purpose,
    Role,
    Setting,
    Snapshot,
    Volume,
)
from replicator.pool.changes import Change, End, Put

if TYPE_CHECKING:
    from replicator.history.lineage import Lineage

_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True)
class CatalogueView:
    """All rows of the whole tables that are valid at `at_id`, by class and key."""

    at_id: int
    rows: Mapping[type, Mapping[tuple[Any, ...], Any]]

    @property
    def pool(self) -> PoolIdentity:
        """Whose catalogue this is."""
        (identity,) = self._all(PoolIdentity)
        return identity

    @property
    def volumes(self) -> list[Volume]:
        """By name."""
        return sorted(self._all(Volume), key=lambda each: each.name)

    @property
    def snapshots(self) -> list[Snapshot]:
        """Every one, hidden ones too, by dev_id."""
        return sorted(self._all(Snapshot), key=lambda each: each.dev_id)

    @property
    def prepared(self) -> list[Prepared]:
        """Transactions that may be in the log in part."""
        return self._all(Prepared)

    @property
    def cuts(self) -> list[Cut]:
        """Cuts whose clients haven't dropped their ids yet, oldest first."""
        return sorted(self._all(Cut), key=lambda each: each.timestamp_ns)

    def volume(self, wanted: str | UUID) -> Volume:
        """The volume of this name or UUID; NotFoundError names those there are."""
        named = [NamedVolume(each.uuid, each.name) for each in self._all(Volume)]
        found = self._find(Volume, resolve_volume(str(wanted), named).uuid)
        assert found is not None
        return found

    def snapshot(self, dev_id: int) -> Snapshot:
        """The snapshot that is this thin device."""
        found = self._find(Snapshot, dev_id)
        if found is None:
            raise NotFoundError(f"no snapshot is the thin device {dev_id}")
        return found

    def still(self, row: Snapshot) -> Snapshot:
        """The snapshot that `row` was in another view, as it is in this one; NotFoundError where it went (M3)."""
        found = self._find(Snapshot, row.dev_id)
        if found is None or (found.volume, found.timestamp_ns) != (row.volume, row.timestamp_ns):
            raise NotFoundError(f"the snapshot {row.name or row.dev_id} was deleted meanwhile")
        return found

    def snapshot_named(self, name: str) -> Snapshot | None:
        """The user's snapshot of this name, if there is one."""
        found = [each for each in self._all(Snapshot) if each.name == name and not each.hidden]
        if len(found) > 1:
            raise ConflictError(f"{len(found)} snapshots are named {name!r}", mend="delete one by its number")
        return found[0] if found else None

    def snapshots_of(self, volume: UUID, *purposes: Purpose, hidden: bool = False) -> list[Snapshot]:
        """A volume's snapshots (of these purposes, or all), by transaction; hidden ones only when asked for."""
        found = [
            each
            for each in self._all(Snapshot)
            if each.volume == volume and (not purposes or each.purpose in purposes) and each.hidden <= hidden
        ]
        return sorted(found, key=lambda each: (each.number, each.timestamp_ns, each.dev_id))

    def position(self, volume: UUID, role: Role) -> Position | None:
        """How far the volume is published or applied; None before the first transaction."""
        return self._find(Position, volume, role)

    def prepared_of(self, volume: UUID) -> Prepared | None:
        """The volume's transaction that may be in the log in part."""
        return self._find(Prepared, volume)

    def cut(self, cut_id: UUID) -> Cut | None:
        """What the cut of this id made, if it was made."""
        return self._find(Cut, cut_id)

    @property
    def settings(self) -> list[Setting]:
        """Every policy and mark of the pool."""
        return self._all(Setting)

    def setting(self, name: str, default: str = "") -> str:
        """The setting's text, or `default`."""
        found = self._find(Setting, name)
        return default if found is None else found.value

    def lineage(self, volume: UUID) -> Lineage:
        """The volume's timelines."""
        from replicator.history.lineage import Lineage, Timeline  # as much again as all of this room, seldom needed

        forks = [Timeline(b.timeline, b.parent, b.forked_at) for b in self._all(Branch) if b.volume == volume]
        return Lineage((Timeline(1), *sorted(forks, key=lambda each: each.number)))

    def after(self, changes: Iterable[Change], next_id: int) -> CatalogueView:
        """The view that `changes`, staged as `next_id`, make of this one (M1)."""
        assert next_id == self.at_id + 1
        rows: dict[type, dict[tuple[Any, ...], Any]] = {}
        for change in changes:
            table = change.table
            if not table.whole:
                continue
            held = rows.setdefault(table.value_type, dict(self.rows.get(table.value_type, {})))
            if isinstance(change, Put):
                held[table.key_of(change.value)] = change.value
            elif isinstance(change, End):
                if held.pop(change.key, None) is None:
                    raise NotFoundError(f"there is no row {change.key!r} in {table.name} to end")
            else:
                length = len(change.prefix)
                for key in [k for k in held if k[:length] == change.prefix and k[length] < change.limit]:
                    del held[key]
        return CatalogueView(next_id, {**self.rows, **rows})

    def _all(self, value_type: type[_Row]) -> list[_Row]:
        return cast("list[_Row]", list(self.rows.get(value_type, {}).values()))

    def _find(self, value_type: type[_Row], *key: Any) -> _Row | None:
        return cast("_Row | None", self.rows.get(value_type, {}).get(key))
