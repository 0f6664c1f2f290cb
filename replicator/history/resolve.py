"""Which restore point is meant: a parsed specification against the points there are.

Behind points (what was written), before plan (how to get it). Everything is passed in: the points of *one* volume,
now, the instant up to which the log is known to be complete, and the lineage that tells branches apart.

    wanted       answer                                                refused
    ByNumber     that transaction on the current lineage (or timeline)    PointNotFoundError
    ByLabel      the one point that has it                                PointNotFoundError, AmbiguousPointError
    ByTime/Age   the latest in it or before, on the current lineage       BeyondCompleteError, PointAwayError,
                                                                          StampedAheadError, PointNotFoundError
    Latest       the newest of the current lineage                        PointNotFoundError

Invariants
  V1  A time later than *complete to* is refused with the newest time there is, unless the gap is accepted: an answer
      that is silently older than what was asked for is a lost write nobody hears of. A written time is a second, or
      less, and isn't later as long as it begins by then: the time that a refusal names, to the second, is answered,
      with what is known of that second. Nor is a point answered where a later one is known that the time means, and
      only a log has that is away.
  V2  Points of a branch that was left by a promote are found only by timeline and number (`@2:1041`).
  V3  Of two points that one number names (two histories) neither is chosen.
  V4  Nor is a time answered out of a clock that was ahead: where the point behind the answer is stamped later than now
      (by more than clocks differ), it may have been there at that time, and hours of others with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import TYPE_CHECKING
from uuid import UUID

from replicator.errors import ConflictError, NotFoundError
from replicator.history.points import (
    NS_PER_S,
    ByLabel,
    ByNumber,
    ByTime,
    Latest,
    PointSpecification,
    RestorePoint,
    format_instant,
    merged,
)
from replicator.units import format_duration

if TYPE_CHECKING:
    from replicator.history.lineage import Lineage

_NAMED_LIMIT = 8
"""How many names or points a refusal lists: enough to see a typing error, short enough to be read."""


SKEW_NS = 60 * NS_PER_S
"""By how much clocks may differ before a time is refused: of hosts that keep time it is less than a second."""


class PointNotFoundError(NotFoundError):
    """No such point; `points` are those there are."""

    def __init__(self, message: str, points: Sequence[RestorePoint], *, mend: str | None = None) -> None:
        super().__init__(message, mend=mend)
        self.points = tuple(points)


class UnansweredTimeError(NotFoundError):
    """A time that is answered only if --accept-gap is given."""


def by_number(pool: str) -> str:
    """The mend of whoever has no --accept-gap."""
    return f"name the point by its number: replicator points list {pool} shows them"


class BeyondCompleteError(UnansweredTimeError):
    """A time beyond what the log is known to hold; `newest` is the latest that can be had."""

    def __init__(self, message: str, complete_to_ns: int, newest: RestorePoint) -> None:
        super().__init__(message, mend="ask for the time named here, or take --accept-gap for the newest point")
        self.complete_to_ns = complete_to_ns
        self.newest = newest


class PointAwayError(UnansweredTimeError):
    """A time whose point is known, and can't be had now; `before` is the last one before it that can."""

    def __init__(self, message: str, before: RestorePoint) -> None:
        mend = (
            f"put its log back; or name @{before.place}, or take --accept-gap, for the last one before that can be had"
        )
        super().__init__(message, mend=mend)
        self.before = before


class StampedAheadError(UnansweredTimeError):
    """A time that the points' stamps don't tell: `before` is the last one stamped by it, `behind` is stamped ahead."""

    def __init__(self, message: str, before: RestorePoint, behind: RestorePoint) -> None:
        mend = (
            "set the clock that is wrong; name the point by its number (points list has them in the order in which they"
            f" were cut), or take --accept-gap for @{before.place}"
        )
        super().__init__(message, mend=mend)
        self.before, self.behind = before, behind


class AmbiguousPointError(ConflictError):
    """More than one point answers; `candidates` are they."""

    def __init__(self, message: str, candidates: Sequence[RestorePoint]) -> None:
        super().__init__(message, mend="name the one you mean by its number, or by TIMELINE:N")
        self.candidates = tuple(candidates)


