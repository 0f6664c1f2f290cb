"""A pool that is open for reading, and the restore points and groups that its catalogue remembers of the log.

Beneath source; logged points and groups are read from the catalogue itself, since they stand in no view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar
from uuid import UUID

from replicator.blockdev.interface import BlockDevice
from replicator.pool.catalogue import Catalogue, StaleViewError
from replicator.pool.catalogue_schema import LoggedGroup, LoggedPoint
from replicator.pool.interface import Lease
from replicator.pool.reader import PoolReader
from replicator.pool.view import CatalogueView
from replicator.repository.point import BaseDisk

_ALL = -1  # SQLite's limit for "all of them"
_TRIES = 3  # the owner may purge what a view needs between two looks; thrice in a row is no coincidence
_Row = TypeVar("_Row")


class ReadPool(Protocol):
    """What is asked of a pool that is open for reading."""

    def view(self) -> CatalogueView: ...

    def points(self, volume: UUID) -> list[LoggedPoint]: ...

    def groups(self) -> list[LoggedGroup]: ...

    def lease(self, dev_ids: Sequence[int]) -> AbstractContextManager[Lease]: ...

    def disk(
        self, dev_id: int, size_bytes: int, origin: BlockDevice | None = None, *, lease: Lease | None = None
    ) -> BaseDisk: ...

    def close(self) -> None: ...


class CataloguedPool:
    """A pool's reader (pool/reading), and the restore points that its catalogue remembers."""

    def __init__(self, reader: PoolReader) -> None:
        self._reader = reader

    def view(self) -> CatalogueView:
        """What is in the pool now."""
        return self._reader.view()

    def points(self, volume: UUID) -> list[LoggedPoint]:
        """The volume's points that the log has, as the pool remembers it; a pool without a catalogue has none."""
        return self._remembered(lambda catalogue, at_id: catalogue.points(at_id, volume, _ALL))

    def groups(self) -> list[LoggedGroup]:
        """The cuts of groups that the log has, as the pool remembers it."""
        return self._remembered(lambda catalogue, at_id: catalogue.groups(at_id))

    def _remembered(self, ask: Callable[[Catalogue, int], list[_Row]]) -> list[_Row]:
        path = self._reader.path / "catalog.db"
        if not path.exists():
            return []
        with Catalogue(path, read_only=True) as catalogue:
            for _ in range(_TRIES - 1):
                try:
                    return ask(catalogue, self.view().at_id)
                except StaleViewError:
                    continue
            return ask(catalogue, self.view().at_id)

    def lease(self, dev_ids: Sequence[int]) -> AbstractContextManager[Lease]:
        """Hold these devices."""
        return self._reader.lease(dev_ids)

    def disk(
        self, dev_id: int, size_bytes: int, origin: BlockDevice | None = None, *, lease: Lease | None = None
    ) -> BaseDisk:
        """One of them as bytes; a read under a fallen lease is refused by it (pool/reader, D1)."""
        return self._reader.disk(dev_id, size_bytes, origin, lease=lease)

    def close(self) -> None:
        """Close the reader."""
        self._reader.close()
