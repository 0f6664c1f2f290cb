"""What a restore writes to: a file, a block device, or a stream.

    target     data             zeros                                               read back
    file       pwrite           nothing: it was made of zeros beyond what is done   yes, holes by their extents
    device     pwrite           BLKZEROOUT, or written                              yes, all of it
    stream     in order         seeked over where stdout is a fresh file,           no
                                else written

Invariants
  T1  `zero` is called for whole pages, or up to the volume's end.
  T2  A file is cut to what is done before anything is written, so that what lies beyond reads as zeros.
  T3  The fd holds flock (files) or O_EXCL (devices) for as long as it is open.

Failures: DeviceError, NoSpaceError, ConflictError (held).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote
from typing import BinaryIO, Protocol

from replicator._buffer import Buffer
from replicator.blockdev.file import sync_folder
from replicator.errors import ConflictError, DeviceError, NoSpaceError
from replicator.units import MIB

_BLKZEROOUT = 0x127F
"""_IO(0x12, 127) of linux/fs.h; takes two u64: offset and length in bytes."""

_ZEROS = bytes(MIB)
_HELD = (errno.EBUSY, errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK)

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Writer(Protocol):
    """Takes a disk's bytes; threads may write at once unless it is a stream."""

    name: str

    def write(self, data: Buffer, offset_bytes: int) -> None: ...

    def zero(self, offset_bytes: int, length_bytes: int) -> None: ...

    def flush(self) -> None:
        """What was written is durable when it returns."""

    def close(self) -> None: ...


class PlacedWriter:
    """A file or block device, written and read at places."""

    def __init__(self, path: Path, fd: int) -> None:
        self.name = str(path)
        self._fd = fd
        self._is_device = stat.S_ISBLK(os.fstat(fd).st_mode)
        self._zeroes_out = True

    def write(self, data: Buffer, offset_bytes: int) -> None:
        """Write all of it."""
        view = memoryview(data)
        with typed_errors(self.name, offset_bytes):
            while view:
                done = os.pwrite(self._fd, view, offset_bytes)
                view, offset_bytes = view[done:], offset_bytes + done

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        """Zeros: there already in a file (T2), made on a device."""
        if not self._is_device or not length_bytes:
            return
        if self._zeroes_out and offset_bytes % 512 == 0 and length_bytes % 512 == 0:
            try:
                fcntl.ioctl(self._fd, _BLKZEROOUT, struct.pack("QQ", offset_bytes, length_bytes))
                return
            except OSError:
                self._zeroes_out = False
        for at in range(offset_bytes, offset_bytes + length_bytes, len(_ZEROS)):
            self.write(memoryview(_ZEROS)[: offset_bytes + length_bytes - at], at)

    def cut(self, done_bytes: int, size_bytes: int) -> None:
        """T2; does nothing to a device."""
        if not self._is_device:
            with typed_errors(self.name, done_bytes):
                os.ftruncate(self._fd, done_bytes)
                os.ftruncate(self._fd, size_bytes)

    def flush(self) -> None:
        """Sync it, and let the next read come from the disk."""
        with typed_errors(self.name, 0):
            os.fsync(self._fd)
        with suppress(OSError):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def read(self, length_bytes: int, offset_bytes: int) -> bytes:
        """What stands there now; shorter where the file ends."""
        parts = []
        with typed_errors(self.name, offset_bytes):
            while length_bytes:
                part = os.pread(self._fd, length_bytes, offset_bytes)
                if not part:
                    break
                parts.append(part)
                length_bytes, offset_bytes = length_bytes - len(part), offset_bytes + len(part)
        return b"".join(parts)

    def is_hole(self, begin: int, end: int) -> bool:
        """Whether the file has nothing there, and so reads as zeros."""
        if self._is_device:
            return False
        try:
            return os.lseek(self._fd, begin, os.SEEK_DATA) >= end
        except OSError as error:
            return error.errno == errno.ENXIO

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)


