"""The catalogue's rows that follow from events: positions, logged points, snapshots; pure.

Made by apply, stored by the pool in the switch that makes them true.

Invariants
  W1  A Position's chain_state is the stream's state after its last event; `number` and `digest` name what the thin
      device equals: the last committed transaction, also while another one is open.
  W2  Labels that the catalogue can't hold (the log allows a few more) are left out, never a reason to stop.
"""

from __future__ import annotations

from collections.abc import Iterable

from replicator.errors import UsageError
from replicator.events.bodies import TransactionCommitted
from replicator.events.state import OpenTransaction, StreamState, encode_state
from replicator.history.names import LABELS_LIMIT, check_label
from replicator.history.points import Consistency
from replicator.pool.catalogue_schema import LoggedGroup, LoggedPoint, Position, Purpose, Role, Snapshot
from replicator.pool.changes import Put


def position_row(state: StreamState, committed_ns: int) -> Position:
    """How far the volume is applied; `committed_ns` is the last committed transaction's timestamp (W1)."""
    committed = state.committed
    return Position(
        volume=state.volume,
        role=Role.APPLIED,
        timeline=state.timeline,
        number=committed.number if committed else 0,
        digest=committed.digest if committed else b"",
        sequence=state.sequence,
        epoch=state.epoch,
        timestamp_ns=committed_ns,
        chain_state=encode_state(state),
    )


def logged_point(state: StreamState, opened: OpenTransaction, body: TransactionCommitted) -> LoggedPoint:
    """The transaction that `body` committed, after which the stream is at `state`."""
    assert state.committed is not None
    return LoggedPoint(
        volume=state.volume,
        timeline=state.timeline,
        number=body.number,
        timestamp_ns=opened.timestamp_ns,
        size_bytes=opened.size_bytes,
        sequence=state.sequence,
        consistency=Consistency(body.consistency.name.lower()),
        labels=storable(body.labels),
        digest=state.committed.digest,
    )


def logged_group(body: TransactionCommitted) -> tuple[Put, ...]:
    """The cut of the group that the transaction belongs to; each member's commit says the same of it."""
    if body.group is None:
        return ()
    return (Put(LoggedGroup(body.group.group, body.group.number, body.group.members, storable(body.labels))),)


def point_snapshot(dev_id: int, point: LoggedPoint) -> Snapshot:
    """The snapshot that materialises `point`."""
    return Snapshot(
        dev_id,
        point.volume,
        Purpose.POINT,
        point.timestamp_ns,
        point.size_bytes,
        point.timeline,
        point.number,
        point.consistency,
        point.labels,
        point.digest,
    )


def staging_snapshot(dev_id: int, state: StreamState, opened: OpenTransaction) -> Snapshot:
    """The hidden snapshot of the head that becomes transaction `opened`."""
    return Snapshot(
        dev_id,
        state.volume,
        Purpose.STAGING,
        opened.timestamp_ns,
        opened.size_bytes,
        state.timeline,
        opened.number,
        hidden=True,
    )


def storable(labels: Iterable[str]) -> tuple[str, ...]:
    """The labels that the catalogue takes (W2)."""
    return tuple(label for label in labels if _is_label(label))[:LABELS_LIMIT]


def _is_label(label: str) -> bool:
    try:
        check_label(label)
    except UsageError:
        return False
    return True
