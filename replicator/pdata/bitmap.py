"""Reference counts on disk: the bitmap block's two-bit entries, and the metadata map's index block.

Written and read by pdata/spacemap. Two kinds of block, little-endian:

    bitmap block            u32 csum, u32 unused, u64 blocknr, then 4,080 bytes: 16,320 entries of two bits
                            entry e: byte 16 + e/4, bits 2*(e mod 4) and above
                            raw 0 -> count 0, raw 1 -> count 2, raw 2 -> count 1, raw 3 -> three or more
    metadata index block    u32 csum, u32 padding, u64 blocknr, then 255 index entries of 16 bytes:
                            u64 bitmap block, u32 nr_free, u32 none_free_before

Source: Linux dm-space-map-common.h; the swap of the two bits comes from its find_next_bit order.

Invariants
  M1  "Three or more" stands in the bitmap iff the block's true count stands in the overflow tree.
  M2  Entries beyond the end of the device are zero.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from replicator.pdata.block import WORDS_PER_BLOCK, BlockKind, Words, seal_many
from replicator.pdata.node import INDEX_ENTRY_DTYPE

ENTRIES_PER_BITMAP = 16320
INDEX_ENTRIES = 255
OVERFLOW = 3
LARGEST_METADATA_BLOCKS = INDEX_ENTRIES * ENTRIES_PER_BITMAP

Counts = npt.NDArray[np.uint32]
IndexEntries = npt.NDArray[np.void]

_LOW_BITS = np.uint32(0x01010101)
_SWAP = np.array([0, 2, 1, 3], dtype=np.uint8)
_BYTES = np.arange(256, dtype=np.uint8)
_UNPACK = np.stack([_SWAP[(_BYTES >> shift) & 3] for shift in (0, 2, 4, 6)], axis=1)


def unpack_bitmap(row: Words) -> Counts:
    """The 16,320 counts of one bitmap block (512 words); 3 stands for three or more."""
    counts: Counts = unpack_bitmaps(row[None])[0]
    return counts


def unpack_bitmaps(rows: Words) -> Counts:
    """The same of several bitmap blocks (n, 512), as rows."""
    return _UNPACK[rows.view(np.uint8)[:, 16:]].reshape(len(rows), ENTRIES_PER_BITMAP).astype(np.uint32)


def narrow(counts: Counts) -> npt.NDArray[np.uint8]:
    """Counts as a bitmap knows them: 0, 1, 2, and 3 for three or more; one byte each."""
    return np.minimum(counts, np.uint32(OVERFLOW)).astype(np.uint8)


def pack_bitmaps(counts: npt.NDArray[np.uint8], blocks: Words) -> Words:
    """Sealed bitmap blocks (n, 512) from narrow `counts` (n, 16,320), standing at `blocks`."""
    fours = counts.view(np.uint32)  # four counts a word, one a byte: swap the bits of each, then move them together
    fours = ((fours & _LOW_BITS) << np.uint32(1)) | ((fours >> np.uint32(1)) & _LOW_BITS)
    fours |= fours >> np.uint32(6)
    fours |= fours >> np.uint32(12)
    words = np.zeros((len(blocks), WORDS_PER_BLOCK), dtype=np.uint64)
    words.view(np.uint8)[:, 16:] = fours.astype(np.uint8)
    seal_many(words, BlockKind.BITMAP, blocks)
    return words


def unpack_index(row: Words) -> IndexEntries:
    """The 255 index entries of the metadata space map's index block."""
    return row.view(np.uint8)[16:].view(INDEX_ENTRY_DTYPE).copy()


def pack_index(entries: IndexEntries, block: int) -> Words:
    """The sealed index block (1, 512) with `entries` (at most 255), standing at `block`."""
    words = np.zeros((1, WORDS_PER_BLOCK), dtype=np.uint64)
    raw = np.ascontiguousarray(entries).view(np.uint8).reshape(-1)
    words.view(np.uint8)[0, 16 : 16 + raw.size] = raw
    seal_many(words, BlockKind.INDEX, np.array([block], dtype=np.uint64))
    return words
