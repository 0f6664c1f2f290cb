"""Followers over a ReplicaPool and a log in memory, with a clock that the test drives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

from receiver.access import PoolAccess
from receiver.apply import ApplySettings
from receiver.attest import Attester
from receiver.disks import Disks
from receiver.follow import Follower, World
from replicator.log.object_log import ObjectLog
from replicator.pool.catalogue_schema import Role
from replicator.pool.interface import Pool
from tests.support.manual_waiter import ManualWaiter
from tests.support.memory_objects import MemoryStore
from tests.support.replica_pools import ReplicaPool
from tests.support.replica_streams import SourceVolume


def memory_log() -> ObjectLog:
    """An empty log."""
    return ObjectLog(MemoryStore(), create=True)


def follower(
    replica: ReplicaPool,
    source: SourceVolume,
    log: ObjectLog,
    *,
    settings: ApplySettings | None = None,
    pool: Pool | None = None,
    disks: Disks | None = None,
    waiter: ManualWaiter | None = None,
    stopping: Callable[[], bool] = lambda: False,
    name: str | None = None,
    attester: Attester | None = None,
) -> Follower:
    """A follower of `source`, whose pool and disks may be wrapped."""
    chosen = pool or replica.pool
    pools = PoolAccess(lambda: chosen, lambda _: nullcontext(disks or replica.disks))
    world = World(
        pools,
        log,
        waiter or ManualWaiter(),
        lambda: source.now_ns,
        lambda: 0.5,
        stopping,
        settings or ApplySettings(),
        name=name,
        attester=attester,
    )
    return Follower(world, source.uuid, "disk-1")


def applied_number(replica: ReplicaPool, source: SourceVolume) -> int:
    """The transaction that the pool says it has."""
    position = replica.pool.view().position(source.uuid, Role.APPLIED)
    return position.number if position else 0


def assert_prefix(replica: ReplicaPool, source: SourceVolume) -> int:
    """The head is exactly the transaction that the position names; its number."""
    number = applied_number(replica, source)
    if number:
        assert replica.head(source.uuid) == source.images[number]
    return number
