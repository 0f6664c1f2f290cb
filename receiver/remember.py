"""What a receiver writes into its pool's catalogue besides replicas: which log it follows, what was verified when.

setting             value
log                 the log's URL, absolute: restores and `points list` find it there
verified:UUID       {"number": N, "timestamp_ns": T}: the newest point that was verified, and when
"""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

import msgspec

from replicator.log.opening import log_url
from replicator.pool.catalogue_schema import Setting
from replicator.pool.changes import Put
from replicator.pool.view import CatalogueView
from replicator.repository.source import LOG_SETTING

_VERIFIED = "verified:"


class _Verified(msgspec.Struct, frozen=True):
    number: int
    timestamp_ns: int


def log_rows(view: CatalogueView, url: str) -> tuple[Put, ...]:
    """What the catalogue lacks to name the log."""
    wanted = log_url(url)
    return () if view.setting(LOG_SETTING) == wanted else (Put(Setting(LOG_SETTING, wanted)),)


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
