"""The default policy by example: a year of points each minute, what is materialised, and what pressure does."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from uuid import UUID

import pytest

from replicator.errors import UsageError
from replicator.history.points import NS_PER_S, RestorePoint
from replicator.history.retention import DEFAULT_POLICY, RetentionPolicy, should_materialise, spacing_ns, to_retire

V1 = UUID(int=1)
DAY_S = 86400
NOW_S = 20_000 * DAY_S + 43_200


def _point(age_s: int, *labels: str) -> RestorePoint:
    return RestorePoint(V1, 1, 10**9 - age_s, (NOW_S - age_s) * NS_PER_S, labels=labels, dev_id=1)


def _stay(points: list[RestorePoint], used: float = 0.1) -> list[RestorePoint]:
    gone = set(to_retire(points, NOW_S * NS_PER_S, DEFAULT_POLICY, used))
    return [each for each in points if each not in gone]


def test_a_year_and_more() -> None:
    """One in ten minutes for 500 days: all of a day, an hour's each for 7, a day's for 31, a month's for 12."""
    points = [_point(age) for age in range(0, 500 * DAY_S, 600)]
    ages = [(NOW_S - each.timestamp_ns // NS_PER_S) / DAY_S for each in _stay(points)]
    counts = Counter(
        "day" if a <= 1 else "week" if a <= 7 else "month" if a <= 31 else "year" if a <= 372 else "more" for a in ages
    )
    assert counts == {"day": 145, "week": 144, "month": 24, "year": 12}


@pytest.mark.parametrize("ahead_days", [2, 40, 400])
def test_a_clock_that_is_ahead_makes_nothing_old(ahead_days: int) -> None:
    """Y5: a thousand points, one a minute; only what the source says by its own clock lets time pass."""
    points = [_point(age * 60, *(["keep"] if age == 500 else [])) for age in range(1000)]
    ahead_ns = (NOW_S + ahead_days * DAY_S) * NS_PER_S
    assert to_retire(points, ahead_ns, DEFAULT_POLICY, 0.1) == []
    assert to_retire(points, ahead_ns, DEFAULT_POLICY, 0.1, NOW_S * NS_PER_S) == []
    aged = to_retire(points, ahead_ns, DEFAULT_POLICY, 0.1, ahead_ns)
    assert len(aged) > 900 and (points[500] in aged) == (ahead_days == 400)
    assert to_retire(points, NOW_S * NS_PER_S, DEFAULT_POLICY, 0.1, ahead_ns) == []


def test_nothing_to_do() -> None:
    """No points; one point however old; points of the log only."""
    assert to_retire([], 0, DEFAULT_POLICY, 1.0) == []
    assert _stay([_point(900 * DAY_S)], 1.0) == [_point(900 * DAY_S)]
    logged = [replace(_point(age), dev_id=None) for age in (800 * DAY_S, 900 * DAY_S)]
    assert _stay(logged, 1.0) == logged


def test_labels_and_holds() -> None:
    """A label keeps for 12 months, and not from three quarters of the metadata on; a hold or a lease always."""
    labelled, old = _point(100 * DAY_S + 5, "release"), _point(400 * DAY_S, "old")
    held, leased = replace(_point(450 * DAY_S), held=True), replace(_point(451 * DAY_S), leased=True)
    rest = [_point(100 * DAY_S), _point(0)]
    everything = [labelled, old, held, leased, *rest]
    assert _stay(everything) == [labelled, held, leased, *rest]
    assert _stay(everything, 0.74) == [labelled, held, leased, *rest]
    assert _stay(everything, 0.75) == [held, leased, *rest]


@pytest.mark.parametrize(
    ("used", "count"), [(0.49, 1440), (0.50, 720), (0.53, 360), (0.54, 120), (0.56, 24), (0.64, 2), (1.0, 1)]
)
def test_pressure_spaces_the_densest(used: float, count: int) -> None:
    """A day of one a minute: half of them at one half, and so on up to one."""
    assert abs(len(_stay([_point(age * 60) for age in range(1440)], used)) - count) <= 1


def test_what_is_materialised() -> None:
    """The first, one a minute, each labelled one; under pressure fewer, and then labels don't count either."""
    newest = _point(100)
    cases = [(_point(41), 0.1, False), (_point(40), 0.1, True), (_point(99, "x"), 0.1, True), (_point(40), 0.5, False)]
    cases += [(_point(-20), 0.5, True), (_point(99, "x"), 0.74, True), (_point(99, "x"), 0.75, False)]
    for point, used, expected in cases:
        assert should_materialise(point, newest, DEFAULT_POLICY, used) is expected
    assert should_materialise(_point(0), None, DEFAULT_POLICY, 1.0)
    assert spacing_ns(RetentionPolicy(materialise_every_s=600), 0.5) == 600 * NS_PER_S


def test_policies_that_make_no_sense() -> None:
    """UsageError, since they come from settings."""
    for broken in (
        {"materialise_every_s": 0},
        {"hourly_days": -1},
        {"pressure_fraction": 0.8},
        {"pressure_fraction": 0},
    ):
        with pytest.raises(UsageError):
            RetentionPolicy(**broken)
