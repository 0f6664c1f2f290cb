"""`receiver verify` as a whole: which points are meant, read under leases, compared with the log, remembered.

Between the command line and verify. A point must be stored here: materialised as a snapshot, or what the volume itself
is now. Others are folds of the log, and comparing the log with itself shows nothing.

    named                what is verified
    nothing              of each replica the newest snapshot; where there is none, the volume itself
    VOLUME               that volume's, likewise
    VOLUME@POINT         that point

Only what was compared in full, and found equal, is remembered as verified.

Failures: NotFoundError (a point that isn't stored here); VerifyError and UnknownChunksError are the caller's to raise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import tzinfo
from pathlib import Path

from receiver.remember import verified_row
from receiver.verify import Target, Verified, verify_point
from replicator.errors import NotFoundError
from replicator.history.points import PointSpecification, RestorePoint, parse_specification
from replicator.history.resolve import UnansweredTimeError, by_number, resolve
from replicator.log.interface import Log
from replicator.pool.catalogue_schema import Purpose, Role, Volume
from replicator.pool.interface import Pool, Switch
from replicator.pool.reader import PoolReader
from replicator.pool.view import CatalogueView
from replicator.repository.head import head_of, held_row


def stored_points(view: CatalogueView, volume: Volume) -> list[RestorePoint]:
    """The points of a replica that are stored here, oldest first: snapshots, and the volume itself."""
    points = [each.restore_point() for each in view.snapshots_of(volume.uuid, Purpose.POINT) if each.number]
    head, known = head_of(view, volume.uuid), {(each.timeline, each.number) for each in points}
    if head is not None and (head.point.timeline, head.point.number) not in known:
        points.append(head.point)
    return sorted(points, key=lambda each: (each.number, each.timeline))


def wanted_points(view: CatalogueView, named: Sequence[str], now_ns: int, zone: tzinfo) -> list[RestorePoint]:
    """The points that are meant, by the table above."""
    if not named:
        replicas = [each for each in view.volumes if view.position(each.uuid, Role.APPLIED)]
        return [points[-1] for volume in replicas if (points := stored_points(view, volume))]
    return [_wanted(view, text, now_ns, zone) for text in named]


def _wanted(view: CatalogueView, text: str, now_ns: int, zone: tzinfo) -> RestorePoint:
    specification: PointSpecification | None = parse_specification(text, zone) if "@" in text else None
    volume = view.volume(specification.volume if specification else text)
    points = stored_points(view, volume)
    if not points:
        raise NotFoundError(f"nothing is stored of {volume.name!r} yet")
    if specification is None:
        return points[-1]
    newest_ns = max(each.timestamp_ns for each in points)
    known_ns, lineage = max(newest_ns, now_ns), view.lineage(volume.uuid)
    try:
        return resolve(specification, points, now_ns=now_ns, complete_to_ns=known_ns, lineage=lineage, zone=zone)
    except UnansweredTimeError as error:
        error.mend = by_number("POOL")
        raise


def verify_points(
    reader: PoolReader, log: Log, points: Sequence[RestorePoint], tell: Callable[[str], None]
) -> list[Verified]:
    """Read and compare each, one behind the other."""
    found = []
    for point in points:
        assert point.dev_id is not None
        view = reader.view()
        tell(f"verifying {view.volume(point.volume).name}@{point.number}")
        target = Target(point.volume, point.timeline, point.number, point.size_bytes)
        with reader.lease([point.dev_id]) as lease, reader.disk(point.dev_id, point.size_bytes, lease=lease) as disk:
            _require_still(reader.view(), point, point.dev_id)
            found.append(verify_point(log, target, view.lineage(point.volume), disk.pread, lease))
    return found


def _require_still(view: CatalogueView, point: RestorePoint, dev_id: int) -> None:
    """NotFoundError where the point went before its lease: the volume went on, or another snapshot has its dev_id."""
    name = f"{view.volume(point.volume).name}@{point.number}"
    with suppress(NotFoundError):
        row = held_row(view, dev_id)
        if (row.volume, row.number, row.digest) == (point.volume, point.number, point.digest):
            return
    raise NotFoundError(f"{name} was retired meanwhile", mend="verify another one, or again")


def remember(pool: Pool, verified: Sequence[Verified], now_ns: int) -> None:
    """So that `status` can say when a volume was verified."""
    rows = tuple(verified_row(each.volume, each.number, now_ns) for each in verified if each.is_equal)
    if rows:
        pool.switch(Switch(changes=rows))


def document(verified: Sequence[Verified], view: CatalogueView, pool: Path) -> dict[str, object]:
    """What `receiver verify --json` prints; `equal` is null where not all chunks could be compared."""
    return {
        "pool": str(pool),
        "points": [
            {
                "volume": view.volume(each.volume).name,
                "uuid": str(each.volume),
                "timeline": each.timeline,
                "number": each.number,
                "equal": each.is_equal,
                "chunks_compared": each.chunk_count,
                "chunks_unknown": each.unknown_count,
                "chunks_differing": each.differing_count,
                "differing": list(each.differing),
            }
            for each in verified
        ],
    }
