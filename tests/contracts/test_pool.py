"""I1 to I3 of pool/interface, on every Pool: in this process, and through the owner's control socket."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
import pytest

from replicator.blockdev.file import FileDevice
from replicator.errors import ConflictError, NoSpaceError, NotFoundError, ReplicatorError, UsageError
from replicator.pool import volumes
from replicator.pool.catalogue_schema import LoggedPoint, Purpose, Setting
from replicator.pool.changes import End, Put
from replicator.pool.interface import CutRequest, Filling, Pool, StaleSwitchError, Switch
from replicator.pool.locks import PoolLock
from replicator.pool.reading import read_beside
from replicator.pool.remote import RemotePool
from replicator.units import MIB
from tests.support.pool_owner import make_pool, served

BLOCK = 65536
U64 = np.uint64


def _blocks(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(numbers, dtype=U64)


@pytest.fixture(params=["local", "remote"])
def pool(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pool]:
    """A pool with the volume `disk` (16 MiB), through each implementation."""
    path = tmp_path / "pool"
    make_pool(path)
    with served(path) as owned:
        volumes.create_volume(owned, "disk", 16 * MIB)
        if request.param == "local":
            yield owned
        else:
            with RemotePool(path) as near:
                yield near


def _fill(pool: Pool, dev_id: int, virtual_blocks: list[int], content: bytes) -> None:
    """Write `content` into each block of a new or closed device, as a receiver does."""
    with PoolLock.write(pool.path), FileDevice(pool.path / "data") as data:
        blocks = pool.reserve(len(virtual_blocks))
        for block in blocks.tolist():
            data.pwrite(content * (BLOCK // len(content)), block * BLOCK)
        pool.switch(Switch(fill=(Filling(dev_id, _blocks(*virtual_blocks), blocks),)))


def test_status_and_view_agree_on_the_newest_switch(pool: Pool) -> None:
    before = pool.view()
    made = pool.switch(Switch(changes=(Put(Setting("a", "1")),)))
    assert made == before.at_id + 1 == pool.view().at_id == pool.status().transaction_id
    assert pool.view().setting("a") == "1" and before.setting("a") == ""
    assert pool.status().uuid == pool.view().pool.uuid
    assert pool.status().block_bytes == pool.block_bytes == BLOCK


def test_a_switch_with_another_id_is_refused_and_changes_nothing(pool: Pool) -> None:
    at_id = pool.view().at_id
    with pytest.raises(StaleSwitchError):
        pool.switch(Switch(create=(9,), expected_id=at_id - 1))
    with pytest.raises(StaleSwitchError):
        pool.switch(Switch(create=(9,), expected_id=at_id + 1))
    assert pool.view().at_id == at_id and not pool.facts((9,))
    assert pool.switch(Switch(create=(9,), expected_id=at_id)) == at_id + 1
    assert pool.facts((9,))[9].mapped_blocks == 0


@pytest.mark.parametrize(
    ("switch", "kind"),
    [
        (Switch(delete=(77,)), NotFoundError),
        (Switch(snapshot=((8, 77),)), NotFoundError),
        (Switch(create=(1,)), ConflictError),
        (Switch(create=(8, 8)), UsageError),
        (Switch(changes=(End(Setting, ("none",)),)), NotFoundError),
    ],
)
def test_a_refused_switch_changes_nothing(pool: Pool, switch: Switch, kind: type[ReplicatorError]) -> None:
    """I1: an error of its own type, and the pool as it was."""
    before = pool.view(), pool.facts(())
    with pytest.raises(kind):
        pool.switch(switch)
    assert (pool.view(), pool.facts(())) == before


def test_a_filling_names_each_reserved_block_once(pool: Pool) -> None:
    """I1: a block that somebody has, or that is named twice, is refused before anything is done."""
    pool.switch(Switch(create=(5, 6)))
    _fill(pool, 5, [0], b"abcd")
    free = pool.reserve(1)
    taken = _blocks(int(free[0]), int(free[0]))
    with pytest.raises(ConflictError):
        pool.switch(Switch(fill=(Filling(6, _blocks(0, 1), taken),)))
    pool.switch(Switch(fill=(Filling(6, _blocks(0), free),)))
    with pytest.raises(ConflictError):
        pool.switch(Switch(fill=(Filling(5, _blocks(1), free),)))


def test_reserved_blocks_become_a_devices_content(pool: Pool) -> None:
    """create, fill, read back under a lease; then unmap."""
    pool.switch(Switch(create=(5,)))
    _fill(pool, 5, [0, 1, 200], b"abcd")
    assert pool.facts((5,))[5].mapped_blocks == 3
    with read_beside(pool) as reader, reader.disk(5, 16 * MIB) as disk:
        assert disk.pread(8, 0) == b"abcdabcd"
        assert disk.pread(6, 2 * BLOCK - 4) == b"abcd\0\0"
        assert disk.pread(4, 200 * BLOCK + 4) == b"abcd"
        assert [length for _, length, where in disk.runs(0, 16 * MIB) if where < 0] == [198 * BLOCK, 55 * BLOCK]
    pool.switch(Switch(fill=(Filling(5, unmapped=_blocks(1, 256).reshape(1, 2)),)))
    assert pool.facts((5,))[5].mapped_blocks == 1


def test_what_is_given_back_can_be_reserved_again(pool: Pool) -> None:
    free = pool.status().data_free_blocks
    blocks = pool.reserve(100)
    assert len(set(blocks.tolist())) == 100 and pool.status().data_free_blocks == free - 100
    pool.give_back(blocks)
    assert pool.status().data_free_blocks == free
    with pytest.raises(NoSpaceError):
        pool.reserve(free + 1)
    assert pool.status().data_free_blocks == free


def test_a_cut_is_made_once(pool: Pool) -> None:
    """I2: asked twice with one id, the second answer equals the first."""
    volume = pool.view().volume("disk")
    request = CutRequest(uuid4(), (volume.uuid,), Purpose.TARGET, ("nightly",))
    made = pool.cut(request)
    again = pool.cut(request)
    assert (again.cut_id, again.dev_ids, again.timestamp_ns) == (made.cut_id, made.dev_ids, made.timestamp_ns)
    (snapshot,) = pool.view().snapshots
    assert (snapshot.dev_id, snapshot.labels, snapshot.purpose) == (made.dev_ids[0], ("nightly",), Purpose.TARGET)
    assert [each.cut_id for each in pool.view().cuts] == [request.cut_id]
    volumes.drop_cut(pool, request.cut_id)
    assert not pool.view().cuts
    same = pool.cut(CutRequest(uuid4(), (volume.uuid,), unless_equal=made.dev_ids))
    assert not same.made and same.dev_ids == made.dev_ids and len(pool.view().snapshots) == 1


def test_a_cut_of_an_unknown_volume_is_refused(pool: Pool) -> None:
    with pytest.raises(NotFoundError):
        pool.cut(CutRequest(uuid4(), (UUID(int=1),)))


def test_what_is_leased_is_not_deleted(pool: Pool) -> None:
    """I3: while the lease stands; afterwards it is."""
    volume = pool.view().volume("disk")
    pool.switch(Switch(snapshot=((7, volume.dev_id),)))
    with pool.lease((7,)) as lease:
        assert lease.stands and lease.devices == pool.facts((7,))
        with pytest.raises(ConflictError):
            pool.switch(Switch(delete=(7,)))
        assert lease.stands
    assert not lease.stands
    pool.switch(Switch(delete=(7,)))
    with pytest.raises(NotFoundError), pool.lease((7,)):
        pass


def test_a_volume_grows_and_shrinks(pool: Pool) -> None:
    volume = pool.view().volume("disk")
    _fill(pool, volume.dev_id, [0, 255], b"abcd")
    assert pool.resize(volume.uuid, 32 * MIB) == pool.view().at_id
    assert pool.view().volume("disk").size_bytes == 32 * MIB
    pool.resize(volume.uuid, 8 * MIB)
    assert pool.facts((volume.dev_id,))[volume.dev_id].mapped_blocks == 1
    with pytest.raises(NotFoundError):
        pool.resize(UUID(int=1), MIB)


def test_the_metadata_snapshot_is_held_and_released(pool: Pool) -> None:
    assert pool.status().held_root == 0
    assert pool.set_metadata_snapshot(True) == pool.status().held_root > 0
    with pytest.raises(ConflictError):
        pool.set_metadata_snapshot(True)
    assert pool.set_metadata_snapshot(False) == 0
    pool.flush()


def test_the_newest_logged_points_come_in_the_logs_order(pool: Pool) -> None:
    volume = pool.view().volume("disk").uuid
    points = [LoggedPoint(volume, 1, number, number, MIB, number) for number in range(1, 6)]
    pool.switch(Switch(changes=tuple(map(Put, points))))
    assert pool.points(volume, 3) == points[2:]
    assert pool.points(volume, 9, timeline=2) == []


def test_threads_switch_at_once_and_none_is_lost(pool: Pool) -> None:
    """Eight threads, each its own rows, unconditionally."""
    before = pool.view().at_id

    def work(number: int) -> None:
        for turn in range(10):
            pool.switch(Switch(changes=(Put(Setting(f"{number}-{turn}", "x")),)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    view = pool.view()
    assert view.at_id == before + 80
    assert all(view.setting(f"{number}-{turn}") == "x" for number in range(8) for turn in range(10))
