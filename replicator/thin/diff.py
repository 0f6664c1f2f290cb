"""What differs between two devices of one pool: the change of data blocks from a base to a target.

First station of the publisher: cut -> diff -> read -> publish. Both mapping trees are walked together, level by level;
a node that both have is the same subtree, and is dropped unread. So the cost follows the changed leaves, not the size.

    front      neighbouring subtrees of one tree, all of one height, each with the keys it may hold
    piece      a range of keys with the fronts of both trees in it, small enough to be decoded at once
    height     levels below: 0 is a leaf; the higher tree is gone down first, so that shared nodes meet at one height

Answers are those of thin_delta: data block numbers are compared, times are not.

Invariants
  D1  A subtree that both fronts of one height name by the same block number is left out on both sides: what it
      maps is equal, whatever the keys above it say.
  D2  Each node's keys lie within what its parent allows, and only a root may be empty; else FormatError. So a node
      can't be its own cousin, and a tree's fronts never hold more nodes than the device has blocks.
  D3  Height falls with each step, from at most MAX_DEPTH: a cycle ends in a FormatError.
  D4  Memory is bounded by _LEAVES and _BRANCHES, times the height; not by device, change or pool.
  D5  What comes out ascends strictly by virtual block, over all pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from replicator.errors import FormatError
from replicator.pdata.node import MAPPING, Nodes
from replicator.pdata.store import MetadataStore
from replicator.pdata.tree import MAX_DEPTH
from replicator.thin.geometry import DATA_BLOCK_LIMIT
from replicator.thin.leafpairs import BlockChanges, compare_leaves
from replicator.thin.mapping import Packed

CHANGED, ADDED, REMOVED = 0, 1, 2
KIND_NAMES = ("changed", "added", "removed")
_LEAVES = 256  # of each side decoded at once: 1 MiB, what a core's second-level cache holds
_BRANCHES = 64  # internal nodes of each side at once: at most 16,128 children
_TOP = np.uint64(0xFFFFFFFFFFFFFFFF)
_ONE = np.uint64(1)


@dataclass(frozen=True, slots=True)
class DiffRuns:
    """Consecutive virtual blocks with one fate: u64 `begin`, `end` (half-open) and u8 `kind`, of one length."""

    begin: Packed
    end: Packed
    kind: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.begin)


@dataclass(frozen=True, slots=True)
class _Front:
    """Subtrees of one tree and one height: block, first and last key that each may hold."""

    blocks: Packed
    begins: Packed
    lasts: Packed
    height: int
    is_root: bool = False

    def __len__(self) -> int:
        return len(self.blocks)

    def only(self, keep: npt.NDArray[np.bool_]) -> _Front:
        return _Front(self.blocks[keep], self.begins[keep], self.lasts[keep], self.height, self.is_root)

    def within(self, low: np.uint64, high: np.uint64) -> _Front:
        """The subtrees that may hold keys of [low, high]."""
        part = slice(int(np.searchsorted(self.lasts, low)), int(np.searchsorted(self.begins, high, side="right")))
        return _Front(self.blocks[part], self.begins[part], self.lasts[part], self.height, self.is_root)


def diff(
    store: MetadataStore, base_root: int, target_root: int, *, data_nr_blocks: int = DATA_BLOCK_LIMIT
) -> Iterator[DiffRuns]:
    """Maximal runs of changed, added and removed virtual blocks, ascending, in bounded pieces."""
    held: DiffRuns | None = None
    for changes in diff_blocks(store, base_root, target_root, data_nr_blocks=data_nr_blocks):
        runs = _runs(changes)
        if held is not None:
            runs = _join(held, runs)
        if len(runs) > 1:
            yield DiffRuns(runs.begin[:-1], runs.end[:-1], runs.kind[:-1])
        held = DiffRuns(runs.begin[-1:], runs.end[-1:], runs.kind[-1:])
    if held is not None:
        yield held


def diff_blocks(
    store: MetadataStore, base_root: int, target_root: int, *, data_nr_blocks: int = DATA_BLOCK_LIMIT
) -> Iterator[BlockChanges]:
    """The same block by block, with the data blocks on both sides, so that a reader knows what to read; never empty.

    FormatError for damaged nodes, and for a changed or added data block at or above `data_nr_blocks`.
    """
    if base_root == target_root:
        return
    for changes in _Walk(store).compare(base_root, target_root):
        _require_in_range(store, changes, data_nr_blocks)
        yield changes


def _require_in_range(store: MetadataStore, changes: BlockChanges, data_nr_blocks: int) -> None:
    for side, blocks in (("base", changes.base_blocks()), ("target", changes.target_blocks())):
        if len(blocks) and int(blocks.max()) >= data_nr_blocks:
            where = f"{store.device.name}, mapping tree of the {side}"
            raise FormatError(where, f"data blocks below {data_nr_blocks}", str(int(blocks.max())))


class _Walk:
    """One comparison of two trees of one store."""

    def __init__(self, store: MetadataStore) -> None:
        self.store = store

    def compare(self, base_root: int, target_root: int) -> Iterator[BlockChanges]:
        return self._piece(self._root(base_root), self._root(target_root), np.uint64(0), _TOP)

    def _root(self, root: int) -> _Front:
        whole = np.zeros(1, dtype=np.uint64), np.full(1, _TOP)
        return _Front(np.array([root], dtype=np.uint64), *whole, self._height(root), is_root=True)

    def _height(self, root: int) -> int:
        """Levels below `root`, by its left edge."""
        block = root
        for height in range(MAX_DEPTH):
            nodes = self.store.read_nodes(np.array([block], dtype=np.uint64), MAPPING)
            if nodes.leaf:
                return height
            block = int(nodes.values[0, 0])
        raise FormatError(
            f"{self.store.device.name}, mapping tree at block {root}", f"at most {MAX_DEPTH} levels", "more"
        )

    def _piece(self, base: _Front, target: _Front, low: np.uint64, high: np.uint64) -> Iterator[BlockChanges]:
        """Changes with keys in [low, high]."""
        if base.height == target.height and len(base) and len(target):
            base, target = (
                base.only(~np.isin(base.blocks, target.blocks)),
                target.only(~np.isin(target.blocks, base.blocks)),
            )
        if not len(base) and not len(target):
            return
        limit = _BRANCHES if base.height or target.height else _LEAVES
        if max(len(base), len(target)) > limit + 1:
            for first, last in _cuts(base, target, low, high, limit):
                yield from self._step(base.within(first, last), target.within(first, last), first, last)
        else:
            yield from self._step(base, target, low, high)

    def _step(self, base: _Front, target: _Front, low: np.uint64, high: np.uint64) -> Iterator[BlockChanges]:
        """Go one level down with the higher of the two, or both; at the leaves, compare."""
        if not base.height and not target.height:
            changes = compare_leaves(self._leaves(base), self._leaves(target), low, high)
            if len(changes):
                yield changes
            return
        down = max(base.height, target.height)
        if base.height == down:
            base = self._children(base).within(low, high)
        if target.height == down:
            target = self._children(target).within(low, high)
        yield from self._piece(base, target, low, high)

    def _leaves(self, front: _Front) -> Nodes | None:
        return self._read(front) if len(front) else None

    def _read(self, front: _Front) -> Nodes:
        nodes = self.store.read_nodes(front.blocks, MAPPING)
        expected_leaf = front.height == 0
        if nodes.leaf != expected_leaf:
            raise self._fail(front.blocks[0], "all leaves at one depth", "a leaf" if nodes.leaf else "an internal node")
        if front.is_root and not nodes.count[0]:
            return nodes
        rows = np.arange(len(front))
        bad = (nodes.count == 0) | (nodes.keys[:, 0] < front.begins)
        bad |= nodes.keys[rows, nodes.count - 1] > front.lasts
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise self._fail(front.blocks[row], f"keys in {front.begins[row]}..{front.lasts[row]}", "others, or none")
        return nodes

    def _fail(self, block: np.uint64, expected: str, found: str) -> FormatError:
        return FormatError(f"{self.store.device.name}, mapping tree, metadata block {block}", expected, found)

    def _children(self, front: _Front) -> _Front:
        """The next level; each subtree may hold the keys from its own in the parent up to its right neighbour's."""
        if not len(front):
            return _Front(front.blocks, front.begins, front.lasts, front.height - 1)
        nodes = self._read(front)
        keys, blocks = nodes.flat()
        ends = np.cumsum(nodes.count)
        begins = keys.copy()
        begins[ends - nodes.count] = front.begins
        lasts = np.empty_like(keys)
        lasts[:-1] = keys[1:] - _ONE
        lasts[ends - 1] = front.lasts
        return _Front(blocks, begins, lasts, front.height - 1)


