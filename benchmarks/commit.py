"""What a commit and a materialised point cost against scattered writes, on 1 TiB wholly mapped in 64 KiB blocks.

    python benchmarks/commit.py [--rounds 3] [--scattered 100,1000,10000] [--profile N] [--folder DIR]

For each number N, in turn, warm: N random blocks get new data blocks (no data is written) and are committed,

    alone        no snapshot shares a leaf with the volume
    after a cut  every leaf is shared with a snapshot that was just cut: copied, with up to 252 counts each
    drop         that snapshot is deleted, as retention does

A materialised point costs what the commit after it costs more than one alone, and its drop. Printed: the median CPU
milliseconds of the process, the longest that the metadata lock was held (who misses a page table then waits), and
metadata blocks written. `--profile N` prints a profile of the committer's tree work for N writes after a cut instead.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._ground import VOLUME, mapped_pool
from replicator.pool.catalogue_schema import Purpose, Snapshot
from replicator.pool.changes import End
from replicator.pool.interface import CutRequest, Switch
from replicator.pool.opening import OwnedPool, own_pool
from replicator.thin.device import ThinDevice
from replicator.units import METADATA_BLOCK_BYTES, MIB, TIB

SEED = 20261


@dataclass(frozen=True, slots=True)
class Cost:
    """What one step took."""

    cpu_s: float
    locked_s: float
    blocks: int


class Bench:
    """The open pool, its device, and the chance."""

    def __init__(self, pool: OwnedPool, size_bytes: int) -> None:
        self.pool, self.engine = pool, pool.engine
        self.volume = pool.view().volume(VOLUME)
        self.device: ThinDevice = pool.engine.open_device(self.volume.dev_id, size_bytes, read_only=False)
        self.blocks = size_bytes // pool.block_bytes
        self.rng = np.random.default_rng(SEED)

    def scatter(self, count: int) -> None:
        """Map `count` random blocks anew, without their data."""
        for block in self.rng.choice(self.blocks, count, replace=False).tolist():
            while not self.engine.publish(self.device, block, self.engine.space.take_one()):
                self.engine.admit()

    @contextmanager
    def cost(self, into: list[Cost]) -> Iterator[None]:
        """Measure what the block makes this process do."""
        transaction = self.engine.metadata.transaction
        blocks, cpu = transaction.blocks_written, time.process_time()
        with LockWatch(self.engine.lock) as watch:
            yield
        into.append(Cost(time.process_time() - cpu, watch.longest_s, transaction.blocks_written - blocks))

    def cut(self) -> int:
        """A snapshot; its dev_id."""
        return self.pool.cut(CutRequest(uuid4(), (self.volume.uuid,), Purpose.TARGET)).dev_ids[0]

    def drop(self, dev_id: int) -> None:
        """Delete it."""
        self.pool.switch(Switch(changes=(End(Snapshot, (dev_id,)),), delete=(dev_id,)))


class LockWatch:
    """How long a lock was held at a stretch, as one who asks for it every half millisecond sees it."""

    def __init__(self, lock: AbstractContextManager[bool]) -> None:
        self._lock, self._ended = lock, threading.Event()
        self.longest_s = 0.0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> LockWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(0.0005):
            began = time.perf_counter()
            with self._lock:
                self.longest_s = max(self.longest_s, time.perf_counter() - began)


def measure(bench: Bench, count: int, rounds: int) -> None:
    """One number of scattered writes."""
    steps: dict[str, list[Cost]] = {"alone": [], "after a cut": [], "drop": []}
    for _ in range(rounds):
        bench.scatter(count)
        with bench.cost(steps["alone"]):
            bench.engine.commit()
        snapshot = bench.cut()
        bench.scatter(count)
        with bench.cost(steps["after a cut"]):
            bench.engine.commit()
        with bench.cost(steps["drop"]):
            bench.drop(snapshot)
    for step, costs in steps.items():
        cpu, locked = (statistics.median(getattr(each, name) for each in costs) for name in ("cpu_s", "locked_s"))
        blocks = statistics.median(each.blocks for each in costs)
        size = blocks * METADATA_BLOCK_BYTES / MIB
        print(f"{count:>7} {step:<12} {cpu * 1e3:9.1f} {locked * 1e3:9.1f} {blocks:9.0f} {size:7.1f} MiB", flush=True)
    point = [
        after.cpu_s - alone.cpu_s + drop.cpu_s
        for alone, after, drop in zip(steps["alone"], steps["after a cut"], steps["drop"], strict=True)
    ]
    print(f"{count:>7} {'= a point':<12} {statistics.median(point) * 1e3:9.1f}", flush=True)


def profile(bench: Bench, count: int) -> None:
    """The commit's parts in this thread, by the time spent in each function itself."""
    snapshot = bench.cut()
    bench.scatter(count)
    profiler = cProfile.Profile()
    profiler.runcall(bench.engine._round_of, None)  # the committer's own step, in the thread that is profiled
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
    bench.drop(snapshot)


def main() -> None:
    """Make the pool, measure each number."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scattered", default="100,1000,10000")
    parser.add_argument("--profile", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        mapped_pool(Path(name) / "pool", TIB)
        with own_pool(Path(name) / "pool") as pool:
            bench = Bench(pool, TIB)
            bench.scatter(100)
            bench.engine.commit()
            if given.profile:
                profile(bench, given.profile)
                return
            print(f"{'writes':>7} {'commit':<12} {'CPU ms':>9} {'lock ms':>9} {'blocks':>9}")
            for count in map(int, given.scattered.split(",")):
                measure(bench, count, given.rounds)


if __name__ == "__main__":
    main()
