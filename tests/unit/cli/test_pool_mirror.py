"""`replicator pool mirror`, and what `pool create`, `status`, `check` and `grow` say of a mirror."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from replicator.pdata.block import BlockKind, seal
from replicator.pdata.mirror_copying import is_good
from tests.support.command_line import Command
from tests.support.pool_owner import owned_by_child

MIB = 1 << 20


@pytest.fixture
def mirrored(command: Command, tmp_path: Path) -> Path:
    """A pool that was created with a mirror."""
    place = ("--size", "16MiB", "--metadata-mirror", tmp_path / "second")
    made = command("pool", "create", tmp_path / "p", *place, "--json").document
    assert made["metadata_mirror"] == str(tmp_path / "second")
    return tmp_path / "p"


def shown(command: Command, path: Path) -> dict[str, object]:
    found = command("pool", "status", path, "--json").document["metadata_mirror"]
    assert isinstance(found, dict)
    return found


def test_status_says_that_both_copies_are_in_use(command: Command, mirrored: Path, tmp_path: Path) -> None:
    assert shown(command, mirrored) == {
        "copies": [str(mirrored / "metadata"), str(tmp_path / "second")],
        "lost": None,
        "since": None,
        "why": None,
        "healed_blocks": 0,
        "mend": None,
    }
    assert "both copies in use" in command("pool", "status", mirrored).out
    assert command("pool", "check", mirrored, "--json").document["findings"] == []


def test_a_pool_without_a_mirror_has_none(command: Command, pool: Path) -> None:
    assert command("pool", "status", pool, "--json").document["metadata_mirror"] is None
    assert "copies in use" not in command("pool", "status", pool).out
    assert "no mirror" in command("pool", "mirror", pool, "--drop", "--json", code=5).error["message"]
    assert "--to DEVICE" in command("pool", "mirror", pool, "--compare", "--json", code=2).error["mend"]


def test_a_lost_copy_is_told_and_replaced(command: Command, mirrored: Path, tmp_path: Path) -> None:
    (tmp_path / "second").unlink()
    assert shown(command, mirrored)["lost"] == str(mirrored / "metadata.mirror")
    command("volume", "create", mirrored, "v", "--size", "1MiB")
    lost = shown(command, mirrored)
    assert str(lost["since"]).endswith("Z") and "isn't there" in str(lost["why"]) and "--to DEVICE" in str(lost["mend"])
    text = command("pool", "status", mirrored).out
    assert "is LOST since" in text and "--to DEVICE" in text
    found = command("pool", "check", mirrored, "--json").document
    assert found["clean"] and found["totals"]["warning"] == 1
    said = command("pool", "mirror", mirrored, "--to", tmp_path / "third").out
    assert f"{tmp_path / 'third'} is a copy of its metadata, as metadata.mirror" in said
    assert shown(command, mirrored)["lost"] is None
    assert (mirrored / "metadata").read_bytes() == (tmp_path / "third").read_bytes()


def test_a_difference_is_named_and_healed(command: Command, mirrored: Path) -> None:
    with (mirrored / "metadata.mirror").open("r+b") as file:
        os.pwrite(file.fileno(), bytes(64 * 4096), 4096)
    found = command("pool", "check", mirrored, code=3).out
    assert "bad in metadata.mirror" in found and "--compare heals" in found
    assert "the same; 0 blocks healed" in command("pool", "mirror", mirrored, "--compare").out
    assert command("pool", "check", mirrored, "--json").document["findings"] == []


def test_two_good_blocks_that_differ_are_for_people_to_decide(command: Command, mirrored: Path) -> None:
    """`--compare` would make the second what the first is, and the first may be the one that lost a write."""
    with (mirrored / "metadata.mirror").open("r+b") as file:
        number = next(each for each in range(1, 64) if is_good(os.pread(file.fileno(), 4096, each * 4096), each))
        other = bytearray(os.pread(file.fileno(), 4096, number * 4096))
        other[4000] ^= 1
        seal(other, BlockKind.NODE, number)
        os.pwrite(file.fileno(), other, number * 4096)
    shown = command("pool", "check", mirrored, code=3).out
    assert "two good blocks that differ" in shown and "--compare" not in shown
    assert f"to go on with {mirrored / 'metadata.mirror'}: mv {mirrored / 'metadata'} elsewhere" in shown


def test_repair_names_the_copy_that_it_reads(command: Command, mirrored: Path, tmp_path: Path) -> None:
    (mirrored / "metadata").rename(tmp_path / "away")
    command("volume", "create", mirrored, "v", "--size", "1MiB")
    (tmp_path / "away").rename(mirrored / "metadata")
    with (tmp_path / "second").open("r+b") as file:
        os.pwrite(file.fileno(), bytes(4096), 0)
    made = command("pool", "repair", mirrored, "--dry-run", "--json").document
    assert made["read_from"] == [str(mirrored / "metadata.mirror")] and made["older"] is False
    shown = command("pool", "repair", mirrored, "--to", tmp_path / "new").out
    assert "was lost on" in shown and f"mv {mirrored}/metadata.mirror {mirrored}/metadata.mirror.damaged" in shown
    assert "rm " not in shown and f"replicator pool mirror {mirrored} --to DEVICE" in shown
    (tmp_path / "second").unlink()
    older = command("pool", "repair", mirrored, "--to", tmp_path / "older").out
    assert "lacks what was written since" in older and f"cp {tmp_path}/older" in older


def test_adding_and_dropping(command: Command, pool: Path, tmp_path: Path) -> None:
    done = command("pool", "mirror", pool, "--to", tmp_path / "second", "--json").document
    assert done["metadata_mirror"]["copies"] == [str(pool / "metadata"), str(tmp_path / "second")]
    command("pool", "grow", pool, "--metadata", "+2MiB")
    assert (tmp_path / "second").stat().st_size == (pool / "metadata").stat().st_size == 4 * MIB
    (pool / "metadata").unlink()
    assert command("pool", "mirror", pool, "--drop", "--json").document["metadata_mirror"] is None
    assert command("pool", "check", pool, "--json").document["findings"] == []


def test_what_is_refused(command: Command, mirrored: Path, tmp_path: Path) -> None:
    for words in ((), ("--drop", "--compare"), ("--drop", "--to", tmp_path / "x")):
        assert "one thing at a time" in command("pool", "mirror", mirrored, *words, "--json", code=2).error["message"]
    again = command("pool", "mirror", mirrored, "--to", mirrored / "metadata", "--json", code=2).error
    assert "already" in again["message"] and again["mend"]
    (tmp_path / "full").write_bytes(b"x" * 4096)
    full = command("pool", "mirror", mirrored, "--to", tmp_path / "full", "--json", code=4).error
    assert "isn't empty" in full["message"] and "dd if=/dev/zero" in full["mend"]
    with owned_by_child(mirrored):
        for wish in (("--to", str(tmp_path / "x")), ("--drop",), ("--compare",)):
            assert "is open in process" in command("pool", "mirror", mirrored, *wish, "--json", code=4).error["message"]
    command("pool", "mirror", tmp_path / "none", "--drop", code=5)
    assert shown(command, mirrored)["lost"] is None
