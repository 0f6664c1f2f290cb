"""How many free metadata blocks a commit may need, before anything of it is done: arithmetic over the pool's shape.

Asked by thin/engine, which admits no more mapping changes than the free metadata can take (P8), and by those who hand
in large changes. A mapped block weighs 1; a trimmed run weighs UNMAP_WEIGHT, since it cuts a leaf at either end and may
join each with a neighbour.

    what is written                     at most
    leaves                              2 for each unit of weight; never more than the trees have in the end
    nodes above                         8 for each unit (4 levels, split); never more than the trees have in the end
    data counts that copied leaves      252 for each leaf copied; each new key of the overflow tree 1/168 leaf, each
      raise to three or more            touched leaf of it once, and once more where it splits
    metadata counts, likewise           252 for each node copied
    bitmaps                             all of them, their index, the index block
    top-level and details paths         8 for each tree that changes

Invariants
  R1  worst_case(a) <= worst_case(b) for a <= b.
  R2  worst_case(a + b) <= worst_case(a) + worst_case(b): a replay in one commit needs no more than the two would have.
"""

from __future__ import annotations

from dataclasses import dataclass

from replicator.pdata.node import INTERNAL_MAX

UNMAP_WEIGHT = 4
CHANGE_BLOCKS = 16  # a snapshot, a new or deleted device, a held copy: its paths in the upper trees, split
_LEAST = INTERNAL_MAX // 3
_OVERFLOW_HALF = 168  # entries of a leaf of the overflow tree that was split
_LEVELS_ABOVE = 4  # five levels hold 350 million mappings at the least fill: more than 15.875 GiB of metadata do
_UPPER_BLOCKS = 8
_SPARE = 6  # the index block, the data bitmaps' index tree, rounding


@dataclass(frozen=True, slots=True)
class PoolShape:
    """What bounds a commit: free metadata blocks, the maps' sizes, and the mapping trees that it may change."""

    free_blocks: int
    data_blocks: int
    data_sections: int
    data_overflow_leaves: int
    metadata_allocated: int
    metadata_sections: int
    metadata_overflow_leaves: int
    mapped_blocks: int
    trees: int

    def worst_case(self, weight: int) -> int:
        """Metadata blocks that a commit of mapping changes of this weight may allocate."""
        all_leaves = (self.mapped_blocks + weight) // _LEAST + self.trees
        all_above = all_leaves // (_LEAST - 1) + 2 * self.trees
        leaves = min(2 * weight, all_leaves)
        above = min(2 * _LEVELS_ABOVE * weight, all_above)
        data_keys = min(INTERNAL_MAX * min(weight, all_leaves), self.data_blocks)
        copied = min(_LEVELS_ABOVE * weight, all_above) + self.trees + 1
        metadata_keys = min(INTERNAL_MAX * copied, self.metadata_allocated)
        overflow = _overflow(data_keys, self.data_overflow_leaves)
        overflow += _overflow(metadata_keys, self.metadata_overflow_leaves)
        bitmaps = self.data_sections + self.data_sections // (_LEAST // 2) + self.metadata_sections
        upper = _UPPER_BLOCKS * min(weight, self.trees)
        return leaves + above + overflow + bitmaps + upper + _SPARE

    def largest_weight(self, blocks: int, limit: int) -> int:
        """The largest weight up to `limit` whose worst case is at most `blocks`; -1 when not even nothing fits."""
        low, high = -1, limit
        while low < high:
            middle = (low + high + 1) // 2
            if self.worst_case(middle) <= blocks:
                low = middle
            else:
                high = middle - 1
        return low


def _overflow(keys: int, leaves: int) -> int:
    """Blocks of an overflow tree of `leaves` in which all entries, and `keys` new ones, may change."""
    written = leaves + min(keys, leaves) + -(-keys // _OVERFLOW_HALF)
    return written + (written // (_LEAST - 1) + 2 if written > 1 else 0)
