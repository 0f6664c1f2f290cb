"""What stands below each node, as far as it can be read: heights, ranges, and which subtrees are whole.

Second step of thin/repair, from the leaves up, over all nodes that a scan found, whether a root leads to them or not.

    height    0 for leaves; a branch stands one above what most of its children are
    fits      a child that is a node of the right height, with keys in its parent's slot that overlap no neighbour's
    sound     a leaf whose data blocks lie on the data device; a branch all of whose children fit, have all their keys
              in their slots, are sound, and full enough to stand there (pdata/node, N2): it can be copied as it is

Invariants
  H1  Height grows from round to round, up to MAX_DEPTH: what is its own descendant never gets one.
  H2  Memory: 20 bytes a metadata block, and _NODES decoded nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from replicator.pdata.block import Words
from replicator.pdata.node import INTERNAL_MAX, MAPPING, Nodes
from replicator.pdata.store import MetadataStore
from replicator.pdata.tree import MAX_DEPTH
from replicator.thin.mapping import DEV_ID_LIMIT, data_blocks
from replicator.thin.repair_scan import LEAF_KINDS, Scan, What

_NODES = 512
UNKNOWN = np.uint8(255)
_ONE = np.uint64(1)
_MOST, _ANY = 0.5, 0.0  # first what most children say; then, where they are half and half, the higher one
_ENTRIES_MAX = 1 << 48  # of what nodes that are each other's cousins could add up to without end
TOP_KEY = 0xFFFFFFFFFFFFFFFF
Mask = npt.NDArray[np.bool_]


@dataclass(slots=True)
class Shapes:
    """Arrays by block number: `leaf_kind` says what the leaves below are, `upper` that all values are nodes' blocks."""

    store: MetadataStore
    scan: Scan
    height: npt.NDArray[np.uint8]
    leaf_kind: npt.NDArray[np.uint8]
    sound: Mask
    upper: Mask
    entries: npt.NDArray[np.int64]
    low: Words
    high: Words

    def is_tree(self, block: int, what: What) -> bool:
        """Whether a tree with leaves of `what` stands at `block`, whole or not."""
        return bool(0 < block < len(self.height) and self.height[block] != UNKNOWN and self.leaf_kind[block] == what)

    def read(self, blocks: Words, leaf: bool) -> Iterator[Nodes]:
        """The nodes, all leaves or all branches, in bounded pieces."""
        for start in range(0, len(blocks), _NODES):
            part = blocks[start : start + _NODES]
            kind = LEAF_KINDS[What(int(self.leaf_kind[int(part[0])]))] if leaf else MAPPING
            yield self.store.read_nodes(part, kind)

    def children(self, nodes: Nodes) -> npt.NDArray[np.int64]:
        """The block that each entry leads to, 0 where that is none; shape (n, 252)."""
        inside = nodes.mask() & (nodes.values < len(self.height))
        return np.where(inside, nodes.values, 0).astype(np.int64)

    def fits(self, nodes: Nodes, height: int) -> tuple[Mask, Mask]:
        """(fits, with all keys inside the slot) of each entry of branches, for children of `height`; (n, 252) each."""
        valid, children = nodes.mask(), self.children(nodes)
        upper = np.full_like(nodes.keys, TOP_KEY)
        upper[:, :-1] = np.where(valid[:, 1:], nodes.keys[:, 1:] - _ONE, np.uint64(TOP_KEY))
        low, high = self.low[children], self.high[children]
        found: Mask = valid & (children > 0) & (self.height[children] == height) & (self.entries[children] > 0)
        inside: Mask = found & (low >= nodes.keys) & (high <= upper)
        near = found & (low <= upper) & (high >= nodes.keys)
        near[:, 1:] &= ~found[:, :-1] | (low[:, 1:] > high[:, :-1])
        near[:, :-1] &= ~found[:, 1:] | (high[:, :-1] < low[:, 1:])
        return inside | near, inside


