"""The contract of a log (log/interface, L1 to L10), run on every implementation.

A new log adds itself to LOGS: a name, and how to open it twice on one place (another process's view).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from replicator.errors import ConflictError, DamageError, NotFoundError
from replicator.events.beacon import Beacon
from replicator.events.bodies import PublisherOpened, TimelineEnded, TimelineStarted, VolumeDeleted, VolumeRenamed
from replicator.events.chain import ChainChecker, Verdict
from replicator.events.state import StreamState
from replicator.events.stream_errors import StreamEndedError
from replicator.events.values import Link
from replicator.log.errors import LogGapError, LostEndError, TrimmedError
from replicator.log.interface import AppendConflict, Appended, Log, Registration, StreamWriter, VolumeEntry
from replicator.log.object_log import ObjectLog, directory_log
from replicator.log.opening import open_log
from tests.support import judges, kafka_broker
from tests.support.event_streams import OTHER_VOLUME, SIZE_BYTES, VOLUME, Script
from tests.support.far_logs import FarServers
from tests.support.manual_waiter import ManualWaiter
from tests.support.memory_objects import MemoryStore

Opener = Callable[[], Log]


def directory(tmp_path: Path) -> Opener:
    return lambda: directory_log(tmp_path / "log", create=True)


def memory(tmp_path: Path) -> Opener:
    store = MemoryStore()
    return lambda: ObjectLog(store, create=True)


def kafka(_: Path) -> Opener:
    judges.require("kafka")
    url = kafka_broker.shared().url(f"contract-{uuid4().hex}")
    return lambda: open_log(url, create=True)


def s3(_: Path, servers: FarServers) -> Opener:
    url = servers.s3_url(f"contract/{uuid4().hex}")
    return lambda: open_log(url, create=True)


def ssh(tmp_path: Path, servers: FarServers) -> Opener:
    url = servers.ssh_url(tmp_path / "log")
    return lambda: open_log(url, create=True)


LOGS: dict[str, Callable[[Path], Opener]] = {"directory": directory, "kafka": kafka, "memory": memory}
FAR: dict[str, Callable[[Path, FarServers], Opener]] = {"s3": s3, "ssh": ssh}


@pytest.fixture(params=sorted([*LOGS, *FAR]))
def opener(request: pytest.FixtureRequest, tmp_path: Path, far_servers: FarServers) -> Iterator[Opener]:
    kind = request.param
    open_again = FAR[kind](tmp_path, far_servers) if kind in FAR else LOGS[kind](tmp_path)
    with ExitStack() as opened:
        yield lambda: opened.enter_context(closing(open_again()))


@pytest.fixture
def log(opener: Opener) -> Log:
    return opener()


def append(writer: StreamWriter, script: Script) -> Appended:
    """All that the script has, in one append that must succeed."""
    outcome = writer.append(writer.state.link, script.take())
    assert isinstance(outcome, Appended)
    return outcome


def filled(log: Log, transactions: int = 3) -> Script:
    """A stream of some transactions, an append each."""
    script = Script().create()
    with log.writer(VOLUME, 1) as writer:
        append(writer, script)
        for i in range(transactions):
            append(writer, script.transaction(i, i + 1))
    return script


def test_what_was_appended_is_read_back(log: Log, opener: Opener) -> None:
    script = Script().create()
    sent = list(script.events)
    with log.writer(VOLUME, 1) as writer:
        assert writer.state == StreamState.start(VOLUME)
        assert append(writer, script).durable == script.state
        script.transaction(1, 2).transaction(3)
        sent += script.events
        assert append(writer, script).durable == script.state == writer.state == writer.durable
    for other in (log, opener()):
        reader = other.reader(VOLUME, 1)
        assert list(reader.read(1)) == sent
        assert reader.tail() == script.state
        assert reader.start() == StreamState.start(VOLUME)


def test_reading_may_begin_anywhere(log: Log) -> None:
    filled(log)
    reader = log.reader(VOLUME, 1)
    events = list(reader.read(1))
    for i in range(1, len(events) + 2):
        assert list(reader.read(i)) == events[i - 1 :]


def test_an_empty_stream(log: Log) -> None:
    reader = log.reader(VOLUME, 1)
    assert list(reader.read(1)) == [] and reader.tail() == StreamState.start(VOLUME)
    assert log.volumes() == [] and log.timelines(VOLUME) == [] and log.read_beacon(VOLUME) is None


def test_an_open_transaction_is_seen_at_sync_at_the_latest(log: Log) -> None:
    script = filled(log, 1)
    with log.writer(VOLUME, 1) as writer:
        outcome = append(writer, script.begin())
        assert outcome.durable.sequence < writer.state.sequence == script.state.sequence
        assert isinstance(synced := writer.sync(), Appended) and synced.durable == script.state
        assert writer.sync() == synced
    assert log.reader(VOLUME, 1).tail().open is not None


def test_a_writer_goes_on_in_an_open_transaction(log: Log, opener: Opener) -> None:
    script = filled(log, 1)
    with log.writer(VOLUME, 1) as writer:
        append(writer, script.begin())
        writer.sync()
    with opener().writer(VOLUME, 1) as writer:
        assert writer.state == script.state
        append(writer, script.open())
        append(writer, script.commit())
    reader = log.reader(VOLUME, 1)
    checker = ChainChecker(StreamState.start(VOLUME))
    assert {checker.accept(event) for event in reader.read(1)} == {Verdict.APPLY}
    assert checker.state == reader.tail() == script.state


def test_what_was_not_synced_is_dropped(log: Log) -> None:
    script = filled(log, 1)
    durable = script.state
    with log.writer(VOLUME, 1) as writer:
        append(writer, script.begin())
    with log.writer(VOLUME, 1) as writer:
        assert writer.state == durable


def test_an_append_elsewhere_is_a_conflict(log: Log) -> None:
    script = filled(log, 1)
    with log.writer(VOLUME, 1) as writer:
        before = writer.state
        wrong = Link(before.sequence, bytes(16))
        outcome = writer.append(wrong, script.transaction().events)
        assert isinstance(outcome, AppendConflict) and outcome.durable == before and outcome.expected == wrong
        with pytest.raises(ConflictError, match="settle"):
            writer.append(before.link, script.events)
        with pytest.raises(ConflictError, match="settle"):
            writer.sync()
        assert writer.settle() == before
        append(writer, script)
    assert log.reader(VOLUME, 1).tail() == script.state


def test_of_two_writers_one_gets_the_place(log: Log, opener: Opener) -> None:
    script = filled(log, 1)
    first, second = log.writer(VOLUME, 1), opener().writer(VOLUME, 1)
    winner, loser = Script(script.state, "alpha").open(), Script(script.state, "beta").open()
    append(second, winner)
    outcome = first.append(script.state.link, loser.events)
    assert isinstance(outcome, AppendConflict) and outcome.durable == script.state
    assert first.settle() == winner.state
    first.close()
    second.close()
    assert log.reader(VOLUME, 1).tail() == winner.state


def test_a_fenced_writer_gets_a_conflict_in_the_middle(log: Log, opener: Opener) -> None:
    script = filled(log, 1)
    old = log.writer(VOLUME, 1)
    append(old, script.begin())
    taken = Script(old.durable, "beta").open()
    with opener().writer(VOLUME, 1) as new:
        append(new, taken)
    assert isinstance(old.append(old.state.link, script.commit().take()), AppendConflict)
    assert old.settle().epoch == 2
    old.close()


def test_nothing_follows_an_end(log: Log) -> None:
    script = filled(log, 1)
    straggler = Script(script.state).open().events
    script.put(TimelineEnded(2, "beta", 5))
    with log.writer(VOLUME, 1) as writer:
        append(writer, script)
        with pytest.raises((StreamEndedError, DamageError, ConflictError)):
            writer.append(writer.state.link, straggler)
        assert writer.settle() == script.state


def test_following_waits_for_what_comes(log: Log, opener: Opener) -> None:
    script = filled(log, 1)
    end = script.state.sequence

    def publish() -> None:
        with opener().writer(VOLUME, 1) as writer:
            append(writer, script.transaction(8))

    waiter = ManualWaiter(lambda: None, publish, lambda: None, publish)
    followed = list(log.reader(VOLUME, 1).follow(end, waiter, timeout_s=1.0))
    assert [event.header.sequence for event in followed] == list(range(end, script.state.sequence + 1))
    assert waiter.now_s >= 1.0


def test_following_ends_when_a_stop_is_asked_for(log: Log) -> None:
    script = filled(log, 1)
    waiter = ManualWaiter(stop_after=3)
    assert list(log.reader(VOLUME, 1).follow(script.state.sequence + 1, waiter, timeout_s=60)) == []
    assert waiter.waits == 3


def test_a_reader_ahead_of_the_log_is_told(log: Log) -> None:
    script = filled(log, 1)
    with pytest.raises(LostEndError, match=f"end after {script.state.sequence}"):
        list(log.reader(VOLUME, 1).read(script.state.sequence + 2))


def test_the_beacon_is_replaced_and_tells_of_a_lost_end(log: Log, opener: Opener) -> None:
    script = filled(log, 1)
    for alive_at_ns in (10, 20):
        beacon = Beacon.of(script.state, 5, alive_at_ns)
        log.write_beacon(beacon)
        assert opener().read_beacon(VOLUME) == beacon
    assert list(log.reader(VOLUME, 1).read(script.state.sequence + 1)) == []
    ahead = script.transaction().state
    log.write_beacon(Beacon.of(ahead, 5, 30))
    with pytest.raises(LogGapError, match="beacon"):
        list(log.reader(VOLUME, 1).read(1))
    with log.writer(VOLUME, 1) as writer:
        later = Script(writer.state).open()
        append(writer, later)
    assert list(log.reader(VOLUME, 1).read(1))[-1].link == later.state.link


def test_the_catalogue_follows_the_stream(log: Log) -> None:
    script = filled(log, 1)
    entry = VolumeEntry(VOLUME, 1, "disk-1", "alpha", SIZE_BYTES, False)
    assert log.volumes() == [entry]
    with log.writer(VOLUME, 1) as writer:
        script.open().put(VolumeRenamed("disk-9", 1))
        append(writer, script)
        assert [volume.name for volume in log.volumes()] == ["disk-9"]
        script.put(VolumeDeleted(1))
        append(writer, script)
    assert [volume.deleted for volume in log.volumes()] == [True]
    other = Script(StreamState.start(OTHER_VOLUME), "beta").create()
    with log.writer(OTHER_VOLUME, 1) as writer:
        append(writer, other)
    assert [(volume.name, volume.host) for volume in log.volumes()] == [("disk-1", "beta"), ("disk-9", "alpha")]


def test_timelines_are_claimed_once(log: Log, opener: Opener) -> None:
    script = filled(log)
    assert log.claim_timeline(VOLUME, 2, "beta")
    assert not opener().claim_timeline(VOLUME, 2, "gamma")
    assert log.timelines(VOLUME) == [1, 2]
    fork = script.state.committed
    assert fork is not None
    promoted = Script(StreamState.start(VOLUME, 2), "beta")
    promoted.put(TimelineStarted(fork, "disk-1", SIZE_BYTES, "beta", 1))
    promoted.open().transaction(5)
    with log.writer(VOLUME, 2) as writer:
        append(writer, promoted)
    assert log.reader(VOLUME, 2).tail() == promoted.state
    with log.writer(VOLUME, 1) as writer:
        append(writer, script.open())
    assert [(entry.timeline, entry.host) for entry in log.volumes()] == [(2, "beta")], "a later timeline's entry stays"


def test_trimming_keeps_what_it_must(log: Log, opener: Opener) -> None:
    script = filled(log, 4)
    events = list(log.reader(VOLUME, 1).read(1))
    commits = [event for event in events if event.header.type == 8]
    below = commits[1].header.sequence + 2
    kept = log.trim(VOLUME, 1, below)
    assert commits[1].header.sequence < kept <= below
    reader = opener().reader(VOLUME, 1)
    assert list(reader.read(kept)) == events[kept - 1 :]
    assert reader.start().link == events[kept - 2].link
    assert reader.tail() == script.state
    with pytest.raises(TrimmedError, match=f"begins with event {kept}"):
        list(reader.read(kept - 1))
    assert TrimmedError.exit_code == NotFoundError.exit_code
    assert log.trim(VOLUME, 1, 1) == kept, "the start never goes down"
    last = log.trim(VOLUME, 1, 1 << 40)
    assert last <= script.state.sequence and reader.tail() == script.state
    with log.writer(VOLUME, 1) as writer:
        append(writer, script.open().transaction())
    assert list(reader.read(last))[-1].link == script.state.link


def registration(receiver: int, script: Script, below: int = 0, timeline: int = 1) -> Registration:
    """What receiver number `receiver` says when it has verified all of `script` but the last `below` events."""
    state = script.state
    name = f"replica {receiver}"
    return Registration(VOLUME, UUID(int=receiver), name, timeline, state.number, state.sequence - below, 1_000)


def test_receivers_are_registered_replaced_and_forgotten(log: Log, opener: Opener) -> None:
    script = filled(log, 2)
    assert log.registrations(VOLUME) == []
    log.register(registration(2, script))
    log.register(registration(1, script, below=3))
    log.register(registration(1, script, below=1))
    assert opener().registrations(VOLUME) == [registration(1, script, below=1), registration(2, script)]
    assert log.registrations(OTHER_VOLUME) == []
    assert log.forget(VOLUME, UUID(int=1)) and not opener().forget(VOLUME, UUID(int=1))
    assert opener().registrations(VOLUME) == [registration(2, script)]
    assert [entry.volume for entry in log.volumes()] == [VOLUME], "registrations are no volumes"


def test_trimming_waits_for_registered_receivers(log: Log, opener: Opener) -> None:
    script = filled(log, 4)
    log.register(registration(1, script))
    log.register(registration(2, script, below=script.state.sequence))
    assert opener().trim(VOLUME, 1, 1 << 40) == 1, "receiver 2 has verified nothing"
    log.register(registration(2, script, timeline=2))
    assert opener().trim(VOLUME, 2, 1 << 40) == 1, "receiver 1 is still on timeline 1"
    log.forget(VOLUME, UUID(int=1))
    assert opener().trim(VOLUME, 1, 1 << 40) > 1, "receiver 2 went on to timeline 2"
    assert log.reader(VOLUME, 1).tail() == script.state


def test_a_trimmed_stream_is_judged_from_its_start(log: Log) -> None:
    script = filled(log, 3)
    kept = log.trim(VOLUME, 1, script.state.sequence)
    reader = log.reader(VOLUME, 1)
    checker = ChainChecker(reader.start())
    assert {checker.accept(event) for event in reader.read(kept)} == {Verdict.APPLY}
    assert checker.state == script.state


def test_streams_do_not_touch_each_other(log: Log) -> None:
    script = filled(log, 1)
    other = Script(StreamState.start(OTHER_VOLUME), "beta").create()
    with log.writer(OTHER_VOLUME, 1) as writer:
        append(writer, other)
    assert log.reader(VOLUME, 1).tail() == script.state
    assert log.reader(OTHER_VOLUME, 1).tail() == other.state
    log.close()


def test_a_takeover_within_one_append(log: Log) -> None:
    script = Script().create()
    with log.writer(VOLUME, 1) as writer:
        append(writer, script)
        script.begin().put(PublisherOpened(2, "alpha", (), 1))
        script.commit()
        assert append(writer, script).durable == script.state
    assert log.reader(VOLUME, 1).tail() == script.state
