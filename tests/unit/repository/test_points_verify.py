"""A point that isn't what the log says is never given out: what is wrong is named by volume, transaction and chunk."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from replicator.errors import DamageError, NotFoundError, UnavailableError
from replicator.events.beacon import Beacon
from replicator.history.divided import TwoHistoriesError
from replicator.history.lineage import HistoryConflictError
from replicator.history.plan import PointUnreachableError
from replicator.history.resolve import AmbiguousVolumeError, BeyondCompleteError, PointNotFoundError
from replicator.log.errors import SegmentError
from replicator.log.object_log import ObjectLog
from replicator.pool.catalogue_schema import Branch, LoggedPoint, Purpose, Role, Snapshot
from replicator.repository.logged import read_history
from replicator.repository.point import ChunkMismatchError, PointDisk
from replicator.repository.source import Source
from replicator.units import CHUNK_BYTES
from tests.support.event_streams import OTHER_VOLUME
from tests.support.memory_objects import MemoryStore
from tests.support.pools_in_memory import MemoryPool, point_snapshot
from tests.support.volume_histories import BEGAN_NS, NAME, SECOND_NS, History

SIZE = 6 * CHUNK_BYTES
NOW_NS = BEGAN_NS + 100 * SECOND_NS


class Stand:
    """A history of four transactions, and a pool that keeps the second."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.log = ObjectLog(self.store, create=True)
        self.history = History(self.log, random.Random(1), SIZE)
        rng = random.Random(2)
        self.history.write(0, rng.randbytes(SIZE))
        self.history.write(0, rng.randbytes(4096), "second")
        self.history.write(2 * CHUNK_BYTES, rng.randbytes(4096))
        self.history.write(4 * CHUNK_BYTES, rng.randbytes(100), "fourth")
        self.logged = {each.number: each for each in read_history(self.log, self.history.volume).points}
        self.pool = MemoryPool(self.history.volume, logged=list(self.logged.values()))
        self.pool.keep(point_snapshot(7, self.logged[2]), self.history.contents[1, 2])

    def source(self) -> Source:
        return Source("pool", self.pool, self.log)

    def open(self, text: str = f"{NAME}@latest") -> PointDisk:
        return self.source().open_point(text, now_ns=NOW_NS).disk

    def segments(self) -> list[str]:
        return sorted(name for name in self.store.objects if name.split("/")[-1].isdigit() and name.count("/") == 3)


def test_a_flipped_bit_in_the_base_shows_where_the_log_wrote() -> None:
    stand = Stand()
    disk = stand.open()
    expected = stand.history.contents[1, 4]
    assert disk.pread(SIZE, 0) == expected
    damaged = bytearray(stand.pool.disks[7])
    damaged[2 * CHUNK_BYTES + 60_000] ^= 0x10
    stand.pool.disks[7] = bytes(damaged)
    disk = stand.open()
    with pytest.raises(ChunkMismatchError) as caught:
        disk.pread(1, 2 * CHUNK_BYTES)
    error = caught.value
    assert (error.volume, error.number, error.chunk) == (f"{NAME}@1:4", 3, 2) and error.exit_code == 3
    assert error.expected != error.found and error.expected.hex() in error.message
    assert disk.pread(CHUNK_BYTES, 4 * CHUNK_BYTES) == expected[4 * CHUNK_BYTES : 5 * CHUNK_BYTES], "others are well"
    disk.close()
    assert stand.pool.leased == 0


def test_another_base_shows_before_it_is_read() -> None:
    stand = Stand()
    row = stand.pool.snapshots[0]
    stand.pool.snapshots[0] = Snapshot(
        row.dev_id, row.volume, Purpose.POINT, row.timestamp_ns, row.size_bytes, 1, 2, digest=bytes(16)
    )
    stand.pool.logged = []
    with pytest.raises(TwoHistoriesError) as caught:
        stand.open(f"{NAME}@2")
    assert caught.value.exit_code == 4
    assert stand.pool.leased == 0
    with stand.open(f"{NAME}@3") as disk:
        assert disk.pread(SIZE, 0) == stand.history.contents[1, 3], "the log's, on nothing of the other history"


def test_a_base_that_another_one_replaces_behind_the_judgement() -> None:
    stand = Stand()
    source = stand.source()
    offer = source.offer(source.volume(NAME))
    wrong = replace(offer.points[1], digest=bytes(16))
    misjudged = replace(offer, inventory=replace(offer.inventory, points=(wrong,)))
    source._offers[offer.volume.uuid] = misjudged
    with source.open_point(f"{NAME}@3", now_ns=NOW_NS).disk as disk:
        assert disk.pread(SIZE, 0) == stand.history.contents[1, 3], "another row than was planned with: judged again"
    stand.pool.snapshots[0] = replace(stand.pool.snapshots[0], digest=bytes(16))
    source._offers[offer.volume.uuid] = misjudged
    with pytest.raises(HistoryConflictError) as caught:
        source.open_point(f"{NAME}@3", now_ns=NOW_NS)
    assert caught.value.exit_code == 4 and stand.pool.leased == 0


def test_a_flipped_bit_in_a_frame_is_named_by_its_segment() -> None:
    stand = Stand()
    name = stand.segments()[-1]
    data = bytearray(stand.store.objects[name])
    pages = [at for at in range(48, len(data) - 200) if data[at : at + 4] == b"\x28\xb5\x2f\xfd"]
    at = pages[0] if pages else len(data) // 2
    data[at + 8] ^= 1
    stand.store.objects[name] = bytes(data)
    disk = stand.open()
    with pytest.raises(SegmentError, match=name) as caught:
        disk.pread(SIZE, 0)
    assert caught.value.exit_code == 3 and caught.value.sequence > 1


