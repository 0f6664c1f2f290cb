"""The agent as a daemon: built, asked over its socket, stopped; and the commands over a pool on disk."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import cast
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner

from agent.cli import agent as commands
from agent.config import AgentConfig, GroupConfig
from agent.cut import GroupPublisher
from agent.decide import FencedError, RefusedError
from agent.job import SOCKET_NAME, ask_agent, publish_once, status_of
from agent.status import text
from agent.worker import CrashedError
from replicator.cli.points import points
from replicator.errors import ConflictError, NotFoundError, UnavailableError, UsageError
from replicator.log.opening import open_log
from replicator.pool.catalogue_schema import Role
from replicator.pool.interface import Pool
from replicator.pool.registrations import registrations
from replicator.pool.volumes import create_volume
from replicator.repository.remembered import LOG_SETTING
from replicator.units import MIB
from tests.support.agent_daemons import Running, Unclosed, config_of, running, wait_until_up
from tests.support.agent_world import VOLUME, Replica, SourceHost, context_of
from tests.support.manual_clock import ManualClock

OTHER = UUID("6f1c0000-0000-4000-8000-00000000beef")


def test_a_new_pool_with_no_place_for_its_log_is_refused(host: SourceHost, tmp_path: Path) -> None:
    made = Running(host, AgentConfig(host.path, str(tmp_path / "nowhere" / "log")))
    with pytest.raises(NotFoundError, match="nowhere"):
        made.agent.run()


def test_a_daemon_publishes_answers_and_stops(host: SourceHost, tmp_path: Path) -> None:
    with running(host, config_of(host, tmp_path)) as made:
        points = ask_agent(host.path, "snapshot", labels=["one"])["points"]
        assert [(each["volume"], each["labels"]) for each in points] == [("disk", ["one"])]
        status = ask_agent(host.path, "status")
        assert status["protected"] and status["exporter_pid"] is None
        assert status["headline"].startswith("PROTECTED, would lose")
        assert [each.kind for each in registrations()] == ["agent"]
        assert ask_agent(host.path, "pause")["headline"].startswith("PAUSED")
        host.write(0, b"later")
        assert ask_agent(host.path, "resume")["severity"] == 0
        ask_agent(host.path, "snapshot")
        with pytest.raises(NotFoundError, match="there are disk"):
            ask_agent(host.path, "snapshot", volumes=["other"])
        with pytest.raises(ConflictError):
            Running(host, config_of(host, tmp_path)).agent.run()
        ask_agent(host.path, "stop")
        made.join()
        assert made.error is None and len(made.ended) == 1
    assert not registrations() and not (host.path / SOCKET_NAME).exists()
    assert Replica.of(open_log(str(tmp_path / "log"))).content == host.content()
    events = [json.loads(line)["event"] for line in made.lines.getvalue().splitlines()]
    assert events[0] == "agent started" and events[-1] == "agent stopped"


def test_a_fenced_daemon_ends_with_its_error(host: SourceHost, tmp_path: Path) -> None:
    made = Running(host, config_of(host, tmp_path))
    made.start()
    wait_until_up(host, made)
    ask_agent(host.path, "snapshot")
    log = open_log(str(tmp_path / "log"))
    second = GroupPublisher(context_of(host, log, ManualClock()), [VOLUME])
    second.settle_down()
    host.write(0, b"a change that the first one can't publish")
    made.join()
    second.close()
    assert isinstance(made.error, FencedError) and made.error.exit_code == 4
    assert made.ended == [], "the disks stay up"


def test_volumes_that_come_later_are_published_too(host: SourceHost, tmp_path: Path) -> None:
    made = Running(host, config_of(host, tmp_path, groups=(GroupConfig("g", ("disk",), 0.1),)))
    made.start()
    wait_until_up(host, made)
    other = host.create("second", MIB, uuid=uuid4(), dev_id=9)
    made.agent.plan_workers(host.pool.view())
    points = ask_agent(host.path, "snapshot")["points"]
    assert sorted(each["volume"] for each in points) == ["disk", "second"]
    assert host.pool.view().position(other, Role.PUBLISHED) is not None
    made.clock.stop()
    made.join()


def test_a_log_that_vanished_is_waited_for_and_not_taken_for_a_new_one(host: SourceHost, tmp_path: Path) -> None:
    config, log, unmounted = config_of(host, tmp_path), tmp_path / "log", tmp_path / "unmounted"
    with running(host, config):
        ask_agent(host.path, "snapshot")
    log.rename(unmounted)
    with running(host, config) as made:
        status = ask_agent(host.path, "status")
        assert status["headline"].startswith("NOT PROTECTED since") and "log unreachable" in status["headline"]
        assert status["mend"] and not log.exists()
    assert made.error is None and made.ended, "a clean stop, which ends an exporter of ours"
    with running(host, config) as made:
        unmounted.rename(log)
        while not ask_agent(host.path, "status")["protected"]:
            assert not made.ready.wait(0.02)


def test_publish_once_makes_incrementals_in_a_row(host: SourceHost, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    host.close()
    first = publish_once(host.path, log, (), ())
    assert [(each["volume"], each["number"], each["changed"]) for each in first.points] == [("disk", 1, True)]
    assert [each["changed"] for each in publish_once(host.path, log, ("disk",), ()).points] == [False]
    assert [each["number"] for each in publish_once(host.path, log, (), ("nightly",)).points] == [2]
    host.reopen_closed()
    assert Replica.of(open_log(log)).content == host.content()
    host.close()
    status = status_of(host.path)
    assert status["headline"].startswith("NOT PROTECTED since") and "no agent runs" in status["headline"]
    assert "agent run" in status["mend"] and status["volumes"][0]["number"] == 2
    assert "transaction 2" in text(status)
    host.reopen_closed()


def test_the_commands(host: SourceHost, tmp_path: Path) -> None:
    runner, log = CliRunner(), str(tmp_path / "log")
    with running(host, config_of(host, tmp_path)):
        shown = runner.invoke(commands, ["status", str(host.path)])
        assert shown.exit_code == 0 and "PROTECTED" in shown.output
        assert json.loads(runner.invoke(commands, ["status", str(host.path), "--json"]).output)["kind"] == "agent"
        assert "disk@" in runner.invoke(commands, ["snapshot", str(host.path), "--label", "x"]).output
        assert "disk@" in runner.invoke(commands, ["publish", str(host.path), "--log", log]).output, "the agent's cut"
        assert "PAUSED" in runner.invoke(commands, ["pause", str(host.path)]).output
        assert "PAUSED" not in runner.invoke(commands, ["resume", str(host.path), "disk"]).output
        refused = runner.invoke(commands, ["publish", str(host.path), "--log", str(tmp_path / "elsewhere")])
        assert isinstance(refused.exception, ConflictError)
        assert "has stopped" in runner.invoke(commands, ["stop", str(host.path)]).output
    assert isinstance(runner.invoke(commands, ["snapshot", str(host.path)]).exception, NotFoundError)


def test_a_rebase_goes_through_the_running_agent(host: SourceHost, tmp_path: Path) -> None:
    runner, log = CliRunner(), str(tmp_path / "log")
    with running(host, config_of(host, tmp_path)):
        ask_agent(host.path, "snapshot")
        said = runner.invoke(commands, ["rebase", str(host.path), "disk", "--new-timeline", "--yes"])
        assert said.exit_code == 0 and "on timeline 2 behind 1:" in said.output
        host.write(0, b"beyond")
        ask_agent(host.path, "snapshot")
        status = ask_agent(host.path, "status")
        assert status["volumes"][0]["timeline"] == 2 and status["protected"]
        both = runner.invoke(commands, ["rebase", str(host.path), "disk", "--new-timeline", "--from-log", "--yes"])
        assert isinstance(both.exception, UsageError) and "exclude each other" in both.exception.message
        undecided = runner.invoke(commands, ["rebase", str(host.path), "disk"])
        assert isinstance(undecided.exception, UsageError)
    assert open_log(log).reader(VOLUME, 2).tail().committed is not None
    host.close()
    done = runner.invoke(commands, ["rebase", str(host.path), "disk", "--from-log", "--yes", "--json"])
    assert json.loads(done.output)["done"].startswith("disk: stands on the log's transaction")
    host.reopen_closed()


def test_a_source_point_is_labelled_through_its_agent(host: SourceHost, tmp_path: Path) -> None:
    runner, log = CliRunner(), str(tmp_path / "log")
    with running(host, config_of(host, tmp_path)):
        point = ask_agent(host.path, "snapshot")["points"][0]
        committed = open_log(log).reader(VOLUME, 1).tail().committed
        assert committed is not None
        named = {"timeline": 1, "number": point["number"], "digest": committed.digest.hex()}
        ask_agent(host.path, "label", volume="disk", label="golden", **named)
        with pytest.raises(UsageError, match="named by"):
            ask_agent(host.path, "label", volume="disk", label="golden", number=1)
    shown = runner.invoke(points, ["list", log, "--json"])
    assert [each["labels"] for each in json.loads(shown.output)] == [["golden"]]


def test_the_second_agent_hears_who_the_first_one_is(host: SourceHost, tmp_path: Path) -> None:
    with running(host, config_of(host, tmp_path)), pytest.raises(ConflictError, match=str(os.getpid())):
        Running(host, config_of(host, tmp_path)).agent.run()


def test_a_log_that_does_not_open_is_not_remembered(host: SourceHost, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        Running(host, AgentConfig(host.path, str(tmp_path / "nowhere" / "log"))).agent.run()
    assert host.pool.view().setting("log") == ""


def test_a_mistyped_log_that_is_one_is_not_remembered(host: SourceHost, tmp_path: Path) -> None:
    """Another's log: what it refuses stays of the log that it was published to, also where a new volume goes there."""
    own, foreign = str(tmp_path / "log"), str(tmp_path / "foreign")
    (tmp_path / "elsewhere").mkdir()
    elsewhere = SourceHost(tmp_path / "elsewhere")
    elsewhere.create("disk", MIB, uuid=OTHER)
    for pool, log in ((elsewhere, foreign), (host, own)):
        pool.close()
        publish_once(pool.path, log, (), ())
    with pytest.raises(RefusedError):
        publish_once(host.path, foreign, (), ())
    host.reopen_closed()
    assert host.pool.view().setting(LOG_SETTING) == own
    create_volume(host.pool, "new", MIB)
    with running(host, AgentConfig(host.path, foreign, interval_s=0.1)):
        assert [each["volume"] for each in ask_agent(host.path, "snapshot")["failed"]] == ["disk"]
    assert host.pool.view().setting(LOG_SETTING) == own


def test_a_crashed_worker_ends_the_agent(host: SourceHost, tmp_path: Path) -> None:
    made = Running(host, config_of(host, tmp_path))
    made.start()
    wait_until_up(host, made)

    def bug(_: GroupPublisher) -> None:
        raise RuntimeError("boom")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(threading, "excepthook", lambda _: None)
        made.agent.workers[0].ask(bug)
        made.join()
    assert isinstance(made.error, CrashedError) and made.error.exit_code == 1
    assert "boom" in made.lines.getvalue()


def test_an_agent_that_adopts_waits_for_its_exporter(host: SourceHost, tmp_path: Path) -> None:
    made, there = Running(host, config_of(host, tmp_path, adopt=True)), threading.Event()
    tries: list[int] = []

    def connect() -> Pool:
        tries.append(1)
        if not there.is_set():
            raise UnavailableError("nobody answers")
        return cast("Pool", Unclosed(host))

    made.agent._holder._connect = connect
    made.start()
    while not tries:
        made.ready.wait(0.01)
    there.set()
    made.clock.wake()
    wait_until_up(host, made)
    made.clock.stop()
    made.join()
    assert made.error is None and len(tries) >= 2
