"""What comes between looking and doing: leases, listeners, cuts and resizes beside a switch that waits (L2, I2, P3)."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import pytest

from replicator.errors import ConflictError, NoSpaceError, NotFoundError, ReplicatorError, UsageError
from replicator.pool import volumes
from replicator.pool.catalogue_schema import Setting, Volume
from replicator.pool.changes import Put
from replicator.pool.interface import CutRequest, Filling, Switch
from replicator.pool.local import LocalPool
from replicator.pool.opening import OwnedPool, own_pool
from replicator.thin.change import Change
from replicator.thin.device import ThinDevice
from replicator.units import MIB
from tests.support.pool_owner import make_pool

BLOCK = 65536
Result = TypeVar("Result")


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[OwnedPool]:
    """A pool with the volume `disk`."""
    make_pool(tmp_path / "pool")
    with own_pool(tmp_path / "pool") as owned:
        volumes.create_volume(owned, "disk", MIB)
        yield owned


def _live(pool: LocalPool, name: str = "disk") -> tuple[Volume, ThinDevice]:
    volume = pool.view().volume(name)
    return volume, pool.open_live(volume.dev_id, volume.size_bytes, None)


def _write(pool: LocalPool, device: ThinDevice, block: int, content: bytes) -> None:
    with pool.engine.gate.writing():
        device.pwrite(content * (BLOCK // len(content)), block * BLOCK)


def _at_the_gate(pool: LocalPool, work: Callable[[], Result]) -> Future[Result]:
    """Begin `work`, whose commit waits at the gate when this returns: the caller is inside."""
    looked, done = threading.Event(), Future[Result]()
    closed = pool.engine.gate.closed

    def closing() -> object:
        looked.set()
        return closed()

    pool.engine.gate.closed = closing  # type: ignore[method-assign, assignment] # only to hear of it

    def run() -> None:
        try:
            done.set_result(work())
        except ReplicatorError as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    assert looked.wait(10)
    pool.engine.gate.closed = closed  # type: ignore[method-assign] # as it was
    return done


def test_a_volume_that_shrank_and_grew_shows_nothing_of_before(pool: OwnedPool) -> None:
    volume, device = _live(pool)
    _write(pool, device, 7, b"old!")
    pool.resize(volume.uuid, 4 * BLOCK)
    pool.resize(volume.uuid, MIB)
    assert not device.entry(7) and device.pread(BLOCK, 7 * BLOCK) == bytes(BLOCK)


def test_shrinking_zeroes_the_rest_of_the_last_block_in_its_commit(pool: OwnedPool, tmp_path: Path) -> None:
    """A death before that commit leaves the volume whole; writes meanwhile stay, and nothing shows beyond the end."""
    volume, device = _live(pool)
    _write(pool, device, 3, b"old!")
    pool.flush()
    end = 3 * BLOCK + 4096
    with pool.engine.gate.writing():
        shrinking = _at_the_gate(pool, lambda: pool.resize(volume.uuid, end))
    write = pool.engine.metadata.write

    def before_it_is_written(block0: bytes, flush: Callable[[], None]) -> None:
        shutil.copytree(pool.path, tmp_path / "died", ignore=shutil.ignore_patterns("control", "lock"))
        with pool.engine.gate.writing():
            device.pwrite(b"new!", 3 * BLOCK)
        write(block0, flush)

    pool.engine.metadata.write = before_it_is_written  # type: ignore[method-assign, assignment] # the instant that is asked about
    shrinking.result(10)
    pool.engine.metadata.write = write  # type: ignore[method-assign] # as it was
    pool.resize(volume.uuid, MIB)
    pool.flush()
    for _ in ("as it is", "loaded anew"):
        assert device.pread(BLOCK, 3 * BLOCK) == b"new!" + b"old!" * 1023 + bytes(BLOCK - 4096)
        device.table.clear()
    with own_pool(tmp_path / "died") as again:
        volume, device = _live(again)
        assert volume.size_bytes == MIB and device.pread(BLOCK, 3 * BLOCK) == b"old!" * (BLOCK // 4)


def test_a_volume_that_is_opened_while_it_shrinks_has_the_new_size(pool: OwnedPool) -> None:
    """Nobody had it open, so that nobody's size was there to change."""
    volume, device = _live(pool)
    _write(pool, device, 7, b"old!")
    pool.flush()
    del pool.engine.devices[volume.dev_id]
    other = volumes.create_volume(pool, "other", MIB)
    pool.open_live(other.dev_id, other.size_bytes, None)
    free = pool.status().data_free_blocks
    commit, opened = pool.engine._commit, list[ThinDevice]()

    def opening(change: Change | None) -> None:
        opened.append(pool.open_live(volume.dev_id, volume.size_bytes, None))
        commit(change)

    pool.engine._commit = opening  # type: ignore[method-assign] # somebody opens it as the commit begins
    pool.resize(volume.uuid, BLOCK + 5)
    pool.engine._commit = commit  # type: ignore[method-assign] # as it was
    assert opened[0].size_bytes == BLOCK + 5 and pool.status().data_free_blocks == free + 1
    pool.resize(volume.uuid, MIB)
    assert opened[0].pread(MIB, 0) == bytes(MIB)


