"""A writable volume from a restore point: `volume clone POOL VOLUME@POINT NAME`.

    the point is a snapshot in this pool   a snapshot of it: O(1), all blocks shared
    it is replayed from the log            its content is brought in as pool/importing does it, whole or not at all

What a crash leaves stands there, and in pool/volumes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import tzinfo

from replicator.pool.catalogue_schema import Volume
from replicator.pool.devices import find
from replicator.pool.importing import import_disk
from replicator.pool.interface import Pool
from replicator.pool.reading import read_beside
from replicator.pool.volumes import clone
from replicator.repository.point import NOTHING, PointDisk
from replicator.repository.source import open_source


class _PointSource:
    """A restore point's disk as something to import."""

    def __init__(self, disk: PointDisk) -> None:
        self._disk = disk
        self.name, self.size_bytes = disk.name, disk.size_bytes

    def extents(self, unit_bytes: int) -> Iterator[tuple[int, int]]:
        """What the point has data in, in whole units."""
        begin = end = 0
        for offset, length, flags in self._disk.runs(0, self.size_bytes):
            if flags == NOTHING:
                continue
            low = offset // unit_bytes * unit_bytes
            high = min(-(-(offset + length) // unit_bytes) * unit_bytes, self.size_bytes)
            if low > end:
                if end > begin:
                    yield begin, end
                begin = low
            end = max(end, high)
        if end > begin:
            yield begin, end

    def pread_into(self, target: memoryview, offset_bytes: int) -> None:
        """Fill `target`, each chunk of the log verified."""
        self._disk.pread_into(target, offset_bytes)


def clone_named(pool: Pool, source: str, name: str, zone: tzinfo) -> Volume:
    """The volume `name`, to be written, from a volume, a snapshot, or a restore point (`source` has an `@`)."""
    if "@" not in source:
        with read_beside(pool) as reader:
            found = find(reader, source)
        return clone(pool, found.dev_id if found.live is None else found.live.uuid, name)
    with open_source(str(pool.path), beside=pool) as points:
        opened = points.open_point(source, now_ns=time.time_ns(), zone=zone)
        with opened.disk:
            if opened.point.dev_id is not None:
                return clone(pool, opened.point.dev_id, name)
            return import_disk(pool, name, _PointSource(opened.disk)).volume
