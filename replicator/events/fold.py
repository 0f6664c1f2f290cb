"""Which event may follow which: the next state of a stream, or why there is none.

Both ends fold with the same function: the publisher before it seals an event, the reader before it believes one.
So a publisher can't write what a reader would refuse.

    event                  allowed when                                     what it does
    VolumeCreated          EMPTY, timeline 1                                LIVE
    TimelineStarted        EMPTY, a later timeline than the parent's        LIVE, committed = parent
    PublisherOpened        begun, not ENDED; a later epoch                  epoch; an open transaction stays open
    TransactionBegan       LIVE, none open, number = next, base = committed opens
    Chunks...              open; phases and chunks ascend, bounds hold      counts, cursor, phase
    TransactionCommitted   open; number and counts agree                    committed = its own digest
    TransactionAborted     open; number and UUID agree                      the number is free again
    VolumeRenamed          LIVE, none open                                  name
    VolumeDeleted          LIVE, none open                                  DELETED
    PointLabelled          LIVE or DELETED, none open                       -
    VolumeAttested         LIVE, none open                                  -
    TimelineEnded          begun, not ENDED; a later timeline               ENDED; an open transaction is void

Invariants
  O1  Within a transaction: discards, zeroes, writes, each by ascending chunk, each chunk once in its phase.
  O2  No chunk lies beyond the size that TransactionBegan said, nor are there more than its bound.
  O3  Cuts' timestamps never go back.

The digests of `StreamState` are left to `chain`, which alone knows the event's bytes.
Failures raised: WrongBaseError, StreamEndedError, BrokenOrderError, each with the position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from replicator.events.bodies import (
    Body,
    ChunkBody,
    PointLabelled,
    PublisherOpened,
    TimelineEnded,
    TimelineStarted,
    TransactionAborted,
    TransactionBegan,
    TransactionCommitted,
    VolumeAttested,
    VolumeCreated,
    VolumeDeleted,
    VolumeRenamed,
)
from replicator.events.chunks import ChunksDiscarded, ChunksWritten, ChunksZeroed
from replicator.events.state import Life, OpenTransaction, StreamState
from replicator.events.stream_errors import BrokenOrderError, StreamEndedError, WrongBaseError
from replicator.events.values import Counts, Phase, chunk_count_of

_PHASES: dict[type[Any], Phase] = {
    ChunksDiscarded: Phase.DISCARDS,
    ChunksZeroed: Phase.ZEROES,
    ChunksWritten: Phase.WRITES,
}


def advance(state: StreamState, body: Body) -> StreamState:
    """`state` after `body`, its sequence number counted on, its digests as they were."""
    if state.life is Life.ENDED:
        raise StreamEndedError(state, f"{type(body).__name__} after TimelineEnded")
    rule: Callable[[StreamState, Any], StreamState] = _RULES[type(body)]
    after = rule(state, body)
    return replace(after, sequence=state.sequence + 1)


def _require(state: StreamState, holds: bool, body: Body, expected: str, found: object) -> None:
    if not holds:
        raise BrokenOrderError(state, f"{type(body).__name__}: expected {expected}, found {found}")


def _require_life(state: StreamState, body: Body, *lives: Life) -> None:
    _require(state, state.life in lives, body, " or ".join(life.name for life in lives), state.life.name)


def _require_between(state: StreamState, body: Body, *lives: Life) -> None:
    """Outside a transaction, in one of `lives`."""
    _require_life(state, body, *lives)
    _require(state, state.open is None, body, "no open transaction", f"transaction {state.number} open")


def _open_of(state: StreamState, body: Body) -> OpenTransaction:
    if state.open is None:
        raise BrokenOrderError(state, f"{type(body).__name__}: expected an open transaction, found none")
    return state.open


def _created(state: StreamState, body: VolumeCreated) -> StreamState:
    _require_life(state, body, Life.EMPTY)
    _require(state, state.timeline == 1, body, "timeline 1", state.timeline)
    return replace(state, life=Life.LIVE, name=body.name, size_bytes=body.size_bytes)


def _started(state: StreamState, body: TimelineStarted) -> StreamState:
    _require_life(state, body, Life.EMPTY)
    later = state.timeline > body.parent.timeline
    _require(state, later, body, f"a timeline after {body.parent.timeline}", state.timeline)
    return replace(state, life=Life.LIVE, name=body.name, size_bytes=body.size_bytes, committed=body.parent)


def _opened(state: StreamState, body: PublisherOpened) -> StreamState:
    _require_life(state, body, Life.LIVE, Life.DELETED)
    _require(state, body.epoch > state.epoch, body, f"an epoch after {state.epoch}", body.epoch)
    return replace(state, epoch=body.epoch)


def _began(state: StreamState, body: TransactionBegan) -> StreamState:
    _require_between(state, body, Life.LIVE)
    _require(state, state.epoch > 0, body, "a publisher that opened", "none")
    _require(state, body.number == state.next_number, body, f"number {state.next_number}", body.number)
    if body.base != state.committed:
        raise WrongBaseError(state, f"transaction {body.number} stands on {body.base}, the stream on {state.committed}")
    forward = body.timestamp_ns >= state.timestamp_ns
    _require(state, forward, body, f"a timestamp from {state.timestamp_ns} on", body.timestamp_ns)
    opened = OpenTransaction(
        body.number, body.transaction, body.base, body.timestamp_ns, body.size_bytes, body.chunk_bound, body.kind,
        state.sequence + 1, Phase.BEGAN, 0, Counts(),
    )  # fmt: skip
    return replace(state, open=opened, timestamp_ns=body.timestamp_ns)


def _chunks(state: StreamState, body: ChunkBody) -> StreamState:
    """O1, O2."""
    opened = _open_of(state, body)
    phase = _PHASES[type(body)]
    _require(state, phase >= opened.phase, body, f"{opened.phase.name} or later", phase.name)
    cursor = opened.cursor if phase is opened.phase else 0
    _require(state, body.first_chunk >= cursor, body, f"chunks from {cursor} on", body.first_chunk)
    end = chunk_count_of(opened.size_bytes)
    _require(state, body.end_chunk <= end, body, f"chunks below {end}", body.end_chunk - 1)
    counts = opened.counts.plus(body.counts)
    _require(state, counts.chunks <= opened.chunk_bound, body, f"at most {opened.chunk_bound} chunks", counts.chunks)
    return replace(state, open=replace(opened, phase=phase, cursor=body.end_chunk, counts=counts))


def _committed(state: StreamState, body: TransactionCommitted) -> StreamState:
    opened = _open_of(state, body)
    _require(state, body.number == opened.number, body, f"number {opened.number}", body.number)
    _require(state, body.counts == opened.counts, body, f"{opened.counts}", body.counts)
    return replace(state, open=None, size_bytes=opened.size_bytes, committed_sequence=state.sequence + 1)


def _aborted(state: StreamState, body: TransactionAborted) -> StreamState:
    opened = _open_of(state, body)
    named = (opened.number, opened.transaction)
    _require(state, (body.number, body.transaction) == named, body, f"{named}", (body.number, body.transaction))
    return replace(state, open=None)


def _renamed(state: StreamState, body: VolumeRenamed) -> StreamState:
    _require_between(state, body, Life.LIVE)
    return replace(state, name=body.name)


def _deleted(state: StreamState, body: VolumeDeleted) -> StreamState:
    _require_between(state, body, Life.LIVE)
    return replace(state, life=Life.DELETED)


def _labelled(state: StreamState, body: PointLabelled) -> StreamState:
    _require_between(state, body, Life.LIVE, Life.DELETED)
    return state


def _attested(state: StreamState, body: VolumeAttested) -> StreamState:
    _require_between(state, body, Life.LIVE)
    return state


def _ended(state: StreamState, body: TimelineEnded) -> StreamState:
    _require_life(state, body, Life.LIVE, Life.DELETED)
    _require(state, body.successor > state.timeline, body, f"a timeline after {state.timeline}", body.successor)
    return replace(state, life=Life.ENDED, open=None)


_RULES: dict[type[Any], Callable[[StreamState, Any], StreamState]] = {
    VolumeCreated: _created,
    TimelineStarted: _started,
    PublisherOpened: _opened,
    TransactionBegan: _began,
    ChunksDiscarded: _chunks,
    ChunksZeroed: _chunks,
    ChunksWritten: _chunks,
    TransactionCommitted: _committed,
    TransactionAborted: _aborted,
    VolumeRenamed: _renamed,
    VolumeDeleted: _deleted,
    PointLabelled: _labelled,
    VolumeAttested: _attested,
    TimelineEnded: _ended,
}
