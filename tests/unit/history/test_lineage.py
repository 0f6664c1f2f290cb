"""L1 to L3 of history/lineage, and A1 to A3 of history/plan: who descends from whom, and how to get there."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.errors import UsageError
from replicator.history.lineage import (
    Forked,
    HeldIsAhead,
    HistoryConflictError,
    LeftBehind,
    Lineage,
    NoCommonBase,
    Offer,
    Revision,
    Stretch,
    Timeline,
    Trimmed,
    Way,
    absent,
    compare,
)
from replicator.history.plan import (
    EmptyBase,
    FoldBase,
    Inventory,
    PointUnreachableError,
    SnapshotBase,
    plan,
)
from replicator.history.points import RestorePoint

V1 = UUID(int=1)
TREE = Lineage((Timeline(1), Timeline(2, 1, 10), Timeline(3, 2, 15), Timeline(4, 1, 5)))
"""1 … 10 …; 2 forks from 1 at 10; 3 from 2 at 15; 4 from 1 at 5."""


def _all(end: int = 1000) -> tuple[Stretch, ...]:
    return tuple(Stretch(timeline, 1, end) for timeline in range(1, 5))


def _snapshot(timeline: int, number: int) -> RestorePoint:
    return RestorePoint(V1, timeline, number, 0, dev_id=timeline * 100 + number)


def test_paths_cross_forks() -> None:
    """L3; a path that ends before its timeline's fork runs on the parent only."""
    assert TREE.path(3, 20) == (Stretch(1, 1, 11), Stretch(2, 11, 16), Stretch(3, 16, 21))
    assert TREE.path(3, 12) == (Stretch(1, 1, 11), Stretch(2, 11, 13))
    assert TREE.path(4, 3) == (Stretch(1, 1, 4),)
    assert TREE.path(1, 0) == () and TREE.current == 4


@pytest.mark.parametrize(
    ("older", "newer", "expected"),
    [
        ((1, 10), (2, 11), True),
        ((1, 11), (2, 11), False),
        ((1, 11), (2, 30), False),
        ((2, 10), (1, 10), True),
        ((2, 15), (3, 16), True),
        ((2, 16), (3, 30), False),
        ((1, 5), (4, 5), True),
        ((4, 6), (1, 30), False),
        ((1, 0), (4, 1), True),
        ((2, 12), (2, 11), False),
        ((9, 1), (1, 5), False),
    ],
)
def test_ancestors(older: tuple[int, int], newer: tuple[int, int], expected: bool) -> None:
    """By timeline and number; (2, 10) is (1, 10) under another name."""
    assert TREE.is_ancestor(Revision(*older), Revision(*newer)) is expected


def test_common_ancestors() -> None:
    """The last revision that both went through."""
    assert TREE.common_ancestor(Revision(1, 30), Revision(3, 30)) == Revision(1, 10)
    assert TREE.common_ancestor(Revision(4, 30), Revision(3, 30)) == Revision(1, 5)
    assert TREE.common_ancestor(Revision(2, 30), Revision(3, 12)) == Revision(2, 12)
    assert TREE.common_ancestor(Revision(1, 0), Revision(3, 12)) == Revision(1, 0)


def test_lineages_that_can_not_be() -> None:
    """L1."""
    with pytest.raises(UsageError):
        Timeline(2, 2, 1)
    for broken in ((), (Timeline(1), Timeline(1)), (Timeline(1), Timeline(3, 2, 1))):
        with pytest.raises(UsageError):
            Lineage(broken)


def test_the_way_on() -> None:
    """Contiguous stretches from what is held to the tip; none when it is the tip."""
    tip = Revision(3, 20, b"t")
    way = compare(Revision(1, 8, b"h"), Offer(tip, _all()), TREE)
    assert way == Way(Revision(1, 8, b"h"), tip, (Stretch(1, 9, 11), Stretch(2, 11, 16), Stretch(3, 16, 21)))
    assert isinstance(way, Way) and way.count == 12
    assert compare(tip, Offer(tip, ()), TREE) == Way(tip, tip, ())
    assert compare(Revision(1, 0), Offer(Revision(1, 2), _all()), TREE) == Way(
        Revision(1, 0), Revision(1, 2), (Stretch(1, 1, 3),)
    )


