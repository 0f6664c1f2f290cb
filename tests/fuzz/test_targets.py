"""No bytes hurt: every reader gives an answer or our own error, within a second and 64 MiB an input."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fuzz_targets import targets
from tests.support.fuzzing import fuzz

SECONDS = 1.5
SLOWER = {"metadata": 6.0}
"""One input of a pool's metadata is checked, dumped, compared and repaired: that takes longer."""
GUIDED_S = 60
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", sorted(targets()))
def test_damaged_bytes(name: str) -> None:
    print(f"\n{fuzz(targets()[name], seconds=SLOWER.get(name, SECONDS), seed=20261122)}")


@pytest.mark.soak
@pytest.mark.timeout(GUIDED_S + 120)
@pytest.mark.parametrize("name", sorted(targets()))
def test_guided_by_coverage(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    argv = [sys.executable, "-m", "tests.support.fuzz_guided", name, str(GUIDED_S), str(corpus)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    stats = dict(re.findall(r"stat::(\w+):\s+(\d+)", done.stderr))
    inputs = stats.get("number_of_executed_units", "?")
    print(f"\n{name}: {inputs} inputs guided by coverage, {len(list(corpus.iterdir()))} kept")
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(8))
def test_damaged_bytes_for_long(seed: int) -> None:
    for target in targets().values():
        print(f"\n{fuzz(target, seconds=4.0, seed=seed)}")
