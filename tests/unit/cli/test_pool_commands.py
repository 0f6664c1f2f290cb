"""`replicator pool`: what each verb makes, shows and refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from uuid import UUID

import pytest

from replicator.blockdev.file import FileDevice
from replicator.thin.superblock import read_superblock
from tests.support.command_line import Command, tree_of
from tests.support.golden import KernelPool
from tests.support.pool_owner import served
from tests.support.thinpools import Patient

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


def foreign(kernel_pool: KernelPool) -> Path:
    """The kernel's pool as a directory of ours would be."""
    folder = kernel_pool.metadata.parent
    kernel_pool.metadata.rename(folder / "metadata")
    kernel_pool.data.rename(folder / "data")
    return folder


def test_create_makes_a_pool_that_status_shows(command: Command, tmp_path: Path) -> None:
    made = command("pool", "create", tmp_path / "p", "--size", "32MiB", "--block-size", "128KiB", "--json").document
    assert (made["size_bytes"], made["block_bytes"], made["metadata_bytes"]) == (32 * MIB, 128 * KIB, 2 * MIB)
    assert made["schema_version"] == 1 and made["warning"] is None
    shown = command("pool", "status", tmp_path / "p", "--json").document
    assert UUID(shown["uuid"]) == UUID(made["uuid"])
    assert shown["data"] == {"used_blocks": 0, "total_blocks": 256, "used_bytes": 0, "total_bytes": 32 * MIB}
    assert shown["status_line"].split()[0] == "1" and shown["status_line"].split()[2:5] == ["0/256", "-", "rw"]
    assert (shown["owner_pid"], shown["held_root"], shown["low_water_blocks"]) == (None, None, 25)
    assert "0 B of 32 MiB used" in command("pool", "status", tmp_path / "p").out


def test_create_refuses_a_place_inside_another_pool(command: Command, pool: Path) -> None:
    """N3 of pool/creation: refused by the outer pool's name, and nothing is made."""
    (pool / "folder").mkdir()
    (pool.parent / "link").symlink_to(pool / "folder")
    before = tree_of(pool)
    for inside in (pool / "inner", pool / "folder", pool / "folder" / "inner", pool.parent / "link" / "inner"):
        error = command("pool", "create", inside, "--size", "32MiB", "--json", code=4).error
        assert error["message"] == f"{inside} lies inside the pool {pool}" and "beside" in error["mend"]
    assert tree_of(pool) == before
    command("pool", "create", pool.parent / "beside", "--size", "32MiB")


def test_create_takes_devices_that_are_there_and_a_preset(command: Command, tmp_path: Path) -> None:
    for name, size in (("d", 64 * MIB), ("m", 4 * MIB)):
        FileDevice.create(tmp_path / name, size).close()
    options = [
        "--data",
        tmp_path / "d",
        "--metadata",
        tmp_path / "m",
        "--preset",
        "provisioning",
        "--low-water",
        "1MiB",
    ]
    command("pool", "create", tmp_path / "p", *options)
    assert (tmp_path / "p" / "data").resolve() == tmp_path / "d"
    shown = command("pool", "status", tmp_path / "p", "--json").document
    assert (shown["block_bytes"], shown["data"]["total_blocks"], shown["low_water_blocks"]) == (512 * KIB, 128, 2)


def test_the_metadata_warning_is_said_by_both_voices(command: Command, tmp_path: Path) -> None:
    ran = command("pool", "create", tmp_path / "p", "--size", "1MiB", "--metadata-size", "256KiB", "--json")
    assert "no room for snapshots" in ran.document["warning"]
    ran = command("pool", "create", tmp_path / "q", "--size", "1MiB", "--metadata-size", "256KiB")
    assert "warning: metadata below 2 MiB" in ran.err


@pytest.mark.parametrize(
    ("size", "block", "metadata"),
    [
        ("10GiB", "512KiB", 2 * MIB),
        ("100GiB", "64KiB", 76 * MIB),
        ("1TiB", "64KiB", 768 * MIB),
        ("32TiB", "64KiB", 16 * GIB),
    ],
)
def test_size_hint_is_the_kernels_rule(command: Command, size: str, block: str, metadata: int) -> None:
    found = command("pool", "size-hint", "--size", size, "--block-size", block, "--json").document
    assert found["metadata_bytes"] == metadata
    assert (found["warning"] is not None) == (size == "32TiB")


def test_grow_adds_and_sets(command: Command, pool: Path) -> None:
    grown = command("pool", "grow", pool, "--data", "+1MiB", "--metadata", "4MiB", "--json").document
    assert (grown["size_bytes"], grown["metadata_bytes"]) == (17 * MIB, 4 * MIB)
    with FileDevice(pool / "metadata") as device:
        assert read_superblock(device).data_space_map.nr_blocks == 17 * 16
    command("pool", "check", pool)


@pytest.mark.parametrize(
    "options",
    [[], ["--data", "1MiB"], ["--data", "+1KiB"], ["--metadata", "+10"], ["--data", "much"], ["--data", "++1MiB"]],
)
def test_grow_refuses_what_makes_no_sense_and_leaves_the_files(
    command: Command, pool: Path, options: list[str]
) -> None:
    sizes = [(pool / name).stat().st_size for name in ("data", "metadata")]
    command("pool", "grow", pool, *options, code=2)
    assert [(pool / name).stat().st_size for name in ("data", "metadata")] == sizes


