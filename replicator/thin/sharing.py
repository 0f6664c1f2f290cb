"""Which blocks of a device are its own: mapped entries of a range, each with whether anything else reaches it.

Used by thin/committed for a stretch of a page table. A data block is exclusive when one reference leads to it, and one
to each node on the path to its entry (a block inside a shared leaf has count 1 still). What the running transaction
does to the counts meanwhile changes nothing: C4 of pdata/counts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from replicator.errors import FormatError
from replicator.pdata.block import Words
from replicator.pdata.counts import CountArray
from replicator.pdata.node import MAPPING
from replicator.pdata.store import MetadataStore
from replicator.pdata.tree import MAX_DEPTH

_TIME_SHIFT = np.uint64(24)


class Mapped(NamedTuple):
    """Virtual blocks, ascending; the data block of each; whether it is the device's own."""

    blocks: Words
    data_blocks: Words
    own: npt.NDArray[np.bool_]


def mapped_entries(
    store: MetadataStore, root: int, span: tuple[int, int], metadata: CountArray, data: CountArray
) -> Mapped:
    """What the committed mapping tree at `root` maps in [begin, end) = `span`."""
    low, high = np.uint64(span[0]), np.uint64(span[1] - 1)
    blocks = np.array([root], dtype=np.uint64)
    shared = ~metadata.are_sole(blocks)
    for _ in range(MAX_DEPTH):
        nodes = store.read_nodes(blocks, MAPPING)
        keys, values = nodes.flat()
        above = np.repeat(shared, nodes.count)
        last = int(np.searchsorted(keys, high, side="right"))
        if nodes.leaf:
            first = int(np.searchsorted(keys, low))
            data_blocks = values[first:last] >> _TIME_SHIFT
            own = ~above[first:last]
            own[own] = data.are_sole(data_blocks[own])
            return Mapped(keys[first:last], data_blocks, own)
        first = max(int(np.searchsorted(keys, low, side="right")) - 1, 0)
        blocks = values[first:last]
        if not blocks.size:
            none = np.empty(0, dtype=np.uint64)
            return Mapped(none, none, np.empty(0, dtype=bool))
        shared = above[first:last] | ~metadata.are_sole(blocks)
    raise FormatError(f"mapping tree at block {root}", f"at most {MAX_DEPTH} levels", "more")
