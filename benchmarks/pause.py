"""How long a cut holds writers up, against the size of the volume and the number of dirty mappings.

    python benchmarks/pause.py [--seconds 10] [--folder DIR]

An exporter serves a volume, wholly mapped; a client writes 4 KiB at random, 16 in flight together (each write counts
from when it was due); a cut each second, the snapshot of the cut before is dropped. Each row is measured
without cuts, then with them. Printed in ms, p50 p99 max: the pause that the engine took, and the writes' latency
without cuts, with them but outside of one (from request to its durable answer), and around one.

Every process shares the machine's processors: what the clients lose by that shows in the column without cuts.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._ground import VOLUME, load, mapped_pool, percentiles_ms, read_load
from replicator.blockdev.nbd_connection import connect as connect_nbd
from replicator.blockdev.nbd_pipeline import NbdPipeline
from replicator.exporter.supervise import connect
from replicator.nbd.uri import NbdUri
from replicator.pool.catalogue_schema import Purpose, Snapshot
from replicator.pool.changes import End
from replicator.pool.control_values import ListenAsked
from replicator.pool.interface import CutRequest, Switch
from replicator.pool.remote import RemotePool
from replicator.thin.table import STRETCH_BLOCKS
from replicator.units import CHUNK_BYTES, MIB, PAGE_BYTES, TIB, format_size

DEPTH = 16
CUT_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Case:
    """A row: the volume's size, and random writes a second."""

    size_bytes: int
    rate: float


CASES = (Case(64 * MIB, 500), Case(64 * MIB, 2000), Case(TIB, 500), Case(TIB, 1000))


@dataclass(slots=True)
class Cuts:
    """What the cuts of a run were like: [begin, end) of each, the engine's pause, and what was dirty before it."""

    spans: list[tuple[int, int]] = field(default_factory=list)
    pauses_ns: list[int] = field(default_factory=list)
    dirty: list[int] = field(default_factory=list)


class Cutter:
    """Cuts the volume each second, and drops the snapshot before."""

    def __init__(self, pool: RemotePool) -> None:
        self._pool = pool
        self._volume = pool.view().volume(VOLUME).uuid
        self._last: int | None = None

    def run(self, seconds: float) -> Cuts:
        """So many seconds of cuts."""
        cuts = Cuts()
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > CUT_EVERY_S:
            time.sleep(min(left, CUT_EVERY_S))
            cuts.dirty.append(self._pool.status().dirty_count)
            began = time.time_ns()
            made = self._pool.cut(CutRequest(uuid4(), (self._volume,), Purpose.TARGET))
            cuts.spans.append((began, time.time_ns()))
            cuts.pauses_ns.append(int(self._pool.status().last_pause_s * 1e9))
            self._drop()
            self._last = made.dev_ids[0]
        return cuts

    def _drop(self) -> None:
        if self._last is not None:
            self._pool.switch(Switch(changes=(End(Snapshot, (self._last,)),), delete=(self._last,)))


def around(writes: npt.NDArray[np.int64], spans: list[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Which writes were under way at some instant of a cut."""
    found = np.zeros(len(writes), dtype=bool)
    for begin, end in spans:
        found |= (writes[:, 0] < end) & (writes[:, 1] > begin)
    return found


def warm(socket: Path, size_bytes: int) -> None:
    """Read a page of each stretch of the page table, so that counts and nodes have been seen."""
    step = STRETCH_BLOCKS * CHUNK_BYTES
    uri = NbdUri.parse(f"nbd+unix:///{VOLUME}?socket={socket}")
    with NbdPipeline(connect_nbd(uri), depth=DEPTH) as pipeline:
        for offset in range(0, size_bytes, step):
            if not pipeline.room:
                pipeline.collect()
            pipeline.read(offset, PAGE_BYTES)
        pipeline.collect(DEPTH)


def measure(case: Case, pool: RemotePool, folder: Path, seconds: float, seeds: Iterator[int]) -> None:
    """One row: without cuts, then with them, each load at places of its own."""
    out, socket = folder / "writes.npy", folder / "nbd.sock"
    with load(socket, case.size_bytes, seconds, case.rate, DEPTH, out, next(seeds)):
        pass
    quiet = read_load(out)
    with load(socket, case.size_bytes, seconds, case.rate, DEPTH, out, next(seeds)):
        cuts = Cutter(pool).run(seconds)
    writes = read_load(out)
    near = around(writes, cuts.spans)
    latency = writes[:, 1] - writes[:, 0]
    parts = [np.array(cuts.pauses_ns), quiet[:, 1] - quiet[:, 0], latency[~near], latency[near]]
    durable = statistics.median(end - begin for begin, end in cuts.spans) / 1e6
    print(
        f"{format_size(case.size_bytes):>7} {case.rate:>5.0f}/s {len(cuts.spans):>3} cuts,"
        f" {statistics.median(cuts.dirty):>5.0f} dirty, durable in {durable:5.1f} ms |",
        " |".join(percentiles_ms(part.astype(np.int64)) for part in parts),
        flush=True,
    )


def main() -> None:
    """All rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    print(
        f"{'p50, p99, max in ms':>48} |{'engine pause':>24} |{'no cuts':>24} |{'between cuts':>24} |{'around cuts':>24}"
    )
    seeds = itertools.count(1)
    for size in sorted({case.size_bytes for case in CASES}):
        with tempfile.TemporaryDirectory(dir=given.folder) as name:
            folder = Path(name)
            mapped_pool(folder / "pool", size)
            listener = ListenAsked(f"unix:{folder / 'nbd.sock'}")
            with closing(connect(folder / "pool", started_by="agent", listener=listener)) as pool, ExitStack() as end:
                end.callback(pool.stop)
                warm(folder / "nbd.sock", size)
                for case in CASES:
                    if case.size_bytes == size:
                        measure(case, pool, folder, given.seconds, seeds)


if __name__ == "__main__":
    main()
