"""Fencing, and "both ends remember", on every log, with the real agent and receiver: who may publish, and who stops.

Two hosts, alpha and beta, have copies of one pool; each opens the log by itself. What a receiver applies is compared
with what the winner's volume holds.
"""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import cast
from uuid import UUID

import pytest

from agent.append import LogAwayError
from agent.context import Context
from agent.cut import GroupPublisher
from agent.decide import FencedError, LostEndError, PoolOlderError, TimelineOverError
from agent.rebase import rebase_from_log, rebase_to_new_timeline
from agent.worker import GroupWorker, Plan
from receiver.access import PoolAccess
from receiver.follow import Follower, World
from replicator.errors import ConflictError, DamageError, UnavailableError
from replicator.events.bodies import PointLabelled, PublisherOpened, TransactionBegan
from replicator.events.state import Life
from replicator.events.stream_errors import StreamConflictError
from replicator.events.values import DeltaKind
from replicator.log.interface import Log
from replicator.pool.catalogue_schema import Role
from replicator.units import MIB, PAGE_BYTES
from tests.support.agent_world import VOLUME, CountedUuids, Replica, SourceHost, context_of
from tests.support.far_logs import FarServers
from tests.support.log_places import KINDS, Place
from tests.support.manual_clock import ManualClock
from tests.support.manual_waiter import ManualWaiter
from tests.support.replica_pools import ReplicaPool

SIZE = MIB
ROUNDS = 5
OTHER = UUID("6f1c0000-0000-4000-8000-00000000beef")


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(params=KINDS)
def log_place(request: pytest.FixtureRequest, tmp_path: Path, far_servers: FarServers, opened: ExitStack) -> Place:
    return Place(request.param, tmp_path, far_servers, opened)


class Publisher:
    """An agent's worker on one host, its pool, log and clock."""

    def __init__(self, name: str, host: SourceHost, log: Log) -> None:
        self.name, self.host, self.log, self.clock = name, host, log, ManualClock()
        self.rng = random.Random(name)
        uuids = CountedUuids(self.rng.getrandbits(80))
        self.context = replace(context_of(host, log, self.clock, uuids), host=name)
        self.worker = GroupWorker(self.context, Plan((VOLUME,)), chance=lambda: 0.5)

    def step(self) -> None:
        """One second of the agent's life, with a write in it."""
        self.host.write(self.rng.randrange(SIZE - PAGE_BYTES), self.rng.randbytes(PAGE_BYTES))
        self.clock.advance(1)
        self.worker.step()

    def publish(self) -> int:
        """Write, and have it in the log; its number."""
        self.host.write(self.rng.randrange(SIZE - PAGE_BYTES), self.rng.randbytes(PAGE_BYTES))
        ticket = self.worker.request()
        self.worker.step()
        assert ticket.error is None, ticket.error
        return self.published

    @property
    def published(self) -> int:
        """What the pool has published."""
        position = self.host.pool.view().position(VOLUME, Role.PUBLISHED)
        return position.number if position else 0

    @property
    def has_lost(self) -> bool:
        """Whether another one has the volume now."""
        return self.worker.over is not None or isinstance(self.worker._last, PoolOlderError)


class Hosts:
    """alpha, which published once, and copies of its pool."""

    def __init__(self, place: Place, folder: Path, opened: ExitStack) -> None:
        self.place, self.folder, self._opened = place, folder, opened
        host = SourceHost(folder, size_bytes=8 * MIB)
        host.create("disk", SIZE)
        self.alpha = self._agent("alpha", host)
        self.alpha.publish()

    def _agent(self, name: str, host: SourceHost) -> Publisher:
        publisher = Publisher(name, host, self.place.open())
        self._opened.callback(publisher.host.close)
        self._opened.callback(publisher.worker.close)
        return publisher

    def copy(self, name: str) -> Publisher:
        """A copy of alpha's pool as it is now, on a host of that name; alpha goes on where it was."""
        path = self.folder / name / "pool"
        self.alpha.host.close()
        shutil.copytree(self.alpha.host.path, path)
        self.alpha.host.reopen_closed()
        return self._agent(name, SourceHost.at(path))


class Receiver:
    """A follower with a pool of its own."""

    def __init__(self, folder: Path, log: Log, opened: ExitStack) -> None:
        folder.mkdir()
        self.pool = ReplicaPool(folder)
        opened.callback(self.pool.close)
        pools = PoolAccess(lambda: self.pool.pool, lambda _: nullcontext(self.pool.disks))
        world = World(pools, log, ManualWaiter(), lambda: 1, lambda: 0.5, lambda: False)
        self.follower = Follower(world, VOLUME, "disk")

    def follow(self) -> bytes:
        """Apply all that there is; the content then."""
        self.follower.follow(None)
        return self.pool.head(VOLUME)


@pytest.fixture
def hosts(log_place: Place, tmp_path: Path, opened: ExitStack) -> Hosts:
    return Hosts(log_place, tmp_path, opened)


