"""A pool on a file system of 8 MiB that runs full, and is then made larger (P8). Needs root, for a mount of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def can_mount() -> str:
    """Why a mount namespace can't be had here, or nothing."""
    if shutil.which("unshare") is None:
        return "unshare isn't here"
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip() if tried.returncode else ""


def test_a_small_disk_runs_full_and_is_made_larger(tmp_path: Path) -> None:
    reason = can_mount()
    if reason and os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    if reason:
        pytest.skip(f"no mount namespace: {reason}")
    argv = ["unshare", "--mount", sys.executable, "-m", "tests.support.small_disk", str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(f"\n{found}")
    written = found.pop("written")
    assert 0 < written < 200
    expected = {"filled": True, "reads": True, "reopened": True, "still full": False, "after growing": True}
    assert found == {**expected, "at the end": True, "check": []}
