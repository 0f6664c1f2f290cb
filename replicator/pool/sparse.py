"""Files with holes: where a file has data, which pages of a buffer do, and a file that is written without its zeros.

Used by pool/importing and pool/exporting.

    dies …                    there is
    before `finish`           .NAME.PID.partial beside the target, which is as it was
    after its rename          the new file, whole and durable

Failures: DeviceError, NoSpaceError, NotFoundError (no such folder).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from replicator.blockdev.file import sync_folder
from replicator.errors import DeviceError, NoSpaceError, NotFoundError
from replicator.units import MIB, PAGE_BYTES

_ZEROS = bytes(MIB)
_WORDS_PER_PAGE = PAGE_BYTES // 8


def data_extents(fd: int, size_bytes: int, unit_bytes: int) -> Iterator[tuple[int, int]]:
    """[begin, end) of all stretches that may hold data, in whole units (the last one short), ascending, disjoint."""
    at = 0
    while at < size_bytes:
        begin, end = _next_extent(fd, at, size_bytes)
        if begin >= size_bytes:
            return
        begin = max(at, begin // unit_bytes * unit_bytes)
        end = min(size_bytes, -(-end // unit_bytes) * unit_bytes)
        yield begin, end
        at = end


def _next_extent(fd: int, at: int, size_bytes: int) -> tuple[int, int]:
    try:
        begin = os.lseek(fd, at, os.SEEK_DATA)
        return begin, os.lseek(fd, begin, os.SEEK_HOLE)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size_bytes, size_bytes
        return at, size_bytes  # a file system, or a device, that doesn't tell


def nonzero_blocks(data: memoryview, block_bytes: int) -> npt.NDArray[np.bool_]:
    """For each whole block of `data` whether a byte of it isn't zero; a multiple of 8 bytes a block."""
    rows = np.frombuffer(data, dtype=np.uint64).reshape(-1, block_bytes // 8)
    return np.asarray(rows.any(axis=1))


class SparseFile:
    """What is written to `target` in ascending order, zeros left out where it can have holes.

    A path gets its content at once, by a rename in `finish`; a descriptor (stdout) as it comes.
    """

    def __init__(self, target: Path | int) -> None:
        self._name = str(target) if isinstance(target, Path) else f"descriptor {target}"
        self._path = target if isinstance(target, Path) else None
        self._partial: Path | None = None
        if isinstance(target, Path):
            self._partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
            self._fd = self._create(self._partial)
        else:
            self._fd = target
        self._start = self._seekable_at()
        self._at = 0

    def _create(self, path: Path) -> int:
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise NotFoundError(f"there is no folder {path.parent}", mend=f"mkdir -p {path.parent}") from error
            self._fail(error)

    def _seekable_at(self) -> int | None:
        """Where the file begins if it may have holes; None for a pipe, or a file that is appended to."""
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            return None
        if fcntl.fcntl(self._fd, fcntl.F_GETFL) & os.O_APPEND:
            return None
        at = os.lseek(self._fd, 0, os.SEEK_CUR)
        return at if at >= os.fstat(self._fd).st_size else None

    def write(self, data: memoryview, offset_bytes: int) -> None:
        """`data` belongs at `offset_bytes`, at or behind the end of what came before; what is between is zeros."""
        try:
            if self._start is None:
                self._pass_zeros(offset_bytes - self._at)
                self._pass(data)
            else:
                self._write_pages(data, self._start + offset_bytes)
        except OSError as error:
            self._fail(error)
        self._at = offset_bytes + len(data)

    def _write_pages(self, data: memoryview, at: int) -> None:
        """Runs of pages that aren't zeros; a last part of a page is written as it is."""
        whole = len(data) // PAGE_BYTES * PAGE_BYTES
        there = nonzero_blocks(data[:whole], PAGE_BYTES) if whole else np.zeros(0, dtype=bool)
        edges = np.flatnonzero(np.diff(there.astype(np.int8), prepend=0, append=0)) * PAGE_BYTES
        pieces = edges.reshape(-1, 2).tolist()
        if whole < len(data):
            pieces.append([whole, len(data)])
        for begin, end in pieces:
            self._write(data[begin:end], at + begin)

    def _write(self, data: memoryview, at: int) -> None:
        while data:
            done = os.pwrite(self._fd, data, at)
            data, at = data[done:], at + done

    def _pass_zeros(self, count: int) -> None:
        while count > 0:
            self._pass(memoryview(_ZEROS)[: min(count, len(_ZEROS))])
            count -= min(count, len(_ZEROS))

    def _pass(self, data: memoryview) -> None:
        while data:
            data = data[os.write(self._fd, data) :]

    def finish(self, size_bytes: int) -> None:
        """All was written: give the file its length, and its name, durably."""
        try:
            if self._start is None:
                self._pass_zeros(size_bytes - self._at)
                return
            os.ftruncate(self._fd, self._start + size_bytes)
            os.lseek(self._fd, self._start + size_bytes, os.SEEK_SET)
            os.fsync(self._fd)
            if self._path is not None and self._partial is not None:
                self._partial.rename(self._path)
                self._partial = None
                sync_folder(self._path.parent)
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        """Close it; what isn't finished is taken away, as far as it has a name of its own."""
        if self._path is None:
            return
        os.close(self._fd)
        if self._partial is not None:
            with suppress(OSError):
                self._partial.unlink()

    def _fail(self, error: OSError) -> NoReturn:
        if isinstance(error, BrokenPipeError):
            raise error
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise NoSpaceError(f"no room for {self._name}", mend="make room, or name another place") from error
        raise DeviceError(f"writing {self._name}", self._at, error.errno or errno.EIO, str(error.strerror)) from error
