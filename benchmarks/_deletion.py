"""What writes over NBD wait while snapshots are deleted, for benchmarks/bounds.

By turns without and with a deletion, each load at places of its own, so that it meets blocks that are shared still. Of
the writes with a deletion those count that were due while it ran.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks._ground import DAEMON, ROOT, VOLUME, load, percentiles_ms, read_load, replicator
from replicator.pool import volumes
from replicator.pool.opening import open_pool

RATE = 500.0
ROUNDS = 4  # which comes first, without or with the deletion, changes from one to the next
_LOAD_S = 5.0
_LEAD_S = 1.5  # until the writes are surely under way


def served_deletion(path: Path, size_bytes: int, names: list[str]) -> None:
    """What a volume of `size_bytes` answers while these snapshots of it are deleted, a part of them in each round."""
    socket = path / "nbd"
    argv = replicator("serve", path, VOLUME, "--listen", f"unix:{socket}")
    rounds: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    with subprocess.Popen(argv, env={**os.environ, **DAEMON, "PYTHONPATH": str(ROOT)}) as exporter:
        try:
            while not socket.exists() and exporter.poll() is None:
                time.sleep(0.05)
            for number in range(ROUNDS):
                doomed = names[number::ROUNDS]
                turns = (doomed, []) if number % 2 else ([], doomed)
                found = [_round(path, socket, size_bytes, some, 2 * number + at) for at, some in enumerate(turns)]
                rounds.append((found[number % 2], found[1 - number % 2]))
        finally:
            exporter.terminate()
    for name, each in zip(("alone", "meanwhile"), map(np.concatenate, zip(*rounds, strict=True)), strict=True):
        print(
            f"deletion: {name:<9} writes over NBD, {RATE:.0f}/s, ms, p50 p99 max: {percentiles_ms(each)}"
            f" ({len(each):,} writes in {ROUNDS} rounds)"
        )
    ratios = [np.percentile(beside, 99) / np.percentile(alone, 99) for alone, beside in rounds]
    print(
        f"deletion: writes over NBD meanwhile / alone: p99 {np.median(ratios):.2f}, the median of {len(ratios)} rounds"
        f" [{min(ratios):.2f} to {max(ratios):.2f}]",
        flush=True,
    )


def _round(path: Path, socket: Path, size_bytes: int, doomed: list[str], seed: int) -> npt.NDArray[np.int64]:
    """What each write waited that was due while these snapshots were deleted; or, without any, of a whole load."""
    out = path.with_name(f"writes-{seed}.npy")
    with load(socket, size_bytes, _LOAD_S, RATE, 16, out, seed), open_pool(path) as pool:
        time.sleep(_LEAD_S)
        began = time.time_ns()
        for name in doomed:
            volumes.delete_snapshot(pool, name)
        while doomed and pool.status().deleting_devices:
            time.sleep(0.02)
        ended = time.time_ns()
    found = read_load(out)
    due = found[:, 0]
    kept = found[(due >= began) & (due < ended if doomed else True)]
    assert len(kept), f"no write was due while {doomed} were deleted"
    return kept[:, 1] - kept[:, 0]
