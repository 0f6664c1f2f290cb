"""How often a log of each kind is written to, where no setting says otherwise. Pure.

kind                    cut every   beacon every
directory, ssh, kafka   1 s         10 s
s3, gs, az              10 s        60 s            every request is paid for
"""

from __future__ import annotations

from replicator.log.schemes import split_scheme

_PAID = ("s3", "gs", "az")
_INTERVAL_S, _PAID_INTERVAL_S = 1.0, 10.0
_BEACON_S, _PAID_BEACON_S = 10.0, 60.0


def _scheme(url: str) -> str:
    parts = split_scheme(url)
    return "" if parts is None else parts[0]


def default_interval_s(url: str) -> float:
    """Seconds between two cuts of volumes that are published to this log."""
    return _PAID_INTERVAL_S if _scheme(url) in _PAID else _INTERVAL_S


def beacon_interval_s(url: str) -> float:
    """Seconds between two beacons in this log."""
    return _PAID_BEACON_S if _scheme(url) in _PAID else _BEACON_S
