"""The table of pool/creation: what a death at each line leaves, and what errors leave."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.errors import ConflictError, DamageError, NoSpaceError, NotFoundError, UsageError
from replicator.pool import volumes
from replicator.pool.creation import MARK, PoolPlan, create_pool
from replicator.pool.opening import grow_pool, own_pool
from replicator.thin.check import check
from replicator.units import GIB, KIB, MIB
from tests.support.pool_owner import DIED, ROOT

LINES = ["creating", "data made", "metadata formatted", "catalogue made", "data renamed", "metadata renamed"]


def _die_at(path: Path, line: str, plan: PoolPlan) -> None:
    """Create in a child that ends at `line` without unwinding anything."""
    devices = [str(each) for each in (plan.data, plan.metadata) if each is not None]
    argv = [sys.executable, "-m", "tests.support.pool_owner", "die", str(path), line, *devices]
    assert subprocess.run(argv, cwd=ROOT, check=False).returncode == DIED


@pytest.fixture(params=["files", "given files", "block devices"])
def plan(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PoolPlan]:
    """A pool of 32 MiB on files that it makes, on files that are there, on block devices."""
    if request.param == "files":
        yield PoolPlan(size_bytes=32 * MIB)
        return
    names = [tmp_path / "d", tmp_path / "m"]
    for name, size in zip(names, (32 * MIB, 2 * MIB), strict=True):
        with name.open("wb") as file:
            file.truncate(size)
    if request.param == "given files":
        yield PoolPlan(data=names[0], metadata=names[1])
        return
    if os.geteuid() != 0 or shutil.which("losetup") is None:
        pytest.skip("loop devices need root")
    loops: list[str] = []
    try:
        for name in names:
            made = subprocess.run(
                ["losetup", "--find", "--show", str(name)], capture_output=True, text=True, check=False
            )
            if made.returncode:
                pytest.skip("this host gives no loop devices")
            loops.append(made.stdout.strip())
        yield PoolPlan(data=Path(loops[0]), metadata=Path(loops[1]))
    finally:
        for loop in loops:
            subprocess.run(["losetup", "--detach", loop], check=True)


@pytest.mark.parametrize("line", LINES)
def test_after_a_death_it_is_a_pool_or_can_be_created_again(plan: PoolPlan, tmp_path: Path, line: str) -> None:
    path = tmp_path / "pool"
    _die_at(path, line, plan)
    assert (path / MARK).exists()
    if line == "metadata renamed":
        with pytest.raises(ConflictError, match="isn't empty"):
            create_pool(path, plan)
    else:
        with pytest.raises(NotFoundError, match="isn't a pool"):
            own_pool(path)
        create_pool(path, plan)
    with own_pool(path) as pool:
        volumes.create_volume(pool, "disk", 8 * MIB)
        assert pool.status().data_blocks == 512
    assert not (path / MARK).exists()


@pytest.mark.parametrize("line", LINES[:-1])
def test_an_error_leaves_nothing(plan: PoolPlan, tmp_path: Path, line: str) -> None:
    """Not even the directory, if it was new; a formatted device is zeros again."""

    def fail(at: str) -> None:
        if at == line:
            raise NoSpaceError("no room")

    with pytest.raises(NoSpaceError):
        create_pool(tmp_path / "pool", plan, reached=fail)
    assert not (tmp_path / "pool").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoSpaceError):
        create_pool(tmp_path / "empty", plan, reached=fail)
    assert not list((tmp_path / "empty").iterdir())
    create_pool(tmp_path / "empty", plan)


def test_what_holds_something_is_left_alone(tmp_path: Path) -> None:
    """N1: directories, data that begins with something, metadata of another pool, one device twice."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    with pytest.raises(ConflictError, match="precious"):
        create_pool(tmp_path / "full", PoolPlan(size_bytes=MIB))
    assert [each.name for each in (tmp_path / "full").iterdir()] == ["precious"]
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "data").write_text("a pool that lost its metadata")
    with pytest.raises(ConflictError, match="data"):
        create_pool(tmp_path / "half", PoolPlan(size_bytes=MIB))
    (tmp_path / "image").write_bytes(bytes(1080) + b"\x53\xef" + bytes(MIB))
    with pytest.raises(ConflictError, match="isn't empty"):
        create_pool(tmp_path / "pool", PoolPlan(data=tmp_path / "image"))
    create_pool(tmp_path / "first", PoolPlan(size_bytes=MIB))
    with pytest.raises(ConflictError, match="isn't empty"):
        create_pool(tmp_path / "pool", PoolPlan(size_bytes=MIB, metadata=tmp_path / "first" / "metadata"))
    with pytest.raises(UsageError, match="both"):
        create_pool(tmp_path / "pool", PoolPlan(data=tmp_path / "image", metadata=tmp_path / "image"))
    with pytest.raises(NotFoundError):
        create_pool(tmp_path / "no" / "pool", PoolPlan(size_bytes=MIB))
    with pytest.raises(ConflictError, match="isn't a directory"):
        create_pool(tmp_path / "image", PoolPlan(size_bytes=MIB))
    assert not (tmp_path / "pool").exists()
    own_pool(tmp_path / "first").close()


