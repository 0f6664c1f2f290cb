"""What a receiver knows of one volume, as a value, and what follows from it: complete to when, behind by how much.

Made by follow, judged by history/protection, shown by status. Pure.

Invariants
  F1  A beacon that doesn't match the state that was applied says nothing: `complete to` stands still, and it never goes
      back.
  F2  `complete to` never lies before the last applied transaction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from uuid import UUID

from receiver.registering import Registered
from replicator.events.beacon import Beacon
from replicator.events.chain import Skipped
from replicator.events.state import StreamState
from replicator.history.points import NS_PER_S
from replicator.history.protection import Failure, ReplicaFacts


class Activity(StrEnum):
    """What a follower is doing."""

    FOLLOWING = "following"
    APPLYING = "applying"
    WAITING_FOR_ROOM = "waiting for room"
    UNREACHABLE = "log or pool unreachable"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Progress:
    """Of one volume: what is applied (`number`, `newest_ns`), what the log has, and what is wrong."""

    volume: UUID
    name: str
    activity: Activity = Activity.FOLLOWING
    timeline: int = 1
    number: int = 0
    newest_ns: int | None = None
    size_bytes: int = 0
    complete_to_ns: int | None = None
    alive_at_ns: int | None = None
    waiting_count: int = 0
    oldest_waiting_ns: int | None = None
    staged_chunks: int = 0
    skipped: Skipped = field(default_factory=Skipped)
    deleted: bool = False
    registered: Registered = field(default_factory=Registered)
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a beacon may be away, a transaction may wait, and something unreachable is no alarm yet."""

    silent_after_s: float = 60.0
    late_after_s: float = 60.0


def complete_to_ns(
    state: StreamState, newest_ns: int | None, beacon: Beacon | None, known_ns: int | None = None
) -> int | None:
    """The instant up to which the replica is known to hold everything; None before the first transaction.

    `known_ns`: what was known before (F1).
    """
    if newest_ns is None:
        return None
    said_ns = beacon.equal_until_ns if beacon is not None and beacon.matches(state) else 0
    return max(newest_ns, said_ns, known_ns or 0)


def replica_facts(progress: Progress, patience: Patience, now_ns: int, drift: Failure | None = None) -> ReplicaFacts:
    """What history/protection judges; what can't be reached is a failure only once it is late."""
    failure = progress.failure
    late_ns = round(patience.late_after_s * NS_PER_S)
    if failure is not None and progress.activity is Activity.UNREACHABLE and now_ns - failure.since_ns < late_ns:
        failure = None
    return ReplicaFacts(
        volume=progress.name,
        newest_ns=progress.newest_ns,
        complete_to_ns=progress.complete_to_ns,
        silent_after_ns=round(patience.silent_after_s * NS_PER_S),
        late_after_ns=late_ns,
        waiting_count=progress.waiting_count,
        oldest_waiting_ns=progress.oldest_waiting_ns,
        failure=failure,
        drift=drift,
        deleted=progress.deleted,
    )
