"""A read-only view of a pool: its devices, and what they map, as of one superblock or of its metadata snapshot.

What diff, dump and readers stand on. It works on any pool in dm-thin's format, whoever wrote it, and on one that
another process is writing, as long as the roots it is given are held or under a lease.

Invariants
  V1  What comes out was verified: checksums and numbers (pdata/store), keys (pdata/node), data blocks in range.
  V2  Memory doesn't grow with a device: mappings come in pieces of at most 1,024 leaves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from replicator.blockdev.interface import BlockDevice
from replicator.errors import FormatError, NotFoundError
from replicator.pdata.node import DETAILS, MAPPING, TOP_LEVEL, TreeKind
from replicator.pdata.store import MetadataStore
from replicator.pdata.tree import MAX_DEPTH, lookup, lookup_one, walk
from replicator.thin.geometry import DATA_BLOCK_LIMIT
from replicator.thin.mapping import DEV_ID_LIMIT, Packed, data_blocks
from replicator.thin.runs import MappedRuns, join_runs
from replicator.thin.superblock import Superblock, read_superblock


@dataclass(frozen=True, slots=True)
class DeviceDetails:
    """The details record of one thin device."""

    mapped_blocks: int
    transaction_id: int
    creation_time: int
    snapshotted_time: int


@dataclass(frozen=True, slots=True)
class DeviceEntry:
    """One thin device of a pool: its id, the root block of its mapping tree, its details."""

    dev_id: int
    root: int
    details: DeviceDetails


class PoolView:
    """A pool's metadata as `superblock` (live or held) says; nothing is cached but the two numbers that bound it."""

    def __init__(self, device: BlockDevice, superblock: Superblock, *, data_nr_blocks: int | None = None) -> None:
        """`data_nr_blocks` bounds the data blocks of a held copy, which doesn't know it; by default any is taken."""
        self.superblock = superblock
        self.store = MetadataStore(device, superblock.metadata_space_map.nr_blocks or None)
        known = superblock.data_space_map.nr_blocks or DATA_BLOCK_LIMIT
        self.data_nr_blocks = data_nr_blocks if superblock.is_held and data_nr_blocks is not None else known

    @staticmethod
    def live(device: BlockDevice) -> PoolView:
        """The committed state that block 0 names."""
        return PoolView(device, read_superblock(device))

    @staticmethod
    def held(device: BlockDevice) -> PoolView:
        """The pool's metadata snapshot; NotFoundError when none is reserved."""
        live = read_superblock(device)
        if not live.held_root:
            raise NotFoundError(
                f"{device.name} holds no metadata snapshot", mend="reserve one: replicator pool reserve-metadata-snap"
            )
        copy = read_superblock(device, live.held_root)
        return PoolView(device, copy, data_nr_blocks=live.data_space_map.nr_blocks)

    def devices(self) -> list[DeviceEntry]:
        """All thin devices, ascending by id; FormatError unless both trees know the same ones."""
        roots = dict(self._all(self.superblock.data_mapping_root, TOP_LEVEL))
        details = dict(self._all(self.superblock.device_details_root, DETAILS))
        odd = sorted(roots.keys() ^ details.keys())
        if odd:
            expected = "the same devices in the top-level and the details tree"
            raise FormatError(self.store.device.name, expected, f"device {odd[0]} in one of them only")
        return [DeviceEntry(dev_id, int(roots[dev_id]), _details(details[dev_id])) for dev_id in sorted(roots)]

    def _all(self, root: int, kind: TreeKind) -> Iterator[tuple[int, Any]]:
        for keys, values in walk(self.store, root, kind):
            if len(keys) and int(keys[-1]) >= DEV_ID_LIMIT:
                raise FormatError(
                    f"{self.store.device.name}, {kind.name}", f"ids below {DEV_ID_LIMIT}", str(int(keys[-1]))
                )
            yield from zip(keys.tolist(), values, strict=True)

    def find(self, dev_id: int) -> DeviceEntry | None:
        """One thin device, or None."""
        root = lookup_one(self.store, self.superblock.data_mapping_root, dev_id, TOP_LEVEL)
        record = lookup_one(self.store, self.superblock.device_details_root, dev_id, DETAILS)
        return None if root is None or record is None else DeviceEntry(dev_id, int(root), _details(record))

    def device(self, dev_id: int) -> DeviceEntry:
        """One thin device; NotFoundError lists the ids that there are."""
        found = self.find(dev_id)
        if found is None:
            known = ", ".join(str(entry.dev_id) for entry in self.devices()) or "none"
            raise NotFoundError(f"the pool has no thin device {dev_id}; it has: {known}")
        return found

    def lookup(self, root: int, virtual_blocks: Packed) -> tuple[npt.NDArray[np.bool_], Packed]:
        """(mapped mask, mapping values) of ascending, distinct `virtual_blocks`; values count only where mapped."""
        mapped, values = lookup(self.store, root, virtual_blocks, MAPPING)
        self._require_in_range(values[mapped])
        return mapped, values

    def mappings(self, root: int, begin: int = 0, end: int | None = None) -> Iterator[tuple[Packed, Packed]]:
        """Virtual blocks and mapping values of [begin, end), ascending, in bounded pieces."""
        for keys, values in walk(self.store, root, MAPPING, begin, end):
            self._require_in_range(values)
            yield keys, values

    def mapped_runs(self, root: int, begin: int = 0, end: int | None = None) -> Iterator[MappedRuns]:
        """The same as maximal runs, in bounded pieces."""
        return join_runs(self.mappings(root, begin, end))

    def highest_mapped(self, root: int) -> int | None:
        """The highest mapped virtual block, by the tree's right edge; None when nothing is mapped."""
        block = root
        for _ in range(MAX_DEPTH):
            nodes = self.store.read_nodes(np.array([block], dtype=np.uint64), MAPPING)
            count = int(nodes.count[0])
            if nodes.leaf:
                return int(nodes.keys[0, count - 1]) if count else None
            block = int(nodes.values[0, count - 1])
        raise FormatError(
            f"{self.store.device.name}, mapping tree at block {root}", f"at most {MAX_DEPTH} levels", "more"
        )

    def _require_in_range(self, values: Packed) -> None:
        if len(values):
            highest = int(data_blocks(values).max())
            if highest >= self.data_nr_blocks:
                expected = f"data blocks below {self.data_nr_blocks}"
                raise FormatError(f"{self.store.device.name}, mapping tree", expected, str(highest))


def _details(record: Any) -> DeviceDetails:
    mapped, transaction_id, created, snapshotted = record.item()
    return DeviceDetails(mapped, transaction_id, created, snapshotted)
