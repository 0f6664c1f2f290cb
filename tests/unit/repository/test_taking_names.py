"""A restored file gets its name at the end: in place of the one that it may replace, and of no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator.cli.main import run
from replicator.errors import ConflictError
from replicator.repository.target import take_name


def test_a_file_that_came_meanwhile_stays(tmp_path: Path) -> None:
    """Data first: nobody said --overwrite, so neither of the two is lost."""
    partial, target = tmp_path / ".disk.restoring", tmp_path / "disk"
    partial.write_bytes(b"restored")
    target.write_bytes(b"precious")
    with pytest.raises(ConflictError, match="came while the restore ran"):
        take_name(partial, target, replace=False)
    assert (target.read_bytes(), partial.read_bytes()) == (b"precious", b"restored")
    take_name(partial, target, replace=True)
    assert target.read_bytes() == b"restored" and not partial.exists()


def test_an_absent_one_is_made(tmp_path: Path) -> None:
    partial = tmp_path / ".disk.restoring"
    partial.write_bytes(b"restored")
    take_name(partial, tmp_path / "disk", replace=False)
    assert (tmp_path / "disk").read_bytes() == b"restored" and not partial.exists()


def test_a_name_that_no_file_system_takes_is_no_bug_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pool", "status", str(tmp_path / ("n" * 300))]) in (1, 5)
    assert "a bug of ours" not in capsys.readouterr().err
