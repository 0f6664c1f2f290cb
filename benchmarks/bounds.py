"""The engine's bounds: memory of a terabyte and per mapping, lookups a thousand snapshots deep, deletion beside writes.

    python benchmarks/bounds.py [--only memory,mappings,depth,deletion] [--folder DIR]

memory      1 TiB, wholly mapped, is opened, written at random, cut, written and committed in a process that may have no
            more than 1 GiB of address space (RLIMIT_AS)
mappings    what 327,680 mappings take when all are looked up (5 % of 100 GiB in 16 KiB chunks); and what a cache of
            2 MiB takes for as many, and for a hundred times as many
depth       page-table loads of a snapshot of a snapshot of … a thousand deep, beside those of a device that was written
            to alike and has no snapshot: by CPU, the ratio in each round, its quartiles
deletion    16 snapshots of scattered writes, deleted: what comes back, how fast writes are before, with and after them,
            how long the deletion runs, and what writes and cuts wait beside it, in this process and over NBD (there
            by turns without and with it; of the writes, those that were due while it ran)
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from uuid import uuid4

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._deletion import served_deletion
from benchmarks._ground import DAEMON, ROOT, VOLUME, mapped_pool
from replicator.blockdev.file import FileDevice
from replicator.blockdev.memory import MemoryDevice
from replicator.pool import volumes
from replicator.pool.catalogue_schema import Purpose
from replicator.pool.interface import CutRequest
from replicator.pool.opening import OwnedPool, own_pool
from replicator.thin.change import Change
from replicator.thin.closing import close_device
from replicator.thin.device import ThinDevice
from replicator.thin.engine import Engine
from replicator.thin.metadata import PoolMetadata
from replicator.thin.opening import open_engine
from replicator.thin.space import DataSpace
from replicator.thin.table import STRETCH_BLOCKS
from replicator.units import CHUNK_BYTES, GIB, KIB, MIB, PAGE_BYTES, TIB

SEED = 20262
MAPPINGS = 327_680
CACHE_STRETCHES = 64  # 2 MiB
ADDRESS_SPACE_BYTES = GIB
DEPTH = 1000
SNAPSHOTS = 16
SCATTERED = 2000  # writes between two snapshots
_DEPTH_BLOCKS = 4 * STRETCH_BLOCKS
_DEPTH_ROUNDS = 120
_FLAT = 5000  # the dev_id of the device without snapshots
_ALONE_S = 8.0  # of cuts, for a 99th percentile of some sixty
_DELETED_BYTES = 16 * GIB
_ROOM_BYTES = 256 * GIB  # of metadata, above all
_PAGE = b"\x5a" * PAGE_BYTES


def in_child(act: str, pool: Path, *limits: int) -> None:
    """One measurement in a process of its own, under RLIMIT_AS where a limit is named."""

    def limit() -> None:
        for each in limits:
            resource.setrlimit(resource.RLIMIT_AS, (each, each))

    argv = [sys.executable, str(Path(__file__)), "--child", act, "--pool", str(pool)]
    subprocess.run(argv, env={**os.environ, **DAEMON, "PYTHONPATH": str(ROOT)}, preexec_fn=limit, check=True)


def own_memory(name: str) -> int:
    """VmPeak, VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * KIB
    raise LookupError(name)


def opened(pool: OwnedPool) -> ThinDevice:
    """The pool's volume, to be written."""
    row = pool.view().volume(VOLUME)
    return pool.open_live(row.dev_id, row.size_bytes, None)


def write_some(pool: OwnedPool, device: ThinDevice, blocks: list[int]) -> list[float]:
    """A page into each of these blocks; seconds of each."""
    taken = []
    for block in blocks:
        began = time.perf_counter()
        with pool.engine.gate.writing():
            device.pwrite(_PAGE, block * CHUNK_BYTES)
        taken.append(time.perf_counter() - began)
    return taken


def cut_of(pool: OwnedPool) -> int:
    """A snapshot of the volume; its dev_id."""
    return pool.cut(CutRequest(uuid4(), (pool.view().volume(VOLUME).uuid,), Purpose.TARGET)).dev_ids[0]


def chosen(count: int, limit: int, seed: int = SEED) -> list[int]:
    """So many different numbers below `limit`, by chance."""
    return [int(each) for each in np.random.default_rng(seed).choice(limit, count, replace=False)]


# -- memory ----------------------------------------------------------------------------------------------------------


