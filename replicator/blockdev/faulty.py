"""A BlockDevice that fails on demand, and remembers what was asked of it: the disk of the fault tests.

It wraps another device. Nothing is left to chance: a test says which operation fails, and how, and walks n = 1, 2, 3 …
until a run passes untouched (`FaultyDevice.met` stays empty); or it takes the recorded operations and builds each
image that a power cut could have left (`power_cut_image`).

    fault                      what the inner device gets              what the caller gets
    read, discard, grow fail   nothing                                 DeviceError(errno)
    write fails                its first `torn_bytes` bytes            DeviceError(errno)
    flush fails                nothing; all later flushes fail (B3)    DeviceError(errno)
    `for_good`                 nothing from here on                    DeviceError(errno) for every operation

The fault model of a power cut: what a successful flush covers is there. Each later write is there wholly, in part
(its leading bytes) or not at all, whatever the others are; a discard counts as a write of zeros.

Invariants
  X1  Operations are counted in the order in which they begin, from 1, under one lock.
  X2  A fault fires once, unless it is `for_good`.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from replicator._buffer import Buffer
from replicator.blockdev.interface import BlockDevice
from replicator.errors import DeviceError


class OperationKind(StrEnum):
    """What was asked of a device."""

    READ = "read"
    WRITE = "write"
    DISCARD = "discard"
    FLUSH = "flush"
    GROW = "grow"


ALL_KINDS = frozenset(OperationKind)


@dataclass(frozen=True, slots=True)
class Operation:
    """One recorded call; `data` is what a write carried (empty unless data is recorded)."""

    kind: OperationKind
    offset_bytes: int
    length_bytes: int
    data: bytes = field(default=b"", repr=False)
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """Fail the `nth` operation (from 1) among those of `kinds`; a failing write first stores `torn_bytes` bytes."""

    nth: int
    errno: int = errno.EIO
    kinds: frozenset[OperationKind] = ALL_KINDS
    torn_bytes: int = 0
    for_good: bool = False

    def __post_init__(self) -> None:
        assert self.nth >= 1 and self.torn_bytes >= 0


class FaultyDevice:
    """`inner` with `faults`; `operations` holds what was asked, `met` the faults that fired."""

    def __init__(self, inner: BlockDevice, faults: Iterable[Fault] = (), *, record_data: bool = False) -> None:
        self._inner = inner
        self._faults = list(faults)
        self._record_data = record_data
        self._counts = dict.fromkeys(OperationKind, 0)
        self._counting = threading.Lock()
        self._dead: Fault | None = None
        self._flush_failed: Fault | None = None
        self.operations: list[Operation] = []
        self.met: list[Fault] = []

    @property
    def name(self) -> str:
        return f"faulty {self._inner.name}"

    @property
    def size_bytes(self) -> int:
        return self._inner.size_bytes

    @property
    def read_only(self) -> bool:
        return self._inner.read_only

    @property
    def discard_zeroes(self) -> bool:
        return self._inner.discard_zeroes

    def fileno(self) -> int:
        return -1

    def pread(self, length_bytes: int, offset_bytes: int) -> bytes:
        self._meet(OperationKind.READ, offset_bytes, length_bytes)
        return self._inner.pread(length_bytes, offset_bytes)

    def pread_into(self, target: Buffer, offset_bytes: int) -> None:
        self._meet(OperationKind.READ, offset_bytes, memoryview(target).nbytes)
        self._inner.pread_into(target, offset_bytes)

    def pwrite(self, data: Buffer, offset_bytes: int) -> None:
        self._meet(OperationKind.WRITE, offset_bytes, memoryview(data).nbytes, data)
        self._inner.pwrite(data, offset_bytes)

    def pwritev(self, parts: Sequence[Buffer], offset_bytes: int) -> None:
        joined = b"".join(parts)
        self._meet(OperationKind.WRITE, offset_bytes, len(joined), joined)
        self._inner.pwritev(parts, offset_bytes)

    def discard(self, offset_bytes: int, length_bytes: int) -> None:
        self._meet(OperationKind.DISCARD, offset_bytes, length_bytes)
        self._inner.discard(offset_bytes, length_bytes)

    def flush(self) -> None:
        if self._flush_failed is not None:
            raise _error(self.name, OperationKind.FLUSH, 0, self._flush_failed)
        self._meet(OperationKind.FLUSH, 0, 0)
        self._inner.flush()

    def grow(self, size_bytes: int) -> None:
        self._meet(OperationKind.GROW, 0, size_bytes)
        self._inner.grow(size_bytes)

    def close(self) -> None:
        self._inner.close()

    def _meet(self, kind: OperationKind, offset_bytes: int, length_bytes: int, data: Buffer = b"") -> None:
        """Count and record an operation; fail it if a fault is due."""
        with self._counting:
            fault = self._dead or self._due(kind)
            kept = bytes(data) if self._record_data else b""
            self.operations.append(Operation(kind, offset_bytes, length_bytes, kept, failed=fault is not None))
            if fault is None:
                return
            if kind is OperationKind.FLUSH:
                self._flush_failed = fault
            torn = memoryview(data).cast("B")[: fault.torn_bytes] if self._dead is None else memoryview(b"")
            if fault.for_good:
                self._dead = fault
        if kind is OperationKind.WRITE and len(torn):
            self._inner.pwrite(torn, offset_bytes)
        raise _error(self.name, kind, offset_bytes, fault)

    def _due(self, kind: OperationKind) -> Fault | None:
        self._counts[kind] += 1
        for fault in self._faults:
            if kind in fault.kinds and sum(self._counts[each] for each in fault.kinds) == fault.nth:
                self.met.append(fault)
                return fault
        return None


def power_cut_image(initial: Buffer, operations: Iterable[Operation], survives: Callable[[Operation], int]) -> bytes:
    """The disk after a power cut behind the last of `operations` (recorded with their data).

    `survives` says, for each write or discard since the last good flush, how many of its leading bytes are there.
    Writes reach the image in their order; one that is lost beneath a later one that isn't, is so too.
    """
    image = bytearray(initial)
    recorded = list(operations)
    flushes = [i for i, each in enumerate(recorded) if each.kind is OperationKind.FLUSH and not each.failed]
    durable = flushes[-1] if flushes else -1
    for index, each in enumerate(recorded):
        if each.kind is OperationKind.GROW and not each.failed:
            image.extend(bytes(max(0, each.length_bytes - len(image))))
        if each.kind not in (OperationKind.WRITE, OperationKind.DISCARD):
            continue
        data = each.data if each.kind is OperationKind.WRITE else bytes(each.length_bytes)
        whole = index < durable and not each.failed
        kept = len(data) if whole else min(len(data), survives(each))
        image[each.offset_bytes : each.offset_bytes + kept] = data[:kept]
    return bytes(image)


def _error(name: str, kind: OperationKind, offset_bytes: int, fault: Fault) -> DeviceError:
    return DeviceError(f"{kind} of {name}", offset_bytes, fault.errno, f"injected: {os.strerror(fault.errno)}")