@pytest.fixture
def receiver(log_place: Place, tmp_path: Path, opened: ExitStack) -> Receiver:
    return Receiver(tmp_path / "replica", log_place.open(), opened)


def openings(log: Log, volume: UUID = VOLUME) -> list[str]:
    """Who took the volume, one after the other."""
    return [event.body.host for event in log.reader(volume, 1).read(1) if isinstance(event.body, PublisherOpened)]


def test_the_later_one_wins_and_the_first_stops_and_says_who(hosts: Hosts, receiver: Receiver) -> None:
    alpha, beta = hosts.alpha, hosts.copy("beta")
    receiver.follow()
    assert beta.publish() == 2
    for _ in range(3):
        alpha.step()
    over = alpha.worker.over
    assert isinstance(over, FencedError) and over.exit_code == 4 and "on beta took it over" in over.message
    assert alpha.worker.request().error is over, "whoever asks it for a cut hears the same"
    assert beta.publish() == 3 and alpha.published == 1
    assert receiver.follow() == beta.host.content()
    assert openings(beta.log) == ["alpha", "beta"]


def test_of_two_at_once_one_wins_and_nothing_of_the_other_is_applied(hosts: Hosts, receiver: Receiver) -> None:
    both = hosts.copy("beta"), hosts.alpha
    start = threading.Barrier(2)

    def run(publisher: Publisher) -> None:
        start.wait()
        for _ in range(ROUNDS):
            if not publisher.has_lost:
                publisher.step()

    threads = [threading.Thread(target=run, args=(each,)) for each in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (loser,) = (each for each in both if each.has_lost)
    (winner,) = (each for each in both if not each.has_lost)
    winner.publish()
    assert isinstance(loser.worker.over or loser.worker._last, FencedError | PoolOlderError)
    assert receiver.follow() == winner.host.content() == bytes(Replica.of(winner.log).content)
    print(f"{openings(winner.log)}: {winner.name} won with {winner.published} transactions")


def test_a_stale_copy_appends_nothing_fences_nobody_and_is_mended(hosts: Hosts, receiver: Receiver) -> None:
    alpha, stale = hosts.alpha, hosts.copy("beta")
    alpha.publish()
    before = alpha.log.reader(VOLUME, 1).tail()
    stale.step()
    refused = stale.worker._last
    assert isinstance(refused, PoolOlderError) and refused.exit_code == 4
    assert "--new-timeline|--from-log" in str(refused.mend)
    assert stale.log.reader(VOLUME, 1).tail() == before
    assert alpha.publish() == 3 and openings(alpha.log) == ["alpha"], "nobody fenced it"
    assert receiver.follow() == alpha.host.content()
    said = stale.worker.ask(lambda publisher: publisher.rebase(VOLUME, lambda of: rebase_from_log(of, VOLUME)))
    stale.worker.step()
    assert said.error is None
    assert stale.publish() > 3
    alpha.step()
    assert isinstance(alpha.worker.over, FencedError) and "on beta" in alpha.worker.over.message
    assert receiver.follow() == stale.host.content()


def test_a_rebase_that_fails_behind_its_epoch_is_no_other_publisher(hosts: Hosts) -> None:
    alpha = hosts.alpha

    def fail(of: Context) -> str:
        rebase_from_log(of, VOLUME)
        raise UnavailableError("the pool's owner went away")

    said = alpha.worker.ask(lambda publisher: publisher.rebase(VOLUME, fail))
    alpha.worker.step()
    assert isinstance(said.error, UnavailableError) and openings(alpha.log) == ["alpha", "alpha"]
    assert alpha.publish() > 1


def group_of_two(hosts: Hosts) -> GroupPublisher:
    """Alpha's volume and another one, cut together; both have been published."""
    alpha = hosts.alpha
    alpha.host.create("other", SIZE, uuid=OTHER, dev_id=40)
    alpha.worker.close()
    group = GroupPublisher(alpha.context, (VOLUME, OTHER), name="app")
    group.round()
    return group


def test_a_rebase_of_one_member_leaves_the_other_one_fenced(hosts: Hosts) -> None:
    """Whatever it came to: who took the other one over isn't fenced by the way."""
    alpha, group = hosts.alpha, group_of_two(hosts)
    GroupPublisher(hosts.copy("beta").context, (OTHER,)).round()

    def fail(of: Context) -> str:
        raise UnavailableError(f"{of.host} doesn't reach its pool")

    with pytest.raises(UnavailableError):
        group.rebase(VOLUME, fail)
    with pytest.raises(FencedError):
        group.round()
    group.rebase(VOLUME, lambda of: rebase_from_log(of, VOLUME))
    with pytest.raises(FencedError):
        group.round()
    assert openings(alpha.log, OTHER) == ["alpha", "beta"]


def test_a_group_of_which_one_member_is_stale_fences_no_other_member(hosts: Hosts) -> None:
    """The other one's stream, which nothing was published to since, is behind neither pool."""
    alpha, group = hosts.alpha, group_of_two(hosts)
    stale = hosts.copy("beta")
    alpha.host.write(0, b"newer" * 100)
    group.round()
    before = alpha.log.reader(OTHER, 1).tail()
    for _ in range(2):
        with pytest.raises(PoolOlderError):
            GroupPublisher(stale.context, (VOLUME, OTHER), name="app").round()
    assert stale.log.reader(OTHER, 1).tail() == before and OTHER < VOLUME
    assert len(group.round().tails) == 2, "nobody fenced it"


class Away:
    """A log that can't be reached."""

    asked = 0

    def timelines(self, volume: UUID) -> list[int]:
        self.asked += 1
        raise UnavailableError(f"nobody answers for {volume}")


def test_a_group_whose_log_is_away_waits_for_one_time_limit_only(hosts: Hosts) -> None:
    alpha, away = hosts.alpha, Away()
    alpha.host.create("other", SIZE, uuid=OTHER, dev_id=40)
    group = GroupPublisher(replace(alpha.context, log=cast("Log", away)), (VOLUME, OTHER), name="app")
    with pytest.raises(LogAwayError):
        group.round()
    assert away.asked == 1


def test_a_stale_copy_goes_on_on_a_timeline_of_its_own(hosts: Hosts) -> None:
    alpha, stale = hosts.alpha, hosts.copy("beta")
    alpha.publish()
    assert "timeline 2 behind 1:1" in rebase_to_new_timeline(stale.context, VOLUME)
    assert stale.publish() == 2
    alpha.step()
    over = alpha.worker.over
    assert isinstance(over, TimelineOverError) and over.exit_code == 4 and "timeline 2 took over" in over.message
    assert stale.log.reader(VOLUME, 1).tail().life is Life.ENDED
    began = [each.body for each in stale.log.reader(VOLUME, 2).read(1) if isinstance(each.body, TransactionBegan)]
    assert [(each.number, each.kind) for each in began] == [(2, DeltaKind.DELTA)]


def test_a_log_that_lost_its_end_is_sent_it_again(
    hosts: Hosts, receiver: Receiver, tmp_path: Path, opened: ExitStack
) -> None:
    alpha = hosts.alpha
    kept = alpha.log.reader(VOLUME, 1).tail().sequence
    alpha.publish()
    alpha.publish()
    receiver.follow()
    alpha.worker.close()
    hosts.place.lose_behind(VOLUME, kept)
    told: list[str] = []
    again = Publisher("alpha", alpha.host, hosts.place.open())
    again.context = replace(again.context, report=told.append)
    publisher = GroupPublisher(again.context, [VOLUME])
    publisher.round()
    publisher.close()
    assert any("lost its end: its last transaction is 1" in line for line in told)
    fresh = Receiver(tmp_path / "fresh", hosts.place.open(), opened)
    assert fresh.follow() == alpha.host.content()
    with pytest.raises((StreamConflictError, DamageError)):
        receiver.follow()
    print(told)


def test_a_label_is_not_said_behind_an_end_that_went(hosts: Hosts, tmp_path: Path, opened: ExitStack) -> None:
    alpha = hosts.alpha
    kept = alpha.log.reader(VOLUME, 1).tail()
    alpha.publish()
    alpha.publish()
    hosts.place.lose_behind(VOLUME, kept.sequence)
    assert kept.committed is not None
    label = PointLabelled(kept.committed, "friday", 7)
    said = alpha.worker.ask(lambda publisher: publisher.say(VOLUME, label))
    for _ in range(3):
        alpha.step()
    assert said.error is None and alpha.worker.over is None
    fresh = Receiver(tmp_path / "fresh", hosts.place.open(), opened)
    assert fresh.follow() == alpha.host.content(), "nobody can read what stands behind a hole"
    assert label in [event.body for event in alpha.log.reader(VOLUME, 1).read(1)]


def test_a_log_that_lost_all_but_others_asks_for_a_person(hosts: Hosts, tmp_path: Path, opened: ExitStack) -> None:
    alpha = hosts.alpha
    other = alpha.host.create("other", SIZE, uuid=OTHER, dev_id=9)
    beside = GroupPublisher(alpha.context, [other])
    beside.round()
    beside.close()
    alpha.worker.close()
    hosts.place.lose_behind(VOLUME, 0)
    again = Publisher("alpha", alpha.host, hosts.place.open())
    publisher = GroupPublisher(again.context, [VOLUME])
    with pytest.raises(LostEndError, match="lost all, or is another log") as refused:
        publisher.round()
    publisher.close()
    assert refused.value.exit_code == 4 and "--from-log" in str(refused.value.mend)
    with pytest.raises(ConflictError, match="no transaction to fork from"):
        rebase_to_new_timeline(again.context, VOLUME)
    assert "from its beginning" in rebase_from_log(again.context, VOLUME)
    publisher = GroupPublisher(again.context, [VOLUME])
    publisher.round()
    publisher.close()
    assert Receiver(tmp_path / "fresh", hosts.place.open(), opened).follow() == alpha.host.content()
