"""What `agent status` says where something is unusual: a resume, a group with two faults, no agent, no log."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from agent.config import AgentConfig
from agent.gather import Gatherer
from agent.holder import PoolHolder
from agent.job import ask_agent, publish_once, status_of
from agent.status import document, text
from agent.worker import GroupWorker, Plan
from replicator.log import names
from replicator.log.interface import Registration
from replicator.log.object_log import ObjectLog
from replicator.log.opening import open_log
from replicator.pool.interface import PoolStatus
from replicator.units import MIB
from tests.support.agent_daemons import Running, Unclosed, running
from tests.support.agent_world import VOLUME, SourceHost, context_of
from tests.support.manual_clock import SECOND_NS, ManualClock
from tests.support.memory_objects import MemoryStore

OTHER = UUID("6f1c0000-0000-4000-8000-00000000beef")
OWNER = 4711


def shown(host: SourceHost, clock: ManualClock, worker: GroupWorker) -> dict[str, Any]:
    facts = Gatherer(str(host.path), "").facts(host.pool, [worker], clock.monotonic())
    return document(facts, clock.now_ns(), UTC)


@pytest.mark.parametrize("is_written", [True, False])
def test_right_after_a_resume(host: SourceHost, is_written: bool) -> None:
    """Before its first round: what was written meanwhile is on its way; where nothing was, nothing is wrong."""
    clock = ManualClock()
    host.follow(clock)
    log = ObjectLog(MemoryStore(), create=True)
    worker = GroupWorker(context_of(host, log, clock), Plan((VOLUME,)), chance=lambda: 0.5)
    worker.step()
    worker.pause()
    clock.advance(60)
    if is_written:
        host.write(0, b"beyond")
    assert shown(host, clock, worker)["headline"].startswith("PAUSED since")
    worker.resume()
    clock.advance(0.25)
    said = shown(host, clock, worker)["headline"]
    assert "doesn't keep up" not in said
    if is_written:
        assert said.startswith("NOT PROTECTED since") and "it was paused until" in said and "on its way" in said
    else:
        assert said.startswith("PROTECTED")
    clock.advance(1)
    worker.step()
    assert shown(host, clock, worker)["protected"] and worker.resumed_ns is None
    worker.close()


def test_a_damaged_registration_stops_nothing(host: SourceHost) -> None:
    """Any key may write one; whoever reads it at a beacon goes on publishing, and shows what was known before."""
    clock, store = ManualClock(), MemoryStore()
    host.follow(clock)
    log = ObjectLog(store, create=True)
    worker = GroupWorker(context_of(host, log, clock), Plan((VOLUME,), beacon_s=0), chance=lambda: 0.5)
    worker.step()
    known = Registration(VOLUME, UUID(int=7), "replica", 1, 1, 5, 99)
    log.register(known)
    worker.step()
    store.put(names.registration_name(VOLUME, known.receiver), b"damaged")
    for i in range(3):
        host.write(i * 65536, b"beyond")
        clock.advance(1)
        worker.step()
    committed = log.reader(VOLUME, 1).tail().committed
    assert committed is not None and committed.number == 4
    assert shown(host, clock, worker)["protected"] and worker.signs.receivers[VOLUME] == (known,)
    worker.close()


def test_a_group_in_which_two_members_are_refused(host: SourceHost, tmp_path: Path) -> None:
    """Each hears what it is refused for itself; one that is well, whom it waits for."""
    third = UUID(int=OTHER.int + 1)
    host.create("other", MIB, uuid=OTHER, dev_id=2)
    host.create("third", MIB, uuid=third, dev_id=3)
    log, plan = ObjectLog(MemoryStore(), create=True), Plan((VOLUME, OTHER, third), "db")
    first = GroupWorker(context_of(host, log, ManualClock()), plan, chance=lambda: 0.5)
    first.step()
    first.close()
    host.close()
    shutil.copytree(host.path, tmp_path / "copy" / "pool")
    host.reopen_closed()
    for uuid in (VOLUME, OTHER):
        lone = GroupWorker(context_of(host, log, ManualClock()), Plan((uuid,)), chance=lambda: 0.5)
        lone.request(("later",))
        lone.step()
        lone.close()
    copy, clock = SourceHost.at(tmp_path / "copy" / "pool"), ManualClock()
    worker = GroupWorker(context_of(copy, log, clock), plan, chance=lambda: 0.5)
    worker.step()
    said = {each["volume"]: each for each in shown(copy, clock, worker)["volumes"]}
    for name in ("disk", "other"):
        assert f"volume {name}: the log has transaction 2" in said[name]["headline"]
        assert f" {name} --new-timeline|--from-log" in said[name]["mend"]
    assert "its group is cut together, and waits: volume" in said["third"]["headline"]
    lines = text(shown(copy, clock, worker))
    assert all(f"rebase {copy.path} {name} " in lines for name in ("disk", "other")), "each with its own mend"
    worker.close()
    copy.close()


def test_with_no_agent_the_log_has_the_last_word(host: SourceHost, tmp_path: Path) -> None:
    url = str(tmp_path / "log")
    host.close()
    publish_once(host.path, url, (), ())
    (last,) = publish_once(host.path, url, (), ()).points
    assert not last["changed"], "its beacon says: nothing new until then"
    with closing(open_log(url)) as log:
        log.register(Registration(VOLUME, UUID(int=7), "beta", 1, 1, 1, last["timestamp_ns"]))
    (said,) = status_of(host.path)["volumes"]
    assert said["in_log_up_to_ns"] == last["timestamp_ns"]
    assert [each["name"] for each in said["receivers"]] == ["beta"]
    assert said["would_lose_s"] * SECOND_NS < 60 * SECOND_NS
    (tmp_path / "log").rename(tmp_path / "away")
    (alone,) = status_of(host.path)["volumes"]
    assert alone["number"] == 1 and alone["in_log_up_to_ns"] < last["timestamp_ns"] and not alone["receivers"]
    host.reopen_closed()


class Owned(Unclosed):
    """A pool that another process serves."""

    def status(self) -> PoolStatus:
        return replace(self._host.pool.status(), owner_pid=OWNER)


def test_the_exporter_is_named_though_the_log_was_away_at_the_start(host: SourceHost, tmp_path: Path) -> None:
    config, log, away = AgentConfig(host.path, str(tmp_path / "log")), tmp_path / "log", tmp_path / "away"
    with running(host, config):
        ask_agent(host.path, "snapshot")
    log.rename(away)
    made = Running(host, config)
    made.agent._holder = PoolHolder(lambda: Owned(host))
    assert made.agent._first_pool() is not None
    made.agent.clock.stop()  # type: ignore[attr-defined]  # the system's clock
    assert made.agent._opened_log(host.pool.view()) is None
    status = made.agent.status({})
    assert "log unreachable" in status["headline"] and status["exporter_pid"] == OWNER
    assert f"exporter {OWNER}" in text(status)
