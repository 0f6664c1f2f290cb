"""Every restore point reads as the volume did, whatever base and way it is had by, and wherever it is read."""

from __future__ import annotations

import random
from datetime import UTC

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replicator.history.lineage import Lineage, Revision
from replicator.history.plan import Inventory, PointUnreachableError, plan
from replicator.log.interface import Log, StreamReader
from replicator.log.object_log import ObjectLog
from replicator.log.parts import EventParts, IndexedReader, indexed
from replicator.repository import overlay
from replicator.repository.logged import read_history
from replicator.repository.offer import reachable
from replicator.repository.point import DATA, NOTHING, ZEROS, PointDisk
from replicator.repository.source import Source
from replicator.units import CHUNK_BYTES, SECTOR_BYTES
from tests.support.memory_objects import MemoryStore
from tests.support.pools_in_memory import MemoryPool, point_snapshot
from tests.support.volume_histories import History

NOW_NS = 1_800_000_000_000_000_000


def history_of(seed: int, transactions: int = 7, *, forks: bool = True) -> History:
    """A random history of a small volume whose last chunk is short."""
    rng = random.Random(seed)
    size = rng.randrange(1, 6 * CHUNK_BYTES // SECTOR_BYTES) * SECTOR_BYTES
    history = History(ObjectLog(MemoryStore(), create=True), rng, size)
    for _ in range(transactions):
        history.transaction(resize=rng.random() < 0.3, abort_first=rng.random() < 0.2)
    if forks and rng.random() < 0.5:
        history.fork(rng.choice(list(history.contents)))
        for _ in range(3):
            history.transaction(resize=rng.random() < 0.3)
    history.close()
    return history


def assert_reads(disk: PointDisk, expected: bytes, rng: random.Random) -> None:
    assert disk.size_bytes == len(expected)
    assert disk.pread(len(expected), 0) == expected
    for _ in range(10):
        begin = rng.randrange(len(expected) + 1)
        length = rng.randrange(len(expected) - begin + 1)
        assert disk.pread(length, begin) == expected[begin : begin + length]
        assert_runs(disk, expected, begin, length)


def assert_runs(disk: PointDisk, expected: bytes, begin: int, length: int) -> None:
    at, before = begin, None
    for start, count, state in disk.runs(begin, length):
        assert start == at and count > 0 and state != before
        assert state == DATA or not any(expected[start : start + count])
        assert state in (DATA, NOTHING, ZEROS)
        at, before = start + count, state
    assert at == begin + length


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 32))
def test_each_point_from_the_log_alone(seed: int) -> None:
    history = history_of(seed)
    rng = random.Random(seed)
    with Source("log", log=history.log) as source:
        for (timeline, number), expected in history.contents.items():
            windows = rng.choice((0, 1, 2, 1 << 20))
            text = f"{history.volume}@{timeline}:{number}"
            opened = source.open_point(text, now_ns=NOW_NS, zone=UTC, window_chunks=windows)
            with opened.disk as disk:
                assert_reads(disk, expected, rng)


@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 32))
def test_each_point_over_each_base(seed: int) -> None:
    history = history_of(seed)
    rng = random.Random(seed)
    logged = {(each.timeline, each.number): each for each in read_history(history.log, history.volume).points}
    assert logged.keys() == history.contents.keys()
    for base in history.contents:
        pool = MemoryPool(history.volume)
        pool.keep(point_snapshot(5, logged[base]), history.contents[base])
        pool.logged = list(logged.values())[: rng.randrange(len(logged) + 1)]
        with Source("pool", pool, history.log) as source:
            for place, expected in history.contents.items():
                text = f"disk-1@{place[0]}:{place[1]}"
                with source.open_point(text, now_ns=NOW_NS).disk as disk:
                    assert_reads(disk, expected, rng)
        assert pool.leased == 0 and pool.closed


class UnindexedLog:
    """A log whose readers offer no parts, as Kafka's."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)

    def reader(self, volume: object, timeline: int) -> StreamReader:
        """Events, and nothing else."""
        return _Events(self._log.reader(volume, timeline))  # type: ignore[arg-type]  # handed through


class _Events:
    def __init__(self, reader: StreamReader) -> None:
        self.tail, self.start, self.read, self.follow = reader.tail, reader.start, reader.read, reader.follow


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 32))
def test_a_log_without_indexes_gives_the_same(seed: int) -> None:
    history = history_of(seed, 4)
    log = UnindexedLog(history.log)
    assert isinstance(indexed(log.reader(history.volume, 1)), EventParts)
    assert isinstance(history.log.reader(history.volume, 1), IndexedReader)
    with Source("log", log=log) as source:  # type: ignore[arg-type]  # a log but for its readers
        for (timeline, number), expected in history.contents.items():
            with source.open_point(f"disk-1@{timeline}:{number}", now_ns=NOW_NS).disk as disk:
                assert disk.pread(len(expected), 0) == expected


def can_be_planned(target: Revision, inventory: Inventory, lineage: Lineage) -> bool:
    try:
        plan(target, inventory, lineage)
    except PointUnreachableError:
        return False
    return True


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 1 << 32))
def test_points_listed_are_those_that_can_be_had(seed: int) -> None:
    history = history_of(seed, 6)
    rng = random.Random(seed)
    history.log.trim(history.volume, 1, rng.randrange(1, 60))
    logged = {(each.timeline, each.number): each for each in read_history(history.log, history.volume).points}
    pool = MemoryPool(history.volume)
    for dev_id, place in enumerate(rng.sample(sorted(logged), min(2, len(logged))), 5):
        pool.keep(point_snapshot(dev_id, logged[place]), history.contents[place])
    with Source("pool", pool, history.log) as source:
        offer = source.offer(source.volume("disk-1"))
        every = [each.restore_point() for each in logged.values()]
        held = {(each.timeline, each.number): each for each in offer.inventory.points}
        every = [held.get((each.timeline, each.number), each) for each in every]
        expected = [
            each
            for each in every
            if each.materialised
            or can_be_planned(Revision(each.timeline, each.number, each.digest), offer.inventory, offer.lineage)
        ]
        assert reachable(every, offer.inventory, offer.lineage) == expected
        for point in offer.points:
            with source.open_point(f"disk-1@{point.timeline}:{point.number}", now_ns=NOW_NS).disk as disk:
                assert disk.pread(disk.size_bytes, 0) == history.contents[point.timeline, point.number]


@pytest.mark.parametrize("seed", range(3))
def test_small_windows_stay_bounded(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "WINDOWS_BYTES", 0)
    history = history_of(seed, forks=False)
    with Source("log", log=history.log) as source:
        opened = source.open_point("disk-1@latest", now_ns=NOW_NS, window_chunks=1)
        rng = random.Random(seed)
        expected = history.contents[1, 7]
        for _ in range(50):
            begin = rng.randrange(len(expected))
            assert opened.disk.pread(1, begin) == expected[begin : begin + 1]
        assert len(opened.disk.overlay._windows) <= 4
