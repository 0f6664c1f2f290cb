"""Writes a pool's metadata in one go, from arrays of mappings: the image generator of tests and benchmarks.

It owes nothing to pdata's update and transaction, so that the readers are tested against images which our own writer
did not make: nodes are laid out level by level, and every count is worked out at the end from the nodes there are. A
tree made `like` another one shares with it every node that is the same, as after a snapshot and copy-on-write.

    image = ThinImage(path, data_nr_blocks=1024)
    base = image.mapping_tree(keys, values)
    target = image.mapping_tree(other_keys, other_values, like=base)
    image.finish({1: Thin(base, ...), 2: Thin(target, ...)}, time=1)

Invariants
  G1  Every node but a root has between max/3 and max entries.
  G2  All that thin_check looks at is right, and what it doesn't look at too (nr_free, none_free_before, nr_allocated).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from replicator.pdata.bitmap import ENTRIES_PER_BITMAP, INDEX_ENTRIES, OVERFLOW, narrow, pack_bitmaps, pack_index
from replicator.pdata.node import (
    BITMAP_INDEX,
    DETAILS,
    DETAILS_DTYPE,
    INDEX_ENTRY_DTYPE,
    INTERNAL_MAX,
    MAPPING,
    REF_COUNTS,
    TOP_LEVEL,
    TreeKind,
    encode,
)
from replicator.pdata.smroot import NO_SPACE_MAP, SpaceMapRoot
from replicator.thin.mapping import data_blocks
from replicator.thin.superblock import VERSION, Superblock
from replicator.units import METADATA_BLOCK_BYTES

U64 = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
_ENCODE_NODES = 1024


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a tree: entries of all its nodes in a row, and how they are dealt out."""

    keys: U64
    values: npt.NDArray[Any]
    counts: Ints
    blocks: U64

    @property
    def starts(self) -> Ints:
        return np.concatenate(([0], np.cumsum(self.counts)[:-1])).astype(np.int64)

    @property
    def firsts(self) -> U64:
        return self.keys[self.starts] if len(self.keys) else np.zeros(1, dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class Tree:
    """A written tree, leaves first."""

    levels: tuple[Level, ...]

    @property
    def root(self) -> int:
        return int(self.levels[-1].blocks[0])

    @property
    def mapped_blocks(self) -> int:
        return len(self.levels[0].keys)


@dataclass(frozen=True, slots=True)
class Thin:
    """One device of the image."""

    tree: Tree
    transaction_id: int = 0
    creation_time: int = 0
    snapshotted_time: int = 0


class ThinImage:
    """A metadata file in the making; blocks are given out in ascending order, none is ever written twice."""

    def __init__(
        self, path: Path, data_nr_blocks: int, *, metadata_nr_blocks: int = 1024, block_sectors: int = 128
    ) -> None:
        self.path = path
        self.data_nr_blocks = data_nr_blocks
        self.metadata_nr_blocks = metadata_nr_blocks
        self.block_sectors = block_sectors
        self._next = 1
        self._references: list[U64] = [np.zeros(1, dtype=np.uint64)]
        self._data_references: list[U64] = []
        self._file = path.open("w+b")
        self._file.truncate(metadata_nr_blocks * METADATA_BLOCK_BYTES)

    def allocate(self, count: int) -> U64:
        """`count` blocks that follow the last ones."""
        first = self._next
        self._next += count
        assert self._next <= self.metadata_nr_blocks, "the image needs more metadata blocks"
        return np.arange(first, first + count, dtype=np.uint64)

    def skip(self, count: int) -> None:
        """Leave a gap of free blocks."""
        self.allocate(count)

    def mapping_tree(self, keys: U64, values: U64, *, like: Tree | None = None, fill: int = 252) -> Tree:
        """A device's tree; nodes that `like` has too are shared with it."""
        return self.tree(keys, values, MAPPING, like=like, fill=fill)

    def tree(
        self, keys: U64, values: npt.NDArray[Any], kind: TreeKind, *, like: Tree | None = None, fill: int | None = None
    ) -> Tree:
        """A tree of any kind over ascending `keys`."""
        levels: list[Level] = []
        while True:
            twin = like.levels[len(levels)] if like is not None and len(levels) < len(like.levels) else None
            leaf = not levels
            level = self._level(keys, values, leaf, kind, twin, fill)
            levels.append(level)
            if len(level.blocks) == 1:
                return Tree(tuple(levels))
            keys, values, fill = level.firsts, level.blocks, None

    def _level(
        self, keys: U64, values: npt.NDArray[Any], leaf: bool, kind: TreeKind, twin: Level | None, fill: int | None
    ) -> Level:
        limit = kind.leaf_max if leaf else INTERNAL_MAX
        if twin is None or not len(keys) or not len(twin.keys):
            counts = _deal(len(keys), fill or limit)
            blocks = np.zeros(len(counts), dtype=np.uint64)
        else:
            counts, blocks = _shared(keys, values, twin, limit)
        new = blocks == 0
        blocks[new] = self.allocate(int(new.sum()))
        level = Level(keys, values, counts, blocks)
        self._write_nodes(level, new, leaf, kind)
        return level

    def _write_nodes(self, level: Level, new: npt.NDArray[np.bool_], leaf: bool, kind: TreeKind) -> None:
        mine = np.repeat(new, level.counts)
        keys, values, counts, blocks = level.keys[mine], level.values[mine], level.counts[new], level.blocks[new]
        if not leaf or kind is TOP_LEVEL:
            self._references.append(values)
        elif kind is MAPPING:
            self._data_references.append(data_blocks(values))
        elif kind is BITMAP_INDEX:
            self._references.append(values["block"])
        ends = np.cumsum(counts)
        for low in range(0, len(blocks), _ENCODE_NODES):
            part = slice(low, min(low + _ENCODE_NODES, len(blocks)))
            entries = slice(int(ends[low] - counts[low]), int(ends[part.stop - 1]))
            self.write(blocks[part], encode(blocks[part], counts[part], keys[entries], values[entries], leaf, kind))

    def write(self, blocks: U64, rows: U64) -> None:
        """Sealed rows at ascending `blocks`."""
        breaks = np.flatnonzero(blocks[1:] != blocks[:-1] + np.uint64(1)) + 1
        for run in np.split(np.arange(len(blocks)), breaks):
            if len(run):
                self._file.seek(int(blocks[run[0]]) * METADATA_BLOCK_BYTES)
                self._file.write(rows[run[0] : run[-1] + 1].tobytes())

    def finish(
        self, thins: dict[int, Thin], *, time: int = 0, transaction_id: int = 0, held: dict[int, Thin] | None = None
    ) -> Superblock:
        """Write the upper trees, the held copy, the space maps and block 0."""
        held_root, like = 0, None
        if held is not None:
            top, details = self._upper(held, None)
            held_root = int(self.allocate(1)[0])
            copy = self._superblock(time, transaction_id, top.root, details.root)
            block = np.frombuffer(replace(copy, block=held_root).pack(), dtype=np.uint64).reshape(1, -1)
            self.write(np.array([held_root], dtype=np.uint64), block)
            self._references.append(np.array([held_root, top.root, details.root], dtype=np.uint64))
            like = (top, details)
        top, details = self._upper(thins, like)
        self._references.append(np.array([top.root, details.root], dtype=np.uint64))
        bare = self._superblock(time, transaction_id, top.root, details.root)
        data_map = self._data_space_map()
        live = replace(
            bare, held_root=held_root, data_space_map=data_map, metadata_space_map=self._metadata_space_map()
        )
        self._file.seek(0)
        self._file.write(live.pack())
        self._file.close()
        return live

    def _superblock(self, time: int, transaction_id: int, top: int, details: int) -> Superblock:
        return Superblock(
            flags=0,
            uuid=bytes(16),
            version=VERSION,
            time=time,
            transaction_id=transaction_id,
            held_root=0,
            data_space_map=NO_SPACE_MAP,
            metadata_space_map=NO_SPACE_MAP,
            data_mapping_root=top,
            device_details_root=details,
            data_block_sectors=self.block_sectors,
            metadata_nr_blocks=self.metadata_nr_blocks,
        )

    def _upper(self, thins: dict[int, Thin], like: tuple[Tree, Tree] | None) -> tuple[Tree, Tree]:
        ids = sorted(thins)
        keys = np.array(ids, dtype=np.uint64)
        roots = np.array([thins[i].tree.root for i in ids], dtype=np.uint64)
        rows = [
            (t.tree.mapped_blocks, t.transaction_id, t.creation_time, t.snapshotted_time)
            for t in map(thins.get, ids)
            if t
        ]
        details = np.array(rows, dtype=DETAILS_DTYPE)
        top = self.tree(keys, roots, TOP_LEVEL, like=like[0] if like else None)
        return top, self.tree(keys, details, DETAILS, like=like[1] if like else None)

    def _overflow(self, counts: Ints) -> Tree:
        keys = np.flatnonzero(counts >= OVERFLOW)
        return self.tree(keys.astype(np.uint64), counts[keys].astype(np.uint32), REF_COUNTS)

    def _data_space_map(self) -> SpaceMapRoot:
        used = np.concatenate(self._data_references) if self._data_references else np.zeros(0, dtype=np.uint64)
        counts = np.bincount(used.astype(np.int64), minlength=self.data_nr_blocks)
        overflow = self._overflow(counts)
        entries = self._write_bitmaps(counts, self.allocate(-(-self.data_nr_blocks // ENTRIES_PER_BITMAP)))
        index = self.tree(np.arange(len(entries), dtype=np.uint64), entries, BITMAP_INDEX)
        self._references.append(np.array([overflow.root, index.root], dtype=np.uint64))
        allocated = int(np.count_nonzero(counts))
        return SpaceMapRoot(self.data_nr_blocks, allocated, index.root, overflow.root)

    def _metadata_space_map(self) -> SpaceMapRoot:
        bitmaps = self.allocate(-(-self.metadata_nr_blocks // ENTRIES_PER_BITMAP))
        index_block = int(self.allocate(1)[0])
        assert len(bitmaps) <= INDEX_ENTRIES
        self._references += [bitmaps, np.array([index_block], dtype=np.uint64)]
        overflow = self._overflow(self._metadata_counts())
        if len(overflow.levels) > 1:  # its nodes' references are in _references by now
            assert (self._metadata_counts()[overflow.levels[0].blocks.astype(np.int64)] == 1).all()
        self._references.append(np.array([overflow.root], dtype=np.uint64))
        counts = self._metadata_counts()
        entries = self._write_bitmaps(counts, bitmaps)
        self.write(np.array([index_block], dtype=np.uint64), pack_index(entries, index_block))
        return SpaceMapRoot(self.metadata_nr_blocks, int(np.count_nonzero(counts)), index_block, overflow.root)

    def _metadata_counts(self) -> Ints:
        return np.bincount(np.concatenate(self._references).astype(np.int64), minlength=self.metadata_nr_blocks)

    def _write_bitmaps(self, counts: Ints, blocks: U64) -> npt.NDArray[Any]:
        padded = np.zeros(len(blocks) * ENTRIES_PER_BITMAP, dtype=np.uint32)
        padded[: len(counts)] = counts
        grid = padded.reshape(len(blocks), ENTRIES_PER_BITMAP)
        self.write(blocks, pack_bitmaps(narrow(grid), blocks))
        entries = np.zeros(len(blocks), dtype=INDEX_ENTRY_DTYPE)
        entries["block"] = blocks
        entries["nr_free"] = (grid == 0).sum(axis=1)
        entries["none_free_before"] = np.where((grid == 0).any(axis=1), (grid == 0).argmax(axis=1), ENTRIES_PER_BITMAP)
        return entries


def _deal(count: int, fill: int) -> Ints:
    """`count` entries in as few nodes of up to `fill` as will do, evenly; one empty node for none."""
    nodes = max(1, -(-count // fill))
    return np.diff(np.arange(nodes + 1) * count // nodes)


def _shared(keys: U64, values: npt.NDArray[Any], twin: Level, limit: int) -> tuple[Ints, U64]:
    """Entries dealt out as `twin` has them, split and joined where they must; its block where a node is the same."""
    owner = np.maximum(np.searchsorted(twin.firsts, keys, side="right") - 1, 0)
    counts = np.bincount(owner, minlength=len(twin.blocks))
    place = np.minimum(np.searchsorted(twin.keys, keys), len(twin.keys) - 1)
    same = (twin.keys[place] == keys) & (twin.values[place] == values)
    equal = (np.bincount(owner, weights=same, minlength=len(counts)) == counts) & (counts == twin.counts)
    blocks = np.where(equal & (counts > 0), twin.blocks, 0).astype(np.uint64)
    if ((counts >= limit // 3) & (counts <= limit)).all():
        return counts, blocks
    return _even_out(counts, blocks, limit)


def _even_out(counts: Ints, blocks: U64, limit: int) -> tuple[Ints, U64]:
    """Nodes of legal fill from dealt ones: too small ones go into their left neighbour, too large ones are split."""
    groups: list[tuple[int, int]] = []
    for count, block in zip(counts.tolist(), blocks.tolist(), strict=True):
        if groups and count and (count < limit // 3 or groups[-1][0] < limit // 3):
            groups[-1] = (groups[-1][0] + count, 0)
        elif count:
            groups.append((count, block))
    parts = [(_deal(count, limit), block) for count, block in groups]
    new_counts = np.concatenate([dealt for dealt, _ in parts])
    new_blocks = np.concatenate([[block] if len(dealt) == 1 else [0] * len(dealt) for dealt, block in parts])
    return new_counts, new_blocks.astype(np.uint64)
