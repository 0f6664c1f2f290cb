"""`pool repair`: a pool that lost metadata goes on with the file that it writes, and is told what is lost."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from uuid import UUID

import pytest

from replicator.errors import ConflictError, DamageError, UsageError
from replicator.pool.inspection import check_pool
from replicator.pool.opening import own_pool
from replicator.pool.repairing import PoolRepair, Wish, repair_pool
from replicator.pool.volumes import create_snapshot, create_volume, delete_volume
from tests.support.command_line import Command
from tests.support.pool_owner import make_pool, served
from tests.support.repairs import ruin
from tests.support.thinpools import Patient

MIB = 1 << 20
BLOCK = 64 << 10


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A pool with the volume `v` of 300 blocks, a snapshot of it, and `w` of three."""
    path = tmp_path / "pool"
    make_pool(path, 64 * MIB)
    with own_pool(path) as pool:
        for name, blocks in (("v", 300), ("w", 3)):
            volume = create_volume(pool, name, 32 * MIB)
            device = pool.open_live(volume.dev_id, volume.size_bytes, None)
            for number in range(blocks):
                device.pwrite(f"{name}{number}".encode().ljust(512), number * BLOCK)
            pool.flush()
        create_snapshot(pool, "v", "s")
    return path


def content(path: Path, name: str, blocks: int) -> list[bytes]:
    with own_pool(path) as pool:
        row = pool.view().volume(name)
        device = pool.open_live(row.dev_id, row.size_bytes, None)
        return [bytes(device.pread(512, number * BLOCK)).rstrip() for number in range(blocks)]


def put_in_place(found: PoolRepair) -> None:
    """The steps as a user types them, but for the last, which is the command itself."""
    assert found.steps[-1].startswith("replicator pool check")
    for step in found.steps[:-1]:
        subprocess.run(shlex.split(step), check=True)


@pytest.mark.parametrize(
    "destroyed",
    [
        ruin(lambda _: 0),
        ruin(lambda p: p.superblock.data_mapping_root),
        ruin(lambda p: p.superblock.device_details_root),
        ruin(lambda p: p.root_of(1)),
        ruin(lambda p: p.superblock.metadata_space_map.bitmap_root),
    ],
    ids=["superblock", "top level", "details", "a root", "metadata index"],
)
def test_a_pool_that_lost_a_block_goes_on_as_it_was(path: Path, destroyed: object, tmp_path: Path) -> None:
    assert callable(destroyed)
    expected = content(path, "v", 301), content(path, "w", 4)
    destroyed(Patient(path / "metadata"))
    assert not check_pool(path).report.clean
    found = repair_pool(Wish(path, tmp_path / "new", block_bytes=BLOCK))
    assert found.whole and not found.intact and not found.nameless and not found.gone, found
    assert {found.name_of(each.dev_id) for each in found.devices} == {"v", "w", "s"}
    put_in_place(found)
    assert check_pool(path).report.clean
    assert (content(path, "v", 301), content(path, "w", 4)) == expected
    assert check_pool(path).report.clean


def test_what_is_lost_is_said_and_reads_as_zeros(path: Path, tmp_path: Path) -> None:
    pool = Patient(path / "metadata")
    ruin(lambda p: p.child(p.root_of(1), 0))(pool)
    found = repair_pool(Wish(path, tmp_path / "new"))
    broken = [each for each in found.devices if not each.whole]
    assert [found.name_of(each.dev_id) for each in broken] == ["v", "s"] and not found.whole
    (first, last) = broken[0].lost[0]
    assert first == 0 and broken[0].expected == 300 and broken[0].saved == 300 - (last + 1)
    put_in_place(found)
    after = content(path, "v", 300)
    assert all(text == bytes(512) for text in after[: last + 1])
    assert after[last + 1 :] == [f"v{number}".encode() for number in range(last + 1, 300)]


def test_a_volume_of_which_nothing_is_left_is_named_and_can_be_deleted(path: Path, tmp_path: Path) -> None:
    """`w` is one leaf, which is gone; its name stands in the catalogue."""
    ruin(lambda p: p.root_of(2))(Patient(path / "metadata"))
    found = repair_pool(Wish(path, tmp_path / "new"))
    assert found.gone == (2,) and found.name_of(2) == "w" and not found.whole
    put_in_place(found)
    with own_pool(path) as pool:
        delete_volume(pool, "w")
        assert [each.name for each in pool.view().volumes] == ["v"]
    assert check_pool(path).report.clean


def test_a_pool_in_use_and_a_file_that_is_there_are_refused(path: Path, tmp_path: Path) -> None:
    with served(path), pytest.raises(ConflictError):
        repair_pool(Wish(path, tmp_path / "new"))
    (tmp_path / "new").write_text("mine")
    with pytest.raises(ConflictError, match="there already"):
        repair_pool(Wish(path, tmp_path / "new"))
    assert (tmp_path / "new").read_text() == "mine"


def test_a_dry_run_writes_nothing(path: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    found = repair_pool(Wish(path, tmp_path / "new", dry_run=True))
    assert found.intact and found.whole and found.written_bytes == 0 and sorted(tmp_path.iterdir()) == before


def test_without_a_superblock_names_uuid_and_transaction_come_from_the_catalogue(path: Path, tmp_path: Path) -> None:
    before = Patient(path / "metadata").superblock
    Patient(path / "metadata").write(0, bytearray(4096))
    with pytest.raises(UsageError, match="how large a data block is"):
        repair_pool(Wish(path, tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    repair_pool(Wish(path, tmp_path / "new", block_bytes=BLOCK))
    after = Patient(tmp_path / "new").superblock
    assert (after.uuid, after.transaction_id) == (before.uuid, before.transaction_id) and UUID(bytes=after.uuid)
    assert after.data_space_map.nr_blocks == before.data_space_map.nr_blocks


def test_a_damaged_catalogue_keeps_nobody_from_repairing(path: Path, tmp_path: Path) -> None:
    (path / "catalog.db").write_bytes(b"no database" * 100)
    found = repair_pool(Wish(path, tmp_path / "new"))
    assert found.catalogue_problem and found.names == {} and found.whole
    assert found.name_of(1) == "thin-1"


def test_nothing_left_is_damage(path: Path, tmp_path: Path) -> None:
    size = (path / "metadata").stat().st_size
    (path / "metadata").write_bytes(b"\x55" * size)
    with pytest.raises(DamageError, match="neither"):
        repair_pool(Wish(path, tmp_path / "new", block_bytes=BLOCK))
    assert not (tmp_path / "new").exists()


def test_the_command_says_all_of_it(path: Path, tmp_path: Path, command: Command) -> None:
    ruin(lambda p: p.child(p.root_of(1), 0))(Patient(path / "metadata"))
    shown = command("pool", "repair", path, "--to", tmp_path / "new").out
    for text in ("device 1 (v): virtual blocks 0 to", "mappings were saved", "checked: clean", f"cp {tmp_path}/new"):
        assert text in shown, shown
    made = command("pool", "repair", path, "--dry-run", "--json").document
    assert (made["whole"], made["dry_run"], made["written_bytes"]) == (False, True, 0)
    assert made["devices"][0]["lost_virtual_blocks"][0]["first"] == 0
    command("pool", "repair", path, code=2)
    command("pool", "repair", path, "--to", tmp_path / "new", code=4)