def test_conflicts_carry_both_sides() -> None:
    """Each row of the module's table."""
    held = Revision(1, 8, b"h")
    digests = (Revision(1, 8, b"x"),)
    assert compare(held, Offer(Revision(1, 9), _all(), digests), TREE) == Forked(held, Revision(1, 8, b"x"))
    assert compare(held, Offer(Revision(1, 7), _all()), TREE) == HeldIsAhead(held, Revision(1, 7))
    assert compare(held, Offer(Revision(4, 9), _all()), TREE) == LeftBehind(held, Revision(4, 9), Revision(1, 5))
    lost = Revision(9, 8)
    assert compare(lost, Offer(Revision(4, 9), _all()), TREE) == NoCommonBase(lost, Revision(4, 9))
    trimmed = compare(held, Offer(Revision(2, 14), (Stretch(1, 1, 10), Stretch(2, 13, 20))), TREE)
    assert trimmed == Trimmed(held, Revision(2, 14), (Stretch(1, 10, 11), Stretch(2, 11, 13)))
    assert isinstance(trimmed, Trimmed)
    error = HistoryConflictError(trimmed, mend="receiver rebase")
    assert error.exit_code == 4 and "1:10…10, 2:11…12" in error.message and error.conflict is trimmed


@given(
    st.integers(1, 4), st.integers(0, 40), st.integers(1, 4), st.integers(0, 40), st.integers(1, 4), st.integers(0, 40)
)
def test_ancestry_is_an_order(a: int, n: int, b: int, m: int, c: int, k: int) -> None:
    """L2, and the common ancestor is one of both."""
    x, y, z = Revision(a, n), Revision(b, m), Revision(c, k)
    assert TREE.is_ancestor(x, x)
    if TREE.is_ancestor(x, y) and TREE.is_ancestor(y, z):
        assert TREE.is_ancestor(x, z)
    common = TREE.common_ancestor(x, y)
    assert TREE.is_ancestor(common, x) and TREE.is_ancestor(common, y)
    assert isinstance(compare(x, Offer(y, _all()), TREE), Way) == TREE.is_ancestor(x, y)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 10)), max_size=6), st.integers(1, 30), st.integers(0, 15))
def test_absent_against_sets(there: list[tuple[int, int]], begin: int, count: int) -> None:
    """Overlapping, touching, empty stretches: as with sets of numbers."""
    standing = tuple(Stretch(1, at, at + length) for at, length in there)
    needed = (Stretch(1, begin, begin + count),) if count else ()
    missing = {n for each in absent(needed, standing) for n in range(each.begin, each.end)}
    assert missing == set(range(begin, begin + count)) - {n for at, length in there for n in range(at, at + length)}


# ---- plans -------------------------------------------------------------------------------------------------------


def test_the_nearest_base_that_works() -> None:
    """A1, A3: exactly there; else the nearest earlier on the path, never one of a branch that was left."""
    inventory = Inventory(
        (_snapshot(1, 3), _snapshot(1, 9), _snapshot(1, 12), _snapshot(2, 14)), (Revision(1, 9),), _all()
    )
    assert plan(Revision(1, 9), inventory, TREE).overlay == ()
    found = plan(Revision(2, 13), inventory, TREE)
    assert found.base == SnapshotBase(Revision(1, 9), 109)
    assert found.overlay == (Stretch(1, 10, 11), Stretch(2, 11, 14)) and found.transaction_count == 4
    assert plan(Revision(2, 15), inventory, TREE).base == SnapshotBase(Revision(2, 14), 214)
    assert plan(Revision(1, 2), inventory, TREE).base == EmptyBase()


def test_from_the_log_alone() -> None:
    """A fold, or nothing at all, under every transaction since."""
    assert plan(Revision(1, 7), Inventory(folds=(Revision(1, 5),), standing=_all()), TREE).base == FoldBase(
        Revision(1, 5)
    )
    found = plan(Revision(2, 12), Inventory(standing=_all()), TREE)
    assert found.base == EmptyBase() and found.transaction_count == 12


def test_trimmed_events_make_a_farther_base_do_or_none() -> None:
    """A2: the nearest base is passed over when what lies behind it is gone; what nobody can build is refused."""
    standing = (Stretch(1, 4, 6), Stretch(1, 8, 12))
    inventory = Inventory((_snapshot(1, 3), _snapshot(1, 7)), (Revision(1, 5),), standing)
    assert plan(Revision(1, 11), inventory, TREE).base == SnapshotBase(Revision(1, 7), 107)
    with pytest.raises(PointUnreachableError) as caught:
        plan(Revision(1, 6), inventory, TREE)
    assert caught.value.missing == (Stretch(1, 6, 7),) and caught.value.exit_code == 5
    assert plan(Revision(1, 5), inventory, TREE).transaction_count == 0
    for beyond in (Revision(1, 13), Revision(9, 1)):
        with pytest.raises(PointUnreachableError):
            plan(beyond, inventory, TREE)
