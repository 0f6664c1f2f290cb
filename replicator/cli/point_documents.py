"""The JSON of restore points, as `points`, `restore` and whoever else shows them print it.

JSON of a point: {"volume", "uuid", "number", "timeline", "timestamp", "timestamp_ns", "consistency", "labels",
"materialised", "size_bytes", "digest", "held", "history", "group"}; `timestamp` is ISO 8601, universal, cut off after
microseconds, so that it finds this point as a TIME (history/points). `history` is null, or, where pool and log have two
histories, "pool", "log" or "both"; a list of such a volume ends with exit 4, one of a damaged log with exit 3, after
all that can be had was listed. `group` is null, or the cut of several volumes that it belongs to: {"uuid", "number",
"whole", "labels", "members": [{"volume", "uuid", "number", "there"}]}.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replicator.history.groups import GroupPoint
    from replicator.history.points import RestorePoint
    from replicator.history.resolve import NamedVolume
    from replicator.repository.offer import Offer
    from replicator.repository.source import OpenedPoint, Source


def taken_document(source: Source, taken: OpenedPoint) -> dict[str, Any]:
    """The JSON of a point that a command took, with all that is to be known of it."""
    offer = source.offer(taken.volume)
    group = source.group_of(offer, taken.point)
    return {
        "point": point_document(taken.volume, taken.point, group, offer.history_of(taken.point)),
        **notes_document(offer),
        **complete_document(taken.complete_to_ns),
    }


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
    """What of the volume's log can't be read, why it can't be reached, that it tells another history; or null each.

    `unkept`: the point that the pool itself is at, where that is later than all that can be had.
    """
    return {
        "damage": None if offer.damage is None else offer.damage.message,
        "log_problem": None if offer.problem is None else offer.problem.message,
        "two_histories": None if offer.divided is None else offer.divided.message(),
        "unkept": None if offer.unkept is None else point_document(offer.volume, offer.unkept),
    }


def _iso(timestamp_ns: int) -> str:
    from datetime import UTC, datetime

    seconds, within_ns = divmod(timestamp_ns, 10**9)
    moment = datetime.fromtimestamp(seconds, UTC).replace(microsecond=within_ns // 1000)
    return moment.isoformat(timespec="microseconds")


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