def _cuts(
    base: _Front, target: _Front, low: np.uint64, high: np.uint64, limit: int
) -> Iterator[tuple[np.uint64, np.uint64]]:
    """[low, high] in parts in which neither front has more than limit + 1 subtrees."""
    starts = np.concatenate((base.begins[limit::limit], target.begins[limit::limit]))
    starts = np.unique(starts[(starts > low) & (starts <= high)])
    firsts = np.concatenate(([low], starts))
    lasts = np.concatenate((starts - _ONE, [high]))
    yield from zip(firsts, lasts, strict=True)


def _runs(changes: BlockChanges) -> DiffRuns:
    keys, kinds = changes.virtual_blocks, changes.kinds()
    breaks = (keys[1:] != keys[:-1] + _ONE) | (kinds[1:] != kinds[:-1])
    edges = np.flatnonzero(breaks)
    starts, ends = np.concatenate(([0], edges + 1)), np.concatenate((edges, [len(keys) - 1]))
    return DiffRuns(keys[starts], keys[ends] + _ONE, kinds[starts])


def _join(held: DiffRuns, runs: DiffRuns) -> DiffRuns:
    """The held-back run before the next ones, as one where they touch."""
    if held.end[0] != runs.begin[0] or held.kind[0] != runs.kind[0]:
        begin, end = np.concatenate((held.begin, runs.begin)), np.concatenate((held.end, runs.end))
        return DiffRuns(begin, end, np.concatenate((held.kind, runs.kind)))
    return DiffRuns(np.concatenate((held.begin, runs.begin[1:])), runs.end, runs.kind)
