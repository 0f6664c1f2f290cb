"""What a receiver says of itself: facts of its followers and its pool -> verdicts -> one document, and its text.

The first line answers how far behind the replica is, and since when; then a line per volume, worst first, with what
mends it. Pure: the daemon gathers the facts, `now_ns` comes from its clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import tzinfo
from typing import Any

from receiver.errors import DriftError
from receiver.facts import Patience, Progress, replica_facts
from receiver.mends import named
from receiver.remember import Drift
from receiver.retain import Round
from replicator.history.points import NS_PER_S, format_instant
from replicator.history.protection import Failure, Severity, Verdict, judge_replica, overall, worst_first
from replicator.history.resolve import ahead_note
from replicator.history.retention import RetentionPolicy
from replicator.units import format_duration

SCHEMA_VERSION = 1
_FIRST = "publish a volume to it, at its source: replicator agent run POOL --log LOG --listen ADDRESS"


@dataclass(frozen=True, slots=True)
class Standing:
    """What the daemon knows besides its followers: names, ids, the last retention round, troubles of its own."""

    pool: str
    log: str
    pid: int
    exporter_pid: int
    started_ns: int
    patience: Patience
    policy: RetentionPolicy
    verified: Mapping[str, tuple[int, int]]
    drifts: Mapping[str, Drift] = field(default_factory=dict)
    name: str | None = None
    last_round: Round | None = None
    troubles: tuple[str, ...] = ()


def report(progresses: Sequence[Progress], standing: Standing, now_ns: int, zone: tzinfo) -> dict[str, Any]:
    """The document that `receiver status --json` prints, and `replicator status` shows."""
    judged = [(each, _judged(each, standing, now_ns)) for each in progresses]
    order = {id(verdict): place for place, verdict in enumerate(worst_first(verdict for _, verdict in judged))}
    judged.sort(key=lambda pair: order[id(pair[1])])
    severity = overall([verdict for _, verdict in judged])
    if standing.troubles or not judged:
        severity = max(severity, Severity.WARNING)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "receiver",
        "pid": standing.pid,
        "exporter_pid": standing.exporter_pid,
        "pool": standing.pool,
        "log": standing.log,
        "name": standing.name,
        "started_ns": standing.started_ns,
        "now_ns": now_ns,
        "severity": int(severity),
        "headline": _headline([verdict for _, verdict in judged], standing, now_ns, zone),
        "mend": None if judged or standing.troubles else _FIRST,
        "volumes": [_volume(each, verdict, standing, now_ns, zone) for each, verdict in judged],
        "metadata_used": standing.last_round.metadata_used if standing.last_round else None,
        "notes": [*_notes(standing), *_clock_notes(progresses, now_ns)],
    }


def _judged(progress: Progress, standing: Standing, now_ns: int) -> Verdict:
    found = standing.drifts.get(str(progress.volume))
    drift = None
    if found is not None:
        error = DriftError(progress.name, found.number, found.span_chunks, found.spans, found.count)
        mend = error.mend and named(error.mend, standing.pool, standing.log, progress.name)
        drift = Failure(found.found_ns, error.message, mend)
    return judge_replica(replica_facts(progress, standing.patience, now_ns, drift), now_ns)


def _headline(verdicts: list[Verdict], standing: Standing, now_ns: int, zone: tzinfo) -> str:
    if standing.troubles:
        return standing.troubles[0]
    if not verdicts:
        return f"NOTHING IS REPLICATED: the log {standing.log} has no volumes yet"
    worst = worst_first(verdicts)[0]
    if len(verdicts) == 1 or worst.severity > Severity.WELL:
        return f"{worst.volume} {worst.headline(now_ns, zone)}"
    return f"{len(verdicts)} volumes, the worst: {worst.volume} {worst.headline(now_ns, zone)}"


def _volume(progress: Progress, verdict: Verdict, standing: Standing, now_ns: int, zone: tzinfo) -> dict[str, Any]:
    newest, complete = progress.newest_ns, progress.complete_to_ns
    verified = standing.verified.get(str(progress.volume))
    return {
        "volume": progress.name,
        "uuid": str(progress.volume),
        "state": str(verdict.state),
        "severity": int(verdict.severity),
        "headline": verdict.headline(now_ns, zone),
        "mend": verdict.mend,
        "activity": str(progress.activity),
        "timeline": progress.timeline,
        "number": progress.number,
        "newest_ns": newest,
        "newest_age_s": _age_s(newest, now_ns),
        "complete_to_ns": complete,
        "behind_s": _age_s(complete, now_ns),
        "agent_alive_at_ns": progress.alive_at_ns,
        "waiting_count": progress.waiting_count,
        "size_bytes": progress.size_bytes,
        "staged_chunks": progress.staged_chunks,
        "skipped": asdict(progress.skipped),
        "deleted": progress.deleted,
        "registered_number": progress.registered.number if progress.registered.at_ns else None,
        "registered_ns": progress.registered.at_ns,
        "registration_problem": progress.registered.problem,
        "verified_number": verified[0] if verified else None,
        "verified_ns": verified[1] if verified else None,
        "error": progress.failure.reason if progress.failure else None,
    }


def _notes(standing: Standing) -> list[str]:
    notes = list(standing.troubles)
    if standing.last_round and standing.last_round.metadata_used >= standing.policy.pressure_fraction:
        used = f"{standing.last_round.metadata_used:.0%} of the pool's metadata is in use"
        mend = named("replicator pool grow POOL --metadata +SIZE", standing.pool, standing.log)
        notes.append(f"{used}: restore points are spaced out ({mend})")
    return notes


def _clock_notes(progresses: Sequence[Progress], now_ns: int) -> Iterator[str]:
    for each in progresses:
        if each.newest_ns is not None and (note := ahead_note(each.name, each.number, each.newest_ns, now_ns)):
            yield note


def _age_s(timestamp_ns: int | None, now_ns: int) -> float | None:
    return None if timestamp_ns is None else max(0, now_ns - timestamp_ns) / NS_PER_S


def lines_of(document: Mapping[str, Any], zone: tzinfo) -> list[str]:
    """The same for people."""
    lines = [str(document["headline"])]
    if document.get("mend"):
        lines.append(f"  {document['mend']}")
    for each in document["volumes"]:
        lines.append(f"  {each['volume']}: {each['headline']}")
        if each["newest_ns"] is not None:
            newest = f"newest point @{each['number']} of {format_instant(each['newest_ns'], zone)}"
            age = format_duration(each["newest_age_s"])
            complete = format_instant(each["complete_to_ns"], zone) if each["complete_to_ns"] else "unknown"
            lines.append(f"    {newest}, {age} old; complete to {complete}")
        skipped = each["skipped"]
        counted = f"; skipped {skipped['stale']} of an earlier epoch" if skipped["stale"] else ""
        lines.append(f"    {_verified_text(each, zone)}; {each['activity']}{counted}")
        if each["registration_problem"]:
            lines.append(f"    not registered beside the log: {each['registration_problem']}")
        if each["mend"]:
            lines.append(f"    mend: {each['mend']}")
    return [*lines, *(f"  note: {note}" for note in document["notes"])]


def _verified_text(volume: Mapping[str, Any], zone: tzinfo) -> str:
    if volume["verified_ns"] is None:
        return "never verified"
    return f"@{volume['verified_number']} verified {format_instant(volume['verified_ns'], zone)}"
