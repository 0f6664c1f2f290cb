"""A pool on which somebody else does something between one's looking and one's acting; dev_ids that are given again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from replicator.pool.catalogue_schema import Purpose, Snapshot
from replicator.pool.changes import End, Put
from replicator.pool.interface import Pool, Switch


class _Rival:
    def __init__(self, pool: Pool, method: str, act: Callable[[], object]) -> None:
        self._pool, self._method, self._act = pool, method, act
        self._done = False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._pool, name)
        if name != self._method or self._done:
            return found

        def late(*arguments: Any, **named: Any) -> Any:
            if not self._done:
                self._done = True
                self._act()
            return found(*arguments, **named)

        return late


def rivalled(pool: Pool, method: str, act: Callable[[], object]) -> Pool:
    """`pool`, on which `act` is done just before the first call of `method` ("switch", "lease")."""
    return cast("Pool", _Rival(pool, method, act))


def given_again(pool: Pool, row: Snapshot, volume: str, name: str) -> Snapshot:
    """The snapshot goes with its device, whose id a user's snapshot `name` of `volume` gets."""
    pool.switch(Switch(changes=(End(Snapshot, (row.dev_id,)),), delete=(row.dev_id,)))
    origin = pool.view().volume(volume)
    made = Snapshot(row.dev_id, origin.uuid, Purpose.USER, row.timestamp_ns + 1, origin.size_bytes, name=name)
    pool.switch(Switch(snapshot=((made.dev_id, origin.dev_id),), changes=(Put(made),)))
    return made
