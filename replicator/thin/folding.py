"""Dirty sets into mapping trees, and onto page tables: what acknowledged changes come to.

Used by thin/engine at each commit and when it loads a stretch, by thin/opening for what a dead owner left, and by
pool/ for changes that come from outside.
"""

from __future__ import annotations

import numpy as np

from replicator.pdata.block import Words
from replicator.thin.dirty import MAPPED, DirtySet, Folded, split_by_device
from replicator.thin.metadata import PoolMetadata
from replicator.thin.table import STAMP_BITS

_MAP_PIECE = 1 << 13  # mappings put in one batch: each may read, and write, a leaf of its own


def fold_into(metadata: PoolMetadata, changes: DirtySet) -> list[Words]:
    """Bring a dirty set into the mapping trees; returns the data blocks that were provisioned in vain.

    So were those of a device that has been deleted meanwhile: nobody can read them any more.
    """
    in_vain = []
    for dev_id, folded in split_by_device(changes):
        in_vain.append(folded.superseded)
        if metadata.find(dev_id) is None:
            in_vain.append(folded.data_blocks)
        else:
            _fold_device(metadata, dev_id, folded)
    return in_vain


def _fold_device(metadata: PoolMetadata, dev_id: int, folded: Folded) -> None:
    for begin, end in folded.unmapped.tolist():
        unmap_range(metadata, dev_id, begin, end, but=folded.virtual_blocks)
    for low in range(0, len(folded.virtual_blocks), _MAP_PIECE):
        part = slice(low, low + _MAP_PIECE)
        metadata.map(dev_id, folded.virtual_blocks[part], folded.data_blocks[part])


def unmap_range(metadata: PoolMetadata, dev_id: int, begin: int, end: int, *, but: Words | None = None) -> None:
    """Unmap what is mapped in [begin, end), except the blocks `but`; in bounded pieces, at a cost of what is mapped."""
    while begin < end:
        piece = next(metadata.mapped(dev_id, begin, end), None)
        if piece is None:
            return
        keys = piece[0]
        begin = int(keys[-1]) + 1
        metadata.unmap(dev_id, keys if but is None else keys[~np.isin(keys, but)])


def overlay(entries: Words, begin: int, changes: DirtySet, stamp: int) -> None:
    """Apply one device's dirty changes to the stretch of page table entries that begins at virtual block `begin`."""
    end = begin + len(entries)
    touching = (changes.begins < end) & ((changes.kinds == MAPPED) | (changes.begins + changes.values > begin))
    touching &= (changes.begins >= begin) | (changes.kinds != MAPPED)
    rows = np.flatnonzero(touching)
    kinds, begins, values = changes.kinds[rows], changes.begins[rows], changes.values[rows]
    if (kinds == MAPPED).all():
        entries[(begins - np.uint64(begin)).astype(np.int64)] = values << np.uint64(STAMP_BITS) | np.uint64(stamp)
        return
    for kind, first, value in zip(kinds.tolist(), begins.tolist(), values.tolist(), strict=True):
        if kind == MAPPED:
            entries[first - begin] = value << STAMP_BITS | stamp
        else:
            entries[max(first - begin, 0) : min(first + value, end) - begin] = 0
