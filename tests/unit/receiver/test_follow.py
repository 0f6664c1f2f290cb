"""What stops a follower, by name, with nothing applied; what makes it wait; and that it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest

from receiver.apply import ApplySettings
from receiver.errors import ChunkMismatchError, ReplicaConflictError, RoomError
from receiver.facts import Activity
from replicator.errors import UnavailableError
from replicator.events.beacon import Beacon
from replicator.events.bodies import (
    PointLabelled,
    PublisherOpened,
    TimelineEnded,
    TimelineStarted,
    TransactionBegan,
    VolumeRenamed,
)
from replicator.events.chain import seal
from replicator.events.chunks import ChunksWritten
from replicator.events.codec import Event
from replicator.events.state import StreamState
from replicator.events.stream_errors import ForkError, GapError, OtherHistoryError, WrongBaseError
from replicator.events.values import DeltaKind, StateName
from replicator.log.errors import SegmentError
from replicator.log.object_log import ObjectLog
from replicator.pool.catalogue_schema import Purpose, Role, Volume
from replicator.pool.changes import Put
from replicator.pool.interface import Switch
from replicator.units import KIB
from tests.support.manual_waiter import ManualWaiter
from tests.support.memory_objects import MemoryStore
from tests.support.receivers import applied_number, assert_prefix, follower, memory_log
from tests.support.replica_pools import ReplicaPool
from tests.support.replica_streams import SourceVolume

SIZE = 20 * 65536


class ScriptedLog:
    """A log that hands out the events it was given, whatever they are: what a damaged one might."""

    name = "scripted"

    def __init__(self, events: list[Event], tail: StreamState) -> None:
        self.events, self._tail = events, tail

    def reader(self, volume: UUID, timeline: int) -> ScriptedLog:
        return self

    def tail(self) -> StreamState:
        return self._tail

    def start(self) -> StreamState:
        return StreamState.start(self._tail.volume, self._tail.timeline)

    def read(self, sequence: int) -> Iterator[Event]:
        return iter(self.events)

    def timelines(self, volume: UUID) -> list[int]:
        return [1]

    def read_beacon(self, volume: UUID) -> Beacon | None:
        return None


def scripted(events: list[Event], tail: StreamState) -> ObjectLog:
    return cast("ObjectLog", ScriptedLog(events, tail))


def stops(replica: ReplicaPool, source: SourceVolume, log: ObjectLog, kind: type[Exception], applied: int) -> None:
    """The follower raises `kind`, and the replica stands at `applied`."""
    with pytest.raises(kind) as caught:
        follower(replica, source, log).follow(None)
    assert "disk-1" in str(caught.value) or str(source.uuid) in str(caught.value)
    assert assert_prefix(replica, source) == applied
    assert replica.used_blocks() <= 200, "reserved blocks were given back"


def test_a_gap(replica: ReplicaPool, source: SourceVolume) -> None:
    events = source.events[:-3] + source.events[-2:]
    stops(replica, source, scripted(events, source.state), GapError, 2)


def test_a_fork_within_an_epoch(replica: ReplicaPool, source: SourceVolume) -> None:
    other = SourceVolume(4, SIZE, uuid=source.uuid)
    for _ in range(4):
        other.transaction(other.scribble(12))
    beyond = [event for event in other.events if event.header.sequence > source.state.sequence]
    events = source.events + beyond[:1]
    stops(replica, source, scripted(events, source.state), ForkError, 3)


def test_a_wrong_base(replica: ReplicaPool, source: SourceVolume) -> None:
    wrong = replace(source.state, committed=StateName(1, 3, bytes(16)))
    began = TransactionBegan(4, UUID(int=4), wrong.committed, source.now_ns, SIZE, 1, DeltaKind.DELTA)
    event, _ = seal(wrong, began)
    stops(replica, source, scripted([*source.events, event], source.state), WrongBaseError, 3)


def test_duplicates_and_an_earlier_epoch_are_skipped_and_counted(replica: ReplicaPool, source: SourceVolume) -> None:
    first = list(source.events)
    stale_state = source.state
    source.reopen()
    late, _ = seal(stale_state, VolumeRenamed("zombie", source.now_ns))
    last = source.transaction(source.scribble())
    events = first + first[-4:] + source.events[len(first) : len(first) + 1] + [late] + source.events[len(first) + 1 :]
    followed = follower(replica, source, scripted(events, source.state))
    followed.follow(None)
    assert assert_prefix(replica, source) == last
    assert (followed.progress.skipped.duplicates, followed.progress.skipped.stale) == (4, 1)
    assert replica.pool.view().volume(source.uuid).name == "disk-1"


def test_flipped_bits_in_the_log(replica: ReplicaPool, source: SourceVolume) -> None:
    store = MemoryStore()
    log = ObjectLog(store, create=True)
    source.publish(log)
    name = max(each for each in store.objects if each.startswith(str(source.uuid)))
    data = bytearray(store.objects[name])
    data[len(data) // 3] ^= 4
    store.objects[name] = bytes(data)
    stops(replica, source, log, SegmentError, 2)


def test_a_chunk_whose_hash_is_another(replica: ReplicaPool, source: SourceVolume) -> None:
    """The chain is right, the content isn't: a wrong base shows at once, by volume, number and chunk."""
    source.take()
    script = SourceVolume(5, SIZE)
    state, events = StreamState.start(script.uuid), []
    script.data[:] = b"\x07" * SIZE
    script.transaction()
    for event in script.events:
        body = event.body
        if isinstance(body, ChunksWritten):
            body = replace(body, hashes=bytes(16) + body.hashes[16:])
        sealed, state = seal(state, body)
        events.append(sealed)
    with pytest.raises(ChunkMismatchError, match="volume disk-1, transaction 1, chunk 0") as caught:
        follower(replica, script, scripted(events, state)).follow(None)
    assert caught.value.exit_code == 3 and caught.value.mend
    assert applied_number(replica, script) == 0
    assert replica.pool.facts([replica.pool.view().volume(script.uuid).dev_id])[1].mapped_blocks == 0


