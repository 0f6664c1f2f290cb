"""Restore points as values, and the ways in which people name one: `VOLUME@POINT` becomes a `PointSpecification`.

Between the command line and resolve, which finds the point that is meant among those there are.

    written                     parsed as                meaning
    VOLUME@N                    ByNumber(None, N)        transaction N on the current lineage
    VOLUME@T:N                  ByNumber(T, N)           transaction N of timeline T
    VOLUME@latest               Latest()                 the newest point of the current lineage
    VOLUME@-5m  (-1h30m)        ByAge(ns)                the latest at or before now - 5 minutes
    VOLUME@TIME                 ByTime(first, last)      the latest in TIME, or before it
    VOLUME@LABEL                ByLabel(label)           the one point with this label

TIME is ISO 8601: `2026-11-22`, `2026-11-22T14:05`, `2026-11-22 14:05:09.5`, each with `Z`, `+01:00` or `+0100` behind.
A date alone is its midnight. Without an offset it is local time, in the zone that is passed in. A TIME is as long as
what was written last: `14:05:09`, as `14:05` (its first second), is a whole second, `14:05:09.5` a tenth of one. So
what lists show to the second finds the point that they show, and of several in that second the latest.

Invariants
  R1  A local time that the clocks showed twice, or never, is refused with the offsets to choose from.
  R2  A RestorePoint's timestamp lies in 1970 to 2262 (63 bits of nanoseconds), its number is at least 1.
  R3  What is parsed is a value: the same text, zone and nothing else decide it.

Failures: UsageError.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from enum import StrEnum
from typing import TypeAlias
from uuid import UUID

from replicator.errors import UsageError
from replicator.history.names import LABELS_LIMIT, LATEST, NAME_LIMIT_BYTES, TIME_FORM, check_label, check_name, is_uuid
from replicator.units import parse_duration

NS_PER_S = 1_000_000_000
NUMBER_LIMIT = 1 << 63
"""Transaction numbers and timestamps are stored in 63 bits: at a cut each microsecond that is 292,000 years."""

TIMELINE_LIMIT = 1 << 32
"""Timelines are stored in 32 bits; each one takes a person's promote."""

DIGEST_LIMIT_BYTES = 64
"""The longest digest that any chain may use; today's has 16 bytes."""

_NUMBER = re.compile(r"(?:(\d{1,10}):)?(\d{1,19})", re.ASCII)
_AGE = re.compile(r"-((?:\d+(?:\.\d+)?(?:ms|s|m|h|d|w))+)", re.ASCII)
_AGE_PART = re.compile(r"\d+(?:\.\d+)?(?:ms|s|m|h|d|w)", re.ASCII)


class Consistency(StrEnum):
    """What a cut is worth to who reads it: a crashed machine's disk, or better."""

    CRASH = "crash"
    FILESYSTEM = "filesystem"
    APPLICATION = "application"
    CLEAN = "clean"


@dataclass(frozen=True, slots=True)
class RestorePoint:
    """A committed transaction from which the volume can be had.

    `dev_id` is the snapshot that holds it in the replica pool (materialised), or None: then it is a fold of the log.
    `branched`: its volume has several timelines, so that the number alone may mean another one's transaction.
    """

    volume: UUID
    timeline: int
    number: int
    timestamp_ns: int
    consistency: Consistency = Consistency.CRASH
    labels: tuple[str, ...] = ()
    dev_id: int | None = None
    size_bytes: int = 0
    digest: bytes = b""
    held: bool = False
    leased: bool = False
    branched: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if not (1 <= self.timeline < TIMELINE_LIMIT and 1 <= self.number < NUMBER_LIMIT):
            raise UsageError(f"no restore point has the number {self.timeline}:{self.number}")
        if not (0 <= self.timestamp_ns < NUMBER_LIMIT and 0 <= self.size_bytes < NUMBER_LIMIT):
            raise UsageError(f"no restore point has the timestamp {self.timestamp_ns} or {self.size_bytes} bytes")
        if len(self.labels) > LABELS_LIMIT or len(self.digest) > DIGEST_LIMIT_BYTES:
            raise UsageError(f"restore point {self.number} has too many labels, or too long a digest")

    @property
    def materialised(self) -> bool:
        return self.dev_id is not None

    @property
    def place(self) -> str:
        """What names this point alone behind an `@`: N, or T:N where there are several timelines."""
        return f"{self.timeline}:{self.number}" if self.branched or self.timeline > 1 else str(self.number)

    def describe(self, zone: tzinfo = UTC) -> str:
        """How messages and lists name it: number, local and universal time, labels."""
        labels = f" [{', '.join(self.labels)}]" if self.labels else ""
        return f"@{self.place} of {format_instant(self.timestamp_ns, zone)}{labels}"


def merged(points: Iterable[RestorePoint]) -> list[RestorePoint]:
    """Each point once, where a pool and a log both list it: with the snapshot of one and the labels of both.

    Points are the same if timeline, number and digest are (or one digest isn't known); by ascending number.
    """
    found: dict[tuple[UUID, int, int], list[RestorePoint]] = {}
    for point in points:
        alike = found.setdefault((point.volume, point.timeline, point.number), [])
        for index, each in enumerate(alike):
            if each.digest == point.digest or not each.digest or not point.digest:
                alike[index] = _joined(each, point)
                break
        else:
            alike.append(point)
    return sorted((each for alike in found.values() for each in alike), key=lambda each: (each.number, each.timeline))


def _joined(one: RestorePoint, other: RestorePoint) -> RestorePoint:
    return replace(
        one,
        dev_id=one.dev_id if one.dev_id is not None else other.dev_id,
        labels=tuple(dict.fromkeys(one.labels + other.labels))[:LABELS_LIMIT],
        digest=one.digest or other.digest,
        held=one.held or other.held,
        leased=one.leased or other.leased,
        branched=one.branched or other.branched,
    )


