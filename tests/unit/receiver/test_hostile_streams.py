"""Whatever a log lets through, a reader applies each event once, in order, or stops that volume by name."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import pytest

from receiver.errors import ANEW
from receiver.facts import Activity
from receiver.mends import named
from replicator.errors import UsageError
from replicator.events.bodies import PublisherOpened
from replicator.events.codec import Event
from replicator.events.stream_errors import ForkError, OtherHistoryError
from replicator.log.errors import LostEndError, TrimmedError
from replicator.log.interface import Log
from replicator.log.object_log import ObjectLog
from replicator.pool import applying
from replicator.repository.source import Source
from replicator.repository.verify import verify_volume
from tests.support.hostile_log import hostile
from tests.support.manual_waiter import ManualWaiter
from tests.support.memory_objects import MemoryStore
from tests.support.receivers import assert_prefix, follower, memory_log
from tests.support.replica_pools import ReplicaPool
from tests.support.replica_streams import SourceVolume, random_source

SIZE = 14 * 65536
NOW_NS = 1_800_000_000_000_000_000


@dataclass(slots=True)
class Weather:
    """A stream with what hostile brokers put between its events."""

    source: SourceVolume
    log: ObjectLog
    between: dict[int, list[Event]] = field(default_factory=dict)
    duplicates: int = 0
    stale: int = 0

    @property
    def hostile(self) -> Log:
        return hostile(self.log, self.between)


def weather(seed: int) -> Weather:
    """Duplicates of events that came, alone and in stretches; a fenced publisher's events behind a later one's."""
    rng = random.Random(seed)
    source = random_source(seed, SIZE, 6, resizing=seed % 2 == 0)
    source.reopen()
    source.transaction(source.scribble())
    events = list(source.events)
    zombie = SourceVolume(seed + 1000, SIZE, uuid=source.uuid)
    for _ in range(4):
        zombie.transaction(zombie.scribble())
    made = Weather(source, memory_log())
    source.publish(made.log)
    epoch = 0
    for at, event in enumerate(events):
        epoch = event.body.epoch if isinstance(event.body, PublisherOpened) else epoch
        mixed: list[Event] = []
        if rng.random() < 0.3:
            begin = rng.randrange(at + 1)
            again = events[begin : begin + rng.randrange(1, 1 + at + 1 - begin)]
            made.duplicates += len(again)
            mixed += again
        if epoch > 1 and rng.random() < 0.5:
            old = [each for each in rng.sample(zombie.events, 3) if each.header.epoch]
            made.stale += len(old)
            mixed += old
        if mixed:
            made.between[event.header.sequence] = mixed
    return made


@pytest.mark.parametrize("seed", range(12))
def test_every_event_is_applied_once(replica: ReplicaPool, seed: int) -> None:
    made = weather(seed)
    one = follower(replica, made.source, made.hostile)  # type: ignore[arg-type]  # any log does
    one.follow(None)
    assert assert_prefix(replica, made.source) == made.source.state.number == 7
    skipped = one.progress.skipped
    assert skipped.duplicates + skipped.stale == made.duplicates + made.stale, "and every other is counted"
    print(f"seed {seed}: {made.duplicates} duplicates and {made.stale} of an earlier epoch skipped")


@pytest.mark.parametrize("seed", range(12))
def test_points_read_from_it_are_exact(seed: int) -> None:
    made = weather(seed)
    with Source("hostile", log=made.hostile) as source:
        offer = source.offer(source.volumes()[0])
        assert [each.number for each in offer.points] == [1, 2, 3, 4, 5, 6, 7]
        for number in range(1, 8):
            opened = source.open_point(f"disk-1@{number}", now_ns=NOW_NS)
            with opened.disk as disk:
                assert disk.pread(disk.size_bytes, 0) == made.source.images[number]
    verified = verify_volume(made.hostile, made.source.uuid)
    assert not verified.findings and verified.event_count == made.source.state.sequence
    assert verified.transaction_count == 7


def two_histories(seed: int) -> tuple[SourceVolume, SourceVolume]:
    """Two publishers of one epoch that believe they are one: alike up to transaction 2."""
    made = []
    for more in (1, 2):
        source = SourceVolume(seed, SIZE)
        for _ in range(2):
            source.transaction(source.scribble())
        source.random = random.Random(seed * 10 + more)
        for _ in range(2):
            source.transaction(source.scribble())
        made.append(source)
    return made[0], made[1]


def test_a_fork_within_an_epoch_stops_that_volume_alone_with_both_histories(tmp_path: Path) -> None:
    replica = ReplicaPool(tmp_path, data_blocks=600)
    ours, theirs = two_histories(4)
    other, log = SourceVolume(5, SIZE, name="disk-2"), memory_log()
    for _ in range(3):
        other.transaction(other.scribble())
    fork_at = next(i for i, (a, b) in enumerate(zip(ours.events, theirs.events, strict=False)) if a.digest != b.digest)
    between = {ours.state.sequence: theirs.events[fork_at:]}
    ours.publish(log)
    other.publish(log)
    mixed = hostile(log, between, ours.uuid)
    with pytest.raises(ForkError, match="fork within epoch 1") as caught:
        follower(replica, ours, mixed).follow(None)  # type: ignore[arg-type]  # any log does
    told = caught.value
    assert (
        theirs.state.volume == ours.uuid and told.mend == named(ANEW, replica.folder, log.name) and told.exit_code == 4
    )
    assert any(event.digest.hex() in told.message for event in theirs.events[fork_at:]), "theirs is named"
    assert any(event.digest.hex() in told.message for event in ours_events(log, ours.uuid)), "and ours"
    assert assert_prefix(replica, ours) == 4, "what came before is applied"
    follower(replica, other, mixed).follow(None)  # type: ignore[arg-type]  # any log does
    assert assert_prefix(replica, other) == 3, "the other volume goes on"
    replica.assert_clean()


def ours_events(log: ObjectLog, volume: UUID) -> list[Event]:
    return list(log.reader(volume, 1).read(1))


def shortened(source: SourceVolume, events: list[Event], count: int) -> ObjectLog:
    """A log that has the first `count` of the events: one that lost the others."""
    log = ObjectLog(MemoryStore(), create=True)
    with log.writer(source.uuid, 1) as writer:
        writer.append(writer.state.link, events[:count])
        writer.sync()
    return log


@pytest.mark.parametrize("lost", [1, 3])
def test_a_log_that_lost_its_end(replica: ReplicaPool, lost: int) -> None:
    """At once, whether the follower begins anew or follows on; with what it has and what the log has."""
    source = random_source(6, SIZE, 4)
    events, log = list(source.events), memory_log()
    source.publish(log)
    one = follower(replica, source, log)
    one.follow(None)
    shorter = shortened(source, events, len(events) - lost)
    with pytest.raises(LostEndError, match="lost its end") as caught:
        follower(replica, source, shorter).follow(None)
    assert str(source.uuid) in caught.value.message and f"after {len(events) - lost}" in caught.value.message
    mend = str(caught.value.mend)
    assert "as long as nothing was published since" in mend and f"receiver run {replica.folder}.new --log" in mend
    assert f"points list {replica.folder} disk-1" in mend and "POOL" not in mend and "NAME" not in mend
    assert assert_prefix(replica, source) == source.state.number
    waiter = ManualWaiter(stop_after=1)
    stopped = follower(replica, source, shorter, waiter=waiter, stopping=lambda: waiter.waits > 0)
    stopped.run()
    assert stopped.progress.activity is Activity.STOPPED and stopped.progress.failure is not None


@pytest.mark.parametrize("as_long", [True, False])
def test_a_log_whose_end_was_written_anew_is_another_history(replica: ReplicaPool, as_long: bool) -> None:
    """What the source published again in place of what was lost doesn't hang on what is applied here."""
    ours, theirs = two_histories(8)
    log, again = memory_log(), memory_log()
    if not as_long:
        theirs.reopen()
        theirs.transaction(theirs.scribble())
    ours.publish(log)
    follower(replica, ours, log).follow(None)
    theirs.publish(again)
    with pytest.raises((OtherHistoryError, ForkError, LostEndError)) as caught:
        follower(replica, ours, again).follow(None)
    assert caught.value.mend and assert_prefix(replica, ours) == 4


