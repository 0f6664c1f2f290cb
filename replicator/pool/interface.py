"""What everybody may ask of a pool, wherever it is open: in this process (pool/local) or in another (pool/remote).

The seam between the pool's one owner and those who cut, publish, apply, restore and list. Small, since a change of
the pool is a value: devices to make, share, fill and drop, and catalogue rows, all in one switch of the superblock.

    view      what is in the pool, as of its newest transaction id
    switch    one atomic change, N → N + 1; with `expected_id` it is a compare-and-swap, whose loser reads again
    cut       snapshots of live volumes at one instant, durable when it returns (P3, P4)
    lease     roots to read beside the owner; neither deleted nor rewritten while the lease stands
    reserve   data blocks for a client that writes them itself, given back when its connection ends

No data travels here: clients read and write the data device themselves (`PoolReader`).

Invariants
  I1  `switch` and `cut` return when the change is durable; an error other than UnavailableError says that nothing of
      it was done. After UnavailableError the client asks `view`: each switch carries rows that its sender knows again.
  I2  A cut asked for twice with one id is made once; the second answer equals the first.
  I3  What a lease covers is neither deleted nor rewritten; a read is void when the lease's connection fell meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from uuid import UUID

import numpy as np

from replicator.errors import ConflictError
from replicator.history.points import Consistency
from replicator.pdata.block import Words
from replicator.pool.catalogue_schema import LoggedPoint, Prepared, Purpose
from replicator.pool.changes import Change
from replicator.pool.view import CatalogueView

_NONE: Words = np.empty(0, dtype=np.uint64)


class StaleSwitchError(ConflictError):
    """The pool's transaction id isn't the expected one any more: somebody else's switch came first. Read again."""


@dataclass(frozen=True, slots=True)
class Filling:
    """Mappings for one thin device that isn't open for writing: first `unmapped` (n, 2) ranges, then the mappings.

    `virtual_blocks` ascending and distinct; `data_blocks` reserved before, and written whole.
    """

    dev_id: int
    virtual_blocks: Words = field(default_factory=lambda: _NONE)
    data_blocks: Words = field(default_factory=lambda: _NONE)
    unmapped: Words = field(default_factory=lambda: _NONE.reshape(0, 2))


@dataclass(frozen=True, slots=True)
class Switch:
    """One atomic change of the pool: create, fill and snapshot, delete, grow; with `changes`.

    `snapshot` holds (new dev_id, origin dev_id); an origin that is open for writing is cut like a live volume. A
    snapshot equals what the switch makes of its origin: an origin is filled before its snapshots are made, in their
    order, and they are filled afterwards.
    `grow_data_blocks`, `grow_metadata_blocks`: new totals, 0 = as it is.
    """

    changes: tuple[Change, ...] = ()
    create: tuple[int, ...] = ()
    snapshot: tuple[tuple[int, int], ...] = ()
    fill: tuple[Filling, ...] = ()
    delete: tuple[int, ...] = ()
    expected_id: int | None = None
    grow_data_blocks: int = 0
    grow_metadata_blocks: int = 0


@dataclass(frozen=True, slots=True)
class CutRequest:
    """Snapshots of these volumes at one instant; each becomes a Snapshot row of `purpose` with `labels`.

    `unless_equal` (dev_ids, one a volume): when no volume changed since those snapshots, nothing is made, and the
    answer names them: the instant of the answer is then one at which they still were what the volumes are.
    `prepared` (one a volume, or none): rows that the same switch puts, with the cut's dev_id, timestamp and size.
    """

    cut_id: UUID
    volumes: tuple[UUID, ...]
    purpose: Purpose = Purpose.TARGET
    labels: tuple[str, ...] = ()
    consistency: Consistency = Consistency.CRASH
    name: str = ""
    unless_equal: tuple[int, ...] = ()
    prepared: tuple[Prepared, ...] = ()


@dataclass(frozen=True, slots=True)
class CutMade:
    """The snapshots, in the order of the request's volumes; `made` False: nothing had changed (`unless_equal`)."""

    cut_id: UUID
    dev_ids: tuple[int, ...]
    timestamp_ns: int
    transaction_id: int
    made: bool = True


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """One thin device as its metadata has it."""

    dev_id: int
    root: int
    mapped_blocks: int
    transaction_id: int
    creation_time: int
    snapshotted_time: int


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """How a pool is doing: the numbers of dm-thin's status line, and what the engine knows besides.

    `deleting_blocks`: mappings of deleted devices that are still to go, of `deleting_total_blocks` that they had; their
    space comes back as they go. `next_dev_id` is where to look for a free id first.
    """

    uuid: UUID
    transaction_id: int
    time: int
    block_bytes: int
    data_blocks: int
    data_free_blocks: int
    metadata_blocks: int
    metadata_free_blocks: int
    held_root: int
    dirty_count: int
    commit_count: int
    last_pause_s: float
    failed: str | None = None
    owner_pid: int = 0
    replayed: int = 0
    low_water_blocks: int = 0
    deleting_devices: int = 0
    deleting_blocks: int = 0
    deleting_total_blocks: int = 0
    next_dev_id: int = 1


class Lease(Protocol):
    """Devices that stay as they are while it stands; `release` (or the end of the connection) ends it."""

    @property
    def devices(self) -> dict[int, DeviceFacts]: ...

    @property
    def stands(self) -> bool:
        """Whether what was read under it may still be used (I3)."""

    def release(self) -> None: ...


class Pool(Protocol):
    """A pool, open for writing here or elsewhere; every method may be called from any thread."""

    @property
    def path(self) -> Path: ...

    @property
    def block_bytes(self) -> int: ...

    def status(self) -> PoolStatus: ...

    def view(self) -> CatalogueView:
        """The catalogue as of the newest transaction id."""

    def points(self, volume: UUID, limit: int, timeline: int | None = None) -> list[LoggedPoint]:
        """The newest `limit` restore points of the volume that the log has, oldest first."""

    def facts(self, dev_ids: Sequence[int]) -> dict[int, DeviceFacts]:
        """The devices that there are, of those asked for (all, when none is named); committed state."""

    def switch(self, switch: Switch) -> int:
        """Make one atomic change durable; the new transaction id. StaleSwitchError, NotFoundError, NoSpaceError."""

    def cut(self, request: CutRequest) -> CutMade:
        """Snapshots of live volumes, durable when it returns (I2)."""

    def lease(self, dev_ids: Sequence[int]) -> AbstractContextManager[Lease]:
        """Hold these devices; NotFoundError if one isn't there (any more), ConflictError if one is open for writing."""

    def reserve(self, count: int) -> Words:
        """`count` free data blocks to write to (while holding `writers`, shared); NoSpaceError with none reserved."""

    def give_back(self, blocks: Words) -> None:
        """Reserved blocks that no Filling will name."""

    def resize(self, volume: UUID, size_bytes: int) -> int:
        """Grow or shrink a volume, also a live one; beyond the new end nothing is left. Returns the transaction id."""

    def set_metadata_snapshot(self, held: bool) -> int:
        """Reserve (True) or release the metadata snapshot; returns the held root's block (0 = none)."""

    def flush(self) -> None:
        """Commit what live volumes have dirty."""

    def close(self) -> None: ...
