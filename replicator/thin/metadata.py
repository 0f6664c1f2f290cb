"""The pool's metadata, open for writing: devices, snapshots, mappings, and the commit that makes them durable.

Above pdata (trees and space maps), below thin/device (which serves I/O). What dm-thin does in its messages and
in its map function, in batches. Nothing here knows data: only which data block stands where.

    superblock ─ top-level tree ─ dev_id → mapping tree ─ virtual block → (data block, time)
               └ details tree   ─ dev_id → mapped blocks, transaction id, times

Invariants
  D1  Details and top-level tree have the same keys; mapped_blocks counts the entries of the mapping tree.
  D2  A mapping that two devices reach has a time below both's snapshotted_time (the kernel's rule of sharing):
      `time` goes up at every snapshot before which something may have been mapped at the current one.
  D3  From TIME_CAP on, time goes up once more and then stays; new mappings get time 0, which is always safe.
  D4  Before a device under a held root changes, its path in the top-level tree is shadowed, so that its root's count
      tells that it is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from replicator.blockdev.interface import BlockDevice
from replicator.errors import ConflictError, NotFoundError, UsageError
from replicator.pdata.bitmap import LARGEST_METADATA_BLOCKS
from replicator.pdata.block import Words
from replicator.pdata.node import BITMAP_INDEX, DETAILS, DETAILS_DTYPE, MAPPING, REF_COUNTS, TOP_LEVEL
from replicator.pdata.smroot import NO_SPACE_MAP
from replicator.pdata.spacemap import SpaceMap
from replicator.pdata.store import MetadataStore
from replicator.pdata.transaction import Transaction
from replicator.pdata.tree import lookup_one, walk
from replicator.pdata.update import LEAF_COST
from replicator.thin.mapping import DEV_ID_LIMIT, TIME_LIMIT, pack_many
from replicator.thin.superblock import METADATA_BLOCK_SECTORS, VERSION, Superblock, is_unformatted, read_superblock
from replicator.units import METADATA_BLOCK_BYTES, SECTOR_BYTES

TIME_CAP = TIME_LIMIT - (1 << 20)
_U64 = np.uint64
_Result = TypeVar("_Result")


@dataclass(slots=True)
class Device:
    """One thin device as the running transaction has it."""

    dev_id: int
    root: int
    mapped_blocks: int
    transaction_id: int
    creation_time: int
    snapshotted_time: int
    owned: bool = False  # its path in the top-level tree is this transaction's (D4)

    def details(self) -> npt.NDArray[np.void]:
        """The 24-byte record of the details tree."""
        record = (self.mapped_blocks, self.transaction_id, self.creation_time, self.snapshotted_time)
        return np.array([record], dtype=DETAILS_DTYPE)


class PoolMetadata:
    """One pool's metadata in one running transaction; its owner locks.

    `time_is_capped` says that D3's last step was made, by us, and no other writer came since (the catalogue remembers).
    """

    def __init__(self, transaction: Transaction, superblock: Superblock, *, time_is_capped: bool = False) -> None:
        self.transaction = transaction
        self.superblock = superblock
        self.time_is_capped = time_is_capped
        self._mapped_now = True  # something may be mapped at the current time: nobody knows after opening
        self._changed: dict[int, Device] = {}
        self._deleted: set[int] = set()

    # -- opening ---------------------------------------------------------------------------------------------

    @classmethod
    def format(cls, device: BlockDevice, data_block_bytes: int, data_blocks: int, uuid: bytes) -> PoolMetadata:
        """An empty pool over `device`, whose first 4 KiB must be zeros; durable once `commit` was called."""
        blocks = min(device.size_bytes // METADATA_BLOCK_BYTES, LARGEST_METADATA_BLOCKS)
        if not is_unformatted(device.pread(METADATA_BLOCK_BYTES, 0)):
            raise ConflictError(
                f"{device.name} isn't empty: its first 4 KiB aren't zeros",
                mend="zero its first 4 KiB if what it holds may go, or name another device",
            )
        transaction = Transaction(MetadataStore(device, blocks))
        store = transaction.store
        transaction.data = SpaceMap.empty("data", store, data_blocks, recycle=False)
        transaction.metadata = SpaceMap.empty("metadata", store, blocks, recycle=True)
        transaction.metadata.counts.take(1)
        transaction.metadata.counts.add(np.zeros(1, dtype=np.uint64))
        transaction.data.ref_count_root = transaction.empty_tree(REF_COUNTS)
        transaction.metadata.ref_count_root = transaction.empty_tree(REF_COUNTS)
        transaction.data.bitmap_root = transaction.empty_tree(BITMAP_INDEX)
        superblock = Superblock(
            flags=0,
            uuid=uuid,
            version=VERSION,
            time=0,
            transaction_id=0,
            held_root=0,
            data_space_map=NO_SPACE_MAP,
            metadata_space_map=NO_SPACE_MAP,
            data_mapping_root=transaction.empty_tree(TOP_LEVEL),
            device_details_root=transaction.empty_tree(DETAILS),
            data_block_sectors=data_block_bytes // SECTOR_BYTES,
            metadata_block_sectors=METADATA_BLOCK_SECTORS,
            metadata_nr_blocks=blocks,
        )
        return cls(transaction, superblock)

    @classmethod
    def open(cls, device: BlockDevice, *, time_is_capped: bool = False) -> PoolMetadata:
        """The pool that `device` holds; FormatError with where, expected and found for anything else."""
        superblock = read_superblock(device)
        if superblock.needs_check:
            raise ConflictError(
                f"{device.name}: the pool is marked NEEDS_CHECK, so it may only be read",
                mend="replicator pool check says what is wrong; thin_check --clear-needs-check-flag clears the mark",
            )
        store = MetadataStore(device, superblock.metadata_space_map.nr_blocks)
        transaction = Transaction(store)
        transaction.data = SpaceMap.open_data(store, superblock.data_space_map)
        transaction.metadata = SpaceMap.open_metadata(store, superblock.metadata_space_map)
        return cls(transaction, superblock, time_is_capped=time_is_capped)

    # -- devices ---------------------------------------------------------------------------------------------

    @property
    def store(self) -> MetadataStore:
        return self.transaction.store

    def find(self, dev_id: int) -> Device | None:
        """The device as the running transaction has it, or None."""
        if dev_id in self._deleted:
            return None
        if dev_id in self._changed:
            return self._changed[dev_id]
        root = lookup_one(self.store, self.superblock.data_mapping_root, dev_id, TOP_LEVEL)
        record = lookup_one(self.store, self.superblock.device_details_root, dev_id, DETAILS)
        if root is None or record is None:
            return None
        mapped, transaction_id, created, snapshotted = (int(field) for field in record.tolist())
        return Device(dev_id, int(root), mapped, transaction_id, created, snapshotted)

    def device(self, dev_id: int) -> Device:
        """The device; NotFoundError if there is none."""
        found = self.find(dev_id)
        if found is None:
            raise NotFoundError(f"the pool has no thin device {dev_id}")
        return found

    def dev_ids(self) -> list[int]:
        """All device ids of the running transaction, ascending."""
        pages = walk(self.store, self.superblock.data_mapping_root, TOP_LEVEL)
        on_disk = {int(key) for keys, _ in pages for key in keys}
        return sorted((on_disk | set(self._changed)) - self._deleted)

    def free_dev_id(self, start: int = 1) -> int:
        """The lowest free id from `start` >= 1 on, wrapping to 1; ConflictError when all are taken."""
        taken = set(self.dev_ids())
        for dev_id in chain(range(start, DEV_ID_LIMIT), range(1, start)):
            if dev_id not in taken:
                return int(dev_id)
        raise ConflictError("all 16,777,215 device ids are in use", mend="delete snapshots that nobody needs")

    def check_new(self, dev_id: int) -> None:
        """UsageError or ConflictError unless `dev_id` can be given to a new device."""
        if not 0 <= dev_id < DEV_ID_LIMIT:
            raise UsageError(f"device id {dev_id} isn't in 0..{DEV_ID_LIMIT - 1}")
        if self.find(dev_id) is not None:
            raise ConflictError(f"the pool has a thin device {dev_id} already")

    def create_thin(self, dev_id: int) -> Device:
        """A new device with nothing mapped."""
        self.check_new(dev_id)
        time = self.superblock.time
        device = Device(dev_id, self.transaction.empty_tree(MAPPING), 0, self.superblock.transaction_id, time, time)
        self._insert(device)
        return device

    def _insert(self, device: Device) -> None:
        self._deleted.discard(device.dev_id)
        self._changed[device.dev_id] = device
        self._put_top(device)
        device.owned = True

    def _put_top(self, device: Device) -> None:
        key, root = np.array([device.dev_id], dtype=np.uint64), np.array([device.root], dtype=np.uint64)
        top = self.superblock.data_mapping_root
        updated = self.transaction.update(top, TOP_LEVEL, key, root, np.zeros(1, dtype=bool))
        self.superblock = replace(self.superblock, data_mapping_root=updated.root)

    def _own(self, dev_id: int) -> Device:
        """The device, ready to be changed (D4)."""
        device = self._changed.setdefault(dev_id, self.device(dev_id))
        if not device.owned:
            if self.superblock.held_root:
                self._put_top(device)
            device.owned = True
        return device

    def advance_time(self) -> int:
        """The time of a snapshot to be made now (D2, D3); ConflictError at the end of 24 bits."""
        self.check_time()
        time = int(self.superblock.time)
        if self.time_is_capped or not self._mapped_now:
            return time
        self.superblock = replace(self.superblock, time=time + 1)
        self._mapped_now = False
        self.time_is_capped = time + 1 > TIME_CAP
        return time + 1

    def check_time(self) -> None:
        """ConflictError where no snapshot can be made any more (D3)."""
        if not self.time_is_capped and self.superblock.time >= TIME_LIMIT - 1:
            raise ConflictError(
                "the pool's snapshot counter has reached its 24 bits, and another program has written since",
                mend="copy the volumes into a new pool: replicator volume export, volume import",
            )

    @property
    def mapping_time(self) -> int:
        """The time that new mappings carry (D3)."""
        return 0 if self.time_is_capped else self.superblock.time

    def create_snap(self, dev_id: int, origin_id: int) -> Device:
        """A snapshot of `origin_id`, sharing its blocks: O(1). Its mappings must be up to date (nothing dirty)."""
        self.check_new(dev_id)
        self.device(origin_id)
        time = self.advance_time()
        origin = self._own(origin_id)
        origin.snapshotted_time = time
        self.transaction.share_root(origin.root)
        device = Device(dev_id, origin.root, origin.mapped_blocks, self.superblock.transaction_id, time, time)
        self._insert(device)
        return device

    def delete(self, dev_id: int) -> None:
        """Remove a device; data and metadata blocks that only it used are free after the commit."""
        device = self._own(dev_id)
        self.transaction.drop_tree(device.root, MAPPING)
        key = np.array([dev_id], dtype=np.uint64)
        self._remove(key)
        del self._changed[dev_id]
        self._deleted.add(dev_id)

    def deletion_cost(self, dev_id: int, budget: int) -> int:
        """What deleting the device costs (pdata/update), counted until it is more than `budget`."""
        leaves = self.transaction.dying_leaves(self.device(dev_id).root, MAPPING, budget // LEAF_COST)
        return leaves * LEAF_COST

    def shrink_dying(self, dev_id: int, budget: int) -> bool:
        """One slice of the deletion of a device that nobody reads; True when it was the last, and the device is gone.

        What is left is a device with fewer mappings, at each commit (D1): the highest ones.
        """
        budget = max(budget, LEAF_COST)
        if self.deletion_cost(dev_id, budget) <= budget:
            self.delete(dev_id)
            return True
        device = self._own(dev_id)
        while budget > 0:
            shorter = self.transaction.drop_front(device.root, MAPPING, budget)
            device.root = shorter.root
            device.mapped_blocks -= shorter.removed
            budget -= shorter.cost
            if self.deletion_cost(dev_id, LEAF_COST) <= LEAF_COST:
                break  # a leaf, or what others have too: the next slice is the last
        return False

    def _remove(self, key: Words) -> None:
        gone = np.ones(1, dtype=bool)
        top, details = self.superblock.data_mapping_root, self.superblock.device_details_root
        no_root, no_record = np.zeros(1, dtype=np.uint64), np.zeros(1, dtype=DETAILS_DTYPE)
        top = self.transaction.update(top, TOP_LEVEL, key, no_root, gone).root
        details = self.transaction.update(details, DETAILS, key, no_record, gone).root
        self.superblock = replace(self.superblock, data_mapping_root=top, device_details_root=details)

    # -- mappings --------------------------------------------------------------------------------------------

    def map(self, dev_id: int, virtual_blocks: Words, data_blocks: Words, *, time: int | None = None) -> None:
        """Map sorted distinct `virtual_blocks` to `data_blocks`; what they replace loses a reference."""
        if not virtual_blocks.size:
            return
        device = self._own(dev_id)
        if time is None or time >= self.superblock.time:
            self._mapped_now = True
        values = pack_many(data_blocks, self.mapping_time if time is None else time)
        none = np.zeros(len(virtual_blocks), dtype=bool)
        updated = self.transaction.update(device.root, MAPPING, virtual_blocks, values, none)
        device.root = updated.root
        device.mapped_blocks += updated.inserted

    def unmap(self, dev_id: int, virtual_blocks: Words) -> None:
        """Unmap sorted distinct `virtual_blocks`, mapped or not."""
        if not virtual_blocks.size:
            return
        device = self._own(dev_id)
        none = np.zeros(len(virtual_blocks), dtype=np.uint64)
        gone = np.ones(len(virtual_blocks), dtype=bool)
        updated = self.transaction.update(device.root, MAPPING, virtual_blocks, none, gone)
        device.root = updated.root
        device.mapped_blocks -= updated.removed

    def mapped(self, dev_id: int, begin: int, end: int) -> Iterator[tuple[Words, Words]]:
        """(virtual blocks, packed values) that are mapped in [begin, end), ascending, in bounded pieces."""
        return walk(self.store, self.device(dev_id).root, MAPPING, begin, end)

    # -- the pool --------------------------------------------------------------------------------------------

    def set_transaction_id(self, current: int, new: int) -> None:
        """Compare and swap the user-space counter; ConflictError if it isn't `current`."""
        if self.superblock.transaction_id != current:
            raise ConflictError(f"the pool's transaction id is {self.superblock.transaction_id}, not {current}")
        self.superblock = replace(self.superblock, transaction_id=new)

    def grow_data(self, nr_blocks: int) -> None:
        """Go on with a data device of `nr_blocks`, which is at least that long already."""
        if nr_blocks < self.transaction.data.counts.nr_blocks:
            raise UsageError("a pool's data device can't shrink")
        self.transaction.data.grow(nr_blocks)

    def grow_metadata(self, nr_blocks: int) -> None:
        """Go on with a metadata device of `nr_blocks` (what lies beyond 15.875 GiB stays unused)."""
        blocks = min(nr_blocks, LARGEST_METADATA_BLOCKS)
        if blocks < self.transaction.metadata.counts.nr_blocks:
            raise UsageError("a pool's metadata device can't shrink")
        self.transaction.metadata.grow(blocks)
        self.store.nr_blocks = blocks

    def attempt(self, work: Callable[[PoolMetadata], _Result]) -> _Result:
        """What `work` returns; where it raises, nothing of it was done."""
        transaction, before = self.transaction.mark(), (self.superblock, self.time_is_capped, self._mapped_now)
        changed = {dev_id: replace(device) for dev_id, device in self._changed.items()}
        deleted = set(self._deleted)
        try:
            result = work(self)
        except BaseException:
            self.transaction.undo(transaction)
            self.superblock, self.time_is_capped, self._mapped_now = before
            self._changed, self._deleted = changed, deleted
            raise
        self.transaction.forget_mark()
        return result

    def seal(self) -> bytes:
        """Place everything, and return the block 0 that makes it the pool's state once `write` has put it there."""
        self.write_devices()
        self.transaction.place()
        data, metadata = self.transaction.data.root(), self.transaction.metadata.root()
        self.superblock = replace(self.superblock, version=VERSION, data_space_map=data, metadata_space_map=metadata)
        return self.superblock.pack()

    def write(self, block0: bytes, flush_data: Callable[[], None]) -> None:
        """Make what `seal` placed durable (pdata/transaction.write); may run beside readers of the metadata."""
        self.transaction.write(block0, flush_data)

    def finish(self, show: Callable[[], None] | None = None) -> Words:
        """The commit is durable; returns the data blocks that it freed, not to be allocated before `settle`.

        `show` makes the new state the one that others read (pdata/transaction.finish).
        """
        self._changed.clear()
        self._deleted.clear()
        return self.transaction.finish(show)

    def commit(self, flush_data: Callable[[], None]) -> None:
        """All of it at once, for those who have the pool for themselves."""
        self.write(self.seal(), flush_data)
        self.transaction.data.counts.settle(self.finish())

    def write_devices(self) -> None:
        """Bring what changed of devices into the upper trees; they are found there from now on (D4 begins anew)."""
        if not self._changed:
            return
        devices = [self._changed[dev_id] for dev_id in sorted(self._changed)]
        keys = np.array([device.dev_id for device in devices], dtype=np.uint64)
        roots = np.array([device.root for device in devices], dtype=np.uint64)
        records = np.concatenate([device.details() for device in devices])
        none = np.zeros(len(devices), dtype=bool)
        top, details = self.superblock.data_mapping_root, self.superblock.device_details_root
        top = self.transaction.update(top, TOP_LEVEL, keys, roots, none).root
        details = self.transaction.update(details, DETAILS, keys, records, none).root
        self.superblock = replace(self.superblock, data_mapping_root=top, device_details_root=details)
        self._changed.clear()
