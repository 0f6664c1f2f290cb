"""Points of a replica: materialised as the policy says, retired, never under a reader; verified against the log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest

from receiver.apply import ApplySettings
from receiver.remember import verified_of
from receiver.retain import ROUND_POINTS, Retainer
from receiver.verification import remember, verify_points
from receiver.verify import Target, Verified, verify_point
from replicator.errors import NotFoundError
from replicator.events.bodies import PointLabelled
from replicator.events.values import StateName
from replicator.history.points import RestorePoint
from replicator.history.retention import RetentionPolicy
from replicator.log.object_log import ObjectLog
from replicator.pool.catalogue_schema import Purpose, Snapshot
from replicator.pool.changes import Put
from replicator.pool.interface import Pool, Switch
from replicator.pool.reader import PoolReader
from replicator.pool.reading import read_beside
from replicator.pool.volumes import create_volume
from replicator.repository.labelling import label_point
from replicator.units import GIB
from tests.support.pool_owner import make_pool, served
from tests.support.receivers import follower, memory_log
from tests.support.replica_pools import ReplicaPool
from tests.support.replica_streams import SourceVolume, random_source
from tests.support.rivals import given_again, rivalled

SIZE = 20 * 65536 + 512
DENSE = RetentionPolicy(materialise_every_s=1)
GONE = RetentionPolicy(materialise_every_s=1, keep_all_days=0, hourly_days=0, daily_days=0, monthly_count=0)


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[ReplicaPool]:
    pool = ReplicaPool(tmp_path)
    yield pool
    pool.assert_clean(others_too=True)


def applied(replica: ReplicaPool, source: SourceVolume, policy: RetentionPolicy) -> ObjectLog:
    log = memory_log()
    source.publish(log)
    follower(replica, source, log, settings=ApplySettings(GIB, policy)).follow(None)
    return log


def points(replica: ReplicaPool, volume: UUID) -> list[Snapshot]:
    return replica.pool.view().snapshots_of(volume, Purpose.POINT)


def test_one_a_minute_and_each_labelled_one(replica: ReplicaPool) -> None:
    source = SourceVolume(1, SIZE, step_s=20)
    for number in range(1, 9):
        source.transaction(source.scribble(2), ["before-upgrade"] if number == 3 else [])
    applied(replica, source, RetentionPolicy())
    assert [each.number for each in points(replica, source.uuid)] == [1, 3, 6]
    assert points(replica, source.uuid)[1].labels == ("before-upgrade",)


def test_retired_ones_are_deleted_and_never_under_a_reader(replica: ReplicaPool) -> None:
    source = random_source(2, SIZE, 6, resizing=False)
    applied(replica, source, DENSE)
    before = points(replica, source.uuid)
    assert [each.number for each in before] == [1, 2, 3, 4, 5, 6]
    retainer = Retainer(GONE, lambda: source.now_ns + 1)
    with replica.pool.lease([before[1].dev_id]):
        done = retainer.round(replica.pool)
        assert done.in_use == (before[1].dev_id,) and len(done.deleted) == 4
        assert [each.number for each in points(replica, source.uuid)] == [2, 6], "the one being read is shown again"
        assert replica.read(before[1].dev_id, before[1].size_bytes) == source.images[2]
        assert retainer.round(replica.pool).in_use == (), "and left alone for some rounds"
    for _ in range(10):
        retainer.round(replica.pool)
    assert [each.number for each in points(replica, source.uuid)] == [6]
    assert sorted(each.number for each in replica.pool.points(source.uuid, 99)) == [1, 2, 3, 4, 5, 6]


def test_a_clock_that_is_ahead_retires_nothing(replica: ReplicaPool) -> None:
    """R6: ages go as far as the source has come; what its beacon says of an idle volume counts."""
    source = random_source(2, SIZE, 4, resizing=False)
    applied(replica, source, DENSE)
    days = 400 * 86400 * 10**9
    retainer = Retainer(DENSE, lambda: source.now_ns + days)
    assert retainer.round(replica.pool).hidden == ()
    assert retainer.round(replica.pool, {source.uuid: source.now_ns - days}).hidden == (), "never back either"
    assert len(points(replica, source.uuid)) == 4
    assert len(retainer.round(replica.pool, {source.uuid: source.now_ns + days}).deleted) == 3
    behind = Retainer(DENSE, lambda: source.now_ns - days)
    assert behind.round(replica.pool, {source.uuid: source.now_ns + days}).hidden == ()


class Rival:
    """A pool between whose next view and switch a person labels a point."""

    def __init__(self, pool: Pool, point: RestorePoint) -> None:
        self._pool, self._point, self._done = pool, point, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def switch(self, switch: Switch) -> int:
        if not self._done:
            self._done = True
            label_point(self._pool, self._point, "precious")
        return self._pool.switch(switch)


def test_a_label_given_while_points_retire_is_kept_and_keeps_its_point(replica: ReplicaPool) -> None:
    source = random_source(2, SIZE, 4, resizing=False)
    applied(replica, source, DENSE)
    (_, second, *_) = [each.restore_point() for each in points(replica, source.uuid)]
    policy = RetentionPolicy(materialise_every_s=1, keep_all_days=0, hourly_days=0, daily_days=0)
    Retainer(policy, lambda: source.now_ns + 1).round(cast("Pool", Rival(replica.pool, second)))
    kept = points(replica, source.uuid)
    assert [(each.number, each.labels) for each in kept] == [(2, ("precious",)), (4, ())]


def test_what_was_given_the_id_of_a_retired_point_stays(replica: ReplicaPool) -> None:
    """R5: another sweep takes a point that is being retired, and a user's snapshot gets its id."""
    source = random_source(2, SIZE, 4, resizing=False)
    applied(replica, source, DENSE)
    name = replica.pool.view().volumes[0].name
    hidden = [replace(each, hidden=True) for each in points(replica, source.uuid)[:-1]]
    replica.pool.switch(Switch(changes=tuple(map(Put, hidden))))
    first, made = min(hidden, key=lambda each: each.dev_id), list[Snapshot]()
    rival = rivalled(
        replica.pool, "switch", lambda: made.append(given_again(replica.pool, first, name, "before-upgrade"))
    )
    done = Retainer(DENSE, lambda: source.now_ns + 1).round(rival)
    assert len(done.deleted) == 2 and first.dev_id not in done.deleted and done.in_use == ()
    assert replica.pool.view().snapshot_named("before-upgrade") == made[0]
    assert replica.read(made[0].dev_id, made[0].size_bytes) == source.images[4]


