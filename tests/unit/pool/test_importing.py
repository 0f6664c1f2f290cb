"""pool/importing: nobody sees half an import, errors and dead importers leave nothing, shared blocks stay shared."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from replicator.errors import ConflictError, DeviceError, NoSpaceError, UsageError
from replicator.pool import importing
from replicator.pool.exporting import export_device
from replicator.pool.importing import import_file
from replicator.pool.inspection import check_pool
from replicator.pool.interface import Switch
from replicator.pool.opening import OwnedPool, own_pool
from replicator.pool.remote import RemotePool
from replicator.pool.volumes import create_snapshot, create_volume
from tests.support.pool_owner import make_pool, owned_by_child, served

MIB = 1 << 20
BLOCK = 65536
ROOT = Path(__file__).resolve().parents[3]
_DIES = """
import os, sys
from pathlib import Path
from replicator.pool import importing
from replicator.pool.opening import open_pool
importing.STEP_BYTES = 1 << 18
importing._WINDOW_BYTES = 1 << 18
def progress(done, total):
    if done >= int(sys.argv[3]):
        os.kill(os.getpid(), 9)
importing.import_file(open_pool(Path(sys.argv[1])), "v", Path(sys.argv[2]), progress=progress)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make_pool(tmp_path / "pool", 16 * MIB)
    return tmp_path / "pool"


@pytest.fixture
def pool(path: Path) -> Iterator[OwnedPool]:
    with own_pool(path) as opened:
        yield opened


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "image"
    file.write_bytes(np.random.default_rng(2).bytes(2 * MIB))
    return file


def content(path: Path, name: str, folder: Path) -> bytes:
    export_device(path, name, folder / "content")
    return (folder / "content").read_bytes()


