"""The agent as a daemon: built, asked over its socket, stopped; and the commands over a pool on disk."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner

from agent.cli import agent as commands
from agent.clock import SystemClock
from agent.config import AgentConfig, GroupConfig
from agent.cut import GroupPublisher
from agent.daemon import Agent
from agent.decide import FencedError, RefusedError
from agent.job import SOCKET_NAME, ask_agent, publish_once, status_of
from agent.status import text
from agent.worker import CrashedError
from replicator.cli.points import points
from replicator.errors import ConflictError, NotFoundError, ReplicatorError, UnavailableError, UsageError
from replicator.events.state import Life
from replicator.exporter.journal import Journal
from replicator.log.opening import open_log
from replicator.pool.catalogue_schema import Role
from replicator.pool.interface import Pool
from replicator.pool.registrations import registrations
from replicator.pool.volumes import create_volume, delete_volume
from replicator.repository.remembered import LOG_SETTING, remember_log
from replicator.units import MIB
from tests.support.agent_world import VOLUME, Replica, SourceHost, context_of
from tests.support.manual_clock import ManualClock

OTHER = UUID("6f1c0000-0000-4000-8000-00000000beef")


class Running:
    """An agent in a thread, over the host's pool; `lines` is its journal."""

    def __init__(self, host: SourceHost, config: AgentConfig) -> None:
        self.clock, self.lines = SystemClock(), StringIO()
        self.error: ReplicatorError | None = None
        self.ended: list[object] = []
        self.agent = Agent(
            config,
            connect_pool=lambda: cast("Pool", Unclosed(host)),
            open_log=lambda create: open_log(config.log, create=create),
            end_exporter=self.ended.append,
            remember_log=lambda pool: remember_log(pool, Role.PUBLISHED, config.log),
            clock=self.clock,
            stop=self.clock.stop,
            wake=self.clock.wake,
            new_uuid=uuid4,
            chance=lambda: 0.5,
            host="alpha",
            journal=Journal(self.lines, self.clock.now_ns),
        )
        self.ready = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.agent.run()
        except ReplicatorError as error:
            self.error = error
        finally:
            self.ready.set()

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


class Unclosed:
    """The host's pool, which outlives the agent as an exporter's does."""

    def __init__(self, host: SourceHost) -> None:
        self._host = host

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host.pool, name)

    def close(self) -> None:
        """It is the host's."""


@contextmanager
def running(host: SourceHost, config: AgentConfig) -> Iterator[Running]:
    """A running agent, asked for a cut, so that it is known to be up; stopped at the end."""
    made = Running(host, config)
    made.start()
    try:
        wait_until_up(host, made)
        yield made
    finally:
        made.clock.stop()
        made.join()


def wait_until_up(host: SourceHost, made: Running) -> None:
    while not made.ready.wait(0.02):
        try:
            if ask_agent(host.path, "status")["volumes"]:
                return
        except NotFoundError:
            continue


def config_of(host: SourceHost, tmp_path: Path, **more: object) -> AgentConfig:
    return AgentConfig(host.path, str(tmp_path / "log"), interval_s=0.1, **more)  # type: ignore[arg-type]  # its own names


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


def _states(made: Running) -> dict[str, tuple[str, str | None]]:
    return {each["volume"]: (each["state"], each["group"]) for each in made.agent.status({})["volumes"]}


def test_a_member_that_isnt_there_is_told_and_hinders_nobody(host: SourceHost, tmp_path: Path) -> None:
    """At the start; and once it is made, it is cut with its group, at one instant."""
    host.create("other", MIB, uuid=OTHER, dev_id=2)
    config = config_of(host, tmp_path, groups=(GroupConfig("app", ("disk", "made-later")),))
    with running(host, config) as made:
        assert {each["volume"] for each in ask_agent(host.path, "snapshot")["points"]} == {"disk", "other"}
        assert _states(made) == {
            "disk": ("PROTECTED", "app"),
            "other": ("PROTECTED", None),
            "made-later": ("NOT PROTECTED", None),
        }
        (told,) = [each for each in made.agent.status({})["volumes"] if each["volume"] == "made-later"]
        assert "group app" in told["headline"] and "volume create" in told["mend"] and told["severity"] == 2
        assert "made-later: NOT PROTECTED" in text(made.agent.status({}))
        later = host.create("made-later", MIB, uuid=UUID(int=77), dev_id=40)
        assert _states(made)["made-later"] == ("NOT PROTECTED", None), "no worker has it yet"
        made.agent.plan_workers(host.pool.view())
        points = ask_agent(host.path, "snapshot", volumes=["disk"], labels=["both"])["points"]
        assert sorted(each["volume"] for each in points) == ["disk", "made-later"]
        assert _states(made)["made-later"] == ("PROTECTED", "app")
    (commit,) = Replica.of(open_log(config.log), later).commits[-1:]
    assert commit.group is not None and [uuid for uuid, _ in commit.group.members] == sorted([VOLUME, later])


def test_a_member_made_again_under_its_name_joins_its_group(host: SourceHost, tmp_path: Path) -> None:
    host.create("other", MIB, uuid=OTHER, dev_id=2)
    config = config_of(host, tmp_path, groups=(GroupConfig("app", ("disk", "other")),))
    with running(host, config) as made:
        ask_agent(host.path, "snapshot")
        delete_volume(host.pool, "other", while_published=True)
        again = host.create("other", MIB, uuid=UUID(int=77), dev_id=40)
        host.create("new", MIB, uuid=UUID(int=78), dev_id=41)
        with suppress(NotFoundError):  # the cut that meets its absence
            ask_agent(host.path, "snapshot", volumes=["disk"])
        made.agent.plan_workers(host.pool.view())
        named = {each["volume"] for each in ask_agent(host.path, "snapshot", labels=["all"])["points"]}
        assert named == {"disk", "other", "new"}
        assert set(_states(made).values()) == {("PROTECTED", "app"), ("PROTECTED", None)}
    assert Replica.of(open_log(config.log), again).points
    assert open_log(config.log).reader(OTHER, 1).tail().life is Life.DELETED


def test_volumes_that_are_named_and_not_there_are_told(host: SourceHost, tmp_path: Path) -> None:
    """Of `volumes`; what it leaves out is named, and no fault. Where none is there, the start is refused."""
    host.create("other", MIB, uuid=OTHER, dev_id=2)
    with running(host, config_of(host, tmp_path, volumes=("gone", "disk"))) as made:
        assert [each["volume"] for each in ask_agent(host.path, "snapshot")["points"]] == ["disk"]
        states = {name: state for name, (state, _) in _states(made).items()}
        assert states == {"disk": "PROTECTED", "gone": "NOT PROTECTED"}
        assert made.agent.status({})["left_out"] == ["other"]
        assert "not published, as configured: other" in text(made.agent.status({}))
    nothing = Running(host, config_of(host, tmp_path, volumes=("gone",)))
    with pytest.raises(NotFoundError, match="gone"):
        nothing.agent.run()


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