def test_a_name_that_another_volume_has(replica: ReplicaPool, source: SourceVolume) -> None:
    replica.pool.switch(Switch(changes=(Put(Volume(UUID(int=9), "disk-1", 77, 4096, 1)),), create=(77,)))
    log = memory_log()
    source.publish(log)
    stops(replica, source, log, ReplicaConflictError, 0)


def test_the_sources_own_pool_is_no_replica(replica: ReplicaPool, source: SourceVolume) -> None:
    replica.pool.switch(Switch(changes=(Put(Volume(source.uuid, "disk-1", 77, SIZE, 1)),), create=(77,)))
    log = memory_log()
    source.publish(log)
    with pytest.raises(ReplicaConflictError, match="holds the volume"):
        follower(replica, source, log).follow(None)


def test_waits_for_room_and_goes_on_once_grown(tmp_path: Path) -> None:
    replica = ReplicaPool(tmp_path, data_blocks=16)
    source, log = SourceVolume(6, SIZE), memory_log()
    source.data[:] = bytes(range(1, 256)) * (SIZE // 255) + bytes(SIZE % 255)
    source.transaction()
    source.publish(log)
    with pytest.raises(RoomError, match="waits for room: transaction 1 may need 20 data blocks, 16 are free"):
        follower(replica, source, log).follow(None)
    assert replica.used_blocks() == 0

    def grow() -> None:
        assert waiting.progress.activity is Activity.WAITING_FOR_ROOM
        assert waiting.progress.failure is not None and "--data" in (waiting.progress.failure.mend or "")
        replica.data.grow(64 * 65536)
        replica.pool.switch(Switch(grow_data_blocks=64))

    waiter = ManualWaiter(lambda: None, grow)
    waiting = follower(
        replica, source, log, waiter=waiter, stopping=lambda: applied_number(replica, source) == 1 or waiter.waits > 9
    )
    waiting.run()
    assert assert_prefix(replica, source) == 1
    assert waiting.progress.failure is None
    replica.assert_clean()


def test_an_aborted_transaction_leaves_no_staging(replica: ReplicaPool, source: SourceVolume) -> None:
    source.data[:] = b"\x09" * SIZE
    source.begin()
    source.put_changes(set())
    log, settings = memory_log(), ApplySettings(256 * KIB)
    source.publish(log)
    follower(replica, source, log, settings=settings).follow(None)
    assert assert_prefix(replica, source) == 3
    staged = replica.pool.view().snapshots_of(source.uuid, Purpose.STAGING, hidden=True)
    assert [each.number for each in staged] == [4]
    source.abort()
    source.publish(log)
    follower(replica, source, log, settings=settings).follow(None)
    assert not replica.pool.view().snapshots_of(source.uuid, Purpose.STAGING, hidden=True)
    assert assert_prefix(replica, source) == 3


def test_a_reader_of_the_head_doesnt_hold_up_applying(replica: ReplicaPool, source: SourceVolume) -> None:
    log = memory_log()
    source.publish(log)
    follower(replica, source, log).follow(None)
    with replica.pool.lease([replica.pool.view().volume(source.uuid).dev_id]):
        source.transaction(source.scribble())
        source.publish(log)
        follower(replica, source, log).follow(None)
        assert assert_prefix(replica, source) == 4


def test_names_labels_and_a_new_timeline(replica: ReplicaPool, source: SourceVolume) -> None:
    second = source.state.committed
    assert second is not None
    source.put(PointLabelled(second, "friday", source.now_ns))
    source.put(VolumeRenamed("disk-2", source.now_ns))
    source.put(TimelineEnded(2, "beta", source.now_ns))
    log = memory_log()
    source.publish(log)
    source.state = StreamState.start(source.uuid, 2)
    source.put(TimelineStarted(second, "disk-3", SIZE, "beta", source.now_ns))
    source.put(PublisherOpened(1, "beta", (), source.now_ns))
    last = source.transaction(source.scribble())
    source.publish(log)
    follower(replica, source, log).follow(None)
    assert assert_prefix(replica, source) == last == 4
    view = replica.pool.view()
    assert view.volume(source.uuid).name == "disk-3"
    assert view.lineage(source.uuid).current == 2
    assert [each.labels for each in replica.pool.points(source.uuid, 9, 1) if each.number == 3] == [("friday",)]
    position = view.position(source.uuid, Role.APPLIED)
    assert position is not None and position.timeline == 2


def test_a_new_timeline_drops_what_the_old_one_left_open(replica: ReplicaPool, source: SourceVolume) -> None:
    fork, before = source.state.committed, bytes(source.data)
    assert fork is not None
    source.data[:] = b"left" * (SIZE // 4)
    source.begin()
    source.put_changes(set())
    log, small = memory_log(), ApplySettings(apply_commit_bytes=64 * KIB)
    source.publish(log)
    follower(replica, source, log, settings=small).follow(None)
    assert replica.pool.view().snapshots_of(source.uuid, Purpose.STAGING, hidden=True)
    source.data[:] = before
    source.state = StreamState.start(source.uuid, 2)
    source.put(TimelineStarted(fork, "disk-1", SIZE, "beta", source.now_ns))
    source.put(PublisherOpened(1, "beta", (), source.now_ns))
    source.data[: 64 * KIB] = b"on" * (32 * KIB)
    source.transaction()
    source.publish(log)
    follower(replica, source, log, settings=small).follow(None)
    assert assert_prefix(replica, source) == 4


def test_a_timeline_that_left_before_our_commit_stops_it(replica: ReplicaPool, source: SourceVolume) -> None:
    log = memory_log()
    source.publish(log)
    follower(replica, source, log).follow(None)
    other = SourceVolume(8, SIZE, uuid=source.uuid)
    other.transaction(other.scribble())
    parent = other.state.committed
    assert parent is not None
    other.take()
    other.state = StreamState.start(source.uuid, 2)
    other.put(TimelineStarted(parent, "disk-1", SIZE, "beta", source.now_ns))
    other.publish(log)
    stops(replica, source, log, OtherHistoryError, 3)


class AwayLog(ScriptedLog):
    """A log that can't be reached for some calls."""

    def __init__(self, log: ObjectLog, failures: int) -> None:
        self._log, self._failures = log, failures

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def reader(self, volume: UUID, timeline: int) -> Any:
        if self._failures:
            self._failures -= 1
            raise UnavailableError("log unreachable: the test says so")
        return self._log.reader(volume, timeline)


def test_a_log_that_is_away_is_tried_again(replica: ReplicaPool, source: SourceVolume) -> None:
    log, waiter = memory_log(), ManualWaiter()
    source.publish(log)
    seen: list[Activity] = []
    away = AwayLog(log, 3)

    def stopping() -> bool:
        seen.append(followed.progress.activity)
        return applied_number(replica, source) == 3

    followed = follower(
        replica,
        source,
        cast("ObjectLog", away),
        waiter=waiter,
        stopping=stopping,
    )
    followed.run()
    assert Activity.UNREACHABLE in seen and followed.progress.failure is None
    assert assert_prefix(replica, source) == 3
    assert waiter.now_s == pytest.approx((0.25 + 0.5 + 1.0) * 0.75, abs=0.01)