def test_a_volume_that_cant_shrink_is_what_it_was(pool: OwnedPool, monkeypatch: pytest.MonkeyPatch) -> None:
    volume, device = _live(pool)
    _write(pool, device, 7, b"old!")
    free = pool.status().data_free_blocks

    def full(*_: object) -> None:
        raise NoSpaceError("no room for the catalogue")

    monkeypatch.setattr(pool.catalogue, "stage", full)
    with pytest.raises(NoSpaceError):
        pool.resize(volume.uuid, 7 * BLOCK + 5)
    assert device.size_bytes == MIB and device.pread(BLOCK, 7 * BLOCK) == b"old!" * (BLOCK // 4)
    assert pool.status().data_free_blocks == free


def test_a_volume_opened_while_its_snapshot_waits_is_cut_like_any_live_one(pool: OwnedPool) -> None:
    volume, device = _live(pool)
    _write(pool, device, 0, b"one!")
    pool.flush()
    del pool.engine.devices[volume.dev_id]
    other = volumes.create_volume(pool, "other", MIB)
    pool.open_live(other.dev_id, other.size_bytes, None)
    with pool.engine.gate.writing():
        first = _at_the_gate(pool, lambda: volumes.create_snapshot(pool, "other", "ahead"))
        waits = threading.Event()
        submit = pool.engine.submit

        def submitted(change: object) -> None:
            submit(change)  # type: ignore[arg-type] # handed through
            waits.set()

        pool.engine.submit = submitted  # type: ignore[method-assign] # only to hear of it
        second = threading.Thread(target=lambda: pool.switch(Switch(snapshot=((50, volume.dev_id),))))
        second.start()
        assert waits.wait(10)
        _, device = _live(pool)
        assert device.pread(4, 0) == b"one!"
    first.result(10)
    second.join(10)
    _write(pool, device, 0, b"two!")
    assert pool.engine.open_device(50, MIB).pread(4, 0) == b"one!"


def test_a_lease_taken_while_a_delete_waits_keeps_the_device(pool: OwnedPool) -> None:
    """L2: the switch is refused whole, and so is its snapshot."""
    volume, _ = _live(pool)
    row = volumes.create_snapshot(pool, "disk", "read")
    both = Switch(delete=(row.dev_id,), snapshot=((60, volume.dev_id),))
    with pool.engine.gate.writing():
        deleting = _at_the_gate(pool, lambda: pool.switch(both))
        lease = pool.take_lease([row.dev_id])
    with pytest.raises(ConflictError, match="is being read"):
        deleting.result(10)
    assert lease.stands and pool.facts([row.dev_id]) and not pool.facts([60])
    lease.release()
    pool.switch(both)


def test_what_is_leased_is_neither_written_nor_made_smaller(pool: OwnedPool) -> None:
    volume = pool.view().volume("disk")
    with pool.lease([volume.dev_id]):
        with pytest.raises(ConflictError, match="can't be written now"):
            _live(pool)
        with pytest.raises(ConflictError, match="can't be made smaller"):
            pool.resize(volume.uuid, BLOCK)
        assert volume.dev_id not in pool.engine.devices
    pool.resize(volume.uuid, BLOCK)
    assert _live(pool)[1].size_bytes == BLOCK


def test_one_cut_asked_for_twice_at_once_is_made_once(pool: OwnedPool) -> None:
    volume, _ = _live(pool)
    request = CutRequest(uuid4(), (volume.uuid,))
    answers: list[tuple[int, ...]] = []
    again = threading.Thread(target=lambda: answers.append(pool.cut(request).dev_ids))
    with pool.engine.gate.writing():
        first = _at_the_gate(pool, lambda: pool.cut(request))
        again.start()
    again.join(10)
    assert answers == [first.result(10).dev_ids] and len(pool.view().snapshots) == 1


@pytest.mark.parametrize(
    "switch",
    [
        Switch(grow_data_blocks=1),
        Switch(grow_metadata_blocks=1),
        Switch(grow_data_blocks=1 << 30),
        Switch(grow_metadata_blocks=1 << 20),
        Switch(create=(1 << 24,)),
        Switch(snapshot=((1 << 24, 1),)),
        Switch(delete=(40, 40)),
    ],
)
def test_a_switch_that_cant_be_is_refused_before_anything_is_done(pool: OwnedPool, switch: Switch) -> None:
    pool.switch(Switch(create=(40,)))
    with pytest.raises(UsageError):
        pool.switch(switch)
    assert pool.engine.failed is None
    pool.flush()


@pytest.mark.parametrize("dev_id", [-1, 1 << 24, 1 << 64])
def test_what_no_device_can_be_is_not_found(pool: OwnedPool, dev_id: int) -> None:
    volume = pool.view().volume("disk")
    for switch in (
        Switch(delete=(dev_id,)),
        Switch(snapshot=((40, dev_id),)),
        Switch(fill=(Filling(dev_id),)),
    ):
        with pytest.raises(NotFoundError):
            pool.switch(switch)
    assert pool.cut(CutRequest(uuid4(), (volume.uuid,), unless_equal=(dev_id,))).made
    assert pool.engine.failed is None
    pool.flush()


@pytest.mark.parametrize("live", [False, True])
def test_a_size_that_no_volume_can_have_changes_nothing(pool: OwnedPool, live: bool) -> None:
    volume, device = pool.view().volume("disk"), _live(pool)[1] if live else None
    free = pool.status().data_free_blocks
    for size_bytes in (-1, 1 << 64):
        with pytest.raises(UsageError):
            pool.resize(volume.uuid, size_bytes)
    assert pool.status().data_free_blocks == free and (device or _live(pool)[1]).size_bytes == MIB


def test_growing_beyond_what_the_metadata_can_count_is_refused(pool: OwnedPool) -> None:
    blocks = 1 << 24
    pool.engine.data.grow(blocks * BLOCK)
    with pytest.raises(NoSpaceError, match="metadata space is out"):
        pool.switch(Switch(grow_data_blocks=blocks))
    assert pool.engine.failed is None
    pool.switch(Switch(grow_data_blocks=1 << 16))


def test_where_the_catalogue_has_no_room_nothing_acknowledged_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P1b, P8: the switch is refused, nothing of it was done, and the pool goes on."""
    make_pool(tmp_path / "pool")
    with own_pool(tmp_path / "pool") as pool:
        volumes.create_volume(pool, "disk", MIB)
        _write(pool, _live(pool)[1], 0, b"kept")

        def full(*_: object) -> None:
            raise NoSpaceError("no room for the catalogue")

        monkeypatch.setattr(pool.catalogue, "stage", full)
        free = pool.status().data_free_blocks
        blocks = pool.reserve(2)
        with pytest.raises(NoSpaceError):
            pool.switch(Switch(create=(40,), fill=(Filling(40, blocks - blocks.min(), blocks),)))
        assert pool.engine.failed is None and not pool.facts([40])
        monkeypatch.undo()
        pool.give_back(blocks)
        pool.switch(Switch(create=(40,), changes=(Put(Setting("a", "b")),)))
        assert pool.facts([40])[40].mapped_blocks == 0 and pool.status().data_free_blocks == free
    with own_pool(tmp_path / "pool") as again:
        assert again.engine.given_up_count == 0 and _live(again)[1].pread(4, 0) == b"kept"
