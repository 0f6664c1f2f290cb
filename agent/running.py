"""From the command line to a running agent: signals, clocks, chance, and the exporter are put in here.

The rim: everything that the daemon is passed is made here, from the real machine. A second agent of a pool is refused
by the socket of the first: exit 4.
"""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from uuid import uuid4

from agent.clock import SystemClock
from agent.config import AgentConfig
from agent.context import host_name
from agent.daemon import Agent
from agent.schedule import Cron
from replicator.cli.show import local_zone
from replicator.cli.zones import require_known
from replicator.exporter.address import check_tls, parse_address
from replicator.exporter.journal import Journal
from replicator.exporter.signals import stopped_by_signals
from replicator.exporter.supervise import Listeners, connect, end_started_by
from replicator.log.opening import log_url, open_log
from replicator.pool.catalogue_schema import Role
from replicator.pool.control_values import ListenAsked
from replicator.pool.interface import Pool
from replicator.pool.opening import open_pool, require_pool
from replicator.pool.remote import RemotePool
from replicator.repository.remembered import remember_log

OURS = "agent"


def run_agent(config: AgentConfig) -> None:
    """Run until SIGTERM, SIGINT, or `agent stop`."""
    require_pool(config.pool)
    check_tls(config.tls)  # before a process is started that would refuse it, as the addresses
    for each in config.listen:
        parse_address(each)
    zone = local_zone()
    if any(isinstance(each, Cron) for each in config.schedules):
        require_known(zone)
    config = replace(config, pool=config.pool.absolute(), log=log_url(config.log))
    clock = SystemClock()
    journal = Journal(sys.stderr, clock.now_ns)
    chance = random.Random()
    listeners = Listeners(
        lambda: connect_pool(config), lambda reason: journal.warning("a listener is lost", reason=reason)
    )
    agent = Agent(
        config,
        connect_pool=listeners.connect,
        look=listeners.note,
        open_log=lambda create: open_log(config.log, create=create),
        end_exporter=lambda pool: end_started_by(pool, OURS),
        remember_log=lambda pool: remember_log(pool, Role.PUBLISHED, config.log),
        clock=clock,
        stop=clock.stop,
        wake=clock.wake,
        new_uuid=uuid4,
        chance=chance.random,
        host=host_name(),
        journal=journal,
        zone=zone,
    )
    with stopped_by_signals(clock.stop):
        agent.run()


def connect_pool(config: AgentConfig) -> Pool:
    """The pool, through its exporter; without a listener as whoever has it, or by ourselves.

    The exporter is adopted or started; where it is another unit's to start (`adopt`), UnavailableError until it runs.
    """
    if config.adopt:
        pool = RemotePool(config.pool, role=OURS)
        asked = _listeners(config)
    elif config.listen:
        first, *asked = _listeners(config)
        pool = connect(config.pool, started_by=OURS, listener=first, group=config.socket_group)
    else:
        return open_pool(config.pool, role=OURS)
    try:
        for each in asked:
            pool.listen(each)
    except BaseException:
        pool.close()
        raise
    return pool


def _listeners(config: AgentConfig) -> list[ListenAsked]:
    return [ListenAsked(each, list(config.volumes), False, dict(config.tls), patient=True) for each in config.listen]
