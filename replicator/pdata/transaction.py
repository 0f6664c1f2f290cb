"""The transaction manager: allocates, shadows and releases metadata blocks, and makes a whole change durable at once.

Between thin/ (which says what changes) and the metadata device. Everything a transaction writes waits in
`store.pending`; `write` puts it behind the old state, and one write of block 0 switches over.

What is on disk if the machine dies during `write`:

    line                         metadata device                                    after opening
    before the first write       the old state                                      the old state
    during write_pending         new blocks in places that the old state has free   the old state
    before the first flush ends  the same, any subset of them                       the old state
    during the superblock write  block 0 old or new (one sector; its checksum)      old or new
    before the second flush ends the same                                           old or new
    after it                     the new state                                      the new state

Invariants
  X1  A block that the committed superblock reaches is never written, except block 0 (U1 of pdata/update).
  X2  A freed block is not allocated again before the commit that frees it is durable (P6), unless it was FRESH.
  X3  After a failed write or flush of `write` nothing is known of the disk: `broken` is set, and nothing
      is written any more until the pool is opened again.
  X4  What the last committed state reaches stays as it is on disk until `finish` of the next one; whoever reads it
      beside a transaction looks afterwards whether that is the last one still.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from replicator.errors import FormatError, ReplicatorError
from replicator.pdata.bitmap import IndexEntries
from replicator.pdata.block import BlockKind, Words
from replicator.pdata.counts import CountsMark
from replicator.pdata.node import MAPPING, TOP_LEVEL, Nodes, TreeKind, decode, encode, leaf_rows
from replicator.pdata.room import PoolShape
from replicator.pdata.spacemap import SpaceMap
from replicator.pdata.store import MetadataStore
from replicator.pdata.tree import MAX_DEPTH
from replicator.pdata.update import Shorter, Update, Updated
from replicator.units import METADATA_BLOCK_BYTES

_COUNT_NODES = 64
_DROP_NODES = 4096  # nodes of a dying tree that are read at once: 16 MiB
_LARGEST_WRITE_BLOCKS = 256  # 1 MiB a pwritev
_TIME_SHIFT = np.uint64(24)


class BrokenPoolError(ReplicatorError):
    """A flush or a metadata write failed: the pool is read-only until it is opened again."""

    kind = "broken"


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a transaction was when somebody began what may have to be undone."""

    counts: tuple[CountsMark, CountsMark]
    maps: tuple[tuple[IndexEntries, int, int], ...]
    pending: dict[int, Words]
    nr_blocks: int


