"""The diff of a 1 TiB device (64 KiB blocks, 16.7 M mappings) against a changed snapshot: CPU time beside thin_delta.

    python benchmarks/diff.py [--rounds 3] [--blocks 16777216] [--folder DIR] [PAIR ...]

For each pair of trees a metadata image is made (tests/support/thinimage), both thin_checks can be asked about it with
--check; then thin_delta C++, thin_delta Rust, our call in this process and our call in a process of its own take turns,
`rounds` times, all warm. Printed: the median CPU seconds of each, and the median of the rounds' ratios to ours.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from replicator.blockdev.file import FileDevice
from replicator.thin.diff import diff
from replicator.thin.mapping import pack_many
from replicator.thin.view import PoolView
from tests.support.judges import assert_clean, thin_tool
from tests.support.thinimage import Thin, ThinImage

U64 = npt.NDArray[np.uint64]
ROOT = Path(__file__).resolve().parents[1]
TIB_BLOCKS = 1 << 24
CLUSTERS = 4
SEED = 20261
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
WHOLE_PROCESS = """
import sys
from pathlib import Path
from replicator.blockdev.file import FileDevice
from replicator.thin.diff import diff
from replicator.thin.view import PoolView
with FileDevice(Path(sys.argv[1]), read_only=True) as device:
    view = PoolView.live(device)
    for _ in diff(view.store, view.device(1).root, view.device(2).root, data_nr_blocks=view.data_nr_blocks):
        pass
"""


def random_blocks(rng: np.random.Generator, blocks: int, share: float) -> U64:
    """Scattered virtual blocks."""
    return np.sort(rng.choice(blocks, int(blocks * share), replace=False)).astype(np.uint64)


def clustered_blocks(rng: np.random.Generator, blocks: int, share: float) -> U64:
    """The same number in a few stretches."""
    length = int(blocks * share) // CLUSTERS
    begins = np.arange(CLUSTERS) * (blocks // CLUSTERS) + rng.integers(0, blocks // CLUSTERS - length, CLUSTERS)
    return (begins[:, None] + np.arange(length)).reshape(-1).astype(np.uint64)


@dataclass(frozen=True, slots=True)
class Pair:
    """How the target differs from the base; `share` 1 is a tree that has nothing of the base's."""

    name: str
    share: float
    choose: Callable[[np.random.Generator, int, float], U64]


PAIRS = (
    Pair("random 0.1 %", 0.001, random_blocks),
    Pair("random 1 %", 0.01, random_blocks),
    Pair("random 10 %", 0.1, random_blocks),
    Pair("clustered 0.1 %", 0.001, clustered_blocks),
    Pair("clustered 10 %", 0.1, clustered_blocks),
    Pair("unrelated trees", 1.0, random_blocks),
)


def make_image(path: Path, pair: Pair, blocks: int) -> None:
    """Device 1 wholly mapped, device 2 its snapshot with the pair's blocks overwritten in ascending order."""
    rng = np.random.default_rng(SEED)
    image = ThinImage(path, 2 * blocks, metadata_nr_blocks=blocks // 100 + 8192)
    keys = np.arange(blocks, dtype=np.uint64)
    base_values = pack_many(keys, 0)
    changed = pair.choose(rng, blocks, pair.share)
    values = base_values.copy()
    values[changed.astype(np.int64)] = pack_many(np.arange(blocks, blocks + len(changed), dtype=np.uint64), 1)
    base = image.mapping_tree(keys, base_values)
    target = image.mapping_tree(keys, values, like=base)
    image.finish({1: Thin(base, snapshotted_time=1), 2: Thin(target, creation_time=1, snapshotted_time=1)}, time=1)


def count_changes(path: Path) -> tuple[int, int, float]:
    """Runs, blocks and CPU seconds of our call on devices 1 and 2."""
    with FileDevice(path, read_only=True) as device:
        view = PoolView.live(device)
        began = time.process_time()
        base, target = view.device(1), view.device(2)
        runs = changed = 0
        for piece in diff(view.store, base.root, target.root, data_nr_blocks=view.data_nr_blocks):
            runs += len(piece)
            changed += int((piece.end - piece.begin).sum())
        return runs, changed, time.process_time() - began


def cpu_of(argv: list[str], env: dict[str, str]) -> float:
    """CPU seconds, user and system, of one program that must succeed."""
    process = subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{argv[0]} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def measure(path: Path, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each contestant, round by round; one round before them warms the page cache."""
    tools = {f"thin_delta {engine}": thin_tool(engine, "thin_delta") for engine in ("cpp", "rust")}
    contest: dict[str, Callable[[], float]] = {
        name: partial(cpu_of, tool.argv("--snap1", 1, "--snap2", 2, path), tool.env()) for name, tool in tools.items()
    }
    contest["ours, the call"] = lambda: count_changes(path)[2]
    whole = [sys.executable, "-c", WHOLE_PROCESS, str(path)]
    contest["ours, whole process"] = lambda: cpu_of(whole, {**os.environ, "PYTHONPATH": str(ROOT), **ONE_THREAD})
    count_changes(path)
    taken: dict[str, list[float]] = {name: [] for name in contest}
    for _ in range(rounds):
        for name, run in contest.items():
            taken[name].append(run())
    return taken


def report(pair: Pair, path: Path, taken: dict[str, list[float]]) -> None:
    """One line a contestant, and the ratios to the two of ours."""
    runs, changed, _ = count_changes(path)
    print(f"{pair.name}: {changed} blocks in {runs} runs differ; metadata file {path.stat().st_blocks * 512 >> 20} MiB")
    for name, seconds in taken.items():
        line = f"  {name:20s} {statistics.median(seconds):7.3f} CPU s"
        if name.startswith("thin_delta"):
            for ours in ("ours, the call", "ours, whole process"):
                ratio = statistics.median(a / b for a, b in zip(seconds, taken[ours], strict=True))
                line += f"   {ratio:7.2f} x {ours}"
        print(line, flush=True)


def main() -> None:
    """Make, measure and print each pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", help="names of pairs; all without")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=TIB_BLOCKS)
    parser.add_argument("--folder", type=Path, default=None, help="where the images go; a temporary folder without")
    parser.add_argument("--check", action="store_true", help="ask both thin_checks about each image")
    given = parser.parse_args()
    for pair in PAIRS:
        if given.pairs and pair.name not in given.pairs:
            continue
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            path = Path(folder) / "metadata"
            began = time.process_time()
            make_image(path, pair, given.blocks)
            print(f"{pair.name}: image in {time.process_time() - began:.1f} CPU s", flush=True)
            if given.check:
                assert_clean(path)
            report(pair, path, measure(path, given.rounds))


if __name__ == "__main__":
    main()
