"""A writable volume from a restore point: `volume clone POOL VOLUME@POINT NAME`.

    the point is                                what is written                                what is shared
    a snapshot in this pool, or its head        nothing: a snapshot of it                      all
    replayed from the log over a snapshot       the blocks that hold a chunk the log wrote     all others
    replayed from the log alone, or over a      its content                                    nothing
    snapshot with an external origin

What is written comes in as pool/importing does it: a hidden device is filled in steps, and becomes the volume in the
last switch, whole or not at all. What a crash leaves stands there, and in pool/volumes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import tzinfo

from replicator.history.plan import SnapshotBase
from replicator.pool.catalogue_schema import Volume
from replicator.pool.devices import find
from replicator.pool.importing import Shared, import_disk
from replicator.pool.interface import Pool
from replicator.pool.reading import read_beside
from replicator.pool.volumes import clone, origin_of
from replicator.repository.head import held_row
from replicator.repository.point import NOTHING, PointDisk
from replicator.repository.source import OpenedPoint, Source, open_source


class _PointSource:
    """A restore point's disk as something to import: all of its data, or what differs from the device it lies over."""

    def __init__(self, disk: PointDisk, over: Shared | None) -> None:
        self._disk, self._over = disk, over
        self.name, self.size_bytes = disk.name, disk.size_bytes

    def extents(self, unit_bytes: int) -> Iterator[tuple[int, int]]:
        """What has to be read, in whole units."""
        return joined(self._data() if self._over is None else self._differing(unit_bytes), unit_bytes, self.size_bytes)

    def _data(self) -> Iterator[tuple[int, int]]:
        for offset, length, flags in self._disk.runs(0, self.size_bytes):
            if flags != NOTHING:
                yield offset, offset + length

    def _differing(self, unit_bytes: int) -> Iterator[tuple[int, int]]:
        """What the log touched; and the last unit, where the device goes on behind it: its tail must be zeros."""
        yield from self._disk.touched()
        if self._over is not None and self._over.size_bytes > self.size_bytes and self.size_bytes % unit_bytes:
            yield self.size_bytes - 1, self.size_bytes

    def pread_into(self, target: memoryview, offset_bytes: int) -> None:
        """Fill `target`, each chunk of the log verified."""
        self._disk.pread_into(target, offset_bytes)


def joined(ranges: Iterable[tuple[int, int]], unit_bytes: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Ascending `ranges` in whole units but for the end, those that touch or overlap as one."""
    begin = end = 0
    for first, last in ranges:
        low = first // unit_bytes * unit_bytes
        high = min(-(-last // unit_bytes) * unit_bytes, size_bytes)
        if low > end:
            if end > begin:
                yield begin, end
            begin = low
        end = max(end, high)
    if end > begin:
        yield begin, end


def clone_named(
    pool: Pool,
    source: str,
    name: str,
    zone: tzinfo,
    *,
    accept_gap: bool = False,
    tell: Callable[[Source, OpenedPoint], None] = lambda _source, _opened: None,
) -> Volume:
    """The volume `name`, to be written, from a volume, a snapshot, or a restore point (`source` has an `@`).

    `tell` is given the point that is meant, before anything is made of it.
    """
    if "@" not in source:
        with read_beside(pool) as reader:
            found = find(reader, source)
        return clone(pool, found.live.uuid if found.live else found.snapshot or found.dev_id, name)
    with open_source(str(pool.path), beside=pool) as points:
        opened = points.open_point(source, now_ns=time.time_ns(), accept_gap=accept_gap, zone=zone)
        with opened.disk:
            tell(points, opened)
            if opened.point.dev_id is not None:
                return clone(pool, opened.point.dev_id, name)
            over = _shared(pool, opened)
            return import_disk(pool, name, _PointSource(opened.disk, over), over=over).volume


def _shared(pool: Pool, opened: OpenedPoint) -> Shared | None:
    """The device that the point is replayed over, or is; the open disk holds a lease on it."""
    if not isinstance(opened.plan.base, SnapshotBase):
        return None
    view = pool.view()
    row = held_row(view, opened.plan.base.dev_id)
    return None if origin_of(view, row) is not None else Shared(row.dev_id, row.size_bytes)
