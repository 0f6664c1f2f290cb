"""The one seam between us and a disk: positional reads and writes, flush, discard.

What stands behind it is a file, a block device, an NBD server, plain memory, or a faulty disk of the
tests; nothing above this room asks which. The contract, one suite for all (tests/contracts):

  B1  pread returns exactly `length_bytes`, or raises DeviceError; beyond the end is DeviceError (EINVAL), never short.
  B2  pwrite writes all of `data`, or raises DeviceError; after an error the range's content is unknown.
  B3  After flush returns, every pwrite that returned before it was called is durable. After a flush that
      failed nothing is known: the device refuses every later flush until it is opened again (fail-stop).
  B4  discard may or may not free room; afterwards the range reads as zeros iff `discard_zeroes`.
  B5  Calls may come from many threads at once; overlapping ones have no order of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from replicator._buffer import Buffer


class BlockDevice(Protocol):
    """A fixed-length array of bytes that survives the process (or says that it doesn't)."""

    @property
    def name(self) -> str:
        """How messages name it: a path or a URI."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def read_only(self) -> bool: ...

    @property
    def discard_zeroes(self) -> bool: ...

    def fileno(self) -> int:
        """A descriptor for os.preadv and os.pwritev, or -1 where there is none (NBD, memory, faulty)."""

    def pread(self, length_bytes: int, offset_bytes: int) -> bytes: ...

    def pread_into(self, target: Buffer, offset_bytes: int) -> None: ...

    def pwrite(self, data: Buffer, offset_bytes: int) -> None: ...

    def pwritev(self, parts: Sequence[Buffer], offset_bytes: int) -> None:
        """Write `parts` one behind the other from `offset_bytes` on."""

    def discard(self, offset_bytes: int, length_bytes: int) -> None: ...

    def flush(self) -> None: ...

    def grow(self, size_bytes: int) -> None:
        """Make it longer (files only; UsageError for the rest and for shrinking)."""

    def close(self) -> None: ...
