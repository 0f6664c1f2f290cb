"""Every metadata block looked at by itself: what a repair knows before it believes any root.

First step of thin/repair. The checksum's salt tells the kind of a block, the header of a node what its tree holds; a
block that fails any test of pdata/block or pdata/node is nothing. Blocks that the disk can't read are counted, and are
nothing too.

Invariants
  N1  What isn't NOTHING was verified as pdata/store and pdata/node verify it, so that reading it again can't fail.
  N2  Memory: 20 bytes a metadata block, and a batch of 1,024 blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

import google_crc32c
import numpy as np
import numpy.typing as npt

from replicator.blockdev.interface import BlockDevice
from replicator.errors import DeviceError
from replicator.pdata.bitmap import LARGEST_METADATA_BLOCKS
from replicator.pdata.block import WORDS_PER_BLOCK, BlockKind, Words
from replicator.pdata.node import (
    BITMAP_INDEX,
    DETAILS,
    INTERNAL,
    INTERNAL_MAX,
    LEAF,
    MAPPING,
    REF_COUNTS,
    TreeKind,
)
from replicator.units import METADATA_BLOCK_BYTES

Progress = Callable[[int], None]
Bytes = npt.NDArray[np.uint8]
_BATCH_BLOCKS = 1024
_MASK32 = np.uint64(0xFFFFFFFF)
_SHIFT32 = np.uint64(32)
_ALL_ONES = 0xFFFFFFFF
_HEADER_WORDS = 4


class What(IntEnum):
    """What a block is, by itself; leaves of mapping and top-level trees look alike."""

    NOTHING = 0
    BRANCH = 1
    MAPPINGS = 2
    DETAILS = 3
    INDEX_ENTRIES = 4
    COUNTS = 5
    BITMAP = 6
    INDEX = 7
    SUPERBLOCK = 8


LEAF_KINDS: dict[What, TreeKind] = {
    What.MAPPINGS: MAPPING,
    What.DETAILS: DETAILS,
    What.INDEX_ENTRIES: BITMAP_INDEX,
    What.COUNTS: REF_COUNTS,
}
_BY_SALT = {BlockKind.BITMAP: What.BITMAP, BlockKind.INDEX: What.INDEX, BlockKind.SUPERBLOCK: What.SUPERBLOCK}


@dataclass(slots=True)
class Scan:
    """What each block is, and of nodes the number of entries, the lowest and the highest key (one without: 0 and 0)."""

    what: Bytes
    count: npt.NDArray[np.int64]
    low: Words
    high: Words
    unreadable: list[int] = field(default_factory=list)

    @property
    def nr_blocks(self) -> int:
        return len(self.what)

    def all_of(self, what: What) -> Words:
        """The blocks that are `what`, ascending."""
        return np.flatnonzero(self.what == what).astype(np.uint64)


def scan(device: BlockDevice, progress: Progress = lambda _: None) -> Scan:
    """Look at all blocks of a metadata device; `progress` hears the bytes done."""
    blocks = min(device.size_bytes // METADATA_BLOCK_BYTES, LARGEST_METADATA_BLOCKS)
    zeros = np.zeros(blocks, dtype=np.uint64)
    found = Scan(np.zeros(blocks, dtype=np.uint8), np.zeros(blocks, dtype=np.int64), zeros, zeros.copy())
    for first in range(0, blocks, _BATCH_BLOCKS):
        rows = _read(device, first, min(_BATCH_BLOCKS, blocks - first), found.unreadable)
        _classify(found, first, rows)
        progress((first + len(rows)) * METADATA_BLOCK_BYTES)
    return found


def _read(device: BlockDevice, first: int, count: int, unreadable: list[int]) -> Words:
    """Rows of `count` blocks; those that can't be read are zeros, and are named in `unreadable`."""
    rows = np.zeros((count, WORDS_PER_BLOCK), dtype=np.uint64)
    view = rows.data.cast("B")
    try:
        device.pread_into(view, first * METADATA_BLOCK_BYTES)
        return rows
    except DeviceError:
        rows[:] = 0
    for row in range(count):
        try:
            at = row * METADATA_BLOCK_BYTES
            device.pread_into(view[at : at + METADATA_BLOCK_BYTES], (first + row) * METADATA_BLOCK_BYTES)
        except DeviceError:
            rows[row] = 0
            unreadable.append(first + row)
    return rows


def _classify(found: Scan, first: int, rows: Words) -> None:
    numbers = np.arange(first, first + len(rows), dtype=np.uint64)
    likely = np.flatnonzero((rows[:, 1] == numbers) & (rows[:, 0] != 0))
    kinds = _kinds(rows, likely)
    for kind, what in _BY_SALT.items():
        found.what[first + likely[kinds == kind.value]] = what
    nodes = likely[kinds == BlockKind.NODE.value]
    flags = (rows[nodes, 0] >> _SHIFT32) & _MASK32
    size = rows[nodes, 3] & _MASK32
    _take_nodes(found, first, rows, nodes[(flags == INTERNAL) & (size == 8)], What.BRANCH, INTERNAL_MAX)
    for what, kind_of_tree in LEAF_KINDS.items():
        of_kind = nodes[(flags == LEAF) & (size == kind_of_tree.value_size)]
        _take_nodes(found, first, rows, of_kind, what, kind_of_tree.leaf_max)


def _kinds(rows: Words, likely: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The salt that each of the likely rows carries, whatever it is."""
    data, crc = rows.data.cast("B"), google_crc32c.value
    stored = (rows[likely, 0] & _MASK32).tolist()
    starts = (likely * METADATA_BLOCK_BYTES).tolist()
    salts = [
        crc(bytes(data[at + 4 : at + METADATA_BLOCK_BYTES])) ^ _ALL_ONES ^ sum_
        for at, sum_ in zip(starts, stored, strict=True)
    ]
    return np.array(salts, dtype=np.int64)


def _take_nodes(found: Scan, first: int, rows: Words, nodes: npt.NDArray[np.int64], what: What, limit: int) -> None:
    """Note those of the node rows whose header and keys are in order (pdata/node.decode)."""
    if not len(nodes):
        return
    words = rows[nodes]
    count = (words[:, 2] & _MASK32).astype(np.int64)
    good = (words[:, 2] >> _SHIFT32 == limit) & (count <= limit)
    if what is What.BRANCH:
        good &= count > 0
    keys = words[:, _HEADER_WORDS : _HEADER_WORDS + limit]
    in_use = np.arange(1, limit) < count[:, None]
    good &= ~((keys[:, 1:] <= keys[:, :-1]) & in_use).any(axis=1)
    places = first + nodes[good]
    found.what[places], found.count[places] = what, count[good]
    empty = count[good] == 0
    rows_of = np.arange(len(keys))[good]
    found.low[places] = np.where(empty, 0, keys[rows_of, 0])
    found.high[places] = np.where(empty, 0, keys[rows_of, np.maximum(count[good], 1) - 1])