def test_what_was_given_the_id_of_a_point_isnt_verified_in_its_place(tmp_path: Path) -> None:
    """Between the command's look and its lease the point is retired: that is no damage."""
    make_pool(tmp_path / "pool")
    with served(tmp_path / "pool") as pool, read_beside(pool) as reader:
        volume = create_volume(pool, "disk", SIZE)
        row = Snapshot(9, volume.uuid, Purpose.POINT, 5, SIZE, number=1, digest=bytes(16))
        pool.switch(Switch(snapshot=((9, volume.dev_id),), changes=(Put(row),)))
        rival = rivalled(cast("Pool", reader), "lease", lambda: given_again(pool, row, "disk", "mine"))
        with pytest.raises(NotFoundError, match="retired meanwhile"):
            verify_points(cast("PoolReader", rival), memory_log(), [row.restore_point()], lambda _: None)


def test_a_label_from_the_source_and_one_from_a_person_at_once(replica: ReplicaPool) -> None:
    source = random_source(2, SIZE, 3, resizing=False)
    log = applied(replica, source, DENSE)
    (_, second, *_) = [each.restore_point() for each in points(replica, source.uuid)]
    source.put(PointLabelled(StateName(1, 2, second.digest), "friday", source.now_ns))
    source.publish(log)
    follower(replica, source, log, pool=cast("Pool", Rival(replica.pool, second))).follow(None)
    assert points(replica, source.uuid)[1].labels == ("precious", "friday")
    (remembered,) = [each for each in replica.pool.points(source.uuid, 9) if each.number == 2]
    assert remembered.labels == ("precious", "friday")


