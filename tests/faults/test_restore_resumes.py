"""A restore that dies at any write leaves the target as it was, and the next one goes on to the same end."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator._buffer import Buffer
from replicator.errors import ConflictError, DamageError, DeviceError
from replicator.log.object_log import ObjectLog
from replicator.repository.restore import RestoreSettings, plan_restore, restore
from replicator.repository.resume import partial_path, read_state, state_path
from replicator.repository.source import Source
from replicator.repository.target import PlacedWriter, open_placed
from replicator.units import CHUNK_BYTES
from tests.support.faulty_files import CrashError
from tests.support.memory_objects import MemoryStore
from tests.support.restoring import NOW_NS, content, go, loop_device
from tests.support.volume_histories import History

SIZE = 10 * CHUNK_BYTES + 1536


@pytest.fixture
def source() -> Source:
    """A log of a volume whose last point holds data, zeros and holes."""
    history = History(ObjectLog(MemoryStore(), create=True), random.Random(4), SIZE)
    history.write(0, random.Random(1).randbytes(3 * CHUNK_BYTES))
    history.write(8 * CHUNK_BYTES + 4096, random.Random(2).randbytes(2 * CHUNK_BYTES), "full")
    history.write(CHUNK_BYTES, bytes(CHUNK_BYTES))
    history.close()
    return Source("log", log=history.log)


@pytest.mark.parametrize("before", [None, b"precious"])
def test_death_at_every_write(source: Source, tmp_path: Path, before: bytes | None) -> None:
    expected = content(source)
    path = tmp_path / "disk.img"
    resumed = 0
    for at in range(1, 1000):
        for left in tmp_path.iterdir():
            left.unlink()
        if before is not None:
            path.write_bytes(before)
        try:
            go(source, path, at, overwrite=before is not None)
        except CrashError:
            assert (path.read_bytes() if path.exists() else None) == before, "the target is as it was"
            report = go(source, path, overwrite=before is not None)
            resumed += bool(report.resumed_at_bytes)
        else:
            assert at > 10 and resumed, "some went on in the middle"
            break
        assert path.read_bytes() == expected
        assert [each.name for each in tmp_path.iterdir()] == ["disk.img"], "nothing is left beside it"
    assert path.read_bytes() == expected


def test_death_again_and_again(source: Source, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    reached = []
    for _ in range(3):
        with pytest.raises(CrashError):
            go(source, path, 6)
        state = read_state(state_path(path))
        assert state is not None
        reached.append(state.done_bytes)
    assert 0 < reached[0] < reached[1] < reached[2]
    assert go(source, path).resumed_at_bytes == reached[2] and path.read_bytes() == content(source)


def test_another_point_does_not_go_on(source: Source, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with pytest.raises(CrashError):
        go(source, path, 8)
    assert read_state(state_path(path)) is not None
    report = go(source, path, text="disk-1@full")
    assert report.resumed_at_bytes == 0 and path.read_bytes() == content(source, "disk-1@full")


def test_what_is_not_there_any_more_is_written_again(source: Source, tmp_path: Path) -> None:
    """The file's number says whose it is, not that it still holds what was written."""
    path = tmp_path / "disk.img"
    with pytest.raises(CrashError):
        go(source, path, 8)
    state = read_state(state_path(path))
    assert state is not None and state.done_bytes
    with partial_path(path).open("r+b") as file:
        file.write(random.Random(9).randbytes(state.done_bytes))
    assert go(source, path).resumed_at_bytes == 0 and path.read_bytes() == content(source)


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty loop device that is larger than the volume."""
    with loop_device(tmp_path, 2 * SIZE, monkeypatch) as made:
        yield made


@pytest.mark.parametrize("at", [3, 10])
def test_a_device_that_became_another_disk_is_not_written(source: Source, device: Path, at: int) -> None:
    """After a reboot the same number may be another disk's, whether or not a checkpoint was reached."""
    with pytest.raises(CrashError):
        go(source, device, at)
    state = read_state(state_path(device))
    assert state is not None and bool(state.done_bytes) == (at == 10)
    precious = random.Random(9).randbytes(2 * SIZE)
    device.write_bytes(precious)
    with pytest.raises(ConflictError, match="not empty"):
        go(source, device)
    assert device.read_bytes() == precious
    assert go(source, device, overwrite=True).resumed_at_bytes == 0
    assert device.read_bytes() == content(source) + precious[SIZE:]