class AmbiguousVolumeError(ConflictError):
    """Two hosts use one name; `volumes` are both."""

    def __init__(self, name: str, volumes: Sequence[NamedVolume]) -> None:
        listed = "; ".join(f"{each.uuid}{f' ({each.host})' if each.host else ''}" for each in volumes)
        super().__init__(f"{name!r} is the name of {len(volumes)} volumes: {listed}", mend="write the UUID of one")
        self.volumes = tuple(volumes)


@dataclass(frozen=True, slots=True)
class NamedVolume:
    """A volume as a log or a pool lists it; `host` tells two of one name apart, where it is known."""

    uuid: UUID
    name: str
    host: str = ""


def resolve_volume(wanted: str, volumes: Iterable[NamedVolume]) -> NamedVolume:
    """The volume whose name or UUID is `wanted`."""
    known = list(volumes)
    found = [each for each in known if wanted == each.name] or [each for each in known if _same_uuid(wanted, each)]
    if len(found) > 1:
        raise AmbiguousVolumeError(wanted, found)
    if not found:
        raise NotFoundError(f"there is no volume {wanted!r}; there {_listed([each.name for each in known])}")
    return found[0]


def resolve(
    specification: PointSpecification,
    points: Iterable[RestorePoint],
    *,
    now_ns: int,
    complete_to_ns: int | None,
    lineage: Lineage | None = None,
    accept_gap: bool = False,
    zone: tzinfo = UTC,
    away: Iterable[RestorePoint] = (),
) -> RestorePoint:
    """The point of one volume that `specification` means; `complete_to_ns` None where no beacon was ever seen.

    `away`: points that are known, and can't be had now.
    """
    everything = merged(points)
    wanted = specification.wanted
    if isinstance(wanted, ByNumber) and wanted.timeline is not None:
        on_timeline = [each for each in everything if (each.timeline, each.number) == (wanted.timeline, wanted.number)]
        return _only(specification, on_timeline, everything, zone)
    known = _of_current_lineage(everything, lineage)
    if isinstance(wanted, ByNumber):
        number = wanted.number
        return _named(specification, lambda each: each.number == number, known, everything, zone)
    if isinstance(wanted, ByLabel):
        label = wanted.label
        return _named(specification, lambda each: label in each.labels, known, everything, zone)
    if not known:
        raise PointNotFoundError(f"{specification.volume!r} has no restore points yet", everything)
    newest = max(known, key=_order)
    if isinstance(wanted, Latest):
        return newest
    asked = wanted if isinstance(wanted, ByTime) else ByTime(now_ns - wanted.age_ns, now_ns - wanted.age_ns)
    found = _at_or_before(specification, asked, known, newest, complete_to_ns, accept_gap, zone)
    if not accept_gap:
        _require_here(specification, asked, found, _of_current_lineage(list(away), lineage), zone)
        _require_stamps(specification, found, known, now_ns, zone)
    return found


def ahead_note(volume: str, number: int, timestamp_ns: int, now_ns: int) -> str | None:
    """What is to be said of a volume whose newest point is stamped ahead of now, by more than clocks differ."""
    if timestamp_ns <= now_ns + SKEW_NS:
        return None
    ahead = format_duration((timestamp_ns - now_ns) / NS_PER_S)
    return (
        f"{volume}: @{number} is stamped {ahead} ahead of this host's clock: set the clock that is wrong; until then a"
        " time (@-5m) may name no point, and age and lateness aren't seen"
    )


def _require_here(
    specification: PointSpecification, asked: ByTime, found: RestorePoint, away: list[RestorePoint], zone: tzinfo
) -> None:
    """V1: `found` is the last of that time that is known, not only of those that can be had."""
    later = [each for each in away if _order(found) < _order(each) and each.timestamp_ns <= asked.last_ns]
    if later:
        meant = max(later, key=_order)
        raise PointAwayError(
            f"@{specification.text} means {meant.describe(zone)}, which only its log has, and that is away;"
            f" the last one before it here is {found.describe(zone)}",
            found,
        )


