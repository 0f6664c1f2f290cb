"""What roots lead to in spite of damage, and which subtrees nobody leads to any more though they are in use.

Third step of thin/repair. A branch that was destroyed leaves a gap in its parent, and its children without anybody who
names them; the metadata's own reference counts, where they can be read, tell them from what was freed long ago:

    reference missing    count in the metadata space map > references found from all that can be reached
    orphan               a node with a reference missing that no other such node leads to
    gap                  a slot of a reached branch whose child doesn't fit (thin/repair_shapes)

An orphan is put into a gap only where nothing else could be meant (T2): another volume's data in a volume would be
worse than a hole, which reads as zeros and is named.

Invariants
  T1  A node is counted once, however many roots reach it; heights fall, so that cycles end.
  T2  What goes into a gap lies within its keys, has the height that what is missing there leaves, overlaps nothing
      else that would go there, and fits no more gaps than it has references missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from replicator.pdata.block import Words
from replicator.pdata.node import INTERNAL_MAX, Nodes
from replicator.pdata.tree import MAX_DEPTH
from replicator.thin.repair_scan import LEAF_KINDS, What
from replicator.thin.repair_shapes import TOP_KEY, UNKNOWN, Mask, Shapes

GAPS_MAX = 65_536  # gaps that orphans are looked for: beyond, the pool is ruined, and all that is in sight is saved
Range = tuple[int, int]
"""First and last virtual block (or device id), both inside."""
Fills = Mapping[tuple[int, int], tuple[int, ...]]
"""Orphans to be put into gaps, by the gap's branch and slot."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A slot whose child is missing: keys first..last, the child's number as it stands there, and its height."""

    branch: int
    slot: int
    first: int
    last: int
    child: int
    height: int


@dataclass(slots=True)
class Reached:
    """What all roots lead to: `references` from distinct nodes, and the first GAPS_MAX gaps."""

    references: npt.NDArray[np.int64]
    seen: Mask
    gaps: list[Gap] = field(default_factory=list)

    @classmethod
    def nothing(cls, size: int) -> Reached:
        return cls(np.zeros(size, dtype=np.int64), np.zeros(size, dtype=bool))


def reach(shapes: Shapes, roots: Words, reached: Reached) -> None:
    """Follow the distinct nodes below `roots` (whose own references the caller counts)."""
    last = np.full(len(shapes.height), TOP_KEY, dtype=np.uint64)
    front = np.zeros(len(shapes.height), dtype=bool)
    front[roots.astype(np.int64)] = True
    for height in range(MAX_DEPTH - 1, -1, -1):
        blocks = np.flatnonzero(front & (shapes.height == height) & ~reached.seen)
        reached.seen[blocks] = True
        if not height:
            return
        for nodes in shapes.read(blocks.astype(np.uint64), False):
            fits = _fitting(shapes, nodes, height)
            children = nodes.values[fits].astype(np.int64)
            np.add.at(reached.references, children, 1)
            front[children] = True
            last[children] = _slot_ends(nodes, last)[fits]
            _note_gaps(reached, nodes, fits, last, height)


def _fitting(shapes: Shapes, nodes: Nodes, height: int) -> Mask:
    kind = shapes.leaf_kind[nodes.blocks.astype(np.int64)]
    fits, _ = shapes.fits(nodes, height - 1)
    found: Mask = fits & (shapes.leaf_kind[shapes.children(nodes)] == kind[:, None])
    return found


def _slot_ends(nodes: Nodes, last: Words) -> Words:
    """The last key of each slot, shape (n, 252): the next slot's less one, or the branch's own."""
    ends = np.full_like(nodes.keys, TOP_KEY)
    ends[:, :-1] = nodes.keys[:, 1:] - np.uint64(1)
    rows = np.arange(len(ends))
    ends[rows, nodes.count - 1] = last[nodes.blocks.astype(np.int64)]
    return ends


def _note_gaps(reached: Reached, nodes: Nodes, fits: Mask, last: Words, height: int) -> None:
    missing = nodes.mask() & ~fits
    room = GAPS_MAX - len(reached.gaps)
    if not missing.any() or room <= 0:
        return
    ends = _slot_ends(nodes, last)
    for row, slot in np.argwhere(missing)[:room].tolist():
        key, child = int(nodes.keys[row, slot]), int(nodes.values[row, slot])
        reached.gaps.append(Gap(int(nodes.blocks[row]), slot, key, int(ends[row, slot]), child, height - 1))


def find_orphans(shapes: Shapes, family: Mask, counts: npt.NDArray[np.int64], reached: Reached) -> Words:
    """Blocks of `family` with a reference missing, once those of the orphans among them are counted; highest first."""
    for height in range(MAX_DEPTH - 1, -1, -1):
        here = family & (shapes.height == height) & ~reached.seen & (counts > reached.references)
        reach_only(shapes, np.flatnonzero(here).astype(np.uint64), height, reached)
    found = np.flatnonzero(family & reached.seen & (counts > reached.references))
    return found[np.argsort(-shapes.height[found].astype(np.int64), kind="stable")].astype(np.uint64)


def reach_only(shapes: Shapes, blocks: Words, height: int, reached: Reached) -> None:
    """Count the references of orphans of one height; their children are looked at as all others of theirs."""
    reached.seen[blocks.astype(np.int64)] = True
    if not height:
        return
    for nodes in shapes.read(blocks, False):
        children = nodes.values[_fitting(shapes, nodes, height)].astype(np.int64)
        np.add.at(reached.references, children, 1)
        new = np.unique(children[~reached.seen[children]]).astype(np.uint64)
        if len(new):
            reach(shapes, new, reached)


@dataclass(frozen=True, slots=True)
class Placing:
    """What was put where, and the orphans that fit a gap but might not be meant."""

    fills: dict[tuple[int, int], tuple[int, ...]]
    ambiguous: frozenset[int]


def place(shapes: Shapes, orphans: Words, missing: npt.NDArray[np.int64], gaps: list[Gap]) -> Placing:
    """Put orphans into gaps (T2); `missing` says how many references each block lacks."""
    order = np.argsort(shapes.low[orphans.astype(np.int64)], kind="stable")
    ordered = orphans[order].astype(np.int64)
    low, high = shapes.low[ordered], shapes.high[ordered]
    wanted: dict[tuple[int, int], list[int]] = {}
    uses: Counter[int] = Counter()
    for gap in gaps:
        begin = int(np.searchsorted(low, np.uint64(gap.first)))
        end = int(np.searchsorted(low, np.uint64(gap.last), side="right"))
        if end - begin > INTERNAL_MAX:
            continue  # more than one branch has children: who knows which of them are meant
        inside = [
            block
            for block, top in zip(ordered[begin:end].tolist(), high[begin:end].tolist(), strict=True)
            if top <= gap.last and int(shapes.height[block]) in _heights_wanted(shapes, gap) and _is_full(shapes, block)
        ]
        if inside:
            wanted[gap.branch, gap.slot] = inside
            uses.update(inside)
    fills: dict[tuple[int, int], tuple[int, ...]] = {}
    for key, blocks in wanted.items():
        lonely = tuple(b for b in _apart(shapes, blocks) if uses[b] <= missing[b])
        if lonely:
            fills[key] = lonely
    return Placing(fills, frozenset(uses) - {block for blocks in fills.values() for block in blocks})


def _heights_wanted(shapes: Shapes, gap: Gap) -> tuple[int, ...]:
    """A destroyed child leaves its children, one below it; a wrong number, or a lie, leaves the child itself too."""
    child = gap.child if gap.child < len(shapes.height) else 0
    destroyed = child and shapes.height[child] == UNKNOWN
    return (gap.height - 1,) if destroyed else (gap.height, gap.height - 1)


def _is_full(shapes: Shapes, block: int) -> bool:
    """Whether it may stand below a branch: what is shorter is the root of a tree of its own."""
    limit = LEAF_KINDS[What(int(shapes.scan.what[block]))].leaf_max if not shapes.height[block] else INTERNAL_MAX
    return bool(shapes.scan.count[block] >= limit // 3)


def _apart(shapes: Shapes, blocks: list[int]) -> list[int]:
    """Those of the blocks (ascending by lowest key) whose keys overlap no other's."""
    low, high = shapes.low[blocks], shapes.high[blocks]
    before = np.maximum.accumulate(high)
    clear = np.ones(len(blocks), dtype=bool)
    clear[1:] &= low[1:] > before[:-1]
    clear[:-1] &= high[:-1] < low[1:]
    return [block for block, is_clear in zip(blocks, clear.tolist(), strict=True) if is_clear]