def measure(store: MetadataStore, scan: Scan, data_nr_blocks: int) -> Shapes:
    """Heights and soundness of all nodes of `scan`."""
    size = scan.nr_blocks
    shapes = Shapes(
        store,
        scan,
        height=np.full(size, UNKNOWN),
        leaf_kind=np.zeros(size, dtype=np.uint8),
        sound=np.zeros(size, dtype=bool),
        upper=np.zeros(size, dtype=bool),
        entries=scan.count.copy(),
        low=scan.low.copy(),
        high=scan.high.copy(),
    )
    for what in LEAF_KINDS:
        leaves = np.flatnonzero(scan.what == what)
        shapes.height[leaves], shapes.leaf_kind[leaves], shapes.sound[leaves] = 0, what, True
    _judge_leaves(shapes, data_nr_blocks)
    left = scan.all_of(What.BRANCH)
    up, down = range(1, MAX_DEPTH), range(MAX_DEPTH - 1, 0, -1)
    for heights, least in ((up, _MOST), (down, _ANY), (up, _MOST), (down, _ANY)):
        for height in heights:
            for nodes in shapes.read(left, False):
                _place(shapes, nodes, height, least)
            left = left[shapes.height[left.astype(np.int64)] == UNKNOWN]
    return shapes


def _judge_leaves(shapes: Shapes, data_nr_blocks: int) -> None:
    """Which leaves have data blocks out of range, and which could be those of a top-level tree."""
    is_node = np.isin(shapes.scan.what, (What.BRANCH, What.MAPPINGS))
    for nodes in shapes.read(shapes.scan.all_of(What.MAPPINGS), True):
        places, valid = nodes.blocks.astype(np.int64), nodes.mask()
        shapes.sound[places] = ~(valid & (data_blocks(nodes.values) >= data_nr_blocks)).any(axis=1)
        inside = nodes.values < len(is_node)
        leads = inside & is_node[np.where(inside, nodes.values, 0).astype(np.int64)] & (nodes.keys < DEV_ID_LIMIT)
        shapes.upper[places] = (leads | ~valid).all(axis=1) & (nodes.count > 0)


def _place(shapes: Shapes, nodes: Nodes, height: int, least: float) -> None:
    """Give `height` to those of the branches of whose nodes more than the part `least` fit below it."""
    valid, children = nodes.mask(), shapes.children(nodes)
    known = valid & (children > 0) & np.isin(shapes.scan.what[children], (What.BRANCH, *LEAF_KINDS))
    fits, inside = shapes.fits(nodes, height - 1)
    rows = np.flatnonzero(fits.sum(axis=1) > least * known.sum(axis=1))
    if not len(rows):
        return
    first = fits.argmax(axis=1)
    last = INTERNAL_MAX - 1 - fits[:, ::-1].argmax(axis=1)
    kind = shapes.leaf_kind[children[np.arange(len(children)), first]]
    fits &= shapes.leaf_kind[children] == kind[:, None]
    full = shapes.scan.count[children] >= _least(kind, height)[:, None]
    whole = (fits & inside & shapes.sound[children] & full) | ~valid
    places = nodes.blocks.astype(np.int64)[rows]
    shapes.leaf_kind[places] = kind[rows]
    shapes.sound[places] = whole[rows].all(axis=1)
    shapes.upper[places] = ((fits & shapes.upper[children]) | ~valid)[rows].all(axis=1)
    entries = np.where(fits, shapes.entries[children], 0)[rows].sum(axis=1)
    shapes.entries[places] = np.minimum(entries, _ENTRIES_MAX)
    shapes.low[places] = shapes.low[children[rows, first[rows]]]
    shapes.high[places] = shapes.high[children[rows, last[rows]]]
    shapes.height[places] = height


def _least(kind: npt.NDArray[np.uint8], height: int) -> npt.NDArray[np.int64]:
    """How many entries a child must have that isn't a root, by the kind of its leaves."""
    if height > 1:
        return np.full(len(kind), INTERNAL_MAX // 3, dtype=np.int64)
    table = np.zeros(max(What) + 1, dtype=np.int64)
    for what, tree in LEAF_KINDS.items():
        table[what] = tree.leaf_max // 3
    return table[kind]
