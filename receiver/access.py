"""The pool of a receiver: connected when it is asked for, dropped when its owner went away, connected again.

One for all threads of a receiver. The devices stay open throughout, since a thread may be inside a read; only the
connection to the owner is replaced.

Invariants
  P1  `current` gives one connection to all, until somebody drops it; a dropped one is closed at once, so that what it
      reserved is the owner's again (whoever still writes holds `writers`: receiver/disks).
  P2  Dropping a connection that was replaced already does nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from receiver.dev_ids import DevIds
from receiver.disks import Disks, open_disks
from replicator.errors import ReplicatorError, UnavailableError
from replicator.pool.interface import Pool


@dataclass(frozen=True, slots=True)
class Access:
    """A connected pool, its devices, and its free numbers."""

    pool: Pool
    disks: Disks
    dev_ids: DevIds


class PoolAccess:
    """Connects by `connect`, opens the devices by `open_devices`; a context manager."""

    def __init__(
        self,
        connect: Callable[[], Pool],
        open_devices: Callable[[Path], AbstractContextManager[Disks]] = open_disks,
    ) -> None:
        self._connect, self._open_devices = connect, open_devices
        self._turn = threading.Lock()
        self._held = ExitStack()
        self._disks: Disks | None = None
        self._access: Access | None = None

    def current(self) -> Access:
        """The pool, connected (P1)."""
        with self._turn:
            if self._access is None:
                pool = self._connect()
                if self._disks is None:
                    self._disks = self._held.enter_context(self._open_devices(pool.path))
                self._access = Access(pool, self._disks, DevIds(pool))
            return self._access

    def known(self) -> Access | None:
        """The pool, if it is connected; never waits for its owner to come."""
        return self._access

    def drop_if_gone(self, access: Access) -> None:
        """Ask the owner whether it is there; let go of it where it isn't (P2)."""
        try:
            access.pool.status()
        except UnavailableError:
            with self._turn:
                if self._access is access:
                    self._access = None
                    with suppress(ReplicatorError):
                        access.pool.close()

    def __enter__(self) -> PoolAccess:
        return self

    def __exit__(self, *_: object) -> None:
        with self._turn:
            access, self._access = self._access, None
            with self._held:
                if access is not None:
                    access.pool.close()
