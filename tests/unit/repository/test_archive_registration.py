"""An archive's word beside its source: nothing is trimmed that it hasn't got, and a word that isn't taken is told."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest

from replicator.errors import ConflictError, FormatError, NoSpaceError, ReplicatorError, UnavailableError
from replicator.events.bodies import TimelineStarted
from replicator.events.state import StreamState
from replicator.log.directory import DirectoryStore
from replicator.log.errors import ForbiddenError
from replicator.log.files import OsFiles
from replicator.log.interface import Appended, Log, Registration, StreamReader
from replicator.log.kafka_errors import DeniedError
from replicator.log.object_log import ObjectLog, directory_log
from replicator.log.s3_errors import AccessDeniedError
from replicator.repository.archive import Copied
from replicator.repository.archive_registration import RENEW_S
from tests.support.archiving import RECEIVER, archiver
from tests.support.command_line import Command
from tests.support.event_streams import VOLUME, Script
from tests.support.faulty_log import FaultyLog, KilledError, LogFault, Value
from tests.support.manual_waiter import ManualWaiter
from tests.support.memory_objects import MemoryStore

ROOT = Path(__file__).resolve().parents[3]
LIMIT_S = 60.0


def memory() -> ObjectLog:
    return ObjectLog(MemoryStore(), create=True)


def say(log: Log, script: Script) -> None:
    """All that the script has, a transaction at a time, each into a unit of its own that a trim can take."""
    for event in script.take():
        with log.writer(VOLUME, script.state.timeline) as writer:
            assert isinstance(writer.append(writer.state.link, [event]), Appended)
            assert isinstance(writer.sync(), Appended)


def spoken(count: int, log: Log) -> Script:
    script = Script().create()
    for _ in range(count):
        script.transaction()
    say(log, script)
    return script


def places(log: Log) -> list[tuple[int, int]]:
    return [(each.timeline, each.sequence) for each in log.registrations(VOLUME)]


def test_two_archives_hold_a_trim_back_each(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """One path as typed, in two folders."""
    log = directory_log(tmp_path / "log", create=True)
    script = spoken(2, log)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        command("log", "archive", tmp_path / "log", "archive")
    behind = script.state.sequence
    say(log, script.transaction().transaction())
    command("log", "archive", tmp_path / "log", "archive")
    assert sorted(places(log)) == [(1, behind), (1, script.state.sequence)]
    assert log.trim(VOLUME, 1, script.state.sequence) <= behind + 1
    monkeypatch.chdir(tmp_path / "a")
    command("log", "archive", tmp_path / "log", "archive")
    command("log", "archive", tmp_path / "log", tmp_path / "a" / "archive")
    assert places(log) == [(1, script.state.sequence)] * 2, "however it is named"


class Watched(FaultyLog):
    """A log that does something before each operation."""

    def __init__(self, log: Log, look: Callable[[], None]) -> None:
        super().__init__(log)
        self._look = look

    def call(self, do: Callable[[], Value], unknown: Callable[[], Value] | None = None) -> Value:
        self._look()
        return super().call(do, unknown)


def test_the_first_copy_is_held_from_its_beginning() -> None:
    source, target = memory(), memory()
    script = spoken(4, source)
    kept: list[int] = []
    with archiver(source, Watched(target, lambda: kept.append(source.trim(VOLUME, 1, 8)))) as copying:
        (row,) = copying.round()
    assert row.error is None and row.event_count == script.state.sequence
    assert set(kept[:-1]) == {1}, "trimmed at any moment of the copy"
    assert source.trim(VOLUME, 1, 8) > 1


def test_a_first_copy_that_died_is_held_too() -> None:
    source, target = memory(), memory()
    spoken(4, source)
    with pytest.raises(KilledError), archiver(source, FaultyLog(target, 3, LogFault.KILLED_BEFORE)) as copying:
        copying.round()
    assert places(source) == [(1, 0)] and source.trim(VOLUME, 1, 8) == 1


def test_an_archive_that_was_emptied_takes_its_word_back() -> None:
    source, script = memory(), Script().create()
    say(source, script.transaction())
    with archiver(source, memory()) as copying:
        copying.round()
    assert places(source) == [(1, script.state.sequence)]
    with pytest.raises(KilledError), archiver(source, FaultyLog(memory(), 3, LogFault.KILLED_BEFORE)) as copying:
        copying.round()
    assert places(source) == [(1, 0)]


class Failing(FaultyLog):
    """A source at which one operation, `name`, meets these errors before it is done."""

    def __init__(self, log: Log, name: str, *errors: ReplicatorError) -> None:
        super().__init__(log)
        self._name, self._errors = name, list(errors)

    def register(self, registration: Registration) -> None:
        self._meet("register")
        super().register(registration)

    def registrations(self, volume: UUID) -> list[Registration]:
        self._meet("registrations")
        return super().registrations(volume)

    def _meet(self, name: str) -> None:
        if name == self._name and self._errors:
            raise self._errors.pop(0)


@pytest.mark.parametrize("name", ["register", "registrations"])
def test_nothing_is_copied_before_it_is_held(name: str) -> None:
    """The next round, however soon, asks again."""
    source, target = memory(), memory()
    script = spoken(4, source)
    kept: list[int] = []
    beats: list[int] = []
    watched = Watched(target, lambda: kept.append(source.trim(VOLUME, 1, 8)))
    failing = Failing(source, name, UnavailableError("away"))
    with archiver(failing, watched, beat=lambda: beats.append(1)) as copying:
        (row,) = copying.round()
        assert beats, "a daemon is alive where many volumes are away, each for its time limit"
        assert isinstance(row.error, UnavailableError) and "before it is held" in row.error.message and not kept
        assert (row.timeline, row.event_count) == (1, 0) and row.error.mend and "--no-register" in row.error.mend
        (row,) = copying.round()
    assert row.error is None and row.unregistered is None and row.event_count == script.state.sequence
    assert set(kept[:-1]) == {1}


def test_an_emptied_archive_is_not_copied_into_before_its_word_is_taken_back() -> None:
    """It is away while that is looked into."""
    source = memory()
    script = spoken(1, source)
    with archiver(source, memory()) as copying:
        copying.round()
    said: list[list[tuple[int, int]]] = []
    target = FaultyLog(Watched(memory(), lambda: said.append(places(source))), 1)
    with archiver(source, target) as copying:
        (row,) = copying.round()
        assert isinstance(row.error, UnavailableError) and not said
        (row,) = copying.round()
    assert row.error is None and row.event_count == script.state.sequence
    assert said[0] == [(1, script.state.sequence)] and all(each == [(1, 0)] for each in said[1:])


def test_a_copy_that_goes_on_unheld_is_not_held_up_later() -> None:
    source, target = memory(), memory()
    script = spoken(1, source)
    refused = ForbiddenError("not with this key")
    failing = Failing(source, "register", refused, refused, UnavailableError("away"), refused)
    waiter = ManualWaiter()
    with archiver(failing, target, waiter=waiter) as copying:
        for _ in range(2):
            (row,) = copying.round()
            assert row.error is None and row.unregistered is refused and row.sequence == script.state.sequence
            say(source, script.transaction())
            waiter.wait(RENEW_S)
        (row,) = copying.round()
    assert row.error is None and row.unregistered is None


class Unread(FaultyLog):
    """A log whose streams can't be read."""

    def __init__(self, log: Log, error: ReplicatorError) -> None:
        super().__init__(log)
        self._error = error

    def reader(self, volume: UUID, timeline: int) -> StreamReader:
        raise self._error


