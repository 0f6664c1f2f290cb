"""Leases on the devices that rows mean: a dev_id may be given again once its snapshot went.

Between whoever looks at the catalogue and `Pool.lease`: what has the id by the time of the lease may be another's.

Invariants
  S1  Under the lease each row's snapshot is the one that was looked at; NotFoundError where one went.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from replicator.pool.catalogue_schema import Snapshot
from replicator.pool.interface import Lease
from replicator.pool.view import CatalogueView


class Leasing(Protocol):
    """What has rows and gives leases: a Pool, or its reader."""

    def view(self) -> CatalogueView: ...

    def lease(self, dev_ids: Sequence[int]) -> AbstractContextManager[Lease]: ...


@contextmanager
def leased_rows(pool: Leasing, rows: Sequence[Snapshot]) -> Iterator[Lease]:
    """Hold the devices of these snapshots, and of none that has their ids now (S1)."""
    with pool.lease([each.dev_id for each in rows]) as lease:
        view = pool.view()
        for row in rows:
            view.still(row)
        yield lease
