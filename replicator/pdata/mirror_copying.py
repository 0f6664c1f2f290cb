"""Making one copy of the metadata what the other one is: block by block where they differ, block 0 last.

Below pdata/mirror, which says when; and what both of them know of a block: whether it is good by itself, since each has
a checksum and its own number in it.

    line                          the target, if the machine dies there
    before block 0 is written     any part of the new blocks among its own: usable by nobody, so that its user has
                                  said so durably before (lost), or hasn't linked to it yet
    block 0 written, not flushed  the same, or whole
    flushed                       whole

Invariants
  C1  No good block of the target is written over by what can't be read in the source: both are looked at before the
      first write, and again at each. It may be an older one, so that it isn't left among newer ones either: a target
      with such a block is left as it is. (A block that reads, but has a wrong checksum, may be one in no use.)

Failures: DeviceError of the source; TargetError, which carries the target's.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from replicator._buffer import Buffer
from replicator.blockdev.interface import BlockDevice
from replicator.errors import DeviceError
from replicator.pdata.block import BlockKind, checksum
from replicator.units import METADATA_BLOCK_BYTES, MIB

_STEP_BYTES = MIB  # compared and copied at once
_SALTS = frozenset(each.value for each in BlockKind)

Progress = Callable[[int], None]
"""Called with the bytes done so far."""


class TargetError(Exception):
    """The copy that is being written failed, not the one that is read."""

    def __init__(self, error: DeviceError) -> None:
        super().__init__(error.message)
        self.error = error


def bring_up_to_date(source: BlockDevice, target: BlockDevice, progress: Progress = lambda _: None) -> None:
    """All of `source` that `target` has not, block 0 last; what can't be read becomes zeros, which are no good block.

    The source's block 0 is written once more first, and the target's cached pages are dropped: what reads well may be
    in memory only, where a flush has failed.
    """
    if not source.read_only:
        prove_writable(source)
    if target.fileno() >= 0:
        os.posix_fadvise(target.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    end = min(source.size_bytes, target.size_bytes) // METADATA_BLOCK_BYTES * METADATA_BLOCK_BYTES
    steps = [(begin, min(_STEP_BYTES, end - begin)) for begin in range(0, end, _STEP_BYTES)]
    for begin, length in steps:
        _wanted(source, target, length, begin)
    for begin, length in steps:
        wanted, there = _wanted(source, target, length, begin), _read_or_none(target, length, begin)
        if wanted != there:
            _write_differing(target, wanted, there, begin, METADATA_BLOCK_BYTES if begin == 0 else 0)
        progress(begin + length)
    with _telling():
        target.flush()
    block0 = source.pread(METADATA_BLOCK_BYTES, 0)
    with _telling():
        target.pwrite(block0, 0)
        target.flush()


def prove_writable(device: BlockDevice) -> None:
    """Write block 0 once more, as it is, and flush: DeviceError where the device takes nothing any more."""
    device.pwrite(device.pread(METADATA_BLOCK_BYTES, 0), 0)
    device.flush()


def heal_from(source: BlockDevice, other: BlockDevice) -> int:
    """Take from `other` what is bad in `source`, if `other` has the same commit but for block 0; how many blocks.

    It has, where no block but that one is good in both and differs: a commit that was cut short between its two
    superblocks has put all else into both copies. A program that wrote one copy alone has left differences.
    """
    if any(is_good(one, number) and is_good(two, number) for number, one, two in _differing(source, other)):
        return 0
    healed = 0
    for number, one, two in _differing(source, other):
        if not is_good(one, number) and is_good(two, number):
            source.pwrite(two, number * METADATA_BLOCK_BYTES)
            healed += 1
    if healed:
        source.flush()
    return healed


def _differing(source: BlockDevice, other: BlockDevice) -> Iterator[tuple[int, bytes, bytes]]:
    """Every block but block 0 that isn't the same in both; what can't be read is zeros."""
    end = min(source.size_bytes, other.size_bytes) // METADATA_BLOCK_BYTES * METADATA_BLOCK_BYTES
    for begin in range(METADATA_BLOCK_BYTES, end, _STEP_BYTES):
        length = min(_STEP_BYTES, end - begin)
        ours, theirs = (_read_what_can_be(each, length, begin) for each in (source, other))
        for at in range(0, length if ours != theirs else 0, METADATA_BLOCK_BYTES):
            one, two = (it[at : at + METADATA_BLOCK_BYTES] for it in (ours, theirs))
            if one != two:
                yield (begin + at) // METADATA_BLOCK_BYTES, one, two


def _wanted(source: BlockDevice, target: BlockDevice, length_bytes: int, offset_bytes: int) -> bytes:
    """What the target shall have there; TargetError where that would be the end of a good block (C1)."""
    try:
        return source.pread(length_bytes, offset_bytes)
    except DeviceError:
        first, last = offset_bytes // METADATA_BLOCK_BYTES, (offset_bytes + length_bytes) // METADATA_BLOCK_BYTES
        return b"".join(_wanted_block(source, target, number) for number in range(first, last))


def _wanted_block(source: BlockDevice, target: BlockDevice, number: int) -> bytes:
    wanted = read_block(source, number)
    if isinstance(wanted, bytes):
        return wanted
    there = read_block(target, number)
    if isinstance(there, bytes) and is_good(there, number):
        raise TargetError(_last_one(source, target, number))
    return bytes(METADATA_BLOCK_BYTES)


def _last_one(source: BlockDevice, target: BlockDevice, number: int) -> DeviceError:
    reason = f"metadata block {number} can't be read in {source.name}, and may be the last good one here"
    mend = "copy to another device, or to this one once it is empty, if that block may go"
    return DeviceError(f"overwriting {target.name}", number * METADATA_BLOCK_BYTES, errno.EIO, reason, mend=mend)


def _write_differing(target: BlockDevice, wanted: bytes, there: bytes | None, begin: int, first: int) -> None:
    with _telling():
        for low in range(first, len(wanted), METADATA_BLOCK_BYTES):
            part = wanted[low : low + METADATA_BLOCK_BYTES]
            if there is None or there[low : low + METADATA_BLOCK_BYTES] != part:
                target.pwrite(part, begin + low)


@contextmanager
def _telling() -> Iterator[None]:
    """A failure in the block is the target's."""
    try:
        yield
    except DeviceError as error:
        raise TargetError(error) from error


