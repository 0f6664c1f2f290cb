"""A log copied into another, event by event, as they are: resumable anywhere, and never another history."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from replicator.errors import UnavailableError
from replicator.events.beacon import Beacon
from replicator.events.bodies import TimelineStarted, VolumeRenamed
from replicator.events.state import StreamState
from replicator.events.stream_errors import ForkError, OtherHistoryError, StreamConflictError
from replicator.log import names
from replicator.log.errors import LostEndError, TrimmedError
from replicator.log.interface import Appended, Log
from replicator.log.object_log import ObjectLog, directory_log
from replicator.repository.archive import Copied
from replicator.repository.archive_registration import RENEW_S
from replicator.repository.verify import verify_volume
from tests.support.archiving import archiver
from tests.support.command_line import Command
from tests.support.event_streams import VOLUME, Script, written
from tests.support.faulty_log import FaultyLog, KilledError, LogFault
from tests.support.hostile_log import hostile
from tests.support.manual_waiter import ManualWaiter
from tests.support.memory_objects import MemoryStore
from tests.support.replica_streams import SourceVolume, random_source

SIZE = 12 * 65536


def memory() -> ObjectLog:
    return ObjectLog(MemoryStore(), create=True)


def events(log: Log, volume: UUID, timeline: int = 1) -> list[bytes]:
    return [bytes(event.encoded) for event in log.reader(volume, timeline).read(1)]


def beacon_of(source: SourceVolume) -> Beacon:
    state = source.state
    assert state.committed is not None
    return Beacon(state.volume, state.timeline, state.epoch, state.sequence, state.committed.number, state.digest, 8, 9)


def test_it_is_exact_and_goes_on_where_it_left_off(tmp_path: Path) -> None:
    source, target = memory(), directory_log(tmp_path / "archive", create=True)
    volumes = [random_source(seed, SIZE, 6) for seed in (1, 2)]
    for number, each in enumerate(volumes):
        each.publish(source)
        source.write_beacon(beacon_of(each))
        with archiver(source, target) as copying:
            copied = copying.round()
        assert [row.event_count for row in copied if row.volume == each.uuid] == [each.state.sequence]
        assert sum(row.event_count for row in copied) == each.state.sequence, f"of volume {number} alone"
    with archiver(source, target) as copying:
        assert [row.event_count for row in copying.round()] == [0, 0]
    for each in volumes:
        assert events(source, each.uuid) == events(target, each.uuid)
        assert target.reader(each.uuid, 1).tail() == each.state
        assert target.read_beacon(each.uuid) == source.read_beacon(each.uuid)
        assert not verify_volume(target, each.uuid).findings
        (registration,) = source.registrations(each.uuid)
        assert (registration.name, registration.sequence) == ("archive", each.state.sequence)


@pytest.mark.parametrize("fault", list(LogFault))
def test_whatever_fails_in_the_target_it_goes_on(fault: LogFault) -> None:
    volume, source = random_source(5, SIZE, 4), memory()
    volume.publish(source)
    at, met = 0, True
    while met:
        at += 1
        target = memory()
        faulty = FaultyLog(target, at, fault)
        try:
            with archiver(source, faulty) as copying:
                copying.round()
        except KilledError:
            pass
        met = faulty.met
        with archiver(source, target) as copying:
            assert not [row.error for row in copying.round() if row.error]
        assert events(source, volume.uuid) == events(target, volume.uuid), f"{fault} at {at}"
    assert at > 5


def test_an_open_transaction_is_copied_too_and_gone_on_with() -> None:
    volume, source, target = SourceVolume(3, SIZE), memory(), memory()
    volume.transaction(volume.scribble())
    volume.begin()
    volume.publish(source)
    with archiver(source, target) as copying:
        copying.round()
        assert target.reader(volume.uuid, 1).tail() == volume.state
        volume.scribble()
        volume.put_changes(set())
        volume.commit()
        volume.publish(source)
        copying.round()
    assert events(source, volume.uuid) == events(target, volume.uuid)


def test_two_archivers_into_one_log() -> None:
    """One place, one winner; the other settles, finds the same events, and goes on."""
    volume, source, target = SourceVolume(3, SIZE), memory(), memory()
    volume.transaction(volume.scribble())
    volume.publish(source)
    with archiver(source, target) as one, archiver(source, target) as other:
        for _ in range(3):
            assert not [row.error for copying in (one, other) for row in copying.round() if row.error]
            volume.transaction(volume.scribble())
            volume.publish(source)
        assert not [row.error for copying in (other, one) for row in copying.round() if row.error]
    assert events(source, volume.uuid) == events(target, volume.uuid)


def error_of(copied: list[Copied]) -> Exception:
    (error,) = [row.error for row in copied if row.error]
    return error


def test_a_source_that_lost_its_end_is_told_and_nothing_is_lost() -> None:
    volume, target = random_source(7, SIZE, 3), memory()
    shorter, whole = memory(), memory()
    cut = volume.state.sequence - 4
    events_all = list(volume.events)
    with shorter.writer(volume.uuid, 1) as writer:
        writer.append(writer.state.link, events_all[:cut])
        writer.sync()
    volume.publish(whole)
    with archiver(whole, target) as copying:
        copying.round()
    with archiver(shorter, target) as copying:
        assert isinstance(error_of(copying.round()), LostEndError)
    assert events(target, volume.uuid) == events(whole, volume.uuid)


def test_another_history_is_refused(tmp_path: Path) -> None:
    one, other, target = SourceVolume(1, SIZE), SourceVolume(2, SIZE, uuid=SourceVolume(1, SIZE).uuid), memory()
    for each in (one, other):
        each.transaction(each.scribble())
        log = memory()
        each.publish(log)
        with archiver(log, target) as copying:
            copied = copying.round()
    assert isinstance(error_of(copied), StreamConflictError)
    other.transaction(other.scribble())
    log = memory()
    again = SourceVolume(2, SIZE, uuid=one.uuid)
    for _ in range(3):
        again.transaction(again.scribble())
    again.publish(log)
    with archiver(log, target) as copying:
        assert isinstance(error_of(copying.round()), ForkError | OtherHistoryError)
    assert target.reader(one.uuid, 1).tail() == one.state


@pytest.mark.parametrize("later", [False, True], ids=["earlier", "as late at last"])
def test_a_source_that_was_put_back_is_another_history(later: bool) -> None:
    """And grew past the archive since: all its events are of an earlier epoch than the archive's last."""
    ours, theirs, target = SourceVolume(1, SIZE), SourceVolume(1, SIZE), memory()
    for each in (ours, theirs):
        each.transaction(each.scribble())
    ours.reopen()
    while theirs.state.sequence <= ours.state.sequence:
        theirs.transaction(theirs.scribble())
    if later:
        theirs.reopen()
    for each in (ours, theirs):
        log = memory()
        each.publish(log)
        with archiver(log, target) as copying:
            copied = copying.round()
    assert isinstance(error_of(copied), OtherHistoryError) and copied[0].error and copied[0].error.mend
    assert target.reader(ours.uuid, 1).tail() == ours.state


