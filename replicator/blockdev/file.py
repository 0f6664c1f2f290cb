"""A regular file or a Linux block device as a BlockDevice.

The door that the pool's `metadata` and `data`, and a raw external origin, go through. Reads and writes are
positional (pread, pwrite), so that any number of threads share one descriptor, and the GIL is released in each.

    operation      regular file                                block device
    size           fstat                                       lseek to the end
    discard        fallocate PUNCH_HOLE|KEEP_SIZE; zeros are   BLKDISCARD of the whole sectors inside; a device
                   written where the file system has no holes  that can't is left as it is
    discard_zeroes yes                                         no (devices disagree on what reads back)
    grow           ftruncate; durable with the next flush      refused: whoever made it grows it, refresh_size sees it
    preallocate    posix_fallocate                             nothing to do

Invariants (B1 to B5 stand in blockdev/interface)
  F1  A range beyond the end is refused before anything is read or written. The size is asked for again first,
      since another process (the pool's owner) may have grown the file.
  F2  Flushes take turns. The kernel reports a lost write to one fdatasync of a descriptor only, so of two at once
      the other would hear "done"; the one that heard it bars all later ones (B3).
  F3  A short transfer is continued; a read that meets the end early is DeviceError (EIO): the file was cut short
      beneath us.

What a crash leaves
  create        before the directory's sync: no file, or one of the right length that reads as zeros
  grow          the old length or the new one; what was between reads as zeros
  discard       old content or zeros, sector by sector, until the next flush
  preallocate   what was there; room may or may not be reserved

Deliberately absent: O_DIRECT (all processes use a device buffered) and file locks (the pool's room).
Failures: DeviceError; NoSpaceError from preallocate; at opening NotFoundError, ConflictError (held), UsageError.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from replicator._buffer import Buffer
from replicator.errors import ConflictError, DeviceError, NoSpaceError, NotFoundError, UsageError
from replicator.units import SECTOR_BYTES

_BLKDISCARD = 0x1277
"""_IO(0x12, 119) of linux/fs.h; takes two u64: offset and length in bytes."""

_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02

_IOV_MAX = 1024
"""Most buffers that one pwritev takes (UIO_MAXIOV)."""

_ZEROS_BYTES = 1 << 20
"""Zeros written at once where a file system can't punch holes: large enough to be few calls, small in memory."""

_NOT_SUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EINVAL})

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.fallocate.restype = ctypes.c_int


