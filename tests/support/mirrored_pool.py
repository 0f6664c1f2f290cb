"""A pool of real files with a mirror, something in it, and what becomes of one of its copies.

Run as a program, `python -m tests.support.mirrored_pool POOL SEED`: writes to the pool, and dies without closing it.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from replicator.pool import volumes
from replicator.pool.creation import PoolPlan
from replicator.pool.mirroring import create_mirrored
from replicator.pool.opening import OwnedPool, own_pool
from replicator.pool.reader import PoolReader
from replicator.pool.reading import read_pool
from replicator.units import METADATA_BLOCK_BYTES, MIB

ROOT = Path(__file__).resolve().parents[2]
BLOCK = 65536
VOLUME_BYTES = 8 * MIB
DIED = 9


def make_mirrored(path: Path, mirror: Path) -> None:
    """A small pool with a mirror, with the volume `v` in it, written and snapshotted."""
    create_mirrored(path, PoolPlan(size_bytes=32 * MIB), mirror)
    with own_pool(path) as pool:
        volumes.create_volume(pool, "v", VOLUME_BYTES)
        write_some(pool, 0)
        volumes.create_snapshot(pool, "v", "s")
        write_some(pool, 1)


def write_some(pool: OwnedPool, seed: int) -> None:
    """Some blocks of `v`, flushed."""
    chance = random.Random(seed)
    live = pool.engine.open_device(1, VOLUME_BYTES, read_only=False)
    for number in chance.sample(range(VOLUME_BYTES // BLOCK), 10):
        with pool.engine.gate.writing():
            live.pwrite(chance.randbytes(BLOCK), number * BLOCK)
    pool.flush()


def contents(path: Path) -> dict[str, bytes]:
    """What the volume and its snapshot read as, in a pool that nobody has open."""
    with read_pool(path) as reader:
        return contents_of(reader)


def contents_of(reader: PoolReader) -> dict[str, bytes]:
    """The same, by this reader."""
    view = reader.view()
    rows = [(row.name, row.dev_id) for row in view.volumes] + [(row.name, row.dev_id) for row in view.snapshots]
    found = {}
    for name, dev_id in rows:
        with reader.disk(dev_id, VOLUME_BYTES) as disk:
            found[name] = disk.pread(VOLUME_BYTES, 0)
    return found


def write_and_die(path: Path, seed: int) -> None:
    """Another process writes to the pool, and is gone at once."""
    argv = [sys.executable, "-m", "tests.support.mirrored_pool", str(path), str(seed)]
    assert subprocess.run(argv, cwd=ROOT, check=False).returncode == DIED


def _truncate(copy: Path) -> None:
    os.truncate(copy, 0)


def _overwrite(copy: Path) -> None:
    copy.write_bytes(random.Random(3).randbytes(copy.stat().st_size))


def _zero_some(copy: Path) -> None:
    chance, whole = random.Random(4), bytearray(copy.read_bytes())
    for at in range(0, len(whole), METADATA_BLOCK_BYTES):
        if chance.random() < 0.5:
            whole[at : at + METADATA_BLOCK_BYTES] = bytes(METADATA_BLOCK_BYTES)
    copy.write_bytes(whole)


RUINS: dict[str, Callable[[Path], None]] = {
    "truncated": _truncate,
    "unlinked": Path.unlink,
    "overwritten": _overwrite,
    "holes": _zero_some,
}


if __name__ == "__main__":
    owned = own_pool(Path(sys.argv[1]))
    write_some(owned, int(sys.argv[2]))
    os._exit(DIED)
