"""How fast a point is restored: from the log alone, and from a base with many small transactions over it.

    python benchmarks/restore.py [--mib 96] [--transactions 200] [--rounds 3] [--folder DIR]

Makes a log in a directory: one transaction that fills the volume with data that zstd halves, then many of 64 random
4 KiB writes. Printed, warm, the best of the rounds: reading the point once from end to end (MiB/s of volume), restoring
it to a file with its sync and its reading back, 4 KiB reads at random places, opening the point, and listing points.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from replicator.log.object_log import directory_log
from replicator.repository.logged import read_history
from replicator.repository.restore import plan_restore, restore
from replicator.repository.source import Source
from replicator.units import MIB, PAGE_BYTES
from tests.support.pools_in_memory import MemoryPool, point_snapshot
from tests.support.volume_histories import NAME, History

PAGES_PER_TRANSACTION = 64
RANDOM_READS = 2000


def make_log(folder: Path, size_bytes: int, transactions: int) -> History:
    """The log that the module describes."""
    rng = np.random.default_rng(1)
    history = History(directory_log(folder, create=True), random.Random(1), size_bytes)
    half = rng.integers(0, 256, size_bytes, dtype=np.uint8)
    half.reshape(-1, 512)[:, 256:] = 0
    history.write_pages(half.tobytes(), range(size_bytes // PAGE_BYTES))
    for _ in range(transactions):
        pages = sorted(rng.choice(size_bytes // PAGE_BYTES, PAGES_PER_TRANSACTION, replace=False).tolist())
        history.write_pages(rng.bytes(PAGE_BYTES * len(pages)), pages)
    history.close()
    return history


def best(rounds: int, work: Callable[[], object]) -> float:
    """The shortest of `rounds` runs, in seconds."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def measure(what: str, source: Source, size_bytes: int, folder: Path, rounds: int) -> None:
    """One source's figures."""
    opened = source.open_point(f"{NAME}@latest", now_ns=0)
    disk = opened.disk
    layers = disk.layers
    print(f"{what}: {layers.transaction_count} transactions, {layers.stored_bytes / MIB:.0f} MiB of the log")

    def open_once() -> None:
        source.open_point(f"{NAME}@latest", now_ns=0).disk.close()

    opening = best(rounds, open_once)
    buffer = bytearray(MIB)

    def read_all() -> None:
        for at in range(0, size_bytes, MIB):
            disk.pread_into(buffer, at)

    target = folder / "out.img"

    def to_file() -> None:
        target.unlink(missing_ok=True)
        restore(plan_restore(opened, str(target)))

    rng = random.Random(2)
    places = [rng.randrange(size_bytes // PAGE_BYTES) * PAGE_BYTES for _ in range(RANDOM_READS)]
    small = bytearray(PAGE_BYTES)

    def read_some() -> None:
        for at in places:
            disk.pread_into(small, at)

    print(f"  open                {opening * 1e3:8.1f} ms")
    print(f"  read, one thread    {size_bytes / MIB / best(rounds, read_all):8.0f} MiB/s")
    print(f"  restore to a file   {size_bytes / MIB / best(rounds, to_file):8.0f} MiB/s, synced and read back")
    print(f"  4 KiB at random     {RANDOM_READS / best(rounds, read_some):8.0f} /s")
    disk.close()
    target.unlink()


def main() -> None:
    """Make the log, measure both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=96)
    parser.add_argument("--transactions", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder, size = Path(name), given.mib * MIB
        history = make_log(folder / "log", size, given.transactions)
        points = read_history(history.log, history.volume).points
        listing = best(given.rounds, lambda: read_history(history.log, history.volume))
        print(f"listing from the log: {listing / len(points) * 1e6:.0f} us a point")
        measure("from the log", Source("log", log=history.log), size, folder, given.rounds)
        pool = MemoryPool(history.volume, logged=list(points))
        pool.keep(point_snapshot(5, points[0]), history.contents[1, 1])
        measure("from a base", Source("pool", pool, history.log), size, folder, given.rounds)


if __name__ == "__main__":
    main()