class FileDevice:
    """An open file or block device; see the module's table for what differs between the two."""

    def __init__(self, path: Path, *, read_only: bool = False, exclusive: bool = False) -> None:
        """Open `path`; `exclusive` takes a block device with O_EXCL, which a mount or another owner refuses."""
        self._path = path
        self._read_only = read_only
        self._fd = _open(path, os.O_RDONLY if read_only else os.O_RDWR, exclusive)
        self._is_block = stat.S_ISBLK(os.fstat(self._fd).st_mode)
        self._size_bytes = _size_of(self._fd)
        self._flushing = threading.Lock()
        self._flush_failed = False

    @classmethod
    def create(cls, path: Path, size_bytes: int, *, mode: int = 0o600) -> FileDevice:
        """Make a new sparse file of `size_bytes` zeros, durable with its name; ConflictError where there is one."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        except FileExistsError:
            raise ConflictError(f"{path} is there already") from None
        except OSError as error:
            _refuse_open(path, error)
        try:
            os.ftruncate(fd, size_bytes)
            os.fsync(fd)
            sync_folder(path.parent)
        except OSError as error:
            raise DeviceError(f"creating {path}", 0, error.errno or errno.EIO, error.strerror or str(error)) from error
        finally:
            os.close(fd)
        return cls(path)

    @property
    def name(self) -> str:
        return str(self._path)

    @property
    def size_bytes(self) -> int:
        """The length when it was opened, grown or last asked for (refresh_size)."""
        return self._size_bytes

    @property
    def read_only(self) -> bool:
        return self._read_only

    @property
    def discard_zeroes(self) -> bool:
        return not self._is_block

    @property
    def is_block_device(self) -> bool:
        return self._is_block

    def fileno(self) -> int:
        return self._fd

    def refresh_size(self) -> int:
        """Ask the kernel for the length again: another process, or lvextend, may have changed it."""
        try:
            self._size_bytes = _size_of(self._fd)
        except OSError as error:
            self._fail("size", 0, error)
        return self._size_bytes

    def pread(self, length_bytes: int, offset_bytes: int) -> bytes:
        if offset_bytes < 0 or length_bytes < 0 or offset_bytes + length_bytes > self._size_bytes:
            self._check_range("read", length_bytes, offset_bytes)
        try:
            data = os.pread(self._fd, length_bytes, offset_bytes)
        except OSError as error:
            self._fail("read", offset_bytes, error)
        if len(data) == length_bytes:
            return data
        rest = bytearray(length_bytes)
        rest[: len(data)] = data
        self._fill(memoryview(rest), len(data), offset_bytes)
        return bytes(rest)

    def pread_into(self, target: Buffer, offset_bytes: int) -> None:
        view = memoryview(target).cast("B")
        self._check_range("read", len(view), offset_bytes)
        self._fill(view, 0, offset_bytes)

    def pwrite(self, data: Buffer, offset_bytes: int) -> None:
        length_bytes = len(data) if isinstance(data, (bytes, bytearray)) else data.nbytes
        self._check_writable("write", offset_bytes)
        self._check_range("write", length_bytes, offset_bytes)
        try:
            done = os.pwrite(self._fd, data, offset_bytes)
            if done != length_bytes:
                self._write_rest([memoryview(data).cast("B")], done, offset_bytes)
        except OSError as error:
            self._fail("write", offset_bytes, error)

    def pwritev(self, parts: Sequence[Buffer], offset_bytes: int) -> None:
        views = [memoryview(part).cast("B") for part in parts]
        self._check_writable("write", offset_bytes)
        self._check_range("write", sum(len(view) for view in views), offset_bytes)
        for begin in range(0, len(views), _IOV_MAX):
            batch = views[begin : begin + _IOV_MAX]
            batch_bytes = sum(len(view) for view in batch)
            try:
                done = os.pwritev(self._fd, batch, offset_bytes)
                if done != batch_bytes:
                    self._write_rest(batch, done, offset_bytes)
            except OSError as error:
                self._fail("write", offset_bytes, error)
            offset_bytes += batch_bytes

    def discard(self, offset_bytes: int, length_bytes: int) -> None:
        self._check_writable("discard", offset_bytes)
        self._check_range("discard", length_bytes, offset_bytes)
        if length_bytes == 0:
            return
        try:
            if self._is_block:
                _discard_sectors(self._fd, offset_bytes, length_bytes)
            elif not _punch_hole(self._fd, offset_bytes, length_bytes):
                self._write_zeros(offset_bytes, length_bytes)
        except OSError as error:
            self._fail("discard", offset_bytes, error)

    def flush(self) -> None:
        with self._flushing:
            if self._flush_failed:
                raise DeviceError(
                    f"flush of {self._path}",
                    0,
                    errno.EIO,
                    "an earlier flush failed, and nothing is known of the disk since",
                    mend="look at the kernel's log, then open it again",
                )
            try:
                if self._fd < 0:
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                os.fdatasync(self._fd)
            except OSError as error:
                self._flush_failed = True
                self._fail("flush", 0, error)

    def preallocate(self, offset_bytes: int, length_bytes: int) -> None:
        """Reserve room for a range, so that writing it can't meet ENOSPC (P8); NoSpaceError where there is none.

        Not beside writes to the same range: file systems without fallocate get it by reading and writing bytes.
        """
        self._check_writable("preallocation", offset_bytes)
        self._check_range("preallocation", length_bytes, offset_bytes)
        if self._is_block or length_bytes == 0:
            return
        try:
            os.posix_fallocate(self._fd, offset_bytes, length_bytes)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpaceError(
                    f"no room for {length_bytes} bytes of {self._path}", mend="make room in its file system"
                ) from error
            self._fail("preallocation", offset_bytes, error)

    def grow(self, size_bytes: int) -> None:
        if self._is_block or self._read_only:
            what = "a block device: grow it where it was made" if self._is_block else "open for reading only"
            raise UsageError(f"{self._path} can't be grown: it is {what}")
        if size_bytes < self.refresh_size():
            raise UsageError(f"{self._path} has {self._size_bytes} bytes: it can't shrink to {size_bytes}")
        try:
            os.ftruncate(self._fd, size_bytes)
        except OSError as error:
            self._fail("growing", self._size_bytes, error)
        self._size_bytes = size_bytes

    def close(self) -> None:
        """Close the descriptor; nothing is flushed. No other thread may be inside a call."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> FileDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_range(self, what: str, length_bytes: int, offset_bytes: int) -> None:
        if offset_bytes >= 0 and length_bytes >= 0:
            end = offset_bytes + length_bytes
            if end <= self._size_bytes or end <= self.refresh_size():
                return
        raise DeviceError(
            f"{what} of {self._path}",
            offset_bytes,
            errno.EINVAL,
            f"{length_bytes} bytes don't lie within its {self._size_bytes}",
        )

    def _check_writable(self, what: str, offset_bytes: int) -> None:
        if self._read_only:
            raise DeviceError(f"{what} of {self._path}", offset_bytes, errno.EROFS, "it is open for reading only")

    def _fill(self, view: memoryview, begin: int, offset_bytes: int) -> None:
        while begin < len(view):
            try:
                done = os.preadv(self._fd, [view[begin:]], offset_bytes + begin)
            except OSError as error:
                self._fail("read", offset_bytes + begin, error)
            if done == 0:
                raise DeviceError(
                    f"read of {self._path}", offset_bytes + begin, errno.EIO, "it ends here, shorter than it was"
                )
            begin += done

    def _write_rest(self, views: list[memoryview], done: int, offset_bytes: int) -> None:
        for view in views:
            skipped = min(done, len(view))
            done -= skipped
            while skipped < len(view):
                skipped += os.pwrite(self._fd, view[skipped:], offset_bytes + skipped)
            offset_bytes += len(view)

    def _write_zeros(self, offset_bytes: int, length_bytes: int) -> None:
        zeros = memoryview(bytes(min(_ZEROS_BYTES, length_bytes)))
        end = offset_bytes + length_bytes
        while offset_bytes < end:
            offset_bytes += os.pwrite(self._fd, zeros[: end - offset_bytes], offset_bytes)

    def _fail(self, what: str, offset_bytes: int, error: OSError) -> NoReturn:
        raise DeviceError(
            f"{what} of {self._path}", offset_bytes, error.errno or errno.EIO, error.strerror or str(error)
        ) from error