def test_metadata_snapshot_is_reserved_once_and_released_once(command: Command, pool: Path) -> None:
    held = command("pool", "reserve-metadata-snap", pool, "--json").document["held_root"]
    assert command("pool", "status", pool, "--json").document["held_root"] == held > 0
    assert command("pool", "reserve-metadata-snap", pool, "--json", code=4).error["kind"] == "conflict"
    assert 'nr_data_blocks="0"' in command("pool", "dump", pool, "--held").out
    assert command("pool", "check", pool, "--json").document["held_root"] == held
    command("pool", "release-metadata-snap", pool)
    command("pool", "release-metadata-snap", pool, code=4)
    assert command("pool", "dump", pool, "--held", code=5).err


def test_check_lists_findings_and_ends_with_3(command: Command, pool: Path) -> None:
    command("volume", "create", pool, "v", "--size", "1MiB")
    patient = Patient(pool / "metadata")
    patient.put_node(patient.root_of(1), 100, 7, 1)  # no harm: bytes behind the entries
    assert command("pool", "check", pool).code == 0
    block = patient.read(patient.superblock.device_details_root)
    block[50] ^= 1
    patient.write(patient.superblock.device_details_root, block)
    found = command("pool", "check", pool, "--json", code=3).document
    assert not found["clean"] and found["totals"]["damage"] >= 1
    assert {"severity", "kind", "where", "expected", "found"} == set(found["findings"][0])
    assert "damage: " in command("pool", "check", pool, code=3).out


def test_check_finds_names_without_devices_and_a_catalogue_of_another_pool(command: Command, tmp_path: Path) -> None:
    for name in ("a", "b"):
        command("pool", "create", tmp_path / name, "--size", "8MiB")
    for name in ("catalog.db", "catalog.db-wal", "catalog.db-shm"):
        (tmp_path / "a" / name).unlink(missing_ok=True)
        if (tmp_path / "b" / name).exists():
            (tmp_path / "b" / name).rename(tmp_path / "a" / name)
    found = command("pool", "check", tmp_path / "a", "--json", code=3).document
    assert "is that of" in found["findings"][0]["found"]


def test_dump_is_whole_xml_and_nothing_is_changed(command: Command, pool: Path) -> None:
    command("volume", "create", pool, "v", "--size", "1MiB")
    before = tree_of(pool)
    dumped = command("pool", "dump", pool).out
    assert dumped.startswith("<superblock ") and dumped.endswith("</superblock>\n") and 'dev_id="1"' in dumped
    command("pool", "status", pool)
    command("pool", "check", pool)
    assert tree_of(pool) == before


def test_a_pool_with_an_owner_is_checked_and_dumped_by_a_metadata_snapshot(command: Command, pool: Path) -> None:
    with served(pool) as owner:
        command("volume", "create", pool, "v", "--size", "1MiB")
        found = command("pool", "check", pool, "--json").document
        assert (found["clean"], found["whole"], found["held_devices"]) == (True, False, 1)
        assert 'dev_id="1"' in command("pool", "dump", pool).out
        assert owner.status().held_root == 0
        shown = command("pool", "status", pool, "--json").document
        assert shown["owner_pid"] is not None and shown["volumes"] == 1
        owner.set_metadata_snapshot(True)
        command("pool", "check", pool)
        assert owner.status().held_root != 0, "one that was there stays"
        command("pool", "grow", pool, "--data", "+1MiB")
        assert owner.status().data_blocks == 17 * 16


def test_the_metadata_snapshot_is_released_when_the_check_fails(command: Command, pool: Path) -> None:
    with served(pool) as owner:
        command("volume", "create", pool, "v", "--size", "1MiB")
        patient = Patient(pool / "metadata")
        root = patient.root_of(1)
        block = patient.read(root)
        block[50] ^= 1
        patient.write(root, block)
        command("pool", "check", pool, code=3)
        command("pool", "dump", pool, code=3)
        assert owner.status().held_root == 0


def test_a_kernels_pool_is_shown_checked_and_dumped(command: Command, kernel_pool_a: KernelPool) -> None:
    folder = foreign(kernel_pool_a)
    facts = kernel_pool_a.facts
    shown = command("pool", "status", folder, "--json").document
    assert shown["foreign"] and shown["transaction_id"] == facts["transaction_id"]
    assert shown["held_root"] == facts["superblock"]["held_root"]
    assert f"{shown['data']['used_blocks']}/1024" in facts["final_pool_status"]
    assert command("pool", "check", folder, "--json").document["devices"] == len(
        facts["checkpoints"]["final"]["devices"]
    )
    assert command("pool", "dump", folder).out.split() == kernel_pool_a.text("full.xml").split()
    assert command("pool", "dump", folder, "--held").out.split() == kernel_pool_a.text("held.xml").split()
    command("pool", "grow", folder, "--data", "+1MiB", code=2)


def test_a_names_line_is_a_document_of_one_value(command: Command, pool: Path) -> None:
    ran = command("pool", "status", pool, "--json")
    assert json.loads(ran.out)["pool"] == str(pool) and ran.err == ""


def test_another_pools_data_is_not_taken_however_empty(command: Command, pool: Path, tmp_path: Path) -> None:
    error = command("pool", "create", tmp_path / "new", "--data", pool / "data", "--json", code=4).error
    assert "is the data of pool" in error["message"] and not (tmp_path / "new").exists()
    command("volume", "list", pool)
    own = tmp_path / "own"
    own.touch()
    os.truncate(own, 16 << 20)
    wrong = ("pool", "create", tmp_path / "new", "--data", own, "--metadata", tmp_path / "none")
    command(*wrong, code=None)
    command("pool", "create", tmp_path / "new", "--data", own)