@pytest.mark.parametrize("keep", [0, 10, 47, 100, -1, -20, -60])
def test_a_segment_cut_short_is_named(keep: int) -> None:
    stand = Stand()
    name = stand.segments()[-1]
    stand.store.objects[name] = stand.store.objects[name][:keep]
    stand.pool.logged = []
    with pytest.raises(SegmentError, match=name) as caught:
        Source("log", log=stand.log).open_point(f"{NAME}@latest", now_ns=NOW_NS)
    assert caught.value.exit_code == 3


def test_without_its_log_a_pool_has_its_snapshots(tmp_path: Path) -> None:
    stand = Stand()
    source = Source("pool", stand.pool, remembered={Role.APPLIED: str(tmp_path / "away")})
    offer = source.offer(source.volume(NAME))
    assert [each.number for each in offer.points] == [2] and offer.problem is not None
    with source.open_point(f"{NAME}@second", now_ns=NOW_NS).disk as disk:
        assert disk.pread(SIZE, 0) == stand.history.contents[1, 2]
    with pytest.raises(PointNotFoundError):
        source.open_point(f"{NAME}@4", now_ns=NOW_NS)


def test_what_was_trimmed_leaves_the_list() -> None:
    stand = Stand()
    commit = stand.logged[3].sequence
    stand.log.trim(stand.history.volume, 1, commit + 1)
    source = stand.source()
    assert [each.number for each in source.offer(source.volume(NAME)).points] == [2]
    alone = Source("log", log=stand.log)
    assert alone.offer(alone.volume(NAME)).points == ()


def test_complete_to_is_the_beacons_word() -> None:
    stand = Stand()
    newest_ns = BEGAN_NS + 4 * SECOND_NS
    later = f"{NAME}@-80s"  # sixteen seconds after the newest
    with pytest.raises(BeyondCompleteError) as caught:
        stand.open(later)
    assert caught.value.newest.number == 4 and caught.value.exit_code == 5
    disk = stand.source().open_point(later, now_ns=NOW_NS, accept_gap=True).disk
    assert disk.pread(SIZE, 0) == stand.history.contents[1, 4]
    stand.log.write_beacon(Beacon.of(stand.history.state, newest_ns + 30 * SECOND_NS, newest_ns + 30 * SECOND_NS))
    opened = stand.source().open_point(later, now_ns=NOW_NS)
    assert opened.point.number == 4 and opened.complete_to_ns == newest_ns + 30 * SECOND_NS
    stand.store.objects[f"beacons/{stand.history.volume}"] = b"rubbish"
    with pytest.raises(BeyondCompleteError):
        stand.open(later)


def test_a_replica_that_lags_lists_what_its_log_has() -> None:
    """An answer that is silently older than the log's would be a lost write nobody hears of."""
    stand = Stand()
    stand.pool.logged = stand.pool.logged[:2]
    stand.history.label((1, 1), "late-label")
    source = stand.source()
    opened = source.open_point(f"{NAME}@latest", now_ns=NOW_NS)
    assert opened.point.number == 4
    assert source.open_point(f"{NAME}@late-label", now_ns=NOW_NS).point.number == 1


def test_a_snapshot_that_retires_meanwhile() -> None:
    stand = Stand()
    source = stand.source()
    offer = source.offer(source.volume(NAME))
    assert offer.points[1].materialised
    del stand.pool.disks[7]
    stand.pool.snapshots.clear()
    with source.open_point(f"{NAME}@2", now_ns=NOW_NS).disk as disk:
        assert disk.pread(SIZE, 0) == stand.history.contents[1, 2], "from the log, then"
    stand = Stand()
    del stand.pool.disks[7]
    with pytest.raises(UnavailableError, match="any more"):
        stand.open(f"{NAME}@2")


def test_user_snapshots_by_name() -> None:
    stand = Stand()
    stand.pool.keep(Snapshot(9, stand.history.volume, Purpose.USER, 5, SIZE, name="mine"), b"\1" * SIZE)
    with stand.source().open_snapshot("mine") as disk:
        assert disk.pread(5, 7) == b"\1" * 5
    with pytest.raises(NotFoundError, match="mine"):
        stand.source().open_snapshot("yours")
    with pytest.raises(NotFoundError, match="is a log"):
        Source("log", log=stand.log).open_snapshot("mine")


def test_names_that_two_hosts_use() -> None:
    stand = Stand()
    other = History(stand.log, random.Random(1), SIZE, OTHER_VOLUME)
    other.write(0, b"x")
    source = Source("log", log=stand.log)
    with pytest.raises(AmbiguousVolumeError, match=str(OTHER_VOLUME)):
        source.open_point(f"{NAME}@latest", now_ns=NOW_NS)
    assert source.open_point(f"{OTHER_VOLUME}@latest", now_ns=NOW_NS).point.number == 1


def test_a_branch_that_only_the_pool_remembers() -> None:
    stand = Stand()
    stand.pool.branches.append(Branch(stand.history.volume, 2, 1, 2))
    stand.pool.logged.append(LoggedPoint(stand.history.volume, 2, 3, BEGAN_NS, SIZE, 9))
    source = stand.source()
    offer = source.offer(source.volume(NAME))
    assert offer.lineage.current == 2
    assert (2, 3) not in {(each.timeline, each.number) for each in offer.points}, "its events are nowhere"


def test_an_unreachable_point_says_what_is_gone() -> None:
    stand = Stand()
    source = Source("log", log=stand.log)
    offer = source.offer(source.volume(NAME))
    for name in stand.segments()[1:2]:
        del stand.store.objects[name]
    with pytest.raises((PointUnreachableError, DamageError)):
        source.open_point(f"{NAME}@{offer.points[-1].number}", now_ns=NOW_NS)