@dataclass(frozen=True, slots=True)
class ByNumber:
    """Transaction `number`, of `timeline` or (None) of the current lineage."""

    timeline: int | None
    number: int


@dataclass(frozen=True, slots=True)
class ByLabel:
    """The one point that has this label."""

    label: str


@dataclass(frozen=True, slots=True)
class ByTime:
    """The latest point up to `last_ns`; what was written begins at `first_ns`, a second or less before."""

    first_ns: int
    last_ns: int


@dataclass(frozen=True, slots=True)
class ByAge:
    """The latest point at or before now - `age_ns`."""

    age_ns: int


@dataclass(frozen=True, slots=True)
class Latest:
    """The newest point."""


Wanted: TypeAlias = ByNumber | ByLabel | ByTime | ByAge | Latest


@dataclass(frozen=True, slots=True)
class PointSpecification:
    """`VOLUME@POINT`, parsed; `volume` is a name or a UUID's text, `text` what was written behind the `@`."""

    volume: str
    wanted: Wanted
    text: str


def parse_specification(text: str, zone: tzinfo) -> PointSpecification:
    """The specification that `text` writes; local times are those of `zone`."""
    volume, at, point = text.partition("@")
    if not at or not point:
        raise UsageError(
            f"{text!r} names no point", mend=f"write {volume or 'VOLUME'}@latest, or @N, @LABEL, @TIME, @-5m"
        )
    if not is_uuid(volume):
        check_name(volume)
    return PointSpecification(volume, parse_point(point, zone), point)


def parse_point(text: str, zone: tzinfo) -> Wanted:
    """What stands behind the `@`; see the module's table."""
    if len(text) > NAME_LIMIT_BYTES:
        raise UsageError(f"a point is written in at most {NAME_LIMIT_BYTES} characters, this one has {len(text)}")
    if text == LATEST:
        return Latest()
    if match := _NUMBER.fullmatch(text):
        return _by_number(match)
    if text.startswith("-"):
        return ByAge(_parse_age_ns(text))
    if TIME_FORM.fullmatch(text):
        return parse_time(text, zone)
    return ByLabel(check_label(text))


def parse_time(text: str, zone: tzinfo) -> ByTime:
    """What an ISO 8601 time covers, in nanoseconds since 1970; without an offset it is local time of `zone` (R1)."""
    match = TIME_FORM.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text!r} is not a time", mend="write it like 2026-11-22T14:05:09, with Z or +01:00 if need be"
        )
    year, month, day, hour, minute, second, fraction, offset = match.groups()
    try:
        local = datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0))
        moment = local.replace(tzinfo=_offset(offset)) if offset else _in_zone(text, local, zone)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{text!r} is not a time: {error}") from None
    seconds = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)
    digits = fraction or ""
    first_ns = seconds * NS_PER_S + int(digits.ljust(9, "0"))
    if not 0 <= first_ns < NUMBER_LIMIT:
        raise UsageError(f"{text!r} lies before 1970 or after 2262")
    return ByTime(first_ns, first_ns + NS_PER_S // 10 ** len(digits) - 1)


def format_instant(timestamp_ns: int, zone: tzinfo = UTC) -> str:
    """A timestamp for people, local and universal: "2026-11-22 15:05:09+01:00 (14:05:09 UTC)"."""
    moment = datetime.fromtimestamp(timestamp_ns // NS_PER_S, UTC)
    local = moment.astimezone(zone)
    if local.utcoffset() == timedelta(0):
        return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
    universal = f"{moment:%H:%M:%S}" if local.date() == moment.date() else f"{moment:%Y-%m-%d %H:%M:%S}"
    return f"{local.replace(tzinfo=None).isoformat(' ')}{_offset_text(local)} ({universal} UTC)"


def _by_number(match: re.Match[str]) -> ByNumber:
    timeline, number = match[1], int(match[2])
    if not 1 <= number < NUMBER_LIMIT or (timeline is not None and not 1 <= int(timeline) < TIMELINE_LIMIT):
        raise UsageError(f"no restore point has the number {match[0]}: they begin with 1")
    return ByNumber(None if timeline is None else int(timeline), number)


def _parse_age_ns(text: str) -> int:
    match = _AGE.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not a time before now", mend="write it like -30s, -5m, -1h30m or -2d")
    age_ns = sum(round(parse_duration(part) * NS_PER_S) for part in _AGE_PART.findall(match[1]))
    if age_ns >= NUMBER_LIMIT:
        raise UsageError(f"{text!r} lies before 1970")
    return age_ns


def _offset(text: str) -> tzinfo:
    if text == "Z":
        return UTC
    digits = text[1:].replace(":", "").ljust(4, "0")
    if int(digits[2:]) >= 60:
        raise ValueError(f"the offset {text} is no time of day")
    span = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return timezone(-span if text[0] == "-" else span)


def _in_zone(text: str, local: datetime, zone: tzinfo) -> datetime:
    """`local` in `zone`, refused where the clocks showed it twice or never (R1)."""
    first, second = local.replace(tzinfo=zone, fold=0), local.replace(tzinfo=zone, fold=1)
    if first.utcoffset() == second.utcoffset():
        return first
    there = first.astimezone(UTC).astimezone(zone).replace(tzinfo=None, fold=0) == local
    how_often = "shown twice" if there else "never shown"
    raise UsageError(
        f"{text!r} was {how_often} by the clocks here, which were changed",
        mend=f"write the offset: {text}{_offset_text(first)} or {text}{_offset_text(second)}",
    )


def _offset_text(moment: datetime) -> str:
    return moment.isoformat()[19:]
