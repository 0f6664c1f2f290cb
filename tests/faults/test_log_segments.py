"""Every file-system call of a publisher fails, or is the machine's last, in turn: the log is old or new, and goes on.

The failure tables of log/directory and log/writer, line by line: for n = 1, 2, 3 ... the n-th call meets the fault,
until a run passes untouched.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator.errors import ReplicatorError
from replicator.events.beacon import Beacon
from replicator.events.chain import ChainChecker, Verdict
from replicator.events.codec import Event
from replicator.events.state import StreamState
from replicator.log.directory import DirectoryStore
from replicator.log.interface import Appended, AppendOutcome, AppendUnknown
from replicator.log.object_log import ObjectLog
from replicator.log.writer import SegmentWriter
from tests.support.event_streams import VOLUME, Script
from tests.support.faulty_files import CrashError, Fault, FaultyFiles, UnsyncedFiles

CALLS_MAX = 400
ERRORS = (Fault.ERROR_BEFORE, Fault.ERROR_AFTER, Fault.FULL)
CRASHES = (Fault.CRASH_BEFORE, Fault.CRASH_WITHIN, Fault.CRASH_AFTER)


def healthy(path: Path) -> ObjectLog:
    """The log as other processes see it."""
    path.mkdir(exist_ok=True)
    return ObjectLog(DirectoryStore(path, UnsyncedFiles()), create=True)


def script_of() -> Script:
    """What the publisher has to say: two transactions, and a takeover within the second."""
    script = Script().create().transaction(1, 2).begin()
    return script.open().commit()


def batches(events: list[Event], done: int) -> list[list[Event]]:
    """The events after `done`, in appends of up to three."""
    left = events[done:]
    return [left[i : i + 3] for i in range(0, len(left), 3)]


def publish(writer: SegmentWriter, events: list[Event], stands: list[int]) -> AppendOutcome | None:
    """Append all that is left; `stands` gets each acknowledged sequence number."""
    for batch in batches(events, writer.state.sequence):
        outcome = writer.append(writer.state.link, batch)
        stands.append(outcome.durable.sequence)
        if not isinstance(outcome, Appended):
            return outcome
    return None


def check_prefix(path: Path, events: list[Event], at_least: int) -> int:
    """The log reads as a prefix of `events` that holds all that was acknowledged; its length."""
    reader = healthy(path).reader(VOLUME, 1)
    read = list(reader.read(1))
    assert read == events[: len(read)]
    assert len(read) >= at_least, f"event {at_least} was acknowledged, {len(read)} stand"
    checker = ChainChecker(StreamState.start(VOLUME))
    assert {checker.accept(event) for event in read} <= {Verdict.APPLY}
    assert reader.tail() == checker.state
    return len(read)


def finish(path: Path, script: Script) -> None:
    """A restarted publisher says the rest, then opens once more; nothing is left behind."""
    log = healthy(path)
    with log.writer(VOLUME, 1) as writer:
        assert publish(writer, script.events, []) is None
        again = Script(writer.state).open()
        assert isinstance(writer.append(writer.state.link, again.events), Appended)
    check_prefix(path, [*script.events, *again.events], len(script.events) + 1)
    assert [entry.name for entry in log.volumes()] == ["disk-1"]
    assert list((path / "temporary").iterdir()) == [], "strays are swept by the stream's owner"


@pytest.mark.parametrize("power_cut", [False, True], ids=["killed", "power-cut"])
@pytest.mark.parametrize("fault", CRASHES, ids=lambda fault: fault.name)
def test_a_crash_at_every_call(tmp_path: Path, fault: Fault, power_cut: bool) -> None:
    script = script_of()
    for n in range(1, CALLS_MAX):
        path = tmp_path / str(n)
        healthy(path)
        files, stands = FaultyFiles(n, fault), [0]
        try:
            with ObjectLog(DirectoryStore(path, files)).writer(VOLUME, 1) as writer:
                publish(writer, script.events, stands)
        except CrashError:
            pass
        files.end(power_cut=power_cut)
        check_prefix(path, script.events, stands[-1])
        finish(path, script)
        if not files.met:
            break
    assert not files.met and n > 40


@pytest.mark.parametrize("fault", ERRORS, ids=lambda fault: fault.name)
def test_an_error_at_every_call(tmp_path: Path, fault: Fault) -> None:
    script = script_of()
    outcomes: set[str] = set()
    for n in range(1, CALLS_MAX):
        path = tmp_path / str(n)
        healthy(path)
        files, stands = FaultyFiles(n, fault), [0]
        outcomes.add(publish_through(ObjectLogMaker(path, files), script, stands))
        files.end(power_cut=True)
        check_prefix(path, script.events, len(script.events))
        finish(path, script)
        if not files.met:
            break
    assert not files.met and n > 40
    assert outcomes >= {"raised", "untouched", "unknown"}


class ObjectLogMaker:
    """Opens the log again and again, as a publisher that retries does."""

    def __init__(self, path: Path, files: FaultyFiles) -> None:
        self._path = path
        self._files = files

    def writer(self) -> SegmentWriter:
        """A writer, after as many tries as it takes."""
        for _ in range(3):
            try:
                return ObjectLog(DirectoryStore(self._path, self._files)).writer(VOLUME, 1)
            except ReplicatorError:
                continue
        raise AssertionError("one fault must not stop three tries")


def publish_through(maker: ObjectLogMaker, script: Script, stands: list[int]) -> str:
    """Publish, settling after each error, until all stands; what was met on the way."""
    met = "untouched"
    with maker.writer() as writer:
        for _ in range(4):
            try:
                outcome = publish(writer, script.events, stands)
                if outcome is None:
                    return met
                met = "unknown" if isinstance(outcome, AppendUnknown) else "conflict"
            except ReplicatorError:
                met = "raised"
            assert writer.settle().sequence >= stands[-1]
    raise AssertionError("one fault must not stop four tries")


@pytest.mark.parametrize("power_cut", [False, True], ids=["killed", "power-cut"])
@pytest.mark.parametrize("fault", CRASHES, ids=lambda fault: fault.name)
def test_a_crash_at_every_call_of_a_trim_and_of_a_beacon(tmp_path: Path, fault: Fault, power_cut: bool) -> None:
    script = Script().create().transaction().transaction()
    below = script.events[-1].header.sequence
    beacons = [Beacon.of(script.state, 1, alive_at_ns) for alive_at_ns in (1, 2)]
    for n in range(1, CALLS_MAX):
        path = tmp_path / str(n)
        log = healthy(path)
        with log.writer(VOLUME, 1) as writer:
            assert publish(writer, script.events, []) is None
        log.write_beacon(beacons[0])
        files = FaultyFiles(n, fault)
        try:
            faulty = ObjectLog(DirectoryStore(path, files))
            faulty.write_beacon(beacons[1])
            faulty.trim(VOLUME, 1, below)
        except CrashError:
            pass
        files.end(power_cut=power_cut)
        assert log.read_beacon(VOLUME) in beacons
        start = log.reader(VOLUME, 1).start()
        assert list(log.reader(VOLUME, 1).read(start.sequence + 1)) == script.events[start.sequence :]
        kept = log.trim(VOLUME, 1, below)
        assert list(log.reader(VOLUME, 1).read(kept)) == script.events[kept - 1 :]
        left = sorted(file.name for file in path.glob(f"{VOLUME}/*/*/*"))
        assert int(left[0]) == kept, "what a dead trim left is removed by the next"
        if not files.met:
            break
    assert not files.met and n > 20