def test_a_round_is_bounded_and_a_killed_one_goes_on(replica: ReplicaPool) -> None:
    source = random_source(3, 4 * 65536, ROUND_POINTS + 8, resizing=False)
    applied(replica, source, DENSE)
    retainer = Retainer(GONE, lambda: source.now_ns + 1)
    first = retainer.round(replica.pool)
    assert len(first.hidden) == len(first.deleted) == ROUND_POINTS
    replica.kill()
    assert len(retainer.round(replica.pool).deleted) == 7
    assert [each.number for each in points(replica, source.uuid)] == [ROUND_POINTS + 8]


def verified(replica: ReplicaPool, log: ObjectLog, point: Snapshot, window: int) -> Verified:
    target = Target(point.volume, point.timeline, point.number, point.size_bytes)
    content = replica.read(point.dev_id, point.size_bytes)
    with replica.pool.lease([point.dev_id]) as lease:
        lineage = replica.pool.view().lineage(point.volume)
        return verify_point(
            log, target, lineage, lambda length, offset: content[offset : offset + length], lease, window
        )


@pytest.mark.parametrize("window", [5, 1 << 20])
def test_every_point_is_what_the_log_says(replica: ReplicaPool, window: int) -> None:
    source = random_source(4, SIZE, 6)
    log = applied(replica, source, DENSE)
    for point in points(replica, source.uuid):
        found = verified(replica, log, point, window)
        assert found.is_equal and not found.unknown_count and found.chunk_count == -(-point.size_bytes // 65536)


def test_a_rotten_chunk_is_found(replica: ReplicaPool) -> None:
    source = SourceVolume(5, SIZE)
    source.data[:] = b"\x05" * SIZE
    source.transaction()
    log = applied(replica, source, DENSE)
    (point,) = points(replica, source.uuid)
    at = replica.data.content().index(b"\x05" * 65536)
    replica.data.pwrite(b"\x06", at + 70_000)
    found = verified(replica, log, point, 1 << 20)
    assert not found.is_equal and found.differing_count == 1 and len(found.differing) == 1


def test_what_was_trimmed_is_unknown_and_what_isnt_there_is_refused(replica: ReplicaPool) -> None:
    source, log = SourceVolume(6, SIZE), memory_log()
    source.data[:] = b"\x05" * SIZE
    source.transaction()
    source.publish(log)
    source.data[0] = 1
    source.transaction()
    source.publish(log)
    follower(replica, source, log, settings=ApplySettings(GIB, DENSE)).follow(None)
    log.trim(source.uuid, 1, source.state.sequence)
    last = points(replica, source.uuid)[-1]
    found = verified(replica, log, last, 1 << 20)
    assert found.is_equal is None and found.chunk_count == 1 and found.unknown_count == 20
    remember(replica.pool, [found], 77)
    assert not verified_of(replica.pool.view()), "what wasn't compared in full isn't verified"
    replica.data.pwrite(b"\x06", replica.data.content().index(b"\x01" + b"\x05" * 65535) + 9)
    assert verified(replica, log, last, 1 << 20).is_equal is False, "what differs, differs, whatever is unknown"
    with pytest.raises(NotFoundError, match="doesn't hold transaction 1:1"):
        verified(replica, log, points(replica, source.uuid)[0], 1 << 20)


@pytest.mark.parametrize("size", [SIZE, 30 * 65536])
def test_a_log_that_was_trimmed_inside_a_transaction_says_nothing_of_what_it_lost(
    replica: ReplicaPool, size: int
) -> None:
    """The transaction's beginning is gone; the stream's state has its size, and what lies within is unknown."""
    source, log = SourceVolume(7, SIZE), memory_log()
    source.data[:] = b"\x05" * SIZE
    source.transaction()
    source.publish(log)
    source.resize(size)
    source.data[:3] = b"abc"
    source.begin()
    source.put_changes(set())
    source.publish(log)
    source.commit()
    source.publish(log)
    follower(replica, source, log, settings=ApplySettings(GIB, DENSE)).follow(None)
    log.trim(source.uuid, 1, source.state.sequence)
    assert log.reader(source.uuid, 1).start().open is not None, "the log begins inside"
    found = verified(replica, log, points(replica, source.uuid)[-1], 1 << 20)
    assert found.is_equal is None, f"{found.differing} differ from a log that says nothing of them"
    assert found.chunk_count == 0 and found.unknown_count == -(-size // 65536)
