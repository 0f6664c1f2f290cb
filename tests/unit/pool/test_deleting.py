"""Deletions that take many commits: hidden at once, whole at each step, gone on with after a death, in nobody's way."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from replicator.blockdev.file import FileDevice
from replicator.errors import ConflictError, NoSpaceError, NotFoundError
from replicator.pdata.update import LEAF_COST
from replicator.pool import deleting, volumes
from replicator.pool.catalogue_schema import Purpose, Setting
from replicator.pool.changes import Put
from replicator.pool.creation import PoolPlan, create_pool
from replicator.pool.deleting import being_deleted
from replicator.pool.interface import CutRequest, Filling, Switch
from replicator.pool.opening import OwnedPool, own_pool
from replicator.thin.change import Change
from replicator.thin.check import check
from replicator.thin.metadata import PoolMetadata
from replicator.thin.view import PoolView
from replicator.units import GIB
from tests.support import judges

BLOCK = 65536
BLOCKS = 2000  # eight leaves, and one inner node
QUEUED_S = 20.0  # that a cut may take from its thread's start into the queue


@pytest.fixture(autouse=True)
def _one_leaf_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deleting, "SLICE_COST", LEAF_COST)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[OwnedPool]:
    """A pool with the volume `disk`, whose first blocks are mapped (their data is a hole), and which shares none."""
    create_pool(tmp_path / "pool", PoolPlan(size_bytes=GIB, low_water="0%"))
    with own_pool(tmp_path / "pool") as owned:
        map_blocks(owned, volumes.create_volume(owned, "disk", GIB).dev_id)
        yield owned
    with FileDevice(tmp_path / "pool" / "metadata", read_only=True) as device:
        report = check(device)
        assert report.findings == () and report.counts_compared


def map_blocks(pool: OwnedPool, dev_id: int) -> None:
    with pool.engine.lock:
        blocks = pool.engine.metadata.transaction.data.counts.take(BLOCKS)
    virtual = blocks - blocks.min()
    pool.switch(Switch(fill=(Filling(dev_id, virtual, blocks),)))


def count_commits(pool: OwnedPool, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(devices, blocks) that are being deleted, at each commit from now on; each commit is judged."""
    seen: list[tuple[int, int]] = []
    whole = pool.engine._finish

    def finish(*given: object) -> None:
        whole(*given)  # type: ignore[arg-type] # handed through
        status = pool.status()
        seen.append((status.deleting_devices, status.deleting_blocks))
        with FileDevice(pool.path / "metadata", read_only=True) as device:
            report = check(device)
            assert report.findings == () and report.counts_compared

    monkeypatch.setattr(pool.engine, "_finish", finish)
    return seen


def test_a_large_volume_goes_leaf_by_leaf(pool: OwnedPool, monkeypatch: pytest.MonkeyPatch) -> None:
    free = pool.status().data_free_blocks
    at_id = pool.view().at_id
    seen = count_commits(pool, monkeypatch)
    volumes.delete_volume(pool, "disk")
    assert not pool.view().volumes and not pool.facts()
    pool._deletions.finish()
    blocks = [left for _, left in seen[1:]]
    assert (
        seen[0] == (0, 0)
        and len(seen) > 6
        and blocks[0] < BLOCKS
        and blocks == sorted(blocks, reverse=True)
        and seen[-1] == (0, 0)
    )
    assert pool.status().data_free_blocks == free + BLOCKS and not being_deleted(pool.view())
    assert pool.view().at_id == at_id + 2  # the switch that hides it, and the one that ends the mark


def test_what_is_being_deleted_isnt_there(pool: OwnedPool) -> None:
    """B1: it is neither listed, leased, shared, filled nor deleted again, and its number isn't given."""
    dev_id = pool.view().volume("disk").dev_id
    with stopped(pool):
        volumes.delete_volume(pool, "disk")
        assert being_deleted(pool.view()) == {dev_id: BLOCKS} and pool.facts([dev_id]) == {}
        assert pool.status().deleting_blocks == BLOCKS
        with pytest.raises(NotFoundError):
            pool.take_lease([dev_id])
        for switch in (
            Switch(delete=(dev_id,)), Switch(snapshot=((90, dev_id),)), Switch(fill=(Filling(dev_id),))
        ):  # fmt: skip
            with pytest.raises(NotFoundError):
                pool.switch(switch)
        with pytest.raises(ConflictError):
            pool.switch(Switch(create=(dev_id,)))
        assert volumes.create_volume(pool, "other", GIB).dev_id != dev_id
    pool.switch(Switch(changes=(Put(Setting("go", "on")),)))
    pool._deletions.finish()
    assert not being_deleted(pool.view())


class stopped:  # noqa: N801 - reads as a verb
    """Slices wait while the block lasts."""

    def __init__(self, pool: OwnedPool) -> None:
        self.deletions = pool._deletions

    def __enter__(self) -> None:
        self.deletions._under_way = True

    def __exit__(self, *_: object) -> None:
        self.deletions._rest()


