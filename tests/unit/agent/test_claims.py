"""Whether an epoch whose claim was never answered may be ours: by what the log ends with since."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.publish import _may_stand
from replicator.events.state import StreamState
from replicator.events.values import Link
from tests.support.event_streams import VOLUME

OURS, THEIRS = b"\1" * 16, b"\2" * 16


@pytest.mark.parametrize(
    ("sequence", "epoch", "digest", "expected"),
    [
        (10, 3, OURS, True),
        (10, 3, THEIRS, False),
        (10, 4, THEIRS, False),
        (9, 2, THEIRS, True),  # it may still land
        (9, 3, THEIRS, False),  # the log lost its end, and another took this epoch: ours can't follow
        (11, 3, THEIRS, False),  # another's claim has our place: nobody but we would append behind ours
        (11, 4, THEIRS, True),  # who came later may have come behind ours: it fences us, then
    ],
)
def test_by_its_place(sequence: int, epoch: int, digest: bytes, expected: bool) -> None:
    """The claim of epoch 3 as event 10."""
    tail = replace(StreamState.start(VOLUME), sequence=sequence, epoch=epoch, digest=digest)
    assert _may_stand(Link(10, OURS), 3, tail) is expected