@pytest.mark.parametrize("later", [False, True], ids=["earlier", "as late at last"])
@pytest.mark.parametrize("begins", ["kept", "trimmed"])
def test_a_log_that_was_put_back_with_its_source_is_another_history(
    replica: ReplicaPool, begins: str, later: bool
) -> None:
    """And grew past the replica since: all its events are of an earlier epoch, as those of a fenced publisher are."""
    ours, theirs = two_histories(9)
    for _ in range(2):
        ours.reopen()
    ours.transaction(ours.scribble())
    log, again = memory_log(), memory_log()
    ours.publish(log)
    follower(replica, ours, log).follow(None)
    places = []
    while theirs.state.sequence <= ours.state.sequence + 8:
        theirs.transaction(theirs.scribble())
        places.append(theirs.state.sequence)
        theirs.publish(again)  # a segment each
    while later and theirs.state.epoch < ours.state.epoch:
        theirs.reopen()
        theirs.publish(again)
    if begins == "trimmed":
        place = next(each for each in places if each > ours.state.sequence)
        again.trim(ours.uuid, 1, place + 1)
    assert (again.reader(ours.uuid, 1).start().sequence > ours.state.sequence) is (begins == "trimmed")
    one = follower(replica, ours, again)
    with pytest.raises(OtherHistoryError if begins == "kept" else TrimmedError) as caught:
        one.follow(None)
    assert bool(caught.value.mend) is (begins == "kept") and assert_prefix(replica, ours) == 5


def test_a_fenced_publisher_s_events_at_the_end_are_no_other_history(replica: ReplicaPool) -> None:
    """A broker that let them in shows a tail of an earlier epoch; the log's event that we have decides."""
    ours, theirs = two_histories(9)
    ours.reopen()
    ours.transaction(ours.scribble())
    while theirs.state.sequence <= ours.state.sequence:
        theirs.transaction(theirs.scribble())
    log = memory_log()
    ours.publish(log)
    at = ours.state.sequence
    mixed = hostile(log, {at: [each for each in theirs.events if each.header.sequence > at]}, tail=theirs.state)
    one = follower(replica, ours, mixed)  # type: ignore[arg-type]  # any log does
    one.follow(None)
    assert one.progress.skipped.stale
    one.follow(None)
    assert one.progress.failure is None and assert_prefix(replica, ours) == 5


def test_a_volume_that_no_pool_may_have_stops_by_itself(replica: ReplicaPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """P5: its page table would be the replica host's memory; as it is created, and as it grows."""
    source, log = SourceVolume(1, SIZE), memory_log()
    source.transaction(source.scribble())
    source.resize(SIZE + 65536)
    source.transaction(source.scribble())
    source.publish(log)
    one = follower(replica, source, log)
    for limit, reached in ((SIZE - 1, 0), (SIZE, 1)):
        with monkeypatch.context() as patched:
            patched.setattr(applying, "VOLUME_BYTES_LIMIT", limit)
            with pytest.raises(UsageError, match="are the most"):
                one.follow(None)
        assert len(replica.pool.view().volumes) == reached
    one.follow(None)
    assert assert_prefix(replica, source) == 2
