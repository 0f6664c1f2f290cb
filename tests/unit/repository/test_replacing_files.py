"""A file is replaced by what was restored only if it may be then: hours lie between the plan and the new name."""

from __future__ import annotations

import fcntl
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from replicator.errors import ConflictError
from replicator.log.object_log import directory_log
from replicator.repository.restore import RestorePlan, goes_on, plan_restore, restore
from replicator.repository.resume import partial_path, state_path
from replicator.repository.source import open_source
from replicator.units import CHUNK_BYTES
from tests.support.volume_histories import NAME, History

SIZE = 4 * CHUNK_BYTES


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    """A log of one transaction; what the volume holds then."""
    history = History(directory_log(tmp_path / "log", create=True), random.Random(3), SIZE)
    history.write(0, random.Random(1).randbytes(SIZE - 600))
    history.close()
    return history.contents[1, 1]


@contextmanager
def planned(to: Path, *, overwrite: bool = False) -> Iterator[RestorePlan]:
    """A restore of it that was allowed, and hasn't begun."""
    with open_source(str(to.parent / "log")) as source:
        opened = source.open_point(f"{NAME}@1", now_ns=1 << 62)
        with opened.disk:
            plan = plan_restore(opened, str(to), overwrite=overwrite)
            plan.target.require_allowed()
            yield plan


def refused(plan: RestorePlan, why: str) -> None:
    """It is refused at its end: the target stays, what was restored is kept, and the message says where."""
    partial = partial_path(plan.target.path)
    with pytest.raises(ConflictError, match=f"changed while the restore ran: .*{why}") as caught:
        restore(plan)
    assert str(partial) in caught.value.message and str(partial) in (caught.value.mend or "")
    assert caught.value.exit_code == 4 and partial.exists() and goes_on(plan)


def test_an_empty_file_that_was_filled_meanwhile_stays(tmp_path: Path, whole: bytes) -> None:
    to = tmp_path / "disk.img"
    to.touch()
    with planned(to) as plan:
        to.write_bytes(b"precious")
        refused(plan, "not empty")
    assert to.read_bytes() == b"precious" and partial_path(to).read_bytes() == whole
    with planned(to, overwrite=True) as plan:
        assert plan.resumes_at == SIZE and restore(plan).written_bytes == 0
    assert to.read_bytes() == whole and not partial_path(to).exists() and not state_path(to).exists()


def test_so_does_one_that_came_meanwhile(tmp_path: Path, whole: bytes) -> None:
    to = tmp_path / "disk.img"
    with planned(to) as plan:
        to.write_bytes(b"precious")
        refused(plan, "not empty")
    to.unlink()
    with planned(to) as plan:
        to.touch()
        with pytest.raises(ConflictError, match="came while the restore ran"):
            restore(plan)
    assert to.read_bytes() == b"" and partial_path(to).read_bytes() == whole


def test_one_that_somebody_opened_meanwhile_is_not_taken_away(tmp_path: Path, whole: bytes) -> None:
    """As a virtual machine that was started on it: it would go on writing into a file without a name."""
    to = tmp_path / "disk.img"
    to.write_bytes(b"precious")
    with planned(to, overwrite=True) as plan, to.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused(plan, "locked by another program")
        assert held.read() == b"precious" and to.samefile(f"/proc/self/fd/{held.fileno()}")
    with planned(to, overwrite=True) as plan:
        assert restore(plan).resumed_at_bytes == SIZE
    assert to.read_bytes() == whole


@pytest.mark.parametrize("other", ["folder", "link"])
def test_what_is_no_such_file_any_more_stays(tmp_path: Path, whole: bytes, other: str) -> None:
    to, elsewhere = tmp_path / "disk.img", tmp_path / "elsewhere"
    to.write_bytes(b"precious")
    with planned(to, overwrite=True) as plan:
        to.rename(elsewhere)
        if other == "folder":
            to.mkdir()
        else:
            to.symlink_to(elsewhere)
        refused(plan, "neither a file" if other == "folder" else "elsewhere")
    assert elsewhere.read_bytes() == b"precious" and partial_path(to).read_bytes() == whole


def test_one_that_went_away_meanwhile_is_made(tmp_path: Path, whole: bytes) -> None:
    to = tmp_path / "disk.img"
    to.write_bytes(b"precious")
    with planned(to, overwrite=True) as plan:
        to.unlink()
        restore(plan)
    assert to.read_bytes() == whole
