"""The thin seam to the operating system's files, so that tests can fail or crash before and after every call.

Each method is one call of the operating system, with its errors (OSError) as they are.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from replicator._buffer import Buffer

_SYNC_FILE_RANGE_WRITE = 2  # start what isn't being written yet, and wait for nothing


class Files(Protocol):
    """What the directory store asks of the operating system."""

    def open(self, path: str, flags: int) -> int: ...

    def writev(self, descriptor: int, parts: list[Buffer]) -> int: ...

    def pread(self, descriptor: int, length_bytes: int, offset_bytes: int) -> bytes: ...

    def start_writeback(self, descriptor: int, offset_bytes: int, length_bytes: int) -> None:
        """Let the disk begin with what was written there; promises nothing, and never fails."""

    def fsync(self, descriptor: int) -> None: ...

    def close(self, descriptor: int) -> None: ...

    def link(self, source: str, target: str) -> None: ...

    def rename(self, source: str, target: str) -> None: ...

    def unlink(self, path: str) -> None: ...

    def mkdir(self, path: str) -> None: ...

    def rmdir(self, path: str) -> None: ...

    def listdir(self, path: str) -> list[str]: ...

    def path_size(self, path: str) -> int: ...

    def token(self) -> str:
        """A name that nobody else has."""


class OsFiles:
    """The operating system's own."""

    def open(self, path: str, flags: int) -> int:
        return os.open(path, flags | os.O_CLOEXEC, 0o660)

    def writev(self, descriptor: int, parts: list[Buffer]) -> int:
        return os.writev(descriptor, parts)

    def pread(self, descriptor: int, length_bytes: int, offset_bytes: int) -> bytes:
        return os.pread(descriptor, length_bytes, offset_bytes)

    def start_writeback(self, descriptor: int, offset_bytes: int, length_bytes: int) -> None:
        if call := _sync_file_range():
            call(descriptor, offset_bytes, length_bytes, _SYNC_FILE_RANGE_WRITE)

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def link(self, source: str, target: str) -> None:
        Path(target).hardlink_to(source)

    def rename(self, source: str, target: str) -> None:
        Path(source).rename(target)

    def unlink(self, path: str) -> None:
        Path(path).unlink()

    def mkdir(self, path: str) -> None:
        Path(path).mkdir(0o770)

    def rmdir(self, path: str) -> None:
        Path(path).rmdir()

    def listdir(self, path: str) -> list[str]:
        return [entry.name for entry in os.scandir(path)]

    def path_size(self, path: str) -> int:
        return Path(path).stat().st_size

    def token(self) -> str:
        return os.urandom(8).hex()


@functools.cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """The system's call, which Python hasn't; None where the C library lacks it."""
    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if call is None:
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    found: Callable[[int, int, int, int], int] = call
    return found
