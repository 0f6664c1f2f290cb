"""Volumes that were deleted after they had been published: what is remembered of them until the log was told.

`volume delete` takes the volume's rows; this one stays, in the same switch (pool/volumes), so that no agent has to run
just then. Whoever publishes next appends VolumeDeleted, and ends the row.

    setting           value
    deleted UUID      "TIMELINE NUMBER DIGEST EPOCH" of the last published transaction

Failures: FormatError (a row that isn't ours).
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from agent.rows import switched
from replicator.errors import FormatError
from replicator.pool.catalogue_schema import Setting
from replicator.pool.changes import End
from replicator.pool.interface import Pool, Switch
from replicator.pool.view import CatalogueView
from replicator.pool.volumes import DELETED_SETTING


@dataclass(frozen=True, slots=True)
class Gone:
    """A deleted volume, and its last published transaction."""

    volume: UUID
    timeline: int
    number: int
    digest: bytes
    epoch: int


def gone_volumes(view: CatalogueView) -> list[Gone]:
    """The deleted volumes that the log wasn't told of."""
    rows = view.rows.get(Setting, {}).values()
    return [_parsed(row) for row in rows if row.name.startswith(DELETED_SETTING)]


def buried(pool: Pool, volume: UUID) -> None:
    """The log was told, or is another's: forget the volume."""
    name = f"{DELETED_SETTING}{volume}"
    switched(pool, lambda view: Switch(changes=(End(Setting, (name,)),)) if view.setting(name) else None)


def _parsed(row: Setting) -> Gone:
    try:
        timeline, number, digest, epoch = row.value.split()
        volume = UUID(row.name.removeprefix(DELETED_SETTING))
        return Gone(volume, int(timeline), int(number), bytes.fromhex(digest), int(epoch))
    except ValueError:
        raise FormatError(f"setting {row.name!r}", "UUID, timeline, number, digest, epoch", repr(row.value)) from None