def test_what_was_trimmed_before_it_was_copied_is_named() -> None:
    volume, source, target = SourceVolume(3, SIZE), memory(), memory()
    for _ in range(4):
        volume.transaction(volume.scribble())
        volume.publish(source)
    with archiver(source, target) as copying:
        copying.round()
    source.forget(volume.uuid, source.registrations(volume.uuid)[0].receiver)
    copied_to = volume.state.sequence
    for _ in range(3):
        volume.transaction(volume.scribble())
        volume.publish(source)
    source.trim(volume.uuid, 1, volume.state.sequence)
    with archiver(source, target) as copying:
        assert isinstance(error_of(copying.round()), TrimmedError)
    assert target.reader(volume.uuid, 1).tail().sequence == copied_to
    with archiver(source, memory()) as copying:
        assert isinstance(error_of(copying.round()), TrimmedError)


def test_it_holds_back_trimming_while_it_is_registered() -> None:
    volume, source, target = SourceVolume(3, SIZE), memory(), memory()
    volume.transaction(volume.scribble())
    volume.publish(source)
    with archiver(source, target) as copying:
        copying.round()
    held = volume.state.sequence
    for _ in range(3):
        volume.transaction(volume.scribble())
        volume.publish(source)
    assert source.trim(volume.uuid, 1, volume.state.sequence) <= held + 1
    with archiver(source, target) as copying:
        copying.round()
    assert target.reader(volume.uuid, 1).tail() == volume.state


def test_a_source_that_shows_nothing_any_more_is_away() -> None:
    volume, target, store = SourceVolume(3, SIZE), memory(), MemoryStore()
    source = ObjectLog(store, create=True)
    volume.publish(source)
    with archiver(source, target) as copying:
        copying.round()
        store.objects.clear()
        with pytest.raises(UnavailableError, match="shows none now"):
            copying.round()


def test_what_a_broker_let_through_is_not_in_the_archive() -> None:
    volume, source, target = SourceVolume(3, SIZE), memory(), memory()
    volume.transaction(volume.scribble())
    zombie = SourceVolume(9, SIZE, uuid=volume.uuid)
    zombie.transaction(zombie.scribble(20))
    before = volume.state.sequence
    volume.reopen()
    volume.transaction(volume.scribble())
    every = list(volume.events)
    volume.publish(source)
    old = [event for event in zombie.events if event.header.sequence > 2]
    between = {before + 1: [*old, every[2]], volume.state.sequence: every[before:]}
    with archiver(hostile(source, between), target) as copying:
        assert not [row.error for row in copying.round() if row.error]
    assert events(target, volume.uuid) == events(source, volume.uuid)


def say(log: Log, script: Script) -> None:
    """All that the script has, into its stream."""
    with log.writer(VOLUME, script.state.timeline) as writer:
        assert isinstance(writer.append(writer.state.link, script.take()), Appended)