@pytest.mark.parametrize("at", [3, 10])
def test_a_device_goes_on(source: Source, device: Path, at: int) -> None:
    """What the interrupted restore left there, beyond its checkpoint too, speaks against nothing."""
    with pytest.raises(CrashError):
        go(source, device, at)
    state = read_state(state_path(device))
    assert state is not None and any(device.read_bytes()[state.done_bytes :])
    assert go(source, device).resumed_at_bytes == state.done_bytes
    assert device.read_bytes() == content(source) + bytes(SIZE) and not state_path(device).exists()


@pytest.mark.parametrize("rubbish", [b"", b"{}", b"\xff\xfe", b'{"version": 1}'])
def test_a_state_that_cannot_be_read_is_none(source: Source, tmp_path: Path, rubbish: bytes) -> None:
    path = tmp_path / "disk.img"
    with pytest.raises(CrashError):
        go(source, path, 8)
    state_path(path).write_bytes(rubbish)
    with pytest.raises(ConflictError, match="move it away"):
        go(source, path)  # nobody knows whose bytes these are
    partial_path(path).unlink()
    assert go(source, path).resumed_at_bytes == 0
    assert path.read_bytes() == content(source)


def test_a_restored_file_is_sparse_and_private(source: Source, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    report = go(source, path)
    status = path.stat()
    assert report.verified and status.st_size == SIZE and status.st_mode & 0o777 == 0o600
    assert report.written_bytes <= 4 * CHUNK_BYTES + 4096, "neither holes nor zeros are written"
    assert status.st_blocks * 512 < SIZE


def test_a_replaced_file_keeps_its_mode(source: Source, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"precious")
    path.chmod(0o640)
    with pytest.raises(ConflictError, match="not empty"):
        go(source, path)
    assert path.read_bytes() == b"precious"
    go(source, path, overwrite=True)
    assert path.read_bytes() == content(source) and path.stat().st_mode & 0o777 == 0o640


def test_what_reads_back_otherwise_is_damage(source: Source, tmp_path: Path) -> None:
    class Forgetful(PlacedWriter):
        """A disk that loses a write."""

        def write(self, data: Buffer, offset_bytes: int) -> None:
            if offset_bytes != 0:
                super().write(data, offset_bytes)

    def forgetful(path: Path, *, create: bool = False) -> PlacedWriter:
        real = open_placed(path, create=create)
        return Forgetful(Path(real.name), real._fd)

    opened = source.open_point("disk-1@latest", now_ns=NOW_NS)
    path = tmp_path / "disk.img"
    with opened.disk, pytest.raises(DamageError, match="at byte 0: read back"):
        restore(plan_restore(opened, str(path)), settings=RestoreSettings(1, CHUNK_BYTES, CHUNK_BYTES, forgetful))
    assert not path.exists() and partial_path(path).exists()


def test_a_file_that_may_not_grow_is_an_error_with_its_place(source: Source, tmp_path: Path) -> None:
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK_BYTES, before[1]))
    try:
        with pytest.raises(Exception, match="no room") as caught:
            go(source, tmp_path / "disk.img")
        assert getattr(caught.value, "kind", "") == "no-space"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "disk.img").exists()
    go(source, tmp_path / "disk.img")


def test_a_device_is_zeroed_explicitly(source: Source, tmp_path: Path) -> None:
    """A device can't be had here: a file that is taken for one, which refuses BLKZEROOUT."""
    path = tmp_path / "device"
    path.write_bytes(b"\xff" * SIZE)
    writer = open_placed(path)
    writer._is_device = True
    writer.zero(CHUNK_BYTES, 2 * CHUNK_BYTES)
    writer.cut(0, SIZE)
    assert not writer.is_hole(CHUNK_BYTES, 2 * CHUNK_BYTES)
    writer.close()
    data = path.read_bytes()
    assert data == b"\xff" * CHUNK_BYTES + bytes(2 * CHUNK_BYTES) + b"\xff" * (SIZE - 3 * CHUNK_BYTES)


def test_two_restores_to_one_target(source: Source, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    with pytest.raises(CrashError):
        go(source, path, 8)
    held = open_placed(partial_path(path), create=True)
    with pytest.raises(ConflictError, match="another restore"):
        go(source, path)
    held.close()
    go(source, path)


def test_a_missing_folder_for_the_state(source: Source, tmp_path: Path) -> None:
    folder = tmp_path / "readonly"
    folder.mkdir()
    path = folder / "disk.img"
    state_path(path).mkdir()  # where the state should be a folder is: it can't be replaced
    with pytest.raises(DeviceError):
        go(source, path)
    assert not path.exists()
