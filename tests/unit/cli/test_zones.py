"""Z1, Z2: what TZ may say, and what local times then are. No TZ ends a command that needs none."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.cli.show import local_zone
from replicator.cli.zones import UnknownZone, zone_of
from replicator.errors import UsageError
from replicator.history.points import NS_PER_S, format_instant, parse_time
from tests.support.command_line import Command

SUMMER, WINTER = (int(datetime(2026, month, 1, 12, 5, tzinfo=UTC).timestamp()) * NS_PER_S for month in (7, 12))
RULE = "CET-1CEST,M3.5.0,M10.5.0/3"

_HEADER = b"TZif2" + bytes(15)
_BERLIN = _HEADER + bytes(19) + b"\1\0\0\0\4" + bytes(6) + b"UTC\0"


@pytest.fixture
def berlin(tmp_path: Path) -> Path:
    """A zone's file with the rule of today alone."""
    path = tmp_path / "localtime"
    path.write_bytes(2 * _BERLIN + f"\n{RULE}\n".encode())
    return path


def hours(tz: str | None, localtime: Path = Path("/nowhere")) -> tuple[int, int]:
    """What noon in summer and in winter is there, as hours; typed again it is the same instant."""
    zone = zone_of(tz, localtime)
    for instant in (SUMMER, WINTER):
        local = datetime.fromtimestamp(instant // NS_PER_S, zone).strftime("%Y-%m-%dT%H:%M:%S")
        assert parse_time(local, zone).first_ns == instant, f"{local} of {tz}"
    summer, winter = (datetime.fromtimestamp(instant // NS_PER_S, zone).hour for instant in (SUMMER, WINTER))
    return summer, winter


def test_paths(berlin: Path, tmp_path: Path) -> None:
    """TZ=:/etc/localtime is what many hosts have: that isn't UTC."""
    assert hours(f":{berlin}") == hours(str(berlin)) == (14, 13)
    assert hours(None, berlin) == (14, 13)
    assert hours(None, tmp_path / "none") == hours("", berlin) == hours(":", berlin) == (12, 12), "as date has it"


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (RULE, (14, 13)),
        (f":{RULE}", (14, 13)),
        ("UTC0", (12, 12)),
        ("UTC+3", (9, 9)),
        ("<+0330>-3:30", (15, 15)),
        ("AEST-10AEDT,M10.1.0,M4.1.0/3", (22, 23)),
    ],
)
def test_rules(rule: str, expected: tuple[int, int]) -> None:
    """As POSIX writes them."""
    assert hours(rule) == expected


def test_a_rules_changes_of_clock() -> None:
    """Twice and never, as of a named zone."""
    for text in ("2026-10-25T02:30", "2026-03-29T02:30"):
        refused = []
        for zone in (zone_of(RULE), ZoneInfo("Europe/Berlin")):
            with pytest.raises(UsageError) as caught:
                parse_time(text, zone)
            refused.append((caught.value.message, caught.value.mend))
        assert refused[0] == refused[1]


@pytest.mark.parametrize(
    "tz",
    [
        "Mars/Olympus",
        "Mars",
        "Europe",
        "../etc/passwd",
        "/nowhere",
        ":/",
        "CET-1CEST",
        "AAA24",
        "AAA-24:59:59",
        "AAA-23:30AAB,M3.2.0,M11.1.0",
        "UTC0\n",
        "UTC0,\n",
        "\0",
        "ü",
        "<",
    ],
)
def test_what_is_no_zone(tz: str) -> None:
    """Shown in UTC, which it says; a local time is refused, one with an offset isn't."""
    zone = zone_of(tz)
    assert isinstance(zone, UnknownZone)
    assert format_instant(SUMMER, zone) == "2026-07-01 12:05:00 UTC"
    assert parse_time("2026-07-01T14:05+02:00", zone).first_ns == SUMMER
    with pytest.raises(UsageError) as caught:
        parse_time("2026-07-01T14:05", zone)
    assert repr(tz) in caught.value.message and "Europe/Berlin" in str(caught.value.mend)


def test_a_torn_file_is_no_zone(berlin: Path) -> None:
    """Wherever it ends."""
    content = berlin.read_bytes()
    for length in range(len(content)):
        berlin.write_bytes(content[:length])
        with pytest.raises(UsageError, match="localtime is no zone"):
            parse_time("2026-07-01T14:05", zone_of(None, berlin))


def test_a_file_with_an_offset_that_no_time_has_is_no_zone(berlin: Path) -> None:
    """RFC 8536 lets a rule say 24 hours; so does /etc/localtime, then."""
    berlin.write_bytes(2 * _BERLIN + b"\nABC24\n")
    for zone in (zone_of(None, berlin), zone_of(f":{berlin}")):
        assert isinstance(zone, UnknownZone)
        assert format_instant(SUMMER, zone) == "2026-07-01 12:05:00 UTC"


@given(st.text(max_size=30) | st.from_regex(r"<?[A-Z]{3}>?[+-]?[0-9]{1,2}([A-Z]{3}(,M[0-9.]{5}/?[0-9]?){0,2})?"))
def test_any_tz(tz: str) -> None:
    """Z1: a zone, or UnknownZone; instants can be shown."""
    if not tz.startswith(("/", ":/")):
        assert format_instant(SUMMER, zone_of(tz))


def test_no_tz_ends_a_command(command: Command, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A point by its number is restored under any of them; only a local time needs to know."""
    log = tmp_path / "log"
    command("volume", "create", pool, "vm1", "--size", "1MiB")
    command("agent", "publish", pool, "--log", log)
    for place, tz in enumerate(("UTC0", RULE, "Mars/Olympus", ":/nowhere")):
        monkeypatch.setenv("TZ", tz)
        command("restore", log, "vm1@1", "--to", tmp_path / f"{place}.img")
        command("points", "list", log)
    error = command("restore", log, "vm1@2026-07-01", "--to", tmp_path / "x.img", "--json", code=2).error
    assert "/nowhere" in error["message"] and "Europe/Berlin" in error["mend"]
    ran = command("agent", "run", pool, "--log", log, "--cron", "0 2 * * *", code=2)
    assert "/nowhere" in ran.err, "two o'clock is a local time"
    monkeypatch.setenv("TZ", "Europe/Berlin")
    assert datetime.fromtimestamp(SUMMER // NS_PER_S, local_zone()).hour == 14


def test_a_time_from_the_list_and_from_its_json(command: Command, pool: Path, tmp_path: Path) -> None:
    """Each point is found by the time that the JSON shows, and some point of that second by the one that people see."""
    log = tmp_path / "log"
    command("volume", "create", pool, "vm1", "--size", "1MiB")
    for _ in range(3):
        command("agent", "publish", pool, "--log", log)
        command("volume", "resize", pool, "vm1", "--size", "+64KiB")
    listed = command("points", "list", log, "vm1", "--json").document
    assert len(listed) == 3
    for each in listed:
        found = command("points", "show", log, f"vm1@{each['timestamp']}", "--json").document
        assert found["number"] == each["number"]
        seconds = command("points", "show", log, f"vm1@{each['timestamp'][:19]}Z", "--json").document
        assert seconds["number"] >= each["number"] and seconds["timestamp"][:19] == each["timestamp"][:19]
