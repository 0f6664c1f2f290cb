"""The source host in one process, on a clock that the test drives: rounds, outages, kills, groups, beacons, status."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from uuid import UUID

import pytest

from agent.context import Context
from agent.decide import FencedError
from agent.gather import Gatherer
from agent.hooks import Hooks
from agent.ratelimit import TokenBucket
from agent.status import document, text
from agent.worker import GroupWorker, Plan
from replicator.events.beacon import Beacon
from replicator.history.points import Consistency
from replicator.log.object_log import ObjectLog
from replicator.pool.catalogue_schema import Purpose, Role, Volume
from replicator.pool.changes import End, Put
from replicator.pool.interface import Switch
from replicator.units import MIB
from tests.support.agent_world import VOLUME, Replica, SourceHost, context_of, unsynced_log
from tests.support.faulty_log import FaultyLog, KilledError, LogFault
from tests.support.manual_clock import SECOND_NS, ManualClock

OTHER = UUID("6f1c0000-0000-4000-8000-00000000beef")
THIRD = UUID("6f1c0000-0000-4000-8000-00000000f00d")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SourceHost]:
    """A pool with one volume of 4 MiB."""
    made = SourceHost(tmp_path)
    made.create("disk", 4 * MIB)
    yield made
    made.close()


@pytest.fixture
def log(tmp_path: Path) -> ObjectLog:
    """An empty directory log."""
    return unsynced_log(tmp_path / "log")


def worker_of(host: SourceHost, log: ObjectLog | FaultyLog, clock: ManualClock, *, name: str = "") -> GroupWorker:
    members = (VOLUME, OTHER) if name else (VOLUME,)
    return GroupWorker(context_of(host, log, clock), Plan(members, name), chance=lambda: 0.5)


def scribble(host: SourceHost, rng: random.Random, uuid: UUID = VOLUME) -> None:
    for _ in range(rng.randrange(5)):
        at = rng.randrange(4 * MIB - 70_000)
        act = rng.random()
        if act < 0.8:
            host.write(at, rng.randbytes(rng.randrange(1, 70_000)), uuid)
        elif act < 0.9:
            host.write(at, bytes(70_000), uuid)
        else:
            host.discard(at, 70_000, uuid)


def published(host: SourceHost, uuid: UUID = VOLUME) -> int:
    position = host.pool.view().position(uuid, Role.PUBLISHED)
    return position.number if position else 0


def state_of(host: SourceHost, worker: GroupWorker, clock: ManualClock) -> dict[str, object]:
    facts = Gatherer(str(host.path), "log").facts(host.pool, [worker], clock.monotonic())
    now = max(each.equal_until_ns or 0 for each in facts.volumes) + SECOND_NS // 2  # cuts are stamped by the pool
    return document(facts, now, UTC)


class Watched:
    """Knows what the volume held at each cut: a step makes no write, and at most one cut."""

    def __init__(self, host: SourceHost, uuid: UUID = VOLUME) -> None:
        self.host, self.uuid = host, uuid
        self.at_cut: dict[int, bytes] = {}

    def step(self, worker: GroupWorker) -> float:
        """One step, watched; also when it kills the worker."""
        content = self.host.content(self.uuid)
        try:
            return worker.step()
        finally:
            made = max((each.timestamp_ns for each in self.host.pool.view().snapshots_of(self.uuid)), default=0)
            self.at_cut.setdefault(made, content)

    def check(self, log: ObjectLog) -> Replica:
        """Every point of the log is what the source held at that cut."""
        replica = Replica.of(log, self.uuid)
        for number, content in replica.points.items():
            assert content == self.at_cut[replica.instants[number]], f"transaction {number}"
        return replica


def test_fifty_rounds_and_an_outage_fold_to_the_source_at_each_n(host: SourceHost, log: ObjectLog) -> None:
    clock, rng, faulty, watched = ManualClock(), random.Random(50), FaultyLog(log), Watched(host)
    worker = worker_of(host, faulty, clock)
    for number in range(50):
        scribble(host, rng)
        faulty.is_away = 20 <= number < 30
        before = published(host)
        clock.advance(max(1.0, watched.step(worker)))
        if number == 29:
            assert published(host) == before, "what isn't in the log isn't called published"
            assert worker.failure is not None
            assert worker.failure.reason.startswith("log unreachable")
            shown = state_of(host, worker, clock)
            assert str(shown["headline"]).startswith("NOT PROTECTED since")
            assert shown["severity"] == 2
    clock.advance(60)
    watched.step(worker)
    replica = watched.check(log)
    assert replica.content == host.content()
    assert 20 < len(replica.points) < 45, "the outage was spanned by few transactions"
    assert worker.failure is None
    assert state_of(host, worker, clock)["protected"]
    worker.close()


@pytest.mark.parametrize("fault", [LogFault.KILLED_BEFORE, LogFault.KILLED_AFTER], ids=lambda fault: fault.name)
def test_killed_at_every_operation_a_new_agent_goes_on(host: SourceHost, log: ObjectLog, fault: LogFault) -> None:
    clock, rng, watched, kills = ManualClock(), random.Random(3), Watched(host), 0
    for at in range(1, 40):
        worker = worker_of(host, FaultyLog(log, at % 13 + 1, fault), clock)
        try:
            for _ in range(4):
                scribble(host, rng)
                clock.advance(max(1.0, watched.step(worker)))
            worker.close()
        except KilledError:
            kills += 1
    worker = worker_of(host, log, clock)
    watched.step(worker)
    assert watched.check(log).content == host.content()
    assert kills > 30
    worker.close()


def test_an_idle_volume_publishes_nothing_and_its_beacon_goes_on(host: SourceHost, log: ObjectLog) -> None:
    clock = ManualClock()
    worker = worker_of(host, log, clock)
    host.write(0, b"once")
    worker.step()
    tail = log.reader(VOLUME, 1).tail()
    beacon = log.read_beacon(VOLUME)
    assert beacon is not None
    assert beacon.matches(tail)
    for _ in range(25):
        clock.advance(1)
        worker.step()
    later = log.read_beacon(VOLUME)
    assert later is not None
    assert log.reader(VOLUME, 1).tail() == tail
    assert later.matches(tail)
    assert later.equal_until_ns > beacon.equal_until_ns
    worker.close()


def test_beacons_come_every_ten_seconds(host: SourceHost, log: ObjectLog) -> None:
    clock, faulty = ManualClock(), FaultyLog(log)
    worker = worker_of(host, faulty, clock)
    worker.step()
    before = faulty.operations
    for _ in range(20):
        clock.advance(1)
        worker.step()
    assert faulty.operations - before == 2 * 3, "a look at the tail, a beacon, and who is registered, twice"
    worker.close()


def test_a_group_is_cut_at_one_instant(host: SourceHost, log: ObjectLog) -> None:
    host.create("second", 4 * MIB, uuid=OTHER, dev_id=2)
    clock, rng = ManualClock(), random.Random(5)
    watched, also = Watched(host, VOLUME), Watched(host, OTHER)
    worker = worker_of(host, log, clock, name="both")
    for number in range(12):
        scribble(host, rng, VOLUME)
        if number % 3 == 0:
            scribble(host, rng, OTHER)
        content = host.content(OTHER)
        clock.advance(max(1.0, watched.step(worker)))
        also.at_cut.setdefault(max(each.timestamp_ns for each in host.pool.view().snapshots_of(OTHER)), content)
    worker.close()
    replicas = {VOLUME: watched.check(log), OTHER: also.check(log)}
    numbers: dict[int, tuple[tuple[UUID, int], ...]] = {}
    for uuid, replica in replicas.items():
        for commit in replica.commits:
            assert commit.group is not None
            assert dict(commit.group.members)[uuid] == commit.number
            assert commit.group.number == replica.instants[commit.number]
            numbers.setdefault(commit.group.number, commit.group.members)
            assert numbers[commit.group.number] == commit.group.members, "both say the same of one cut"
    assert len(replicas[OTHER].commits) < len(replicas[VOLUME].commits), "unchanged members keep their N"
    assert not host.pool.view().cuts and not host.pool.view().prepared


def test_a_group_killed_anywhere_says_the_same_of_each_cut(host: SourceHost, log: ObjectLog) -> None:
    host.create("second", 4 * MIB, uuid=OTHER, dev_id=2)
    clock, rng = ManualClock(), random.Random(6)
    for at in range(1, 30):
        worker = worker_of(host, FaultyLog(log, at, LogFault.KILLED_AFTER), clock, name="both")
        try:
            for _ in range(3):
                scribble(host, rng, VOLUME)
                scribble(host, rng, OTHER)
                clock.advance(max(1.0, worker.step()))
            worker.close()
        except KilledError:
            continue
    last = worker_of(host, log, clock, name="both")
    last.step()
    last.close()
    said: dict[int, object] = {}
    for uuid in (VOLUME, OTHER):
        replica = Replica.of(log, uuid)
        assert replica.content == host.content(uuid)
        for commit in replica.commits:
            assert commit.group is not None
            assert said.setdefault(commit.group.number, commit.group.members) == commit.group.members


def test_a_labelled_cut_is_published_even_when_nothing_changed(host: SourceHost, log: ObjectLog) -> None:
    clock = ManualClock()
    worker = worker_of(host, log, clock)
    worker.step()
    before = published(host)
    ticket = worker.request(("before-upgrade",))
    worker.step()
    assert ticket.done.is_set() and ticket.error is None and ticket.result is not None
    assert published(host) == before + 1
    assert Replica.of(log).commits[-1].labels == ("before-upgrade",)
    plain = worker.request()
    worker.step()
    assert plain.result is not None and not plain.result.made
    worker.close()


def test_a_paused_agent_says_so_and_publishes_nothing_but_what_is_asked_for(host: SourceHost, log: ObjectLog) -> None:
    clock = ManualClock()
    worker = worker_of(host, log, clock)
    worker.step()
    worker.pause()
    host.write(0, b"unseen")
    clock.advance(5)
    worker.step()
    before = published(host)
    assert str(state_of(host, worker, clock)["headline"]).startswith("PAUSED")
    worker.request()
    worker.step()
    assert published(host) == before + 1
    worker.resume()
    host.write(0, b"seen")
    clock.advance(5)
    worker.step()
    assert published(host) == before + 2
    assert "PROTECTED" in text(state_of(host, worker, clock))
    worker.close()


def test_a_paused_agent_sleeps_until_its_next_beacon(host: SourceHost, log: ObjectLog) -> None:
    clock = ManualClock()
    worker = worker_of(host, log, clock)
    worker.step()
    worker.pause()
    clock.advance(4)
    assert 0 < worker.step() <= 6
    worker.resume()
    assert worker.step() == 1


class BeaconsRecorded(FaultyLog):
    """A log that remembers what beacons said."""

    def __init__(self, log: ObjectLog) -> None:
        super().__init__(log)
        self.said: list[Beacon] = []

    def write_beacon(self, beacon: Beacon) -> None:
        self.said.append(beacon)
        super().write_beacon(beacon)


def test_beacons_of_a_log_that_lost_its_end_claim_nothing_of_later_cuts(host: SourceHost, tmp_path: Path) -> None:
    log, clock = BeaconsRecorded(unsynced_log(tmp_path / "log")), ManualClock()
    worker = worker_of(host, log, clock)
    host.write(0, b"first")
    worker.step()
    shutil.copytree(tmp_path / "log", tmp_path / "kept")
    first = host.pool.view().snapshots_of(VOLUME, Purpose.BASE)[0]
    host.pool.switch(Switch(changes=(Put(replace(first, held=True)),)))
    host.write(0, b"second")
    clock.advance(1)
    worker.step()
    second_ns = worker.signs.equal_until[VOLUME]
    shutil.rmtree(tmp_path / "log")
    (tmp_path / "kept").rename(tmp_path / "log")
    log.said.clear()
    for _ in range(4):
        clock.advance(11)
        worker.step()
    assert worker.failure is None
    assert published(host) == 2
    assert all(each.equal_until_ns < second_ns for each in log.said if each.number == 1)
    assert Replica.of(unsynced_log(tmp_path / "log")).points[2] == host.content()


def test_another_publisher_ends_this_one(host: SourceHost, log: ObjectLog) -> None:
    clock = ManualClock()
    worker, second = worker_of(host, log, clock), worker_of(host, log, clock)
    worker.step()
    second.step()
    for _ in range(12):
        clock.advance(1)
        worker.step()
    assert isinstance(worker.over, FencedError), "found out by the beacon's look, with no write at all"
    beacon = log.read_beacon(VOLUME)
    assert beacon is not None and beacon.epoch == 2
    late = worker.request()
    assert late.error is worker.over
    worker.close()
    second.close()


def test_a_rename_and_a_resize_travel(host: SourceHost, log: ObjectLog) -> None:
    clock = ManualClock()
    worker = worker_of(host, log, clock)
    host.write(0, b"a" * 300_000)
    worker.step()
    row = host.pool.view().volume(VOLUME)
    host.pool.switch(Switch(changes=(Put(replace(row, name="renamed")),)))
    host.pool.resize(VOLUME, 5 * MIB)
    clock.advance(1)
    worker.step()
    host.pool.resize(VOLUME, MIB + 512)
    host.write(MIB, b"end")
    clock.advance(1)
    worker.step()
    replica = Replica.of(log)
    assert [len(content) for content in replica.points.values()] == [4 * MIB, 5 * MIB, MIB + 512]
    assert replica.content == host.content()
    assert replica.checker.state.name == "renamed"
    worker.close()


def test_a_deleted_volume_leaves_and_ends_its_worker(host: SourceHost, log: ObjectLog) -> None:
    host.create("second", 4 * MIB, uuid=THIRD, dev_id=3)
    clock = ManualClock()
    worker = GroupWorker(context_of(host, log, clock), Plan((THIRD,)), chance=lambda: 0.5)
    worker.step()
    host.pool.switch(Switch(changes=(End(Volume, (THIRD,)),), delete=(3,)))
    clock.advance(1)
    worker.step()
    assert worker.over is not None
    worker.close()


def test_bandwidth_is_limited_and_counted(host: SourceHost, log: ObjectLog) -> None:
    clock = ManualClock()
    context: Context = replace(context_of(host, log, clock), bucket=TokenBucket(MIB, clock.monotonic))
    worker = GroupWorker(context, Plan((VOLUME,)), chance=lambda: 0.5)
    host.write(0, random.Random(1).randbytes(3 * MIB))
    worker.step()
    assert 2.7 <= sum(clock.waits) <= 3.1, "3 MiB at 1 MiB a second, of which the first quarter is free"
    assert worker.meter.total_bytes > 3 * MIB
    worker.close()


def test_hooks_make_a_cut_worth_more(host: SourceHost, log: ObjectLog, tmp_path: Path) -> None:
    clock, trace = ManualClock(), tmp_path / "trace"
    hooks = Hooks(("sh", "-c", f"echo freeze >>{trace}"), ("sh", "-c", f"echo thaw >>{trace}"), 10.0)
    worker = GroupWorker(context_of(host, log, clock), Plan((VOLUME,), hooks=hooks), chance=lambda: 0.5)
    host.write(0, b"x")
    worker.step()
    assert trace.read_text().split() == ["thaw", "freeze", "thaw"], "a dead agent's freeze is thawed first"
    assert Replica.of(log).commits[0].consistency.name == Consistency.FILESYSTEM.name
    worker.close()