@pytest.mark.parametrize(
    ("error", "is_kept"), [(UnavailableError("away"), True), (FormatError("segment", "one", "none"), False)]
)
def test_a_word_stands_while_the_archive_is_away_alone(error: ReplicatorError, is_kept: bool) -> None:
    source, target = memory(), memory()
    script = spoken(1, source)
    with archiver(source, target) as copying:
        copying.round()
    said: list[tuple[int, int]] = []
    with archiver(Watched(source, lambda: said.extend(places(source))), Unread(target, error)) as copying:
        copying.round()
    assert ((1, 0) not in said) is is_kept
    assert places(source) == [(1, script.state.sequence)]


def test_a_word_never_goes_back_to_an_earlier_timeline() -> None:
    source, target, first = memory(), memory(), Script().create().transaction()
    say(source, first)
    fork = first.state.committed
    assert fork is not None
    second = Script(StreamState.start(VOLUME, 2), "beta")
    second.put(TimelineStarted(fork, "disk-1", first.state.size_bytes, "beta", 1))
    say(source, second.open().transaction())
    with archiver(source, target) as copying:
        copying.round()
    seen: list[Registration] = []
    with archiver(Watched(source, lambda: seen.extend(source.registrations(VOLUME))), target) as copying:
        copying.round()
    assert {each.timeline for each in seen} == {2}


class Refusing(FaultyLog):
    """A source that takes nobody's registration."""

    asked = 0

    def __init__(self, log: Log, kind: type[ReplicatorError] = ConflictError) -> None:
        super().__init__(log)
        self._kind = kind

    def register(self, registration: Registration) -> None:
        self.asked += 1
        raise self._kind(f"this key may not write {registration.receiver}", mend="use another key")


