"""From the command line to a running agent: signals, clocks, chance, and the exporter are put in here.

The rim: everything that the daemon is passed is made here, from the real machine.

    command    an agent runs                  none runs
    run        refused by its socket: exit 4   builds one, and runs it
    publish    asks it for a cut               opens the pool (or asks its exporter), one round, closes it
    status     asks it                         says since when nothing is published
"""

from __future__ import annotations

import random
import socket
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import click

from agent.beacon import BeaconKeeper
from agent.clock import SystemClock
from agent.config import AgentConfig
from agent.context import Context, open_files, open_origin
from agent.cut import GroupPublisher, points_of, published_volumes
from agent.daemon import SOCKET_NAME, Agent
from agent.gather import Gatherer
from agent.ratelimit import TokenBucket
from agent.status import document
from replicator.errors import ConflictError, NotFoundError, UnavailableError
from replicator.exporter.journal import Journal
from replicator.exporter.signals import stopped_by_signals
from replicator.history.names import check_label
from replicator.log.opening import log_url, open_log
from replicator.pool.catalogue_schema import Role
from replicator.pool.control_values import ListenAsked
from replicator.pool.daemons import ANSWER_S, ask
from replicator.pool.interface import Pool
from replicator.pool.opening import open_pool, require_pool
from replicator.pool.reading import read_pool
from replicator.pool.remote import RemotePool
from replicator.repository.remembered import remember_log

HOST_CHARACTERS_MAX = 200
OURS = "agent"
LONG_S = 86400.0
"""How long a job may wait for an agent's cut: a first transaction of terabytes takes hours."""


def host_name() -> str:
    """How this host is named in events."""
    return socket.gethostname()[:HOST_CHARACTERS_MAX]


def run_agent(config: AgentConfig) -> None:
    """Run until SIGTERM, SIGINT, or `agent stop`."""
    require_pool(config.pool)
    config = replace(config, pool=config.pool.absolute(), log=log_url(config.log))
    clock = SystemClock()
    journal = Journal(sys.stderr, clock.now_ns)
    chance = random.Random()
    agent = Agent(
        config,
        connect_pool=lambda: connect_pool(config),
        open_log=lambda create: open_log(config.log, create=create),
        end_exporter=end_ours,
        clock=clock,
        stop=clock.stop,
        wake=clock.wake,
        new_uuid=uuid4,
        chance=chance.random,
        host=host_name(),
        journal=journal,
    )
    with stopped_by_signals(clock.stop):
        agent.run()


def connect_pool(config: AgentConfig) -> Pool:
    """The pool, through its exporter, adopted or started; from then on its catalogue names the log."""
    pool = _reach_pool(config)
    try:
        remember_log(pool, config.log)
    except BaseException:
        pool.close()
        raise
    return pool


def _reach_pool(config: AgentConfig) -> Pool:
    """Without a listener: as whoever has it, or by ourselves."""
    if not config.listen:
        return open_pool(config.pool, role=OURS)
    from replicator.exporter.supervise import connect

    asked = [ListenAsked(each, list(config.volumes), False, dict(config.tls)) for each in config.listen]
    pool = connect(config.pool, started_by=OURS, listener=asked[0], group=config.socket_group)
    try:
        for each in asked[1:]:
            pool.listen(each)
    except BaseException:
        pool.close()
        raise
    return pool


def end_ours(pool: Pool) -> None:
    """Stop the exporter behind `pool`, if an agent started it."""
    if isinstance(pool, RemotePool) and pool.owner.started_by == OURS:
        pool.stop()


def ask_agent(pool: Path, method: str, timeout_s: float = ANSWER_S, **arguments: Any) -> dict[str, Any]:
    """The running agent's answer; NotFoundError where none runs."""
    require_pool(pool)
    try:
        return ask(pool, SOCKET_NAME, method, timeout_s, **arguments)
    except UnavailableError as error:
        if is_running(pool):
            raise
        mend = f"replicator agent run {pool} --log LOG --listen ADDRESS"
        raise NotFoundError(f"no agent runs for {pool}", mend=mend) from error


def is_running(pool: Path) -> bool:
    """Whether an agent listens beside the pool."""
    from replicator.pool.sockets import connect

    try:
        connect(pool, SOCKET_NAME, ANSWER_S).close()
    except UnavailableError:
        return False
    return True


def status_of(pool: Path) -> dict[str, Any]:
    """The agent's status; where none runs, since when nothing is published."""
    if is_running(pool):
        return ask_agent(pool, "status")
    now = time.time_ns()
    mend = f"replicator agent run {pool} --log LOG --listen ADDRESS"
    with read_pool(pool, role="status") as reader:
        facts = Gatherer(str(pool), "").unpublished(reader.view(), now, f"no agent runs for {pool}", mend)
    found = document(facts, now, datetime.now().astimezone().tzinfo or UTC)
    return {**found, "pid": None, "log": None, "mend": mend}


def publish_once(path: Path, log: str, names: tuple[str, ...], labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """One cut of these volumes (all, where none is named), in the log when this returns."""
    require_pool(path)
    labels = tuple(check_label(label) for label in labels)
    if not is_running(path):
        return _publish_here(path, log, names, labels)
    known = str(ask_agent(path, "status")["log"])
    if log_url(known) != log_url(log):
        raise ConflictError(f"an agent publishes this pool to {known}", mend="name that log, or stop the agent")
    asked = {"volumes": list(names), "labels": list(labels), "wait_s": LONG_S}
    found: list[dict[str, Any]] = ask_agent(path, "snapshot", LONG_S + ANSWER_S, **asked)["points"]
    return found


def _publish_here(path: Path, log: str, names: tuple[str, ...], labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """The same in this process, over the pool itself or its exporter."""
    clock = SystemClock()
    with ExitStack() as stack:
        stack.enter_context(stopped_by_signals(clock.stop))
        pool = stack.enter_context(closing(open_pool(path, role="publish")))
        view = pool.view()
        volumes = published_volumes(view, names)
        is_new = all(view.position(each.uuid, Role.PUBLISHED) is None for each in view.volumes)
        opened = stack.enter_context(closing(open_log(log, create=is_new)))
        remember_log(pool, log)
        context = Context(
            pool=lambda: pool,
            log=opened,
            files=open_files,
            origin=open_origin,
            clock=clock,
            new_uuid=uuid4,
            host=host_name(),
            bucket=TokenBucket(None, clock.monotonic),
            report=lambda reason: click.echo(reason, err=True),
        )
        publisher = stack.enter_context(closing(GroupPublisher(context, volumes)))
        done = publisher.round(labels)
        for tail in done.tails.values():
            BeaconKeeper(opened, clock).write(tail, done.timestamp_ns)
        return points_of(done, labels)
