"""What would be lost now, and since when: the first line of every `status`, as pure functions of facts.

Asked by both daemons and by `replicator status`; facts come from the pool, the log and the peers, `now_ns` from a clock
that is passed in.

    side        state             when                                                        severity
    agent       PROTECTED         every change is in the log, or young                        0
                NOT PROTECTED     something failed; or the oldest change outside is late      2
                PAUSED            a person said so (writes go on, and nothing is published)   2
    receiver    UP TO DATE        all that the log has is applied, and it's known up to now   0
                DELETED           the volume is gone at its source; its points stay           0
                BEHIND            the log has transactions that aren't applied yet            0, late: 1
                SILENT            no beacon for longer than it may take: nothing newer may
                                  exist, or the agent is dead; nobody here can tell            1
                STOPPED           a gap, a fork, a wrong base, damage; with its mend           2
                DRIFTED           it goes on, but isn't what the source attested               2

Invariants
  T1  A failure outweighs all else: who has an error is never called protected or up to date.
  T2  `since` never moves forward while a state lasts: it's the oldest unpublished change, or the first failure,
      whichever came first.
  T3  Worst first: by severity, then by what would be lost, then by name; a total order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from enum import IntEnum, StrEnum

from replicator.history.points import NS_PER_S
from replicator.units import format_duration


class Severity(IntEnum):
    """How loud a state is; the overall status is well only if none is above WELL."""

    WELL = 0
    WARNING = 1
    CRITICAL = 2


class State(StrEnum):
    """The word that a status line begins with."""

    PROTECTED = "PROTECTED"
    NOT_PROTECTED = "NOT PROTECTED"
    PAUSED = "PAUSED"
    UP_TO_DATE = "UP TO DATE"
    BEHIND = "BEHIND"
    SILENT = "SILENT"
    STOPPED = "STOPPED"
    DRIFTED = "DRIFTED"
    DELETED = "DELETED"


@dataclass(frozen=True, slots=True)
class Failure:
    """What is wrong, since when, and what mends it."""

    since_ns: int
    reason: str
    mend: str | None = None


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What an agent knows of one volume.

    `oldest_outside_ns`: when the oldest change that isn't in the log was made, None where all is in.
    `late_after_ns`: how old it may get before the volume isn't called protected (several intervals).
    """

    volume: str
    oldest_outside_ns: int | None
    late_after_ns: int
    last_success_ns: int | None = None
    failure: Failure | None = None
    paused_since_ns: int | None = None


@dataclass(frozen=True, slots=True)
class ReplicaFacts:
    """What a receiver knows of one volume.

    `newest_ns`: the newest point's timestamp; `complete_to_ns`: up to when the log is known to hold everything;
    `waiting_count` and `oldest_waiting_ns`: transactions in the log that aren't applied, and the oldest one's time.
    `silent_after_ns`: how long a beacon may be away; `late_after_ns`: how long a transaction may wait.
    `drift`: what isn't as the source attested; `deleted`: the source has the volume no more.
    """

    volume: str
    newest_ns: int | None
    complete_to_ns: int | None
    silent_after_ns: int
    late_after_ns: int
    waiting_count: int = 0
    oldest_waiting_ns: int | None = None
    failure: Failure | None = None
    drift: Failure | None = None
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer for one volume; `exposed_ns` is the instant from which on changes would be lost (None: nothing)."""

    volume: str
    state: State
    severity: Severity
    exposed_ns: int | None = None
    since_ns: int | None = None
    detail: str = ""
    mend: str | None = None

    def headline(self, now_ns: int, zone: tzinfo = UTC) -> str:
        """One line for people: the state, since when, what would be lost, why; times in `zone`."""
        text = str(self.state)
        if self.since_ns is not None:
            text += f" since {_clock(self.since_ns, now_ns, zone)} ({_span(now_ns - self.since_ns)})"
        if self.detail:
            text += f": {self.detail}"
        if self.state is State.PROTECTED:
            text += f", {self.loss(now_ns)}"
        return text

    def loss(self, now_ns: int) -> str:
        """What would be lost if the source were gone now: "would lose 0.8 s", or nothing."""
        return "would lose nothing" if self.exposed_ns is None else f"would lose {_span(now_ns - self.exposed_ns)}"


def judge_source(facts: SourceFacts, now_ns: int) -> Verdict:
    """The agent's answer for one volume."""
    exposed = facts.oldest_outside_ns
    if facts.failure is not None:
        since = facts.failure.since_ns if exposed is None else min(exposed, facts.failure.since_ns)
        return _source_alarm(facts, State.NOT_PROTECTED, since, facts.failure.reason, facts.failure.mend)
    if facts.paused_since_ns is not None:
        return _source_alarm(
            facts, State.PAUSED, facts.paused_since_ns, "nothing is published", "replicator agent resume"
        )
    if exposed is not None and now_ns - exposed > facts.late_after_ns:
        why = (
            "nothing was ever published"
            if facts.last_success_ns is None
            else "publishing doesn't keep up with the writes"
        )
        return _source_alarm(facts, State.NOT_PROTECTED, exposed, why, None)
    return Verdict(facts.volume, State.PROTECTED, Severity.WELL, exposed)


