"""What a follower says of its progress: complete to when, and behind since when."""

from __future__ import annotations

from dataclasses import replace

from replicator.events.beacon import Beacon
from replicator.events.bodies import PublisherOpened, VolumeRenamed
from tests.support.manual_waiter import WatchedWaiter
from tests.support.receivers import follower, memory_log
from tests.support.replica_pools import ReplicaPool
from tests.support.replica_streams import SECOND_NS, SourceVolume

SIZE = 20 * 65536


def test_complete_to_follows_a_beacon_that_matches(replica: ReplicaPool, source: SourceVolume) -> None:
    log = memory_log()
    source.publish(log)
    later = source.now_ns + 5_000_000_000
    log.write_beacon(Beacon.of(source.state, later, later))
    followed = follower(replica, source, log)
    followed.follow(None)
    assert followed.progress.complete_to_ns == later
    log.write_beacon(replace(Beacon.of(source.state, later * 2, later * 2), sequence=1))
    followed.follow(None)
    assert followed.progress.complete_to_ns == later > source.now_ns, "one that doesn't match says nothing"


def test_complete_to_never_goes_back(replica: ReplicaPool, source: SourceVolume) -> None:
    """A publisher that opens again, a rename, and a new pass: what was known stays known until more is."""
    log = memory_log()
    source.publish(log)
    later = source.now_ns + 300 * SECOND_NS
    log.write_beacon(Beacon.of(source.state, later, later))
    followed = follower(replica, source, log)
    followed.follow(None)
    for change in (PublisherOpened(2, "alpha", (), later), VolumeRenamed("cal", later)):
        source.put(change)
        source.publish(log)
        followed.follow(None)
        assert followed.progress.complete_to_ns == later
    source.transaction(source.scribble())
    source.publish(log)
    followed.follow(None)
    assert followed.progress.number == 4 and followed.progress.complete_to_ns == later


def test_the_first_look_of_a_new_follower_knows_how_far_the_replica_is_complete(
    replica: ReplicaPool, source: SourceVolume
) -> None:
    """W6: the pool's position is the last commit's, and the beacon's is behind the opening that came after it."""
    log = memory_log()
    source.publish(log)
    follower(replica, source, log).follow(None)
    source.reopen()
    source.publish(log)
    later = source.now_ns + 300 * SECOND_NS
    log.write_beacon(Beacon.of(source.state, later, later))
    waiter = WatchedWaiter(0.0)
    again = follower(replica, source, log, waiter=waiter)
    seen: list[int | None] = []
    waiter.look = lambda: seen.append(again.progress.complete_to_ns)
    again.follow(None)
    assert None not in seen[seen.index(later) :] and set(seen) <= {None, later}, "never the last commit's instant"


def test_behind_since_the_oldest_transaction_that_is_not_applied(replica: ReplicaPool, source: SourceVolume) -> None:
    """However steadily it applies: the age is the next one's, by the instant of its cut."""
    log = memory_log()
    source.publish(log)
    waiter = WatchedWaiter(1.0)
    followed = follower(replica, source, log, waiter=waiter)
    followed.follow(None)
    cuts = dict.fromkeys(range(4), source.now_ns)
    for number in range(4, 10):
        source.transaction(source.scribble())
        cuts[number] = source.now_ns
    source.publish(log)
    seen: list[tuple[int, int | None]] = []

    def look() -> None:
        if followed.progress.waiting_count:
            seen.append((followed.progress.number, followed.progress.oldest_waiting_ns))

    waiter.look = look
    followed.follow(None)
    assert len({number for number, _ in seen}) >= 4, "it was looked at again and again"
    assert all(oldest == cuts[number + 1] for number, oldest in seen)
