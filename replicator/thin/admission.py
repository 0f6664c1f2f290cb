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
  A2  A device counts from before its first write, whatever the committer is at: what was judged is judged again with
      it, and so is every shape that was looked at before it was opened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from replicator.errors import NoSpaceError
from replicator.pdata.room import CHANGE_BLOCKS, UNMAP_WEIGHT, PoolShape
from replicator.thin.metadata import PoolMetadata

KEPT_WEIGHT = 4 * UNMAP_WEIGHT


@dataclass(frozen=True, slots=True)
class Opened:
    """How many devices were opened for writing so far, and the blocks that they mapped then: it only grows."""

    devices: int = 0
    mapped_blocks: int = 0


class Admission:
    """The limits on the active set's weight; changed and read under the engine's publish lock.

    `seen` is what `opened` was before a shape was looked at.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.write_limit = self.trim_limit = -1
        self.opened = Opened()
        self.is_idle = True
        self._judge: Callable[[], None] = lambda: None

    def device_opened(self, mapped_blocks: int) -> None:
        """One more device may be written from now on (A2)."""
        self.opened = Opened(self.opened.devices + 1, self.opened.mapped_blocks + mapped_blocks)
        self._judge()

    def now(self, shape: PoolShape, seen: Opened) -> PoolShape:
        """The shape with what was opened since."""
        devices, mapped = self.opened.devices - seen.devices, self.opened.mapped_blocks - seen.mapped_blocks
        return replace(shape, trees=max(1, shape.trees + devices), mapped_blocks=shape.mapped_blocks + mapped)

    def idle(self, shape: PoolShape, seen: Opened) -> None:
        """Nothing is frozen: the active set may have half of the room, or all of it where half is next to nothing."""
        self.is_idle, self._judge = True, partial(self.idle, shape, seen)
        shape = self.now(shape, seen)
        trims, writes = shape.free_blocks - CHANGE_BLOCKS, _beyond_kept(shape, shape.free_blocks)
        self.trim_limit = shape.largest_weight(trims, self._capacity)
        half = shape.largest_weight(writes // 2, self._capacity)
        self.write_limit = half if half >= KEPT_WEIGHT else shape.largest_weight(writes, self._capacity)

    def look_again(self, shape: PoolShape, seen: Opened) -> None:
        """As it is now, devices that went included, where neither a commit nor a change has room set apart for it."""
        if self.is_idle:
            self.idle(shape, seen)

    def frozen(self, shape: PoolShape, seen: Opened, weight: int, change_count: int) -> None:
        """A set of this weight is being committed together with so many changes."""
        self.is_idle, self._judge = False, partial(self.frozen, shape, seen, weight, change_count)
        shape = self.now(shape, seen)
        left = shape.free_blocks - shape.worst_case(weight) - CHANGE_BLOCKS * change_count
        self.trim_limit = shape.largest_weight(left - CHANGE_BLOCKS, self._capacity)
        self.write_limit = shape.largest_weight(_beyond_kept(shape, left), self._capacity)

    @staticmethod
    def fits(shape: PoolShape, weight: int, *, may_use_kept: bool) -> bool:
        """Whether a change can go into one commit with a set of this weight."""
        left = shape.free_blocks - CHANGE_BLOCKS
        return shape.worst_case(weight) <= (left if may_use_kept else _beyond_kept(shape, left))


def shape_of(metadata: PoolMetadata, dev_ids: Sequence[int], room_blocks: int) -> PoolShape:
    """What bounds commits that may change these devices, with `room_blocks` less to be had; under the engine's lock."""
    mapped = sum(found.mapped_blocks for dev_id in dev_ids if (found := metadata.find(dev_id)) is not None)
    shape = metadata.transaction.shape(trees=len(dev_ids), mapped_blocks=mapped)
    return replace(shape, free_blocks=shape.free_blocks - room_blocks)


def _beyond_kept(shape: PoolShape, blocks: int) -> int:
    return blocks - shape.worst_case(KEPT_WEIGHT) - CHANGE_BLOCKS


def no_metadata_space(free_blocks: int) -> NoSpaceError:
    """What a change that finds the metadata full is told."""
    return NoSpaceError(
        f"metadata space is out: {free_blocks} blocks are free, which a commit could need",
        mend="grow it: replicator pool grow POOL --metadata +SIZE; or delete snapshots, or trim volumes",
    )