def judge_replica(facts: ReplicaFacts, now_ns: int) -> Verdict:
    """The receiver's answer for one volume."""
    reached = max(facts.newest_ns or 0, facts.complete_to_ns or 0) or None
    exposed = reached if facts.newest_ns is not None else None
    if facts.failure is not None:
        return _replica_alarm(facts, State.STOPPED, facts.failure)
    if facts.drift is not None:
        return _replica_alarm(facts, State.DRIFTED, facts.drift)
    if facts.waiting_count and facts.oldest_waiting_ns is not None:
        return _behind(facts, facts.oldest_waiting_ns, now_ns)
    if facts.deleted:
        detail = "at its source; the restore points stay"
        return Verdict(facts.volume, State.DELETED, Severity.WELL, detail=detail)
    if reached is None:
        return Verdict(facts.volume, State.SILENT, Severity.WARNING, detail="the log has nothing of this volume yet")
    if now_ns - reached > facts.silent_after_ns:
        detail = "the agent's last sign of life; whether the volume was written since isn't known here"
        return Verdict(
            facts.volume,
            State.SILENT,
            Severity.WARNING,
            exposed,
            reached,
            detail,
            "replicator agent status, on the source",
        )
    return Verdict(
        facts.volume, State.UP_TO_DATE, Severity.WELL, exposed, detail=f"complete to {_span(now_ns - reached)} ago"
    )


def worst_first(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """The worst at the top: by severity, then what would be lost longest, then name (T3)."""
    return sorted(verdicts, key=_rank)


def overall(verdicts: Iterable[Verdict]) -> Severity:
    """The loudest of all; WELL where there is none."""
    return max((each.severity for each in verdicts), default=Severity.WELL)


def _rank(verdict: Verdict) -> tuple[int, float, str, str]:
    exposed = float("inf") if verdict.exposed_ns is None else verdict.exposed_ns
    return (-verdict.severity, exposed, verdict.volume, verdict.state)


def _source_alarm(facts: SourceFacts, state: State, since_ns: int, why: str, mend: str | None) -> Verdict:
    return Verdict(facts.volume, state, Severity.CRITICAL, facts.oldest_outside_ns, since_ns, why, mend)


def _replica_alarm(facts: ReplicaFacts, state: State, failure: Failure) -> Verdict:
    return Verdict(
        facts.volume, state, Severity.CRITICAL, facts.newest_ns, failure.since_ns, failure.reason, failure.mend
    )


def _behind(facts: ReplicaFacts, oldest_waiting_ns: int, now_ns: int) -> Verdict:
    late_ns = now_ns - oldest_waiting_ns
    severity = Severity.WARNING if late_ns > facts.late_after_ns else Severity.WELL
    plural = "" if facts.waiting_count == 1 else "s"
    detail = f"by {facts.waiting_count} transaction{plural}, {_span(late_ns)}"
    return Verdict(facts.volume, State.BEHIND, severity, facts.newest_ns, detail=detail)


def _span(span_ns: int) -> str:
    """A span for people; clocks of two hosts may make it negative, which reads as none."""
    return format_duration(max(0, span_ns) / NS_PER_S)


def _clock(timestamp_ns: int, now_ns: int, zone: tzinfo) -> str:
    moment = datetime.fromtimestamp(timestamp_ns // NS_PER_S, UTC).astimezone(zone)
    today = datetime.fromtimestamp(now_ns // NS_PER_S, UTC).astimezone(zone).date()
    return f"{moment:%H:%M}" if moment.date() == today else f"{moment:%Y-%m-%d %H:%M}"
