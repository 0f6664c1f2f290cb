"""From the command line to a running receiver: signals, clocks, chance, and the pool's owner are put in here.

The rim: everything that the daemon is passed is made here, from the real machine.

    command   a receiver runs                   none runs
    run       refused by its socket: exit 4     builds one, and runs it
    --once    the same                          opens the pool (or asks its owner), applies what is there, closes it
    status    asks it                           NotFoundError, with the command that starts one
    verify    reads beside it                   reads the pool itself
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from receiver.config import ReceiverConfig
from receiver.daemon import SOCKET_NAME, Receiver, Surroundings
from receiver.errors import UnknownChunksError, VerifyError
from receiver.registering import Forgotten, forget_receiver
from receiver.verification import document, remember, verify_points, wanted_points
from replicator.cli.show import local_zone
from replicator.errors import ConflictError, NotFoundError, UnavailableError
from replicator.exporter.journal import Journal
from replicator.exporter.signals import stopped_by_signals
from replicator.exporter.supervise import Listeners, connect, end_started_by
from replicator.log.opening import is_log, log_url, open_log
from replicator.pool.daemons import ANSWER_S, ask
from replicator.pool.ending import stop_daemon
from replicator.pool.interface import Pool
from replicator.pool.opening import open_pool, require_pool
from replicator.pool.reading import read_pool
from replicator.pool.sockets import connect as connect_socket
from replicator.repository.patience import StopWaiter
from replicator.repository.remembered import remembered_log

OURS = "receiver"


def run_receiver(config: ReceiverConfig) -> None:
    """Run until SIGTERM, SIGINT, or `receiver stop`."""
    config = placed(config)
    require_pool(config.pool)
    around = _around(config, lambda: connect(config.pool, started_by=OURS, group=config.socket_group))
    with stopped_by_signals(around.waiter.stop):
        Receiver(config, around).run()


def catch_up(config: ReceiverConfig) -> list[dict[str, Any]]:
    """Apply what the log has now; the volumes' lines of the status afterwards."""
    config = placed(config)
    require_pool(config.pool)
    if is_running(config.pool):
        raise ConflictError(
            f"a receiver runs for {config.pool} already", mend=f"replicator receiver stop {config.pool}"
        )
    around = _around(config, lambda: open_pool(config.pool, role=OURS))
    with stopped_by_signals(around.waiter.stop):
        return Receiver(config, around).catch_up()


def placed(config: ReceiverConfig) -> ReceiverConfig:
    """With paths that read alike from any folder: what status and journal show."""
    return replace(config, pool=config.pool.absolute(), log=log_url(config.log))


def forget(path: str, volume: str, receiver: str) -> tuple[str, Forgotten]:
    """Strike a receiver off in a log, or in the log that a pool remembers; the log, and who that was."""
    url = path if is_log(path) else _log_of(Path(path), volume)
    with closing(open_log(url)) as log:
        return url, forget_receiver(log, volume, receiver)


def _log_of(pool: Path, volume: str) -> str:
    require_pool(pool)
    with read_pool(pool) as reader:
        view = reader.view()
        uuid = next((each.uuid for each in view.volumes if volume in (each.name, str(each.uuid))), None)
        url = remembered_log(view, uuid)
    if not url:
        raise NotFoundError(f"{pool} has neither published to a log nor followed one", mend="name the log itself")
    return url


def _around(config: ReceiverConfig, connect_pool: Callable[[], Pool]) -> Surroundings:
    journal = Journal(sys.stderr, time.time_ns)
    listeners = Listeners(connect_pool, lambda reason: journal.warning("a listener is lost", reason=reason))
    return Surroundings(
        connect_pool=listeners.connect,
        look=listeners.note,
        open_log=lambda: open_log(config.log),
        waiter=StopWaiter(),
        clock_ns=time.time_ns,
        chance=random.Random().random,
        journal=journal,
        zone=local_zone(),
        end_owner=lambda pool: end_started_by(pool, OURS),
    )


def is_running(pool: Path) -> bool:
    """Whether a receiver listens beside the pool."""
    try:
        connect_socket(pool, SOCKET_NAME, ANSWER_S).close()
    except UnavailableError:
        return False
    return True


def ask_receiver(pool: Path, method: str) -> dict[str, Any]:
    """The running receiver's answer; NotFoundError where none runs."""
    require_pool(pool)
    if not is_running(pool):
        raise _none_runs(pool)
    return ask(pool, SOCKET_NAME, method)


def _none_runs(pool: Path) -> NotFoundError:
    mend = f"replicator receiver run {pool} --log LOG"
    return NotFoundError(f"no receiver runs for {pool}: nothing is applied", mend=mend)


def stop_receiver(pool: Path, wait_s: float) -> dict[str, Any]:
    """Stop it, and return when it is gone, with what it answered, if it did; NotFoundError where none ran."""
    require_pool(pool)
    answer = stop_daemon(pool, SOCKET_NAME, wait_s)
    if answer is None:
        raise _none_runs(pool)
    return answer


def verify(path: Path, log_text: str, named: Sequence[str], tell: Callable[[str], None]) -> dict[str, object]:
    """Verify these points; what they came to. What isn't equal is raised by `require_equal`."""
    zone = local_zone()
    with closing(open_log(log_text)) as log, read_pool(path, role="verify") as reader:
        points = wanted_points(reader.view(), named, time.time_ns(), zone)
        verified = verify_points(reader, log, points, tell)
        found = document(verified, reader.view(), path)
    if any(each.is_equal for each in verified):
        with closing(open_pool(path, role="verify")) as pool:
            remember(pool, verified, time.time_ns())
    return found


def require_equal(found: dict[str, Any]) -> None:
    """VerifyError for the first point that differs; UnknownChunksError for the first that wasn't compared in full."""
    for each in found["points"]:
        if each["equal"] is False:
            raise VerifyError(_point(each), each["differing"], each["chunks_differing"])
    for each in found["points"]:
        if each["equal"] is None:
            raise UnknownChunksError(_point(each), each["chunks_compared"], each["chunks_unknown"])


def _point(verified: dict[str, Any]) -> str:
    return f"{verified['volume']}@{verified['number']}"


def tell_progress(line: str) -> None:
    """On stderr, where somebody looks."""
    if sys.stderr.isatty():
        click.echo(line, err=True)
