"""One damage at a time, done to the varied pool (tests/support/thinpools): what it is, and what a check must call it.

The rows are those of the format's table of what thin_check enforces, each a field changed with its checksum made right
again, and in which of thin_check 0.9.0 (cpp) and 1.1.0 (rust) they are refused, as tried. What both accept, our check
finds alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from replicator.pdata.bitmap import unpack_bitmap
from replicator.pdata.block import BlockKind
from replicator.thin.report import FindingKind, Severity
from tests.support.thinpools import BASE, EMPTY, METADATA_BLOCKS, SMALL, STRANGER, Patient

DETAILS_VALUES = 1040
VALUES = 2048
INDEX_VALUES = 1376
OVERFLOW_VALUES = 2720
DAMAGE, LEAK, WARNING = Severity.DAMAGE, Severity.LEAK, Severity.WARNING
K = FindingKind
Hand = Callable[[Patient], object]


@dataclass(frozen=True, slots=True)
class Damage:
    """A row: `refused` names the engines of thin_check that refuse it too."""

    name: str
    hand: Hand
    severity: Severity
    kind: FindingKind
    refused: str = ""


def a_leaf(pool: Patient) -> int:
    """A leaf of the base in the middle, not the first of its parent."""
    return pool.child(pool.child(pool.root_of(BASE), 1), 3)


def a_branch(pool: Patient) -> int:
    """An internal node that isn't a root."""
    return pool.child(pool.root_of(BASE), 1)


def _slot_of(pool: Patient, dev_id: int) -> int:
    top = pool.superblock.device_details_root
    count = int.from_bytes(pool.read(top)[16:20], "little")
    return next(slot for slot in range(count) if pool.key(top, slot) == dev_id)


def details(dev_id: int, offset: int, value: int, size: int) -> Hand:
    """Put a field of a device's details record."""

    def hand(pool: Patient) -> None:
        at = DETAILS_VALUES + 24 * _slot_of(pool, dev_id) + offset
        pool.put_node(pool.superblock.device_details_root, at, value, size)

    return hand


def _swap_keys(pool: Patient) -> None:
    leaf = a_leaf(pool)
    first, second = pool.key(leaf, 5), pool.key(leaf, 6)
    pool.put_node(leaf, 32 + 40, second, 8)
    pool.put_node(leaf, 32 + 48, first, 8)


def _value(pool: Patient, data_block: int | None = None, time: int | None = None) -> None:
    """Change one mapping of the device without kin."""
    leaf = pool.leaf_of(pool.root_of(STRANGER), 1)
    old = pool.child(leaf, 7)
    new = (old >> 24 if data_block is None else data_block) << 24 | (old & 0xFFFFFF if time is None else time)
    pool.put_node(leaf, VALUES + 56, new, 8)


def _same_block_twice(pool: Patient) -> None:
    leaf = pool.leaf_of(pool.root_of(STRANGER), 1)
    _value(pool, data_block=pool.child(leaf, 8) >> 24)


def _set_bits(pool: Patient, bitmap: int, entry: int, raw: int) -> None:
    def change(data: bytearray) -> None:
        at, shift = 16 + entry // 4, 2 * (entry % 4)
        data[at] = data[at] & ~(3 << shift) | raw << shift

    pool.edit(bitmap, BlockKind.BITMAP, change)


def _metadata_bitmap(pool: Patient) -> int:
    index = pool.superblock.metadata_space_map.bitmap_root
    return int.from_bytes(pool.read(index)[16:24], "little")


def _data_bitmap(pool: Patient) -> int:
    root = pool.superblock.data_space_map.bitmap_root
    return int.from_bytes(pool.read(root)[INDEX_VALUES:][:8], "little")


def _metadata_count(entry: int | None, raw: int) -> Hand:
    """Change the two bits of a metadata block (None: the device without kin's root)."""
    return lambda pool: _set_bits(pool, _metadata_bitmap(pool), pool.root_of(STRANGER) if entry is None else entry, raw)


def _data_leak(pool: Patient) -> None:
    blocks = pool.superblock.data_space_map.nr_blocks
    root = pool.superblock.data_space_map.bitmap_root
    number, entry = divmod(blocks - 5, 16320)
    bitmap = int.from_bytes(pool.read(root)[INDEX_VALUES + 16 * number :][:8], "little")
    _set_bits(pool, bitmap, entry, 2)


def _data_count(pool: Patient) -> None:
    row = np.frombuffer(bytes(pool.read(_data_bitmap(pool))), dtype=np.uint64)
    once = int(np.flatnonzero(unpack_bitmap(row) == 1)[0])
    _set_bits(pool, _data_bitmap(pool), once, 1)


