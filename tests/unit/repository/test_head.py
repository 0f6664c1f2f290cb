"""Which transaction a replica's volume itself is, by its rows alone."""

from __future__ import annotations

from uuid import UUID

import pytest

from replicator.errors import NotFoundError
from replicator.pool.catalogue_schema import Branch, Position, Purpose, Role, Snapshot, Volume
from replicator.pool.view import CatalogueView
from replicator.repository.head import head_of, held_row

VM1, OTHER = UUID(int=1), UUID(int=2)


def view_of(*positions: Position) -> CatalogueView:
    """A volume of 4 KiB as device 3, timeline 2 from transaction 3 on, and device 7, a snapshot of it."""
    kept = Snapshot(7, VM1, Purpose.POINT, 5, 4096, 1, 2, digest=b"two")
    return CatalogueView(
        1,
        {
            Volume: {(VM1,): Volume(VM1, "vm1", 3, 4096, 0), (OTHER,): Volume(OTHER, "other", 4, 4096, 0)},
            Branch: {(VM1, 2): Branch(VM1, 2, 1, 3)},
            Snapshot: {(7,): kept},
            Position: {(each.volume, each.role): each for each in positions},
        },
    )


def position(timeline: int, number: int, role: Role = Role.APPLIED) -> Position:
    return Position(VM1, role, timeline, number, b"digest" if number else b"", 9, 1, 50)


@pytest.mark.parametrize(
    ("timeline", "number", "is_of"),
    [(1, 2, (1, 2)), (1, 3, (1, 3)), (2, 3, (1, 3)), (2, 4, (2, 4))],
    ids=["before the fork", "at it", "begun, with none of its own yet", "behind it"],
)
def test_its_transaction_is_the_parents_before_its_timeline_has_one(
    timeline: int, number: int, is_of: tuple[int, int]
) -> None:
    head = head_of(view_of(position(timeline, number)), VM1)
    assert head is not None and (head.point.timeline, head.point.number) == is_of
    assert (head.point.dev_id, head.point.size_bytes, head.point.timestamp_ns) == (3, 4096, 50)
    assert held_row(view_of(position(timeline, number)), 3) == head.row


def test_only_a_replica_with_a_transaction_has_one() -> None:
    for view in (view_of(), view_of(position(1, 0)), view_of(position(1, 3, Role.PUBLISHED))):
        assert head_of(view, VM1) is None
    assert head_of(view_of(position(1, 3)), OTHER) is None


def test_the_row_of_a_device() -> None:
    assert held_row(view_of(position(1, 3)), 7).digest == b"two"
    for view, dev_id in ((view_of(), 3), (view_of(position(1, 3)), 4), (view_of(), 8)):
        with pytest.raises(NotFoundError):
            held_row(view, dev_id)
