"""A log's folders that go away under a process that knows them: made again where the log stands, and only there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from replicator.errors import FormatError, UnavailableError
from replicator.events.state import StreamState
from replicator.log.directory import DirectoryStore
from replicator.log.interface import Appended, Log
from replicator.log.object_log import directory_log
from tests.support.event_streams import OTHER_VOLUME, VOLUME, Script
from tests.support.faulty_files import UnsyncedFiles


def emptied(folder: Path) -> None:
    """Nothing is in it any more; the folder itself stands, as one that isn't mounted does."""
    for each in folder.iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()


def say(log: Log, script: Script) -> bool:
    """All that the script has; False where the log can't be reached."""
    try:
        with log.writer(script.state.volume, 1) as writer:
            return isinstance(writer.append(writer.state.link, script.events), Appended)
    except UnavailableError:
        return False


def test_folders_that_an_older_copy_lacks_are_made_again(tmp_path: Path) -> None:
    log = directory_log(tmp_path / "log", create=True)
    shutil.copytree(tmp_path / "log", tmp_path / "older")
    assert say(log, Script().create().transaction(1))
    emptied(tmp_path / "log")
    shutil.copytree(tmp_path / "older", tmp_path / "log", dirs_exist_ok=True)
    again = Script().create().transaction(2)
    assert any(say(log, again) for _ in range(4)), "the process need not be started anew"
    assert list(log.reader(VOLUME, 1).read(1)) == again.events


def test_a_folder_that_is_not_mounted_is_not_written_into(tmp_path: Path) -> None:
    log = directory_log(tmp_path / "log", create=True)
    assert say(log, Script().create().transaction(1))
    emptied(tmp_path / "log")
    other = Script(StreamState.start(OTHER_VOLUME)).create()
    assert [say(log, script) for script in (Script().create(), other) for _ in range(3)] == [False] * 6
    assert not list((tmp_path / "log").iterdir())


class Growing(UnsyncedFiles):
    """Files of which one is replaced by a longer one right after its length was asked for."""

    def __init__(self, grown: Path) -> None:
        super().__init__()
        self._grown = grown

    def path_size(self, path: str) -> int:
        """As it was a moment ago."""
        size = super().path_size(path)
        if path == str(self._grown):
            self._grown.with_suffix(".new").write_bytes(b"longer, by some")
            self._grown.with_suffix(".new").rename(self._grown)
        return size


def test_an_object_that_is_replaced_while_it_is_read_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "entry").write_bytes(b"short")
    store = DirectoryStore(tmp_path, Growing(tmp_path / "entry"))
    assert store.get("entry", 100) in (b"short", b"longer, by some")
    assert store.get("entry", 15) == b"longer, by some"
    with pytest.raises(FormatError, match="at most 14 bytes"):
        store.get("entry", 14)
    assert store.get("none", 14) is None
