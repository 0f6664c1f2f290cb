"""The commands that end by themselves: one cut published, a rebase, the status; by the running agent, or here.

    command    an agent runs                   none runs
    publish    asks it for a cut               opens the pool (or asks its exporter), one round, closes it
    rebase     asks it                         the same, without a round
    status     asks it                         says since when nothing is published, by the catalogue and the log

A backup job is started every few minutes on many hosts: what only the daemon needs isn't imported here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import click

from agent.beacon import BeaconKeeper
from agent.clock import SystemClock
from agent.context import Context, host_name, open_files, open_origin
from agent.cut import GroupPublisher, points_of, published_volumes
from agent.farewell import buried, gone_volumes
from agent.publish import VolumePublisher
from agent.published import Published, failed_of
from agent.ratelimit import TokenBucket
from agent.remembering import Remembering
from replicator.cli.show import local_zone
from replicator.errors import ConflictError, NotFoundError, UnavailableError, UsageError
from replicator.exporter.signals import stopped_by_signals
from replicator.history.names import check_label
from replicator.log.interface import Log
from replicator.log.opening import log_url, open_log
from replicator.pool.catalogue_schema import Role
from replicator.pool.daemons import ANSWER_S, ask
from replicator.pool.ending import stop_daemon
from replicator.pool.opening import open_pool, require_pool
from replicator.pool.reading import read_pool
from replicator.pool.sockets import connect
from replicator.repository.remembered import LOG_SETTING, remember_log

SOCKET_NAME = "agent"
"""Beside the pool: where a running agent is asked."""

LONG_S = 86400.0
"""How long a job may wait for an agent's cut: a first transaction of terabytes takes hours."""


def ask_agent(pool: Path, method: str, timeout_s: float = ANSWER_S, **arguments: Any) -> dict[str, Any]:
    """The running agent's answer; NotFoundError where none runs."""
    require_pool(pool)
    try:
        return ask(pool, SOCKET_NAME, method, timeout_s, **arguments)
    except UnavailableError as error:
        if is_running(pool):
            raise
        raise _none_runs(pool) from error


def stop_agent(pool: Path, wait_s: float) -> None:
    """Stop the running agent, and return when it is gone; NotFoundError where none ran."""
    require_pool(pool)
    if stop_daemon(pool, SOCKET_NAME, wait_s) is None:
        raise _none_runs(pool)


def _none_runs(pool: Path) -> NotFoundError:
    mend = f"replicator agent run {pool} --log LOG --listen ADDRESS"
    return NotFoundError(f"no agent runs for {pool}", mend=mend)


def is_running(pool: Path) -> bool:
    """Whether an agent listens beside the pool."""
    try:
        connect(pool, SOCKET_NAME, ANSWER_S).close()
    except UnavailableError:
        return False
    return True


def status_of(pool: Path) -> dict[str, Any]:
    """The agent's status; where none runs, since when nothing is published."""
    if is_running(pool):
        return ask_agent(pool, "status")
    from agent.gather import Gatherer
    from agent.lastword import last_words
    from agent.status import document

    now = time.time_ns()
    mend = f"replicator agent run {pool} --log LOG --listen ADDRESS"
    with read_pool(pool, role="status") as reader:
        view = reader.view()
    log = view.setting(LOG_SETTING) or None
    said = last_words(view, log)
    facts = Gatherer(str(pool), log or "").unpublished(view, now, f"no agent runs for {pool}", mend, said=said)
    found = document(facts, now, local_zone())
    return {**found, "pid": None, "log": log, "mend": mend}


def publish_once(path: Path, log: str, names: tuple[str, ...], labels: tuple[str, ...]) -> Published:
    """One cut of these volumes (all, where none is named), in the log when this returns."""
    require_pool(path)
    labels = tuple(dict.fromkeys(check_label(label) for label in labels))
    if not is_running(path):
        return _publish_here(path, log, names, labels)
    known = str(ask_agent(path, "status")["log"])
    if log_url(known) != log_url(log):
        raise ConflictError(f"an agent publishes this pool to {known}", mend="name that log, or stop the agent")
    asked = {"volumes": list(names), "labels": list(labels), "wait_s": LONG_S}
    return Published.answered(ask_agent(path, "snapshot", LONG_S + ANSWER_S, **asked))


def _publish_here(path: Path, log: str, names: tuple[str, ...], labels: tuple[str, ...]) -> Published:
    """The same in this process, over the pool itself or its exporter."""
    with _opened(path, log) as (context, opened):
        view = context.pool().view()
        publisher = GroupPublisher(context, published_volumes(view, names))
        with closing(publisher):
            finished, done = publisher.round_each(labels)
            if done is not None:  # of what was finished its own timestamps say as much
                for tail in done.tails.values():
                    BeaconKeeper(opened, context.clock).write(tail, done.timestamp_ns)
            for gone in gone_volumes(view) if not names else ():
                with closing(VolumePublisher(context, gone.volume)) as last:
                    last.bury(gone)
                buried(context.pool(), gone.volume)
        rounds = [each for each in (finished, done) if each is not None]
        failed = {uuid: error for each in rounds for uuid, error in each.failed.items()}
        points = [point for each in rounds for point in points_of(each, labels)]
        return Published(points, tuple(failed_of(view.volume(uuid).name, error) for uuid, error in failed.items()))


def rebase(path: Path, log: str | None, volume: str, *, new_timeline: bool) -> str:
    """A common base of pool and log again (agent/rebase), by the agent that runs, or here; what was done."""
    require_pool(path)
    if is_running(path):
        asked = {"volume": volume, "new_timeline": new_timeline}
        return str(ask_agent(path, "rebase", LONG_S, **asked)["done"])
    from agent.rebase import rebase_from_log, rebase_to_new_timeline

    act = rebase_to_new_timeline if new_timeline else rebase_from_log
    with read_pool(path, role="rebase") as reader:
        known = log or reader.view().setting(LOG_SETTING)
    if not known:
        raise UsageError(f"{path} doesn't know its log", mend="name it: --log LOG")
    with _opened(path, known) as (context, _):
        uuid = context.pool().view().volume(volume).uuid
        done = act(context, uuid)
        context.agreed(context.pool(), uuid)
        return done


@contextmanager
def _opened(path: Path, log: str) -> Iterator[tuple[Context, Log]]:
    """The world of a publisher that ends by itself."""
    clock = SystemClock()
    with ExitStack() as stack:
        stack.enter_context(stopped_by_signals(clock.stop))
        pool = stack.enter_context(closing(open_pool(path, role="publish")))
        view = pool.view()
        is_new = all(view.position(each.uuid, Role.PUBLISHED) is None for each in view.volumes)
        opened = stack.enter_context(closing(open_log(log, create=is_new)))
        remembering = Remembering(view, lambda pool: remember_log(pool, Role.PUBLISHED, log))
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
            agreed=remembering.agreed,
        )
        yield context, opened
