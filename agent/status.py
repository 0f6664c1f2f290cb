"""What an agent says of itself: facts of its workers and its pool -> verdicts -> one document, and its text.

The first line answers what would be lost now, and since when; then a line per volume, worst first. Pure: the daemon
gathers `VolumeFacts` and `Room`, `now_ns` comes from its clock.

A volume counts as equal to the log up to the instant of the last cut that was published, or found unchanged: what was
written after that would be lost. So "would lose" is an upper bound, a fraction of the interval on an idle disk.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, tzinfo
from typing import Any

from replicator.history.points import NS_PER_S
from replicator.history.protection import Failure, SourceFacts, Verdict, judge_source, overall, worst_first
from replicator.units import format_duration, format_size

SCHEMA_VERSION = 1
LATE_INTERVALS = 3
LATE_MARGIN_S = 2.0


@dataclass(frozen=True, slots=True)
class VolumeFacts:
    """One volume as its worker has it; `number` 0: nothing is in the log yet."""

    name: str
    uuid: str
    created_ns: int
    interval_s: float
    timeline: int = 1
    number: int = 0
    equal_until_ns: int | None = None
    last_success_ns: int | None = None
    failure: Failure | None = None
    paused_since_ns: int | None = None
    waiting_number: int | None = None
    waiting_chunks: int = 0
    sent_bytes: int = 0
    rate_bytes_s: float = 0.0
    has_changed: bool | None = None
    base_dev_id: int | None = None
    base_since_ns: int | None = None
    group: str = ""

    def source_facts(self) -> SourceFacts:
        """As history/protection judges it."""
        late_ns = int((LATE_INTERVALS * self.interval_s + LATE_MARGIN_S) * NS_PER_S)
        outside = self.created_ns if self.equal_until_ns is None else self.equal_until_ns
        if self.equal_until_ns is None:
            late_ns = 0
        return SourceFacts(self.name, outside, late_ns, self.last_success_ns, self.failure, self.paused_since_ns)


@dataclass(frozen=True, slots=True)
class Room:
    """The pool's room: free of all bytes, and how long it lasts at the rate of the last minutes."""

    free_bytes: int
    total_bytes: int
    lasts_s: float | None = None


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """The whole agent."""

    pool: str
    log: str
    pid: int
    exporter_pid: int | None
    volumes: tuple[VolumeFacts, ...]
    room: Room | None = None


def document(facts: AgentFacts, now_ns: int, zone: tzinfo) -> dict[str, Any]:
    """The status as plain objects, worst volume first."""
    by_name = {each.name: each for each in facts.volumes}
    verdicts = worst_first(judge_source(each.source_facts(), now_ns) for each in facts.volumes)
    severity = overall(verdicts)
    head = verdicts[0] if verdicts else None
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
        "mend": head.mend if head else None,
        "volumes": [_volume(by_name[verdict.volume], verdict, now_ns, zone) for verdict in verdicts],
        "room": None if facts.room is None else asdict(facts.room),
    }


def _volume(facts: VolumeFacts, verdict: Verdict, now_ns: int, zone: tzinfo) -> dict[str, Any]:
    lost = None if verdict.exposed_ns is None else max(0, now_ns - verdict.exposed_ns) / NS_PER_S
    return {
        "volume": facts.name,
        "uuid": facts.uuid,
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
    }


def text(status: dict[str, Any]) -> str:
    """The document for people."""
    lines = [str(status["headline"])]
    if status.get("mend"):
        lines.append(f"  {status['mend']}")
    for each in status["volumes"]:
        lines.append(f"{each['volume']}: {each['headline']}")
        lines.append("  " + ", ".join(_details(each)))
    room = status.get("room")
    if room:
        lasts = "" if room["lasts_s"] is None else f", lasts {format_duration(room['lasts_s'])} at this rate"
        lines.append(
            f"room in the pool: {format_size(room['free_bytes'])} of {format_size(room['total_bytes'])}{lasts}"
        )
    if status["pid"]:
        lines.append(f"log {status['log']}, agent {status['pid']}, exporter {status['exporter_pid'] or 'none'}")
    return "\n".join(lines)


def _details(volume: dict[str, Any]) -> list[str]:
    """What a volume's second line says."""
    since = {True: "changed since", False: "nothing changed since", None: "not known whether it changed since"}
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
    return found


def _instant(timestamp_ns: int | None, zone: tzinfo) -> str | None:
    """ISO 8601 with the offset, to the millisecond."""
    if timestamp_ns is None:
        return None
    moment = datetime.fromtimestamp(timestamp_ns // NS_PER_S, zone).replace(microsecond=timestamp_ns % NS_PER_S // 1000)
    return moment.isoformat(timespec="milliseconds")
