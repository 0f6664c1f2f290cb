"""Writing B-trees: one sorted batch of puts and deletes at a time, every touched node shadowed once.

Called by pdata/transaction for every tree of the pool. Down: find the leaves that the keys belong to, and shadow
each node on the way. Up: regroup the entries level by level; a level on which nothing splits or shrinks too far is
rewritten as arrays, the rest parent by parent.

    on the way down   count[node] -= 1; if it was > 1 before, +1 to each child (node, device root, data block)
    on the way up     a new node for every touched one; its parent's entry changes, so that is touched, too

A tree that dies in slices loses its first leaves at each (`drop_front`), and is a whole tree of what is left of it.

Invariants
  U1  No block reachable from the committed superblock is changed: every changed node gets a new home.
  U2  Every node but the root has between max/3 and max entries when the batch is done.
  U3  A parent's entry key is the lowest key of the child that this batch wrote.
  U4  Keys of one level ascend across its nodes, so that one sorted array stands for a whole level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replicator.errors import FormatError
from replicator.pdata.block import Words
from replicator.pdata.node import INTERNAL_MAX, Nodes, TreeKind, encode, patch
from replicator.pdata.tree import MAX_DEPTH, search_slots

if TYPE_CHECKING:
    from replicator.pdata.transaction import Transaction

LEAF_COST = 8  # of dropping a leaf's data blocks, against only counting its keys

Rows = npt.NDArray[np.int64]
Values = npt.NDArray[Any]


class Shorter(NamedTuple):
    """What is left of a dying tree, how many keys it lost, and what that cost."""

    root: int
    removed: int
    cost: int


class Updated(NamedTuple):
    """The new root, how many keys are there that weren't, and how many that were are gone."""

    root: int
    inserted: int
    removed: int


@dataclass(slots=True)
class _Level:
    """The touched nodes of one level, and where each hangs in the level above."""

    nodes: Nodes
    parent: Rows
    slot: Rows


@dataclass(slots=True)
class _Flat:
    """A level's entries after the change: node i has the next `counts[i]` of `keys` and `values`."""

    counts: Rows
    keys: Words
    values: Values


@dataclass(slots=True)
class _Piece:
    """What will be one node, or several if it is too long: ascending keys and their values."""

    keys: Words
    values: Values


@dataclass(slots=True)
class _Entries:
    """What a level tells the one above: entries (`gone_parent`, `gone_slot`) go, (`parent`, key, block) come.

    `aligned`: entry i comes in the very place of the i-th that goes.
    """

    gone_parent: Rows
    gone_slot: Rows
    parent: Rows
    keys: Words
    blocks: Words
    aligned: bool


_Item = _Piece | int  # an int is a slot of the parent whose child stays as it is
_Load = Callable[[int], _Piece]


