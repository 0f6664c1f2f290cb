"""The chain: sealing the next event of a stream, and judging the next event that comes.

    publisher:  event, state = seal(state, body)          header, running counts, digest of the event before
    receiver:   checker = ChainChecker(saved state)
                if checker.accept(event) is Verdict.APPLY: apply it; checker.state is what to keep

    what comes, with the stream at (s, digest d, epoch e)              verdict
    epoch < e, and not one we took                                     STALE: skipped, counted
    sequence <= s, the event we took (by digest)                       DUPLICATE: skipped, counted
    sequence <= s, older than the window of digests, epoch e           DUPLICATE: see K3
    sequence <= s, another event, epoch e                              ForkError
    sequence <= s, another event, epoch > e                            OtherHistoryError
    sequence > s + 1                                                   GapError
    sequence = s + 1 after such a gap was seen                         ReorderedError
    sequence = s + 1, hangs on another digest than d, epoch e          ForkError
    sequence = s + 1, hangs on another digest than d, epoch > e        OtherHistoryError
    sequence = 1 of a later timeline that forks at our last commit     APPLY: the stream goes on there
    another volume, or another timeline otherwise                      OtherHistoryError
    sequence = s + 1, hangs on d                                       APPLY, if `fold` allows it

Invariants
  K1  After an error the state is what it was, and nothing of the event may be applied.
  K2  seal(state, body) is accepted by every checker at `state`, and leads both to one state.
  K3  Of events that are older than the window nothing is applied, so skipping them is harmless even if they are
      another history's: its first event beyond s can't hang on d.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, replace

from replicator.events.bodies import Body, PublisherOpened, TimelineStarted, TransactionCommitted
from replicator.events.codec import Event, encode_event
from replicator.events.fold import advance
from replicator.events.header import Header
from replicator.events.layouts import type_of
from replicator.events.state import StreamState
from replicator.events.stream_errors import (
    BrokenOrderError,
    ForkError,
    GapError,
    OtherHistoryError,
    ReorderedError,
)
from replicator.events.values import Phase, StateName

WINDOW_EVENTS = 1024  # digests kept to prove duplicates: 16 KiB, and farther than any log redelivers in order


class Verdict(enum.Enum):
    """What to do with an event that is no error."""

    APPLY = "apply"
    DUPLICATE = "duplicate"
    STALE = "stale"


@dataclass(frozen=True, slots=True)
class Skipped:
    """How many events were skipped, and why; for `status` and metrics."""

    duplicates: int = 0
    stale: int = 0


def seal(state: StreamState, body: Body) -> tuple[Event, StreamState]:
    """`body` as the event that follows `state`, and the state after it."""
    after = advance(state, body)
    event = encode_event(_header(after, body, _previous(state, body)), body)
    return event, _with_digest(after, body, event.digest)


class ChainChecker:
    """Accepts the next event of a volume's stream, or raises what is wrong with it (the table above)."""

    def __init__(self, state: StreamState) -> None:
        self.state = state
        self.skipped = Skipped()
        self._digests: deque[bytes] = deque([state.digest] if state.sequence else [], maxlen=WINDOW_EVENTS)
        self._ahead: int | None = None

    def accept(self, event: Event) -> Verdict:
        """The verdict on `event`; after APPLY, `state` is the state after it (K1)."""
        header, state = event.header, self.state
        if header.volume != state.volume:
            raise OtherHistoryError(state, f"an event of volume {header.volume}")
        if header.timeline != state.timeline:
            return self._take(_forked(state, event), event)
        if header.sequence <= state.sequence or header.epoch < state.epoch:
            return self._judge_old(event)
        if header.sequence > state.sequence + 1:
            self._ahead = header.sequence
            raise GapError(state, header.sequence)
        if self._ahead is not None:
            raise ReorderedError(state, f"{event} came after event {self._ahead}")
        return self._take(state, event)

    def _take(self, state: StreamState, event: Event) -> Verdict:
        """Take `event`, which is the next after `state` by its number."""
        self._require_hangs(state, event)
        after = advance(state, event.body)
        if event.header != _header(after, event.body, event.header.previous):
            raise BrokenOrderError(state, f"{event}: its running counts or epoch don't follow from the events before")
        if state.timeline != self.state.timeline:
            self._digests.clear()
        self._digests.append(event.digest)
        self.state = _with_digest(after, event.body, event.digest)
        return Verdict.APPLY

    def _require_hangs(self, state: StreamState, event: Event) -> None:
        expected, found = _previous(state, event.body), event.header.previous
        if found == expected:
            return
        what = f"{event} hangs on {found.hex()}, ours is {expected.hex()}"
        if event.header.epoch == state.epoch and not isinstance(event.body, PublisherOpened):
            raise ForkError(state, f"fork within epoch {state.epoch}: {what}")
        raise OtherHistoryError(state, what)

    def _judge_old(self, event: Event) -> Verdict:
        """An event that isn't the next: skipped, or a fork."""
        header, state = event.header, self.state
        back = state.sequence - header.sequence
        known = self._digests[-1 - back] if 0 <= back < len(self._digests) else None
        if known == event.digest:
            self.skipped = replace(self.skipped, duplicates=self.skipped.duplicates + 1)
            return Verdict.DUPLICATE
        if header.epoch < state.epoch:
            self.skipped = replace(self.skipped, stale=self.skipped.stale + 1)
            return Verdict.STALE
        if header.epoch > state.epoch:
            raise OtherHistoryError(state, f"{event} of epoch {header.epoch} takes the place of an event that we have")
        if known is not None:
            what = f"{event} ({event.digest.hex()}) and ours ({known.hex()})"
            raise ForkError(state, f"fork within epoch {state.epoch}: {what}")
        self.skipped = replace(self.skipped, duplicates=self.skipped.duplicates + 1)
        return Verdict.DUPLICATE


