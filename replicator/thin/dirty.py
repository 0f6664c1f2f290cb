"""The `dirty` file: acknowledged mapping changes that aren't committed yet, safe from the death of the process.

Written by thin/device before each reply that changed a mapping; folded into the mapping trees by thin/engine. A
shared file mapping that needs no sync: its pages outlive the process, and aren't meant to outlive the machine (P1b).

    offset    size       field
    0         8          magic "RPLDIRTY"
    8         8          version 1
    16        16         boot id: after another boot the file is worth nothing
    32        16         the pool's UUID
    48        8          capacity of one half, in records
    56        8          state: bit 0 = which half is active; bit 1 = the other half is frozen; bit 2 = void;
                          bit 3 = replaying: result holds both halves
    64        8          base: checksum of the superblock that the older set builds on
    72        8          result: checksum of the superblock that the commit of the frozen half makes
    80        8, 8       records in half 0, in half 1
    4096      24 * cap   half 0: records
    ...       24 * cap   half 1

    record:  u64 dev_id << 32 | kind (1 = mapped, 2 = unmapped), u64 first virtual block,
             u64 data block (mapped) or number of blocks (unmapped)

Little-endian. A count is raised after its record stands, so that a killed process leaves whole records only.

What is found after the process died, and what the next opening (in the same boot) makes of it:

    line of the commit                 state, base, result               replayed on the superblock on disk
    before freeze                      one half, base = disk             active
    freeze … before block 0 is written frozen, base = disk               frozen, then active
    block 0 written, before committed  frozen, result = disk             active
    after committed                    one half, base = disk             active
    opening, before block 0 is written replaying, base = disk            what it was before
    opening, block 0 written           replaying, result = disk          nothing
    anything else                      -                                 DamageError, exit 3

Invariants
  Y1  Every mapping change that was answered and isn't committed has its record in one of the halves, in order.
  Y2  A clean close leaves both halves empty.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from replicator.errors import DamageError, DeviceError, NoSpaceError, UsageError
from replicator.pdata.block import Words
from replicator.pdata.room import UNMAP_WEIGHT

MAGIC = b"RPLDIRTY"
VERSION = 1
MAPPED = 1
UNMAPPED = 2
DEFAULT_CAPACITY = 65536  # records a half: 1.5 MiB each; a full half forces a commit
SMALLEST_CAPACITY = 64
_HEADER_BYTES = 4096
_RECORD = struct.Struct("<QQQ")
_STATE, _BASE, _RESULT, _COUNTS = 7, 8, 9, 10
_ACTIVE, _FROZEN, _VOID, _REPLAYING = 1, 2, 4, 8


@dataclass(frozen=True, slots=True)
class DirtySet:
    """Mapping changes in the order they were answered: shape (n,) each.

    `dev_ids`, `kinds` (MAPPED or UNMAPPED), `begins` (virtual block), `values` (data block, or number of blocks).
    """

    dev_ids: Words
    kinds: Words
    begins: Words
    values: Words

    @classmethod
    def of_records(cls, records: npt.NDArray[np.uint64]) -> DirtySet:
        """From rows (n, 3) as they stand in the file."""
        return cls(records[:, 0] >> np.uint64(32), records[:, 0] & np.uint64(0xFFFFFFFF), records[:, 1], records[:, 2])

    def __len__(self) -> int:
        return len(self.begins)

    def of_device(self, dev_id: int) -> DirtySet:
        """The changes of one device."""
        mine = self.dev_ids == dev_id
        return DirtySet(self.dev_ids[mine], self.kinds[mine], self.begins[mine], self.values[mine])

    def devices(self) -> list[int]:
        """The devices that changed, ascending."""
        return [int(dev_id) for dev_id in np.unique(self.dev_ids)]


@dataclass(frozen=True, slots=True)
class Folded:
    """What a device's changes come to: what is mapped where, which ranges are unmapped, which blocks were in vain.

    `virtual_blocks` ascending and distinct with their `data_blocks`; `unmapped` merged ranges (n, 2), half-open,
    which apply before the mappings; `superseded` data blocks that were provisioned and replaced again.
    """

    virtual_blocks: Words
    data_blocks: Words
    unmapped: Words
    superseded: Words


def fold(changes: DirtySet) -> Folded:
    """Resolve one device's changes, later ones winning; pure."""
    order = np.arange(len(changes))
    mapped = changes.kinds == MAPPED
    keys, places, blocks = changes.begins[mapped], order[mapped], changes.values[mapped]
    by_key = np.lexsort((places, keys))
    keys, places, blocks = keys[by_key], places[by_key], blocks[by_key]
    last = np.ones(len(keys), dtype=bool)
    if len(keys) > 1:
        last[:-1] = keys[1:] != keys[:-1]
    runs = np.stack((changes.begins[~mapped], changes.begins[~mapped] + changes.values[~mapped]), axis=1)
    for (begin, end), place in zip(runs.tolist(), order[~mapped].tolist(), strict=True):
        low, high = np.searchsorted(keys, np.array((begin, end), dtype=np.uint64)).tolist()
        part = slice(low, high)
        last[part] &= places[part] > place
    return Folded(keys[last], blocks[last], merge_ranges(runs), np.unique(blocks[~last]))