def child_terabyte(path: Path) -> None:
    """Open, write, cut, write, commit."""
    with own_pool(path) as pool:
        device = opened(pool)
        size = device.size_bytes
        blocks = chosen(3000, size // CHUNK_BYTES)
        write_some(pool, device, blocks[:1500])
        pool.flush()
        cut_of(pool)
        write_some(pool, device, blocks[1500:])
        pool.flush()
        assert device.pread(PAGE_BYTES, blocks[0] * CHUNK_BYTES) == _PAGE
    peak, most = own_memory("VmPeak"), own_memory("VmHWM")
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    print(
        f"memory: {size / TIB:.2f} TiB mapped, 3,000 random writes, a cut, under RLIMIT_AS {allowed / MIB:.0f} MiB:"
        f" VmPeak {peak / MIB:.0f} MiB, most resident {most / MIB:.0f} MiB",
        flush=True,
    )


# -- mappings --------------------------------------------------------------------------------------------------------


def child_mappings(path: Path, stretches: int, touched: int) -> None:
    """Look all up (or `touched` stretches of them, by chance): what became resident by it."""
    with own_pool(path, table_stretches=stretches) as pool:
        device = opened(pool)
        device.entry(0)
        count = device.size_bytes // CHUNK_BYTES
        whole = -(-count // STRETCH_BLOCKS)
        spots = chosen(min(touched, whole), whole)  # chance brings libraries of its own with it: before, not between
        before = own_memory("VmRSS")
        for index in spots:
            assert device.entry(min(index * STRETCH_BLOCKS + 7, count - 1))
        pool.flush()
        after = own_memory("VmRSS")
    grown = after - before
    kind = f"cache of {stretches * 32 * KIB / MIB:.0f} MiB"
    print(
        f"mappings: {count:>10,} mapped, {kind:>15}, {min(touched, whole):,} stretches looked up:"
        f" {grown / MIB:5.1f} MiB became resident ({grown / count:.2f} bytes a mapping), {after / MIB:.1f} MiB in all",
        flush=True,
    )


# -- depth -----------------------------------------------------------------------------------------------------------


def measure_depth(folder: Path) -> None:
    """A chain of snapshots, each written to a little; its metadata in memory, its data a hole."""
    metadata = MemoryDevice(256 * MIB)
    blocks = 2 * _DEPTH_BLOCKS + DEPTH * 16 + 10_000
    made = PoolMetadata.format(metadata, CHUNK_BYTES, blocks, b"bounds-benchmark")
    for dev_id in (1, _FLAT):
        made.create_thin(dev_id)
        made.map(dev_id, np.arange(_DEPTH_BLOCKS, dtype=np.uint64), made.transaction.data.counts.take(_DEPTH_BLOCKS))
    made.commit(lambda: None)
    (folder / "hole").touch()
    os.truncate(folder / "hole", blocks * CHUNK_BYTES)
    with FileDevice(folder / "hole") as data:
        engine, _ = open_engine(metadata, data, folder / "dirty")
        engine.space = DataSpace(engine.space._counts, engine.lock, object(), CHUNK_BYTES, 0)  # nothing is allocated
        for depth in range(1, DEPTH):
            engine.change(Change(partial(_snapshot, depth + 1, depth), cut_devices=[depth]))
            for dev_id in (depth + 1, _FLAT):
                device = engine.open_device(dev_id, _DEPTH_BLOCKS * CHUNK_BYTES, read_only=False)
                for block in chosen(8, _DEPTH_BLOCKS, seed=depth):
                    assert engine.publish(device, block, engine.space.take_one())
                close_device(engine, device)
        rates: dict[int, list[float]] = {1: [], _FLAT: [], DEPTH: []}
        for number in range(_DEPTH_ROUNDS):
            for dev_id in (*rates,)[:: 1 if number % 2 else -1]:  # each beside the others, and none always behind one
                rates[dev_id].append(_loads_per_second(engine, dev_id))
        engine.close()
    first, flat, last = (np.array(taken) for taken in rates.values())
    low, middle, high = np.percentile(last / flat, [25, 50, 75])
    print(
        f"depth: page-table loads a second of CPU: {np.median(first):,.0f} of the first, {np.median(flat):,.0f} of a"
        f" device written alike without snapshots, {np.median(last):,.0f} at depth {DEPTH}: {middle:.3f} of it"
        f" [{low:.3f} to {high:.3f}], {np.median(last / first):.3f} of the first ({_DEPTH_ROUNDS} rounds)",
        flush=True,
    )


def _snapshot(above: int, below: int, metadata: PoolMetadata) -> None:
    metadata.create_snap(above, below)


def _loads_per_second(engine: Engine, dev_id: int) -> float:
    device = engine.open_device(dev_id, _DEPTH_BLOCKS * CHUNK_BYTES)
    began, count = time.thread_time(), 0
    for _ in range(5):
        device.table.clear()
        for block in range(0, _DEPTH_BLOCKS, STRETCH_BLOCKS):
            assert device.entry(block)
            count += 1
    return count / (time.thread_time() - began)


# -- deletion --------------------------------------------------------------------------------------------------------


class Beside:
    """Writes, and a cut ten times a second, for as long as the block lasts."""

    def __init__(self, pool: OwnedPool, device: ThinDevice, blocks: list[int]) -> None:
        self._pool, self._device, self._blocks = pool, device, blocks
        self._ended = threading.Event()
        self.writes: list[float] = []
        self.cuts: list[float] = []
        self._threads = [threading.Thread(target=act) for act in (self._write, self._cut)]

    def __enter__(self) -> Beside:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _write(self) -> None:
        at = 0
        while not self._ended.wait(0.001):
            self.writes += write_some(self._pool, self._device, [self._blocks[at % len(self._blocks)]])
            at += 1

    def _cut(self) -> None:
        while not self._ended.wait(0.1):
            began = time.perf_counter()
            made = cut_of(self._pool)
            self.cuts.append(time.perf_counter() - began)
            volumes.delete_snapshot(self._pool, made)


def told(seconds: list[float]) -> str:
    """p50, p99 and the largest of some waits."""
    if not seconds:
        return "none"
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    return f"p50 {p50:.2f} p99 {p99:.2f} max {max(seconds) * 1e3:.1f} ms ({len(seconds)})"


def measure_deletion(path: Path) -> None:
    """Sixteen snapshots, made and deleted."""
    with own_pool(path) as pool:
        device = opened(pool)
        count = device.size_bytes // CHUNK_BYTES
        speeds: dict[str, float] = {}
        spots = chosen(600, count)

        def measured(name: str) -> None:
            write_some(pool, device, spots[:50])
            speeds[name] = statistics.median(write_some(pool, device, spots)) * 1e6

        write_some(pool, device, spots)
        pool.flush()
        measured("before")
        free = pool.status().data_free_blocks
        for number in range(SNAPSHOTS):
            volumes.create_snapshot(pool, VOLUME, f"old-{number}")
            _scatter(pool, device, chosen(SCATTERED, count, seed=number))
        pool.flush()
        measured("with")
        pool.flush()
        held = free - pool.status().data_free_blocks
        idle = _idle(pool, device, spots)
        with Beside(pool, device, spots) as beside:
            calls, took = _delete_all(pool)
        pool.flush()
        pool.flush()
        write_some(pool, device, spots)
        measured("after")
        back = held - (free - pool.status().data_free_blocks)
        for number in range(SNAPSHOTS):
            volumes.create_snapshot(pool, VOLUME, f"again-{number}")
            _scatter(pool, device, chosen(SCATTERED, count, seed=number))
        volumes.create_snapshot(pool, VOLUME, "kept")  # so that whatever is written over NBD is shared, in every round
    print(f"deletion: {SNAPSHOTS} snapshots held {held:,} blocks; {back:,} came back")
    print("deletion: a write of 4 KiB took, median: " + ", ".join(f"{k} {v:.0f} us" for k, v in speeds.items()))
    print(f"deletion: it ran {took:.2f} s; each call returned in {told(calls)}")
    for name, found in (("alone", idle), ("meanwhile", beside)):
        print(f"deletion: {name:<9} writes waited {told(found.writes)}; cuts {told(found.cuts)}", flush=True)
    ratios = np.percentile(beside.cuts, [50, 99]) / np.percentile(idle.cuts, [50, 99])
    print(f"deletion: cuts meanwhile / alone: p50 {ratios[0]:.2f}, p99 {ratios[1]:.2f}", flush=True)
    names = [f"again-{number}" for number in range(SNAPSHOTS)]
    served_deletion(path, _DELETED_BYTES, names)


def _idle(pool: OwnedPool, device: ThinDevice, spots: list[int]) -> Beside:
    with Beside(pool, device, spots) as alone:
        time.sleep(_ALONE_S)
    return alone


def _scatter(pool: OwnedPool, device: ThinDevice, blocks: list[int]) -> None:
    """Map these anew, without their data."""
    for block in blocks:
        with pool.engine.gate.writing():
            pool.engine.admit()
            assert pool.engine.publish(device, block, pool.engine.space.take_one())


def _delete_all(pool: OwnedPool) -> tuple[list[float], float]:
    calls, began = [], time.perf_counter()
    for number in range(SNAPSHOTS):
        at = time.perf_counter()
        volumes.delete_snapshot(pool, f"old-{number}")
        calls.append(time.perf_counter() - at)
    while pool.status().deleting_devices:
        time.sleep(0.005)
    return calls, time.perf_counter() - began


# -- all -------------------------------------------------------------------------------------------------------------

CHILDREN: dict[str, Callable[[Path], None]] = {
    "terabyte": child_terabyte,
    "all": partial(child_mappings, stretches=2048, touched=1 << 20),
    "cached": partial(child_mappings, stretches=CACHE_STRETCHES, touched=400),
}


def main() -> None:
    """What was asked for, each on a pool of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="memory,mappings,depth,deletion")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    parser.add_argument("--pool", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        CHILDREN[given.child](given.pool)
        return
    asked = given.only.split(",")
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        if "depth" in asked:
            measure_depth(folder)
        if "deletion" in asked:
            mapped_pool(folder / "deletion", _DELETED_BYTES, _ROOM_BYTES)
            measure_deletion(folder / "deletion")
        if "mappings" in asked:
            mapped_pool(folder / "few", MAPPINGS * CHUNK_BYTES, GIB)
            for act in ("all", "cached"):
                in_child(act, folder / "few")
        if "memory" in asked or "mappings" in asked:
            size = 100 * MAPPINGS * CHUNK_BYTES if "mappings" in asked else TIB
            mapped_pool(folder / "many", size)
        if "mappings" in asked:
            in_child("cached", folder / "many")  # each data block's count takes 4 bytes too, 64 MiB of them at most
        if "memory" in asked:
            in_child("terabyte", folder / "many", ADDRESS_SPACE_BYTES)


if __name__ == "__main__":
    main()
