"""A change of the pool on its way through one commit: made by who manages it (pool/local), carried out by thin/engine.

Apart from the engine, so that those who make changes, and those who test them, need no more than this.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from replicator.thin.metadata import PoolMetadata

OVERTAKEN = 8  # changes in a row that may go before one that lets others pass: it is late then, but never starves


@dataclass(slots=True)
class Change:
    """One change of the pool that waits for its commit.

    `prepare(metadata)` runs before anything is changed, and again right before `apply`, under the same lock, since what
    it looks at may have changed meanwhile; it may refuse (raise). `apply(metadata)` runs in the same commit as the cut
    of `cut_devices`, all at the one instant `cut_at_ns`; where it raises, nothing of it was done. `deletes`: it frees
    room, or adds some, so it may use what is kept for that (P8). `weight`: how much `apply` maps and unmaps
    (pdata/room), and `fills` in which devices; `room_blocks`: metadata blocks that the pool needs beyond what it needs
    now. `waits`: it lets others pass.
    """

    apply: Callable[[PoolMetadata], Any]
    prepare: Callable[[PoolMetadata], None] | None = None
    cut_devices: Sequence[int] = ()
    deletes: bool = False
    weight: int = 0
    fills: Sequence[int] = ()
    room_blocks: int = 0
    waits: bool = False
    done: Future[Any] = field(default_factory=Future)
    cut_at_ns: int = 0


class ChangeQueue:
    """The changes that wait for a commit of their own: in their order, those that let others pass behind the others."""

    def __init__(self) -> None:
        self._changes: deque[Change] = deque()
        self._patient: deque[Change] = deque()
        self._overtook = 0

    def __len__(self) -> int:
        return len(self._changes) + len(self._patient)

    def append(self, change: Change) -> None:
        """One more."""
        (self._patient if change.waits else self._changes).append(change)

    def pop(self) -> Change | None:
        """The next one, or None."""
        if self._patient and (not self._changes or self._overtook >= OVERTAKEN):
            self._overtook = 0
            return self._patient.popleft()
        if not self._changes:
            return None
        self._overtook += bool(self._patient)
        return self._changes.popleft()
