"""A receiver as a whole: followers come and go, status and stop over its socket, registered while it runs."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest

from receiver.config import ReceiverConfig
from receiver.daemon import Receiver, Surroundings
from receiver.patience import StopWaiter
from replicator.errors import ConflictError, DamageError, ReplicatorError
from replicator.exporter.journal import Journal, notify_systemd
from replicator.log.object_log import ObjectLog
from replicator.pool.daemons import ask
from replicator.pool.registrations import registrations
from replicator.repository.remembered import LOG_SETTING
from tests.support.memory_objects import MemoryStore
from tests.support.receivers import assert_prefix
from tests.support.replica_pools import ReplicaPool
from tests.support.replica_streams import SourceVolume

DEADLINE_S = 60.0
SIZE = 10 * 65536


@pytest.fixture
def replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReplicaPool]:
    monkeypatch.setenv("REPLICATOR_RUNTIME_DIR", str(tmp_path / "run"))
    folder = tmp_path / "pool"
    folder.mkdir()
    pool = ReplicaPool(folder)
    yield pool
    pool.closed_by_daemon = True
    pool.assert_clean()


def surroundings(replica: ReplicaPool, log: ObjectLog, stream: io.StringIO) -> Surroundings:
    return Surroundings(
        connect_pool=lambda: replica.pool,
        open_log=lambda: log,
        waiter=StopWaiter(),
        clock_ns=time.time_ns,
        chance=lambda: 0.5,
        journal=Journal(stream, time.time_ns),
        zone=UTC,
        end_owner=lambda _: None,
        open_devices=lambda _: nullcontext(replica.disks),
    )


def until(replica: ReplicaPool, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Ask for the status until it is as wanted."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        try:
            found = ask(replica.folder, "receiver", "status")
        except ReplicatorError:
            continue
        if holds(found):
            return found
    raise AssertionError("the status never was as wanted")


def test_it_follows_tells_and_stops(replica: ReplicaPool) -> None:
    log, stream = ObjectLog(MemoryStore(), create=True), io.StringIO()
    sources = [SourceVolume(seed, SIZE, name=f"vm{seed}") for seed in (1, 2)]
    for source in sources:
        source.transaction(source.scribble())
        source.publish(log)
    config = ReceiverConfig(replica.folder, "log", discover_every_s=0.1)
    receiver = Receiver(config, surroundings(replica, log, stream))
    thread = threading.Thread(target=receiver.run)
    thread.start()
    try:
        found = until(replica, lambda found: [each["number"] for each in found["volumes"]] == [1, 1])
        assert found["kind"] == "receiver" and found["exporter_pid"] == found["pid"]
        assert [each.kind for each in registrations()] == ["receiver"]
        sources[0].transaction(sources[0].scribble())
        sources[0].publish(log)
        until(replica, lambda found: {each["volume"]: each["number"] for each in found["volumes"]}["vm1"] == 2)
        assert [assert_prefix(replica, source) for source in sources] == [2, 1]
        assert replica.pool.view().setting(LOG_SETTING).endswith("/log")
        with pytest.raises(ConflictError, match="another process listens"):
            Receiver(config, surroundings(replica, log, stream)).run()
        assert ask(replica.folder, "receiver", "stop")["pid"]
    finally:
        receiver.stop({})
        thread.join()
    assert not registrations()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert lines[0]["event"] == "receiver started" and lines[-1]["event"] == "receiver stopped"


def test_one_volumes_trouble_is_its_own(replica: ReplicaPool) -> None:
    """W1: the other volume is applied; the error comes out at the end, and is in the journal."""
    store = MemoryStore()
    log, stream = ObjectLog(store, create=True), io.StringIO()
    sources = [SourceVolume(seed, SIZE, name=f"vm{seed}") for seed in (1, 2)]
    for source in sources:
        source.transaction(source.scribble())
        source.publish(log)
    broken = max(each for each in store.objects if each.startswith(str(sources[0].uuid)))
    store.objects[broken] = store.objects[broken][:-5]
    receiver = Receiver(ReceiverConfig(replica.folder, "log"), surroundings(replica, log, stream))
    with pytest.raises(DamageError):
        receiver.catch_up()
    assert str(sources[0].uuid) in stream.getvalue()
    assert assert_prefix(replica, sources[1]) == 1


def test_systemd_hears_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify_systemd("READY=1", "STATUS=well")
        assert manager.recv(100) == b"READY=1\nSTATUS=well"
    notify_systemd("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify_systemd("READY=1")
