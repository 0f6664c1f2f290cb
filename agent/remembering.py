"""Which log a pool is published to, remembered once the two agreed: a mistyped one that is a log isn't.

Between cut, where a volume's stream and its rows turn out to agree, and repository/remembered.

    the pool has                remembered when
    published volumes           one of those agrees with the log; a new volume's stream begins in any log
    none                        the first volume's stream is there

    dies …                      on disk                       what follows
    before it is remembered     the log that was known        the next round of whoever publishes

Invariants
  B1  Restores go on asking the log that was known until another one has shown that it is the pool's.
"""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from replicator.pool.catalogue_schema import Role
from replicator.pool.interface import Pool
from replicator.pool.view import CatalogueView


class Remembering:
    """Of one publisher's life; `agreed` from any of its threads."""

    def __init__(self, view: CatalogueView, remember: Callable[[Pool], None]) -> None:
        self._published = {each.uuid for each in view.volumes if view.position(each.uuid, Role.PUBLISHED) is not None}
        self._remember = remember
        self._is_done = False

    def agreed(self, pool: Pool, volume: UUID) -> None:
        """Pool and log agree on this volume."""
        if not self._is_done and (not self._published or volume in self._published):
            self._remember(pool)
            self._is_done = True
