"""pool/inspection: what is read beside an owner is read under its metadata snapshot, and void when it dies."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator.errors import ConflictError, NotFoundError, UnavailableError
from replicator.pool.inspection import check_pool, inspected, settled
from replicator.pool.opening import open_pool, own_pool
from replicator.pool.summary import summarise
from replicator.pool.volumes import create_volume
from tests.support.pool_owner import make_pool, owned_by_child, served

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make_pool(tmp_path / "pool", 16 * MIB)
    return tmp_path / "pool"


def test_without_an_owner_nobody_becomes_one_meanwhile(path: Path) -> None:
    with settled(path) as owner:
        assert owner is None
        with pytest.raises(ConflictError, match="being read"):
            own_pool(path, wait_s=0.0)
    own_pool(path, wait_s=0.0).close()


def test_beside_an_owner_the_view_stays_while_the_pool_goes_on(path: Path) -> None:
    with served(path) as pool:
        create_volume(pool, "v", MIB)
        with inspected(path) as found:
            assert found.is_held and found.owner is not None
            for number in range(20):
                create_volume(pool, f"w{number}", MIB)
            assert [entry.dev_id for entry in found.view.devices()] == [1]
        assert pool.status().held_root == 0


@pytest.mark.parametrize("fails", [False, True])
def test_a_metadata_snapshot_is_released_on_every_path(path: Path, fails: bool) -> None:
    with served(path) as pool:
        try:
            with inspected(path):
                assert pool.status().held_root
                if fails:
                    raise KeyError
        except KeyError:
            assert fails
        assert pool.status().held_root == 0


def test_what_was_read_is_void_when_the_owner_dies(path: Path) -> None:
    with owned_by_child(path) as child, pytest.raises(UnavailableError, match="void"), inspected(path):
        child.kill()
        child.wait()
    held = summarise(path).status.held_root
    assert held, "nobody is left to release it"
    assert check_pool(path).held_root == held
    with open_pool(path) as pool:
        pool.set_metadata_snapshot(False)
    assert check_pool(path).report.clean


def test_a_dead_owners_own_numbers_are_on_disk(path: Path) -> None:
    with owned_by_child(path) as child:
        assert summarise(path).status.owner_pid == child.pid
        child.kill()
        child.wait()
    assert summarise(path).status.owner_pid == 0


def test_no_pool_is_not_found(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(NotFoundError), settled(path):
            pass