@pytest.mark.parametrize("remote", [False, True], ids=["owned here", "through the owner"])
@pytest.mark.parametrize("at_bytes", [1, MIB, 2 * MIB])
def test_a_killed_import_leaves_nothing_that_anybody_sees(
    path: Path, image: Path, tmp_path: Path, remote: bool, at_bytes: int
) -> None:
    with own_pool(path) as pool:
        create_volume(pool, "other", MIB)
    argv = [sys.executable, "-c", _DIES, str(path), str(image), str(at_bytes)]
    if remote:
        with owned_by_child(path):
            assert subprocess.run(argv, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    else:
        assert subprocess.run(argv, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    with own_pool(path) as pool:
        assert [each.name for each in pool.view().volumes] == ["other"]
        assert import_file(pool, "v", image).created
        assert pool.view().snapshots == [], "what the dead one left was taken away"
        assert pool.status().data_blocks - pool.status().data_free_blocks == 32
    assert content(path, "v", tmp_path) == image.read_bytes()
    assert check_pool(path).report.clean


def test_a_killed_replacement_leaves_the_old_content(path: Path, image: Path, tmp_path: Path) -> None:
    with own_pool(path) as pool:
        import_file(pool, "v", image)
    old = image.read_bytes()
    image.write_bytes(np.random.default_rng(3).bytes(2 * MIB))
    argv = [sys.executable, "-c", _DIES, str(path), str(image), str(2 * MIB)]
    assert subprocess.run(argv, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert content(path, "v", tmp_path) == old
    with own_pool(path) as pool:
        import_file(pool, "v", image)
    assert content(path, "v", tmp_path) == image.read_bytes()
    assert check_pool(path).report.clean


def test_steps_are_bounded_and_the_sum_is_the_file(
    path: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "STEP_BYTES", 4 * BLOCK)
    monkeypatch.setattr(importing, "_WINDOW_BYTES", 2 * BLOCK)
    with own_pool(path) as pool:
        before = pool.view().at_id
        made = import_file(pool, "v", image)
        assert pool.view().at_id - before == 1 + 8 + 1 and made.written_bytes == 2 * MIB
    assert content(path, "v", tmp_path) == image.read_bytes()


def test_an_error_gives_everything_back(pool: OwnedPool, tmp_path: Path) -> None:
    image = tmp_path / "large"
    with image.open("wb") as file:
        for _ in range(20):
            file.write(os.urandom(MIB))
    with pytest.raises(NoSpaceError):
        import_file(pool, "v", image)
    assert pool.view().volumes == [] and pool.view().snapshots == []
    assert pool.status().data_free_blocks == pool.status().data_blocks


def test_a_source_that_fails_in_the_middle_gives_everything_back(
    pool: OwnedPool, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "_WINDOW_BYTES", 2 * BLOCK)

    def cut_short(done: int, _: int) -> None:
        if done >= MIB:
            os.truncate(image, MIB)

    with pytest.raises(DeviceError):
        import_file(pool, "v", image, progress=cut_short)
    assert pool.view().volumes == [] and pool.view().snapshots == []
    assert pool.status().data_free_blocks == pool.status().data_blocks


def test_a_name_taken_meanwhile_is_a_conflict(pool: OwnedPool, image: Path) -> None:
    with pytest.raises(ConflictError, match="meanwhile"):
        import_file(pool, "v", image, progress=lambda done, total: _make(pool, done == total))
    assert [each.size_bytes for each in pool.view().volumes] == [MIB] and pool.view().snapshots == []


def _make(pool: OwnedPool, now: bool) -> None:
    if now and not pool.view().volumes:
        create_volume(pool, "v", MIB)


def test_a_volume_open_for_writing_is_not_replaced(pool: OwnedPool, image: Path) -> None:
    row = import_file(pool, "v", image).volume
    device = pool.engine.open_device(row.dev_id, row.size_bytes, read_only=False)
    with pool.engine.gate.writing():
        device.pwrite(b"written", 0)
    with pytest.raises(ConflictError):
        import_file(pool, "v", image)
    assert device.pread(7, 0) == b"written"
    assert pool.view().volume("v") == row and pool.view().snapshots == []


def test_a_volume_that_changed_meanwhile_is_not_replaced(pool: OwnedPool, image: Path) -> None:
    row = import_file(pool, "v", image).volume
    image.write_bytes(bytes(2 * MIB))

    def resize(done: int, _: int) -> None:
        if pool.view().volume("v").size_bytes == row.size_bytes:
            pool.resize(row.uuid, 4 * MIB)

    image.write_bytes(b"x" * 2 * MIB)
    with pytest.raises(ConflictError, match="changed while"):
        import_file(pool, "v", image, progress=resize)


def test_what_is_equal_stays_shared(pool: OwnedPool, image: Path) -> None:
    import_file(pool, "v", image)
    create_snapshot(pool, "v", "s")
    used = pool.status().data_free_blocks
    assert import_file(pool, "v", image).written_bytes == 0
    assert pool.status().data_free_blocks == used


@pytest.mark.parametrize("size", [0, 1, 511, 513, MIB + 100])
def test_sizes_that_cant_be_are_refused(pool: OwnedPool, tmp_path: Path, size: int) -> None:
    (tmp_path / "odd").write_bytes(bytes(size))
    with pytest.raises(UsageError):
        import_file(pool, "v", tmp_path / "odd")


def test_short_last_blocks_and_holes_come_through(path: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    for number in range(12):
        image = tmp_path / "image"
        size = int(rng.integers(1, 400)) * 512 * 8
        with image.open("wb") as file:
            for _ in range(int(rng.integers(0, 5))):
                file.seek(int(rng.integers(0, size)))
                file.write(rng.bytes(int(rng.integers(1, 100_000))))
            file.truncate(size)
        with own_pool(path) as pool:
            import_file(pool, f"v{number}", image)
        assert content(path, f"v{number}", tmp_path) == image.read_bytes()
    assert check_pool(path).report.clean


def test_a_dead_owner_in_the_middle_is_told(path: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "_WINDOW_BYTES", 2 * BLOCK)
    with owned_by_child(path) as child, RemotePool(path) as pool:

        def kill(done: int, _: int) -> None:
            if done >= MIB:
                child.kill()

        with pytest.raises(Exception, match="owner"):
            import_file(pool, "v", image, progress=kill)
    with own_pool(path) as pool_after:
        assert pool_after.view().volumes == []


def test_cuts_of_dead_exports_are_swept(path: Path, image: Path, tmp_path: Path) -> None:
    with own_pool(path) as pool:
        import_file(pool, "v", image)
    with served(path) as pool:
        program = (
            "import os, sys; from pathlib import Path; from replicator.pool.exporting import export_device;"
            " export_device(Path(sys.argv[1]), 'v', Path(sys.argv[2]), progress=lambda *_: os.kill(os.getpid(), 9))"
        )
        argv = [sys.executable, "-c", program, str(path), str(tmp_path / "out")]
        assert subprocess.run(argv, cwd=ROOT, check=False).returncode == -signal.SIGKILL
        assert not (tmp_path / "out").exists()
        assert [each.hidden for each in pool.view().snapshots] == [True]
        export_device(path, "v", tmp_path / "out")
        assert pool.view().snapshots == []
        assert pool.switch(Switch()) > 0