def _forked(state: StreamState, event: Event) -> StreamState:
    """The start of the timeline that `event` begins, if it forks at our last commit."""
    body, header = event.body, event.header
    starts = isinstance(body, TimelineStarted) and header.sequence == 1 and header.timeline > state.timeline
    if not starts or not isinstance(body, TimelineStarted) or body.parent != state.committed:
        raise OtherHistoryError(state, f"{event} doesn't fork at our last commit, {state.committed}")
    return StreamState.start(state.volume, header.timeline)


def _previous(state: StreamState, body: Body) -> bytes:
    """The digest that `body` must hang on after `state`: a fork's first event hangs on its parent."""
    return body.parent.digest if isinstance(body, TimelineStarted) else state.digest


def _header(after: StreamState, body: Body, previous: bytes) -> Header:
    """The header that the event with `body` has, which led to `after`."""
    opened = after.open
    counts = opened.counts if opened else None
    return Header(
        type=type_of(body),
        volume=after.volume,
        timeline=after.timeline,
        epoch=after.epoch,
        sequence=after.sequence,
        number=after.number if opened or not isinstance(body, TransactionCommitted) else body.number,
        began=opened.began if opened else 0,
        committed=after.committed_sequence,
        cursor=opened.cursor if opened else 0,
        chunks=counts.chunks if counts else 0,
        pages=counts.written_pages if counts else 0,
        stored_bytes=counts.stored_bytes if counts else 0,
        phase=opened.phase if opened else Phase.OUTSIDE,
        previous=previous,
    )


def _with_digest(after: StreamState, body: Body, digest: bytes) -> StreamState:
    """`after` with the digest of the event that led to it; a commit's is its state's name."""
    if isinstance(body, TransactionCommitted):
        name = StateName(after.timeline, body.number, digest)
        return replace(after, digest=digest, committed=name)
    return replace(after, digest=digest)
