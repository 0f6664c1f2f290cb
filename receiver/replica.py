"""What a pool's catalogue says of one replica, as a value: its row, its position, what is staged.

Read by apply before and after each switch, and by the daemon at its start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from receiver.errors import ReplicaConflictError
from receiver.mends import named
from replicator.events.state import Life, StreamState, decode_state
from replicator.log.interface import VolumeEntry
from replicator.pool.catalogue_schema import Position, Purpose, Role, Snapshot, Volume
from replicator.pool.interface import PoolStatus
from replicator.pool.view import CatalogueView


@dataclass(frozen=True, slots=True)
class Replica:
    """What the pool has of the volume: nothing, or its row, position, and staging snapshot."""

    volume: Volume | None
    position: Position | None
    staging: Snapshot | None

    @property
    def state(self) -> StreamState | None:
        """Where the stream goes on, None for its beginning."""
        return decode_state(self.position.chain_state, "the applied position") if self.position else None


def replica_of(view: CatalogueView, volume: UUID) -> Replica:
    """What the pool's catalogue says of the volume."""
    row = next((each for each in view.volumes if each.uuid == volume), None)
    staging = view.snapshots_of(volume, Purpose.STAGING, hidden=True)
    return Replica(row, view.position(volume, Role.APPLIED), staging[0] if staging else None)


def metadata_used(status: PoolStatus) -> float:
    """The part of the metadata that is in use."""
    return 1 - status.metadata_free_blocks / max(1, status.metadata_blocks)


def is_deleted(view: CatalogueView, volume: UUID) -> bool:
    """Whether the volume is a replica of one that its source has no more."""
    state = replica_of(view, volume).state
    return state is not None and state.life is Life.DELETED


def refuse_source(view: CatalogueView, pool: Path, entries: Sequence[VolumeEntry]) -> None:
    """ReplicaConflictError where the pool holds one of these volumes itself: it is its source, not its replica."""
    own = {each.uuid for each in view.volumes if view.position(each.uuid, Role.APPLIED) is None}
    for entry in entries:
        if entry.volume in own:
            raise ReplicaConflictError(
                f"{pool} is the source of the volume {entry.name!r} ({entry.volume}), so it can't be its replica",
                mend=named(
                    "give the receiver a pool of its own: replicator pool create NEW_POOL --size SIZE", pool, ""
                ),
            )


def replicas(view: CatalogueView, wanted: Sequence[str]) -> list[Volume]:
    """The replicas that the pool has; of `wanted` names and UUIDs only, where there are any."""
    found = [each for each in view.volumes if view.position(each.uuid, Role.APPLIED) is not None]
    return [each for each in found if not wanted or each.name in wanted or str(each.uuid) in wanted]
