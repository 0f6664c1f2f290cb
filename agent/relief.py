"""Room in the pool while the log is away: when bases are let go of, so that writes go on, and what that costs.

A base, and the target of a transaction that waits, keep every block that was overwritten since: at most as much as the
volume holds, twice. When the pool runs low while the log is away, `when_full` decides:

    drop-base      base and target go; once the log is back an open transaction is aborted, and the next one is found by
                   comparing hashes with those in the log (compare): the volume is read whole, once
    stop-writes    they stay: writes end with ENOSPC when the pool is full (P8), and go on once the log is back

    dies …                         pool                                   the next agent
    before the switch              base, target, Prepared                 as if nothing had happened
    after it                       Prepared without snapshots, Position   aborts what is open, drops Prepared, compares

Invariants
  F1  Nothing is let go of while the log can be reached, nor before the pool is low, nor where it would free nothing.
  F2  Position and Prepared stay: what the log has is still ours, and what is open there is known.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from uuid import UUID

from agent.rows import let_go, switched
from replicator.pool.catalogue_schema import Purpose
from replicator.pool.interface import Pool, PoolStatus
from replicator.pool.view import CatalogueView

LOW_PARTS = 20
"""A pool is low when a twentieth of its data is free, or what its low-water mark says, if that is more."""

METADATA_LOW_PARTS = 16


class WhenFull(StrEnum):
    """What gives way when the pool runs low while the log is away."""

    DROP_BASE = "drop-base"
    STOP_WRITES = "stop-writes"


def low_blocks(status: PoolStatus) -> int:
    """Free data blocks at which the pool is low."""
    return max(status.low_water_blocks, status.data_blocks // LOW_PARTS)


def is_low(status: PoolStatus) -> bool:
    """Whether the pool runs out of data or metadata."""
    metadata_low = status.metadata_free_blocks < status.metadata_blocks // METADATA_LOW_PARTS
    return status.data_free_blocks < low_blocks(status) or metadata_low


def held_blocks(pool: Pool, view: CatalogueView, status: PoolStatus) -> int:
    """Data blocks that only bases and targets keep, at least: what all other devices map may be shared."""
    ours = {each.dev_id for each in view.snapshots if each.purpose in (Purpose.BASE, Purpose.TARGET)}
    others = sum(facts.mapped_blocks for dev_id, facts in pool.facts(()).items() if dev_id not in ours)
    return max(0, status.data_blocks - status.data_free_blocks - others)


def relieve(pool: Pool, volumes: Iterable[UUID]) -> bool:
    """Let go of these volumes' bases and targets, if the pool is low and that frees something (F1); whether it did."""
    status = pool.status()
    if not is_low(status):
        return False
    view, wanted = pool.view(), list(volumes)
    there = {each.volume for each in view.snapshots if each.purpose in (Purpose.BASE, Purpose.TARGET)}
    if not there & set(wanted) or not held_blocks(pool, view, status):
        return False
    switched(pool, lambda newest: let_go(newest, wanted))
    return True