@pytest.mark.parametrize(
    "make",
    [
        PoolPlan,
        lambda: PoolPlan(size_bytes=MIB, block_bytes=65 * KIB),
        lambda: PoolPlan(size_bytes=1000),
        lambda: PoolPlan(size_bytes=MIB, low_water="ten"),
        lambda: PoolPlan(size_bytes=MIB, low_water="101%"),
        lambda: PoolPlan(size_bytes=MIB, metadata_bytes=4096),
    ],
)
def test_plans_that_make_no_sense_are_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(UsageError):
        make()


def test_a_new_pool_is_what_was_asked_for(tmp_path: Path) -> None:
    new = create_pool(tmp_path / "pool", PoolPlan(size_bytes=GIB, block_bytes=192 * KIB, low_water="1GiB"))
    assert (tmp_path / "pool" / "data").stat().st_size == GIB and new.data_blocks == GIB // (192 * KIB)
    allocated = (tmp_path / "pool" / "metadata").stat().st_blocks * 512
    assert allocated >= new.metadata_bytes == 2 * MIB
    with own_pool(tmp_path / "pool") as pool:
        status = pool.status()
        assert (status.uuid, status.block_bytes, status.data_blocks) == (new.uuid, 192 * KIB, new.data_blocks)
        assert status.low_water_blocks == -(-GIB // (192 * KIB)) and status.transaction_id == 1
        assert check(pool.engine.metadata.store.device).clean


def test_a_metadata_device_is_as_long_as_it_is(tmp_path: Path) -> None:
    device = tmp_path / "metadata-device"
    device.write_bytes(bytes(4 * MIB))
    made = create_pool(tmp_path / "one", PoolPlan(size_bytes=64 * MIB, metadata=device))
    assert (made.metadata_bytes, made.warning) == (4 * MIB, None)
    device.write_bytes(bytes(2 * MIB))
    large = create_pool(tmp_path / "two", PoolPlan(size_bytes=16 * GIB, metadata=device))
    assert large.metadata_bytes == 2 * MIB and "12 MiB are advised" in (large.warning or "")
    device.write_bytes(bytes(128 * KIB))
    with pytest.raises(UsageError, match="less than 256 KiB"):
        create_pool(tmp_path / "three", PoolPlan(size_bytes=64 * MIB, metadata=device))
    assert not (tmp_path / "three").exists()


def test_a_pool_grows_and_never_shrinks(tmp_path: Path) -> None:
    create_pool(tmp_path / "pool", PoolPlan(size_bytes=32 * MIB))
    with own_pool(tmp_path / "pool") as pool:
        grow_pool(pool, data_bytes=64 * MIB, metadata_bytes=4 * MIB)
        status = pool.status()
        assert (status.data_blocks, status.metadata_blocks, status.data_free_blocks) == (1024, 1024, 1024)
        assert (tmp_path / "pool" / "metadata").stat().st_blocks * 512 >= 4 * MIB
        for wanted in ({"data_bytes": 32 * MIB}, {"metadata_bytes": 2 * MIB}):
            with pytest.raises(UsageError, match="shrink"):
                grow_pool(pool, **wanted)
    with own_pool(tmp_path / "pool") as pool:
        assert pool.status().data_blocks == 1024


def test_parts_of_two_pools_are_never_used_together(tmp_path: Path) -> None:
    """I1, I2 of pool/identity, S3-22: both ids are named."""
    first = create_pool(tmp_path / "first", PoolPlan(size_bytes=MIB))
    second = create_pool(tmp_path / "second", PoolPlan(size_bytes=MIB))
    for part in ("metadata", "catalog.db", "data"):
        mixed = tmp_path / f"mixed-{part}"
        mixed.mkdir()
        for name in ("metadata", "catalog.db", "data"):
            source = tmp_path / ("second" if name == part else "first") / name
            subprocess.run(["cp", "--preserve=xattr,mode", str(source), str(mixed / name)], check=True)
        with pytest.raises(DamageError) as refusal:
            own_pool(mixed)
        assert str(first.uuid) in refusal.value.message and str(second.uuid) in refusal.value.message


def test_a_catalogue_behind_its_superblock_is_damage(tmp_path: Path) -> None:
    create_pool(tmp_path / "pool", PoolPlan(size_bytes=MIB))
    shutil.copy(tmp_path / "pool" / "catalog.db", tmp_path / "old")
    with own_pool(tmp_path / "pool") as pool:
        volumes.create_volume(pool, "disk", MIB)
    shutil.copy(tmp_path / "old", tmp_path / "pool" / "catalog.db")
    with pytest.raises(DamageError, match="superblock is at 2"):
        own_pool(tmp_path / "pool")
