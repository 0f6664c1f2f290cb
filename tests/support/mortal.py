"""A pool and a data device whose n-th call is the process's last: it dies before the call, or right after it.

Once dead, every later call dies too: what a real process would have done in its `finally` blocks isn't done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from receiver.disks import Disks
from replicator.blockdev.interface import BlockDevice
from replicator.pool.interface import Pool

POOL_CALLS = frozenset({"switch", "reserve", "give_back", "lease", "status", "view", "points", "facts"})
DISK_CALLS = frozenset({"pwrite", "pwritev", "pread_into"})


class KilledError(BaseException):
    """The process is dead: nothing catches it."""


class Death:
    """Comes at call `at` (from 1), before it or after it; `at` beyond the last call: never."""

    def __init__(self, at: int, *, after: bool) -> None:
        self._at, self._after = at, after
        self.calls = 0
        self.came = False

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, counted."""

        def counted(*arguments: Any, **named: Any) -> Any:
            if self.came:
                raise KilledError
            self.calls += 1
            if self.calls != self._at:
                return call(*arguments, **named)
            if self._after:
                call(*arguments, **named)
            self.came = True
            raise KilledError

        return counted


class _Mortal:
    """Passes everything on; the calls named are counted by `death`."""

    def __init__(self, inner: object, calls: frozenset[str], death: Death) -> None:
        self._inner, self._calls, self._death = inner, calls, death

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return self._death.around(found) if name in self._calls else found


def mortal_pool(pool: Pool, death: Death) -> Pool:
    """`pool`, dying with `death`."""
    return cast("Pool", _Mortal(pool, POOL_CALLS, death))


def mortal_disks(disks: Disks, death: Death) -> Disks:
    """`disks`, dying with `death`."""
    return Disks(disks.metadata, cast("BlockDevice", _Mortal(disks.data, DISK_CALLS, death)), disks.writing)
