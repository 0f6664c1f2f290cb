"""R1 to R3 and N1, N2: every way to write a point, local times, names and labels; then which point is meant."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.errors import NotFoundError, ReplicatorError, UsageError
from replicator.history.lineage import Lineage, Timeline
from replicator.history.names import check_label, check_name
from replicator.history.points import (
    NS_PER_S,
    ByAge,
    ByLabel,
    ByNumber,
    ByTime,
    Consistency,
    Latest,
    RestorePoint,
    Wanted,
    format_instant,
    merged,
    parse_point,
    parse_specification,
    parse_time,
)
from replicator.history.resolve import (
    AmbiguousPointError,
    AmbiguousVolumeError,
    BeyondCompleteError,
    NamedVolume,
    PointNotFoundError,
    StampedAheadError,
    resolve,
    resolve_volume,
)

BERLIN = ZoneInfo("Europe/Berlin")
V1 = UUID(int=1)


def _ns(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * NS_PER_S


def _second(text: str) -> ByTime:
    return ByTime(_ns(text), _ns(text) + NS_PER_S - 1)


def _within(text: str, first_ns: int, last_ns: int) -> ByTime:
    return ByTime(_ns(text) + first_ns, _ns(text) + last_ns)


WRITTEN: list[tuple[str, Wanted]] = [
    ("1041", ByNumber(None, 1041)),
    ("2:1041", ByNumber(2, 1041)),
    ("latest", Latest()),
    ("Latest", ByLabel("Latest")),
    ("-5m", ByAge(300 * NS_PER_S)),
    ("-1h30m", ByAge(5400 * NS_PER_S)),
    ("-0.5s", ByAge(NS_PER_S // 2)),
    ("-250ms", ByAge(NS_PER_S // 4)),
    ("2026-11-22", _second("2026-11-21T23:00:00+00:00")),
    ("2026-11-22T14:05", _second("2026-11-22T13:05:00+00:00")),
    ("2026-07-22 14:05:09", _second("2026-07-22T12:05:09+00:00")),
    ("2026-07-22 14:05:09Z", _second("2026-07-22T14:05:09+00:00")),
    ("2026-11-22T14:05:09.5+05:30", _within("2026-11-22T08:35:09+00:00", 500_000_000, 599_999_999)),
    ("2026-11-22T14:05:09.000000001-0800", _within("2026-11-22T22:05:09+00:00", 1, 1)),
    ("2026-10-25T02:30+02:00", _second("2026-10-25T00:30:00+00:00")),
    ("before upgrade", ByLabel("before upgrade")),
    ("v1.2", ByLabel("v1.2")),
    ("5m", ByLabel("5m")),
    ("a:b", ByLabel("a:b")),
]


@pytest.mark.parametrize(("text", "wanted"), WRITTEN)
def test_every_way_to_write_a_point(text: str, wanted: Wanted) -> None:
    """The module's table, and the contract of the command line."""
    specification = parse_specification(f"vm-disk@{text}", BERLIN)
    assert (specification.volume, specification.wanted, specification.text) == ("vm-disk", wanted, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "vm",
        "vm@",
        "@latest",
        "a/b@1",
        "a:b@1",
        "vm@0",
        "vm@0:1",
        "vm@1:0",
        "vm@9999999999999999999",
        "vm@5000000000:1",
        "vm@-5",
        "vm@-",
        "vm@-m",
        "vm@-5x",
        "vm@-99999999w",
        "vm@+5m",
        "vm@a@b",
        "vm@a/b",
        "vm@ x",
        "vm@\x07",
        "vm@" + "x" * 256,
        "vm@2026-02-30",
        "vm@2026-11-22T25:00",
        "vm@1969-01-01",
        "vm@2263-01-01",
        "vm@2026-11-22T14:05+25:00",
        "vm@2026-11-22T14:05+01:60",
        "vm@0000-01-01",
        "vm@0001-01-01",
        "vm@9999-12-31T23:59:59-14:00",
    ],
)
def test_what_names_no_point(text: str) -> None:
    """UsageError (exit 2) before anything is looked up."""
    with pytest.raises(UsageError):
        parse_specification(text, BERLIN)


@pytest.mark.parametrize(("text", "why"), [("2026-10-25T02:30", "shown twice"), ("2026-03-29T02:30", "never shown")])
def test_local_times_that_the_clocks_changed(text: str, why: str) -> None:
    """R1: refused with both offsets."""
    with pytest.raises(UsageError, match=why) as caught:
        parse_time(text, BERLIN)
    assert caught.value.mend is not None and f"{text}+01:00" in caught.value.mend and "+02:00" in caught.value.mend
    assert parse_time(text, UTC).first_ns > 0


