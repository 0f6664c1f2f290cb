"""Runs seeds of the simulation of two hosts, one after the other, up to the first that fails.

python -m tests.support.two_hosts_seeds SEED [COUNT] [DISASTER…]      those seeds; disasters instead of their own
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.support.two_hosts import run_plan
from tests.support.two_hosts_plan import Plan, Report


def run_seeds(seeds: Iterable[int], folder: Path, disasters: tuple[str, ...] | None = None) -> Report:
    """What all of them came to; AssertionError with the first that failed, and how to run it alone."""
    report = Report()
    for seed in seeds:
        plan = Plan.of(seed, disasters)
        try:
            report.add(run_plan(plan, folder))
        except Exception as error:
            again = f"python -m tests.support.two_hosts_seeds {seed} 1 {' '.join(disasters or ())}".strip()
            what = f"seed {seed} ({plan.kind}, {', '.join(plan.disasters) or 'no disaster'}): {type(error).__name__}"
            raise AssertionError(f"{what}: {error}\nrun it alone: {again}") from error
    return report


def main(arguments: list[str]) -> int:
    """The command line."""
    seed, count, disasters = int(arguments[0]), int(arguments[1]) if arguments[1:] else 1, tuple(arguments[2:])
    with tempfile.TemporaryDirectory() as folder:
        print(run_seeds(range(seed, seed + count), Path(folder), disasters or None).text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
