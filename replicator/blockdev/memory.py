"""A BlockDevice in plain memory: for tests, simulations, and overlays that are small and short-lived.

It survives nothing; flush says "done" since nothing can be lost that the process still has. Growing replaces the
buffer under the lock that writers hold, so a write beside a grow isn't lost (B5). Reads take no lock: they see the
buffer from before or after.

Failures: DeviceError for a range beyond the end (EINVAL) and for writing what is read-only (EROFS).
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence

from replicator._buffer import Buffer
from replicator.errors import DeviceError, UsageError


class MemoryDevice:
    """`size_bytes` of zeros, or a copy of `content`."""

    def __init__(
        self, size_bytes: int = 0, *, content: Buffer | None = None, name: str = "memory", read_only: bool = False
    ) -> None:
        self._bytes = bytearray(size_bytes) if content is None else bytearray(content)
        self._name = name
        self._read_only = read_only
        self._writing = threading.Lock()

    @property
    def name(self) -> str:
        return self._name

    @property
    def size_bytes(self) -> int:
        return len(self._bytes)

    @property
    def read_only(self) -> bool:
        return self._read_only

    @property
    def discard_zeroes(self) -> bool:
        return True

    def fileno(self) -> int:
        return -1

    def content(self) -> bytes:
        """A copy of everything in it."""
        return bytes(self._bytes)

    def pread(self, length_bytes: int, offset_bytes: int) -> bytes:
        self._check_range("read", length_bytes, offset_bytes)
        return memoryview(self._bytes)[offset_bytes : offset_bytes + length_bytes].tobytes()

    def pread_into(self, target: Buffer, offset_bytes: int) -> None:
        view = memoryview(target).cast("B")
        self._check_range("read", len(view), offset_bytes)
        view[:] = memoryview(self._bytes)[offset_bytes : offset_bytes + len(view)]

    def pwrite(self, data: Buffer, offset_bytes: int) -> None:
        view = memoryview(data).cast("B")
        self._check_writable("write", offset_bytes)
        with self._writing:
            self._check_range("write", len(view), offset_bytes)
            memoryview(self._bytes)[offset_bytes : offset_bytes + len(view)] = view

    def pwritev(self, parts: Sequence[Buffer], offset_bytes: int) -> None:
        self.pwrite(b"".join(parts), offset_bytes)

    def discard(self, offset_bytes: int, length_bytes: int) -> None:
        self._check_writable("discard", offset_bytes)
        self._check_range("discard", length_bytes, offset_bytes)
        self.pwrite(bytes(length_bytes), offset_bytes)

    def flush(self) -> None:
        """Nothing to do: what the process has, it has."""

    def grow(self, size_bytes: int) -> None:
        with self._writing:
            if self._read_only or size_bytes < len(self._bytes):
                raise UsageError(f"{self._name} can't become {size_bytes} bytes: it has {len(self._bytes)}")
            self._bytes = self._bytes + bytes(size_bytes - len(self._bytes))

    def close(self) -> None:
        """Nothing to release before the object itself goes."""

    def _check_range(self, what: str, length_bytes: int, offset_bytes: int) -> None:
        if offset_bytes < 0 or length_bytes < 0 or offset_bytes + length_bytes > len(self._bytes):
            raise DeviceError(
                f"{what} of {self._name}",
                offset_bytes,
                errno.EINVAL,
                f"{length_bytes} bytes don't lie within its {len(self._bytes)}",
            )

    def _check_writable(self, what: str, offset_bytes: int) -> None:
        if self._read_only:
            raise DeviceError(f"{what} of {self._name}", offset_bytes, errno.EROFS, "it is open for reading only")
