"""What an agent says of itself: facts of its workers and its pool -> verdicts -> one document, and its text.

The first line answers what would be lost now, and since when; then a line per volume, worst first. Pure: the daemon
gathers `VolumeFacts` and `Room`, `now_ns` comes from its clock.

A volume counts as equal to the log up to the instant of the last cut that was published, or found unchanged: what was
written after that would be lost. So "would lose" is an upper bound, a fraction of the interval on an idle disk.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import datetime, tzinfo
from typing import Any

from replicator.history.points import NS_PER_S
from replicator.history.protection import (
    Failure,
    Severity,
    SourceFacts,
    State,
    Verdict,
    judge_source,
    overall,
    worst_first,
)
from replicator.units import format_duration, format_size

SCHEMA_VERSION = 1
_GIVES_WAY = {
    "drop-base": "the base is let go of (when_full = drop-base), and the next transaction compared whole,",
    "stop-writes": "it runs low, and then full: writes end with ENOSPC (when_full = stop-writes);",
}
STUCK_S = 900.0
"""Without any sign of progress for so long a worker counts as stuck: three times the longest call of a pool."""

HEARD_S = 180.0
"""A receiver that lives says so every minute; after three it is told how long it is silent."""


@dataclass(frozen=True, slots=True)
class ReceiverFacts:
    """A registered receiver: what it has verified up to, when it said so by its clock, when the volume moved on."""

    name: str
    receiver: str
    timeline: int
    number: int
    at_ns: int
    behind_since_ns: int | None = None


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """One volume as its worker has it; `number` 0: nothing is in the log yet; `uuid` empty: the pool hasn't got it.

    `late_s`: how old the oldest change outside the log may be; `silent_s`: since when the worker shows no progress;
    `resumed_ns`: when it was resumed, until a round went well since.
    """

    name: str
    uuid: str
    created_ns: int
    late_s: float
    timeline: int = 1
    number: int = 0
    equal_until_ns: int | None = None
    last_success_ns: int | None = None
    failure: Failure | None = None
    paused_since_ns: int | None = None
    resumed_ns: int | None = None
    waiting_number: int | None = None
    waiting_chunks: int = 0
    sent_bytes: int = 0
    rate_bytes_s: float = 0.0
    has_changed: bool | None = None
    base_dev_id: int | None = None
    base_since_ns: int | None = None
    group: str = ""
    schedule: str = ""
    silent_s: float = 0.0
    receivers: tuple[ReceiverFacts, ...] = ()

    @property
    def lacks_base(self) -> bool:
        """Whether the next transaction has to be found by comparing hashes."""
        return self.number > 0 and self.base_dev_id is None

    def source_facts(self, now_ns: int) -> SourceFacts:
        """As history/protection judges it."""
        late_ns = int(self.late_s * NS_PER_S)
        outside = self.created_ns if self.equal_until_ns is None else self.equal_until_ns
        if self.equal_until_ns is None:
            late_ns = 0
        failure = self.failure
        if failure is None and self.silent_s > STUCK_S:
            why = f"publishing stands still for {format_duration(self.silent_s)}: log or disk don't answer"
            failure = Failure(now_ns - int(self.silent_s * NS_PER_S), why, "look at both; then restart the agent")
        if failure is None and self.resumed_ns is not None and self.paused_since_ns is None:
            if self.has_changed is False:
                late_ns = max(late_ns, now_ns - outside)
            elif now_ns - outside > late_ns:
                ago = format_duration(max(0, now_ns - self.resumed_ns) / NS_PER_S)
                failure = Failure(outside, f"it was paused until {ago} ago; what was written meanwhile is on its way")
        return SourceFacts(self.name, outside, late_ns, self.last_success_ns, failure, self.paused_since_ns)


@dataclass(frozen=True, slots=True)
class Room:
    """The pool's room: free of all bytes, how long it lasts at the rate of the last minutes, and until it is low."""

    free_bytes: int
    total_bytes: int
    lasts_s: float | None = None
    low_in_s: float | None = None
    when_full: str = ""


