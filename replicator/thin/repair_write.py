"""Writes new metadata that holds what a repair could save, sharing what was shared.

Last step of thin/repair, into a device that begins with zeros and that nobody else has. Nodes that are whole are copied
one to one, each once, however many devices share it; a damaged tree gets new branches above the leaves that are left.

    dies …                      the new device                                 the old one
    before the last write       no superblock: nothing that anybody opens      untouched
    during it                   block 0 old (zeros) or new (one sector)        untouched
    after the flush             the repaired pool                              untouched

Invariants
  W1  Counts are worked out from the nodes that were written, and the engine's own space maps write them.
  W2  With `renew`, every mapping counts as shared in the kernel's eyes: its time lies below the snapshotted_time of
      all devices; what was rescued from a contradiction is copied before it's overwritten, at the price of that copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from replicator.blockdev.interface import BlockDevice
from replicator.pdata.block import Words
from replicator.pdata.node import DETAILS, DETAILS_DTYPE, INTERNAL_MAX, MAPPING, TOP_LEVEL, Nodes, encode
from replicator.pdata.update import split_evenly
from replicator.thin.mapping import TIME_LIMIT, data_blocks, pack_many, times
from replicator.thin.metadata import PoolMetadata
from replicator.thin.repair_devices import Rescue, Rescued
from replicator.thin.repair_shapes import Shapes
from replicator.thin.superblock import Superblock
from replicator.units import METADATA_BLOCK_BYTES

Progress = Callable[[int], None]
_NODES = 512
_LEAST = MAPPING.leaf_max // 3


@dataclass(frozen=True, slots=True)
class Clock:
    """The new pool's time; `renew`: mappings as young as that get time 0, and devices this snapshotted_time (W2)."""

    time: int
    renew: bool

    @staticmethod
    def after(superblock: Superblock, *, renew: bool) -> Clock:
        """The next time, where all is to count as shared; else the one that was."""
        return Clock(min(superblock.time + 1, TIME_LIMIT - 1) if renew else superblock.time, renew)


def write_repaired(
    target: BlockDevice, shapes: Shapes, superblock: Superblock, rescued: Rescue, clock: Clock, progress: Progress
) -> None:
    """Format `target` as the pool of `superblock`, with the devices of `rescued`; durable when this returns.

    NoSpaceError when it is too small.
    """
    pool = PoolMetadata.format(
        target, superblock.data_block_bytes, superblock.data_space_map.nr_blocks, superblock.uuid
    )
    writer = _Writer(pool, shapes, superblock.data_space_map.nr_blocks, clock, progress)
    roots = [writer.tree(device) for device in rescued.devices]
    writer.devices(rescued.devices, roots, superblock)
    writer.settle_counts()
    pool.superblock = replace(pool.superblock, time=clock.time, transaction_id=superblock.transaction_id)
    pool.commit(lambda: None)


