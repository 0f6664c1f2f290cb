"""A disk of the simulation of two hosts: what lies on it is shared by all copies of it, and a power cut takes its part.

    content   grains of one length, by number; one that isn't there is zeros. Grains are never changed, only replaced:
              an image of a disk is its table of grains, and costs what that costs

Invariants
  K1  What was read, written and imaged is what one array of bytes would give.
  K2  A power cut leaves what was flushed; of each later write nothing, all, or its beginning up to a sector. Whole
      sectors reach the disk, as they stood behind the write: a part of one is written into the kernel's cache only.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from replicator._buffer import Buffer
from replicator.errors import DeviceError
from replicator.units import SECTOR_BYTES


@dataclass(slots=True)
class Content:
    """What lies on a disk."""

    size_bytes: int
    grain_bytes: int
    grains: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, data: bytes, grain_bytes: int) -> Content:
        """These bytes."""
        content, zeros = cls(len(data), grain_bytes), bytes(grain_bytes)
        for at in range(0, len(data), grain_bytes):
            if data[at : at + grain_bytes] != zeros:
                content.put(at, data[at : at + grain_bytes])
        return content

    def copy(self) -> Content:
        """One that may go on by itself."""
        return Content(self.size_bytes, self.grain_bytes, dict(self.grains))

    def get(self, length_bytes: int, offset_bytes: int) -> bytes:
        """A part of it."""
        number, within = divmod(offset_bytes, self.grain_bytes)
        if within + length_bytes <= self.grain_bytes:
            grain = self.grains.get(number)
            return bytes(length_bytes) if grain is None else grain[within : within + length_bytes]
        count = -(-(within + length_bytes) // self.grain_bytes)
        zeros = bytes(self.grain_bytes)
        whole = b"".join(self.grains.get(each, zeros) for each in range(number, number + count))
        return whole[within : within + length_bytes]

    def put(self, offset_bytes: int, data: bytes) -> None:
        """Replace a part of it."""
        at = 0
        while at < len(data):
            number, within = divmod(offset_bytes + at, self.grain_bytes)
            part = data[at : at + self.grain_bytes - within]
            if len(part) < self.grain_bytes:
                grain = self.grains.get(number) or bytes(self.grain_bytes)
                part = grain[:within] + part + grain[within + len(part) :]
                at -= within
            self.grains[number] = part
            at += self.grain_bytes


class Disk:
    """A BlockDevice that knows what a power cut would take, and asks `reached` before each write and flush."""

    discard_zeroes = True
    read_only = False

    def __init__(self, content: Content, name: str, reached: Callable[[], None]) -> None:
        self.name = name
        self.changes = 0
        self._content, self._reached = content.copy(), reached
        self._pending: list[tuple[int, bytes, bytes]] = []  # since the last flush, whole sectors: where, before, behind

    @property
    def size_bytes(self) -> int:
        return self._content.size_bytes

    def fileno(self) -> int:
        return -1

    def content(self) -> Content:
        """What lies on it now."""
        return self._content.copy()

    def pread(self, length_bytes: int, offset_bytes: int) -> bytes:
        self._check_range("read", length_bytes, offset_bytes)
        return self._content.get(length_bytes, offset_bytes)

    def pread_into(self, target: Buffer, offset_bytes: int) -> None:
        view = memoryview(target).cast("B")
        view[:] = self.pread(len(view), offset_bytes)

    def pwrite(self, data: Buffer, offset_bytes: int) -> None:
        self._reached()
        self._check_range("write", len(data), offset_bytes)
        begin = offset_bytes - offset_bytes % SECTOR_BYTES
        end = min(self.size_bytes, -(-(offset_bytes + len(data)) // SECTOR_BYTES) * SECTOR_BYTES)
        before = self.pread(end - begin, begin)
        self._content.put(offset_bytes, bytes(data))
        self._pending.append((begin, before, self.pread(end - begin, begin)))
        self.changes += 1

    def pwritev(self, parts: Sequence[Buffer], offset_bytes: int) -> None:
        self.pwrite(b"".join(parts), offset_bytes)

    def discard(self, offset_bytes: int, length_bytes: int) -> None:
        self.pwrite(bytes(length_bytes), offset_bytes)

    def flush(self) -> None:
        self._reached()
        self._pending = []

    def grow(self, size_bytes: int) -> None:
        assert size_bytes >= self._content.size_bytes
        self._content.size_bytes = size_bytes

    def close(self) -> None:
        """Nothing to release."""

    def rot(self, offset_bytes: int) -> None:
        """One bit turns over on the platter."""
        self._content.put(offset_bytes, bytes([self.pread(1, offset_bytes)[0] ^ 0x10]))
        self.changes += 1

    def after_power_cut(self, chance: random.Random) -> Content:
        """The disk when the machine died now (K2)."""
        image = self._content.copy()
        for offset, before, _ in reversed(self._pending):
            image.put(offset, before)
        for offset, _, data in self._pending:
            fate = chance.random()
            kept = 0 if fate < 0.4 else len(data)
            if fate > 0.7:
                kept = chance.randrange(len(data) // SECTOR_BYTES + 1) * SECTOR_BYTES
            image.put(offset, data[:kept])
        return image

    def _check_range(self, what: str, length_bytes: int, offset_bytes: int) -> None:
        if offset_bytes < 0 or offset_bytes + length_bytes > self._content.size_bytes:
            problem = f"{length_bytes} bytes don't lie within its {self._content.size_bytes}"
            raise DeviceError(f"{what} of {self.name}", offset_bytes, errno.EINVAL, problem)
