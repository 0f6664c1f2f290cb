"""What a receiver writes into its pool's catalogue besides replicas: what was verified when.

setting             value
verified:UUID       {"number": N, "timestamp_ns": T}: the newest point that was verified, and when
"""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

import msgspec

from replicator.pool.catalogue_schema import Setting
from replicator.pool.changes import Put
from replicator.pool.view import CatalogueView

_VERIFIED = "verified:"


class _Verified(msgspec.Struct, frozen=True):
    number: int
    timestamp_ns: int


def verified_row(volume: UUID, number: int, timestamp_ns: int) -> Put:
    """That a point of the volume was read and found equal."""
    value = msgspec.json.encode(_Verified(number, timestamp_ns)).decode()
    return Put(Setting(f"{_VERIFIED}{volume}", value))


def verified_of(view: CatalogueView) -> Mapping[str, tuple[int, int]]:
    """By volume: the number of the point that was verified last, and when."""
    found = {}
    for volume in view.volumes:
        text = view.setting(f"{_VERIFIED}{volume.uuid}")
        if text:
            row = msgspec.json.decode(text, type=_Verified)
            found[str(volume.uuid)] = (row.number, row.timestamp_ns)
    return found