class _Writer:
    """New nodes by old ones, and how often each new one is named."""

    def __init__(
        self, pool: PoolMetadata, shapes: Shapes, data_nr_blocks: int, clock: Clock, progress: Progress
    ) -> None:
        self.pool, self.shapes, self.data_nr_blocks, self.clock = pool, shapes, data_nr_blocks, clock
        self.progress = progress
        self.new_of = np.zeros(len(shapes.height), dtype=np.uint64)
        self.named = np.zeros(pool.store.nr_blocks, dtype=np.int64)
        self._joined: dict[tuple[int, ...], tuple[Words, Words]] = {}
        self._roots: dict[tuple[tuple[int, ...], bool], int] = {}
        self._written = 0

    def tree(self, device: Rescued) -> int:
        """The new root of a device's tree; devices that shared one share it again."""
        key = device.roots, device.whole or not device.fills
        if not device.roots or not device.mapped:
            return self.pool.transaction.empty_tree(MAPPING)
        if key not in self._roots:
            self._roots[key] = (
                self._copied(device.roots[0]) if device.whole else self._rebuilt(device.leaves(self.shapes))
            )
        root = self._roots[key]
        self.named[root] += 1
        return root

    def _copied(self, root: int) -> int:
        """Copy a whole tree, but for what was copied before; the lowest level first."""
        front = np.array([root], dtype=np.uint64)
        levels: list[Words] = []
        for height in range(int(self.shapes.height[root]), -1, -1):
            front = front[self.new_of[front.astype(np.int64)] == 0]
            levels.append(front)
            if height:
                below = [nodes.flat()[1] for nodes in self.shapes.read(front, False)]
                front = np.unique(np.concatenate(below)) if below else front[:0]
        self._copy_leaves(levels.pop())
        for level in reversed(levels):
            for nodes in self.shapes.read(level, False):
                self._copy_branches(nodes)
        return int(self.new_of[root])

    def _copy_leaves(self, leaves: Words) -> None:
        for nodes in self.shapes.read(leaves, True):
            keys, values = nodes.flat()
            blocks = self._write(nodes.count, keys, self._values(values), leaf=True)
            self.new_of[nodes.blocks.astype(np.int64)] = blocks

    def _copy_branches(self, nodes: Nodes) -> None:
        keys, children = nodes.flat()
        blocks = self._write(nodes.count, keys, self.new_of[children.astype(np.int64)], leaf=False)
        self.new_of[nodes.blocks.astype(np.int64)] = blocks

    def _values(self, values: Words) -> Words:
        """Mapping values as the new pool has them (W2)."""
        if not self.clock.renew:
            return values
        young = times(values) >= self.clock.time
        return np.where(young, pack_many(data_blocks(values), 0), values)

    def _write(self, counts: npt.NDArray[np.int64], keys: Words, values: Words, *, leaf: bool) -> Words:
        """New nodes with `counts` entries each; what their entries name gets its references (W1)."""
        if leaf:
            self.pool.transaction.data.counts.add(data_blocks(values))
        else:
            np.add.at(self.named, values.astype(np.int64), 1)
        blocks = self.pool.transaction.allocate(len(counts))
        rows = encode(blocks, counts, keys, values, leaf, MAPPING)
        breaks = np.flatnonzero(blocks[1:] != blocks[:-1] + np.uint64(1)) + 1
        for run in np.split(np.arange(len(blocks)), breaks):
            at = int(blocks[run[0]]) * METADATA_BLOCK_BYTES
            self.pool.store.device.pwrite(rows[run[0] : run[-1] + 1].data.cast("B"), at)
        self._written += len(counts)
        self.progress(self._written * METADATA_BLOCK_BYTES)
        return blocks

    def _rebuilt(self, leaves: Words) -> int:
        """New branches above the leaves that are left; those that can't stand below a branch are joined first."""
        parts = [self._new_leaves(run, joined=joined) for run, joined in self._runs(leaves)]
        keys, blocks = (np.concatenate(part) for part in zip(*parts, strict=True))
        while len(blocks) > 1:
            counts = np.array(split_evenly(len(blocks), INTERNAL_MAX), dtype=np.int64)
            blocks = self._write(counts, keys, blocks, leaf=False)
            keys = keys[np.cumsum(counts) - counts]
        return int(blocks[0])

    def _runs(self, leaves: Words) -> Iterator[tuple[Words, bool]]:
        """Neighbours that are copied as they are, and neighbours that are dealt out anew, in order."""
        places = leaves.astype(np.int64)
        odd = ~self.shapes.sound[places] | (self.shapes.scan.count[places] < _LEAST)
        odd = _widened(odd, self._good_entries(leaves))
        edges = np.flatnonzero(odd[1:] != odd[:-1]) + 1
        for run in np.split(np.arange(len(leaves)), edges):
            yield leaves[run], bool(odd[run[0]])

    def _good_entries(self, leaves: Words) -> npt.NDArray[np.int64]:
        places = leaves.astype(np.int64)
        good = self.shapes.scan.count[places].copy()
        for row in np.flatnonzero(~self.shapes.sound[places]).tolist():
            good[row] = len(self._entries(leaves[row : row + 1])[0])
        return good

    def _new_leaves(self, run: Words, *, joined: bool) -> tuple[Words, Words]:
        """(lowest key, block) of the leaves that `run` becomes."""
        if not joined:
            self._copy_leaves(run[self.new_of[run.astype(np.int64)] == 0])
            return self.shapes.low[run.astype(np.int64)], self.new_of[run.astype(np.int64)]
        key = tuple(run.tolist())
        if key not in self._joined:
            keys, values = self._entries(run)
            counts = np.array(split_evenly(len(keys), MAPPING.leaf_max), dtype=np.int64)
            blocks = self._write(counts, keys, self._values(values), leaf=True) if len(keys) else keys[:0]
            self._joined[key] = keys[np.cumsum(counts) - counts], blocks
        return self._joined[key]

    def _entries(self, leaves: Words) -> tuple[Words, Words]:
        found = [nodes.flat() for nodes in self.shapes.read(leaves, True)]
        keys, values = (np.concatenate(part) for part in zip(*found, strict=True))
        good = data_blocks(values) < self.data_nr_blocks
        return keys[good], values[good]

    def devices(self, rescued: tuple[Rescued, ...], roots: list[int], old: Superblock) -> None:
        """Both upper trees."""
        if not rescued:
            return
        keys = np.array([device.dev_id for device in rescued], dtype=np.uint64)
        none = np.zeros(len(keys), dtype=bool)
        records = np.array([self._record(device, old) for device in rescued], dtype=DETAILS_DTYPE)
        transaction, block0 = self.pool.transaction, self.pool.superblock
        top = transaction.update(block0.data_mapping_root, TOP_LEVEL, keys, np.array(roots, dtype=np.uint64), none)
        details = transaction.update(block0.device_details_root, DETAILS, keys, records, none)
        self.pool.superblock = replace(block0, data_mapping_root=top.root, device_details_root=details.root)

    def _record(self, device: Rescued, old: Superblock) -> tuple[int, int, int, int]:
        now, known = self.clock.time, device.details
        if known is None:
            return device.mapped, old.transaction_id, now, now
        created = min(known.creation_time, now)
        snapshotted = now if self.clock.renew else known.snapshotted_time
        return device.mapped, min(known.transaction_id, old.transaction_id), created, snapshotted

    def settle_counts(self) -> None:
        """Allocating gave each new block its first reference; here come the others."""
        more = np.flatnonzero(self.named > 1)
        self.pool.transaction.metadata.counts.add(np.repeat(more, self.named[more] - 1).astype(np.uint64))


def _widened(odd: npt.NDArray[np.bool_], good: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Take neighbours in until each run of odd leaves has entries enough for a leaf that stands below a branch."""
    odd = odd.copy()
    at = 0
    while at < len(odd):
        if not odd[at]:
            at += 1
            continue
        end = at
        while end < len(odd) and odd[end]:
            end += 1
        if int(good[at:end].sum()) >= _LEAST or (at == 0 and end == len(odd)):
            at = end
        elif end < len(odd):
            odd[end] = True
        else:
            odd[at - 1] = True
            at = _start_of_run(odd, at - 1)
    return odd


def _start_of_run(odd: npt.NDArray[np.bool_], at: int) -> int:
    while at and odd[at - 1]:
        at -= 1
    return at
