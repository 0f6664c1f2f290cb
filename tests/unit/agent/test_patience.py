"""What measures and waits: backoff, the token bucket, meters, hooks and their limits, the journal, systemd's socket."""

from __future__ import annotations

import json
import os
import signal
import socket
from io import StringIO
from pathlib import Path

import pytest

from agent.backoff import Backoff
from agent.clock import SystemClock
from agent.hooks import Ending, Hooks, run_limited, stuck_reason
from agent.meter import RoomMeter, SentMeter
from agent.ratelimit import TokenBucket
from replicator.exporter.journal import Journal, notify_systemd
from replicator.history.points import Consistency
from tests.support.manual_clock import ManualClock


@pytest.mark.parametrize(
    ("attempt", "chance", "delay"),
    [
        (1, 0.0, 0.5),
        (1, 0.998, 0.999),
        (2, 0.0, 1.0),
        (4, 0.5, 6.0),
        (7, 0.0, 30.0),
        (100, 0.0, 30.0),
        (10**6, 0.5, 45.0),
    ],
)
def test_backoff_doubles_up_to_its_longest(attempt: int, chance: float, delay: float) -> None:
    assert Backoff().delay_s(attempt, chance) == pytest.approx(delay)


def test_the_bucket_lets_its_rate_through_and_no_more() -> None:
    clock = ManualClock()
    bucket = TokenBucket(1000, clock.monotonic)
    passed = 0
    while clock.monotonic() < 20:
        clock.advance(bucket.delay_s(300))
        passed += 300
    assert 19_900 <= passed <= 1000 * 20.25 + 300
    assert TokenBucket(None, clock.monotonic).delay_s(1 << 40) == 0


def test_an_event_larger_than_the_bucket_passes_and_is_paid_for() -> None:
    clock = ManualClock()
    bucket = TokenBucket(100, clock.monotonic)
    assert bucket.delay_s(1000) == pytest.approx(9.75)
    clock.advance(9.75)
    assert bucket.delay_s(100) == pytest.approx(1)


def test_the_rate_is_the_last_minutes() -> None:
    meter = SentMeter()
    for second in range(100):
        meter.add(float(second), 600)
    assert meter.total_bytes == 60_000
    assert meter.rate_bytes_s(99.0) == pytest.approx(600, rel=0.05)
    assert meter.rate_bytes_s(1000.0) == 0


def test_room_lasts_as_long_as_it_shrinks() -> None:
    meter = RoomMeter()
    assert meter.lasts_s() is None
    meter.add(0, 1000)
    meter.add(10, 900)
    assert meter.lasts_s() is None, "ten seconds say nothing"
    meter.add(40, 600)
    assert meter.lasts_s() == pytest.approx(60)
    meter.add(50, 2000)
    assert meter.lasts_s() is None


def test_hooks_thaw_on_every_path(tmp_path: Path) -> None:
    trace, told = tmp_path / "trace", list[str]()
    thaw = ("sh", "-c", f"echo thaw >>{trace}")
    with Hooks(("true",), thaw).frozen(told.append) as worth:
        assert worth is Consistency.FILESYSTEM
    with Hooks(("false",), thaw).frozen(told.append) as worth:
        assert worth is Consistency.CRASH
    with pytest.raises(KeyError), Hooks(("true",), thaw).frozen(told.append):
        raise KeyError
    with Hooks().frozen(told.append) as worth:
        assert worth is Consistency.CRASH
    with Hooks(("true",), ("sh", "-c", "echo stuck; exit 3")).frozen(told.append):
        pass
    assert trace.read_text() == "thaw\n" * 3
    assert told == ["freeze: false ended with 1; the cut is crash-consistent", "thaw: sh ended with 3: stuck"]


def test_a_hook_that_hangs_is_ended_with_its_children() -> None:
    found = run_limited(("sh", "-c", "sleep 100 & sleep 100"), 0.2)
    assert found == "sh took longer than 0.2 s"
    assert "No such file" in str(run_limited(("/no/such/command",), 1))


class Stuck:
    """Commands that no kill reaches, as one that waits in the kernel for a disk, until `let_go`."""

    def __init__(self) -> None:
        self.pids: list[int] = []
        self.ending = Ending(self.pids.append, 0.05)

    def let_go(self) -> None:
        for pid in self.pids:
            os.killpg(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_a_freeze_that_cannot_be_ended_is_thawed_and_not_begun_again() -> None:
    """H1 to H3: the rounds go on without it."""
    told, stuck = list[str](), Stuck()
    hooks = Hooks(("sleep", "100"), ("/no/such/thaw",), 0.2, ending=stuck.ending)
    try:
        for _ in range(2):
            with hooks.frozen(told.append) as worth:
                assert worth is Consistency.CRASH
    finally:
        stuck.let_go()
    assert len(stuck.pids) == 1, "one of them, not one a round"
    still = f"(process {stuck.pids[0]})"
    assert told[0] == f"freeze: sleep took longer than 0.2 s, and can't be ended {still}; the cut is crash-consistent"
    assert told[2] == f"freeze: sleep is still there {still}, and isn't begun again; the cut is crash-consistent"
    assert told[1] == told[3] == "thaw: /no/such/thaw: No such file or directory"
    assert stuck_reason(hooks.freeze) is None, "it has ended"


def test_nothing_is_frozen_while_a_thaw_is_stuck() -> None:
    """H3: nobody could let go of it."""
    told, stuck = list[str](), Stuck()
    hooks = Hooks(("/no/such/freeze",), ("sleep", "101"), ending=stuck.ending)
    try:
        assert "can't be ended" in str(run_limited(hooks.thaw, 0.2, stuck.ending))
        with hooks.frozen(told.append) as worth:
            assert worth is Consistency.CRASH
    finally:
        stuck.let_go()
    assert [each.split(" is ")[0] for each in told] == ["freeze: sleep", "thaw: sleep"] and len(stuck.pids) == 1
    assert stuck_reason(hooks.thaw) is None


def test_journal_lines_are_json() -> None:
    out, clock = StringIO(), ManualClock()
    journal = Journal(out, clock.now_ns)
    journal.info("started", pool=Path("p"))
    journal.warning("failing", reason="a\nb")
    first, second = map(json.loads, out.getvalue().splitlines())
    assert (first["level"], first["event"], first["pool"]) == ("info", "started", "p")
    assert second["reason"] == "a\nb"
    out.close()
    journal.info("to nobody")


def test_systemd_hears_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service:
        service.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify_systemd("READY=1", "STATUS=well")
        assert service.recv(1000) == b"READY=1\nSTATUS=well"
    notify_systemd("WATCHDOG=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "")
    notify_systemd("STOPPING=1")


def test_the_system_clock_stops_waiting_when_asked() -> None:
    clock = SystemClock()
    assert clock.wait(0) is False
    clock.stop()
    assert clock.wait(3600) is True and clock.is_stopping
