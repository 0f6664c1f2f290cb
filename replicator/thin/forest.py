"""All trees of one kind at once, each distinct node visited once: how thin/check counts references.

Snapshots share nodes, so trees are a forest whose trunks meet further down; a node counts its children once, however
many trees reach it. Nodes are visited by height, the highest first, so that all parents of a node come before it; then,
if nothing was damaged, internal nodes once more from below, for what their subtrees hold.

Invariants
  F1  A node is read at one height only; one that is reached at two heights, or as two kinds, is damage.
  F2  Height falls from round to round, from at most MAX_DEPTH: cycles end, and are damage.
  F3  A damaged node is reported and left out; what can be read beside it is.
  F4  Memory: some arrays with one entry for each metadata block, and _NODES decoded nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from replicator.errors import FormatError
from replicator.pdata.block import Words
from replicator.pdata.node import INTERNAL_MAX, Nodes, TreeKind
from replicator.pdata.store import MetadataStore
from replicator.pdata.tree import MAX_DEPTH
from replicator.thin.report import FindingKind, Findings, Severity

_NODES = 512
_NOBODY, _UNKNOWN = np.uint8(0), np.uint8(255)
_ONE32 = np.uint32(1)
_ONE64 = np.uint64(1)
_TOP = np.uint64(0xFFFFFFFFFFFFFFFF)

VisitNodes = Callable[[Nodes], None]


def ignore_nodes(_: Nodes) -> None:
    """The visit of those who only want the references counted."""


class Census:
    """Who refers to which metadata block: one count and one owner for each, filled by all that a check reads."""

    def __init__(self, store: MetadataStore, findings: Findings) -> None:
        self.store = store
        self.findings = findings
        self.references = np.zeros(store.nr_blocks, dtype=np.uint32)
        self._owner = np.zeros(store.nr_blocks, dtype=np.uint8)
        self._owners: list[str] = ["nothing"]

    def refer(self, blocks: Words, why: str) -> Words:
        """One more reference to each of `blocks` (repeats count); returns those that lie on the device."""
        inside = (blocks > 0) & (blocks < self.store.nr_blocks)
        for block in blocks[~inside][:1].tolist():
            expected = f"a metadata block in 1..{self.store.nr_blocks - 1}"
            self.findings.add(Severity.DAMAGE, FindingKind.NODE, why, expected, block, count=int((~inside).sum()))
        good: Words = blocks[inside]
        np.add.at(self.references, good.astype(np.int64), _ONE32)
        return good

    def claim(self, blocks: Words, owner: str) -> Words:
        """Those of the distinct `blocks` that nothing else had claimed; the others are damage."""
        if owner not in self._owners:
            self._owners.append(owner)
        mark = np.uint8(self._owners.index(owner))
        before = self._owner[blocks.astype(np.int64)]
        taken = before != _NOBODY
        for block, other in zip(blocks[taken][:1].tolist(), before[taken][:1].tolist(), strict=True):
            where = f"metadata block {block}"
            expected, found = f"{owner} only", f"{self._owners[other]} too"
            kind = FindingKind.BLOCK_USED_TWICE
            self.findings.add(Severity.DAMAGE, kind, where, expected, found, count=int(taken.sum()))
        ours: Words = blocks[~taken]
        self._owner[ours.astype(np.int64)] = mark
        return ours


@dataclass(slots=True)
class Subtrees:
    """What is below each block of a sound forest: entries, lowest and highest key (only where entries > 0)."""

    entries: npt.NDArray[np.int64]
    low: Words
    high: Words


class Forest:
    """The trees of one kind under `roots` (references to the roots are the caller's to count)."""

    def __init__(self, census: Census, kind: TreeKind, roots: Words) -> None:
        self.census, self.kind = census, kind
        self.sound = True
        roots = np.unique(roots)
        self.roots = roots[(roots > 0) & (roots < census.store.nr_blocks)]
        self._height = np.full(census.store.nr_blocks, _UNKNOWN)
        self._is_child = np.zeros(census.store.nr_blocks, dtype=bool)
        self._by_height: list[Words] = []
        size = census.store.nr_blocks
        self._below = Subtrees(np.zeros(size, np.int64), np.zeros(size, np.uint64), np.zeros(size, np.uint64))

    def visit(self, on_leaves: VisitNodes, on_branches: VisitNodes = ignore_nodes) -> None:
        """Read all distinct nodes, parents first, count their references, and show them to the caller."""
        self._measure_roots()
        known = self._height[self.roots.astype(np.int64)]
        highest = int(known[known != _UNKNOWN].max(initial=0))
        below: Words = np.empty(0, dtype=np.uint64)
        rounds: list[Words] = []
        for height in range(highest, -1, -1):
            front = np.unique(np.concatenate((self.roots[known == height], below)))
            rounds.append(self.census.claim(front, f"the {self.kind.name}"))
            self.sound &= len(rounds[-1]) == len(front)
            children = [
                self._enter(nodes, height, on_leaves, on_branches) for nodes in self._nodes(rounds[-1], height == 0)
            ]
            below = np.unique(np.concatenate(children)) if children else below[:0]
        self._by_height = rounds[::-1]

    def _enter(self, nodes: Nodes, height: int, on_leaves: VisitNodes, on_branches: VisitNodes) -> Words:
        self._check_fill(nodes)
        if nodes.leaf:
            self._measure_leaves(nodes)
            on_leaves(nodes)
            return np.empty(0, dtype=np.uint64)
        on_branches(nodes)
        why = f"{self.kind.name}, below metadata block {int(nodes.blocks[0])} or a neighbour"
        entries = nodes.flat()[1]
        children = self.census.refer(entries, why)
        self.sound &= len(children) == len(entries)
        places = children.astype(np.int64)
        wrong = (self._height[places] != _UNKNOWN) & (self._height[places] != height - 1)
        if wrong.any():
            where = f"{self.kind.name}, metadata block {int(children[wrong][0])}"
            self._damage(FindingKind.NODE, where, "all leaves at one depth", "a node at two heights", int(wrong.sum()))
        children = children[~wrong]
        self._height[children.astype(np.int64)] = height - 1
        self._is_child[children.astype(np.int64)] = True
        return np.unique(children)

    def _check_fill(self, nodes: Nodes) -> None:
        least = (self.kind.leaf_max if nodes.leaf else INTERNAL_MAX) // 3
        thin = self._is_child[nodes.blocks.astype(np.int64)] & (nodes.count < least)
        for row in np.flatnonzero(thin)[:1].tolist():
            where = f"{self.kind.name}, metadata block {int(nodes.blocks[row])}"
            expected, found = f"at least {least} entries", str(int(nodes.count[row]))
            self.census.findings.add(
                Severity.DAMAGE, FindingKind.NODE_FILL, where, expected, found, count=int(thin.sum())
            )

    def _damage(self, kind: FindingKind, where: str, expected: str, found: str, count: int = 1) -> None:
        self.sound = False
        self.census.findings.add(Severity.DAMAGE, kind, where, expected, found, count=count)

    def _measure_roots(self) -> None:
        """Give each root its height, all left edges at once."""
        edge, owner = self.roots, np.arange(len(self.roots))
        for depth in range(MAX_DEPTH):
            following: list[tuple[Words, npt.NDArray[np.int64]]] = []
            for nodes in self._nodes(np.unique(edge), None):
                place = np.searchsorted(nodes.blocks, edge)
                mine = (place < len(nodes.blocks)) & (nodes.blocks[np.minimum(place, len(nodes.blocks) - 1)] == edge)
                if nodes.leaf:
                    self._height[self.roots[owner[mine]].astype(np.int64)] = depth
                else:
                    following.append((nodes.values[place[mine], 0], owner[mine]))
            if not following:
                return
            edge, owner = (np.concatenate(part) for part in zip(*following, strict=True))
        where = f"{self.kind.name}, root {int(self.roots[owner[0]])}"
        self._damage(FindingKind.NODE, where, f"at most {MAX_DEPTH} levels", "more")

    def _nodes(self, blocks: Words, leaf: bool | None) -> Iterator[Nodes]:
        """The nodes that can be read, in pieces of one kind each; `leaf` says which it must be (None: either)."""
        for start in range(0, len(blocks), _NODES):
            yield from self._readable(blocks[start : start + _NODES], leaf)

    def _readable(self, blocks: Words, leaf: bool | None) -> Iterator[Nodes]:
        """Halve a batch until the damaged ones stand alone."""
        try:
            nodes = self.census.store.read_nodes(blocks, self.kind)
        except FormatError as error:
            if len(blocks) > 1:
                middle = len(blocks) // 2
                yield from self._readable(blocks[:middle], leaf)
                yield from self._readable(blocks[middle:], leaf)
            else:
                self._damage(FindingKind.NODE, error.where, error.expected, error.found)
            return
        if leaf is not None and nodes.leaf != leaf:
            found = "a leaf" if nodes.leaf else "an internal node"
            where = f"{self.kind.name}, metadata block {int(blocks[0])}"
            self._damage(FindingKind.NODE, where, "all leaves at one depth", found, len(blocks))
            return
        yield nodes

    def measure_subtrees(self) -> Subtrees | None:
        """Entries and key ranges below each node, checked against their parents' keys; None in a damaged forest."""
        if not self.sound:
            return None
        for blocks in self._by_height[1:]:
            for nodes in self._nodes(blocks, False):
                self._measure_branches(nodes, self._below)
        return self._below if self.sound else None

    def _measure_leaves(self, nodes: Nodes) -> None:
        places, below = nodes.blocks.astype(np.int64), self._below
        below.entries[places] = nodes.count
        below.low[places] = nodes.keys[:, 0]
        below.high[places] = nodes.keys[np.arange(len(places)), np.maximum(nodes.count, 1) - 1]

    def _measure_branches(self, nodes: Nodes, below: Subtrees) -> None:
        keys, children = nodes.flat()
        places = children.astype(np.int64)
        ends = np.cumsum(nodes.count)
        starts = ends - nodes.count
        largest = np.empty_like(keys)
        largest[:-1] = keys[1:] - _ONE64
        largest[ends - 1] = _TOP
        wrong = (below.entries[places] == 0) | (below.low[places] < keys) | (below.high[places] > largest)
        for at in np.flatnonzero(wrong)[:1].tolist():
            where = f"{self.kind.name}, metadata block {int(children[at])}"
            expected = f"keys in {int(keys[at])}..{int(largest[at])}, as its parent says"
            found = (
                f"{int(below.low[places[at]])}..{int(below.high[places[at]])}, {int(below.entries[places[at]])} entries"
            )
            self._damage(FindingKind.KEY_RANGE, where, expected, found, int(wrong.sum()))
        owners = nodes.blocks.astype(np.int64)
        below.entries[owners] = np.add.reduceat(below.entries[places], starts)
        below.low[owners] = below.low[places[starts]]
        below.high[owners] = below.high[places[ends - 1]]
