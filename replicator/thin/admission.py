"""How many mapping changes may be acknowledged before the next commit, so that it never finds the metadata full (P8).

Between pdata/room, which knows what a commit may need, and thin/engine, which asks before it takes a change. Limits
are in weight (pdata/room). While a dirty set is frozen its own need comes first; the active set gets what is left.

    who                          must leave, beyond its own worst case
    writes and snapshots         the worst case of KEPT_WEIGHT, and one change
    trims, deletes, growing      one change

so that a pool that refuses writes can still trim, delete and grow (P8: deletes have a reserve of their own).

Invariants
  A1  worst case of frozen + worst case of active + changes accepted <= free metadata blocks, always: a commit, the one
      after it, and the replay of both in one, have room.
"""

from __future__ import annotations

from replicator.errors import NoSpaceError
from replicator.pdata.room import CHANGE_BLOCKS, UNMAP_WEIGHT, PoolShape

KEPT_WEIGHT = 4 * UNMAP_WEIGHT


class Admission:
    """The limits on the active set's weight; changed and read under the engine's publish lock."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.write_limit = self.trim_limit = -1

    def idle(self, shape: PoolShape) -> None:
        """Nothing is frozen: the active set may have half of the room, or all of it where half is next to nothing."""
        trims, writes = shape.free_blocks - CHANGE_BLOCKS, _beyond_kept(shape, shape.free_blocks)
        self.trim_limit = shape.largest_weight(trims, self._capacity)
        half = shape.largest_weight(writes // 2, self._capacity)
        self.write_limit = half if half >= KEPT_WEIGHT else shape.largest_weight(writes, self._capacity)

    def frozen(self, shape: PoolShape, weight: int, change_count: int) -> None:
        """A set of this weight is being committed together with so many changes."""
        left = shape.free_blocks - shape.worst_case(weight) - CHANGE_BLOCKS * change_count
        self.trim_limit = shape.largest_weight(left - CHANGE_BLOCKS, self._capacity)
        self.write_limit = shape.largest_weight(_beyond_kept(shape, left), self._capacity)

    @staticmethod
    def fits(shape: PoolShape, weight: int, *, may_use_kept: bool) -> bool:
        """Whether a change can go into one commit with a set of this weight."""
        left = shape.free_blocks - CHANGE_BLOCKS
        return shape.worst_case(weight) <= (left if may_use_kept else _beyond_kept(shape, left))


def _beyond_kept(shape: PoolShape, blocks: int) -> int:
    return blocks - shape.worst_case(KEPT_WEIGHT) - CHANGE_BLOCKS


def no_metadata_space(free_blocks: int) -> NoSpaceError:
    """What a change that finds the metadata full is told."""
    return NoSpaceError(
        f"metadata space is out: {free_blocks} blocks are free, which a commit could need",
        mend="grow it: replicator pool grow POOL --metadata +SIZE; or delete snapshots, or trim volumes",
    )
