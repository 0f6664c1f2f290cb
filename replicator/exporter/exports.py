"""The exports of one server: which names clients may open, and the thin device behind each.

Filled by whoever manages the pool (volumes, snapshots, leased points), asked by the handshake of each connection.

    Export     a name's thin device, what the client is told of it, and the snapshots to compare with
    Exports    the registry: names come, go and are replaced while clients are served

A client keeps what it opened until it disconnects, or until `remove` or `put` of another device closes its connection.
The length is the device's own, read with each batch: a live resize needs nothing here.

Invariants
  N1  What a handshake found is what its connection is counted for: no connection outlives the `remove` of its export
      by more than the requests in flight.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, TypeAlias

from replicator.nbd.export import Export as Offer
from replicator.nbd.export import preferred_size
from replicator.pdata.block import Words
from replicator.thin.device import ThinDevice

ChangedRuns: TypeAlias = Callable[[int, int], Words]
"""(first virtual block, one behind the last) → what changed there: (n, 2) half-open runs, ascending and disjoint."""


@dataclass(frozen=True, slots=True)
class Export:
    """What stands behind one name. `changed_since` holds, by snapshot, what `replicator:changed:SNAPSHOT` asks."""

    device: ThinDevice
    read_only: bool = False
    description: str = ""
    changed_since: Mapping[str, ChangedRuns] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def refuses_writes(self) -> bool:
        """Whether clients are told that they can't write."""
        return self.read_only or self.device.read_only

    def offer(self, name: str) -> Offer:
        """What the handshake tells about it, as it is now."""
        return Offer(
            name,
            self.device.size_bytes,
            read_only=self.refuses_writes,
            description=self.description,
            preferred_bytes=preferred_size(self.device.block_bytes),
            snapshots=tuple(self.changed_since),
        )


class User(Protocol):
    """A connection that has an export open."""

    @property
    def peer(self) -> str:
        """Who is at its other end, for people."""

    def stop(self) -> None:
        """Take no more requests; those in flight are answered."""


class Exports:
    """Exports by name. `default` is what the empty name opens; without it, the only one there is."""

    def __init__(self, default: str | None = None) -> None:
        self._default = default
        self._lock = threading.Condition()
        self._exports: dict[str, Export] = {}
        self._users: dict[str, set[User]] = {}

    def put(self, name: str, export: Export) -> None:
        """Offer `export` under `name`; connections to another device of that name are closed."""
        export.offer(name)
        with self._lock:
            before = self._exports.get(name)
            self._exports[name] = export
            left = self._users.pop(name, set()) if before and before.device is not export.device else set()
        for user in left:
            user.stop()

    def remove(self, name: str) -> bool:
        """Offer it no more, and close its connections; whether it was there (N1)."""
        with self._lock:
            found = self._exports.pop(name, None)
            left = self._users.pop(name, set())
        for user in left:
            user.stop()
        return found is not None

    def remove_unused(self, name: str, wait_s: float) -> list[str]:
        """Offer it no more, unless somebody has it open, still after `wait_s`: who. Nobody is disturbed."""
        with self._lock:
            if not self._lock.wait_for(lambda: not self._users.get(name), wait_s):
                return [user.peer for user in self._users[name]]
            self._exports.pop(name, None)
        return []

    def users(self, name: str) -> list[str]:
        """Who has it open."""
        with self._lock:
            return [user.peer for user in self._users.get(name, ())]

    def lookup(self, name: str) -> Export | None:
        """What stands behind a name."""
        with self._lock:
            return self._exports.get(name)

    def list(self) -> dict[str, Export]:
        """All of them, by name, in the order in which they came."""
        with self._lock:
            return dict(self._exports)

    # -- for the handshake (replicator.nbd.export.Exports) -----------------------------------------------------

    def listed(self) -> Sequence[Offer]:
        """All that OPT_LIST shows."""
        return [export.offer(name) for name, export in self.list().items()]

    def find(self, name: str) -> Offer | None:
        """The offer of that name, "" being the default one."""
        with self._lock:
            if name == "":
                only = next(iter(self._exports)) if len(self._exports) == 1 else ""
                name = only if self._default is None else self._default
            export = self._exports.get(name)
        return None if export is None else export.offer(name)

    # -- for connections ---------------------------------------------------------------------------------------

    def enter(self, name: str, user: User) -> Export | None:
        """What stands behind a name, for `user`, which is stopped when it goes; None if it is gone already."""
        with self._lock:
            found = self._exports.get(name)
            if found is not None:
                self._users.setdefault(name, set()).add(user)
            return found

    def leave(self, name: str, user: User) -> None:
        """The connection is over."""
        with self._lock:
            users = self._users.get(name, set())
            users.discard(user)
            if not users:
                self._users.pop(name, None)
                self._lock.notify_all()