@pytest.mark.parametrize("is_begun", [True, False])
def test_what_could_not_be_copied_is_not_trimmed_since_a_later_timeline_was(is_begun: bool) -> None:
    store, first = MemoryStore(), Script().create().transaction(1)
    source, target = memory(), ObjectLog(store, create=True)
    say(source, first)
    if is_begun:
        with archiver(source, target) as copying:
            copying.round()
    copied = first.state.sequence if is_begun else 0
    say(source, first.transaction(2))
    say(source, first.transaction(4))
    fork = first.state.committed
    assert fork is not None
    second = Script(StreamState.start(VOLUME, 2), "beta")
    second.put(TimelineStarted(fork, "disk-1", first.state.size_bytes, "beta", 1))
    say(source, second.open().transaction(3))
    damaged = names.segment_name(VOLUME, 1, 1)
    whole = store.objects.get(damaged)
    store.objects[damaged] = b"damaged"
    with archiver(source, target) as copying:
        one, two = copying.round()
    assert one.error is not None and two.error is None and two.event_count
    assert source.trim(VOLUME, 1, 1 << 40) <= copied + 1
    if whole is not None:
        store.objects[damaged] = whole
    else:
        store.delete(damaged)
    with archiver(source, target) as copying:
        assert [row.error for row in copying.round()] == [None, None]
    assert events(target, VOLUME) and source.trim(VOLUME, 1, 1 << 40) > copied + 1
    assert [(each.timeline, each.sequence) for each in source.registrations(VOLUME)] == [(2, second.state.sequence)]


def test_events_are_counted_once_while_their_transaction_is_open() -> None:
    source, target, script = memory(), memory(), Script().create()
    say(source, script)
    with archiver(source, target) as copying, source.writer(VOLUME, 1) as writer:
        copying.round(sync=False)
        script.begin()
        for chunk in (1, 2):
            script.put(written(chunk))
            new = script.take()
            assert isinstance(writer.append(writer.state.link, new), Appended)
            assert isinstance(writer.sync(), Appended)
            assert [copying.round(sync=False)[0].event_count for _ in range(3)] == [len(new), 0, 0]
    with archiver(source, target) as copying:
        copying.round()
    assert events(source, VOLUME) == events(target, VOLUME)


def test_a_volume_that_was_renamed_is_archived_on() -> None:
    """Another that takes its name isn't."""
    source, target, script = memory(), memory(), Script().create()
    say(source, script)

    def rename() -> None:
        script.put(VolumeRenamed("disk-new", 5))
        say(source, script.open().transaction())
        SourceVolume(3, SIZE).publish(source)

    told: list[Copied] = []
    waiter = ManualWaiter(rename, lambda: None, stop_after=3)
    with archiver(source, target, waiter=waiter, names=["disk-1"]) as copying:
        copying.follow(RENEW_S, lambda copied, _: told.extend(copied))
    assert {row.volume for row in told} == {VOLUME} and told[-1].name == "disk-new"
    assert target.reader(VOLUME, 1).tail() == script.state


def test_a_stop_ends_a_round_between_two_transactions() -> None:
    """What was copied stands, and is gone on with."""
    source, target, script, at = memory(), memory(), Script().create(), 9
    for _ in range(40):
        script.transaction(1)
    say(source, script)
    other = random_source(2, SIZE, 1)
    other.publish(source)
    beats: list[int] = []
    told: list[Copied] = []
    with archiver(
        source, target, names=[str(VOLUME)], is_stopping=lambda: len(beats) >= at, beat=lambda: beats.append(1)
    ) as copying:
        copying.follow(RENEW_S, lambda copied, _: told.extend(copied))
    stands = target.reader(VOLUME, 1).tail()
    assert stands.committed is not None and 5 < stands.committed.number < 10
    assert sum(row.event_count for row in told) == stands.sequence and not [row for row in told if row.error]
    assert source.registrations(VOLUME)[0].sequence == stands.sequence
    with archiver(source, target, names=[str(VOLUME)], is_stopping=lambda: True) as copying:
        assert copying.round() == [], "nothing is begun any more"
    with archiver(source, target) as copying:
        copying.round()
    assert events(source, VOLUME) == events(target, VOLUME)


def test_the_command(tmp_path: Path, command: Command) -> None:
    log = directory_log(tmp_path / "log", create=True)
    volumes = [random_source(seed, SIZE, 2, resizing=False) for seed in (1, 2)]
    for each in volumes:
        each.publish(log)
    document = command("log", "archive", tmp_path / "log", tmp_path / "copy", "--json").document
    assert [row["events"] for row in document["streams"]] == [
        each.state.sequence for each in sorted(volumes, key=lambda each: each.uuid)
    ]
    assert "COPIED" in command("log", "archive", tmp_path / "log", tmp_path / "copy", str(volumes[0].uuid)).out
    command("log", "archive", tmp_path / "log", tmp_path / "log", code=2)
    command("log", "archive", tmp_path / "none", tmp_path / "copy", code=5)
    command("log", "archive", tmp_path / "log", tmp_path / "copy", "nobody", code=5)
    command("log", "verify", tmp_path / "copy")
    assert len(command("log", "list", tmp_path / "copy", "--json").document) == 2
