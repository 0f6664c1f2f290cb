"""A replica's pool that tests open, kill and open again: on memory devices, or files, with its catalogue and `dirty`.

`kill` leaves the old owner as it is and goes on from copies of everything it had handed to the kernel, as the next
owner would after SIGKILL.
"""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from uuid import UUID

from receiver.disks import Disks
from replicator.blockdev.interface import BlockDevice
from replicator.blockdev.memory import MemoryDevice
from replicator.pool.catalogue import Catalogue
from replicator.pool.catalogue_schema import PoolIdentity
from replicator.pool.local import LocalPool
from replicator.thin.check import check
from replicator.thin.mapping import data_blocks
from replicator.thin.metadata import PoolMetadata
from replicator.thin.opening import open_engine
from replicator.thin.view import PoolView
from replicator.units import MIB
from tests.support import judges

POOL_UUID = UUID("6f1c0000-0000-4000-8000-0000000000ff")
_DIRTY_RECORDS = 128


class ReplicaPool:
    """An open pool of `data_blocks` blocks; `pool` and `disks` are what a follower gets."""

    def __init__(
        self,
        folder: Path,
        block_bytes: int = 65536,
        data_blocks: int = 400,
        metadata_bytes: int = 4 * MIB,
        uuid: UUID = POOL_UUID,
    ) -> None:
        self.folder, self.block_bytes = folder, block_bytes
        self._generation = 0
        self.metadata = MemoryDevice(metadata_bytes)
        self.data = MemoryDevice(data_blocks * block_bytes)
        metadata = PoolMetadata.format(self.metadata, block_bytes, data_blocks, uuid.bytes)
        metadata.commit(lambda: None)
        Catalogue.create(folder / "catalog.db", PoolIdentity(uuid, 1), 0).close()
        self._open(folder)

    def _open(self, folder: Path, data: BlockDevice | None = None) -> None:
        self.here = folder
        self.closed_by_daemon = False
        engine, replayed = open_engine(
            self.metadata, data or self.data, folder / "dirty", dirty_capacity=_DIRTY_RECORDS
        )
        self.catalogue = Catalogue(folder / "catalog.db")
        self.catalogue.discard_beyond(engine.metadata.superblock.transaction_id)
        self.pool = LocalPool(folder, engine, self.catalogue, replayed=replayed)
        self.disks = Disks(self.metadata, self.data, nullcontext)

    def kill(self) -> None:
        """The owner dies; the next one opens what it left."""
        self._generation += 1
        after = self.folder / f"after-{self._generation}"
        after.mkdir()
        for path in self.here.iterdir():
            if path.is_file() and not path.name.endswith("-shm"):
                shutil.copy(path, after / path.name)
        metadata, data = MemoryDevice(content=self.metadata.content()), MemoryDevice(content=self.data.content())
        self.close()
        self.metadata, self.data = metadata, data
        self._open(after)

    def read(self, dev_id: int, size_bytes: int) -> bytes:
        """What a thin device reads, by what is committed on the disks alone."""
        view = PoolView.live(self.metadata)
        blocks = -(-size_bytes // self.block_bytes)
        content = bytearray(blocks * self.block_bytes)
        for keys, values in view.mappings(view.device(dev_id).root):
            for block, place in zip(keys.tolist(), data_blocks(values).tolist(), strict=True):
                assert block < blocks, "mapped beyond the end"
                begin = block * self.block_bytes
                content[begin : begin + self.block_bytes] = self.data.pread(self.block_bytes, place * self.block_bytes)
        assert not any(content[size_bytes:]), "the tail of the last block isn't zero"
        return bytes(content[:size_bytes])

    def head(self, volume: UUID) -> bytes:
        """What the volume reads."""
        row = self.pool.view().volume(volume)
        return self.read(row.dev_id, row.size_bytes)

    def used_blocks(self) -> int:
        """Data blocks that aren't free, reserved ones included."""
        status = self.pool.status()
        return status.data_blocks - status.data_free_blocks

    def close(self) -> None:
        """End the owner cleanly, unless a daemon did, which closes its pool itself."""
        if not self.closed_by_daemon:
            self.pool.close()
        self.catalogue.close()

    def assert_clean(self, *, others_too: bool = False) -> None:
        """Our own check, and thin_check of both engines where asked for; the pool is closed."""
        self.close()
        report = check(self.metadata)
        assert report.clean, report
        if others_too:
            image = self.folder / "metadata.image"
            image.write_bytes(self.metadata.content())
            judges.assert_clean(image)
            image.unlink()
