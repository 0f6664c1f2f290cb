"""Any number of receivers on one log, each at its own pace, each registered beside it; one is struck off by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from receiver.registering import ALIVE_S, RENEW_S, Registrar, forget_receiver
from replicator.errors import ConflictError, NotFoundError, UnavailableError
from replicator.log.interface import Registration
from replicator.log.object_log import ObjectLog
from replicator.pool.catalogue_schema import Position, Role
from tests.support.manual_waiter import ManualWaiter
from tests.support.receivers import applied_number, assert_prefix, follower, memory_log
from tests.support.replica_pools import ReplicaPool
from tests.support.replica_streams import SourceVolume

SIZE = 12 * 65536


@pytest.fixture
def three(tmp_path: Path) -> Iterator[list[ReplicaPool]]:
    pools = []
    for number in range(3):
        folder = tmp_path / f"site-{number}"
        folder.mkdir()
        pools.append(ReplicaPool(folder, data_blocks=200, uuid=UUID(int=number + 1, version=4)))
    yield pools
    for pool in pools:
        pool.assert_clean()


def said(log: ObjectLog, source: SourceVolume) -> dict[str, int]:
    return {each.name: each.number for each in log.registrations(source.uuid)}


def only_after(transactions: int, pool: ReplicaPool, source: SourceVolume) -> Callable[[], bool]:
    """A stop as soon as that many are applied: a receiver that is slow."""
    return lambda: applied_number(pool, source) >= transactions


def test_three_receivers_one_slow_one_dead(three: list[ReplicaPool]) -> None:
    fast, slow, dead = three
    log, source = memory_log(), SourceVolume(5, SIZE)
    for _ in range(6):
        source.transaction(source.scribble())
        source.publish(log)
    follower(fast, source, log, name="fast").follow(None)
    follower(slow, source, log, name="slow", stopping=only_after(2, slow, source)).follow(None)
    follower(dead, source, log, name="dead", stopping=only_after(1, dead, source)).follow(None)
    assert said(log, source) == {"dead": 1, "fast": 6, "slow": 2}
    assert [assert_prefix(each, source) for each in three] == [6, 2, 1]

    end = source.state.sequence
    dead_at = next(each.sequence for each in log.registrations(source.uuid) if each.name == "dead")
    assert log.trim(source.uuid, 1, end) <= dead_at + 1, "nothing goes that the dead one hasn't verified"
    forget_receiver(log, "disk-1", "dead")
    slow_at = next(each.sequence for each in log.registrations(source.uuid) if each.name == "slow")
    kept = log.trim(source.uuid, 1, end)
    assert dead_at + 1 < kept <= slow_at + 1, "then the slow one holds it back"

    for _ in range(2):
        source.transaction(source.scribble())
        source.publish(log)
    for pool, name in ((slow, "slow"), (fast, "fast")):
        follower(pool, source, log, name=name).follow(None)
    assert said(log, source) == {"fast": 8, "slow": 8}
    assert [assert_prefix(each, source) for each in three] == [8, 8, 1]
    with pytest.raises(NotFoundError, match="trimmed"):
        follower(dead, source, log, name="dead").follow(None)
    assert assert_prefix(dead, source) == 1


def test_one_that_opted_out_says_nothing(three: list[ReplicaPool]) -> None:
    log, source = memory_log(), SourceVolume(6, SIZE)
    source.transaction()
    source.publish(log)
    follower(three[0], source, log).follow(None)
    assert log.registrations(source.uuid) == []


def position(number: int) -> Position:
    return Position(UUID(int=9), Role.APPLIED, 1, number, bytes(16), 10 * number, 1)


class Words:
    """A log that keeps what was registered, and may be away."""

    def __init__(self) -> None:
        self.said: list[tuple[int, int]] = []
        self.is_away = False

    def register(self, registration: Registration) -> None:
        if self.is_away:
            raise UnavailableError("the log is away")
        self.said.append((registration.number, registration.sequence))


def test_it_is_renewed_now_and_then() -> None:
    log, waiter = Words(), ManualWaiter()
    registrar = Registrar(log, "site-b", lambda: 7, waiter.monotonic)  # type: ignore[arg-type]  # the half of a log that is asked
    pool = UUID(int=1)
    registrar.renew(pool, None)
    for number in range(1, 101):
        registrar.renew(pool, position(number))
        waiter.now_s += RENEW_S / 10
    assert [number for number, _ in log.said] == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91]
    registrar.renew(pool, position(100), at_once=True)
    registrar.renew(pool, position(100), at_once=True)
    assert log.said[10:] == [(100, 1000)]
    for _ in range(20):
        waiter.now_s += ALIVE_S / 10
        registrar.renew(pool, position(100))
    assert log.said[11:] == [(100, 1000)] * 2, "a sign of life while nothing comes"


def test_a_log_that_is_away_is_a_problem_and_no_error() -> None:
    log, waiter = Words(), ManualWaiter()
    registrar = Registrar(log, "site-b", lambda: 7, waiter.monotonic)  # type: ignore[arg-type]  # the half of a log that is asked
    log.is_away = True
    registrar.renew(UUID(int=1), position(3))
    assert registrar.registered.problem == "the log is away" and registrar.registered.at_ns is None
    log.is_away = False
    registrar.renew(UUID(int=1), position(3))
    assert log.said == [], "not before it is due"
    waiter.now_s += RENEW_S
    registrar.renew(UUID(int=1), position(3))
    assert log.said == [(3, 30)] and registrar.registered.problem is None


def test_who_is_forgotten_is_named() -> None:
    log, source = memory_log(), SourceVolume(6, SIZE)
    source.publish(log)
    for number, name in ((1, "b"), (2, "b"), (3, "c")):
        log.register(Registration(source.uuid, UUID(int=number), name, 1, number, 2, 7))
    with pytest.raises(ConflictError, match="2 receivers"):
        forget_receiver(log, "disk-1", "b")
    with pytest.raises(NotFoundError, match=r"there are: b \(.*, c \("):
        forget_receiver(log, "disk-1", "d")
    with pytest.raises(NotFoundError, match="disk-1"):
        forget_receiver(log, "other", "b")
    for receiver, number in ((str(UUID(int=2)), 2), ("b", 1)):
        said = forget_receiver(log, str(source.uuid), receiver).said
        assert said is not None and said.number == number
    assert [each.name for each in log.registrations(source.uuid)] == ["c"]
