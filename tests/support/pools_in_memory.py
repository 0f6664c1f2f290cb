"""A pool for readers of restore points: snapshots that are bytes, a catalogue view of rows, leases that are counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

from replicator._buffer import Buffer
from replicator.blockdev.interface import BlockDevice
from replicator.errors import NotFoundError
from replicator.pool.catalogue_schema import (
    Branch,
    LoggedGroup,
    LoggedPoint,
    PoolIdentity,
    Purpose,
    Setting,
    Snapshot,
    Volume,
)
from replicator.pool.interface import DeviceFacts, Lease
from replicator.pool.view import CatalogueView
from replicator.units import CHUNK_BYTES


class BytesDisk:
    """Bytes as a base: chunks of zeros are holes."""

    origin: BlockDevice | None = None

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def size_bytes(self) -> int:
        """Its length."""
        return len(self.data)

    def pread_into(self, target: Buffer, offset_bytes: int) -> None:
        """Fill `target`."""
        view = memoryview(target)
        view[:] = self.data[offset_bytes : offset_bytes + len(view)]

    def runs(self, offset_bytes: int, length_bytes: int) -> Iterator[tuple[int, int, int]]:
        """A piece a chunk."""
        at, end = offset_bytes, offset_bytes + length_bytes
        while at < end:
            last = min(end, (at // CHUNK_BYTES + 1) * CHUNK_BYTES)
            yield at, last - at, at if any(self.data[at:last]) else -1
            at = last


@dataclass(slots=True)
class HeldLease:
    """A lease that is counted."""

    devices: dict[int, DeviceFacts]
    stands: bool = True

    def release(self) -> None:
        """End it."""
        self.stands = False


@dataclass(slots=True)
class MemoryPool:
    """A ReadPool: `disks` by dev_id, rows as they are put."""

    volume: UUID
    name: str = "disk-1"
    disks: dict[int, bytes] = field(default_factory=dict)
    snapshots: list[Snapshot] = field(default_factory=list)
    logged: list[LoggedPoint] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    leased: int = 0
    closed: bool = False

    def keep(self, snapshot: Snapshot, data: bytes) -> None:
        """One more snapshot."""
        self.snapshots.append(snapshot)
        self.disks[snapshot.dev_id] = data

    def view(self) -> CatalogueView:
        """The rows."""
        identity = PoolIdentity(UUID(int=1), 0)
        return CatalogueView(
            1,
            {
                PoolIdentity: {(identity.uuid,): identity},
                Volume: {(self.volume,): Volume(self.volume, self.name, 1, 1 << 20, 0)},
                Snapshot: {(each.dev_id,): each for each in self.snapshots},
                Branch: {(each.volume, each.timeline): each for each in self.branches},
                Setting: {(name,): Setting(name, value) for name, value in self.settings.items()},
            },
        )

    def points(self, volume: UUID) -> list[LoggedPoint]:
        """What it remembers of the log."""
        return [each for each in self.logged if each.volume == volume]

    def groups(self) -> list[LoggedGroup]:
        """It knows of none."""
        return []

    @contextmanager
    def lease(self, dev_ids: Sequence[int]) -> Iterator[Lease]:
        """Hold them."""
        for dev_id in dev_ids:
            if dev_id not in self.disks:
                raise NotFoundError(f"the pool has no thin device {dev_id} (any more)")
        self.leased += 1
        try:
            yield HeldLease({dev_id: DeviceFacts(dev_id, 1, 0, 0, 0, 0) for dev_id in dev_ids})
        finally:
            self.leased -= 1

    def disk(
        self, dev_id: int, size_bytes: int, origin: BlockDevice | None = None, *, lease: Lease | None = None
    ) -> BytesDisk:
        """One of them."""
        assert lease is None or dev_id in lease.devices
        return BytesDisk(self.disks[dev_id][:size_bytes])

    def close(self) -> None:
        """It is closed."""
        self.closed = True


def point_snapshot(dev_id: int, point: LoggedPoint, purpose: Purpose = Purpose.POINT) -> Snapshot:
    """The row of a snapshot that materialises `point`."""
    return Snapshot(
        dev_id, point.volume, purpose, point.timestamp_ns, point.size_bytes, point.timeline, point.number,
        labels=point.labels, digest=point.digest,
    )  # fmt: skip
