"""The metadata snapshot: a frozen copy of the roots, by which others read the mappings of a pool that is being written.

Called by pool/ as changes of thin/engine; read by thin/view (PoolView.held), by thin_dump and thin_delta with
--metadata-snap, in other processes. One at a time. It freezes mappings, not contents: whoever wants frozen data takes
snapshots of the devices before.

    reserve    devices' records into the upper trees, a copy of block 0 in a block of its own (own number, held_root and
               both space map roots 0), one more reference to the top-level and the details tree, held_root = the copy
    release    a reference less to both trees as the copy names them, the copy freed, held_root = 0

Both are durable, or not done, with the commit that holds them. Source: Linux dm-thin-metadata.c.

Invariants
  H1  What the held copy reaches is neither changed nor freed until it is released (references, D4 of thin/metadata).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from replicator.errors import ConflictError
from replicator.pdata.block import WORDS_PER_BLOCK, BlockKind
from replicator.pdata.node import DETAILS, TOP_LEVEL
from replicator.pdata.smroot import NO_SPACE_MAP
from replicator.thin.metadata import PoolMetadata
from replicator.thin.superblock import Superblock


def check_reserve(metadata: PoolMetadata) -> None:
    """ConflictError when a metadata snapshot is held already."""
    block = metadata.superblock.held_root
    if block:
        raise ConflictError(
            f"metadata block {block} holds a metadata snapshot already",
            mend="replicator pool release-metadata-snap POOL",
        )


def reserve_metadata_snap(metadata: PoolMetadata) -> int:
    """Freeze the mappings as the running transaction has them; returns the copy's block. ConflictError: one is held."""
    check_reserve(metadata)
    metadata.write_devices()
    transaction, superblock = metadata.transaction, metadata.superblock
    block = int(transaction.allocate(1)[0])
    bare = replace(superblock, block=block, data_space_map=NO_SPACE_MAP, metadata_space_map=NO_SPACE_MAP)
    row = np.frombuffer(bare.pack(), dtype=np.uint64).reshape(1, WORDS_PER_BLOCK)
    transaction.put(np.array([block], dtype=np.uint64), row)
    transaction.share_root(superblock.data_mapping_root)
    transaction.share_root(superblock.device_details_root)
    metadata.superblock = replace(superblock, held_root=block)
    return block


def check_release(metadata: PoolMetadata) -> None:
    """ConflictError when there is no metadata snapshot."""
    if not metadata.superblock.held_root:
        raise ConflictError(
            "the pool holds no metadata snapshot", mend="replicator pool reserve-metadata-snap POOL makes one"
        )


def release_metadata_snap(metadata: PoolMetadata) -> None:
    """Let the frozen mappings go; what only they reached is free after the commit. ConflictError: none is held."""
    check_release(metadata)
    transaction, block = metadata.transaction, metadata.superblock.held_root
    where = np.array([block], dtype=np.uint64)
    row = transaction.store.read_blocks(where, BlockKind.SUPERBLOCK)[0]
    held = Superblock.unpack(row.tobytes(), block, transaction.store.device.name)
    metadata.superblock = replace(metadata.superblock, held_root=0)
    transaction.drop_tree(held.data_mapping_root, TOP_LEVEL)
    transaction.drop_tree(held.device_details_root, DETAILS)
    transaction.release(where)