def _read_or_none(target: BlockDevice, length_bytes: int, offset_bytes: int) -> bytes | None:
    try:
        return target.pread(length_bytes, offset_bytes)
    except DeviceError:
        return None


def is_good(block: Buffer, number: int) -> bool:
    """Whether 4,096 bytes are a metadata block of some kind, with a right checksum, that stands at `number`."""
    data = bytes(block)
    if int.from_bytes(data[8:16], "little") != number:
        return False
    bare = checksum(data, BlockKind.NODE) ^ BlockKind.NODE.value
    return int.from_bytes(data[:4], "little") ^ bare in _SALTS


def whole_blocks(view: memoryview, offset_bytes: int) -> range:
    """Where each whole block begins in the view."""
    first = -offset_bytes % METADATA_BLOCK_BYTES
    return range(first, len(view) - METADATA_BLOCK_BYTES + 1, METADATA_BLOCK_BYTES)


def read_block(device: BlockDevice, number: int) -> bytes | DeviceError:
    """A block, or why it can't be read."""
    try:
        return device.pread(METADATA_BLOCK_BYTES, number * METADATA_BLOCK_BYTES)
    except DeviceError as error:
        return error


def _read_what_can_be(source: BlockDevice, length_bytes: int, offset_bytes: int) -> bytes:
    try:
        return source.pread(length_bytes, offset_bytes)
    except DeviceError:
        first, last = offset_bytes // METADATA_BLOCK_BYTES, (offset_bytes + length_bytes) // METADATA_BLOCK_BYTES
        found = (read_block(source, number) for number in range(first, last))
        return b"".join(each if isinstance(each, bytes) else bytes(METADATA_BLOCK_BYTES) for each in found)


def first_readable(found: Iterable[bytes | DeviceError]) -> bytes:
    """The first block that could be read, good or not; the first error where none could."""
    errors = []
    for each in found:
        if isinstance(each, bytes):
            return each
        errors.append(each)
    raise errors[0]


def read_from_any(sources: Iterable[BlockDevice], view: memoryview, offset_bytes: int, error: DeviceError) -> None:
    """What some device can read in one piece; `error` where none can."""
    for each in sources:
        try:
            each.pread_into(view, offset_bytes)
            return
        except DeviceError:
            continue
    raise error
