"""Whether a label is free: it names one point of a volume, and so is looked for before a cut is made under it.

    who asks                          looks at
    points create                     what pool and log hold, and the cuts that wait for their publisher
    agent snapshot, agent publish     the cuts that wait: the rest costs a look through the whole log

Where the log is away only what the pool remembers is known.

Failures: ConflictError (taken), NotFoundError (no such volume).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import tzinfo
from pathlib import Path
from uuid import UUID

from replicator.errors import ConflictError
from replicator.history.points import ByLabel, PointSpecification
from replicator.history.resolve import NamedVolume, PointNotFoundError
from replicator.pool.catalogue_schema import Purpose, Snapshot
from replicator.pool.opening import require_pool
from replicator.pool.view import CatalogueView
from replicator.repository.source import Source, open_source


def refuse_taken(pool: Path, volume: str, label: str, zone: tzinfo) -> None:
    """ConflictError if the volume has a point of that label, or a cut that will be one."""
    require_pool(pool)
    with open_source(str(pool)) as source:
        assert source.pool is not None, "it was named by its directory"
        found = source.volume(volume)
        refuse_waiting(pool, source.pool.view(), [found.uuid], [label])
        taken = _holder(source, found, label, zone)
        if taken is not None:
            mend = f"choose another label; replicator points list {pool} {found.name} shows those there are"
            raise ConflictError(f"{label!r} is the label of {found.name} {taken} already", mend=mend)


def refuse_waiting(pool: Path, view: CatalogueView, volumes: Iterable[UUID], labels: Sequence[str]) -> None:
    """ConflictError if a cut of one of these volumes waits for its publisher under one of these labels."""
    for volume in volumes:
        for cut in waiting_under(view, volume, labels):
            label = next(each for each in labels if each in cut.labels)
            mend = f"choose another label, or have it published: replicator agent publish {pool} --log LOG"
            raise ConflictError(
                f"{label!r} is the label of a cut of {view.volume(str(volume)).name} that isn't published yet",
                mend=mend,
            )


def waiting_under(view: CatalogueView, volume: UUID, labels: Sequence[str]) -> list[Snapshot]:
    """The volume's cuts that wait for their publisher under one of these labels."""
    return [each for each in view.snapshots_of(volume, Purpose.TARGET) if not set(labels).isdisjoint(each.labels)]


def _holder(source: Source, volume: NamedVolume, label: str, zone: tzinfo) -> str | None:
    """The point that has the label, for people."""
    wanted = PointSpecification(str(volume.uuid), ByLabel(label), label)
    try:
        _, point = source.find(wanted, now_ns=time.time_ns(), accept_gap=True)
    except PointNotFoundError:
        known = source.pool.points(volume.uuid) if source.pool is not None else []
        branched = len(source.offer(volume).lineage.timelines) > 1
        places = (replace(each.restore_point(), branched=branched).place for each in known if label in each.labels)
        return next((f"@{place}" for place in places), None)
    return point.describe(zone)
