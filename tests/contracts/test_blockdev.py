"""B1 to B5 of blockdev/interface, on every device we have; then what each device promises beyond them."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replicator.blockdev.faulty import Fault, FaultyDevice, Operation, OperationKind, power_cut_image
from replicator.blockdev.file import FileDevice, open_device
from replicator.blockdev.interface import BlockDevice
from replicator.blockdev.memory import MemoryDevice
from replicator.errors import ConflictError, DeviceError, NotFoundError, UsageError
from replicator.pdata.mirror import MirroredDevice, MirrorState, Side

SIZE = 1 << 20
Make = Callable[[], BlockDevice]
WRITE = frozenset({OperationKind.WRITE})
FLUSH = frozenset({OperationKind.FLUSH})


def _loop_device(path: Path) -> str | None:
    """A loop device over `path`, or None where this host gives none."""
    if os.geteuid() != 0 or shutil.which("losetup") is None:
        return None
    made = subprocess.run(["losetup", "--find", "--show", str(path)], capture_output=True, text=True, check=False)
    return made.stdout.strip() if made.returncode == 0 else None


def _mirrored(first: BlockDevice, folder: Path) -> MirroredDevice:
    """With a second copy of the same kind."""
    if isinstance(first, MemoryDevice):
        second: BlockDevice = MemoryDevice(SIZE)
    else:
        second = FileDevice.create(folder / "second", SIZE)
    return MirroredDevice("mirrored", {Side.FIRST: first, Side.SECOND: second}, MirrorState(), lambda _: None)


@pytest.fixture(params=["file", "block", "memory", "faulty file", "faulty memory", "mirrored file", "mirrored memory"])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlockDevice]:
    """Each kind of device, writable, SIZE bytes of zeros."""
    loop = None
    made: BlockDevice
    if "memory" in request.param:
        made = MemoryDevice(SIZE)
    else:
        FileDevice.create(tmp_path / "disk", SIZE).close()
        path = tmp_path / "disk"
        if request.param == "block":
            loop = _loop_device(path)
            if loop is None:
                pytest.skip("this host gives no loop devices")
            path = Path(loop)
        made = open_device(path)
    if "mirrored" in request.param:
        made = _mirrored(made, tmp_path)
    yield FaultyDevice(made) if "faulty" in request.param else made
    made.close()
    if loop is not None:
        subprocess.run(["losetup", "--detach", loop], check=True)


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 1), (511, 2), (4096, 65536), (SIZE - 1, 1), (0, SIZE), (7, 0), (SIZE, 0)]
)
def test_reads_back_exactly_what_was_written(device: BlockDevice, offset: int, length: int) -> None:
    """B1, B2: any range within, of any alignment, and its neighbours untouched."""
    data = os.urandom(length)
    device.pwrite(data, offset)
    assert device.pread(length, offset) == data
    target = bytearray(length)
    device.pread_into(target, offset)
    assert target == data
    assert device.pread(SIZE, 0) == bytes(offset) + data + bytes(SIZE - offset - length)


@pytest.mark.parametrize(
    ("offset", "length"), [(SIZE, 1), (SIZE - 1, 2), (-1, 1), (-2, 1), (1 << 62, 4096), (0, SIZE + 1)]
)
def test_a_range_beyond_the_end_is_refused_whole(device: BlockDevice, offset: int, length: int) -> None:
    """B1: EINVAL and nothing written, rather than a short transfer."""
    calls: list[Callable[[], object]] = [
        lambda: device.pread(length, offset),
        lambda: device.pread_into(bytearray(length), offset),
        lambda: device.pwrite(b"x" * length, offset),
        lambda: device.pwritev([b"x"] * length, offset),
        lambda: device.discard(offset, length),
    ]
    for call in calls:
        with pytest.raises(DeviceError) as caught:
            call()
        assert caught.value.errno == errno.EINVAL and caught.value.offset_bytes == offset
    assert device.pread(SIZE, 0) == bytes(SIZE)


@pytest.mark.parametrize("count", [0, 1, 3, 2500])
def test_pwritev_writes_its_parts_one_behind_the_other(device: BlockDevice, count: int) -> None:
    """B2: more parts than one system call takes; kinds of buffers mixed, empty ones among them."""
    kinds = (bytes, bytearray, memoryview)
    chosen = [os.urandom(index % 7) for index in range(count)]
    device.pwritev([kinds[index % 3](part) for index, part in enumerate(chosen)], 1000)
    joined = b"".join(chosen)
    assert device.pread(len(joined) + 1, 1000) == joined + b"\0"


def test_wide_items_count_in_bytes(device: BlockDevice) -> None:
    """B1, B2: a memoryview of 8-byte items is written and filled by its bytes."""
    wide = memoryview(bytearray(os.urandom(64))).cast("Q")
    device.pwrite(wide, 8)
    target = memoryview(bytearray(64)).cast("Q")
    device.pread_into(target, 8)
    assert target.tobytes() == wide.tobytes()


def test_discard_zeroes_where_it_says_so(device: BlockDevice) -> None:
    """B4: inside the range zeros (or anything, if it doesn't promise), outside nothing changes."""
    device.pwrite(b"\xaa" * SIZE, 0)
    device.discard(5000, 100_001)
    device.discard(0, 0)
    whole = device.pread(SIZE, 0)
    assert whole[:5000] == b"\xaa" * 5000 and whole[105_001:] == b"\xaa" * (SIZE - 105_001)
    if device.discard_zeroes:
        assert whole[5000:105_001] == bytes(100_001)


def test_flush_and_names(device: BlockDevice) -> None:
    """B3 in the good case; what every device says of itself."""
    device.pwrite(b"x", 0)
    device.flush()
    device.flush()
    assert device.name and device.size_bytes == SIZE and not device.read_only
    assert device.fileno() >= -1


def test_grow(device: BlockDevice) -> None:
    """Longer with zeros behind; never shorter; not for a block device."""
    with pytest.raises(UsageError):
        device.grow(SIZE - 1)
    if isinstance(device, FileDevice) and device.is_block_device:
        with pytest.raises(UsageError):
            device.grow(2 * SIZE)
        return
    device.pwrite(b"\xbb", SIZE - 1)
    device.grow(SIZE)
    device.grow(2 * SIZE)
    assert device.size_bytes == 2 * SIZE
    assert device.pread(SIZE + 1, SIZE - 1) == b"\xbb" + bytes(SIZE)


def test_many_threads(device: BlockDevice) -> None:
    """B5: eight threads on stripes of their own, flushing now and then."""
    stripe = SIZE // 8
    failures: list[BaseException] = []

    def work(index: int) -> None:
        try:
            for step in range(40):
                data = bytes([index * 16 + step % 16]) * 512
                device.pwrite(data, index * stripe + step * 512)
                assert device.pread(512, index * stripe + step * 512) == data
                if step % 10 == 0:
                    device.flush()
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize(
    "make", [lambda path: open_device(path, read_only=True), lambda _: MemoryDevice(SIZE, read_only=True)]
)
def test_read_only_refuses_to_change(make: Callable[[Path], BlockDevice], tmp_path: Path) -> None:
    """EROFS for what changes content, UsageError for growing; reading and flushing go on."""
    FileDevice.create(tmp_path / "disk", SIZE).close()
    device = make(tmp_path / "disk")
    calls: list[Callable[[], None]] = [
        lambda: device.pwrite(b"x", 0),
        lambda: device.pwritev([b"x"], 0),
        lambda: device.discard(0, 4096),
    ]
    for call in calls:
        with pytest.raises(DeviceError) as caught:
            call()
        assert caught.value.errno == errno.EROFS
    with pytest.raises(UsageError):
        device.grow(2 * SIZE)
    device.flush()
    assert device.read_only and device.pread(1, 0) == b"\0"
    device.close()


# ---- files -------------------------------------------------------------------------------------------------------


def test_opening_what_is_no_disk(tmp_path: Path) -> None:
    """Each refusal has its type, so that the command line has its exit code."""
    with pytest.raises(NotFoundError):
        open_device(tmp_path / "missing")
    with pytest.raises(NotFoundError):
        (tmp_path / "file").touch()
        open_device(tmp_path / "file" / "below")
    with pytest.raises(UsageError):
        open_device(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError):
        open_device(tmp_path / "pipe")
    with pytest.raises(ConflictError):
        FileDevice.create(tmp_path / "file", 1)
    with pytest.raises(NotFoundError):
        FileDevice.create(tmp_path / "no" / "file", 1)


def test_discard_frees_room_in_a_file(tmp_path: Path) -> None:
    """B4 for a sparse file: the blocks go back to the file system, the length stays."""
    with FileDevice.create(tmp_path / "disk", SIZE) as device:
        device.pwrite(os.urandom(SIZE), 0)
        device.flush()
        before = os.fstat(device.fileno()).st_blocks
        device.discard(0, SIZE)
        device.flush()
        assert os.fstat(device.fileno()).st_blocks < before and os.fstat(device.fileno()).st_size == SIZE


def test_preallocate_reserves_room_and_keeps_content(tmp_path: Path) -> None:
    """P8: the range is allocated, what was written stays."""
    with FileDevice.create(tmp_path / "disk", SIZE) as device:
        device.pwrite(b"kept", 100)
        device.preallocate(0, SIZE)
        assert os.fstat(device.fileno()).st_blocks * 512 >= SIZE and device.pread(4, 100) == b"kept"


def test_short_writes_are_continued_until_the_error(tmp_path: Path) -> None:
    """F3: at the process's file size limit the kernel writes a part, then says EFBIG: reported, never taken as done."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with FileDevice.create(tmp_path / "disk", SIZE) as device:
        resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, hard))
        try:
            calls: list[Callable[[], None]] = [
                lambda: device.pwrite(b"y" * SIZE, 0),
                lambda: device.pwritev([b"y" * 1000] * 1048, 0),
            ]
            for call in calls:
                with pytest.raises(DeviceError) as caught:
                    call()
                assert caught.value.errno == errno.EFBIG
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert device.pread(SIZE, 0) == b"y" * (SIZE // 2) + bytes(SIZE // 2)


def test_a_file_cut_short_beneath_us_is_an_error(tmp_path: Path) -> None:
    """F3: never zeros, never a short answer."""
    with FileDevice.create(tmp_path / "disk", SIZE) as device:
        os.truncate(tmp_path / "disk", 1000)
        for call in (lambda: device.pread(2000, 0), lambda: device.pread_into(bytearray(2000), 0)):
            with pytest.raises(DeviceError) as caught:
                call()
            assert (caught.value.errno, caught.value.offset_bytes) == (errno.EIO, 1000)


def test_a_file_that_another_process_grew_is_seen(tmp_path: Path) -> None:
    """F1: the pool's owner grew the data file; a client's device reads there without being opened again."""
    with FileDevice.create(tmp_path / "disk", SIZE) as device:
        os.truncate(tmp_path / "disk", 2 * SIZE)
        assert device.pread(10, SIZE + 5) == bytes(10)
        assert device.refresh_size() == 2 * SIZE


def test_created_files_are_private_and_closed_ones_refuse(tmp_path: Path) -> None:
    """0600 unless asked otherwise; close twice is no harm; after it every call is a DeviceError."""
    device = FileDevice.create(tmp_path / "disk", SIZE)
    assert stat.S_IMODE((tmp_path / "disk").stat().st_mode) == 0o600
    device.close()
    device.close()
    with pytest.raises(DeviceError):
        device.pread(1, 0)
    with pytest.raises(DeviceError):
        device.flush()


def test_a_failed_flush_bars_all_later_ones(tmp_path: Path) -> None:
    """B3: a descriptor that can't be synced (closed beneath us) fails once, and then for good."""
    device = FileDevice.create(tmp_path / "disk", SIZE)
    os.close(device.fileno())
    with pytest.raises(DeviceError) as first:
        device.flush()
    with pytest.raises(DeviceError, match="earlier flush failed") as second:
        device.flush()
    assert first.value.errno == errno.EBADF and second.value.mend is not None


def test_exclusive_is_refused_for_a_held_block_device(tmp_path: Path) -> None:
    """One owner of a block device: the second O_EXCL is ConflictError (exit 4)."""
    FileDevice.create(tmp_path / "disk", SIZE).close()
    loop = _loop_device(tmp_path / "disk")
    if loop is None:
        pytest.skip("this host gives no loop devices")
    try:
        with open_device(Path(loop), exclusive=True), pytest.raises(ConflictError):
            open_device(Path(loop), exclusive=True)
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


# ---- the faulty one ----------------------------------------------------------------------------------------------


def _three_rounds(device: FaultyDevice) -> int:
    """Write, read and flush three times over; how many of the nine calls failed with ENOSPC."""
    failed = 0
    for step in range(9):
        try:
            if step % 3 == 0:
                device.pwrite(b"x", step)
            elif step % 3 == 1:
                device.pread(1, 0)
            else:
                device.flush()
        except DeviceError as error:
            failed += error.errno == errno.ENOSPC
    return failed


def test_the_nth_operation_fails_for_every_n() -> None:
    """X1, X2: the walk that fault tests make ends; each n fails one operation, a flush also the flushes after it."""
    for nth in range(1, 100):
        device = FaultyDevice(MemoryDevice(SIZE), [Fault(nth, errno.ENOSPC)])
        failed = _three_rounds(device)
        if not device.met:
            assert nth == 10 and failed == 0
            return
        assert failed == (1 if nth % 3 else 1 + (9 - nth) // 3)
    pytest.fail("the walk never ended")


def test_a_torn_write_leaves_its_head() -> None:
    """B2: after an error the range is unknown; here, the first bytes of the new."""
    device = FaultyDevice(MemoryDevice(SIZE), [Fault(2, kinds=WRITE, torn_bytes=3)])
    device.pwrite(b"aaaaaa", 0)
    with pytest.raises(DeviceError):
        device.pwritev([b"bb", b"bbbb"], 0)
    assert device.pread(6, 0) == b"bbbaaa"
    assert [each.failed for each in device.operations] == [False, True, False]


def test_a_failed_flush_and_a_dead_disk() -> None:
    """B3: no flush succeeds after one that failed; `for_good` fails all."""
    device = FaultyDevice(MemoryDevice(SIZE), [Fault(1, kinds=FLUSH)])
    device.pwrite(b"x", 0)
    for _ in range(2):
        with pytest.raises(DeviceError):
            device.flush()
    dead = FaultyDevice(MemoryDevice(SIZE), [Fault(2, for_good=True, torn_bytes=1)])
    dead.pwrite(b"x", 0)
    for call in (lambda: dead.pwrite(b"yy", 0), lambda: dead.pwrite(b"zz", 0), lambda: dead.pread(1, 0), dead.flush):
        with pytest.raises(DeviceError):
            call()


def test_power_cut_images() -> None:
    """What a good flush covers is there; of the rest each write by itself: whole, its head, or nothing."""
    device = FaultyDevice(MemoryDevice(8), record_data=True)
    device.pwrite(b"11111111", 0)
    device.flush()
    device.pwrite(b"22", 0)
    device.pwrite(b"33", 4)
    device.discard(6, 2)
    cases: list[tuple[Callable[[Operation], int], bytes]] = [
        (lambda _: 0, b"11111111"),
        (lambda each: each.length_bytes, b"221133\0\0"),
        (lambda each: 1 if each.offset_bytes == 4 else 0, b"11113111"),
    ]
    for survives, expected in cases:
        assert power_cut_image(bytes(8), device.operations, survives) == expected
