"""Y1 to Y4 of history/retention, for any points, policies, instants and use of the metadata."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from replicator.history.points import NS_PER_S, RestorePoint
from replicator.history.retention import DEFAULT_POLICY, RetentionPolicy, to_retire

VOLUME = UUID(int=1)
NOW_NS = 1_795_000_000 * NS_PER_S
SPAN_S = 500 * 86400
DAY_NS = 86400 * NS_PER_S

policies = st.one_of(
    st.just(DEFAULT_POLICY),
    st.builds(
        RetentionPolicy,
        keep_all_days=st.integers(0, 3),
        hourly_days=st.integers(0, 10),
        daily_days=st.integers(0, 60),
        monthly_count=st.integers(0, 14),
        pressure_fraction=st.floats(0.2, 0.6),
        labelled_pressure_fraction=st.floats(0.6, 1.0),
    ),
)
fractions = st.floats(0.0, 1.0)


@st.composite
def histories(draw: st.DrawFn) -> list[RestorePoint]:
    """Up to 80 points, bunched (minutes apart) and scattered (months apart); a few labelled, held, leased."""
    steps = draw(
        st.lists(
            st.one_of(st.integers(1, 400), st.integers(1, 90_000), st.integers(1, 40 * 86400)), min_size=1, max_size=80
        )
    )
    ages, age = [], draw(st.integers(-3600, 2 * 86400))
    for step in steps:
        ages.append(age)
        age += step
        if age > SPAN_S:
            break
    marks = draw(st.lists(st.integers(0, 30), min_size=len(ages), max_size=len(ages)))
    return [
        RestorePoint(
            VOLUME,
            1,
            index + 1,
            NOW_NS - seconds * NS_PER_S,
            labels=("kept",) if mark == 0 else (),
            dev_id=None if mark == 3 else index,
            held=mark == 1,
            leased=mark == 2,
        )
        for index, (seconds, mark) in enumerate(zip(reversed(ages), marks, strict=True))
    ]


@given(histories(), policies, fractions)
@settings(max_examples=200, deadline=None)
def test_what_must_stay_stays(points: list[RestorePoint], policy: RetentionPolicy, used: float) -> None:
    """Y1: held, leased, newest; labelled below their pressure and within their time; only what is materialised goes."""
    gone = to_retire(points, NOW_NS, policy, used)
    there = [each for each in points if each.materialised]
    assert len(set(gone)) == len(gone) and set(gone) <= set(there)
    for each in gone:
        assert not each.held and not each.leased and each != there[-1]
        if each.labels:
            assert used >= policy.labelled_pressure_fraction or NOW_NS - each.timestamp_ns > policy.longest_ns


@given(histories(), policies, fractions)
@settings(max_examples=200, deadline=None)
def test_idempotent(points: list[RestorePoint], policy: RetentionPolicy, used: float) -> None:
    """Y2: of what stays nothing more retires, whether all were taken or only the first half."""
    gone = to_retire(points, NOW_NS, policy, used)
    stayed = [each for each in points if each not in gone]
    assert to_retire(stayed, NOW_NS, policy, used) == []


@given(histories(), policies, fractions, st.floats(0.0, 1.0), st.integers(0, 400))
@settings(max_examples=300, deadline=None)
def test_monotone(points: list[RestorePoint], policy: RetentionPolicy, used: float, more: float, days: int) -> None:
    """Y3: later, and fuller, only ever adds to what retires."""
    gone = set(to_retire(points, NOW_NS, policy, used))
    assert gone <= set(to_retire(points, NOW_NS + days * DAY_NS, policy, used))
    assert gone <= set(to_retire(points, NOW_NS, policy, max(used, more)))


@given(histories(), fractions)
@settings(max_examples=100, deadline=None)
def test_densest_first(points: list[RestorePoint], used: float) -> None:
    """Y4: by the distance to the next newer point that is materialised."""
    there = [each for each in points if each.materialised]
    gone = to_retire(points, NOW_NS, DEFAULT_POLICY, used)
    gaps = [there[there.index(each) + 1].timestamp_ns - each.timestamp_ns for each in gone]
    assert gaps == sorted(gaps)


@given(histories(), policies)
@settings(max_examples=100, deadline=None)
def test_no_hole_without_pressure(points: list[RestorePoint], policy: RetentionPolicy) -> None:
    """Of each hour (day) of the hourly (daily) time that had a point, one is left."""
    there = [each for each in points if each.materialised]
    gone = set(to_retire(points, NOW_NS, policy, 0.0))
    for days, length_ns in ((policy.hourly_days, DAY_NS // 24), (policy.daily_days, DAY_NS)):
        young = [each for each in there if NOW_NS - each.timestamp_ns <= days * DAY_NS]
        stretches = {each.timestamp_ns // length_ns for each in young}
        assert stretches <= {each.timestamp_ns // length_ns for each in there if each not in gone}
