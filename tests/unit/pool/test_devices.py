"""Devices by name, held still: the one that was meant, or none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from replicator.errors import NotFoundError
from replicator.pool import devices, volumes
from replicator.pool.exporting import export_device
from replicator.pool.interface import Lease
from replicator.pool.opening import OwnedPool
from replicator.pool.reader import PoolReader
from replicator.thin.closing import close_device
from replicator.units import MIB
from tests.support.pool_owner import make_pool, served
from tests.support.rivals import given_again


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[OwnedPool]:
    """A served pool with `mine`, its snapshot `snap`, and `theirs`, which is full of `t`."""
    make_pool(tmp_path / "pool")
    with served(tmp_path / "pool") as owned:
        for name in ("mine", "theirs"):
            row = volumes.create_volume(owned, name, MIB)
            device = owned.open_live(row.dev_id, MIB, None)
            with owned.engine.gate.writing():
                device.pwrite(name[:1].encode() * MIB, 0)
            close_device(owned.engine, device)
        volumes.create_snapshot(owned, "mine", "snap")
        yield owned


def test_an_export_reads_the_snapshot_that_was_meant_or_none(
    pool: OwnedPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at its name and the lease it is deleted, and its id given to a snapshot of another volume."""
    row = pool.view().snapshot_named("snap")
    assert row is not None
    lease, turns = PoolReader.lease, iter([row])

    def late(reader: PoolReader, dev_ids: Sequence[int]) -> AbstractContextManager[Lease]:
        for gone in turns:
            given_again(pool, gone, "theirs", "newer")
        return lease(reader, dev_ids)

    monkeypatch.setattr(PoolReader, "lease", late)
    with pytest.raises(NotFoundError):
        export_device(pool.path, "snap", tmp_path / "out")
    assert not (tmp_path / "out").exists() and pool.view().snapshot_named("newer") is not None
    export_device(pool.path, "newer", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"t" * MIB


def test_beside_a_live_volume_a_snapshot_is_the_one_that_was_meant_or_none(
    pool: OwnedPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = pool.view().snapshot_named("snap")
    assert row is not None

    def sweep_meanwhile(_: object) -> int:
        given_again(pool, row, "theirs", "newer")
        return 0

    monkeypatch.setattr(devices, "sweep_hidden", sweep_meanwhile)
    with pytest.raises(NotFoundError), devices.held_still(pool.path, ["snap", "mine"]):
        pass
    assert pool.view().snapshot_named("newer") is not None and not pool.is_leased(row.dev_id)
