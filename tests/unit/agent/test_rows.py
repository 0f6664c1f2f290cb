"""What a publisher's switches are made of: rows as they are when the switch is built, not as they once were."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from agent.decide import Rewind
from agent.rows import rewound
from replicator.events.state import StreamState
from replicator.events.values import StateName
from replicator.pool.catalogue_schema import Position, Purpose, Role, Snapshot
from replicator.pool.view import CatalogueView

VOLUME, OTHER = UUID(int=1), UUID(int=2)
TAIL = replace(StreamState.start(VOLUME), committed=StateName(1, 4, bytes(16)), committed_sequence=9)
EQUAL = Snapshot(7, VOLUME, Purpose.BASE, 50, 4096, number=4, digest=bytes(16))


def _view(snapshot: Snapshot) -> CatalogueView:
    position = Position(VOLUME, Role.PUBLISHED, 1, 6, b"6" * 16, 20, 1, 70)
    return CatalogueView(3, {Snapshot: {(7,): snapshot}, Position: {(VOLUME, Role.PUBLISHED): position}})


def test_a_log_that_lost_its_end_is_stood_on_by_what_equals_its_tail() -> None:
    switch = rewound(_view(EQUAL), Rewind(TAIL.committed, 7), TAIL, 50)
    assert switch is not None and switch.delete == ()


def test_what_was_given_its_id_meanwhile_is_no_base() -> None:
    """R4: whoever decided looks again."""
    for taken in (replace(EQUAL, number=5), replace(EQUAL, digest=b"x" * 16), replace(EQUAL, volume=OTHER)):
        assert rewound(_view(taken), Rewind(TAIL.committed, 7), TAIL, 50) is None
    assert rewound(CatalogueView(3, {}), Rewind(TAIL.committed, 7), TAIL, 50) is None
