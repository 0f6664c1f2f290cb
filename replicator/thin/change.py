"""A change of the pool on its way through one commit: made by who manages it (pool/local), carried out by thin/engine.

Apart from the engine, so that those who make changes, and those who test them, need no more than this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from replicator.thin.metadata import PoolMetadata


@dataclass(slots=True)
class Change:
    """One change of the pool that waits for its commit.

    `prepare(metadata)` runs before anything is changed, and again right before `apply`, under the same lock, since what
    it looks at may have changed meanwhile; it may refuse (raise). `apply(metadata)` runs in the same commit as the cut
    of `cut_devices`, all at the one instant `cut_at_ns`; where it raises, nothing of it was done. `deletes`: it frees
    room, or adds some, so it may use what is kept for that (P8). `weight`: how much `apply` maps and unmaps
    (pdata/room), and `fills` in which devices; `room_blocks`: metadata blocks that the pool needs beyond what it needs
    now.
    """

    apply: Callable[[PoolMetadata], Any]
    prepare: Callable[[PoolMetadata], None] | None = None
    cut_devices: Sequence[int] = ()
    deletes: bool = False
    weight: int = 0
    fills: Sequence[int] = ()
    room_blocks: int = 0
    done: Future[Any] = field(default_factory=Future)
    cut_at_ns: int = 0
