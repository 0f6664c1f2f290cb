"""Commits that fail, and changes that are refused: what they leave, and what the next opening says (E3)."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from replicator.blockdev.memory import MemoryDevice
from replicator.errors import ConflictError, DeviceError
from replicator.pdata.transaction import BrokenPoolError
from replicator.pool.changes import Put
from replicator.pool.interface import Filling, Switch
from replicator.thin.check import check
from replicator.thin.opening import open_engine
from tests.support.crash_disk import Image
from tests.support.crash_pool import LIVE, ROOMY_BLOCKS, B, C, base_pool, opened
from tests.support.enginerig import BLOCK, assert_sound, formatted, write


class OnceFailingDisk(MemoryDevice):
    """A disk whose `nth` flush fails, and that says "done" to every later one, as Linux does (B3)."""

    nth = flush_count = 0

    def flush(self) -> None:
        self.flush_count += 1
        if self.flush_count == self.nth:
            raise DeviceError(f"flush of {self.name}", 0, errno.EIO, "injected")


@pytest.mark.parametrize("side", ["metadata", "data"])
def test_a_failed_flush_gives_up_what_it_held_and_the_next_opening_says_so(tmp_path: Path, side: str) -> None:
    """Nothing is known of the disk after it, so nothing is replayed onto it, though the same boot lasts."""
    content = formatted(1 << 20, 16).content()
    disks = {"metadata": OnceFailingDisk(content=content), "data": OnceFailingDisk(16 * BLOCK)}
    engine, _ = open_engine(disks["metadata"], disks["data"], tmp_path / "dirty", dirty_capacity=64)
    device = engine.open_device(1, 4 * BLOCK, read_only=False)
    write(engine, device, b"\1" * 4096, 0)
    engine.commit()
    write(engine, device, b"\2" * 4096, BLOCK)
    disks[side].nth = disks[side].flush_count + 1
    before = disks["metadata"].content()
    for _ in range(3):
        with pytest.raises(BrokenPoolError):
            engine.commit()
    with pytest.raises(BrokenPoolError):
        write(engine, device, b"\3" * 4096, 0)
    assert disks[side].flush_count == disks[side].nth, "a flush was tried again after one that failed"
    assert disks["metadata"].content()[:4096] == before[:4096], "block 0 was written after a flush that failed"
    engine.close()
    again, replayed = open_engine(disks["metadata"], disks["data"], tmp_path / "dirty", dirty_capacity=64)
    assert (replayed, again.given_up_count) == (0, 1)
    assert again.open_device(1, 4 * BLOCK).pread(4096, 0) == b"\1" * 4096
    again.close()
    assert_sound(disks["metadata"])


def test_a_refused_transaction_leaves_nothing_for_others_to_commit() -> None:
    """A receiver's switch that comes second: its blocks go back, and a flush of another volume holds none of it."""
    base = base_pool(ROOMY_BLOCKS)
    with opened(base.image, base.views, live=LIVE) as crash:
        pool = crash.pool
        blocks = pool.reserve(2)
        for block in blocks.tolist():
            crash.data.pwrite(b"\x77" * BLOCK, block * BLOCK)
        filling = Filling(C, np.array([0, 2], dtype=np.uint64), blocks)
        with pytest.raises(ConflictError):
            pool.switch(Switch(fill=(filling,), changes=(Put(base.position),), expected_id=1))
        with crash.engine.gate.writing():
            crash.engine.devices[B].pwrite(b"\x55" * 4096, BLOCK)
        pool.flush()
        at_id = pool.view().at_id
    report = check(MemoryDevice(content=crash.metadata.content()))
    assert report.findings == (), [str(each) for each in report.findings]
    image = Image(crash.metadata.content(), crash.data.content(), crash.last_dirty, at_id, "refused")
    with opened(image, base.views) as again:
        found = again.engine.open_device(C, len(base.contents[C])).pread(len(base.contents[C]), 0)
        assert found == base.contents[C], "half a transaction was committed"
        assert again.engine.open_device(B, 2 * BLOCK).pread(4096, BLOCK) == b"\x55" * 4096
