"""Whether a label is free: it names one point of a volume, and so is looked for before a cut is made under it.

Asked by the agent that runs, and by `points create` and `agent publish` where none does. What the volume's log and the
pool hold counts, and a cut that waits for its publisher; where the log is away, only what the pool remembers is known.

Failures: ConflictError (taken), NotFoundError (no such volume).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import tzinfo
from pathlib import Path

from replicator.errors import ConflictError
from replicator.history.points import ByLabel, PointSpecification
from replicator.history.resolve import NamedVolume, PointNotFoundError
from replicator.pool.catalogue_schema import Purpose, Role
from replicator.pool.interface import Pool
from replicator.pool.opening import require_pool
from replicator.repository.source import Source, open_source


def refuse_taken(
    pool: Path, volumes: Sequence[str], labels: Sequence[str], zone: tzinfo, *, beside: Pool | None = None
) -> None:
    """ConflictError if one of these volumes of the pool (none named: all it publishes) has a point of that label.

    `beside`: that pool, open here.
    """
    require_pool(pool)
    with open_source(str(pool), beside=beside) as source:
        for volume in [source.volume(each) for each in volumes] or _published(source):
            for label in labels:
                taken = _holder(source, volume, label, zone)
                if taken is not None:
                    mend = f"choose another label; replicator points list {pool} {volume.name} shows those there are"
                    raise ConflictError(f"{label!r} is the label of {volume.name} {taken} already", mend=mend)


def _published(source: Source) -> list[NamedVolume]:
    """The volumes that a cut of all takes: no replicas."""
    assert source.pool is not None, "it was named by its directory"
    view = source.pool.view()
    return [each for each in source.volumes() if view.position(each.uuid, Role.APPLIED) is None]


def _holder(source: Source, volume: NamedVolume, label: str, zone: tzinfo) -> str | None:
    """What has the label, for people."""
    assert source.pool is not None, "it was named by its directory"
    waiting = source.pool.view().snapshots_of(volume.uuid, Purpose.TARGET)
    if any(label in each.labels for each in waiting):
        return "cut that isn't published yet,"
    wanted = PointSpecification(str(volume.uuid), ByLabel(label), label)
    try:
        _, point = source.find(wanted, now_ns=time.time_ns(), accept_gap=True)
    except PointNotFoundError:
        return None
    return point.describe(zone)
