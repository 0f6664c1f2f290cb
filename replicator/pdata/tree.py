"""Reading B-trees: looking up many keys at once, and walking a range leaf by leaf.

Used by thin/ for mappings and by space maps; the writing side is pdata/update. Level by level, so that a
level's nodes come in one batch of coalesced reads.

Invariants
  T1  Depth is bounded by MAX_DEPTH, so a cycle ends in a FormatError, not in a hang.
  T2  A walk visits at most as many nodes as the device has blocks: a node that is its own cousin ends it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from replicator.errors import FormatError
from replicator.pdata.block import Words
from replicator.pdata.node import Nodes, TreeKind
from replicator.pdata.store import MetadataStore

MAX_DEPTH = 16  # 252 ** 16 is beyond any 64-bit key space that a pool can hold; a legal tree needs 8 at half fill
_KEY_LIMIT = 1 << 64
_WALK_NODES = 1024  # leaves decoded at once on a walk: 4 MiB
_TOP = np.uint64(0xFFFFFFFFFFFFFFFF)


def _too_deep(store: MetadataStore, kind: TreeKind, root: int) -> FormatError:
    return FormatError(f"{store.device.name}, {kind.name} at block {root}", f"at most {MAX_DEPTH} levels", "more")


def lookup(store: MetadataStore, root: int, keys: Words, kind: TreeKind) -> tuple[npt.NDArray[np.bool_], Any]:
    """Look up sorted, distinct `keys`: (found mask, values of the tree's dtype; undefined where not found)."""
    found = np.zeros(len(keys), dtype=bool)
    values = np.zeros(len(keys), dtype=kind.dtype)
    if not len(keys):
        return found, values
    owner = np.zeros(len(keys), dtype=np.int64)
    blocks = np.array([root], dtype=np.uint64)
    alive = np.arange(len(keys))
    for _ in range(MAX_DEPTH):
        nodes = store.read_nodes(blocks, kind)
        slot = search_slots(nodes, owner, keys[alive])
        ok = slot >= 0
        owner, slot, alive = owner[ok], slot[ok], alive[ok]
        if nodes.leaf:
            hit = nodes.keys[owner, slot] == keys[alive]
            found[alive[hit]] = True
            values[alive[hit]] = nodes.values[owner[hit], slot[hit]]
            return found, values
        children = nodes.values[owner, slot]
        if not len(children):
            return found, values
        edge = np.concatenate(([True], children[1:] != children[:-1]))
        blocks = children[edge]
        owner = np.cumsum(edge) - 1
    raise _too_deep(store, kind, root)


def search_slots(nodes: Nodes, owner: npt.NDArray[np.int64], keys: Words) -> npt.NDArray[np.int64]:
    """For each key the last slot of its node with slot key <= key, or -1; `owner` ascending, keys ascending."""
    if len(nodes.count) == 1:
        return np.searchsorted(nodes.keys[0, : int(nodes.count[0])], keys, side="right") - 1
    # keys of one level ascend across its nodes, so that one search over all of them in a row will do
    mask = nodes.mask()
    flat = nodes.keys[mask]
    starts = np.concatenate(([0], np.cumsum(nodes.count)[:-1]))
    slot: npt.NDArray[np.int64] = np.searchsorted(flat, keys, side="right") - 1 - starts[owner]
    return np.minimum(slot, nodes.count[owner] - 1)


def lookup_one(store: MetadataStore, root: int, key: int, kind: TreeKind) -> Any | None:
    """The value of `key`, or None: of one that no tree can have, too."""
    if not 0 <= key < _KEY_LIMIT:
        return None
    block = np.array([root], dtype=np.uint64)
    for _ in range(MAX_DEPTH):
        nodes = store.read_nodes(block, kind)
        slot = int(nodes.keys[0, : int(nodes.count[0])].searchsorted(np.uint64(key), side="right")) - 1
        if slot < 0:
            return None
        if nodes.leaf:
            return nodes.values[0, slot] if nodes.keys[0, slot] == key else None
        block = nodes.values[0, slot : slot + 1]
    raise _too_deep(store, kind, root)


def leaf_count(store: MetadataStore, root: int, kind: TreeKind) -> int:
    """How many leaves the tree has; only the first leaf is read."""
    level = np.array([root], dtype=np.uint64)
    for _ in range(MAX_DEPTH):
        if store.read_nodes(level[:1], kind).leaf:
            return len(level)
        level = np.concatenate(
            [store.read_nodes(level[at : at + _WALK_NODES], kind).flat()[1] for at in range(0, len(level), _WALK_NODES)]
        )
        if len(level) > store.nr_blocks:
            break
    raise _too_deep(store, kind, root)


def leaf_bound(store: MetadataStore, root: int, kind: TreeKind, span: tuple[int, int], leaves: int) -> int:
    """The largest key up to the end of [begin, end) = `span` that leaves [begin, key) in `leaves` leaves at most.

    Reads the inner nodes above that many leaves, and one leaf.
    """
    low, high, bound = np.uint64(span[0]), np.uint64(span[1] - 1), span[1]
    blocks = np.array([root], dtype=np.uint64)
    for _ in range(MAX_DEPTH):
        if not blocks.size or store.read_nodes(blocks[:1], kind).leaf:
            return bound
        keys, values = store.read_nodes(blocks, kind).flat()
        first = max(int(np.searchsorted(keys, low, side="right")) - 1, 0)
        last = int(np.searchsorted(keys, high, side="right"))
        if last - first > leaves:
            last = first + leaves
            bound = int(keys[last])
        blocks = values[first:last]
    raise _too_deep(store, kind, root)


def walk(
    store: MetadataStore, root: int, kind: TreeKind, begin: int = 0, end: int | None = None
) -> Iterator[tuple[Words, npt.NDArray[Any]]]:
    """Keys and values of [begin, end), ascending, in pieces of up to 1,024 leaves; bounded memory at any size."""
    high = _TOP if end is None else np.uint64(max(end - 1, 0))
    if end is not None and end <= begin:
        return
    yield from _Walk(store, root, kind, np.uint64(begin), high).below(np.array([root], dtype=np.uint64), MAX_DEPTH)


class _Walk:
    """One walk over [low, high]: what it may still read before the tree must be a cycle."""

    def __init__(self, store: MetadataStore, root: int, kind: TreeKind, low: np.uint64, high: np.uint64) -> None:
        self.store, self.root, self.kind, self.low, self.high = store, root, kind, low, high
        self.budget = store.nr_blocks

    def read(self, blocks: Words, depth: int) -> Nodes:
        self.budget -= len(blocks)
        if not depth or self.budget < 0:
            raise _too_deep(self.store, self.kind, self.root)
        return self.store.read_nodes(blocks, self.kind)

    def below(self, blocks: Words, depth: int) -> Iterator[tuple[Words, npt.NDArray[Any]]]:
        """Leaf entries in range under `blocks`, neighbouring nodes of one level."""
        low, high = self.low, self.high
        for start in range(0, len(blocks), _WALK_NODES):
            nodes = self.read(blocks[start : start + _WALK_NODES], depth)
            yield from self._entries(nodes, depth, low, high)

    def _entries(
        self, nodes: Nodes, depth: int, low: np.uint64, high: np.uint64
    ) -> Iterator[tuple[Words, npt.NDArray[Any]]]:
        keys, values = nodes.flat()
        if nodes.leaf:
            inside = slice(int(np.searchsorted(keys, low)), int(np.searchsorted(keys, high, side="right")))
            if inside.stop > inside.start:
                yield keys[inside], values[inside]
            return
        first = max(int(np.searchsorted(keys, low, side="right")) - 1, 0)
        last = int(np.searchsorted(keys, high, side="right"))
        if last > first:
            yield from self.below(values[first:last], depth - 1)