@pytest.mark.parametrize(
    ("zone", "text"),
    [
        (UTC, "2026-11-22 14:05:09 UTC"),
        (BERLIN, "2026-11-22 15:05:09+01:00 (14:05:09 UTC)"),
        (timezone(timedelta(hours=12)), "2026-11-23 02:05:09+12:00 (2026-11-22 14:05:09 UTC)"),
    ],
)
def test_instants_for_people(zone: tzinfo, text: str) -> None:
    """Local and universal, always both."""
    assert format_instant(_ns("2026-11-22T14:05:09+00:00"), zone) == text


@given(st.text(max_size=40))
def test_a_valid_label_is_parsed_as_itself(text: str) -> None:
    """N1; and nothing but UsageError comes out of any text."""
    try:
        label = check_label(text)
    except UsageError:
        return
    assert parse_specification(f"vm@{label}", UTC).wanted == ByLabel(label)


@given(st.text(alphabet="0123456789-:.TZ+ mshdw@", max_size=30))
def test_texts_that_nearly_are_times(text: str) -> None:
    """Whatever is typed: a value or UsageError."""
    with contextlib.suppress(UsageError):
        parse_point(text, BERLIN)


@pytest.mark.parametrize("name", ["vm", "db.data", "größe", "thin-7", "a b", "1041", "latest"])
def test_names_that_may_be(name: str) -> None:
    """A volume's name may be what a label may not."""
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a@b",
        "a/b",
        "a:b",
        "-x",
        " a",
        "a ",
        "a\n",
        "a\0",
        "\udcff",
        "x" * 256,
        "ü" * 128,
        str(UUID(int=1)),
        UUID(int=1).hex,
    ],
)
def test_names_that_may_not_be(name: str) -> None:
    """N2."""
    with pytest.raises(UsageError):
        check_name(name)


# ---- which point is meant ----------------------------------------------------------------------------------------

START = _ns("2026-11-22T12:00:00+00:00")
FORKED = Lineage((Timeline(1), Timeline(2, 1, 6)))


def _point(number: int, timeline: int = 1, *labels: str, dev_id: int | None = None) -> RestorePoint:
    return RestorePoint(
        V1,
        timeline,
        number,
        START + number * NS_PER_S,
        Consistency.CRASH,
        labels,
        dev_id,
        1,
        bytes([timeline, number % 256]),
    )


POINTS = [_point(n) for n in range(1, 10) if n != 4] + [
    _point(10, 1, "nightly"),
    _point(11, 1, "release", "twice"),
    _point(12, 1, "twice"),
]
NOW = START + 20 * NS_PER_S


def _meant(
    text: str, points: list[RestorePoint] = POINTS, lineage: Lineage | None = None, **more: bool
) -> tuple[int, int]:
    found = resolve(
        parse_specification(f"vm@{text}", UTC),
        points,
        now_ns=NOW,
        complete_to_ns=START + 15 * NS_PER_S,
        lineage=lineage,
        accept_gap=more.get("accept_gap", False),
    )
    return found.timeline, found.number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5", 5),
        ("1:5", 5),
        ("latest", 12),
        ("nightly", 10),
        ("release", 11),
        ("2026-11-22T12:00:05Z", 5),
        ("2026-11-22T12:00:04.999Z", 3),
        ("2026-11-22T12:00:15Z", 12),
        ("-5s", 12),
        ("-9s", 11),
        ("-16s", 3),
    ],
)
def test_the_point_that_is_meant(text: str, number: int) -> None:
    """By number, label, time, age; a time up to *complete to* is answered though no point is that new."""
    assert _meant(text) == (1, number)


@pytest.mark.parametrize("text", ["2026-11-22T12:00:15.1Z", "2027-01-01", "-4s"])
def test_beyond_complete_to(text: str) -> None:
    """V1: refused with the newest time there is; accepted gaps are answered with the newest point."""
    with pytest.raises(BeyondCompleteError, match="12:00:15 UTC") as caught:
        _meant(text)
    assert caught.value.complete_to_ns == START + 15 * NS_PER_S and caught.value.newest.number == 12
    assert caught.value.mend is not None and caught.value.exit_code == 5
    assert _meant(text, accept_gap=True) == (1, 12)


def _ahead(by_s: int, since: int = 6) -> list[RestorePoint]:
    """The points, from number `since` on stamped by a clock that was ahead."""
    return [replace(each, timestamp_ns=each.timestamp_ns + by_s * NS_PER_S * (each.number >= since)) for each in POINTS]


