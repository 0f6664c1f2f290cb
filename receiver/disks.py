"""A pool's two devices as a follower uses them: metadata to read mappings from, data to read and write blocks.

Beneath draft. The pool's owner knows which blocks are whose; the follower writes only those that were reserved for it,
and holds the file `writers` (shared) from before it reserves them until they are mapped, or given back: no new owner
gives them to somebody else meanwhile.

    dies …                         on disk                                      who cleans up
    between reserve and switch     written blocks that no committed map names   nobody has to: they are free on disk

Failures: ConflictError (a new owner is opening the pool), DeviceError, NotFoundError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from replicator.blockdev.file import FileDevice
from replicator.blockdev.interface import BlockDevice
from replicator.pool.locks import PoolLock
from replicator.pool.metadata_device import open_metadata


@dataclass(frozen=True, slots=True)
class Disks:
    """`metadata` is only read; `writing()` holds `writers` while the block lasts."""

    metadata: BlockDevice
    data: BlockDevice
    writing: Callable[[], AbstractContextManager[object]]


@contextmanager
def open_disks(directory: Path) -> Iterator[Disks]:
    """The devices of the pool in `directory`, closed at the end of the block."""
    metadata = open_metadata(directory)
    try:
        data = FileDevice(directory / "data")
        try:
            yield Disks(metadata, data, lambda: PoolLock.write(directory))
        finally:
            data.close()
    finally:
        metadata.close()