class Update:
    """One batch on one tree of `kind` inside `transaction`."""

    def __init__(self, transaction: Transaction, kind: TreeKind) -> None:
        self.transaction = transaction
        self.kind = kind
        self._bottom = 0  # height of the lowest level that is touched; leaves have 0

    def run(self, root: int, keys: Words, values: Values, delete: npt.NDArray[np.bool_]) -> Updated:
        """Put (or delete, absent ones too) sorted distinct `keys`."""
        levels, owner, slot = self._descend(root, keys)
        nodes, depth = levels[-1].nodes, len(levels) - 1
        hit = slot >= 0
        hit[hit] = nodes.keys[owner[hit], slot[hit]] == keys[hit]
        self.transaction.forget_values(self.kind, nodes.values[owner[hit], slot[hit]])
        if depth and hit.all() and not delete.any():
            result: _Piece | _Entries = self._patch(levels[-1], owner, slot, keys, values)
        else:
            put = ~delete
            flat = _regroup(nodes, (owner[hit], slot[hit]), owner[put], keys[put], values[put])
            result = self._rewrite(levels, depth, flat)
        inserted, removed = int(np.count_nonzero(~hit & ~delete)), int(np.count_nonzero(hit & delete))
        return Updated(self._finish(levels, result), inserted, removed)

    def _finish(self, levels: list[_Level], result: _Piece | _Entries) -> int:
        """Bring what the lowest level came to up to the root; returns the new one."""
        depth = len(levels) - 1
        while isinstance(result, _Entries):
            depth -= 1
            result = self._lift(levels, depth, result)
        return self._crown(result, len(levels) - 1 + self._bottom)

    def _descend(self, root: int, keys: Words) -> tuple[list[_Level], Rows, Rows]:
        blocks = np.array([root], dtype=np.uint64)
        parent, place = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
        owner = np.zeros(len(keys), dtype=np.int64)
        levels: list[_Level] = []
        while len(levels) < MAX_DEPTH:
            nodes = self.transaction.shadow(blocks, self.kind)
            levels.append(_Level(nodes, parent, place))
            slot = search_slots(nodes, owner, keys)
            if nodes.leaf:
                return levels, owner, slot
            slot = np.maximum(slot, 0)
            edge = np.concatenate(([True], (owner[1:] != owner[:-1]) | (slot[1:] != slot[:-1])))
            parent, place = owner[edge], slot[edge]
            blocks = nodes.values[parent, place]
            owner = np.cumsum(edge) - 1
        raise FormatError(f"{self.kind.name} at block {root}", f"at most {MAX_DEPTH} levels", "more")

    def drop_front(self, root: int, budget: int) -> Shorter:
        """Drop the first leaves of a tree that has inner nodes, until that has cost `budget`; at most 252 of them.

        A leaf that others have too costs 1, since it is only counted, one that dies LEAF_COST.
        """
        spine = self._left_spine(root)
        levels: list[_Level] = []
        top = np.zeros(1, dtype=np.int64)
        for block in spine[:-2]:
            levels.append(_Level(self.transaction.shadow(block, self.kind), top, top))
        branch, self._bottom = spine[-2], 1
        if levels and self.transaction.metadata.counts.get(branch)[0] > 1:
            leaves = self.transaction.store.read_nodes(branch, self.kind).flat()[1]
            removed, cost, gone, self._bottom = self._count(leaves), len(leaves), 1, 2
            self.transaction.release(branch)
        else:
            levels.append(_Level(self.transaction.shadow(branch, self.kind), top, top))
            removed, cost, gone = self._drop_leaves(levels[-1].nodes.flat()[1], budget)
        nodes, none = levels[-1].nodes, np.empty(0, dtype=np.uint64)
        slots = np.arange(gone)
        flat = _regroup(nodes, (np.zeros(gone, dtype=np.int64), slots), none.astype(np.int64), none, none)
        return Shorter(self._finish(levels, self._rewrite(levels, len(levels) - 1, flat)), removed, cost)

    def _left_spine(self, root: int) -> list[Words]:
        spine = [np.array([root], dtype=np.uint64)]
        while len(spine) <= MAX_DEPTH:
            nodes = self.transaction.store.read_nodes(spine[-1], self.kind)
            if nodes.leaf:
                assert len(spine) > 1, "a tree of one leaf dies at once"
                return spine
            spine.append(nodes.values[0, :1].copy())
        raise FormatError(f"{self.kind.name} at block {root}", f"at most {MAX_DEPTH} levels", "more")

    def _drop_leaves(self, leaves: Words, budget: int) -> tuple[int, int, int]:
        """Drop as many of `leaves` as cost `budget`, one at least: (keys removed, cost, how many leaves)."""
        alone = self.transaction.metadata.counts.get(leaves) == 1
        costs = np.cumsum(np.where(alone, LEAF_COST, 1))
        gone = max(1, int(np.searchsorted(costs, budget, side="right")))
        removed = self._count(leaves[:gone])
        self.transaction.drop_subtree(leaves[:gone], self.kind)
        return removed, int(costs[gone - 1]), gone

    def _count(self, leaves: Words) -> int:
        return int(self.transaction.store.read_nodes(leaves, self.kind).count.sum())

    def _patch(self, level: _Level, owner: Rows, slot: Rows, keys: Words, values: Values) -> _Entries:
        """Nodes that keep their number of entries: copies with some entries replaced."""
        blocks = self.transaction.allocate(len(level.nodes.count))
        rows = patch(level.nodes, self.kind, blocks, owner, slot, keys, values)
        self.transaction.put(blocks, rows)
        return _Entries(level.parent, level.slot, level.parent, rows[:, 4].copy(), blocks, aligned=True)

    def _lift(self, levels: list[_Level], depth: int, below: _Entries) -> _Piece | _Entries:
        """Bring what changed below into the nodes of level `depth`."""
        level = levels[depth]
        if depth and below.aligned:
            return self._patch(level, below.parent, below.gone_slot, below.keys, below.blocks)
        gone = (below.gone_parent, below.gone_slot)
        return self._rewrite(levels, depth, _regroup(level.nodes, gone, below.parent, below.keys, below.blocks))

    def _rewrite(self, levels: list[_Level], depth: int, flat: _Flat) -> _Piece | _Entries:
        """Turn a level's regrouped entries into new nodes; the root's level into the one piece that it is."""
        if not depth:
            return _Piece(flat.keys, flat.values)
        level, height = levels[depth], len(levels) - 1 - depth + self._bottom
        low, high = self._fill(height)
        bad = np.unique(level.parent[(flat.counts < low) | (flat.counts > high)])
        parts = [self._write_good(level, flat, ~np.isin(level.parent, bad), height)]
        parents = levels[depth - 1].nodes
        parts.extend(self._write_bad(level, flat, parents, parent, height) for parent in bad.tolist())
        return _join(parts)

    def _fill(self, height: int) -> tuple[int, int]:
        high = INTERNAL_MAX if height else self.kind.leaf_max
        return high // 3, high

    def _write_good(self, level: _Level, flat: _Flat, rows: npt.NDArray[np.bool_], height: int) -> _Entries:
        counts = flat.counts[rows]
        keep = np.repeat(rows, flat.counts)
        keys = flat.keys[keep]
        blocks = self._encode(counts, keys, flat.values[keep], height)
        first = keys[np.cumsum(counts) - counts]
        parent = level.parent[rows]
        return _Entries(parent, level.slot[rows], parent, first, blocks, aligned=True)

    def _encode(self, counts: Rows, keys: Words, values: Values, height: int) -> Words:
        if not len(counts):
            return keys[:0]
        blocks = self.transaction.allocate(len(counts))
        self.transaction.put(blocks, encode(blocks, counts, keys, values, not height, self.kind))
        return blocks

    def _write_bad(self, level: _Level, flat: _Flat, parents: Nodes, parent: int, height: int) -> _Entries:
        """Children of one parent among which some are too long or too short: split, or joined with neighbours."""
        starts = np.concatenate(([0], np.cumsum(flat.counts)))
        items: list[_Item] = list(range(int(parents.count[parent])))
        gone: list[int] = []
        for row in np.flatnonzero(level.parent == parent).tolist():
            part = slice(int(starts[row]), int(starts[row + 1]))
            gone.append(int(level.slot[row]))
            items[gone[-1]] = _Piece(flat.keys[part], flat.values[part])

        def load(slot: int) -> _Piece:
            gone.append(slot)
            return self._load(int(parents.values[parent, slot]))

        pieces = [item for item in self._settle(items, load, height) if isinstance(item, _Piece)]
        keys, blocks = self._write_pieces(pieces, height)
        gone.sort()
        gone_parent = np.full(len(gone), parent, dtype=np.int64)
        here = np.full(len(keys), parent, dtype=np.int64)
        return _Entries(gone_parent, np.array(gone, dtype=np.int64), here, keys, blocks, aligned=False)

    def _load(self, block: int) -> _Piece:
        return _Piece(*self.transaction.shadow(np.array([block], dtype=np.uint64), self.kind).flat())

    def _settle(self, items: list[_Item], load: _Load, height: int) -> list[_Item]:
        """Join pieces that are too short with a neighbour, until none is (or it is the only one)."""
        low, _ = self._fill(height)
        at = 0
        while at < len(items):
            piece = items[at]
            if isinstance(piece, int) or len(piece.keys) >= low or len(items) == 1:
                at += 1
            elif not len(piece.keys):
                del items[at]
            else:
                left = max(at - 1, 0)
                pair = [load(item) if isinstance(item, int) else item for item in items[left : left + 2]]
                items[left : left + 2] = [self._merge(pair[0], pair[1], height)]
                at = left
        return items

    def _merge(self, left: _Piece, right: _Piece, height: int) -> _Piece:
        lonely = [len(left.keys)] if len(right.keys) == 1 else []
        lonely += [0] if len(left.keys) == 1 else []
        merged = _Piece(np.concatenate((left.keys, right.keys)), np.concatenate((left.values, right.values)))
        return self._adopt(merged, lonely, height - 1) if height and lonely else merged

    def _adopt(self, piece: _Piece, slots: list[int], height: int) -> _Piece:
        """An only child may be short; now that it has siblings (in `piece`), it no longer may."""
        items: list[_Item] = list(range(len(piece.keys)))

        def load(slot: int) -> _Piece:
            return self._load(int(piece.values[slot]))

        for slot in slots:
            items[slot] = load(slot)
        settled = self._settle(items, load, height)
        keys, values = [], []
        for item in settled:
            if isinstance(item, int):
                keys.append(piece.keys[item : item + 1])
                values.append(piece.values[item : item + 1])
            else:
                new_keys, new_blocks = self._write_pieces([item], height)
                keys.append(new_keys)
                values.append(new_blocks)
        return _Piece(np.concatenate(keys), np.concatenate(values))

    def _write_pieces(self, pieces: list[_Piece], height: int) -> tuple[Words, Words]:
        """New nodes of `pieces`, the long ones split evenly: (lowest key, block) of each."""
        _, high = self._fill(height)
        counts: list[int] = []
        for piece in pieces:
            counts.extend(split_evenly(len(piece.keys), high))
        if not counts:
            return np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.uint64)
        keys = np.concatenate([piece.keys for piece in pieces])
        sizes = np.array(counts, dtype=np.int64)
        blocks = self._encode(sizes, keys, np.concatenate([piece.values for piece in pieces]), height)
        return keys[np.cumsum(sizes) - sizes], blocks

    def _crown(self, piece: _Piece, height: int) -> int:
        """The root over `piece`: as many levels above as it needs, none that has a single child."""
        while True:
            if height and len(piece.keys) == 1:
                piece, height = self._load(int(piece.values[0])), height - 1
            elif height and not len(piece.keys):
                piece, height = _Piece(piece.keys, np.empty(0, dtype=self.kind.dtype)), 0
            elif len(piece.keys) > self._fill(height)[1]:
                piece, height = _Piece(*self._write_pieces([piece], height)), height + 1
            else:
                count = np.array([len(piece.keys)], dtype=np.int64)
                return int(self._encode(count, piece.keys, piece.values, height)[0])


