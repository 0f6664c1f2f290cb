"""A disk that outlives its lease: what is served for days, though the pool's owner is killed and started again.

Between cli/points_served and point. A read whose lease fell is void (pool/reader, D1): the disk is opened again, under
a new lease, and read once more. Opening is the caller's, who sees to it that the same point comes of it.

    the owner is …        a read
    there                 goes to the disk
    another one           finds its lease fallen, opens the disk again, and reads
    gone                  UnavailableError; the next read tries again

Invariants
  L1  Nothing is returned that was read under a fallen lease.
  L2  Of threads that meet a fallen lease at once, one opens the disk; the others read what it opened.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from replicator._buffer import Buffer
from replicator.errors import UnavailableError

_Result = TypeVar("_Result")


class ReadDisk(Protocol):
    """What is kept open: repository/point's disk, or another that can be read and closed."""

    @property
    def name(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...

    def pread_into(self, target: Buffer, offset_bytes: int) -> None: ...

    def runs(self, offset_bytes: int, length_bytes: int) -> Iterator[tuple[int, int, int]]: ...

    def close(self) -> None: ...


class LastingDisk:
    """The disk that `first` is and `again` opens; a context manager. Any thread may read."""

    def __init__(self, first: ReadDisk, again: Callable[[], ReadDisk]) -> None:
        self.name, self.size_bytes = first.name, first.size_bytes
        self._again = again
        self._turn = threading.Lock()
        self._disk = first

    def pread_into(self, target: Buffer, offset_bytes: int) -> None:
        """Fill `target` from `offset_bytes` on."""
        self._read(lambda disk: disk.pread_into(target, offset_bytes))

    def runs(self, offset_bytes: int, length_bytes: int) -> Iterator[tuple[int, int, int]]:
        """(offset, length, flags), consecutive."""
        yield from self._read(lambda disk: list(disk.runs(offset_bytes, length_bytes)))

    def _read(self, ask: Callable[[ReadDisk], _Result]) -> _Result:
        disk = self._disk
        try:
            return ask(disk)
        except UnavailableError:
            return ask(self._opened_after(disk))

    def _opened_after(self, fallen: ReadDisk) -> ReadDisk:
        """The disk, open again (L2)."""
        with self._turn:
            if self._disk is fallen:
                self._disk = self._again()
                fallen.close()
            return self._disk

    def close(self) -> None:
        """Close it."""
        with self._turn:
            self._disk.close()

    def __enter__(self) -> LastingDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
