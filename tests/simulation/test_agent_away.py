"""The network's weather on a simulated clock: a log that is away for hours, a pool that fills meanwhile, a slow line.

Writes go on all the time. What is shown: what the pool and this process take stays bounded, what gives way is what
`when_full` says, the status said so before, and afterwards the stream folds to the source.
"""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC
from pathlib import Path

import pytest

from agent.append import LogAwayError
from agent.context import Context
from agent.cut import GroupPublisher
from agent.gather import Gatherer
from agent.ratelimit import TokenBucket
from agent.relief import WhenFull
from agent.rows import let_go, switched
from agent.schedule import Every
from agent.status import document, text
from agent.worker import GroupWorker, Plan
from replicator._buffer import Buffer
from replicator.errors import NoSpaceError, UnavailableError
from replicator.events.bodies import TransactionBegan
from replicator.events.values import DeltaKind
from replicator.log.errors import PutUnknownError
from replicator.log.object_log import ObjectLog
from replicator.pool.catalogue_schema import Purpose
from replicator.units import CHUNK_BYTES, MIB
from tests.support.agent_world import VOLUME, Replica, SourceHost, context_of
from tests.support.faulty_log import FaultyLog
from tests.support.manual_clock import ManualClock
from tests.support.memory_objects import MemoryStore

VOLUME_BYTES = 4 * MIB
MEMORY_GROWTH_MAX = MIB


