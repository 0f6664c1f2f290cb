"""`replicator volume`: what each verb makes, shows and refuses, in a pool of our own and beside its owner."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from replicator.pool.catalogue_schema import Position, Role
from replicator.pool.changes import Put
from replicator.pool.interface import Switch
from replicator.pool.opening import own_pool
from tests.support.command_line import Command, tree_of
from tests.support.golden import KernelPool
from tests.support.pool_owner import owned_by_child, served
from tests.unit.cli.test_pool_commands import foreign

MIB = 1 << 20


def listed(command: Command, pool: Path) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in command("volume", "list", pool, "--json").document}


def test_list_is_a_plain_array_with_the_contracts_fields(command: Command, pool: Path) -> None:
    assert command("volume", "list", pool, "--json").document == []
    command("volume", "create", pool, "vm1", "--size", "8MiB")
    (row,) = command("volume", "list", pool, "--json").document
    assert {"name", "uuid", "dev_id", "size_bytes", "mapped_blocks", "origin"} <= row.keys()
    assert (row["name"], row["size_bytes"], row["mapped_blocks"], row["origin"]) == ("vm1", 8 * MIB, 0, None)
    assert str(UUID(row["uuid"])) == row["uuid"]
    assert "vm1" in command("volume", "list", pool).out


def test_import_and_export_round_trip_and_stay_sparse(
    command: Command, pool: Path, image: Path, tmp_path: Path
) -> None:
    made = command("volume", "import", pool, "vm1", image, "--json").document
    assert made["created"] and made["size_bytes"] == image.stat().st_size
    assert listed(command, pool)["vm1"]["mapped_blocks"] == 6, "zeros that are written aren't mapped"
    out = tmp_path / "out.img"
    command("volume", "export", pool, "vm1", out)
    assert out.read_bytes() == image.read_bytes()
    assert out.stat().st_blocks * 512 < MIB
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    command("pool", "check", pool)


def test_export_to_stdout_is_the_same_bytes(pool: Path, image: Path, command: Command, tmp_path: Path) -> None:
    command("volume", "import", pool, "vm1", image)
    argv = [sys.executable, "-c", "from replicator.cli.main import main; main()"]
    argv += ["volume", "export", str(pool), "vm1", "-"]
    piped = subprocess.run(argv, capture_output=True, check=True)
    assert piped.stdout == image.read_bytes() and piped.stderr == b""
    with (tmp_path / "redirected").open("wb") as file:
        subprocess.run(argv, stdout=file, check=True)
    assert (tmp_path / "redirected").read_bytes() == image.read_bytes()
    assert (tmp_path / "redirected").stat().st_blocks * 512 < MIB
    with (tmp_path / "appended").open("ab") as file:
        file.write(b"x")
        file.flush()
        subprocess.run(argv, stdout=file, check=True)
    assert (tmp_path / "appended").read_bytes() == b"x" + image.read_bytes()


def test_import_again_changes_what_differs_and_keeps_the_rest_shared(
    command: Command, pool: Path, image: Path, tmp_path: Path
) -> None:
    first = command("volume", "import", pool, "vm1", image, "--json").document
    command("volume", "snapshot", pool, "vm1", "before")
    old = image.read_bytes()
    with image.open("r+b") as file:
        file.seek(70_000)
        file.write(b"changed")
        file.seek(1 << 20)
        file.write(bytes(5000))
        file.seek(3 << 20)
        file.write(b"new")
    command("volume", "import", pool, "vm1", image, code=1)
    again = command("volume", "import", pool, "vm1", image, "--yes", "--json").document
    assert not again["created"] and again["uuid"] == first["uuid"] and again["written_bytes"] == 2 * 65536
    found = command("volume", "diff", pool, "before", "vm1", "--json").document
    assert found["runs"] == [
        {"begin": 1, "end": 2, "kind": "changed"},
        {"begin": 16, "end": 17, "kind": "removed"},
        {"begin": 48, "end": 49, "kind": "added"},
    ]
    for name, content in (("vm1", image.read_bytes()), ("before", old)):
        command("volume", "export", pool, name, tmp_path / name)
        assert (tmp_path / name).read_bytes() == content
    command("pool", "check", pool)


def test_a_smaller_file_leaves_zeros_behind_it_and_a_larger_one_is_refused(
    command: Command, pool: Path, image: Path, tmp_path: Path
) -> None:
    command("volume", "import", pool, "vm1", image)
    small = tmp_path / "small"
    small.write_bytes(b"s" * 512)
    command("volume", "import", pool, "vm1", small, "--yes")
    command("volume", "export", pool, "vm1", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == (b"s" * 512).ljust(image.stat().st_size, b"\0")
    with image.open("ab") as file:
        file.truncate(8 * MIB)
    assert "resize" in command("volume", "import", pool, "vm1", image, "--yes", "--json", code=2).error["mend"]


def test_snapshot_clone_rename_rollback_delete(command: Command, pool: Path, image: Path, tmp_path: Path) -> None:
    command("volume", "import", pool, "vm1", image)
    command("volume", "snapshot", pool, "vm1", "s1")
    command("volume", "clone", pool, "s1", "copy")
    command("volume", "rename", pool, "copy", "twin")
    small = tmp_path / "small"
    small.write_bytes(b"x" * 4096)
    command("volume", "import", pool, "twin", small, "--yes")
    assert set(listed(command, pool)) == {"vm1", "twin"}
    command("volume", "import", pool, "vm1", small, "--yes")
    assert command("volume", "rollback", pool, "vm1", "s1", code=1).err.startswith("replicator: What was written")
    command("volume", "rollback", pool, "vm1", "s1", "--yes")
    command("volume", "export", pool, "vm1", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == image.read_bytes()
    command("volume", "delete", pool, "vm1", "--yes", code=4)
    command("volume", "delete", pool, "s1", "--yes")
    command("volume", "delete", pool, "vm1", "--yes")
    command("volume", "delete", pool, "twin", "--yes")
    assert command("volume", "list", pool, "--json").document == []
    assert command("pool", "status", pool, "--json").document["data"]["used_blocks"] == 0
    command("pool", "check", pool)


def test_resize_grows_by_and_to_and_asks_before_it_shrinks(command: Command, pool: Path) -> None:
    command("volume", "create", pool, "v", "--size", "1MiB")
    command("volume", "resize", pool, "v", "--size", "+1MiB")
    assert listed(command, pool)["v"]["size_bytes"] == 2 * MIB
    command("volume", "resize", pool, "v", "--size", "512KiB", code=1)
    command("volume", "resize", pool, "v", "--size", "512KiB", "--yes")
    assert listed(command, pool)["v"]["size_bytes"] == MIB // 2


def test_a_volume_over_an_external_origin_is_exported_with_what_shines_through(
    command: Command, pool: Path, image: Path, tmp_path: Path
) -> None:
    command("volume", "create", pool, "over", "--origin", image)
    assert listed(command, pool)["over"]["origin"] == str(image)
    command("volume", "snapshot", pool, "over", "s")
    for name in ("over", "s"):
        command("volume", "export", pool, name, tmp_path / name)
        assert (tmp_path / name).read_bytes() == image.read_bytes()
    small = tmp_path / "small"
    small.write_bytes(b"n" * 512)
    command("volume", "import", pool, "over", small, "--yes")
    command("volume", "export", pool, "over", tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == (b"n" * 512).ljust(image.stat().st_size, b"\0")


def test_the_name_exported_may_be_a_uuid_or_a_number(command: Command, pool: Path, image: Path, tmp_path: Path) -> None:
    made = command("volume", "import", pool, "vm1", image, "--json").document
    for number, name in enumerate((made["uuid"], f"thin-{made['dev_id']}")):
        command("volume", "export", pool, name, tmp_path / str(number))
        assert (tmp_path / str(number)).read_bytes() == image.read_bytes()


def test_export_replaces_a_file_only_when_that_is_said(
    command: Command, pool: Path, image: Path, tmp_path: Path
) -> None:
    command("volume", "import", pool, "vm1", image)
    (tmp_path / "there").write_bytes(b"precious")
    command("volume", "export", pool, "vm1", tmp_path / "there", code=1)
    assert (tmp_path / "there").read_bytes() == b"precious"
    command("volume", "export", pool, "vm1", tmp_path / "there", "--yes", "--size", "1MiB")
    assert (tmp_path / "there").read_bytes() == image.read_bytes()[:MIB]
    command("volume", "export", pool, "vm1", tmp_path, code=2)
    command("volume", "export", pool, "vm1", tmp_path / "no" / "such", code=5)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["owner here", "owner is another process"])
def test_everything_works_beside_an_owner(
    command: Command, pool: Path, image: Path, tmp_path: Path, elsewhere: bool
) -> None:
    with owned_by_child(pool) if elsewhere else served(pool):
        command("volume", "import", pool, "vm1", image)
        command("volume", "snapshot", pool, "vm1", "s1")
        command("volume", "export", pool, "vm1", tmp_path / "live")
        command("volume", "export", pool, "s1", tmp_path / "s1")
        with image.open("r+b") as file:
            file.write(b"changed")
        command("volume", "import", pool, "vm1", image, "--yes")
        assert len(command("volume", "diff", pool, "s1", "vm1", "--json").document["runs"]) == 1
        command("volume", "resize", pool, "vm1", "--size", "+1MiB")
        command("volume", "rollback", pool, "vm1", "s1", "--yes")
        command("volume", "delete", pool, "vm1", "--with-snapshots", "--yes")
        assert command("pool", "status", pool, "--json").document["snapshots"] == 0
    assert (tmp_path / "live").read_bytes() == (tmp_path / "s1").read_bytes()
    assert 'dev_id="' not in command("pool", "dump", pool).out, "no cut and no half import is left"
    command("pool", "check", pool)


def test_a_kernels_pool_is_listed_and_every_device_exports_what_the_kernel_read(
    command: Command, kernel_pool_a: KernelPool, tmp_path: Path
) -> None:
    folder = foreign(kernel_pool_a)
    devices = kernel_pool_a.facts["checkpoints"]["final"]["devices"]
    before = tree_of(folder)
    assert set(listed(command, folder)) == {f"thin-{number}" for number in devices}
    for number, facts in devices.items():
        target = tmp_path / f"out-{number}"
        size = facts["sectors"] * 512
        command("volume", "export", folder, f"thin-{number}", target, "--size", size)
        assert hashlib.sha256(target.read_bytes()).hexdigest() == facts["sha256"], number
    command("volume", "create", folder, "v", "--size", "1MiB", code=2)
    after = tree_of(folder)
    after.pop("lock", None)
    assert after == before


def test_a_replica_is_changed_by_its_log_only(command: Command, pool: Path, image: Path) -> None:
    made = command("volume", "import", pool, "vm1", image, "--json").document
    command("volume", "snapshot", pool, "vm1", "s")
    applied = Position(UUID(made["uuid"]), Role.APPLIED, 1, 1, b"", 1, 1)
    with own_pool(pool) as opened:
        opened.switch(Switch(changes=(Put(applied),)))
    for line in (
        ["import", pool, "vm1", image],
        ["rollback", pool, "vm1", "s"],
        ["resize", pool, "vm1", "--size", "+1MiB"],
    ):
        error = command("volume", *line, "--yes", "--json", code=4).error
        assert "clone" in error["mend"]
    command("volume", "clone", pool, "vm1", "copy")
    command("volume", "import", pool, "copy", image, "--yes")
