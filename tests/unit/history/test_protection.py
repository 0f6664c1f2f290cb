"""T1 to T3 of history/protection: the first line of status, for each state, and the order of many."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from zoneinfo import ZoneInfo

from replicator.history.points import NS_PER_S
from replicator.history.protection import (
    Failure,
    ReplicaFacts,
    Severity,
    SourceFacts,
    State,
    judge_replica,
    judge_source,
    overall,
    worst_first,
)

NOW = int(datetime.fromisoformat("2026-11-22T08:17:00+00:00").timestamp()) * NS_PER_S
S = NS_PER_S
SOURCE = SourceFacts("vm", None, 30 * S, last_success_ns=NOW - S)
REPLICA = ReplicaFacts("vm", NOW - S, NOW - S, 30 * S, 60 * S)
FAILURE = Failure(NOW - 5 * S, "log unreachable: connection refused", "mount it")


def test_protected() -> None:
    """What would be lost is the age of the oldest change outside the log."""
    assert judge_source(SOURCE, NOW).headline(NOW) == "PROTECTED, would lose nothing"
    verdict = judge_source(replace(SOURCE, oldest_outside_ns=NOW - 800_000_000), NOW)
    assert verdict.headline(NOW) == "PROTECTED, would lose 0.8 s" and verdict.severity is Severity.WELL


def test_not_protected() -> None:
    """T1, T2: since the older of failure and change; the reason; the mend."""
    since = NOW - (6 * 3600 + 3 * 60) * S
    verdict = judge_source(replace(SOURCE, oldest_outside_ns=since, failure=FAILURE), NOW)
    assert verdict.headline(NOW) == "NOT PROTECTED since 02:14 (6 h 3 m): log unreachable: connection refused"
    assert verdict.loss(NOW) == "would lose 6 h 3 m" and verdict.mend == "mount it"
    assert "since 03:14 (" in verdict.headline(NOW, ZoneInfo("Europe/Berlin"))
    assert judge_source(replace(SOURCE, failure=FAILURE), NOW).since_ns == FAILURE.since_ns
    assert "since 2026-11-20" in judge_source(replace(SOURCE, oldest_outside_ns=NOW - 2 * 86400 * S), NOW).headline(NOW)
    late = judge_source(replace(SOURCE, oldest_outside_ns=NOW - 31 * S), NOW)
    assert late.state is State.NOT_PROTECTED and "keep up" in late.detail
    never = judge_source(replace(SOURCE, oldest_outside_ns=NOW - 31 * S, last_success_ns=None), NOW)
    assert "nothing was ever published" in never.headline(NOW)


def test_paused() -> None:
    """A person's choice is an alarm too, and names the way back."""
    verdict = judge_source(replace(SOURCE, paused_since_ns=NOW - 60 * S), NOW)
    assert verdict.headline(NOW) == "PAUSED since 08:16 (1 m): nothing is published"
    assert verdict.mend == "replicator agent resume" and verdict.severity is Severity.CRITICAL


def test_receivers() -> None:
    """Up to date, behind, silent, stopped; and one that has seen nothing."""
    assert judge_replica(REPLICA, NOW).headline(NOW) == "UP TO DATE: complete to 1.0 s ago"
    behind = judge_replica(replace(REPLICA, waiting_count=3, oldest_waiting_ns=NOW - 12 * S), NOW)
    assert behind.headline(NOW) == "BEHIND: by 3 transactions, 12 s" and behind.severity is Severity.WELL
    assert (
        judge_replica(replace(REPLICA, waiting_count=1, oldest_waiting_ns=NOW - 61 * S), NOW).severity
        is Severity.WARNING
    )
    silent = judge_replica(replace(REPLICA, complete_to_ns=NOW - 420 * S, newest_ns=NOW - 500 * S), NOW)
    assert silent.headline(NOW).startswith("SILENT since 08:10 (7 m): the agent's last sign of life")
    stopped = judge_replica(replace(REPLICA, failure=Failure(NOW - 60 * S, "two histories", "receiver rebase")), NOW)
    assert stopped.headline(NOW) == "STOPPED since 08:16 (1 m): two histories" and stopped.mend == "receiver rebase"
    empty = judge_replica(replace(REPLICA, newest_ns=None, complete_to_ns=None), NOW)
    assert empty.headline(NOW) == "SILENT: the log has nothing of this volume yet" and empty.exposed_ns is None


def test_clocks_that_disagree() -> None:
    """An agent's clock ahead of ours reads as no age, never as a negative one."""
    assert (
        judge_replica(replace(REPLICA, complete_to_ns=NOW + 5 * S), NOW).headline(NOW)
        == "UP TO DATE: complete to 0.0 s ago"
    )


def test_worst_first() -> None:
    """T3: severity, then what would be lost longest, then name; the overall state is the loudest."""
    verdicts = [
        judge_source(replace(SOURCE, volume="b"), NOW),
        judge_source(replace(SOURCE, volume="a"), NOW),
        judge_source(replace(SOURCE, volume="c", oldest_outside_ns=NOW - S), NOW),
        judge_source(replace(SOURCE, volume="d", oldest_outside_ns=NOW - 40 * S), NOW),
        judge_source(replace(SOURCE, volume="e", oldest_outside_ns=NOW - 90 * S), NOW),
        judge_replica(replace(REPLICA, volume="f", complete_to_ns=NOW - 99 * S, newest_ns=NOW - 99 * S), NOW),
    ]
    assert [each.volume for each in worst_first(verdicts)] == ["e", "d", "f", "c", "a", "b"]
    assert worst_first(reversed(verdicts)) == worst_first(verdicts)
    assert overall(verdicts) is Severity.CRITICAL and overall([]) is Severity.WELL
