"""A pool on a small file system of its own: filled, then given room, by a process in a mount namespace of its own.

    unshare --mount python -m tests.support.small_disk FOLDER

mounts a tmpfs of 8 MiB at FOLDER, which nobody else sees and which is gone with the process, and prints what it found
as JSON. Run by tests/faults/test_small_disk.

    step       what has to hold
    filled     a write is refused with NoSpaceError before the pool's own blocks are all given; nothing answered is lost
    full       reads go on, overwrites in place too, a flush and a trim are done; closing and opening again work
    given room the file system is made larger: writes go on from where they stopped
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from replicator.errors import NoSpaceError
from replicator.pool import volumes
from replicator.pool.creation import PoolPlan, create_pool
from replicator.pool.opening import OwnedPool, own_pool
from replicator.thin.check import check
from replicator.thin.device import ThinDevice
from replicator.units import KIB, MIB

BLOCK = 64 * KIB
DISK_MIB = 8
BLOCKS = 400  # 25 MiB of data on 8 MiB of disk
PAGE = 4096


def _page(block: int) -> bytes:
    return bytes([1 + block % 255]) * PAGE


def _fill(pool: OwnedPool, device: ThinDevice, written: dict[int, bytes]) -> bool:
    """A page into each block that has none; whether the disk ended it."""
    for block in range(BLOCKS):
        if block not in written:
            try:
                with pool.engine.gate.writing():
                    device.pwrite(_page(block), block * BLOCK)
            except NoSpaceError:
                return True
            written[block] = _page(block)
    return False


def _open(pool: OwnedPool) -> ThinDevice:
    row = pool.view().volume("v")
    return pool.open_live(row.dev_id, row.size_bytes, None)


def _holds(device: ThinDevice, written: dict[int, bytes]) -> bool:
    zeros = bytes(PAGE)
    return all(device.pread(PAGE, block * BLOCK) == written.get(block, zeros) for block in range(BLOCKS))


def _main(folder: Path) -> dict[str, object]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "small", str(folder)], check=True)
    path, written, found = folder / "pool", dict[int, bytes](), dict[str, object]()
    create_pool(path, PoolPlan(size_bytes=BLOCKS * BLOCK, metadata_bytes=2 * MIB))
    with own_pool(path) as pool:
        volumes.create_volume(pool, "v", BLOCKS * BLOCK)
        device = _open(pool)
        found["filled"] = _fill(pool, device, written)
        found["written"] = len(written)
        pool.flush()
        written[0] = b"\xaa" * PAGE
        with pool.engine.gate.writing():
            device.pwrite(written[0], 0)
            device.discard(BLOCK, BLOCK)
        del written[1]
        pool.flush()
        found["reads"] = _holds(device, written)
    with own_pool(path) as pool:
        device = _open(pool)
        found["reopened"] = _holds(device, written)
        subprocess.run(["mount", "-o", f"remount,size={8 * DISK_MIB}m", str(folder)], check=True)
        found["still full"] = _fill(pool, device, written)
        pool.flush()
        found["after growing"] = _holds(device, written) and len(written) == BLOCKS
    with own_pool(path) as pool:
        found["at the end"] = _holds(_open(pool), written)
        found["check"] = [str(each) for each in check(pool.engine.metadata.store.device).findings]
    return found


if __name__ == "__main__":
    print(json.dumps(_main(Path(sys.argv[1]))))