class Transaction:
    """The running change of one pool's metadata; not thread-safe, its owner locks.

    `data` and `metadata` are the two space maps; set by the opener before the first change.
    """

    def __init__(self, store: MetadataStore) -> None:
        self.store = store
        self.broken: str | None = None
        self.metadata: SpaceMap
        self.data: SpaceMap
        self.blocks_written = 0

    def allocate(self, count: int) -> Words:
        """`count` new metadata blocks with one reference each; NoSpaceError when there aren't as many."""
        blocks = self.metadata.counts.take(count)
        self.metadata.counts.add(blocks)
        return blocks

    def put(self, blocks: Words, rows: Words) -> None:
        """Sealed `rows` (n, 512) wait to be written to `blocks`."""
        self.store.pending.update(zip(blocks.tolist(), rows, strict=True))

    def release(self, blocks: Words) -> Words:
        """One reference less to each of the distinct `blocks`; returns those that are gone."""
        dead = self.metadata.counts.drop(blocks)
        self._forget_pending(dead)
        return dead

    def _forget_pending(self, dead: Words) -> None:
        if dead.size and self.store.pending:
            for block in dead.tolist():
                self.store.pending.pop(block, None)

    def shadow(self, blocks: Words, kind: TreeKind) -> Nodes:
        """Read nodes that will be replaced by copies: their count falls, the children of the shared ones gain one."""
        nodes = self.store.read_nodes(blocks, kind)
        shared = self.metadata.counts.get(blocks) > 1
        if shared.any():
            self._share(nodes.values[nodes.mask() & shared[:, None]], nodes.leaf, kind)
        self.release(blocks)
        return nodes

    def _share(self, values: npt.NDArray[Any], leaf: bool, kind: TreeKind) -> None:
        if not leaf or kind is TOP_LEVEL:
            self.metadata.counts.add(values)
        elif kind is MAPPING:
            self.data.counts.add(values >> _TIME_SHIFT)

    def forget_values(self, kind: TreeKind, values: npt.NDArray[Any]) -> None:
        """Leaf values that a batch overwrites or deletes; a mapping's data block loses a reference."""
        if kind is MAPPING:
            self.data.counts.drop(values >> _TIME_SHIFT)

    def update(
        self, root: int, kind: TreeKind, keys: Words, values: npt.NDArray[Any], delete: npt.NDArray[np.bool_]
    ) -> Updated:
        """Put or delete sorted distinct `keys` in a tree; the data blocks of new mappings gain a reference."""
        if not len(keys):
            return Updated(root, 0, 0)
        if kind is MAPPING:
            self.data.counts.add(values[~delete] >> _TIME_SHIFT)
        return Update(self, kind).run(root, keys, values, delete)

    def empty_tree(self, kind: TreeKind) -> int:
        """The root of a new tree without entries."""
        blocks = self.allocate(1)
        none = np.empty(0, dtype=np.uint64)
        values = np.empty(0, dtype=kind.dtype)
        self.put(blocks, encode(blocks, np.zeros(1, dtype=np.int64), none, values, True, kind))
        return int(blocks[0])

    def share_root(self, root: int) -> None:
        """One more reference to a tree's root: a snapshot, or a held copy."""
        self.metadata.counts.add(np.array([root], dtype=np.uint64))

    def drop_subtree(self, blocks: Words, kind: TreeKind) -> tuple[Words, TreeKind]:
        """Drop one level of dying trees: a reference of each of `blocks` (as many as it stands there).

        Returns the children to drop next, and of which kind of tree they are: a top-level leaf leads to mapping trees.
        Leaves' data blocks lose their reference at once. One level, so that the caller can go in slices; the roots of
        several mapping trees are of several depths, so leaves and inner nodes may come together.
        """
        dead = np.sort(self.metadata.counts.drop(blocks))
        children: list[Words] = [np.empty(0, dtype=np.uint64)]
        below = kind
        if dead.size:
            rows = self.store.read_blocks(dead, BlockKind.NODE)
            leaves = leaf_rows(rows)
            for part in (leaves, ~leaves):
                if not part.any():
                    continue
                nodes = decode(rows[part], dead[part], kind, self.store.device.name)
                _, values = nodes.flat()
                if nodes.leaf and kind is not TOP_LEVEL:
                    self.forget_values(kind, values)
                    continue
                children.append(values.astype(np.uint64))
                below = MAPPING if nodes.leaf else kind
            self._forget_pending(dead)
        return np.concatenate(children), below

    def drop_tree(self, root: int, kind: TreeKind) -> None:
        """One reference less to a tree; what only it reached is free after the commit. Memory is bounded by slices."""
        waiting = [(np.array([root], dtype=np.uint64), kind)]
        while waiting:
            blocks, level = waiting.pop()
            children, below = self.drop_subtree(blocks[:_DROP_NODES], level)
            if blocks[_DROP_NODES:].size:
                waiting.append((blocks[_DROP_NODES:], level))
            if children.size:
                waiting.append((children, below))

    def dying_leaves(self, root: int, kind: TreeKind, limit: int) -> int:
        """How many leaves only this tree reaches, so that they die with it; counted until there are more than `limit`.

        Nothing but inner nodes is read, and of those only the ones that die.
        """
        level, counts = np.array([root], dtype=np.uint64), self.metadata.counts
        for _ in range(MAX_DEPTH):
            level = level[counts.get(level) == 1]
            if not level.size or self.store.read_nodes(level[:1], kind).leaf:
                return len(level)
            below: list[Words] = []
            found = 0
            for low in range(0, len(level), _COUNT_NODES):
                children = self.store.read_nodes(level[low : low + _COUNT_NODES], kind).flat()[1]
                below.append(children)
                found += int(np.count_nonzero(counts.get(children) == 1))
                if found > limit:
                    break  # as many nodes of the next level, and each of those has leaves
            level = np.concatenate(below)
        raise FormatError(f"{kind.name} at block {root}", f"at most {MAX_DEPTH} levels", "more")

    def drop_front(self, root: int, kind: TreeKind, budget: int) -> Shorter:
        """Drop the first leaves of a tree that is dying in slices (pdata/update)."""
        return Update(self, kind).drop_front(root, budget)

    def shape(self, *, trees: int = 1, mapped_blocks: int | None = None) -> PoolShape:
        """What bounds a commit that changes `trees` mapping trees with `mapped_blocks` in all (default: any)."""
        data, metadata = self.data.counts, self.metadata.counts
        return PoolShape(
            free_blocks=metadata.free_count,
            data_blocks=data.nr_blocks,
            data_sections=data.sections,
            data_overflow_leaves=self.data.overflow_leaves(),
            metadata_allocated=metadata.nr_allocated,
            metadata_sections=metadata.sections,
            metadata_overflow_leaves=self.metadata.overflow_leaves(),
            mapped_blocks=trees * data.nr_blocks if mapped_blocks is None else mapped_blocks,
            trees=trees,
        )

    def worst_case_blocks(self, weight: int) -> int:
        """Metadata blocks that a commit of mapping changes of this weight in one tree may need (P8; pdata/room)."""
        return self.shape().worst_case(weight)

    def limit_counts(self, sections: int) -> None:
        """Keep so many bitmaps' counts of each map in memory, beside what is changed or taken (P5)."""
        for space in (self.data, self.metadata):
            space.counts.limit = sections

    def trim_counts(self) -> None:
        """Give back what a change had to load beyond that."""
        for space in (self.data, self.metadata):
            space.counts.unload()

    def mark(self) -> Mark:
        """Before something that may fail halfway: `undo` brings back what is now, `forget_mark` lets it stand."""
        maps = self.data, self.metadata
        return Mark(
            (self.data.counts.mark(), self.metadata.counts.mark()),
            tuple((space.index, space.bitmap_root, space.ref_count_root) for space in maps),
            dict(self.store.pending),
            self.store.nr_blocks,
        )

    def forget_mark(self) -> None:
        """What was done since the mark stands."""
        self.data.counts.forget_mark()
        self.metadata.counts.forget_mark()

    def undo(self, mark: Mark) -> None:
        """Nothing was done since the mark."""
        for space, counts, (index, bitmap_root, ref_count_root) in zip(
            (self.data, self.metadata), mark.counts, mark.maps, strict=True
        ):
            space.counts.undo(counts)
            space.index, space.bitmap_root, space.ref_count_root = index, bitmap_root, ref_count_root
        self.store.pending, self.store.nr_blocks = mark.pending, mark.nr_blocks

    def place(self) -> None:
        """Give both space maps their new homes; nothing may change any more before `finish`."""
        self.check_whole()
        self.data.commit_data(self)
        self.metadata.commit_metadata(self)

    def check_whole(self) -> None:
        """BrokenPoolError once a commit has failed (X3)."""
        if self.broken:
            raise BrokenPoolError(self.broken, mend="stop what has the pool open, and open it again")

    def write(self, block0: bytes, flush_data: Callable[[], None]) -> None:
        """Write what is pending, then switch over with `block0`; `flush_data` makes the data durable first.

        Whatever the device raises is raised, and X3 holds from then on.
        """
        try:
            flush_data()
            self._write_pending()
            self.store.device.flush()
            self.store.device.pwrite(block0, 0)
            self.store.device.flush()
        except Exception as error:
            self.broken = f"{self.store.device.name}: the pool is read-only since a commit failed: {error}"
            raise

    def finish(self, show: Callable[[], None] | None = None) -> Words:
        """The commit is durable; returns the data blocks that it freed, TAKEN until `settle` (X2).

        `show` is called when the flags tell of the new state, and before anything of the old one may be used again:
        by then nobody begins to read that any more (X4).
        """
        self.store.pending.clear()
        self.data.counts.end_transaction()
        self.metadata.counts.end_transaction()
        if show is not None:
            show()
        with self.data.counts.loading, self.metadata.counts.loading:
            self.metadata.counts.settle(self.metadata.counts.collect_freed())
        return self.data.counts.collect_freed()

    def _write_pending(self) -> None:
        blocks = sorted(self.store.pending)
        self.blocks_written += len(blocks)
        start = 0
        for at in range(1, len(blocks) + 1):
            ends = at == len(blocks) or blocks[at] != blocks[at - 1] + 1 or at - start == _LARGEST_WRITE_BLOCKS
            if ends:
                rows = [self.store.pending[block].data.cast("B") for block in blocks[start:at]]
                self.store.device.pwritev(rows, blocks[start] * METADATA_BLOCK_BYTES)
                start = at