@dataclass(frozen=True, slots=True)
class LogRoom:
    """The room of the file system that a directory log lies on, and how long it lasts."""

    free_bytes: int
    total_bytes: int
    lasts_s: float | None = None


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """The whole agent; `left_out`: volumes that its configuration leaves to nobody, which is no fault."""

    pool: str
    log: str
    pid: int
    exporter_pid: int | None
    volumes: tuple[VolumeFacts, ...]
    room: Room | None = None
    log_room: LogRoom | None = None
    left_out: tuple[str, ...] = ()


def document(facts: AgentFacts, now_ns: int, zone: tzinfo) -> dict[str, Any]:
    """The status as plain objects, worst volume first."""
    by_name = {each.name: each for each in facts.volumes}
    verdicts = worst_first(judge_source(each.source_facts(now_ns), now_ns) for each in facts.volumes)
    severity = overall(verdicts) if verdicts else Severity.WARNING
    head = verdicts[0] if verdicts else None
    volumes = [_volume(by_name[verdict.volume], _mended(verdict, facts.pool), now_ns, zone) for verdict in verdicts]
    more = f" ({head.volume}, the worst of {len(verdicts)})" if head and len(verdicts) > 1 else ""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "agent",
        "pool": facts.pool,
        "log": facts.log,
        "pid": facts.pid,
        "exporter_pid": facts.exporter_pid,
        "severity": int(severity),
        "protected": severity == 0 and bool(verdicts),
        "headline": head.headline(now_ns, zone) + more if head else "NOT PROTECTED: there is no volume",
        "mend": volumes[0]["mend"] if volumes else "replicator volume create POOL NAME --size SIZE",
        "volumes": volumes,
        "left_out": sorted(facts.left_out),
        "room": None if facts.room is None else asdict(facts.room),
        "log_room": None if facts.log_room is None else asdict(facts.log_room),
        "clock_ahead_s": max((_ahead_s(each, now_ns) for v in facts.volumes for each in v.receivers), default=0.0),
    }


def _mended(verdict: Verdict, pool: str) -> Verdict:
    """A paused volume's mend, with its pool."""
    return replace(verdict, mend=f"replicator agent resume {pool}") if verdict.state is State.PAUSED else verdict


def _ahead_s(receiver: ReceiverFacts, now_ns: int) -> float:
    """How far the receiver's clock is ahead of ours, at least: what it said was said before now."""
    return max(0, receiver.at_ns - now_ns) / NS_PER_S


def _volume(facts: VolumeFacts, verdict: Verdict, now_ns: int, zone: tzinfo) -> dict[str, Any]:
    lost = None if verdict.exposed_ns is None else max(0, now_ns - verdict.exposed_ns) / NS_PER_S
    return {
        "volume": facts.name,
        "uuid": facts.uuid or None,
        "group": facts.group or None,
        "severity": int(verdict.severity),
        "state": str(verdict.state),
        "headline": verdict.headline(now_ns, zone),
        "mend": verdict.mend,
        "would_lose_s": lost,
        "since": _instant(verdict.since_ns, zone),
        "timeline": facts.timeline,
        "number": facts.number,
        "in_log_up_to": _instant(facts.equal_until_ns, zone),
        "in_log_up_to_ns": facts.equal_until_ns,
        "changed_since": facts.has_changed,
        "waiting": None
        if facts.waiting_number is None
        else {"number": facts.waiting_number, "sent_chunks": facts.waiting_chunks},
        "sent_bytes": facts.sent_bytes,
        "rate_bytes_s": round(facts.rate_bytes_s),
        "base_dev_id": facts.base_dev_id,
        "base_since": _instant(facts.base_since_ns, zone),
        "base_let_go": facts.lacks_base,
        "last_success": _instant(facts.last_success_ns, zone),
        "last_success_age_s": _age_s(facts.last_success_ns, now_ns),
        "schedule": facts.schedule or None,
        "receivers": [_receiver(each, facts, now_ns, zone) for each in facts.receivers],
    }


def _age_s(then_ns: int | None, now_ns: int) -> float | None:
    return None if then_ns is None else max(0, now_ns - then_ns) / NS_PER_S


