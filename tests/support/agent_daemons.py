"""An agent as a daemon for tests: in a thread, over a host's pool, with a log in a folder beside it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

from agent.clock import SystemClock
from agent.config import AgentConfig
from agent.daemon import Agent
from agent.job import ask_agent
from replicator.errors import NotFoundError, ReplicatorError
from replicator.exporter.journal import Journal
from replicator.log.opening import open_log
from replicator.pool.catalogue_schema import Role
from replicator.pool.interface import Pool
from replicator.repository.remembered import remember_log
from tests.support.agent_world import SourceHost


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
