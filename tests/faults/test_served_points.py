"""A point that is served for days outlives the process that has the pool: killed, started again, read on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from replicator.blockdev.nbd import NbdDevice
from replicator.errors import ReplicatorError
from replicator.nbd.uri import NbdUri
from replicator.units import KIB
from tests.support.kept_points import pool_with_point
from tests.support.serve_process import ROOT, serving
from tests.support.volume_histories import NAME


@pytest.mark.parametrize("number", [2, 4])
def test_reads_go_on_under_a_new_lease(tmp_path: Path, number: int) -> None:
    """A snapshot (2), and a point that is replayed over it (4)."""
    opened, history = pool_with_point(tmp_path, 1, 64 * KIB, kept=2, transactions=4)
    opened.close()
    pool, content = tmp_path / "pool", history.contents[1, number]
    point = f"{NAME}@{number}"
    owner = [sys.executable, "-m", "replicator.cli.main", "serve", str(pool), NAME, "--listen", f"unix:{tmp_path}/live"]
    uri = NbdUri.parse(f"nbd+unix:///{point}?socket={tmp_path}/point")
    first = subprocess.Popen(owner, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    second = None
    try:
        assert first.stdout is not None and first.stdout.readline()
        with (
            serving(pool, point, "--listen", f"unix:{tmp_path}/point", "--read-only"),
            NbdDevice(uri, read_only=True) as served,
        ):
            assert served.pread(len(content), 0) == content
            first.kill()
            first.wait()
            with pytest.raises(ReplicatorError):
                served.pread(len(content), 0)
            second = subprocess.Popen(owner, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            assert second.stdout is not None and second.stdout.readline()
            assert served.pread(len(content), 0) == content, "under a lease of the new owner's"
    finally:
        for each in (first, second):
            if each is not None:
                each.kill()
                each.communicate()
