"""What stands at .NAME.restoring is written to only if an interrupted restore of ours made it."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from replicator.errors import ConflictError
from replicator.log.object_log import directory_log
from replicator.repository.restore import plan_restore, restore
from replicator.repository.resume import foreign_reason, partial_path, state_path
from replicator.repository.source import open_source
from replicator.units import CHUNK_BYTES
from tests.support.volume_histories import NAME, History

SIZE = 4 * CHUNK_BYTES


@pytest.fixture
def history(tmp_path: Path) -> History:
    made = History(directory_log(tmp_path / "log", create=True), random.Random(3), SIZE)
    made.transaction()
    made.close()
    return made


def attempt(folder: Path, to: Path) -> None:
    with open_source(str(folder / "log")) as source:
        opened = source.open_point(f"{NAME}@1", now_ns=1 << 62)
        with opened.disk:
            restore(plan_restore(opened, str(to)))


def test_a_strangers_file_is_left_alone(tmp_path: Path, history: History) -> None:
    to, partial = tmp_path / "disk.img", tmp_path / ".disk.img.restoring"
    partial.write_bytes(b"a stranger's notes")
    with pytest.raises(ConflictError, match="isn't a restore's that was interrupted"):
        attempt(tmp_path, to)
    assert partial.read_bytes() == b"a stranger's notes" and not to.exists()
    partial.unlink()
    attempt(tmp_path, to)
    assert to.read_bytes() == history.contents[1, 1]


def test_links_are_refused(tmp_path: Path, history: History) -> None:
    precious, to = tmp_path / "precious", tmp_path / "disk.img"
    precious.write_bytes(b"")
    partial = partial_path(to)
    partial.symlink_to(precious)
    assert foreign_reason(to)
    partial.unlink()
    os.link(precious, partial)
    with pytest.raises(ConflictError, match="restoring"):
        attempt(tmp_path, to)
    assert precious.read_bytes() == b"" and not to.exists()


def test_an_empty_one_was_just_made(tmp_path: Path, history: History) -> None:
    """A restore that died before its state was written leaves it; nothing is lost by going on."""
    to = tmp_path / "disk.img"
    partial_path(to).touch()
    attempt(tmp_path, to)
    assert to.read_bytes() == history.contents[1, 1] and not state_path(to).exists()
