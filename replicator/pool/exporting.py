"""A thin device out of the pool, into a file or a pipe: only what is mapped is read, only what isn't zeros is written.

`volume export`; the other way is pool/importing. A live volume is read as of one cut of its own (pool/devices).
Memory: one window.

Failures: those of pool/devices, pool/reader, pool/origins and pool/sparse; UsageError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from replicator.errors import UsageError
from replicator.pool.devices import Still, held_still
from replicator.pool.origins import open_origin
from replicator.pool.reader import Disk, PoolReader
from replicator.pool.sparse import SparseFile
from replicator.units import MIB

_WINDOW_BYTES = 4 * MIB
_STEP_BYTES = 256 * MIB  # of the device looked up at once

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: its length, and how much of it the pool (or an external origin) had."""

    name: str
    size_bytes: int
    read_bytes: int


def export_device(
    path: Path,
    name: str,
    target: Path | int,
    *,
    size_bytes: int | None = None,
    progress: Progress = lambda _done, _total: None,
) -> Exported:
    """Copy the volume, snapshot or `thin-ID` out to a file, or a descriptor; `size_bytes`: end there instead.

    A file appears under its name when it is whole, or not at all.
    """
    if size_bytes is not None and size_bytes <= 0:
        raise UsageError("an export has a size above zero")
    with held_still(path, [name]) as (reader, (still,)), closing(SparseFile(target)) as out:
        size = still.size_bytes if size_bytes is None else size_bytes
        read = 0
        with _disk(reader, still, size) as disk:
            buffer = memoryview(bytearray(_WINDOW_BYTES))
            for offset, length in _windows(disk):
                disk.pread_into(buffer[:length], offset)
                out.write(buffer[:length], offset)
                read += length
                progress(offset + length, size)
        out.finish(size)
        return Exported(name, size, read)


@contextmanager
def _disk(reader: PoolReader, still: Still, size_bytes: int) -> Iterator[Disk]:
    """The device with what lies behind it."""
    if still.origin is None:
        with reader.disk(still.dev_id, size_bytes, lease=still.lease) as disk:
            yield disk
        return
    with (
        closing(open_origin(still.origin)) as origin,
        reader.disk(still.dev_id, size_bytes, origin, lease=still.lease) as disk,
    ):
        yield disk


def _windows(disk: Disk) -> Iterator[tuple[int, int]]:
    """(offset, length) of all that may hold data, ascending, none longer than a window."""
    behind = 0 if disk.origin is None else disk.origin.size_bytes
    for step in range(0, disk.size_bytes, _STEP_BYTES):
        for start, length, where in disk.runs(step, min(_STEP_BYTES, disk.size_bytes - step)):
            end = start + length if where >= 0 else min(start + length, behind)
            for at in range(start, end, _WINDOW_BYTES):
                yield at, min(_WINDOW_BYTES, end - at)