@dataclass(frozen=True, slots=True)
class Branchless:
    """The leaves of one tree, ascending by key, and the keys that are lost."""

    leaves: Words
    lost: list[Range]


def leaves_of(shapes: Shapes, root: int, fills: Fills) -> Branchless:
    """All leaves below `root` that can be reached, with what was put into gaps."""
    fronts: dict[int, list[tuple[int, int]]] = {int(shapes.height[root]): [(root, TOP_KEY)]}
    lost: list[Range] = []
    for height in range(int(shapes.height[root]), 0, -1):
        front = dict(fronts.pop(height, ()))
        last = np.zeros(len(shapes.height) if front else 0, dtype=np.uint64)
        blocks = np.array(sorted(front), dtype=np.uint64)
        if len(blocks):
            last[blocks.astype(np.int64)] = [front[block] for block in blocks.tolist()]
        for nodes in shapes.read(blocks, False):
            fits, ends = _fitting(shapes, nodes, height), _slot_ends(nodes, last)
            below = zip(nodes.values[fits].tolist(), ends[fits].tolist(), strict=True)
            fronts.setdefault(height - 1, []).extend(below)
            for row, slot in np.argwhere(nodes.mask() & ~fits).tolist():
                gap = int(nodes.keys[row, slot]), int(ends[row, slot])
                tops = fills.get((int(nodes.blocks[row]), slot), ())
                for top in tops:
                    fronts.setdefault(int(shapes.height[top]), []).append((top, int(shapes.high[top])))
                lost += _uncovered(shapes, gap, tops)
    leaves = np.array(sorted({block for block, _ in fronts.get(0, ())}), dtype=np.uint64)
    return _without_overlaps(shapes, leaves[np.argsort(shapes.low[leaves.astype(np.int64)], kind="stable")], lost)


def _without_overlaps(shapes: Shapes, leaves: Words, lost: list[Range]) -> Branchless:
    """Leaves of neighbouring branches can overlap where a slot was wider than it said: the first one stays."""
    low, high = shapes.low[leaves.astype(np.int64)], shapes.high[leaves.astype(np.int64)]
    clear = np.ones(len(leaves), dtype=bool)
    clear[1:] = low[1:] > np.maximum.accumulate(high)[:-1]
    gone = [(int(low[at]), int(high[at])) for at in np.flatnonzero(~clear).tolist()]
    return Branchless(leaves[clear], lost + gone)


def _uncovered(shapes: Shapes, gap: Range, tops: tuple[int, ...]) -> list[Range]:
    first, last = gap
    left: list[Range] = []
    for low, high in sorted((int(shapes.low[top]), int(shapes.high[top])) for top in tops):
        if low > first:
            left.append((first, low - 1))
        first = high + 1
    return [*left, (first, last)] if first <= last else left


def join_ranges(ranges: list[Range]) -> tuple[Range, ...]:
    """The same keys as ascending ranges that don't touch."""
    joined: list[Range] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(last, joined[-1][1])
        else:
            joined.append((first, last))
    return tuple(joined)
