"""Whether a log goes on from what a copy has: whatever stands beside the stream, nothing healthy is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import cast

import pytest

from replicator.events.codec import Event
from replicator.events.state import StreamState
from replicator.events.stream_errors import OtherHistoryError
from replicator.log.interface import StreamReader
from replicator.log.one_history import NEAR_EVENTS, require_one_history
from tests.support.replica_streams import SourceVolume

SIZE = 8 * 65536


class Records:
    """A reader of a topic as a broker shows it: all records from the first on that has the number."""

    def __init__(self, events: list[Event]) -> None:
        self.events, self.handed = events, 0

    def start(self) -> StreamState:
        return StreamState.start(self.events[0].header.volume, 1)

    def read(self, sequence: int) -> Iterator[Event]:
        first = next(at for at, event in enumerate(self.events) if event.header.sequence == sequence)
        for event in self.events[first:]:
            self.handed += 1
            yield event


def histories() -> tuple[SourceVolume, SourceVolume]:
    """Alike up to transaction 1; the first has a later publisher, the second goes on beyond it."""
    ours, theirs = SourceVolume(1, SIZE), SourceVolume(1, SIZE)
    for each in (ours, theirs):
        each.transaction(each.scribble())
    ours.reopen()
    ours.transaction(ours.scribble())
    while theirs.state.sequence <= ours.state.sequence + 4:
        theirs.transaction(theirs.scribble())
    return ours, theirs


@pytest.mark.parametrize("shown", ["ours alone", "theirs before ours", "theirs behind ours", "theirs alone"])
def test_ours_is_found_wherever_a_broker_shows_it(shown: str) -> None:
    ours, theirs = histories()
    opened = next(at for at, (a, b) in enumerate(zip(ours.events, theirs.events, strict=False)) if a != b)
    events = {
        "ours alone": ours.events,
        "theirs before ours": ours.events[: opened + 1] + theirs.events[opened:] + ours.events[opened + 1 :],
        "theirs behind ours": ours.events + theirs.events[opened:],
        "theirs alone": theirs.events,
    }[shown]
    records = Records(events)
    expected = (
        pytest.raises(OtherHistoryError, match=ours.state.digest.hex()) if shown == "theirs alone" else nullcontext()
    )
    with expected:
        require_one_history(cast("StreamReader", records), theirs.state, ours.state)
    assert 0 < records.handed <= NEAR_EVENTS
