"""Which zone local times are meant in: what TZ says, read as the C library reads it, so that `date` agrees.

    TZ                                      zone
    not set                                 /etc/localtime; UTC where there is none
    empty, or `:`                           UTC
    /PATH, :/PATH                           that file
    Europe/Berlin, :Europe/Berlin           of the system's files, else of Python's own
    UTC0, CET-1CEST,M3.5.0,M10.5.0/3        POSIX: standard time, and the rule for summer time
    anything else                           UnknownZone

Invariants
  Z1  No TZ ends a command that needs no local time.
  Z2  A local time is never told by a guess: where the zone isn't known, one that is typed is refused with the mend.
      Instants are shown in UTC then, and say so.
"""

from __future__ import annotations

import re
import struct
from datetime import UTC, datetime, timedelta, tzinfo
from io import BytesIO
from pathlib import Path
from zoneinfo import ZoneInfo

from replicator.errors import UsageError

LOCALTIME = Path("/etc/localtime")
"""The host's zone, where TZ says nothing else."""

_POSIX = re.compile(r"(?:[A-Za-z]{3,}|<[A-Za-z0-9+-]{3,}>)[+-]?\d[!-~]*", re.ASCII)
"""An abbreviation, and its offset: without one it is a name."""

_RULE_AT_END = re.compile(rb"[\n!-~]\n\Z")
"""How files end from version 2 on: a line with a rule, or an empty one."""

_FILE_BYTES_MAX = 1 << 20
"""The largest of the system's has a few KiB."""

_NO_ZONE = (OSError, ValueError, KeyError, struct.error, AssertionError)
"""What zoneinfo raises: for a folder, what is no name, a name that it hasn't; and the last two for torn files."""


class UnknownZone(tzinfo):
    """The zone of a TZ that can't be read (Z2): instants come out in UTC, a local time is refused."""

    def __init__(self, said: str) -> None:
        self.said = said

    def refusal(self) -> UsageError:
        """What whoever needs the zone is told."""
        return UsageError(
            f"local times can't be told: {self.said}",
            mend="set TZ to a name, such as Europe/Berlin, or add Z or +01:00 to a time",
        )

    def utcoffset(self, dt: datetime | None) -> timedelta | None:
        raise self.refusal()

    def dst(self, dt: datetime | None) -> timedelta | None:
        raise self.refusal()

    def tzname(self, dt: datetime | None) -> str | None:
        raise self.refusal()

    def fromutc(self, dt: datetime) -> datetime:
        """In UTC, which is all that is known."""
        return dt.replace(tzinfo=UTC)


def zone_of(tz: str | None, localtime: Path = LOCALTIME) -> tzinfo:
    """The zone that TZ means, by the module's table; `tz` None where it isn't set."""
    try:
        zone = _zone(tz, localtime)
        for month in (1, 7):
            datetime(2026, month, 1, tzinfo=zone).utcoffset()  # a rule may have an offset of a day, which no time has
        return zone
    except _NO_ZONE:
        return UnknownZone(f"{localtime} is no zone" if tz is None else f"TZ is {tz!r}, which is no zone that is known")


def require_known(zone: tzinfo) -> None:
    """UsageError where local times will be needed, and the zone isn't known (Z2)."""
    if isinstance(zone, UnknownZone):
        raise zone.refusal()


def _zone(tz: str | None, localtime: Path) -> tzinfo:
    if tz is None:
        return _of_file(localtime) if localtime.exists() else UTC
    name = tz.removeprefix(":")
    if not name:
        return UTC
    return _of_file(Path(name)) if name.startswith("/") else _named(name)


def _of_file(path: Path) -> tzinfo:
    with path.open("rb") as file:
        content = file.read(_FILE_BYTES_MAX)
    if content[4:5] != b"\0" and not _RULE_AT_END.search(content):
        raise ValueError(f"{path} is torn")
    return ZoneInfo.from_file(BytesIO(content + b"\n"))  # which looks for a line's end for ever


def _named(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except _NO_ZONE:
        if not _POSIX.fullmatch(name):
            raise
    return ZoneInfo.from_file(BytesIO(_zone_file(name)))


def _zone_file(rule: str) -> bytes:
    """A zone's file (RFC 8536, version 2) that knows no past but its rule: zoneinfo reads rules from files only."""
    header = b"TZif2" + bytes(15) + struct.pack(">6L", 0, 0, 0, 0, 1, 4)
    data = struct.pack(">lBB", 0, 0, 0) + b"UTC\0"
    return 2 * (header + data) + b"\n" + rule.encode("ascii") + b"\n"