def _overflow(offset: int, value: int, size: int) -> Hand:
    return lambda pool: pool.put_node(_overflow_leaf(pool), offset, value, size)


def _overflow_leaf(pool: Patient) -> int:
    block = pool.superblock.data_space_map.ref_count_root
    while pool.read(block)[4] == 1:
        block = pool.child(block, 0)
    return block


def _low_child_key(pool: Patient) -> None:
    parent = a_branch(pool)
    leaf = pool.child(parent, 3)
    pool.put_node(leaf, 32, pool.key(parent, 3) - 1, 8)


def _entries(block: Callable[[Patient], int], count: int) -> Hand:
    return lambda pool: pool.put_node(block(pool), 16, count, 4)


def _wrong_number(pool: Patient) -> None:
    leaf = a_leaf(pool)
    pool.edit(leaf, BlockKind.NODE, lambda data: None, number=leaf + 1)


def _flip(pool: Patient) -> None:
    leaf = a_leaf(pool)
    data = pool.read(leaf)
    data[2100] ^= 1
    pool.write(leaf, data)


def _hidden_free(pool: Patient) -> None:
    pool.put(pool.superblock.metadata_space_map.bitmap_root, BlockKind.INDEX, 24, 0, 4)


def _late_hint(pool: Patient) -> None:
    pool.put(pool.superblock.metadata_space_map.bitmap_root, BlockKind.INDEX, 28, METADATA_BLOCKS - 9, 4)


def _data_hint(pool: Patient) -> None:
    pool.put_node(pool.superblock.data_space_map.bitmap_root, INDEX_VALUES + 8, 16000, 4)


def _cycle(pool: Patient) -> None:
    branch = a_branch(pool)
    pool.put_node(branch, VALUES + 24, branch, 8)


def field(offset: int, value: int, size: int) -> Hand:
    """Put a field of block 0."""
    return lambda pool: pool.put_superblock(offset, value, size)