def merge_ranges(ranges: Words) -> Words:
    """Half-open ranges (n, 2), any order and overlap, as ascending ones that neither touch nor overlap."""
    if len(ranges) < 2:
        return ranges
    ranges = ranges[np.argsort(ranges[:, 0], kind="stable")]
    reach = np.maximum.accumulate(ranges[:, 1])
    starts = np.concatenate(([True], ranges[1:, 0] > reach[:-1]))
    ends = np.concatenate((np.flatnonzero(starts)[1:] - 1, [len(ranges) - 1]))
    return np.stack((ranges[starts, 0], reach[ends]), axis=1)


@cache
def boot_id() -> bytes:
    """16 bytes that this boot of the machine, and no other, has."""
    text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return bytes.fromhex(text.replace("-", ""))


def superblock_sum(block0: bytes) -> int:
    """How the file names a superblock: 64 bits over the whole block."""
    return xxhash.xxh3_64_intdigest(block0)


class DirtyLog:
    """The open file. `append_*` and `freeze` are called under the engine's publish lock."""

    def __init__(self, path: Path, map_: mmap.mmap, capacity: int) -> None:
        self.path = path
        self.capacity = capacity
        self._map = map_
        self._words = memoryview(map_).cast("Q")
        self._halves = [
            np.frombuffer(map_, dtype=np.uint64, count=3 * capacity, offset=_HEADER_BYTES + half * capacity * 24)
            for half in (0, 1)
        ]
        self.count = 0
        self.weight = 0  # of the active half, as pdata/room weighs
        self._active = 0
        self._place = _HEADER_BYTES

    @staticmethod
    def open(path: Path, pool_uuid: bytes, capacity: int = DEFAULT_CAPACITY) -> DirtyLog:
        """Open, or create with room for `capacity` records a half; DamageError if it isn't one of this pool.

        Next come `to_replay` and `restart`; nothing may be appended before.
        """
        if capacity < SMALLEST_CAPACITY:
            raise UsageError(f"the dirty file needs room for {SMALLEST_CAPACITY} records, not {capacity}")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not any(os.pread(fd, _HEADER_BYTES, 0)):  # empty, or its maker died before it had a header
                _write_new(fd, path, pool_uuid, capacity)
            size = os.fstat(fd).st_size
            map_ = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        if size < _HEADER_BYTES or map_[:16] != struct.pack("<8sQ", MAGIC, VERSION):
            raise DamageError(f"{path} isn't a dirty file of version {VERSION}", mend=f"move {path} away: see README")
        found = int.from_bytes(map_[48:56], "little")
        if found < SMALLEST_CAPACITY or size != _HEADER_BYTES + 48 * found:
            raise DamageError(f"{path} has {size} bytes, not {_HEADER_BYTES + 48 * found}", mend=f"move {path} away")
        if map_[32:48] != pool_uuid:
            raise DamageError(f"{path} belongs to another pool", mend="put the pool's own files together again")
        return DirtyLog(path, map_, found)

    def _left_behind(self) -> list[DirtySet]:
        state = int(self._words[_STATE])
        return [] if self._map[16:32] != boot_id() or state & _VOID else self._sets(state)

    def _sets(self, state: int) -> list[DirtySet]:
        """What the halves hold, older first."""
        active = state & _ACTIVE
        halves = [1 - active, active] if state & _FROZEN else [active]
        return [self._half(half) for half in halves]

    def _half(self, half: int) -> DirtySet:
        count = min(int(self._words[_COUNTS + half]), self.capacity)
        return DirtySet.of_records(self._halves[half][: 3 * count].reshape(-1, 3).copy())

    @property
    def given_up(self) -> int:
        """How many acknowledged changes the last owner gave up after a failed flush (in this boot)."""
        state = int(self._words[_STATE])
        return sum(map(len, self._sets(state))) if state & _VOID and self._map[16:32] == boot_id() else 0

    def to_replay(self, current_sum: int) -> list[DirtySet]:
        """The sets to fold onto the superblock with `current_sum`, older first; DamageError if they build on another.

        A frozen set that the superblock holds already is forgotten here.
        """
        state, sets = int(self._words[_STATE]), self._left_behind()
        if not any(len(part) for part in sets):
            return []
        if state & (_FROZEN | _REPLAYING) and int(self._words[_RESULT]) == current_sum:
            if state & _REPLAYING:
                return []
            self._words[_BASE] = current_sum
            self._words[_STATE] = state & _ACTIVE
            return sets[1:]
        if int(self._words[_BASE]) == current_sum:
            return sets
        raise DamageError(
            f"{self.path}: {sum(map(len, sets))} acknowledged changes build on another state of the metadata",
            mend=f"put the metadata back that belongs to it; or move {self.path} away, which gives those changes up",
        )

    def replaying(self, result_sum: int) -> None:
        """An opening is about to write the block 0 that holds all sets."""
        self._words[_RESULT] = result_sum
        self._words[_STATE] = int(self._words[_STATE]) | _REPLAYING

    def restart(self, current_sum: int) -> None:
        """Begin anew on the superblock with `current_sum`: both halves empty, this boot's."""
        self._words[_COUNTS] = self._words[_COUNTS + 1] = 0
        self._words[_STATE] = 0
        self._words[_RESULT] = 0
        self._words[_BASE] = current_sum
        self._map[16:32] = boot_id()
        self.count, self.weight, self._place, self._active = 0, 0, _HEADER_BYTES, 0

    # -- while serving ---------------------------------------------------------------------------------------

    def append_mapped(self, dev_id: int, virtual_block: int, data_block: int) -> None:
        """One block was mapped. The caller looked that the half isn't full."""
        _RECORD.pack_into(self._map, self._place, dev_id << 32 | MAPPED, virtual_block, data_block)
        self._place += 24
        self.count += 1
        self.weight += 1
        self._words[_COUNTS + self._active] = self.count

    def append_unmapped(self, dev_id: int, virtual_block: int, length_blocks: int) -> None:
        """A run of blocks was unmapped. The caller looked that the half isn't full."""
        _RECORD.pack_into(self._map, self._place, dev_id << 32 | UNMAPPED, virtual_block, length_blocks)
        self._place += 24
        self.count += 1
        self.weight += UNMAP_WEIGHT
        self._words[_COUNTS + self._active] = self.count

    @property
    def is_full(self) -> bool:
        return self.count >= self.capacity

    def active(self) -> DirtySet:
        """The changes since the last freeze, for as long as nothing is appended."""
        return DirtySet.of_records(self._halves[self._active][: 3 * self.count].reshape(-1, 3))

    def freeze(self) -> DirtySet:
        """Swap: what was active is frozen until `committed`, new changes go to the other half. O(1)."""
        frozen, half = self.count, self._active
        self._words[_COUNTS + 1 - half] = 0
        self._words[_RESULT] = 0  # the last commit's result is this one's base: it must not speak for this frozen half
        self._words[_STATE] = (1 - half) | _FROZEN
        self._active, self.count, self.weight = 1 - half, 0, 0
        self._place = _HEADER_BYTES + self._active * self.capacity * 24
        return DirtySet.of_records(self._halves[half][: 3 * frozen].reshape(-1, 3))

    def committing(self, result_sum: int) -> None:
        """Block 0 is about to be written: the frozen half is part of what `result_sum` names."""
        self._words[_RESULT] = result_sum

    def committed(self) -> None:
        """The commit is durable: the frozen half is empty, the active one builds on its result."""
        self._words[_BASE] = self._words[_RESULT]
        self._words[_STATE] = self._active

    def void(self) -> None:
        """A flush failed: nothing is known of the disk, so nothing may be replayed onto it."""
        self._words[_STATE] = int(self._words[_STATE]) | _VOID

    def close(self) -> None:
        """Unmap; the file stays (empty after a clean close: the owner commits first)."""
        self._words.release()
        self._halves = []
        with suppress(BufferError):  # a set of a failed commit is looked at still: unmapped when that goes
            self._map.close()


def _write_new(fd: int, path: Path, pool_uuid: bytes, capacity: int) -> None:
    os.ftruncate(fd, 0)
    length = _HEADER_BYTES + 2 * capacity * 24
    header = bytearray(_HEADER_BYTES)
    struct.pack_into("<8sQ16s16sQ", header, 0, MAGIC, VERSION, boot_id(), pool_uuid, capacity)
    try:
        os.posix_fallocate(fd, 0, length)
        os.pwrite(fd, header, 0)
        os.fsync(fd)
    except OSError as error:
        os.ftruncate(fd, 0)
        if error.errno in (28, 122):
            raise NoSpaceError(f"{path}: no room for {length} bytes", mend="free some room beside the pool") from error
        raise DeviceError(str(path), 0, error.errno or 5, error.strerror or str(error)) from error


def split_by_device(changes: DirtySet) -> Iterator[tuple[int, Folded]]:
    """(device, what its changes come to) for each device in `changes`."""
    for dev_id in changes.devices():
        yield dev_id, fold(changes.of_device(dev_id))
