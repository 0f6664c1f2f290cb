"""A space map on disk and in memory: how many references each block of a device has.

Two of them stand in the superblock: over data blocks (index of bitmaps in a B-tree) and over metadata
blocks (index in one block). Loaded lazily into pdata/counts; written by `commit_data` and `commit_metadata`
of a transaction, the metadata map last, since placing the others changes it.

Invariants
  P1  Bitmaps and overflow tree agree after every commit: count >= 3 iff a key in the tree.
  P2  nr_free of an index entry counts the free entries of its bitmap, a partial bitmap's tail included
      (as the kernel writes it); no free entry lies below none_free_before.
  P3  The metadata map's overflow tree is written before its bitmaps: its own nodes have count 1 and never enter it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from replicator.pdata.bitmap import (
    ENTRIES_PER_BITMAP,
    INDEX_ENTRIES,
    OVERFLOW,
    Counts,
    IndexEntries,
    pack_bitmaps,
    pack_index,
    unpack_bitmaps,
    unpack_index,
)
from replicator.pdata.block import BlockKind, Words
from replicator.pdata.counts import CountArray
from replicator.pdata.node import BITMAP_INDEX, INDEX_ENTRY_DTYPE, REF_COUNTS
from replicator.pdata.smroot import SpaceMapRoot
from replicator.pdata.store import MetadataStore
from replicator.pdata.tree import leaf_count, walk

if TYPE_CHECKING:
    from replicator.pdata.transaction import Transaction

_U64 = np.uint64
_ENCODE_SECTIONS = 32  # bitmaps encoded at once: 2 MiB of counts stay in the processor's cache


@dataclass
class SpaceMap:
    """One space map: its counts in memory, its index entries, its overflow root on disk."""

    store: MetadataStore
    counts: CountArray
    index: IndexEntries
    bitmap_root: int
    ref_count_root: int
    _leaves_of: tuple[int, int] = (0, 0)

    @classmethod
    def empty(cls, what: str, store: MetadataStore, nr_blocks: int, *, recycle: bool) -> SpaceMap:
        """A map of a new pool: nothing counted, every bitmap still to be written, no roots."""
        space = cls._bare(what, store, nr_blocks, 0, recycle=recycle)
        space.counts.dirty[:] = True
        return space

    @classmethod
    def _bare(cls, what: str, store: MetadataStore, nr_blocks: int, nr_allocated: int, *, recycle: bool) -> SpaceMap:
        def load(sections: Words) -> Counts:
            return space.load_sections(sections)

        counts = CountArray(what, nr_blocks, nr_allocated, load, recycle=recycle)
        space = cls(store, counts, np.zeros(counts.sections, dtype=INDEX_ENTRY_DTYPE), 0, 0)
        return space

    @classmethod
    def open_data(cls, store: MetadataStore, root: SpaceMapRoot) -> SpaceMap:
        """The data space map under `root`."""
        space = cls._bare("data", store, root.nr_blocks, root.nr_allocated, recycle=False)
        for keys, values in walk(store, root.bitmap_root, BITMAP_INDEX, 0, len(space.index)):
            space.index[keys.astype(np.int64)] = values
        return space._opened(root)

    @classmethod
    def open_metadata(cls, store: MetadataStore, root: SpaceMapRoot) -> SpaceMap:
        """The metadata space map under `root`."""
        space = cls._bare("metadata", store, root.nr_blocks, root.nr_allocated, recycle=True)
        row = store.read_blocks(np.array([root.bitmap_root], dtype=np.uint64), BlockKind.INDEX)[0]
        space.index[:] = unpack_index(row)[: len(space.index)]
        return space._opened(root)

    def _opened(self, root: SpaceMapRoot) -> SpaceMap:
        self.bitmap_root, self.ref_count_root = root.bitmap_root, root.ref_count_root
        self.counts.section_free[:] = self.index["nr_free"]
        return self

    def root(self) -> SpaceMapRoot:
        """What the superblock says of this map."""
        counts = self.counts
        return SpaceMapRoot(counts.nr_blocks, counts.nr_allocated, self.bitmap_root, self.ref_count_root)

    def overflow_leaves(self) -> int:
        """How many leaves the overflow tree has, by its inner nodes; asked again only when it has changed."""
        root, known = self._leaves_of
        if root != self.ref_count_root:
            known = leaf_count(self.store, self.ref_count_root, REF_COUNTS)
            self._leaves_of = self.ref_count_root, known
        return known

    def load_sections(self, sections: Words) -> Counts:
        """The 16,320 counts of each of these bitmaps, ascending, as rows; overflow included."""
        counts = np.zeros((len(sections), ENTRIES_PER_BITMAP), dtype=np.uint32)
        blocks = self.index["block"][sections.astype(np.int64)]
        there = np.flatnonzero(blocks)
        counts[there] = unpack_bitmaps(self.store.read_blocks(blocks[there], BlockKind.BITMAP))
        for row in np.flatnonzero((counts == OVERFLOW).any(axis=1)).tolist():
            begin = int(sections[row]) * ENTRIES_PER_BITMAP
            for keys, values in walk(self.store, self.ref_count_root, REF_COUNTS, begin, begin + ENTRIES_PER_BITMAP):
                counts[row, (keys - _U64(begin)).astype(np.int64)] = values
        return counts

    def grow(self, nr_blocks: int) -> None:
        """Cover `nr_blocks`; the new bitmaps are written by the next commit."""
        old = self.counts.nr_blocks
        sections = max(len(self.index), -(-nr_blocks // ENTRIES_PER_BITMAP))  # first: who loads counts looks here
        self.index = np.concatenate((self.index, np.zeros(sections - len(self.index), dtype=INDEX_ENTRY_DTYPE)))
        self.counts.grow(nr_blocks)
        if old % ENTRIES_PER_BITMAP and nr_blocks > old:
            self.counts.dirty[old // ENTRIES_PER_BITMAP] = True  # its free tail is real now, and must be counted (P2)
        self.counts.dirty |= self.index["block"] == 0

    def _encode(self, sections: Words, blocks: Words) -> Words:
        """Sealed bitmaps of `sections` for `blocks`; their index entries are brought up to date."""
        rows = [
            self._encode_some(sections[low : low + _ENCODE_SECTIONS], blocks[low : low + _ENCODE_SECTIONS])
            for low in range(0, len(sections), _ENCODE_SECTIONS)
        ]
        return np.concatenate(rows)

    def _encode_some(self, sections: Words, blocks: Words) -> Words:
        where = sections.astype(np.int64)
        counts = self.counts.narrowed(where)
        nr_free = ENTRIES_PER_BITMAP - np.count_nonzero(counts, axis=1)
        self.index["block"][where] = blocks
        self.index["nr_free"][where] = nr_free
        self.index["none_free_before"][where] = np.where(nr_free > 0, counts.argmin(axis=1), ENTRIES_PER_BITMAP)
        self.counts.section_free[where] = nr_free
        return pack_bitmaps(counts, blocks)

    def _bring_dirty(self) -> Words:
        dirty = np.flatnonzero(self.counts.dirty).astype(np.uint64)
        self.counts.get(dirty * _U64(ENTRIES_PER_BITMAP))  # a grown section may never have been asked for
        return dirty

    def _commit_overflow(self, transaction: Transaction) -> None:
        touched = self.counts.collect_overflow()
        if touched.size:
            counts = self.counts.get(touched)
            self.ref_count_root = transaction.update(
                self.ref_count_root, REF_COUNTS, touched, counts, counts < OVERFLOW
            ).root

    def commit_data(self, transaction: Transaction) -> None:
        """Write what changed of the data map into `transaction`."""
        self._commit_overflow(transaction)
        dirty = self._bring_dirty()
        if not dirty.size:
            return
        old = self.index["block"][dirty.astype(np.int64)]
        blocks = transaction.allocate(len(dirty))
        transaction.put(blocks, self._encode(dirty, blocks))
        transaction.release(old[old != 0])
        entries = self.index[dirty.astype(np.int64)]
        none = np.zeros(len(dirty), dtype=bool)
        self.bitmap_root = transaction.update(self.bitmap_root, BITMAP_INDEX, dirty, entries, none).root

    def commit_metadata(self, transaction: Transaction) -> None:
        """Write what changed of the metadata map into `transaction`; nothing may be allocated after it (P3)."""
        self._commit_overflow(transaction)
        index_block = transaction.allocate(1)
        if self.bitmap_root:
            transaction.release(np.array([self.bitmap_root], dtype=np.uint64))
        homes: dict[int, int] = {}
        while True:
            dirty = self._bring_dirty()
            homeless = np.array([s for s in dirty.tolist() if s not in homes], dtype=np.uint64)
            if not homeless.size:
                break
            old = self.index["block"][homeless.astype(np.int64)]
            homes.update(zip(homeless.tolist(), transaction.allocate(len(homeless)).tolist(), strict=True))
            transaction.release(old[old != 0])
        blocks = np.array([homes[s] for s in dirty.tolist()], dtype=np.uint64)
        transaction.put(blocks, self._encode(dirty, blocks))
        self.bitmap_root = int(index_block[0])
        transaction.put(index_block, pack_index(self.index[:INDEX_ENTRIES], self.bitmap_root))
