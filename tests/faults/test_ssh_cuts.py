"""The SSH log's connection cut at random bytes, a hundred times and more, while one publishes and another follows.

Real sshd and ssh, each connection a session of its own with a server of its own. Afterwards: nothing lost, nothing
twice, nothing out of order, for the log and for what the follower got, and no stray is left by the servers.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from replicator.errors import UnavailableError
from replicator.events.codec import Event
from replicator.log.interface import Log
from replicator.log.object_log import ObjectLog, directory_log
from replicator.log.ssh_command import parse_ssh_url
from replicator.log.stdio_client import RemoteStore
from replicator.log.stdio_connection import Connection
from tests.support.cutting import AT_COMMIT, WITHIN_COMMIT, Cuts, CuttingChannel
from tests.support.event_streams import VOLUME, Script
from tests.support.far_logs import FarServers
from tests.support.resending import Resender

CUTS = 100
EVENTS_MAX = 20_000


def store_at(url: str, cuts: Cuts) -> RemoteStore:
    """The objects at `url` over connections that are cut."""
    place = parse_ssh_url(url)

    def connect(is_known: bool) -> Connection:
        return Connection(CuttingChannel(place.argv(), cuts), place.name, place.path, create=not is_known)

    return RemoteStore(place.name, connect)


def add_transaction(script: Script, rng: random.Random) -> int:
    """A small one, or one of half a megabyte; the sequence number of its end."""
    script.transaction(*sorted(rng.sample(range(200), rng.choice((1, 2, 8)))), compressible=False)
    return script.state.sequence


def spans(rng: random.Random, count: int, *special: int) -> list[int]:
    """How long connections live: some die in the greeting, some after many segments, some at a commit."""
    limits = (400, 60_000, 800_000)
    return [rng.choice([*special, *(rng.randrange(1, limit) for limit in limits)]) for _ in range(count)]


class RealWaiter:
    """A Waiter on the real clock."""

    def __init__(self) -> None:
        self._stop = threading.Event()

    def monotonic(self) -> float:
        """The machine's."""
        return time.monotonic()

    def wait(self, seconds: float) -> bool:
        """Nobody asks for a stop."""
        return self._stop.wait(seconds)


class Follower(threading.Thread):
    """Follows until it has `count` events, once that is known, through every failure."""

    def __init__(self, open_log: Callable[[], Log]) -> None:
        super().__init__(daemon=True)
        self._open_log = open_log
        self.count: int | None = None
        self.found: list[Event] = []
        self.failures = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while self.count is None or len(self.found) < self.count:
                try:
                    reader = self._open_log().reader(VOLUME, 1)
                    for event in reader.follow(len(self.found) + 1, RealWaiter(), timeout_s=1.0):
                        self.found.append(event)
                except UnavailableError:
                    self.failures += 1
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error


@pytest.mark.long
def test_cut_a_hundred_times_nothing_is_lost_doubled_or_reordered(far_servers: FarServers, tmp_path: Path) -> None:
    rng = random.Random(20261122)
    url = far_servers.ssh_url(tmp_path / "log")
    directory_log(tmp_path / "log", create=True)
    published, followed = Cuts(spans(rng, CUTS, AT_COMMIT, WITHIN_COMMIT)), Cuts(spans(rng, CUTS // 5))
    near, far = store_at(url, published), store_at(url, followed)
    script = Script().create()
    sender = Resender(lambda: ObjectLog(near, create=True), script.events)
    follower = Follower(lambda: ObjectLog(far, create=True))
    follower.start()
    while published.done < CUTS:
        assert script.state.sequence < EVENTS_MAX, "the cuts don't come"
        sender.send(add_transaction(script, rng))
    sender.close()
    follower.count = script.state.sequence
    follower.join(120)
    near.close()
    far.close()
    assert follower.error is None and not follower.is_alive(), follower.error
    cuts = published.done + followed.done
    print(
        f"{script.state.sequence} events, {cuts} cuts: {sender.failures} failures, {sender.unknowns} unknown,"
        f" {sender.conflicts} conflicts, {follower.failures} of the follower"
    )
    events = script.events
    assert [event.encoded for event in follower.found] == [event.encoded for event in events]
    log = directory_log(tmp_path / "log")
    assert [event.encoded for event in log.reader(VOLUME, 1).read(1)] == [event.encoded for event in events]
    assert sender.unknowns, "no cut met a commit: nothing was shown about unknown outcomes"
