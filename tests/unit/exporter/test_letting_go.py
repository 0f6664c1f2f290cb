"""A volume that is served is deleted or rolled back where no client has it open, and refused with the clients else."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.errors import ConflictError
from replicator.exporter import process
from replicator.exporter.address import connect_unix
from replicator.exporter.process import Exporter, ExporterSettings
from replicator.pool import volumes
from replicator.pool.clients import refuse_in_use
from replicator.pool.control_values import ListenAsked
from replicator.pool.interface import Switch
from replicator.pool.opening import own_pool
from replicator.pool.remote import RemotePool
from replicator.units import KIB, MIB
from tests.support.command_line import Command
from tests.support.nbd_ground import Client
from tests.support.pool_owner import make_pool

WRITE, FLUSH = 1, 3


@pytest.fixture
def exporter(tmp_path: Path) -> Iterator[Exporter]:
    """A pool's exporter with `disk`, its snapshot `old`, and `other`, at two sockets."""
    pool = tmp_path / "pool"
    make_pool(pool)
    with own_pool(pool) as owned:
        volumes.create_volume(owned, "disk", MIB)
        volumes.create_snapshot(owned, "disk", "old")
        volumes.create_volume(owned, "other", MIB)
    asked = (_asked(tmp_path, "a"), _asked(tmp_path, "b"), _asked(tmp_path, "c", "old"))
    with Exporter(own_pool(pool), ExporterSettings(asked)) as running:
        yield running


def _asked(folder: Path, socket: str, *names: str) -> ListenAsked:
    return ListenAsked(f"unix:{folder / socket}", list(names))


@contextlib.contextmanager
def _client(path: Path, name: str) -> Iterator[Client]:
    with connect_unix(path) as sock:
        sock.settimeout(20)
        client = Client(sock)
        client.open(name)
        yield client


def _write(client: Client, data: bytes) -> None:
    client.send(WRITE, 0, len(data), data=data)
    assert client.reply()[1] == 0


def _read(path: Path, name: str, count: int) -> bytes:
    with _client(path, name) as client:
        client.send(0, 0, count)
        return client.reply(count)[2]


def _await_disk(exporter: Exporter, listeners: int) -> None:
    """Until `disk` is offered at so many listeners: the keeper looks by itself."""
    deadline = time.monotonic() + 30
    while sum(each.name == "disk" for each in exporter.exports()) != listeners:
        assert time.monotonic() < deadline, exporter.exports()
        threading.Event().wait(0.01)


def test_without_a_client_it_is_rolled_back_and_served_on(exporter: Exporter, command: Command, tmp_path: Path) -> None:
    with _client(tmp_path / "a", "disk") as client:
        _write(client, b"x" * 4096)
    command("volume", "rollback", tmp_path / "pool", "disk", "old", "--yes")
    assert _read(tmp_path / "b", "disk", 4096) == bytes(4096), "at once, at every listener"
    with _client(tmp_path / "a", "disk") as client:
        _write(client, b"y" * 4096)
    assert _read(tmp_path / "b", "disk", 4096) == b"y" * 4096


def test_with_a_client_it_is_refused_and_the_client_notices_nothing(
    exporter: Exporter, command: Command, tmp_path: Path
) -> None:
    pool = tmp_path / "pool"
    with _client(tmp_path / "b", "disk") as client, _client(tmp_path / "c", "old") as reader:
        for line in (("rollback", pool, "disk", "old"), ("delete", pool, "disk", "--with-snapshots")):
            error = command("volume", *line, "--yes", "--json", code=4).error
            assert f"disk open: process {os.getpid()}" in error["message"] and "disconnect" in error["mend"]
        error = command("volume", "delete", pool, "old", "--yes", "--json", code=4).error
        assert "1 NBD client has old open" in error["message"]
        _write(client, b"x" * 512)
        reader.send(0, 0, 512)
        assert reader.reply(512)[2] == bytes(512)
    command("volume", "delete", pool, "disk", "--with-snapshots", "--yes")
    with RemotePool(pool) as remote:
        assert [each.name for each in remote.view().volumes] == ["other"]
        assert {each.name for each in remote.exports()} == {"other"} and len(remote.facts()) == 1


def test_the_owner_refuses_too_and_offers_again_what_it_let_go(exporter: Exporter, tmp_path: Path) -> None:
    """What nobody asks first, and what fails behind the letting go."""
    with RemotePool(tmp_path / "pool") as remote, _client(tmp_path / "b", "disk"):
        with pytest.raises(ConflictError, match="1 NBD client has disk open"):
            volumes.delete_volume(remote, "disk", with_snapshots=True)
        dev_ids = [each.dev_id for each in remote.view().volumes]
        with pytest.raises(ConflictError, match="disk open"):
            remote.switch(Switch(delete=tuple(dev_ids)))
        with pytest.raises(ConflictError, match="disk open"):
            refuse_in_use(remote, dev_ids, "disk")
        assert _read(tmp_path / "a", "other", KIB) == bytes(KIB)
        assert len(remote.exports()) == 5
    with RemotePool(tmp_path / "pool") as remote:
        with pytest.raises(ConflictError):
            remote.switch(Switch(delete=tuple(dev_ids), expected_id=10**6))
        assert _read(tmp_path / "a", "disk", KIB) == bytes(KIB)


def test_a_snapshot_that_is_served_to_nobody_gives_its_space_back_at_once(
    exporter: Exporter, command: Command, tmp_path: Path
) -> None:
    command("volume", "delete", tmp_path / "pool", "old", "--yes")
    with RemotePool(tmp_path / "pool") as remote:
        assert not remote.view().snapshots and len(remote.facts()) == 2


def test_what_could_not_be_offered_again_at_once_is_tried_until_it_can(
    exporter: Exporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is let go of, somebody may begin to read it: the switch is refused, and nobody can write it then."""
    monkeypatch.setattr(process, "RETRY_S", 0.05)
    pool = exporter._pool
    disk = pool.view().volume("disk")
    with pytest.raises(ConflictError, match="being read"), exporter.let_go([disk.dev_id]):
        lease = pool.take_lease([disk.dev_id])
        pool.switch(Switch(delete=(disk.dev_id,)))
    assert "disk" not in {each.name for each in exporter.exports()}
    lease.release()
    _await_disk(exporter, listeners=2)


def test_of_two_who_take_it_away_the_first_to_fail_gives_nothing_back(exporter: Exporter, tmp_path: Path) -> None:
    dev_id = exporter._pool.view().volume("disk").dev_id
    with exporter.let_go([dev_id]):
        with exporter.let_go([dev_id]):
            pass
        assert "disk" not in {each.name for each in exporter.exports()}
    _await_disk(exporter, listeners=2)
