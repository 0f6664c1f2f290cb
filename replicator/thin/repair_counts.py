"""What a damaged pool's own space map says of its metadata blocks: which are in use, and how often.

Read by thin/repair_devices to tell a subtree that lost its parent from one that was freed. The map may be damaged as
everything else: a block under a bitmap that can't be read has the count UNCOUNTED.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from replicator.pdata.bitmap import ENTRIES_PER_BITMAP, OVERFLOW, unpack_bitmap, unpack_index
from replicator.pdata.block import BlockKind, Words
from replicator.pdata.smroot import SpaceMapRoot
from replicator.thin.repair_scan import What
from replicator.thin.repair_shapes import Shapes
from replicator.thin.repair_trees import leaves_of

UNCOUNTED = -1


def stored_counts(shapes: Shapes, root: SpaceMapRoot) -> npt.NDArray[np.int64]:
    """The count of each metadata block as `root` has it, UNCOUNTED where that can't be read."""
    scan = shapes.scan
    counts = np.full(scan.nr_blocks, UNCOUNTED, dtype=np.int64)
    if not 0 < root.bitmap_root < scan.nr_blocks or scan.what[root.bitmap_root] != What.INDEX:
        return counts
    row = shapes.store.read_blocks(np.array([root.bitmap_root], dtype=np.uint64), BlockKind.INDEX)[0]
    bitmaps: Words = unpack_index(row)["block"][: -(-scan.nr_blocks // ENTRIES_PER_BITMAP)]
    for number, block in enumerate(bitmaps.tolist()):
        if 0 < block < scan.nr_blocks and scan.what[block] == What.BITMAP:
            row = shapes.store.read_blocks(np.array([block], dtype=np.uint64), BlockKind.BITMAP)[0]
            part = counts[number * ENTRIES_PER_BITMAP : (number + 1) * ENTRIES_PER_BITMAP]
            part[:] = unpack_bitmap(row)[: len(part)]
    _add_overflow(shapes, root.ref_count_root, counts)
    return counts


def _add_overflow(shapes: Shapes, root: int, counts: npt.NDArray[np.int64]) -> None:
    if not shapes.is_tree(root, What.COUNTS):
        return
    for nodes in shapes.read(leaves_of(shapes, root, {}).leaves, True):
        keys, values = nodes.flat()
        inside = keys < len(counts)
        places = keys[inside].astype(np.int64)
        counts[places] = np.where(counts[places] == OVERFLOW, values[inside], counts[places])