ROWS = (
    Damage("node: bad checksum", _flip, DAMAGE, K.NODE, "cpp rust"),
    Damage("node: wrong block number", _wrong_number, DAMAGE, K.NODE, "cpp rust"),
    Damage("node: value size", lambda p: p.put_node(a_leaf(p), 24, 16, 4), DAMAGE, K.NODE, "cpp rust"),
    Damage("node: max_entries not in threes", lambda p: p.put_node(a_leaf(p), 20, 251, 4), DAMAGE, K.NODE, "cpp rust"),
    Damage("node: max_entries too big", lambda p: p.put_node(a_leaf(p), 20, 255, 4), DAMAGE, K.NODE, "cpp rust"),
    Damage("node: too many entries", _entries(a_leaf, 253), DAMAGE, K.NODE, "cpp rust"),
    Damage("node: keys descend", _swap_keys, DAMAGE, K.NODE, "cpp rust"),
    Damage(
        "node: equal keys",
        lambda p: p.put_node(a_leaf(p), 32 + 48, p.key(a_leaf(p), 5), 8),
        DAMAGE,
        K.NODE,
        "cpp rust",
    ),
    Damage("child below its parent's key", _low_child_key, DAMAGE, K.KEY_RANGE, "cpp rust"),
    Damage(
        "child below the root's first key",
        lambda p: p.put_node(p.root_of(STRANGER), 32, p.key(p.root_of(STRANGER), 0) + 1, 8),
        DAMAGE,
        K.KEY_RANGE,
        "cpp rust",
    ),
    Damage("leaf flags 3", lambda p: p.put_node(a_leaf(p), 4, 3, 4), DAMAGE, K.NODE, "cpp rust"),
    Damage("leaf where a branch belongs", lambda p: p.put_node(a_branch(p), 4, 2, 4), DAMAGE, K.NODE, "cpp rust"),
    Damage("a node that is its own child", _cycle, DAMAGE, K.NODE, "cpp rust"),
    Damage(
        "child beyond the device", lambda p: p.put_node(a_branch(p), VALUES + 8, 1 << 40, 8), DAMAGE, K.NODE, "cpp rust"
    ),
    Damage("leaf too empty", _entries(a_leaf, 83), DAMAGE, K.NODE_FILL, "cpp rust"),
    Damage("branch too empty", _entries(a_branch, 83), DAMAGE, K.NODE_FILL, "cpp rust"),
    Damage("data block out of range", lambda p: _value(p, data_block=1 << 30), DAMAGE, K.DATA_BLOCK, "rust"),
    Damage("mapped_blocks", details(SMALL, 0, 39, 8), DAMAGE, K.MAPPED_BLOCKS, "rust"),
    Damage(
        "device without details, details without device",
        lambda p: p.put_node(p.superblock.device_details_root, 32 + 8 * _slot_of(p, EMPTY), EMPTY + 1, 8),
        DAMAGE,
        K.DEVICE_SETS,
        "rust",
    ),
    Damage("metadata block leaked", _metadata_count(METADATA_BLOCKS - 9, 2), LEAK, K.METADATA_COUNT, "cpp rust"),
    Damage("metadata count too high", _metadata_count(None, 1), DAMAGE, K.METADATA_COUNT, "cpp rust"),
    Damage("metadata count too low", _metadata_count(None, 0), DAMAGE, K.METADATA_COUNT, "cpp rust"),
    Damage("data block leaked", _data_leak, LEAK, K.DATA_COUNT, "rust"),
    Damage("data count too high", _data_count, DAMAGE, K.DATA_COUNT, "rust"),
    Damage("one data block twice", _same_block_twice, DAMAGE, K.DATA_COUNT, "rust"),
    Damage("overflow count", _overflow(OVERFLOW_VALUES, 9, 4), DAMAGE, K.OVERFLOW, "rust"),
    Damage("overflow count below three", _overflow(OVERFLOW_VALUES, 2, 4), DAMAGE, K.OVERFLOW, "rust"),
    Damage("held root isn't a superblock", field(56, 5, 8), DAMAGE, K.HELD_ROOT, "cpp rust"),
    Damage("held root beyond the device", field(56, 1 << 20, 8), DAMAGE, K.NODE, "cpp rust"),
    Damage("mapping younger than the pool", lambda p: _value(p, time=4), DAMAGE, K.TIME),
    Damage("pool's time reset", field(44, 0, 4), DAMAGE, K.TIME),
    Damage("creation_time absurd", details(SMALL, 16, 1000, 4), DAMAGE, K.TIME),
    Damage("snapshotted_time absurd", details(SMALL, 20, 1000, 4), DAMAGE, K.TIME),
    Damage("snapshotted_time before a shared mapping", details(BASE, 20, 0, 4), DAMAGE, K.SHARING_TIME),
    Damage("details' transaction id absurd", details(SMALL, 8, 1000, 8), WARNING, K.TRANSACTION_ID),
    Damage("nr_free hides free metadata", _hidden_free, DAMAGE, K.NR_FREE),
    Damage("none_free_before hides free metadata", _late_hint, DAMAGE, K.NONE_FREE_BEFORE),
    Damage("nr_free of a data bitmap", _data_hint, DAMAGE, K.NR_FREE),
    Damage("nr_allocated of the data", field(64 + 8, 1, 8), WARNING, K.NR_ALLOCATED),
    Damage("nr_allocated of the metadata", field(192 + 8, 1, 8), WARNING, K.NR_ALLOCATED),
    Damage("magic", field(32, 27022011, 8), DAMAGE, K.SUPERBLOCK),
    Damage("version", field(40, 3, 4), DAMAGE, K.SUPERBLOCK),
    Damage("data block size", field(336, 129, 4), DAMAGE, K.SUPERBLOCK),
    Damage("metadata block size", field(340, 16, 4), DAMAGE, K.SUPERBLOCK),
    Damage("metadata_nr_blocks", field(344, 1 << 30, 8), WARNING, K.SUPERBLOCK),
    Damage("compat_flags", field(352, 1, 4), WARNING, K.SUPERBLOCK),
    Damage("compat_ro_flags", field(356, 1, 4), DAMAGE, K.SUPERBLOCK),
    Damage("incompat_flags", field(360, 1, 4), DAMAGE, K.SUPERBLOCK),
    Damage("metadata map past the end of the file", field(192, METADATA_BLOCKS + 1, 8), DAMAGE, K.SUPERBLOCK),
    Damage("data map larger than its bitmaps", field(64, 1 << 20, 8), DAMAGE, K.BITMAP_INDEX),
    Damage("data map larger than memory", field(64, (1 << 40) - 1, 8), DAMAGE, K.SUPERBLOCK, "rust"),
    Damage("NEEDS_CHECK", field(4, 1, 4), WARNING, K.NEEDS_CHECK),
    Damage("an unknown flag", field(4, 2, 4), WARNING, K.SUPERBLOCK),
)

HARMLESS: tuple[tuple[str, Hand], ...] = (
    ("header padding", lambda p: p.put_node(a_leaf(p), 28, 7, 4)),
    ("stale bytes in an unused slot", lambda p: p.put_node(p.root_of(SMALL), 32 + 8 * 200, 5, 8)),
    ("uuid", field(16, 77, 8)),
)
