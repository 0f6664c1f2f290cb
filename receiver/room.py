"""How much room a transaction may need, and how many mappings one switch may carry: arithmetic over a pool's status.

Asked by apply before a transaction is begun (P8), and for each switch. The owner checks each switch exactly, for its
worst case; what is computed here is never below that, so that a switch which was cut to size is taken.

    data blocks      one for each chunk that the transaction may touch, never more than the volume has
    metadata blocks  a leaf for each of them, or all leaves of the volume, and the inner nodes

Invariants
  M1  A larger bound never needs less.
  M2  switch_limit is at least 1: whether that fits is for the owner to say.
"""

from __future__ import annotations

from receiver.errors import RoomError
from replicator.pool.interface import PoolStatus
from replicator.units import CHUNK_BYTES

_LEAST_LEAF_ENTRIES = 42  # a third of a full leaf (126), as split and joined leaves may be
_WORST_BLOCKS_PER_MAPPING = 4.5  # two leaves, a path, an overflow leaf of counts
_FIXED_BLOCKS = 160  # index, details, the paths' own depth
_BLOCKS_PER_BITMAP = 16320
SWITCH_MAPPINGS_MAX = 1 << 18  # 6 MiB on the control socket, and a pause of the owner's tree work that stays short


def blocks_needed(chunk_bound: int, size_bytes: int, block_bytes: int) -> int:
    """Data blocks that a transaction of at most `chunk_bound` chunks may take, its shrinking included."""
    return min(chunk_bound + 1, -(-size_bytes // block_bytes))


def metadata_needed(blocks: int, size_bytes: int, block_bytes: int) -> int:
    """Metadata blocks that mapping so many blocks of the volume may take."""
    leaves = min(blocks, -(-size_bytes // block_bytes) // _LEAST_LEAF_ENTRIES + 8)
    return leaves + leaves // _LEAST_LEAF_ENTRIES + 64


def require_room(status: PoolStatus, volume: str, number: int, chunk_bound: int, size_bytes: int) -> int:
    """The data blocks that the transaction may take; RoomError when they, or their mappings, may not fit."""
    needed = blocks_needed(chunk_bound, size_bytes, status.block_bytes)
    if needed > status.data_free_blocks:
        more = (needed - status.data_free_blocks) * max(status.block_bytes, CHUNK_BYTES) // 1024
        mend = f"grow it: replicator pool grow POOL --data +{more}KiB; or delete snapshots"
        raise RoomError(volume, number, "data blocks", needed, status.data_free_blocks, mend)
    metadata = metadata_needed(needed, size_bytes, status.block_bytes)
    if metadata > status.metadata_free_blocks:
        mend = "grow it: replicator pool grow POOL --metadata +SIZE"
        raise RoomError(volume, number, "metadata blocks", metadata, status.metadata_free_blocks, mend)
    return needed


def switch_limit(status: PoolStatus) -> int:
    """How many mapping changes one switch may carry (M2)."""
    bitmaps = 1.1 * (status.data_blocks + status.metadata_blocks) / _BLOCKS_PER_BITMAP
    free = status.metadata_free_blocks - _FIXED_BLOCKS - bitmaps
    return max(1, min(SWITCH_MAPPINGS_MAX, int(free / _WORST_BLOCKS_PER_MAPPING)))
