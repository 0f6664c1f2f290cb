"""Two-bit counts: the swap of their bits, whole blocks there and back, the index block."""

from __future__ import annotations

import numpy as np
import pytest

from replicator.pdata.bitmap import (
    ENTRIES_PER_BITMAP,
    INDEX_ENTRIES,
    narrow,
    pack_bitmaps,
    pack_index,
    unpack_bitmap,
    unpack_index,
)
from replicator.pdata.block import BlockKind, verify
from replicator.pdata.node import INDEX_ENTRY_DTYPE

BLOCK = np.array([9], dtype=np.uint64)


def packed(counts: list[int]) -> bytes:
    whole = np.zeros((1, ENTRIES_PER_BITMAP), dtype=np.uint32)
    whole[0, : len(counts)] = counts
    return bytes(pack_bitmaps(narrow(whole), BLOCK)[0].tobytes())


@pytest.mark.parametrize(
    ("counts", "raw"),
    [
        ([1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1], "aaaaa8"),  # the annotated metadata bitmap of a 4 MiB image
        ([2, 2, 2, 2, 0, 0, 0, 0, 0, 1, 1], "550028"),  # and its data bitmap
        ([0, 1, 2, 3], "d8"),
        ([3, 4, 1000, 1 << 31], "ff"),  # three or more: the number stands in the overflow tree
    ],
)
def test_the_bits_are_swapped(counts: list[int], raw: str) -> None:
    block = packed(counts)
    assert block[16 : 16 + len(raw) // 2].hex() == raw and not any(block[16 + len(raw) // 2 :])
    verify(block, BlockKind.BITMAP, 9, "test")
    found = unpack_bitmap(np.frombuffer(block, dtype=np.uint64))
    assert found[: len(counts)].tolist() == [min(count, 3) for count in counts]


def test_any_counts_come_back() -> None:
    counts = np.random.default_rng(1).integers(0, 4, (3, ENTRIES_PER_BITMAP)).astype(np.uint32)
    rows = pack_bitmaps(narrow(counts), np.array([3, 1 << 20, 4], dtype=np.uint64))
    assert all((unpack_bitmap(row) == count).all() for row, count in zip(rows, counts, strict=True))


def test_the_index_block_holds_255_entries() -> None:
    entries = np.zeros(INDEX_ENTRIES, dtype=INDEX_ENTRY_DTYPE)
    entries[0] = (3, 1012, 12)
    entries[254] = (1 << 22, 16320, 0)
    row = pack_index(entries, 1)[0]
    verify(row.tobytes(), BlockKind.INDEX, 1, "test")
    assert row.tobytes()[16:32].hex() == "0300000000000000" + "f4030000" + "0c000000"
    assert (unpack_index(row) == entries).all()
    assert unpack_index(pack_index(entries[:2], 1)[0])[2:].tobytes() == bytes(253 * 16)