@pytest.mark.parametrize("kind", [ConflictError, NoSpaceError, ForbiddenError, DeniedError, AccessDeniedError])
def test_a_refused_registration_is_told_and_the_copy_goes_on(kind: type[ReplicatorError]) -> None:
    source, target = memory(), memory()
    script = spoken(2, source)
    with archiver(Refusing(source, kind), target) as copying:
        (row,) = copying.round()
    assert row.error is None and row.sequence == script.state.sequence
    assert isinstance(row.unregistered, kind) and str(RECEIVER) in row.unregistered.message


class ReadOnly(OsFiles):
    """Files of which none may be made: `number` says why."""

    def __init__(self, number: int) -> None:
        self._number = number

    def open(self, path: str, flags: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(self._number, os.strerror(self._number))
        return super().open(path, flags)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_directory_that_may_only_be_read_is_archived(number: int, tmp_path: Path) -> None:
    script, target = spoken(2, directory_log(tmp_path, create=True)), memory()
    with archiver(ObjectLog(DirectoryStore(tmp_path, ReadOnly(number))), target) as copying:
        (row,) = copying.round()
    assert row.error is None and row.sequence == script.state.sequence
    assert isinstance(row.unregistered, ForbiddenError) and os.strerror(number) in row.unregistered.message


def test_a_source_that_refuses_is_not_asked_each_round() -> None:
    source, target = memory(), memory()
    spoken(1, source)
    refusing = Refusing(source)
    with archiver(refusing, target, waiter=ManualWaiter(stop_after=4)) as copying:
        copying.follow(RENEW_S / 5, lambda *_: None)
    assert refusing.asked == 3, "to hold and to tell at first, to tell in the last round"


def test_a_word_that_is_taken_later_is_no_refusal_any_more() -> None:
    source, target = memory(), memory()
    script = spoken(1, source)
    told: list[Copied] = []
    waiter = ManualWaiter(lambda: say(source, script.transaction()), lambda: None, stop_after=3)
    refused = ForbiddenError("not with this key")
    with archiver(Failing(source, "register", refused, refused), target, waiter=waiter) as copying:
        copying.follow(RENEW_S, lambda rows, _: told.extend(rows))
    assert told[0].unregistered is refused and told[-1].unregistered is None
    assert places(source) == [(1, script.state.sequence)]


def far_end(tmp_path: Path) -> str:
    """The log in `tmp_path`, served to a key that may append alone, as a URL."""
    program = tmp_path / "far"
    serve = f"-m replicator.cli.main log serve '{tmp_path}/log' --stdio --append-only"
    program.write_text(f"#!/bin/sh\ncd '{ROOT}' && exec '{sys.executable}' {serve}\n")
    program.chmod(0o755)
    return f"ssh://far{tmp_path}/log?ssh={program}"


def test_the_command_tells_it(tmp_path: Path, command: Command) -> None:
    spoken(1, directory_log(tmp_path / "log", create=True))
    url = far_end(tmp_path)
    ran = command("log", "archive", url, tmp_path / "archive")
    assert ran.err.count("not registered") == 1 and "may only append" in ran.err and "--no-register" in ran.err
    (row,) = command("log", "archive", url, tmp_path / "archive", "--json").document["streams"]
    assert row["error"] is None and "may only append" in row["unregistered"]
    assert not command("log", "archive", url, tmp_path / "archive", "--no-register").err


def test_the_daemon_tells_it_once_and_is_alive_within_a_round(tmp_path: Path) -> None:
    with closing(directory_log(tmp_path / "log", create=True)) as log:
        spoken(20, log)
    argv = [sys.executable, "-m", "replicator.cli.main", "log", "archive", far_end(tmp_path), str(tmp_path / "archive")]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service:
        service.bind(str(tmp_path / "notify"))
        service.settimeout(LIMIT_S)
        environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        child = subprocess.Popen(
            [*argv, "--follow", "--every", "1h"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
        )
        try:
            assert service.recv(100) == b"READY=1"
            assert [service.recv(100) for _ in range(20)] == [b"WATCHDOG=1"] * 20, "in the first round of all"
        finally:
            child.send_signal(signal.SIGTERM)
            err = child.communicate(timeout=LIMIT_S)[1]
    assert child.returncode == 0, err
    lines = [json.loads(line) for line in err.splitlines()]
    assert [line["event"] for line in lines].count("not registered") == 1


def test_another_archive_is_another_receiver() -> None:
    source = memory()
    spoken(1, source)
    for receiver in (UUID(int=1), UUID(int=2)):
        with archiver(source, memory(), receiver=receiver) as copying:
            copying.round()
    assert {each.receiver for each in source.registrations(VOLUME)} == {UUID(int=1), UUID(int=2)}
