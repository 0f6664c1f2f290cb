"""Serving disks that nobody writes: a restore point, a snapshot on a lease, in a process that owns no pool.

Beside fronts, which serves a pool that is open here. What the server's loop asks of a thin device and its engine is
answered for any disk that can be read: no block is ever taken for cached, so each request goes to a worker.

    asked of                      answered
    table, engine.data            nothing is loaded, no descriptor: the loop hands every read to a worker
    stretch (BLOCK_STATUS)        from the disk's runs, 64 KiB a block
    engine.flush                  done: nothing is ever dirty
    engine.gate                   one of its own

Invariants
  S1  A disk is offered read-only; no write reaches it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from replicator._buffer import Buffer
from replicator.exporter.exports import Export, Exports
from replicator.exporter.listener import NbdServer, ServerSettings
from replicator.thin.device import ThinDevice
from replicator.thin.gate import Gate
from replicator.thin.table import DEFAULT_LIMIT, SHARED, STAMP_BITS, STRETCH_BLOCKS
from replicator.units import CHUNK_BYTES

if TYPE_CHECKING:
    from replicator.thin.engine import Engine

_MAPPED = np.uint64(1 << STAMP_BITS | SHARED)
_HOLE = 1  # NBD's STATE_HOLE, in what `runs` says


class StillDisk(Protocol):
    """A disk to be read, such as repository/point's; any thread may read."""

    @property
    def name(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...

    def pread_into(self, target: Buffer, offset_bytes: int) -> None: ...

    def runs(self, offset_bytes: int, length_bytes: int) -> Iterator[tuple[int, int, int]]:
        """(offset, length, NBD's flags of base:allocation), consecutive."""


class _NoData:
    """The data device of who has none."""

    def fileno(self) -> int:
        """No descriptor: the loop reads nothing itself."""
        return -1


class _Bounds:
    table_stretches = DEFAULT_LIMIT


class StillEngine:
    """What is asked of an engine by those who only read."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.data = _NoData()
        self.settings = _Bounds()
        self.block_bytes = CHUNK_BYTES
        self.failed: str | None = None

    def flush(self, done: Callable[[str | None], None]) -> None:
        """Nothing is dirty."""
        done(None)

    def has_room(self, count: int) -> bool:
        """Nothing is written."""
        return False


class StillDevice(ThinDevice):
    """A disk in the shape of a thin device; see the module's table."""

    def __init__(self, engine: StillEngine, disk: StillDisk) -> None:
        super().__init__(cast("Engine", engine), 0, disk.size_bytes, read_only=True)
        self._disk = disk

    @property
    def name(self) -> str:
        return self._disk.name

    def stretch(self, index: int) -> memoryview:
        """Which blocks hold data; made anew each time, since only BLOCK_STATUS asks."""
        entries = np.zeros(STRETCH_BLOCKS, dtype=np.uint64)
        first = index * STRETCH_BLOCKS * CHUNK_BYTES
        length = min(STRETCH_BLOCKS * CHUNK_BYTES, self.size_bytes - first)
        for offset, run_bytes, flags in self._disk.runs(first, length):
            if not flags & _HOLE:
                low = (offset - first) // CHUNK_BYTES
                entries[low : -(-(offset - first + run_bytes) // CHUNK_BYTES)] = _MAPPED
        return entries.data

    def runs(self, offset_bytes: int, length_bytes: int) -> Iterator[tuple[int, int, int]]:
        """One piece that lies nowhere: there is no descriptor to read ahead from."""
        yield offset_bytes, length_bytes, -1

    def pread_into(self, target: Buffer, offset_bytes: int) -> None:
        """Fill `target` from the disk."""
        self._check(offset_bytes, len(target))
        self._disk.pread_into(target, offset_bytes)


def point_export(disk: StillDisk, engine: StillEngine) -> Export:
    """The read-only export of `disk`; all exports of a server have one engine."""
    return Export(StillDevice(engine, disk), read_only=True, description=disk.name)


def still_server(disks: Mapping[str, StillDisk], settings: ServerSettings | None = None) -> NbdServer:
    """A server of these disks by name, which listens nowhere yet."""
    engine, exports = StillEngine(), Exports()
    for name, disk in disks.items():
        exports.put(name, point_export(disk, engine))
    return NbdServer(engine.gate, exports, settings)
