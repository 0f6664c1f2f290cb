"""The thin tools agree with the commands: what `pool dump`, `pool check` and `volume diff` print is theirs."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from replicator.blockdev.file import FileDevice
from replicator.pool.opening import OwnedPool, own_pool
from replicator.thin.superblock import read_superblock
from tests.support import judges, thinpools
from tests.support.command_line import Command
from tests.support.judges import ENGINES, Engine
from tests.support.pool_owner import make_pool, served
from tests.support.thinpools import canonical_xml, parse_thin_delta

MIB = 1 << 20
BLOCK = 65536

pytestmark = pytest.mark.usefixtures("thin_judges")


def foreign_pool(folder: Path, seed: int) -> Path:
    """A varied pool as other programs leave one: no catalogue."""
    folder.mkdir()
    superblock = thinpools.make_pool(folder / "metadata", seed)
    with (folder / "data").open("wb") as file:
        file.truncate(superblock.data_space_map.nr_blocks * superblock.data_block_bytes)
    return folder


def diff_of(command: Command, pool: Path, base: str, target: str) -> list[thinpools.Run]:
    document = command("volume", "diff", pool, base, target, "--json").document
    assert document["block_size_bytes"] == BLOCK
    return [(run["begin"], run["end"], run["kind"]) for run in document["runs"]]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("engine", ENGINES)
def test_pool_dump_is_thin_dump(command: Command, tmp_path: Path, engine: Engine, seed: int) -> None:
    pool = foreign_pool(tmp_path / "pool", seed)
    for held in ([], ["--held"]):
        theirs = judges.thin_tool(engine, "thin_dump").run(*(["-m"] if held else []), pool / "metadata").stdout
        assert canonical_xml(command("pool", "dump", pool, *held).out) == canonical_xml(theirs)


@pytest.mark.parametrize("seed", range(3))
def test_volume_diff_is_thin_delta(command: Command, tmp_path: Path, seed: int) -> None:
    pool = foreign_pool(tmp_path / "pool", seed)
    devices = (thinpools.BASE, thinpools.SNAPSHOT, thinpools.GRANDCHILD, thinpools.EMPTY, thinpools.STRANGER)
    tool = judges.thin_tool("cpp", "thin_delta")
    for base, target in permutations(devices, 2):
        theirs = parse_thin_delta(tool.run("--snap1", base, "--snap2", target, pool / "metadata").stdout)
        assert diff_of(command, pool, f"thin-{base}", f"thin-{target}") == theirs, (base, target)


def scribble(pool: OwnedPool, name: str, rng: np.random.Generator) -> None:
    """Some writes, trims and zeros all over a volume."""
    row = pool.view().volume(name)
    device = pool.engine.open_device(row.dev_id, row.size_bytes, read_only=False)
    for _ in range(40):
        offset = int(rng.integers(0, row.size_bytes - 4 * BLOCK))
        with pool.engine.gate.writing():
            if rng.random() < 0.7:
                device.pwrite(rng.bytes(int(rng.integers(1, 2 * BLOCK))), offset)
            else:
                device.discard(offset, 4 * BLOCK)
    pool.flush()


@pytest.mark.parametrize("seed", range(2))
def test_a_pool_of_our_own_before_and_beside_its_owner(command: Command, tmp_path: Path, seed: int) -> None:
    pool, rng = tmp_path / "pool", np.random.default_rng(seed)
    make_pool(pool, 64 * MIB)
    command("volume", "create", pool, "v", "--size", "16MiB")
    with served(pool) as owner:
        for number in range(4):
            scribble(owner, "v", rng)
            command("volume", "snapshot", pool, "v", f"s{number}")
            if number == 2:
                command("volume", "delete", pool, "s0", "--yes")
        scribble(owner, "v", rng)
        live = {name: diff_of(command, pool, name, "v") for name in ("s1", "s3")}
        beside = command("pool", "dump", pool).out
        assert canonical_xml(beside)[1:] and owner.status().held_root == 0
    judges.assert_clean(pool / "metadata")
    command("pool", "check", pool)
    theirs = judges.thin_tool("cpp", "thin_dump").run(pool / "metadata").stdout
    assert canonical_xml(command("pool", "dump", pool).out) == canonical_xml(theirs)
    numbers = number_of(pool)
    tool = judges.thin_tool("cpp", "thin_delta")
    for base, target in (("s1", "s2"), ("s2", "s3"), ("s1", "s3"), ("s3", "s1")):
        said = tool.run("--snap1", numbers[base], "--snap2", numbers[target], pool / "metadata").stdout
        assert diff_of(command, pool, base, target) == parse_thin_delta(said)
    for base, runs in live.items():
        said = tool.run("--snap1", numbers[base], "--snap2", numbers["v"], pool / "metadata").stdout
        assert runs == parse_thin_delta(said)


def number_of(path: Path) -> dict[str, int]:
    with own_pool(path) as pool:
        view = pool.view()
        return {each.name: each.dev_id for each in view.volumes} | {each.name: each.dev_id for each in view.snapshots}


def test_imported_pools_are_clean_by_both_and_the_metadata_snapshot_is_theirs_too(
    command: Command, tmp_path: Path
) -> None:
    pool, image = tmp_path / "pool", tmp_path / "image"
    make_pool(pool, 64 * MIB)
    image.write_bytes(np.random.default_rng(5).bytes(8 * MIB))
    command("volume", "import", pool, "v", image)
    command("volume", "snapshot", pool, "v", "s")
    with image.open("r+b") as file:
        file.seek(3 * MIB)
        file.write(b"changed" * 100_000)
    command("pool", "reserve-metadata-snap", pool)
    command("volume", "import", pool, "v", image, "--yes")
    judges.assert_clean(pool / "metadata")
    held = judges.thin_tool("cpp", "thin_dump").run("-m", pool / "metadata").stdout
    assert canonical_xml(command("pool", "dump", pool, "--held").out) == canonical_xml(held)
    command("pool", "release-metadata-snap", pool)
    command("pool", "grow", pool, "--data", "+8MiB", "--metadata", "+2MiB")
    judges.assert_clean(pool / "metadata")
    with FileDevice(pool / "metadata", read_only=True) as device:
        assert read_superblock(device).data_space_map.nr_blocks == 72 * 16
