"""What a commit costs: N random overwrites of a fully mapped 1 TiB device, the first after a snapshot.

Prints, for each N, CPU seconds of folding and sealing (the metadata lock is held), of the whole commit, and how much
metadata it wrote. `--profile N` shows where the time goes. The pool is in a file of a temporary folder; data isn't
written.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from pathlib import Path

import numpy as np

from replicator.blockdev.file import FileDevice
from replicator.thin.metadata import PoolMetadata
from replicator.units import METADATA_BLOCK_BYTES, MIB

MAPPED = 1 << 24
BLOCK_BYTES = 65536
DATA_BLOCKS = MAPPED + (1 << 20)
METADATA_BLOCKS = 200_000
PIECE = 1 << 20


def make_pool(path: Path) -> PoolMetadata:
    """Device 1 with 2**24 mappings, written ascending."""
    with path.open("wb") as file:
        file.truncate(METADATA_BLOCKS * METADATA_BLOCK_BYTES)
    pool = PoolMetadata.format(FileDevice(path), BLOCK_BYTES, DATA_BLOCKS, bytes(16))
    pool.create_thin(1)
    for low in range(0, MAPPED, PIECE):
        pool.map(1, np.arange(low, low + PIECE, dtype=np.uint64), pool.transaction.data.counts.take(PIECE))
        pool.commit(lambda: None)
    return pool


def overwrite(pool: PoolMetadata, count: int, seed: int) -> tuple[float, float, int]:
    """CPU seconds under the lock and in all, and metadata blocks written, of one commit of `count` overwrites."""
    keys = np.unique(np.random.default_rng(seed).integers(0, MAPPED, count)).astype(np.uint64)
    blocks = pool.transaction.data.counts.take(len(keys))
    written, began = pool.transaction.blocks_written, time.process_time()
    pool.map(1, keys, blocks)
    block0 = pool.seal()
    sealed = time.process_time()
    pool.write(block0, lambda: None)
    pool.transaction.data.counts.settle(pool.finish())
    ended = time.process_time()
    return sealed - began, ended - began, pool.transaction.blocks_written - written


def main() -> None:
    """Make the pool, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--profile", type=int, help="profile a commit of so many overwrites")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        pool = make_pool(Path(folder) / "metadata")
        print(f"2**24 mappings made in {time.process_time() - began:.1f} CPU s")
        for turn, count in enumerate([asked.profile] if asked.profile else asked.counts):
            pool.create_snap(2 + turn, 1)
            pool.commit(lambda: None)
            profiler = cProfile.Profile()
            if asked.profile:
                profiler.enable()
            locked_s, all_s, blocks = overwrite(pool, count, turn)
            profiler.disable()
            size = blocks * METADATA_BLOCK_BYTES / MIB
            print(f"{count:>7} overwrites: {locked_s:.3f} s under the lock, {all_s:.3f} s in all, {size:.1f} MiB")
            if asked.profile:
                pstats.Stats(profiler).sort_stats("tottime").print_stats(18)
            again = overwrite(pool, count, turn)
            print(f"{'':>7} once more:  {again[0]:.3f} s under the lock, {again[1]:.3f} s in all")
            pool.delete(2 + turn)
            pool.commit(lambda: None)


if __name__ == "__main__":
    main()
