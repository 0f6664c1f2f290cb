"""A replica's volume itself, its head, as a restore point: it equals the transaction that it is applied up to.

Between the catalogue and offer (which lists the point) and source (which leases it). Nothing of a transaction that is
being applied is in the head (A1 of receiver/apply), and a head that somebody reads isn't filled either: the next
transaction goes around it, into another device, and the old one's row becomes a hidden snapshot's.

    the device is …                         its row
    the head, of n                          head_snapshot(volume, position of n)
    left, since n + 1 went around it        the same, in the catalogue

Invariants
  H1  Only a replica's volume is a point: one that is written here is what it was published as only at the cut.
  H2  A row that reads the same under a lease as before says that the device still is that transaction's: number,
      digest, volume and size are in it, whether it is the head by then or was left.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from replicator.history.lineage import Lineage
from replicator.history.points import RestorePoint
from replicator.pool.catalogue_schema import Position, Purpose, Role, Snapshot, Volume
from replicator.pool.view import CatalogueView


@dataclass(frozen=True, slots=True)
class Head:
    """A replica's volume as it is now: the point that it is, and the row by which it is known again (H2)."""

    point: RestorePoint
    row: Snapshot

    def is_at(self, point: RestorePoint) -> bool:
        """Whether it is this very transaction."""
        own = self.point
        return (own.timeline, own.number, own.digest) == (point.timeline, point.number, point.digest)


def head_of(view: CatalogueView, volume: UUID) -> Head | None:
    """The head of a replica that has a transaction (H1); None of any other volume."""
    found = next((each for each in view.volumes if each.uuid == volume), None)
    position = view.position(volume, Role.APPLIED)
    if found is None or position is None or not position.number:
        return None
    row = head_snapshot(found, position)
    point = point_at(position, view.lineage(volume), dev_id=row.dev_id, size_bytes=row.size_bytes)
    return Head(point, row)


def head_snapshot(volume: Volume, position: Position) -> Snapshot:
    """The head as the hidden snapshot that it becomes once another device takes its place (H2)."""
    return Snapshot(
        volume.dev_id,
        volume.uuid,
        Purpose.POINT,
        position.timestamp_ns,
        volume.size_bytes,
        position.timeline,
        position.number,
        digest=position.digest,
        hidden=True,
    )


def held_row(view: CatalogueView, dev_id: int) -> Snapshot:
    """The row of a thin device that holds a point: a head's, or a snapshot's; NotFoundError where it is neither."""
    for volume in view.volumes:
        position = view.position(volume.uuid, Role.APPLIED)
        if volume.dev_id == dev_id and position is not None:
            return head_snapshot(volume, position)
    return view.snapshot(dev_id)


def point_at(position: Position, lineage: Lineage, *, dev_id: int | None = None, size_bytes: int = 0) -> RestorePoint:
    """A position's last transaction, which is the parent's where its timeline has none yet."""
    path = lineage.path(position.timeline, position.number) if lineage.knows(position.timeline) else ()
    timeline = path[-1].timeline if path else position.timeline
    number, at_ns = position.number, position.timestamp_ns
    return RestorePoint(
        position.volume, timeline, number, at_ns, dev_id=dev_id, size_bytes=size_bytes, digest=position.digest
    )
