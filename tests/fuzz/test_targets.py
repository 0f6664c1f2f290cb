"""No bytes hurt: every reader gives an answer or our own error, within a second and 64 MiB an input."""

from __future__ import annotations

import struct
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
    pytest.importorskip("atheris", reason="guided fuzzing needs atheris: pip install '.[soak]'")
    corpus, tally = tmp_path / "corpus", tmp_path / "tally"
    corpus.mkdir()
    argv = [sys.executable, "-m", "tests.support.fuzz_guided", name, str(GUIDED_S), str(corpus), str(tally)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"found: {done.stderr[-4000:]}"
    inputs, size_bytes = struct.unpack("QQ", tally.read_bytes())
    kept = len(list(corpus.iterdir()))
    print(f"\n{name}: {inputs} inputs, {size_bytes} bytes, guided by coverage; {kept} kept; found nothing")
    assert inputs


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(8))
def test_damaged_bytes_for_long(seed: int) -> None:
    for target in targets().values():
        print(f"\n{fuzz(target, seconds=4.0, seed=seed)}")
