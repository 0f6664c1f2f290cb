"""What a restore refuses to write to, each with nothing written; and what it takes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from replicator.errors import ConflictError, NotFoundError, UsageError
from replicator.repository import guards
from replicator.repository.guards import Machine, TargetKind, first_byte, inspect_target

SIZE = 1 << 20


def machine(tmp_path: Path, mountinfo: str = "", swaps: str = "") -> Machine:
    """A machine without devices or processes."""
    return Machine(mountinfo, swaps, tmp_path / "sys", tmp_path / "proc")


def refusals(path: Path, here: Machine, *, overwrite: bool = False, own: tuple[Path, ...] = ()) -> str:
    """Why `path` is refused; nothing of it may have changed."""
    before = (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else None
    target = inspect_target(str(path), SIZE, overwrite=overwrite, own=own, machine=here)
    assert before == ((path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else None)
    if not target.refusals:
        target.require_allowed()
        return ""
    with pytest.raises(ConflictError) as caught:
        target.require_allowed()
    assert caught.value.exit_code == 4 and caught.value.mend
    return "; ".join(target.refusals)


@pytest.mark.parametrize(
    ("content", "overwrite", "reason"),
    [
        (None, False, ""),
        (b"", False, ""),
        (bytes(SIZE), False, ""),
        (bytes(2 * SIZE), False, ""),
        (bytes(SIZE // 2), False, "smaller"),
        (bytes(SIZE - 1) + b"x", False, f"not empty: byte {SIZE - 1}"),
        (b"precious", False, "not empty: byte 0"),
        (b"precious", True, ""),
        (bytes(SIZE // 2), True, ""),
    ],
)
def test_files(tmp_path: Path, content: bytes | None, overwrite: bool, reason: str) -> None:
    path = tmp_path / "target"
    if content is not None:
        path.write_bytes(content)
    found = refusals(path, machine(tmp_path), overwrite=overwrite)
    assert reason in found and bool(found) == bool(reason)


def test_a_sparse_file_is_read_by_its_data_alone(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert first_byte(path, 1 << 40, whole=True) is None
    with path.open("r+b") as file:
        file.seek((1 << 39) + 5)
        file.write(b"x")
    assert first_byte(path, 1 << 40, whole=True) == (1 << 39) + 5


def test_a_device_that_is_not_there_is_no_new_file() -> None:
    target = inspect_target("/dev/replicator-no-such-device", SIZE, overwrite=True)
    with pytest.raises(ConflictError, match="there is no device"):
        target.require_allowed()


def test_samples_see_both_ends(tmp_path: Path) -> None:
    path = tmp_path / "device"
    size = 1 << 40
    for at in (0, size - 1):
        with path.open("wb") as file:
            file.truncate(size)
            file.seek(at)
            file.write(b"x")
        assert first_byte(path, size, whole=False) == at


def test_what_an_interrupted_restore_left_is_no_byte_of_a_strangers(tmp_path: Path) -> None:
    """Zeros and the point's bytes, torn anywhere, are its own; another byte isn't."""
    path, point = tmp_path / "device", bytes(range(1, 256)) * 16

    def left(length: int, offset: int) -> bytes:
        return point[offset : offset + length].ljust(length, b"\0")

    def found(content: bytes) -> int | None:
        path.write_bytes(content)
        return first_byte(path, len(content), whole=False, left=left)

    assert found(point) is None and found(point[:77].ljust(SIZE, b"\0")) is None
    assert found(bytes(100) + point[100:].ljust(SIZE, b"\0")) is None
    assert found(point[:77] + b"\x01" + point[78:]) == 77, "another disk's"
    assert found(point.ljust(SIZE - 1, b"\0") + b"x") == SIZE - 1, "behind the volume's end"


@contextmanager
def flocked(path: Path) -> Iterator[None]:
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def open_for_writing_elsewhere(path: Path) -> Iterator[None]:
    ready, ended = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.open(path, os.O_RDWR)
        os.write(ready[1], b"!")
        os.read(ended[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    try:
        yield
    finally:
        os.write(ended[1], b"!")
        os.waitpid(child, 0)
        for fd in (*ready, *ended):
            os.close(fd)


@pytest.mark.parametrize("holder", [flocked, open_for_writing_elsewhere])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_file_that_somebody_holds(tmp_path: Path, holder: Callable[[Path], Iterator[None]]) -> None:
    path = tmp_path / "held"
    path.touch()
    here = Machine("", "", tmp_path / "sys", Path("/proc"))
    with holder(path):  # type: ignore[attr-defined]  # a context manager
        assert refusals(path, here, overwrite=True)
    assert not refusals(path, here, overwrite=True)


def test_a_file_behind_a_mount_a_loop_device_or_swap(tmp_path: Path) -> None:
    path = tmp_path / "busy file"
    path.touch()
    escaped = str(path).replace(" ", "\\040")
    mounted = f"36 35 0:44 /x {escaped} rw - ext4 /dev/sda1 rw\n"
    assert "mounted on it" in refusals(path, machine(tmp_path, mounted), overwrite=True)
    swaps = f"Filename Type Size Used Priority\n{escaped} file 1 0 -2\n"
    assert "swap" in refusals(path, machine(tmp_path, "", swaps), overwrite=True)
    loop = tmp_path / "sys" / "7:3" / "loop"
    loop.mkdir(parents=True)
    (loop / "backing_file").write_text(f"{path}\n")
    assert "loop device 7:3" in refusals(path, machine(tmp_path), overwrite=True)


def test_a_device_that_is_in_use(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.touch()
    whole = tmp_path / "sys" / "8:0"
    (whole / "sda1").mkdir(parents=True)
    (whole / "sda1" / "partition").write_text("1\n")
    (whole / "sda1" / "dev").write_text("8:1\n")
    holders = tmp_path / "sys" / "8:1" / "holders"
    holders.mkdir(parents=True)

    def reasons(mountinfo: str = "") -> str:
        return "; ".join(guards._device_reasons(path, os.makedev(8, 0), machine(tmp_path, mountinfo)))

    assert reasons() == ""
    assert "/srv" in reasons("36 35 8:0 / /srv rw,relatime shared:1 - ext4 /dev/sda rw\n")
    assert "/boot" in reasons("36 35 8:1 / /boot rw - ext4 /dev/sda1 rw\n"), "a partition of it"
    assert reasons("36 35 8:16 / /srv rw - ext4 /dev/sdb rw\nrubbish\n") == ""
    (holders / "dm-0").touch()
    assert "held by dm-0" in reasons()


def test_what_the_restore_reads_from_is_never_written(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "data").touch()
    (tmp_path / "link").symlink_to(pool / "data")
    (tmp_path / "hard").hardlink_to(pool / "data")
    for path in (pool / "data", pool / "new", tmp_path / "link", tmp_path / "hard"):
        assert "restored from" in refusals(path, machine(tmp_path), overwrite=True, own=(pool,))
    assert not refusals(tmp_path / "other", machine(tmp_path), own=(pool,))


def test_what_is_no_target_at_all(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/null")):
        with pytest.raises(UsageError, match="neither a file nor a block device"):
            inspect_target(str(path), SIZE, overwrite=True, machine=machine(tmp_path))
    with pytest.raises(NotFoundError, match="no folder"):
        inspect_target(str(tmp_path / "no" / "file"), SIZE, overwrite=True, machine=machine(tmp_path))


def test_symlinks_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"precious")
    (tmp_path / "link").symlink_to("real")
    assert "not empty" in refusals(tmp_path / "link", machine(tmp_path))
    (tmp_path / "dangling").symlink_to("later")
    target = inspect_target(str(tmp_path / "dangling"), SIZE, overwrite=False, machine=machine(tmp_path))
    assert target.kind is TargetKind.ABSENT and target.path == tmp_path / "later"