def open_device(path: Path, *, read_only: bool = False, exclusive: bool = False) -> FileDevice:
    """The device at `path`: a regular file or a block device, or a symlink to either."""
    return FileDevice(path, read_only=read_only, exclusive=exclusive)


def _open(path: Path, flags: int, exclusive: bool) -> int:
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise UsageError(f"{path} is neither a regular file nor a block device")
        if exclusive and stat.S_ISBLK(mode):
            flags |= os.O_EXCL
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        _refuse_open(path, error)


def _refuse_open(path: Path, error: OSError) -> NoReturn:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        raise NotFoundError(f"{path} isn't there") from error
    if error.errno == errno.EBUSY:
        raise ConflictError(f"{path} is in use", mend="unmount it, or end the program that holds it") from error
    raise DeviceError(f"opening {path}", 0, error.errno or errno.EIO, error.strerror or str(error)) from error


def _size_of(fd: int) -> int:
    return os.lseek(fd, 0, os.SEEK_END)


def _punch_hole(fd: int, offset_bytes: int, length_bytes: int) -> bool:
    """Whether the file system made a hole of the range; False where it knows no holes."""
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    while _libc.fallocate(fd, mode, offset_bytes, length_bytes) != 0:
        number = ctypes.get_errno()
        if number in _NOT_SUPPORTED:
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True


def _discard_sectors(fd: int, offset_bytes: int, length_bytes: int) -> None:
    begin = -(-offset_bytes // SECTOR_BYTES) * SECTOR_BYTES
    end = (offset_bytes + length_bytes) // SECTOR_BYTES * SECTOR_BYTES
    if begin >= end:
        return
    try:
        fcntl.ioctl(fd, _BLKDISCARD, begin.to_bytes(8, "little") + (end - begin).to_bytes(8, "little"))
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise


def sync_folder(path: Path) -> None:
    """Make the names in it durable; OSError as the kernel says it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
