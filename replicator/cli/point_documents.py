"""The JSON of restore points, as `points`, `restore` and whoever else shows them print it.

JSON of a point: {"volume", "uuid", "number", "timeline", "timestamp", "timestamp_ns", "consistency", "labels",
"materialised", "size_bytes", "digest", "held", "history", "group"}; `timestamp` is ISO 8601, universal. `history` is
null, or, where pool and log have two histories, "pool", "log" or "both"; a list of such a volume ends with exit 4, one
of a damaged log with exit 3, after all that can be had was listed. `group` is null, or the
cut of several volumes that it belongs to: {"uuid", "number", "whole", "labels", "members": [{"volume", "uuid",
"number", "there"}]}.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replicator.history.groups import GroupPoint
    from replicator.history.points import RestorePoint
    from replicator.history.resolve import NamedVolume
    from replicator.repository.offer import Offer


def group_document(group: GroupPoint | None) -> dict[str, Any] | None:
    """The JSON of a group's cut; see the module."""
    if group is None:
        return None
    return {
        "uuid": str(group.group),
        "number": group.number,
        "whole": group.is_whole,
        "labels": list(group.labels),
        "members": [
            {"volume": each.name, "uuid": str(each.volume), "number": each.number, "there": each.there}
            for each in group.members
        ],
    }


def complete_document(complete_to_ns: int | None) -> dict[str, Any]:
    """Up to when the log is known to hold everything, as text and as a number."""
    return {"complete_to": None if complete_to_ns is None else _iso(complete_to_ns), "complete_to_ns": complete_to_ns}


def notes_document(offer: Offer) -> dict[str, Any]:
    """What of the volume's log can't be read, why it can't be reached, and that it tells another history; or null."""
    return {
        "damage": None if offer.damage is None else offer.damage.message,
        "log_problem": None if offer.problem is None else offer.problem.message,
        "two_histories": None if offer.divided is None else offer.divided.message(),
    }


def _iso(timestamp_ns: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(timestamp_ns / 1e9, UTC).isoformat()


def point_document(
    volume: NamedVolume, point: RestorePoint, group: GroupPoint | None = None, history: str | None = None
) -> dict[str, Any]:
    """The JSON of a point; see the module."""
    return {
        "volume": volume.name,
        "uuid": str(volume.uuid),
        "number": point.number,
        "timeline": point.timeline,
        "timestamp": _iso(point.timestamp_ns),
        "timestamp_ns": point.timestamp_ns,
        "consistency": point.consistency.value,
        "labels": list(point.labels),
        "materialised": point.materialised,
        "size_bytes": point.size_bytes,
        "digest": point.digest.hex(),
        "held": point.held,
        "history": history,
        "group": group_document(group),
    }
