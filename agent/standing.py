"""How a volume stands in its pool, for the table of decide: pure functions over the catalogue's rows.

Invariants
  S1  A thin device is taken for a transaction's base or target only if its row says so: dev_ids are given again.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from replicator.events.state import StreamState
from replicator.events.values import StateName
from replicator.pool.catalogue_schema import Branch, Position, Prepared
from replicator.pool.interface import DeviceFacts
from replicator.pool.view import CatalogueView


@dataclass(frozen=True, slots=True)
class Devices:
    """Whether a prepared transaction's snapshots are there (S1), and whether they are the same."""

    base: bool = False
    target: bool = False
    unchanged: bool = False

    @classmethod
    def of(
        cls, view: CatalogueView, there: dict[int, DeviceFacts], prepared: Prepared, position: Position | None
    ) -> Devices:
        """By the rows, and by the roots of the thin devices that are `there`."""
        rows = {each.dev_id: each for each in view.snapshots_of(prepared.volume, hidden=True) if each.dev_id in there}
        target = rows.get(prepared.target_dev_id)
        if target is not None and target.timestamp_ns != prepared.timestamp_ns:
            target = None
        base = rows.get(prepared.base_dev_id) if prepared.base_dev_id is not None else None
        if base is not None and (position is None or (base.number, base.digest) != (position.number, position.digest)):
            base = None
        if base is None or target is None:
            return cls(base is not None, target is not None)
        same = there[base.dev_id].root == there[target.dev_id].root
        return cls(True, True, same and base.size_bytes == target.size_bytes and not target.labels)


def dev_ids_of(prepared: Prepared) -> list[int]:
    """The thin devices that a prepared transaction is made of."""
    return [each for each in (prepared.base_dev_id, prepared.target_dev_id) if each is not None]


def parent_of(view: CatalogueView, volume: UUID, timeline: int) -> StateName | None:
    """What a rebase forked the timeline from."""
    branch = view.rows.get(Branch, {}).get((volume, timeline))
    return None if branch is None or not branch.forked_at else StateName(branch.parent, branch.forked_at, branch.digest)


def equal_to(view: CatalogueView, volume: UUID, tail: StreamState, published: int) -> int | None:
    """A snapshot that equals the log's tail, where the log is behind the pool."""
    committed = tail.committed
    if committed is None or committed.number >= published:
        return None
    named = (committed.timeline, committed.number, committed.digest)
    found = [each for each in view.snapshots_of(volume) if (each.timeline, each.number, each.digest) == named]
    return found[0].dev_id if found else None
