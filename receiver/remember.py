"""What a receiver writes into its pool's catalogue besides replicas: what was verified when, and what was found.

setting             value
verified:UUID       {"number": N, "timestamp_ns": T}: the newest point that was verified, and when
drift:UUID          {"timeline", "number", "span_chunks", "count", "spans": [the first], "found_ns"}: a point that
                    reads otherwise than its source attested; gone once a later one was found equal
"""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

import msgspec

from replicator.pool.catalogue_schema import Setting
from replicator.pool.changes import Change, End, Put
from replicator.pool.view import CatalogueView

_VERIFIED = "verified:"
_DRIFT = "drift:"


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


class Drift(msgspec.Struct, frozen=True):
    """Spans of a point that aren't what the source attested: `count` of them, the first by number."""

    timeline: int
    number: int
    span_chunks: int
    count: int
    spans: tuple[int, ...]
    found_ns: int


def drift_changes(view: CatalogueView, volume: UUID, drift: Drift | None) -> tuple[Change, ...]:
    """Remember the drift, or (None) that there is none any more."""
    name = f"{_DRIFT}{volume}"
    if drift is not None:
        return (Put(Setting(name, msgspec.json.encode(drift).decode())),)
    return (End(Setting, (name,)),) if view.setting(name) else ()


def drift_of(view: CatalogueView, volume: UUID) -> Drift | None:
    """What is known to have drifted."""
    text = view.setting(f"{_DRIFT}{volume}")
    return msgspec.json.decode(text, type=Drift) if text else None
