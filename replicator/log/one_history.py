"""Whether a log still tells the history that a copy of it was made from: asked before a copy goes on.

    the log's tail                              verdict
    before the copy's last event                LostEndError: the log lost its end, the copy has it
    the copy's last event                       one history; another digest there: OtherHistoryError
    behind it, of the same or a later epoch     the next event tells (events/chain): it hangs on ours, or doesn't
    behind it, of an earlier epoch              the log's event of that number tells: ours, or OtherHistoryError

The last row is a log that was put back together with its source, to before the publisher that the copy last heard of,
and was published to since: every event of it is of an earlier epoch than the copy's, as those of a fenced publisher
are that a broker let in, and would be skipped like them.
"""

from __future__ import annotations

from itertools import islice

from replicator.events.state import StreamState
from replicator.events.stream_errors import OtherHistoryError
from replicator.log.errors import LostEndError
from replicator.log.interface import StreamReader

NEAR_EVENTS = 64
"""Looked through for the copy's last one: a fenced publisher's, which a broker let in, may stand before it."""


def require_one_history(reader: StreamReader, tail: StreamState, state: StreamState, mend: str | None = None) -> None:
    """LostEndError or OtherHistoryError, unless `reader`'s stream, whose tail this is, goes on from `state`, a copy's.

    Nothing is said of another timeline, of a copy that has nothing, or where the events to compare were trimmed.
    """
    if tail.timeline != state.timeline or not state.sequence:
        return
    if tail.sequence < state.sequence:
        raise LostEndError(state.volume, state.timeline, state.sequence + 1, tail.sequence)
    if tail.sequence == state.sequence:
        _require_same(tail.digest, state, mend)
    elif tail.epoch < state.epoch:
        require_last_event(reader, state, mend)


def require_last_event(reader: StreamReader, state: StreamState, mend: str | None = None) -> None:
    """OtherHistoryError, if another event than the copy's last one has its place; for who meets a gap behind it, too.

    A publisher that came later than the copy's last one, on the other history, has an epoch that isn't skipped any
    more: the first event of it that is read then seems to come behind a gap.
    """
    start = reader.start()
    if start.sequence == state.sequence:
        _require_same(start.digest, state, mend)
    elif start.sequence < state.sequence:
        others = []
        for event in islice(reader.read(state.sequence), NEAR_EVENTS):
            if event.digest == state.digest:
                return
            if event.header.sequence == state.sequence:
                others.append(event.digest)
        if others:
            _require_same(others[0], state, mend)


def _require_same(digest: bytes, state: StreamState, mend: str | None) -> None:
    if digest != state.digest:
        what = f"the log's event {state.sequence} is {digest.hex()}, the one that was copied {state.digest.hex()}"
        raise OtherHistoryError(state, what, mend=mend)
