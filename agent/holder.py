"""The pool's connection of a daemon: made when somebody needs it, let go of when it fell, made again by the next.

For any thread; between daemon (which says how to connect) and its workers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from replicator.pool.interface import Pool


class PoolHolder:
    """The pool, connected when somebody needs it; `lose` lets go of a connection that fell."""

    def __init__(self, connect: Callable[[], Pool]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._pool: Pool | None = None

    def get(self) -> Pool:
        """The pool; UnavailableError while there is none."""
        with self._lock:
            if self._pool is None:
                self._pool = self._connect()
            return self._pool

    def known(self) -> Pool | None:
        """The pool, if it is connected."""
        return self._pool

    def lose(self) -> None:
        """The connection fell."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()