def open_placed(path: Path, *, create: bool = False) -> PlacedWriter:
    """A file or block device, held (T3); `create` makes a file where there is none."""
    is_device = path.exists() and stat.S_ISBLK(path.stat().st_mode)
    flags = os.O_EXCL if is_device else os.O_CREAT | os.O_NOFOLLOW if create else 0
    with typed_errors(str(path), 0):
        fd = os.open(path, os.O_RDWR | flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return PlacedWriter(path, fd)
    except OSError:
        os.close(fd)
        raise ConflictError(f"{path} is being written by another restore", mend="wait for it, or end it") from None


def take_name(partial: Path, target: Path, *, replace: bool) -> None:
    """Give a whole file its name, with the owner and mode of the one that it replaces; durable when it returns.

    Without `replace` a file that came meanwhile stays: ConflictError, and the restored one keeps its own name.
    """
    with typed_errors(str(target), 0):
        if replace:
            with suppress(FileNotFoundError):
                before = target.stat()
                partial.chmod(stat.S_IMODE(before.st_mode))
                with suppress(PermissionError):
                    os.chown(partial, before.st_uid, before.st_gid)
            partial.rename(target)
        else:
            _rename_new(partial, target)
        sync_folder(target.parent)


def _rename_new(partial: Path, target: Path) -> None:
    """renameat2 with RENAME_NOREPLACE; where a file system has none, a look and a rename."""
    done = _libc.renameat2(_AT_FDCWD, os.fsencode(partial), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE)
    number = ctypes.get_errno() if done else 0
    if number == errno.EEXIST or (number in (errno.EINVAL, errno.ENOSYS) and target.exists()):
        raise ConflictError(
            f"{target} came while the restore ran; what was restored is whole, in {partial}",
            mend=f"mv {quote(str(partial))} to where it should be",
        )
    if number in (errno.EINVAL, errno.ENOSYS):
        partial.rename(target)
    elif number:
        raise OSError(number, os.strerror(number), str(target))


class StreamWriter:
    """Standard output, written in order; holes are seeked over where nothing can be behind them."""

    name = "stdout"

    def __init__(self, stream: BinaryIO | None = None) -> None:
        self._stream = stream or sys.stdout.buffer
        self._stream.flush()
        self._fd = self._stream.fileno()
        self._begin = self._at = 0
        self.is_sparse = self._is_fresh_file()

    def _is_fresh_file(self) -> bool:
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode) or fcntl.fcntl(self._fd, fcntl.F_GETFL) & os.O_APPEND:
            return False
        self._begin = os.lseek(self._fd, 0, os.SEEK_CUR)
        return status.st_size <= self._begin

    def write(self, data: Buffer, offset_bytes: int) -> None:
        """Write what comes next."""
        assert offset_bytes == self._at, "a stream is written in order"
        view = memoryview(data)
        self._at += len(view)
        while view:
            try:
                done = os.write(self._fd, view)
            except BrokenPipeError:
                raise
            except OSError as error:
                raise _typed(self.name, offset_bytes, error) from error
            view = view[done:]

    def zero(self, offset_bytes: int, length_bytes: int) -> None:
        """Skip, or write zeros."""
        if self.is_sparse:
            assert offset_bytes == self._at, "a stream is written in order"
            self._at += length_bytes
            with typed_errors(self.name, offset_bytes):
                os.lseek(self._fd, self._begin + self._at, os.SEEK_SET)
            return
        end = offset_bytes + length_bytes
        for at in range(offset_bytes, end, len(_ZEROS)):
            self.write(memoryview(_ZEROS)[: end - at], at)

    def flush(self) -> None:
        """Give a sparse file its length; sync what can be synced."""
        if self.is_sparse:
            with typed_errors(self.name, self._at):
                os.ftruncate(self._fd, self._begin + self._at)
        try:
            os.fsync(self._fd)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EROFS, errno.ENOTSUP):
                raise _typed(self.name, self._at, error) from error

    def close(self) -> None:
        """It isn't ours to close."""


@contextmanager
def typed_errors(name: str, offset_bytes: int) -> Iterator[None]:
    """The operating system's errors as ours."""
    try:
        yield
    except OSError as error:
        raise _typed(name, offset_bytes, error) from error


def _typed(name: str, offset_bytes: int, error: OSError) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NoSpaceError(
            f"no room for {name} at byte {offset_bytes}: {error.strerror}", mend="make room, run it again"
        )
    if error.errno in _HELD:
        return ConflictError(f"{name} can't be opened: {error.strerror}", mend="end the program that has it")
    return DeviceError(f"restoring to {name}", offset_bytes, error.errno or errno.EIO, error.strerror or str(error))
