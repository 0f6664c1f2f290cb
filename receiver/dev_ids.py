"""Free thin device numbers for all followers of one pool.

The pool refuses a number that it has; two followers of one process never ask for the same.
"""

from __future__ import annotations

import threading

from replicator.errors import NoSpaceError
from replicator.pool.catalogue_schema import DEV_ID_LIMIT
from replicator.pool.interface import Pool


class DevIds:
    """Hands out numbers behind the highest that was ever seen, then around from 1."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._turn = threading.Lock()
        view = pool.view()
        known = [each.dev_id for each in view.volumes] + [each.dev_id for each in view.snapshots]
        self._next = max(known, default=0) + 1

    def take(self) -> int:
        """A number that no thin device has."""
        with self._turn:
            for _ in range(DEV_ID_LIMIT):
                dev_id = self._next % DEV_ID_LIMIT or 1
                self._next = dev_id + 1
                if not self._pool.facts([dev_id]):
                    return dev_id
        raise NoSpaceError("the pool has all thin devices that dm-thin can number", mend="delete snapshots")
