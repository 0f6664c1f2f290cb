"""What one client keeps of its speed beside sixteen that disconnect, stall, flood and lie.

    python benchmarks/hostile.py [--seconds 4] [--folder DIR]

An exporter serves a volume; the client reads and writes 4 KiB at random, one request after the other. Printed for each
kind of sixteen hostile clients, and for four of each: requests a second alone and beside them, the part that is kept,
the processor seconds that the hostile clients themselves took (on two processors these are missing to the others, and
no server can give them back), and the exporter's memory.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.faults.test_hostile_clients import work
from tests.support.exporting import Setup, exporting
from tests.support.hostile import DEEDS

ROOT = Path(__file__).resolve().parents[1]
WARM_S = 1.0
LEAD_S = 5.0  # the first five bad endings of each process cost it nothing (exporter/manners); a stall takes 0.55 s
ROUNDS = 2  # alone and beside by turns, the best of each: the machine has other work


def beside(path: Path, seconds: float, kinds: tuple[str, ...]) -> tuple[float, float]:
    """(requests a second of the honest client, processor seconds of the hostile ones)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    argv = [sys.executable, "-m", "tests.support.hostile", str(path), str(LEAD_S + seconds + 0.5), *kinds]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as hostile:
        assert hostile.stdout is not None
        hostile.stdout.readline()
        work(path, LEAD_S, 0)
        rate = work(path, seconds, 1) / seconds
        hostile.stdout.readline()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return rate, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    print(
        f"{'sixteen clients that':<22}{'alone/s':>9}{'beside/s':>10}{'kept':>7}{'their CPU s':>13}{'exporter MiB':>14}"
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "s"
        setup = Setup((f"unix:{path}",), volumes={"vol": 32 << 20, "mine": 32 << 20})
        with exporting(Path(folder) / "pool", setup) as child:
            work(path, WARM_S, 0)
            for name, kinds in (*((each, (each,)) for each in DEEDS), ("do all of it", tuple(DEEDS))):
                alone, rate, cpu = 0.0, 0.0, 0.0
                for _ in range(ROUNDS):
                    alone = max(alone, work(path, options.seconds, 1) / options.seconds)
                    best, cpu = beside(path, options.seconds, kinds)
                    rate = max(rate, best)
                memory = child.order("facts")["largest_kib"] >> 10
                print(f"{name:<22}{alone:>9.0f}{rate:>10.0f}{rate / alone:>7.0%}{cpu:>13.1f}{memory:>14}")


if __name__ == "__main__":
    main()