def split_evenly(length: int, high: int) -> list[int]:
    """Sizes of the nodes for `length` entries, none above `high`, and (above one node) none below high/2."""
    parts = -(-length // high)
    return [length * (i + 1) // parts - length * i // parts for i in range(parts)]


def _regroup(nodes: Nodes, gone: tuple[Rows, Rows], owner: Rows, keys: Words, values: Values) -> _Flat:
    """The level's entries without `gone` (rows, slots), with (owner, key, value) put in at their places."""
    mask = nodes.mask()
    mask[gone] = False
    counts = mask.sum(axis=1) + np.bincount(owner, minlength=len(mask))
    all_keys = np.concatenate((nodes.keys[mask], keys))
    order = np.argsort(all_keys, kind="stable")
    return _Flat(counts, all_keys[order], np.concatenate((nodes.values[mask], values))[order])


def _join(parts: list[_Entries]) -> _Entries:
    if len(parts) == 1:
        return parts[0]
    keys = np.concatenate([part.keys for part in parts])
    order = np.argsort(keys, kind="stable")
    return _Entries(
        np.concatenate([part.gone_parent for part in parts]),
        np.concatenate([part.gone_slot for part in parts]),
        np.concatenate([part.parent for part in parts])[order],
        keys[order],
        np.concatenate([part.blocks for part in parts])[order],
        aligned=False,
    )