class Weather:
    """A host, a log that may be away, and a worker between them."""

    def __init__(self, folder: Path, pool_bytes: int, when_full: WhenFull = WhenFull.DROP_BASE) -> None:
        self.clock = ManualClock()
        self.host = SourceHost(folder, size_bytes=pool_bytes)
        self.host.create("disk", VOLUME_BYTES)
        self.host.follow(self.clock)
        self.log = ObjectLog(MemoryStore(), create=True)
        self.line = FaultyLog(self.log)
        self.told: list[str] = []
        context: Context = replace(context_of(self.host, self.line, self.clock), report=self._tell)
        self.gatherer = Gatherer(str(self.host.path), "", when_full)
        self.worker = GroupWorker(context, Plan((VOLUME,), when_full=when_full), chance=lambda: 0.5)
        self.attempts: list[float] = []
        self.rng = random.Random(20)

    def _tell(self, reason: str) -> None:
        self.attempts.append(self.clock.monotonic())
        if reason not in self.told:
            self.told.append(reason)

    def write(self) -> None:
        """One chunk anywhere."""
        at = self.rng.randrange(VOLUME_BYTES // CHUNK_BYTES) * CHUNK_BYTES
        self.host.write(at, self.rng.randbytes(CHUNK_BYTES))

    def free(self) -> int:
        return self.host.pool.status().data_free_blocks

    def pass_time(self, seconds: float, writes: int = 0) -> Iterator[float]:
        """Steps of the worker for so long, with so many writes a step; gives the time after each."""
        end = self.clock.monotonic() + seconds
        while self.clock.monotonic() < end:
            for _ in range(writes):
                self.write()
            self.clock.advance(max(1.0, self.worker.step()))
            self.gatherer.sample(self.host.pool, self.clock.monotonic())
            yield self.clock.monotonic()

    def status(self) -> dict[str, object]:
        facts = self.gatherer.facts(self.host.pool, [self.worker], self.clock.monotonic())
        return document(facts, self.clock.now_ns(), UTC)

    def kinds(self) -> list[DeltaKind]:
        bodies = (event.body for event in self.log.reader(VOLUME, 1).read(1))
        return [body.kind for body in bodies if isinstance(body, TransactionBegan)]

    def close(self) -> None:
        self.worker.close()
        self.host.close()


def test_a_log_that_is_away_for_twelve_hours_costs_a_bounded_pool_and_bounded_memory(tmp_path: Path) -> None:
    weather = Weather(tmp_path, 48 * MIB)
    for chunk in range(VOLUME_BYTES // CHUNK_BYTES):
        weather.host.write(chunk * CHUNK_BYTES, weather.rng.randbytes(CHUNK_BYTES))
    weather.worker.step()
    at_start = weather.free()
    weather.line.is_away = True
    list(weather.pass_time(600, writes=2))
    gc.collect()
    tracemalloc.start()
    least, begun = weather.free(), tracemalloc.get_traced_memory()[0]
    for _ in weather.pass_time(12 * 3600, writes=1):
        least = min(least, weather.free())
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - begun
    tracemalloc.stop()
    waits = [after - before for before, after in zip(weather.attempts[10:], weather.attempts[11:], strict=False)]
    print(f"12 h: pool {at_start} -> {least} blocks free, memory {grown} bytes, {len(waits)} attempts")
    assert at_start - least <= 2 * VOLUME_BYTES // CHUNK_BYTES, "at most base, waiting target, and what is live"
    assert grown < MEMORY_GROWTH_MAX
    assert min(waits) >= 30 and max(waits) <= 70, "for ever, and not in a hurry"
    assert weather.host.pool.view().snapshots_of(VOLUME, Purpose.BASE), "with room enough nothing is let go of"
    headline = str(weather.status()["headline"])
    assert headline.startswith("NOT PROTECTED since") and "(12 h" in headline and "log unreachable" in headline
    weather.line.is_away = False
    list(weather.pass_time(90))
    assert weather.worker.failure is None and weather.kinds()[-1] is DeltaKind.DELTA
    assert len(weather.kinds()) == 3, "what waited when it began, and one that spans it"
    assert Replica.of(weather.log).content == weather.host.content()
    weather.close()


def fill_slowly(weather: Weather) -> list[str]:
    """An outage under writes until the pool is low; what the status said on the way."""
    for chunk in range(VOLUME_BYTES // CHUNK_BYTES):
        weather.host.write(chunk * CHUNK_BYTES, weather.rng.randbytes(CHUNK_BYTES))
    weather.worker.step()
    weather.line.is_away = True
    said = []
    for number, _ in enumerate(weather.pass_time(1800)):
        weather.host.write(number % 64 * CHUNK_BYTES, weather.rng.randbytes(CHUNK_BYTES))
        said.append(text(weather.status()))
    return said


def test_a_low_pool_lets_go_of_the_base_and_compares_afterwards(tmp_path: Path) -> None:
    weather = Weather(tmp_path, 7 * MIB)
    said = fill_slowly(weather)
    warned = [line for line in said if "the base is let go of (when_full = drop-base)" in line and " in " in line]
    assert len(warned) > 10, "the status said so long before"
    assert "lasts" in warned[0] and "at this rate" in warned[0]
    assert any("runs low" in reason for reason in weather.told)
    assert not weather.host.pool.view().snapshots, "base and target went"
    assert "no base: the next transaction is found by comparing hashes" in said[-1]
    weather.line.is_away = False
    list(weather.pass_time(90, writes=1))
    assert weather.kinds()[-1] in (DeltaKind.REBASE, DeltaKind.DELTA) and DeltaKind.REBASE in weather.kinds()
    list(weather.pass_time(30))
    assert weather.worker.failure is None
    assert Replica.of(weather.log).content == weather.host.content()
    weather.close()


def test_stop_writes_keeps_the_base_and_writes_end_with_no_space(tmp_path: Path) -> None:
    weather = Weather(tmp_path, 7 * MIB, WhenFull.STOP_WRITES)
    with pytest.raises(NoSpaceError):
        fill_slowly(weather)
    assert weather.host.pool.view().snapshots_of(VOLUME, Purpose.BASE)
    assert "writes end with ENOSPC (when_full = stop-writes)" in text(weather.status())
    weather.line.is_away = False
    list(weather.pass_time(90))
    assert weather.worker.failure is None and DeltaKind.REBASE not in weather.kinds()
    weather.host.write(0, b"writes go on")
    list(weather.pass_time(10))
    assert Replica.of(weather.log).content == weather.host.content()
    weather.close()


class LatePuts(MemoryStore):
    """Objects whose next put, when `is_late`, gets no answer, and then nothing does; it stands once `lands` says so."""

    def __init__(self) -> None:
        super().__init__()
        self.is_late = self.is_away = False
        self.lands: Callable[[], bool] = lambda: False
        self._late: tuple[str, Buffer] | None = None

    def put_if_absent(self, name: str, data: Buffer) -> bool:
        """Heard of, or not."""
        if self.is_late:
            self.is_late, self.is_away, self._late = False, True, (name, data)
            raise PutUnknownError("no answer came")
        return super().put_if_absent(name, data)

    def children(self, prefix: str) -> list[str]:
        """What stands, with what has landed meanwhile."""
        if self.is_away:
            raise UnavailableError("the log is away")
        if self._late is not None and self.lands():
            late, self._late = self._late, None
            super().put_if_absent(*late)
        return super().children(prefix)


def test_a_commit_that_lands_after_its_transaction_was_given_up(tmp_path: Path) -> None:
    """Its place is taken before it is forgotten, so that it never stands."""
    clock, host, store = ManualClock(), SourceHost(tmp_path), LatePuts()
    host.create("disk", VOLUME_BYTES)
    log = ObjectLog(store, create=True)
    publisher = GroupPublisher(context_of(host, log, clock), [VOLUME])
    host.write(0, b"first")
    publisher.round()
    host.write(0, b"second")
    store.is_late = True
    with pytest.raises(LogAwayError):
        publisher.round()
    given_up = host.pool.view().prepared_of(VOLUME)
    switched(host.pool, lambda view: let_go(view, [VOLUME]))
    store.is_away = False
    store.lands = lambda: host.pool.view().prepared_of(VOLUME) != given_up
    for text_of in (b"third", b"fourth"):
        host.write(0, text_of)
        publisher.round()
    assert Replica.of(log).content == host.content()
    assert store.lands(), "it was given up"
    publisher.close()
    host.close()


@pytest.mark.parametrize("rate", [100_000, MIB, 4 * MIB])
def test_the_limit_of_bandwidth_is_kept_within_five_percent(tmp_path: Path, rate: int) -> None:
    clock = ManualClock()
    host = SourceHost(tmp_path, size_bytes=16 * MIB)
    host.create("disk", VOLUME_BYTES)
    log = ObjectLog(MemoryStore(), create=True)
    context = replace(context_of(host, log, clock), bucket=TokenBucket(rate, clock.monotonic))
    worker = GroupWorker(context, Plan((VOLUME,), schedule=Every(0.05)), chance=lambda: 0.5)
    rng = random.Random(1)
    began_s, sent = clock.monotonic(), 0
    while clock.monotonic() - began_s < 12:
        host.write(0, rng.randbytes(VOLUME_BYTES))
        clock.advance(worker.step())
        sent = worker.meter.total_bytes
    measured = sent / (clock.monotonic() - began_s)
    print(f"limit {rate} B/s, measured {measured:.0f} B/s ({measured / rate - 1:+.1%})")
    assert measured == pytest.approx(rate, rel=0.05)
    worker.close()
    host.close()