@pytest.mark.parametrize("text", ["-5s", "-9s", "2026-11-22T12:00:05Z"])
def test_points_of_a_clock_that_was_ahead(text: str) -> None:
    """V4: what was cut after the jump may have been there at the time; numbers, labels and `latest` are as ever."""
    ahead = _ahead(24 * 3600)
    with pytest.raises(StampedAheadError, match=r"@5 .*@6 .*23 h 59 m.*ahead") as caught:
        _meant(text, ahead)
    assert caught.value.exit_code == 5 and caught.value.mend is not None and "--accept-gap" in caught.value.mend
    assert (caught.value.before.number, caught.value.behind.number) == (5, 6)
    assert _meant(text, ahead, accept_gap=True) == (1, 5)
    assert [_meant(each, ahead) for each in ("7", "nightly", "latest")] == [(1, 7), (1, 10), (1, 12)]


def test_a_clock_that_was_ahead_says_nothing_of_what_was_before() -> None:
    """The point behind the one that is meant was stamped rightly: later jumps don't matter."""
    assert _meant("-17s", _ahead(24 * 3600, since=8)) == (1, 3)


@pytest.mark.parametrize(("by_s", "number"), [(0, 12), (1, 12), (5, 10), (30, 5), (74, 5)])
def test_clocks_that_differ_a_little(by_s: int, number: int) -> None:
    """A source whose points are up to a minute ahead of now is answered by its stamps, as ever."""
    assert _meant("-5s", _ahead(by_s)) == (1, number)


@pytest.mark.parametrize("text", ["4", "13", "2:5", "no-such-label", "2026-11-22T12:00:00Z", "-1h"])
def test_points_that_are_not_there(text: str) -> None:
    """Exit 5, and what there is."""
    with pytest.raises(PointNotFoundError, match=r"@12|oldest is @1") as caught:
        _meant(text)
    assert len(caught.value.points) == len(POINTS)


def test_nothing_there_yet() -> None:
    """A volume whose first transaction hasn't come."""
    for text in ("latest", "-5s", "1", "x"):
        with pytest.raises(PointNotFoundError):
            _meant(text, [])


def test_ambiguous_points() -> None:
    """V3: one label twice; one number with two contents (a fork). A pool's and a log's view of one point are one."""
    with pytest.raises(AmbiguousPointError, match="names 2 points") as caught:
        _meant("twice")
    assert [each.number for each in caught.value.candidates] == [11, 12] and caught.value.exit_code == 4
    with pytest.raises(AmbiguousPointError):
        _meant("5", [*POINTS, replace(_point(5), digest=b"other")])
    assert _meant("5", [*POINTS, replace(_point(5), dev_id=9)]) == (1, 5)


def test_timelines() -> None:
    """V2: what a promote left behind is found by timeline and number only."""
    points = [*POINTS, _point(7, 2), _point(8, 2, "nightly")]
    assert [_meant(text, points, FORKED) for text in ("5", "7", "1:7", "latest", "nightly")] == [
        (1, 5),
        (2, 7),
        (1, 7),
        (2, 8),
        (2, 8),
    ]
    with pytest.raises(PointNotFoundError):
        _meant("12", points, FORKED)
    with pytest.raises(PointNotFoundError):
        _meant("release", points, FORKED)


def test_merged_points_join_what_each_side_knows() -> None:
    """The pool's snapshot, the log's labels; unknown digests match."""
    pool = replace(_point(3, 1, "mine"), dev_id=7, held=True)
    log = replace(_point(3, 1, "log"), digest=b"")
    (joined,) = merged([log, pool])
    assert (joined.dev_id, joined.labels, joined.digest, joined.held) == (7, ("log", "mine"), pool.digest, True)


def test_volumes_by_name_and_uuid() -> None:
    """A name before a UUID; a name that two hosts use is exit 4 with both."""
    one, two, three = (
        NamedVolume(UUID(int=n), name, host) for n, name, host in ((1, "a", "h1"), (2, "a", "h2"), (3, "b", ""))
    )
    assert resolve_volume("b", [one, two, three]) is three
    assert resolve_volume(str(UUID(int=2)), [one, two, three]) is two
    with pytest.raises(AmbiguousVolumeError, match=r"h1.*h2"):
        resolve_volume("a", [one, two, three])
    with pytest.raises(NotFoundError, match="there are a, a, b"):
        resolve_volume("c", [one, two, three])
    with pytest.raises(NotFoundError, match="there are none"):
        resolve_volume("c", [])


def test_restore_points_have_limits() -> None:
    """R2."""
    for broken in (
        {"number": 0},
        {"timeline": 0},
        {"timestamp_ns": -1},
        {"timestamp_ns": 1 << 63},
        {"labels": ("x",) * 33},
    ):
        with pytest.raises(ReplicatorError):
            replace(_point(1), **broken)
