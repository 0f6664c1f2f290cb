"""What one client keeps of its speed beside sixteen that disconnect, stall, flood and lie.

    python benchmarks/hostile.py [--seconds 4] [--folder DIR]

An exporter serves a volume; the client reads and writes 4 KiB at random, one request after the other. Printed for each
kind of sixteen hostile clients, and for four of each: requests a second alone and beside them, the part that is kept
(of the same round's figure alone; the median of the rounds, with the least and the most), the processor seconds that
the hostile clients themselves took (on two processors these are missing to the others, and no server can give them
back), and the exporter's memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.faults.test_hostile_clients import held, settled, work
from tests.support.exporting import Child, Setup, exporting
from tests.support.hostile import DEEDS

ROOT = Path(__file__).resolve().parents[1]
WARM_S = 1.0
LEAD_S = 5.0  # the first five bad endings of each process cost it nothing (exporter/manners); a stall takes 0.55 s
LIMIT_S = 120.0  # the hostile ones end when the client is done, and it must be by then
ROUNDS = 5  # each alone and beside, which of them first by turns: the machine has other work


def alone(path: Path, seconds: float) -> float:
    """Requests a second."""
    return work(path, seconds, 1) / seconds


def beside(path: Path, seconds: float, kinds: tuple[str, ...]) -> tuple[float, float]:
    """(requests a second of the honest client, processor seconds of the hostile ones, at work as long as it is)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    argv = [sys.executable, "-m", "tests.support.hostile", str(path), str(LIMIT_S), *kinds]
    began = time.monotonic()
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as hostile:
        assert hostile.stdout is not None
        try:
            hostile.stdout.readline()
            work(path, LEAD_S, 0)
            rate = work(path, seconds, 1) / seconds
            assert hostile.poll() is None and time.monotonic() < began + LIMIT_S, "they ended before the client"
        finally:
            hostile.terminate()
        assert set(json.loads(hostile.stdout.readline())) == set(kinds)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return rate, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def rounds(child: Child, path: Path, seconds: float, kinds: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """A row for each round: alone, beside, the processor seconds of the hostile ones."""
    found, quiet = [], held(child.pid)
    for number in range(ROUNDS):
        by_itself = alone(path, seconds) if number % 2 else 0.0
        rate, cpu = beside(path, seconds, kinds)
        settled(child, quiet)  # their connections are over
        found.append((by_itself or alone(path, seconds), rate, cpu))
    return np.array(found)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    print(f"medians of {ROUNDS} rounds, and the least and the most that was kept in one")
    heads = f"{'alone/s':>9}{'beside/s':>10}{'kept':>7}{'from':>6}{'to':>6}{'their CPU s':>13}{'exporter MiB':>14}"
    print(f"{'sixteen clients that':<22}{heads}")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "s"
        setup = Setup((f"unix:{path}",), volumes={"vol": 32 << 20, "mine": 32 << 20})
        with exporting(Path(folder) / "pool", setup) as child:
            work(path, WARM_S, 0)
            for name, kinds in (*((each, (each,)) for each in DEEDS), ("do all of it", tuple(DEEDS))):
                found = rounds(child, path, options.seconds, kinds)
                by_itself, rate, cpu = np.median(found, axis=0)
                kept = found[:, 1] / found[:, 0]
                memory = child.order("facts")["largest_kib"] >> 10
                print(
                    f"{name:<22}{by_itself:>9.0f}{rate:>10.0f}{np.median(kept):>7.0%}{kept.min():>6.0%}"
                    f"{kept.max():>6.0%}{cpu:>13.1f}{memory:>14}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
