"""A receiver as a whole: followers come and go, status and stop over its socket, registered while it runs."""

from __future__ import annotations

import io
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest

from receiver.config import ReceiverConfig
from receiver.daemon import STUCK_S, Receiver, Surroundings
from receiver.errors import ReplicaConflictError
from replicator.errors import ConflictError, DamageError, NotFoundError, ReplicatorError, UnavailableError
from replicator.events.beacon import Beacon
from replicator.events.bodies import VolumeDeleted
from replicator.exporter.journal import Journal, notify_systemd
from replicator.history.retention import RetentionPolicy
from replicator.log.interface import Log
from replicator.log.object_log import ObjectLog, directory_log
from replicator.log.opening import log_url, open_log
from replicator.pool.catalogue_schema import Purpose, Role
from replicator.pool.daemons import ask
from replicator.pool.registrations import registrations
from replicator.pool.volumes import create_volume
from replicator.repository.patience import StopWaiter
from replicator.repository.remembered import remembered_logs
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


def surroundings(
    replica: ReplicaPool, log: ObjectLog | None, stream: io.StringIO, open_log: Callable[[], Log] | None = None
) -> Surroundings:
    return Surroundings(
        connect_pool=lambda: replica.pool,
        open_log=open_log or (lambda: log),  # type: ignore[arg-type,return-value]  # one of both is given
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
        assert remembered_logs(replica.pool.view()) == {Role.APPLIED: log_url("log")}
        with pytest.raises(ConflictError, match=rf"another process listens at .* \(pid {os.getpid()}\)"):
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


def reopened(replica: ReplicaPool) -> None:
    """A daemon closed the pool; the next one opens it again."""
    replica.closed_by_daemon = True
    replica.kill()


@contextmanager
def running(receiver: Receiver) -> Iterator[None]:
    thread = threading.Thread(target=receiver.run)
    thread.start()
    try:
        yield
    finally:
        receiver.stop({})
        thread.join()


def test_a_log_that_is_not_mounted_is_waited_for(replica: ReplicaPool, tmp_path: Path) -> None:
    """At the start, and later: UNREACHABLE, not "lost its end"; and it goes on once it is mounted."""
    here, aside = tmp_path / "log", tmp_path / "aside"
    source, stream = SourceVolume(1, SIZE, name="vm1"), io.StringIO()
    source.transaction(source.scribble())
    source.publish(directory_log(here, create=True))
    config = ReceiverConfig(replica.folder, str(here), discover_every_s=0.1, late_after_s=0.1)

    def unmount() -> None:
        here.rename(aside)
        here.mkdir()

    def mount() -> None:
        here.rmdir()
        aside.rename(here)

    Receiver(config, surroundings(replica, None, stream, lambda: open_log(str(here)))).catch_up()
    reopened(replica)
    unmount()
    with pytest.raises(UnavailableError, match="isn't there now"):
        Receiver(config, surroundings(replica, None, stream, lambda: open_log(str(here)))).catch_up()
    reopened(replica)
    receiver = Receiver(config, surroundings(replica, None, stream, lambda: open_log(str(here))))
    with running(receiver):
        found = until(replica, lambda found: bool(found["volumes"] and found["volumes"][0]["error"]) and found["notes"])
        (volume,) = found["volumes"]
        assert volume["activity"] == "log or pool unreachable" and "isn't there now" in volume["error"]
        assert volume["number"] == 1 and found["headline"].startswith("looking for volumes: the log")
        mount()
        source.transaction(source.scribble())
        source.publish(directory_log(here))
        until(replica, lambda found: found["volumes"][0]["number"] == 2)
        unmount()
        found = until(replica, lambda found: bool(found["volumes"][0]["error"]))
        assert found["volumes"][0]["activity"] == "log or pool unreachable"
        mount()
        until(replica, lambda found: found["volumes"][0]["error"] is None)
    assert assert_prefix(replica, source) == 2


def test_a_log_that_was_never_there_is_no_log(replica: ReplicaPool, tmp_path: Path) -> None:
    config = ReceiverConfig(replica.folder, str(tmp_path / "log"))
    around = surroundings(replica, None, io.StringIO(), lambda: open_log(config.log))
    with pytest.raises(NotFoundError, match="no log directory"):
        Receiver(config, around).run()


def test_a_source_cannot_be_its_own_replica(replica: ReplicaPool) -> None:
    log, source = ObjectLog(MemoryStore(), create=True), SourceVolume(1, SIZE, name="vm1")
    source.publish(log)
    create_volume(replica.pool, "vm1", SIZE, uuid=source.uuid)
    receiver = Receiver(ReceiverConfig(replica.folder, "log"), surroundings(replica, log, io.StringIO()))
    with pytest.raises(ReplicaConflictError, match="is the source of the volume 'vm1'") as caught:
        receiver.run()
    assert caught.value.exit_code == 4 and "pool create" in str(caught.value.mend)
    reopened(replica)
    with pytest.raises(ReplicaConflictError):
        receiver.catch_up()
    reopened(replica)
    assert remembered_logs(replica.pool.view()) == {}


def test_the_watchdog_is_fed_while_followers_move(replica: ReplicaPool) -> None:
    log, source = ObjectLog(MemoryStore(), create=True), SourceVolume(1, SIZE, name="vm1")
    source.publish(log)
    receiver = Receiver(ReceiverConfig(replica.folder, "log"), surroundings(replica, log, io.StringIO()))
    with running(receiver):
        until(replica, lambda found: bool(found["volumes"]))
        assert receiver.is_moving()
        (follower,) = receiver.followers
        moved = follower.alive_s
        follower.alive_s = moved - 2 * STUCK_S
        until(replica, lambda _: follower.alive_s >= moved)
        assert receiver.is_moving(), "it looked at the log again"
    assert not receiver.is_moving(), "its followers have ended"


def test_a_volume_deleted_at_its_source_stays_and_gives_up_its_name(replica: ReplicaPool) -> None:
    log = ObjectLog(MemoryStore(), create=True)
    old, new = (SourceVolume(seed, SIZE, name="vm1") for seed in (1, 2))
    old.transaction(old.scribble())
    old.put(VolumeDeleted(old.now_ns))
    old.publish(log)
    config = ReceiverConfig(replica.folder, "log")
    (volume,) = Receiver(config, surroundings(replica, log, io.StringIO())).catch_up()
    assert (volume["state"], volume["severity"], volume["deleted"]) == ("DELETED", 0, True)
    reopened(replica)
    new.transaction(new.scribble())
    new.publish(log)
    Receiver(config, surroundings(replica, log, io.StringIO())).catch_up()
    reopened(replica)
    assert [each.name for each in replica.pool.view().volumes] == ["vm1", f"vm1.deleted-{str(old.uuid)[:8]}"]
    assert [assert_prefix(replica, each) for each in (old, new)] == [1, 1]


def test_points_age_by_the_sources_clock(replica: ReplicaPool) -> None:
    """This host's is 400 days ahead; then the source is really heard of again, idle as it is."""
    log, source = ObjectLog(MemoryStore(), create=True), SourceVolume(1, SIZE, name="vm1")
    for _ in range(3):
        source.transaction(source.scribble())
    source.publish(log)
    late_ns = source.now_ns + 400 * 86400 * 10**9
    config = ReceiverConfig(replica.folder, "log", retention=RetentionPolicy(materialise_every_s=1))
    around = replace(surroundings(replica, log, io.StringIO()), clock_ns=lambda: late_ns)
    for there in ([1, 2, 3], [3]):
        Receiver(config, around).catch_up()
        reopened(replica)
        assert [each.number for each in replica.pool.view().snapshots_of(source.uuid, Purpose.POINT)] == there
        log.write_beacon(Beacon.of(source.state, late_ns, late_ns))


def test_systemd_hears_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify_systemd("READY=1", "STATUS=well")
        assert manager.recv(100) == b"READY=1\nSTATUS=well"
    notify_systemd("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify_systemd("READY=1")
