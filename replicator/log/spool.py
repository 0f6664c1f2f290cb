"""Where an object's bytes wait until all of them are there: in memory, and beyond a shared allowance in a file.

An object store takes an object whole, so a segment of 64 MiB has to be somewhere while it grows. One busy volume's
stays in memory; of many, those that don't fit go to unnamed temporary files, which are mapped when they are sent.

Invariants
  O1  All spools of one allowance together hold at most its bytes in memory.
  O2  What a spool holds is the same bytes in the same order, wherever they lie; it is given back by `close`.
  O3  Nothing is copied that can't change: bytes are kept as they came (a copy of 64 MiB costs a tenth of its upload).
  O4  Where no temporary file can be made or filled, NoSpaceError tells where, or which directories were tried (a full
      one counts as unusable); they are looked for again by the next spool.
"""

from __future__ import annotations

import contextlib
import mmap
import tempfile
import threading
from typing import IO

from replicator._buffer import Buffer
from replicator.errors import NoSpaceError, UnavailableError
from replicator.units import MIB

ALLOWANCE_BYTES = 160 * MIB  # the largest segment that there can be, and one of the usual size being begun


class Allowance:
    """The bytes of memory that spools share; for any thread."""

    def __init__(self, limit_bytes: int = ALLOWANCE_BYTES) -> None:
        self._left_bytes = limit_bytes
        self._lock = threading.Lock()

    def take(self, length_bytes: int) -> bool:
        """Whether there is room for so many more; they are taken then."""
        with self._lock:
            if length_bytes > self._left_bytes:
                return False
            self._left_bytes -= length_bytes
            return True

    def give_back(self, length_bytes: int) -> None:
        """So many are free again."""
        with self._lock:
            self._left_bytes += length_bytes


class Spool:
    """Bytes that are added to at their end, and looked at once they are whole. For one thread."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._memory: list[bytes] = []
        self._file: IO[bytes] | None = None
        self._memory_bytes = 0
        self.length_bytes = 0

    def write(self, parts: list[Buffer]) -> None:
        """Add `parts`; NoSpaceError where they fit neither into the allowance nor onto the disk."""
        length = sum(len(part) for part in parts)
        if self._file is None and self._allowance.take(length):
            self._memory += [part if isinstance(part, bytes) else bytes(part) for part in parts]
            self._memory_bytes += length
        else:
            self._write_file(parts)
        self.length_bytes += length

    def _write_file(self, parts: list[Buffer]) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="replicator-")  # noqa: SIM115 - closed by `close`
                self._file.writelines(self._memory)
                self._drop_memory()
            for part in parts:
                self._file.write(part)
        except OSError as error:
            raise _no_room(error) from error

    def whole(self) -> list[Buffer]:
        """All of it, in parts; NoSpaceError as in `write`.

        A map is let go of by whoever holds it last: a request may outlive its caller.
        """
        if self._file is None:
            return list(self._memory)
        try:
            self._file.flush()
        except OSError as error:
            raise _no_room(error) from error
        try:
            return [memoryview(mmap.mmap(self._file.fileno(), self.length_bytes, access=mmap.ACCESS_READ))]
        except OSError as error:
            raise UnavailableError(_told(error)) from error

    def close(self) -> None:
        """Let go of what it holds."""
        self._drop_memory()
        if self._file is not None:
            with contextlib.suppress(OSError):  # a rest that found no room: nobody wants it any more
                self._file.close()
            self._file = None

    def _drop_memory(self) -> None:
        self._allowance.give_back(self._memory_bytes)
        self._memory, self._memory_bytes = [], 0


def _no_room(error: OSError) -> NoSpaceError:
    mend = "make room where TMPDIR points to, or point it elsewhere"
    return NoSpaceError(_told(error), mend=mend)


def _told(error: OSError) -> str:
    """Where, and why; where no directory was usable, the error has the list of those that were tried."""
    return f"{tempfile.tempdir or 'temporary files'}: {error.strerror}"
