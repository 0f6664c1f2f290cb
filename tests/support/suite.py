"""Runs every test folder, one after the other, and prints each one's time against its budget. Run by `make test`.

A folder that is missing, or holds no test, is a failure: nothing can be dropped unseen. A folder over its budget is
shown as such and fails nothing, since machines differ. With --soak only the tests marked `soak` run; otherwise all
others. Folder names on the command line run those alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NO_TESTS = 5  # pytest's exit status when nothing was collected
PLUGINS = ("-p", "xdist", "-p", "timeout", "-p", "hypothesispytest")
"""Those of the tests; loading whatever else is installed costs each worker a second, and may change what they do."""
NO_OTHERS = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
WORKERS_MAX = 4  # beyond this the judges' own threads compete
WAITING = 1  # workers more than processors, where tests wait for guests, brokers, servers and fixed times


@dataclass(frozen=True, slots=True)
class Folder:
    """One test folder: the seconds it may take on two cores, and how many workers it has more than processors."""

    name: str
    budget_s: int
    more_workers: int = 0


FOLDERS = (
    Folder("unit", 150),
    Folder("properties", 90),
    Folder("contracts", 120, WAITING),
    Folder("golden", 20),
    Folder("fuzz", 60),
    Folder("faults", 480, WAITING),
    Folder("simulation", 420, WAITING),
    Folder("compat", 360, WAITING),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a folder's run ended; `problem` is empty when all is well."""

    folder: Folder
    elapsed_s: float
    problem: str


def run_folder(root: Path, folder: Folder, workers: int, *, soak: bool) -> Outcome:
    """Run one folder's tests, side by side but for groups that share what is costly, in processes of their own."""
    path = root / "tests" / folder.name
    if not path.is_dir():
        return Outcome(folder, 0.0, "the folder is missing")
    side_by_side = ["-n", str(workers + folder.more_workers), "--dist", "loadgroup"] if workers > 1 else []
    argv = [sys.executable, "-m", "pytest", *PLUGINS, str(path), *side_by_side, "-m", "soak" if soak else "not soak"]
    began = time.monotonic()
    status = subprocess.run(argv, cwd=root, env={**os.environ, **NO_OTHERS}, check=False).returncode
    elapsed_s = time.monotonic() - began
    if status == NO_TESTS:
        return Outcome(folder, elapsed_s, "" if soak else "holds no test")
    return Outcome(folder, elapsed_s, f"failed ({status})" if status else "")


def report(outcomes: list[Outcome]) -> str:
    """The table of times against budgets."""
    lines = [f"{'folder':<12}{'time':>8}{'budget':>8}"]
    for outcome in outcomes:
        over = "over budget" if outcome.elapsed_s > outcome.folder.budget_s else ""
        note = outcome.problem or over or "ok"
        lines.append(f"{outcome.folder.name:<12}{outcome.elapsed_s:>6.1f} s{outcome.folder.budget_s:>6} s  {note}")
    return "\n".join([*lines, f"{'all':<12}{sum(outcome.elapsed_s for outcome in outcomes):>6.1f} s"])


def main(arguments: list[str]) -> int:
    """Run the folders, all of them even when one fails; 1 when any did."""
    soak, names = "--soak" in arguments, [word for word in arguments if not word.startswith("-")]
    workers = min(os.cpu_count() or 1, WORKERS_MAX)
    outcomes = []
    for folder in FOLDERS:
        if names and folder.name not in names:
            continue
        print(f"tests: {folder.name}", flush=True)
        outcomes.append(run_folder(ROOT, folder, workers, soak=soak))
    print(report(outcomes), flush=True)
    return 1 if not outcomes or any(outcome.problem for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
