"""An SSH log whose far disk went away: nothing is written into the folder that it left, nor is one made anew."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest

from replicator._buffer import Buffer
from replicator.errors import NotFoundError, UnavailableError
from replicator.events.state import StreamState
from replicator.log import names
from replicator.log.errors import PutUnknownError
from replicator.log.object_log import ObjectLog, directory_log
from replicator.log.opening import open_log
from replicator.log.rights import Rights
from replicator.log.stdio_client import RemoteStore
from replicator.log.stdio_connection import Connection
from replicator.log.stdio_protocol import Kind
from tests.support.event_streams import OTHER_VOLUME, VOLUME, Script
from tests.support.loopback_store import LoopbackChannel, loopback_store
from tests.support.sshd import REPLICATOR
from tests.unit.log.test_log_folders import say

SEGMENT = names.segment_name(VOLUME, 1, 1)


class Disk:
    """A log's folder, on a disk that can be taken away."""

    def __init__(self, tmp_path: Path) -> None:
        self.log, self._aside = tmp_path / "log", tmp_path / "aside"

    def unmount(self, *, leaves_folder: bool = True) -> None:
        """It goes; an empty folder stays, unless it lay on that disk too."""
        self.log.rename(self._aside)
        if leaves_folder:
            self.log.mkdir()

    def mount(self) -> None:
        """It comes back."""
        if self.log.exists():
            self.log.rmdir()  # fails where anything was written into it
        self._aside.rename(self.log)


class Falling(LoopbackChannel):
    """A connection that falls at the first request of one kind, before it arrives or after it."""

    def __init__(self, root: Path, kind: Kind, *, arrives: bool) -> None:
        super().__init__(root)
        self._kind, self._arrives = kind, arrives

    def send(self, parts: list[Buffer]) -> None:
        """All of these, or it falls."""
        falls = parts[0][5] == self._kind
        if self._arrives or not falls:
            super().send(parts)
        if falls:
            self.finish()
            raise OSError("fell")


def falling_store(root: Path, kind: Kind, *, arrives: bool) -> RemoteStore:
    """A store whose first connection falls so, and none after it."""
    falls = [True]

    def connect(is_known: bool) -> Connection:
        channel = Falling(root, kind, arrives=arrives) if falls.pop() else LoopbackChannel(root)
        falls.append(False)
        return Connection(channel, "loopback:", str(root), create=not is_known)

    return RemoteStore("loopback:", connect)


@pytest.mark.parametrize("leaves_folder", [True, False], ids=["its folder stays", "its folder is gone too"])
def test_a_log_that_went_away_is_away_until_it_is_back(tmp_path: Path, leaves_folder: bool) -> None:
    disk, script = Disk(tmp_path), Script().create().transaction(1)
    other = Script(StreamState.start(OTHER_VOLUME)).create()
    with closing(loopback_store(disk.log)) as store:
        log = ObjectLog(store, create=True)
        assert say(log, script)
        store.close()  # as when the far host starts anew
        disk.unmount(leaves_folder=leaves_folder)
        for _ in range(3):
            assert not say(log, other)
            with pytest.raises(UnavailableError, match="the log isn't there any more") as caught:
                log.reader(VOLUME, 1).tail()
            assert "mounted" in str(caught.value.mend)
        assert disk.log.exists() == leaves_folder and not list(disk.log.glob("*"))
        disk.mount()
        assert list(log.reader(VOLUME, 1).read(1)) == script.events
        assert say(log, other), "the process need not be started anew"


def test_a_log_that_was_only_read_is_away_too(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    directory_log(disk.log, create=True)
    with closing(loopback_store(disk.log, Rights.FOLLOW, create=False)) as store:
        log = ObjectLog(store)
        store.close()
        disk.unmount(leaves_folder=False)
        with pytest.raises(UnavailableError, match="no log directory"):
            log.registrations(VOLUME)
    with pytest.raises(NotFoundError, match="no log directory"):
        ObjectLog(loopback_store(disk.log, create=False))


def test_a_connection_that_stands_sees_that_the_log_is_away(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    directory_log(disk.log, create=True)
    with closing(loopback_store(disk.log)) as store:
        log = ObjectLog(store)
        disk.unmount()  # while the connection stands
        assert not say(log, Script().create())
        for write in (store.put, store.put_if_absent):
            with pytest.raises(UnavailableError, match="has no replicator-log"):
                write(names.beacon_name(VOLUME), b"x")
        for read in (log.volumes, log.reader(VOLUME, 1).tail, lambda: log.read_beacon(VOLUME)):
            with pytest.raises(UnavailableError, match="has no replicator-log"):
                read()
        disk.mount()
        assert log.volumes() == [] and log.read_beacon(VOLUME) is None
        assert say(log, Script().create())


@pytest.mark.parametrize("arrives", [False, True])
def test_a_creating_opening_that_broke_may_create_again(tmp_path: Path, arrives: bool) -> None:
    with closing(falling_store(tmp_path / "log", Kind.PUT_IF_ABSENT, arrives=arrives)) as store:
        with pytest.raises(PutUnknownError):
            ObjectLog(store, create=True)
        if not arrives:
            (tmp_path / "log").rmdir()
        log = ObjectLog(store, create=True)
        assert say(log, Script().create())


def test_a_creating_opening_that_broke_early_goes_on_by_itself(tmp_path: Path) -> None:
    with closing(falling_store(tmp_path / "log", Kind.GET, arrives=False)) as store:
        assert say(ObjectLog(store, create=True), Script().create())


@pytest.mark.parametrize(
    ("kind", "arrives", "error"),
    [
        (Kind.WRITE, False, UnavailableError),
        (Kind.COMMIT, False, PutUnknownError),
        (Kind.COMMIT, True, PutUnknownError),
    ],
)
def test_the_disk_goes_with_the_connection_amid_a_commit(
    tmp_path: Path, kind: Kind, arrives: bool, error: type[UnavailableError]
) -> None:
    disk = Disk(tmp_path)
    with closing(falling_store(disk.log, kind, arrives=arrives)) as store:
        ObjectLog(store, create=True)
        sink = store.create(SEGMENT)
        sink.write([b"events"])
        with pytest.raises(error) as caught:
            sink.commit()
        assert type(caught.value) is PutUnknownError or error is UnavailableError
        store.close()
        disk.unmount()
        for ask in (store.size, store.create):
            with pytest.raises(UnavailableError, match="the log isn't there any more"):
                ask(SEGMENT)
        disk.mount()
        assert store.size(SEGMENT) == (len(b"events") if arrives else None)


def test_over_an_ssh_no_log_is_made_anew(tmp_path: Path) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\nwhile [ "$1" != "--" ]; do shift; done\nexec sh -c "$3"\n')
    ssh.chmod(0o755)
    disk = Disk(tmp_path)
    url = f"ssh://host{quote(str(disk.log))}?command={quote(REPLICATOR)}&ssh={quote(str(ssh))}"
    with closing(open_log(url, create=True)) as log:
        assert say(log, Script().create())
        log.close()
        disk.unmount(leaves_folder=False)
        with pytest.raises(UnavailableError, match="the log isn't there any more"):
            log.volumes()
        assert not disk.log.exists()