def _receiver(receiver: ReceiverFacts, volume: VolumeFacts, now_ns: int, zone: tzinfo) -> dict[str, Any]:
    """`behind`: transactions, None on another timeline; `lag_s`: how old the first one is that it lacks."""
    same = receiver.timeline == volume.timeline
    behind = max(0, volume.number - receiver.number) if same else None
    lag_s = 0.0 if behind == 0 else _age_s(receiver.behind_since_ns, now_ns)
    return {
        "name": receiver.name,
        "receiver": receiver.receiver,
        "timeline": receiver.timeline,
        "number": receiver.number,
        "behind": behind,
        "lag_s": lag_s,
        "heard": _instant(receiver.at_ns, zone),
        "heard_age_s": _age_s(receiver.at_ns, now_ns),
    }


def text(status: dict[str, Any]) -> str:
    """The document for people."""
    lines = [str(status["headline"])]
    if status.get("mend"):
        lines.append(f"  {status['mend']}")
    for each in status["volumes"]:
        lines.append(f"{each['volume']}: {each['headline']}")
        lines.append("  " + ", ".join(_details(each)))
        if each["mend"] and each["mend"] != status.get("mend"):
            lines.append(f"  {each['mend']}")
    lines += _rooms(status)
    if status["left_out"]:
        lines.append(f"not published, as configured: {', '.join(status['left_out'])}")
    if status["clock_ahead_s"] > 1:
        lines.append(f"a receiver's clock is {format_duration(status['clock_ahead_s'])} ahead of this host's")
    if status["pid"]:
        lines.append(f"log {status['log']}, agent {status['pid']}, exporter {status['exporter_pid'] or 'none'}")
    return "\n".join(lines)


def _rooms(status: dict[str, Any]) -> list[str]:
    """How much room there is, how long it lasts, and what happens then."""
    lines = []
    room, log_room = status.get("room"), status.get("log_room")
    if room:
        line = f"room in the pool: {_room(room)}"
        if room["low_in_s"] is not None and any(not _is_fine(each) for each in status["volumes"]):
            line += f"; {_GIVES_WAY.get(room['when_full'], '')} in {format_duration(room['low_in_s'])}"
        lines.append(line)
    if log_room:
        lines.append(f"room in the log: {_room(log_room)}")
    return lines


def _is_fine(volume: dict[str, Any]) -> bool:
    return bool(volume["severity"] == 0)


def _room(room: dict[str, Any]) -> str:
    lasts = "" if room["lasts_s"] is None else f", lasts {format_duration(room['lasts_s'])} at this rate"
    return f"{format_size(room['free_bytes'])} of {format_size(room['total_bytes'])}{lasts}"


def _details(volume: dict[str, Any]) -> list[str]:
    """What a volume's second line says."""
    since = {True: "changed since", False: "nothing changed since", None: "not known whether it changed since"}
    if volume["uuid"] is None:
        return ["nothing is known of it"]
    found = ["nothing is in the log yet"]
    if volume["number"]:
        found = [f"in the log up to {volume['in_log_up_to'] or 'its last start'} (transaction {volume['number']})"]
        found.append(since[volume["changed_since"]])
    waiting = volume["waiting"]
    if waiting:
        found.append(f"transaction {waiting['number']} under way: {waiting['sent_chunks']} chunks sent")
    found.append(f"{format_size(volume['rate_bytes_s'])}/s to the log")
    if volume["base_since"]:
        found.append(f"base held since {volume['base_since']}")
    if volume["base_let_go"]:
        found.append("no base: the next transaction is found by comparing hashes")
    found += [_heard(each) for each in volume["receivers"]] or ["no receiver is registered"]
    return found


def _heard(receiver: dict[str, Any]) -> str:
    """A receiver in one line."""
    behind = receiver["behind"]
    where = f"receiver {receiver['name']} has {receiver['timeline']}:{receiver['number']}"
    if behind is None:
        where += ", on another timeline"
    elif behind:
        lag = "" if receiver["lag_s"] is None else f", {format_duration(receiver['lag_s'])}"
        where += f" ({behind} behind{lag})"
    if receiver["heard_age_s"] > HEARD_S:
        where += f", silent for {format_duration(receiver['heard_age_s'])}"
    return where


def _instant(timestamp_ns: int | None, zone: tzinfo) -> str | None:
    """ISO 8601 with the offset, to the millisecond."""
    if timestamp_ns is None:
        return None
    moment = datetime.fromtimestamp(timestamp_ns // NS_PER_S, zone).replace(microsecond=timestamp_ns % NS_PER_S // 1000)
    return moment.isoformat(timespec="milliseconds")
