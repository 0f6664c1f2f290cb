"""Which blocks of a device are its own: mapped entries of a range, each with whether anything else reaches it.

Used by thin/engine when it loads a stretch of a page table. A data block is exclusive when its count is 1 and no node
on the path to its entry has a count above 1 (a block inside a shared leaf still has count 1), and when both were so
before the running transaction, too (P6: a power cut brings back who shared it).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from replicator.errors import FormatError
from replicator.pdata.block import Words
from replicator.pdata.node import MAPPING
from replicator.pdata.transaction import Transaction
from replicator.pdata.tree import MAX_DEPTH

_TIME_SHIFT = np.uint64(24)


def mapped_entries(
    transaction: Transaction, root: int, begin: int, end: int
) -> tuple[Words, Words, npt.NDArray[np.bool_]]:
    """(virtual blocks, data blocks, exclusive) of the mapping tree at `root` in [begin, end), ascending."""
    counts = transaction.metadata.counts
    low, high = np.uint64(begin), np.uint64(end - 1)
    blocks = np.array([root], dtype=np.uint64)
    shared = ~counts.is_exclusive(blocks)
    for _ in range(MAX_DEPTH):
        nodes = transaction.store.read_nodes(blocks, MAPPING)
        keys, values = nodes.flat()
        above = np.repeat(shared, nodes.count)
        last = int(np.searchsorted(keys, high, side="right"))
        if nodes.leaf:
            first = int(np.searchsorted(keys, low))
            data_blocks = values[first:last] >> _TIME_SHIFT
            own = ~above[first:last]
            own[own] = transaction.data.counts.is_exclusive(data_blocks[own])
            return keys[first:last], data_blocks, own
        first = max(int(np.searchsorted(keys, low, side="right")) - 1, 0)
        blocks = values[first:last]
        if not blocks.size:
            none = np.empty(0, dtype=np.uint64)
            return none, none, np.empty(0, dtype=bool)
        shared = above[first:last] | ~counts.is_exclusive(blocks)
    raise FormatError(f"mapping tree at block {root}", f"at most {MAX_DEPTH} levels", "more")
