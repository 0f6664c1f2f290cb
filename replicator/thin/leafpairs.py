"""Compares leaves of two mapping trees: as arrays where their keys agree, by a merge otherwise.

The inner loop of thin/diff; pure. Overwrites leave a leaf's keys as they are, so that most pairs need one comparison of
two arrays; inserted or discarded blocks, and other ways of dealing entries out to leaves, go to the merge.

Invariants
  L1  Keys of one side ascend over all its leaves (thin/diff has checked their ranges).
  L2  A leaf that finds a twin with the same keys on the other side is compared with it alone: no other leaf has them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from replicator.pdata.node import Nodes
from replicator.thin.mapping import TIME_BITS, Packed

NO_BLOCK = np.uint64(0xFFFFFFFFFFFFFFFF)  # "not mapped on this side"; data blocks have 40 bits
_SHIFT = np.uint64(TIME_BITS)
_ONE_BLOCK = np.uint64(1 << TIME_BITS)
_DENSE_SPAN = 4  # keys are placed by number where their range is at most this many times their count, 32 B a key
_EMPTY: Packed = np.empty(0, dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class BlockChanges:
    """Virtual blocks that differ, ascending, with their data blocks in base and target (NO_BLOCK where unmapped)."""

    virtual_blocks: Packed
    base: Packed
    target: Packed

    def __len__(self) -> int:
        return len(self.virtual_blocks)

    def kinds(self) -> npt.NDArray[np.uint8]:
        """0 changed, 1 added, 2 removed (thin/diff names them)."""
        kinds = np.zeros(len(self.virtual_blocks), dtype=np.uint8)
        kinds[self.base == NO_BLOCK] = 1
        kinds[self.target == NO_BLOCK] = 2
        return kinds

    def base_blocks(self) -> Packed:
        """The data blocks of the base among them."""
        blocks: Packed = self.base[self.base != NO_BLOCK]
        return blocks

    def target_blocks(self) -> Packed:
        """The data blocks of the target among them: what a reader of the new content reads."""
        blocks: Packed = self.target[self.target != NO_BLOCK]
        return blocks


def compare_leaves(base: Nodes | None, target: Nodes | None, low: np.uint64, high: np.uint64) -> BlockChanges:
    """What differs with keys in [low, high]; a side that has no leaves there is None."""
    if base is None or target is None or not base.count.all() or not target.count.all():
        return _clip(_merge(*_entries(base), *_entries(target)), low, high)
    base_rows, target_rows = _twins(base, target)
    all_base, all_target = len(base_rows) == len(base.count), len(target_rows) == len(target.count)
    paired = _compare_twins(base, target, base_rows, target_rows)
    if all_base and all_target:
        return _clip(paired, low, high)
    rest = _merge(*_entries(base, base_rows), *_entries(target, target_rows))
    return _clip(_in_order(paired, rest), low, high)


def _twins(base: Nodes, target: Nodes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows of base and of target that have the same keys."""
    base_firsts, target_firsts = base.keys[:, 0], target.keys[:, 0]
    place = np.minimum(np.searchsorted(base_firsts, target_firsts), len(base_firsts) - 1)
    found = (base_firsts[place] == target_firsts) & (base.count[place] == target.count)
    target_rows = np.flatnonzero(found)
    base_rows = place[target_rows]
    differ = _take(base.keys, base_rows) != _take(target.keys, target_rows)
    if not differ.any():
        return base_rows, target_rows
    if int(target.count.min()) < target.keys.shape[1]:
        differ &= target.mask()[target_rows]
    same = ~differ.any(axis=1)
    return base_rows[same], target_rows[same]


def _take(array: Packed, rows: npt.NDArray[np.int64]) -> Packed:
    """`array[rows]`, without a copy where that is the whole array."""
    whole = len(rows) == len(array) and (not len(rows) or rows[-1] == len(rows) - 1)
    return array if whole else array[rows]


def _compare_twins(
    base: Nodes, target: Nodes, base_rows: npt.NDArray[np.int64], target_rows: npt.NDArray[np.int64]
) -> BlockChanges:
    old, new = _take(base.values, base_rows), _take(target.values, target_rows)
    differ = (old ^ new) >= _ONE_BLOCK
    if int(target.count.min()) < target.keys.shape[1]:
        differ &= target.mask()[target_rows]
    row, slot = np.divmod(np.flatnonzero(differ), np.int64(differ.shape[1]))
    if not len(row):
        return BlockChanges(_EMPTY, _EMPTY, _EMPTY)
    keys = _take(target.keys, target_rows)[row, slot]
    return BlockChanges(keys, old[row, slot] >> _SHIFT, new[row, slot] >> _SHIFT)


def _entries(nodes: Nodes | None, but_rows: npt.NDArray[np.int64] | None = None) -> tuple[Packed, Packed]:
    """Keys and data blocks of the leaves, but for those of some rows, in a row."""
    if nodes is None:
        return _EMPTY, _EMPTY
    if but_rows is None or not len(but_rows):
        keys, values = nodes.flat()
        return keys, values >> _SHIFT
    rest = np.ones(len(nodes.count), dtype=bool)
    rest[but_rows] = False
    mask = nodes.mask()[rest]
    return nodes.keys[rest][mask], nodes.values[rest][mask] >> _SHIFT


def _merge(base_keys: Packed, base: Packed, target_keys: Packed, target: Packed) -> BlockChanges:
    """The changes between two ascending lists of (virtual block, data block)."""
    if not len(base_keys):
        return BlockChanges(target_keys, np.full(len(target_keys), NO_BLOCK), target)
    if not len(target_keys):
        return BlockChanges(base_keys, base, np.full(len(base_keys), NO_BLOCK))
    first = min(base_keys[0], target_keys[0])
    span = int(max(base_keys[-1], target_keys[-1])) - int(first) + 1
    if span <= _DENSE_SPAN * (len(base_keys) + len(target_keys)):
        places = np.full((2, span), NO_BLOCK)
        places[0, (base_keys - first).view(np.int64)] = base
        places[1, (target_keys - first).view(np.int64)] = target
        keys = np.flatnonzero(places[0] != places[1])
        return BlockChanges(keys.astype(np.uint64) + first, places[0, keys], places[1, keys])
    return _merge_sparse(base_keys, base, target_keys, target)


def _merge_sparse(base_keys: Packed, base: Packed, target_keys: Packed, target: Packed) -> BlockChanges:
    keys = np.union1d(base_keys, target_keys)
    both = np.full((2, len(keys)), NO_BLOCK)
    both[0, np.searchsorted(keys, base_keys)] = base
    both[1, np.searchsorted(keys, target_keys)] = target
    differ = np.flatnonzero(both[0] != both[1])
    return BlockChanges(keys[differ], both[0, differ], both[1, differ])


def _in_order(one: BlockChanges, other: BlockChanges) -> BlockChanges:
    if not len(one) or not len(other):
        return one if len(one) else other
    keys = np.concatenate((one.virtual_blocks, other.virtual_blocks))
    order = np.argsort(keys, kind="stable")
    old, new = np.concatenate((one.base, other.base)), np.concatenate((one.target, other.target))
    return BlockChanges(keys[order], old[order], new[order])


def _clip(changes: BlockChanges, low: np.uint64, high: np.uint64) -> BlockChanges:
    keys = changes.virtual_blocks
    if not len(keys) or (keys[0] >= low and keys[-1] <= high):
        return changes
    part = slice(int(np.searchsorted(keys, low)), int(np.searchsorted(keys, high, side="right")))
    return BlockChanges(keys[part], changes.base[part], changes.target[part])