def _require_stamps(
    specification: PointSpecification, found: RestorePoint, known: list[RestorePoint], now_ns: int, zone: tzinfo
) -> None:
    """V4: `found` is the last before that time only if the one behind it was stamped by a clock that was right."""
    behind = min((each for each in known if _order(each) > _order(found)), key=_order, default=None)
    if behind is not None and behind.timestamp_ns > now_ns + SKEW_NS:
        ahead = format_duration((behind.timestamp_ns - now_ns) / NS_PER_S)
        raise StampedAheadError(
            f"@{specification.text} can't be told by the points' times: the last one before it is"
            f" {found.describe(zone)}, but the next, {behind.describe(zone)}, is {ahead}"
            " ahead of this host's clock, and may have been cut before that time as well",
            found,
            behind,
        )


def _at_or_before(
    specification: PointSpecification,
    asked: ByTime,
    known: list[RestorePoint],
    newest: RestorePoint,
    complete_to_ns: int | None,
    accept_gap: bool,
    zone: tzinfo,
) -> RestorePoint:
    reached_ns = max(newest.timestamp_ns, complete_to_ns or 0)
    if asked.first_ns > reached_ns and not accept_gap:
        raise BeyondCompleteError(
            f"@{specification.text} is later than what is known to be complete: {format_instant(reached_ns, zone)};"
            f" the newest point is {newest.describe(zone)}",
            reached_ns,
            newest,
        )
    before = [each for each in known if each.timestamp_ns <= asked.last_ns]
    if not before:
        oldest = min(known, key=_order)
        raise PointNotFoundError(
            f"there is no point at or before @{specification.text}; the oldest is {oldest.describe(zone)}", known
        )
    return max(before, key=_order)


def _of_current_lineage(points: list[RestorePoint], lineage: Lineage | None) -> list[RestorePoint]:
    """The points that the newest timeline goes back through (V2)."""
    if lineage is None:
        current = max((each.timeline for each in points), default=1)
        return [each for each in points if each.timeline == current]
    highest = max((each.number for each in points), default=0)
    numbers = {each.timeline: range(each.begin, each.end) for each in lineage.path(lineage.current, highest)}
    return [each for each in points if each.number in numbers.get(each.timeline, ())]


def _named(
    specification: PointSpecification,
    is_it: Callable[[RestorePoint], bool],
    known: list[RestorePoint],
    everything: list[RestorePoint],
    zone: tzinfo,
) -> RestorePoint:
    """The one of `known`; what is on a branch that was left is refused by its full name (V2)."""
    found = [each for each in known if is_it(each)]
    left = [] if found else [each for each in everything if is_it(each)]
    if left:
        listed = "; ".join(each.describe(zone) for each in left[:_NAMED_LIMIT])
        raise PointNotFoundError(
            f"@{specification.text} is on a branch of {specification.volume!r} that was left: it is {listed}",
            known,
            mend=f"name it with its timeline: {specification.volume}@{left[0].timeline}:{left[0].number}",
        )
    return _only(specification, found, known, zone)


def _only(
    specification: PointSpecification, found: list[RestorePoint], known: list[RestorePoint], zone: tzinfo
) -> RestorePoint:
    if len(found) == 1:
        return found[0]
    if found:
        listed = "; ".join(each.describe(zone) for each in found[:_NAMED_LIMIT])
        raise AmbiguousPointError(f"@{specification.text} names {len(found)} points: {listed}", found)
    raise PointNotFoundError(
        f"{specification.volume!r} has no point @{specification.text}; {_there_are(known, zone)}",
        known,
        mend=f"replicator points list shows the points of {specification.volume}",
    )


def _there_are(known: list[RestorePoint], zone: tzinfo) -> str:
    if not known:
        return "it has none yet"
    labels = sorted({label for each in known for label in each.labels})
    named = (
        f", labelled {', '.join(labels[:_NAMED_LIMIT])}{' …' if len(labels) > _NAMED_LIMIT else ''}" if labels else ""
    )
    oldest, newest = min(known, key=_order), max(known, key=_order)
    return f"there are {len(known)}, from {oldest.describe(zone)} to {newest.describe(zone)}{named}"


def _listed(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:_NAMED_LIMIT])
    return f"are {shown}{' …' if len(names) > _NAMED_LIMIT else ''}" if names else "are none"


def _order(point: RestorePoint) -> tuple[int, int]:
    """Along one lineage numbers only go up, whatever clocks do: the log's order decides."""
    return (point.number, point.timeline)


def _same_uuid(text: str, volume: NamedVolume) -> bool:
    try:
        return UUID(text) == volume.uuid
    except ValueError:
        return False
