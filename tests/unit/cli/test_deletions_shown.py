"""Deletions in the background, as the command line shows them: with an owner, and where nobody has the pool open."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.pdata.update import LEAF_COST
from replicator.pool import deleting, volumes
from replicator.pool.creation import PoolPlan, create_pool
from replicator.pool.interface import Filling, Switch
from replicator.pool.opening import OwnedPool, own_pool
from replicator.thin.change import Change
from replicator.units import GIB
from tests.support.command_line import Command
from tests.support.pool_owner import served

BLOCKS = 2000


@pytest.fixture
def dying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnedPool]:
    """A pool, served, whose volume `disk` is served by nobody; slices are a leaf each, and wait to be asked for."""
    monkeypatch.setattr(deleting, "SLICE_COST", LEAF_COST)
    create_pool(tmp_path / "pool", PoolPlan(size_bytes=GIB, low_water="0%"))
    with served(tmp_path / "pool") as pool:
        dev_id = volumes.create_volume(pool, "disk", GIB).dev_id
        blocks = pool.reserve(BLOCKS)
        pool.switch(Switch(fill=(Filling(dev_id, blocks - blocks.min(), blocks),)))
        pool._deletions._under_way = True
        yield pool
        pool._deletions._rest()
        pool._deletions.go_on()


def test_a_deletion_is_shown_as_it_goes_on(command: Command, dying: OwnedPool, tmp_path: Path) -> None:
    path = dying.path
    total = BLOCKS * 65536
    done = command("volume", "delete", path, "disk", "--yes", "--json").document
    assert done["deleted"] == "disk" and done["to_be_given_back_bytes"] == total
    dying.engine.change(Change(lambda metadata: deleting._slice(1, metadata), deletes=True))
    left = dying.status().deleting_blocks
    assert 0 < left < BLOCKS
    shown = {"devices": 1, "left_blocks": left, "total_blocks": BLOCKS, "left_bytes": left * 65536}
    assert command("pool", "status", path, "--json").document["deleting"] == shown
    assert "of 125 MiB still to be given back" in command("pool", "status", path).out
    copy = tmp_path / "copy"
    shutil.copytree(path, copy, ignore=shutil.ignore_patterns("control", "lock"))
    assert command("pool", "status", copy, "--json").document["deleting"] == shown, "without an owner, too"
    assert command("volume", "list", copy, "--json").document == []
    assert "no volume or snapshot" in command("volume", "export", copy, "thin-1", "-", code=None).err
    own_pool(copy).close()
    gone = command("pool", "status", copy, "--json").document
    assert gone["deleting"]["devices"] == 0 and gone["data"]["used_blocks"] == 0
    assert "deleting" not in command("pool", "status", copy).out


def test_a_volume_that_nobody_serves_is_gone_when_the_command_ends(command: Command, tmp_path: Path) -> None:
    command("pool", "create", tmp_path / "pool", "--size", "64MiB")
    command("volume", "create", tmp_path / "pool", "disk", "--size", "8MiB")
    assert command("volume", "delete", tmp_path / "pool", "disk", "--yes").out == "deleted disk\n"