def test_the_next_opening_goes_on(pool: OwnedPool, tmp_path: Path) -> None:
    """The owner dies after the switch, and after each slice: what it left opens, is clean, and is emptied."""
    with stopped(pool):
        volumes.delete_volume(pool, "disk")
        for number in range(4):
            left = tmp_path / f"left-{number}"
            shutil.copytree(pool.path, left, ignore=shutil.ignore_patterns("control", "lock"))
            assert all(verdict.clean for verdict in judges.check_both(left / "metadata"))
            with FileDevice(left / "metadata", read_only=True) as device:
                (entry,) = PoolView.live(device).devices()
            assert entry.details.mapped_blocks == BLOCKS if not number else entry.details.mapped_blocks < BLOCKS
            pool.engine.change(Change(lambda metadata: deleting._slice(1, metadata), deletes=True))
    for number in range(4):
        with own_pool(tmp_path / f"left-{number}") as again:
            again._deletions.finish()
            assert not again.facts() and not being_deleted(again.view())
            assert again.status().data_free_blocks == again.status().data_blocks


def test_a_snapshot_that_shares_nearly_all_goes_at_once(pool: OwnedPool, monkeypatch: pytest.MonkeyPatch) -> None:
    row = volumes.create_snapshot(pool, "disk", "base")
    seen = count_commits(pool, monkeypatch)
    volumes.delete_snapshot(pool, row.dev_id)
    assert seen == [(0, 0), (0, 0)] and row.dev_id not in pool.facts()


def test_a_rollbacks_old_device_goes_in_slices(pool: OwnedPool, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = pool.view().volume("disk")
    pool.switch(Switch(create=(70,)))
    made = volumes.create_snapshot(pool, "disk", "base")
    map_blocks(pool, volume.dev_id)  # every leaf, anew
    seen = count_commits(pool, monkeypatch)
    assert volumes.rollback(pool, "disk", "base").dev_id != volume.dev_id
    pool._deletions.finish()
    assert len(seen) > 6 and seen[-1] == (0, 0) and made.dev_id in pool.facts()
    assert pool.facts()[pool.view().volume("disk").dev_id].mapped_blocks == BLOCKS


def test_changes_and_flushes_come_between_the_slices(pool: OwnedPool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = count_commits(pool, monkeypatch)
    volumes.delete_volume(pool, "disk")
    made = [volumes.create_volume(pool, f"disk-{number}", GIB) for number in range(3)]
    pool.flush()
    assert {each.dev_id for each in made} <= pool.facts().keys()
    pool._deletions.finish()
    assert not being_deleted(pool.view()) and len(seen) > 8


def test_a_slice_that_is_refused_waits_for_the_next_change(pool: OwnedPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """B3."""
    whole = PoolMetadata.shrink_dying
    tries: list[int] = []

    def refused_once(metadata: PoolMetadata, dev_id: int, budget: int) -> bool:
        tries.append(dev_id)
        if len(tries) == 1:
            raise NoSpaceError("none")
        return whole(metadata, dev_id, budget)

    monkeypatch.setattr(PoolMetadata, "shrink_dying", refused_once)
    volumes.delete_volume(pool, "disk")
    pool._deletions.finish()
    assert len(tries) == 1 and pool.status().deleting_blocks == BLOCKS and pool.engine.failed is None
    volumes.create_volume(pool, "other", GIB)
    pool._deletions.finish()
    assert not being_deleted(pool.view())


def test_a_cut_waits_for_one_slice_at_most(pool: OwnedPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """B5, counted: two cuts are handed in beside each of the first slices, and are the next two commits."""
    other = volumes.create_volume(pool, "other", GIB).uuid
    carry_out, threads, order = pool.engine._apply, list[threading.Thread](), list[str]()

    def apply(change: Change) -> object:
        order.append("slice" if change.waits else "other")
        for number in range(2 if change.waits and order.count("slice") <= 4 else 0):
            request = CutRequest(uuid4(), (other,), Purpose.TARGET)
            threads.append(threading.Thread(target=pool.cut, args=(request,)))
            threads[-1].start()
            deadline = time.monotonic() + QUEUED_S
            while threads[-1].is_alive() and len(pool.engine._changes) <= number and time.monotonic() < deadline:
                pass  # it is on its way into the queue; one that never comes is missed in `order`
        return carry_out(change)

    monkeypatch.setattr(pool.engine, "_apply", apply)
    volumes.delete_volume(pool, "disk")
    pool._deletions.finish()
    for thread in threads:
        thread.join()
    print(f"{len(threads)} cuts beside {order.count('slice')} slices: {' '.join(order)}")
    assert order[:13] == ["other", *4 * ["slice", "other", "other"]] and set(order[13:]) == {"slice"}
