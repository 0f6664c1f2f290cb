"""The engine of one pool: acknowledged changes on one side, transactions on disk on the other, one thread between them.

Above thin/metadata (what the pool is) and below pool/ (names, catalogue). Whoever serves I/O calls `load_stretch`,
`publish`, `admit` and `flush`; whoever manages the pool hands in changes with `change`. The committer thread makes one
commit of all flushes that wait and the next change, which so is a compare-and-swap of its own:

    freeze    swap the dirty set (a cut closes the gate for that long, and raises its devices' epochs)      P3, P4
    fold      frozen mappings into the trees, then the changes (snapshots, deletes, …), under `lock`
    seal      space maps and block 0 placed
    write     data flushed, metadata written and flushed, block 0 written and flushed, without `lock`        P1, P2
    finish    freed blocks go into their grace period, waiters are answered

Where the process dies, `dirty` has what was acknowledged (thin/dirty has the table); where the machine dies, the last
block 0 has what was flushed.

Invariants
  E1  `lock` is held by whoever reads or changes metadata, counts or reserved blocks; `publish_lock` by whoever
      changes page tables and dirty records. `publish_lock` is never held while waiting for `lock`.
  E2  While a snapshot is cut but not in the trees yet, or a delete isn't durable yet, no block is taken for exclusive
      on the word of the counts (P6): `_unsettled`.
  E3  After a failed commit or flush nothing is acknowledged any more, until the pool is opened again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from replicator.blockdev.interface import BlockDevice
from replicator.errors import NoSpaceError, ReplicatorError
from replicator.pdata.block import Words
from replicator.pdata.transaction import BrokenPoolError
from replicator.thin.device import ThinDevice
from replicator.thin.dirty import MAPPED, DirtyLog, DirtySet, split_by_device, superblock_sum
from replicator.thin.gate import Gate
from replicator.thin.metadata import PoolMetadata
from replicator.thin.sharing import mapped_entries
from replicator.thin.space import DataSpace
from replicator.thin.table import DEFAULT_LIMIT, SHARED, STAMP_BITS, STRETCH_BLOCKS

_MARGIN_RECORDS = 48  # as many threads may pass `admit` together before each appends its record
_KEEP_SECTIONS = 1024  # loaded bitmaps kept beyond a commit: 64 MiB of counts, a terabyte in 64 KiB blocks
_UNMAP_PIECE = 1 << 18  # virtual blocks unmapped in one batch


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What bounds the engine's memory and warns its owner."""

    table_stretches: int = DEFAULT_LIMIT
    low_water_blocks: int = 0


@dataclass(slots=True)
class Change:
    """One change of the pool that waits for its commit.

    `prepare(metadata)` runs before anything is changed, and may refuse (raise); after it nothing may fail. `apply(metadata)`
    runs under the lock, in the same commit as the cut of `cut_devices`, all at the one instant `cut_at_ns`.
    """

    apply: Callable[[PoolMetadata], Any]
    prepare: Callable[[PoolMetadata], None] | None = None
    cut_devices: Sequence[int] = ()
    deletes: bool = False
    done: Future[Any] = field(default_factory=Future)
    cut_at_ns: int = 0


class Engine:
    """One open pool; `close` commits what is dirty and ends the committer."""

    def __init__(
        self,
        metadata: PoolMetadata,
        data: BlockDevice,
        dirty: DirtyLog,
        settings: EngineSettings | None = None,
        *,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.metadata, self.data, self.dirty = metadata, data, dirty
        self.settings = settings or EngineSettings()
        self.block_bytes = metadata.superblock.data_block_bytes
        self.lock = threading.RLock()
        self.publish_lock = threading.Lock()
        self.gate = Gate()
        counts = metadata.transaction.data.counts
        self.space = DataSpace(counts, self.lock, data, self.block_bytes, self.settings.low_water_blocks)
        self.devices: dict[int, ThinDevice] = {}
        self.failed: str | None = None
        self.commit_count = 0
        self.last_pause_s = 0.0
        self.before_seal: Callable[[PoolMetadata, Any], None] | None = None
        self.after_commit: Callable[[Any], None] | None = None
        self._clock_ns = clock_ns
        self._frozen: DirtySet | None = None
        self._frozen_cut: frozenset[int] = frozenset()
        self._fold_generation = 0
        self._unsettled = False
        self._waiting = threading.Condition()
        self._changes: deque[Change] = deque()
        self._flushes: list[Callable[[str | None], None]] = []
        self._closing = False
        self._dirty_limit = 0
        self._bound()
        self.space.refill()
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._thread.start()

    # -- for those who serve I/O -------------------------------------------------------------------------------

    def open_device(
        self, dev_id: int, size_bytes: int, *, origin: BlockDevice | None = None, read_only: bool = True
    ) -> ThinDevice:
        """The device as a disk; a writable one is opened once, and found again."""
        with self.publish_lock:
            found = self.devices.get(dev_id)
            if found is not None and (read_only or not found.read_only):
                return found
            device = ThinDevice(self, dev_id, size_bytes, origin=origin, read_only=read_only)
            self.devices[dev_id] = device
            return device

    def load_stretch(self, device: ThinDevice, index: int) -> memoryview:
        """A stretch of the page table: the mapping tree under what is dirty; kept if it may be kept (E2)."""
        begin = index * STRETCH_BLOCKS
        while True:
            generation = self._fold_generation
            with self.lock:
                settled, epoch = not self._unsettled, device.epoch
                root = self.metadata.device(device.dev_id).root
                found = mapped_entries(self.metadata.transaction, root, begin, begin + STRETCH_BLOCKS)
            blocks, data_blocks, own = found
            with self.publish_lock:
                if generation != self._fold_generation or epoch != device.epoch:
                    continue
                entries = device.stretch_of(index, blocks, data_blocks, own & settled)
                if not device.read_only:
                    if self._frozen is not None:
                        stamp = SHARED if device.dev_id in self._frozen_cut else device.epoch
                        _overlay(entries, begin, self._frozen.of_device(device.dev_id), stamp)
                    _overlay(entries, begin, self.dirty.active().of_device(device.dev_id), device.epoch)
                return device.table.install(index, entries) if settled else entries.data

    def publish(self, device: ThinDevice, virtual_block: int, data_block: int) -> None:
        """`virtual_block` stands in `data_block` from now on, which is written whole (W3 of thin/device)."""
        with self.publish_lock:
            assert not self.dirty.is_full, "admit lets nobody come this far"
            self.dirty.append_mapped(device.dev_id, virtual_block, data_block)
            device.table.set_entry(virtual_block, data_block << STAMP_BITS | device.epoch)

    def publish_unmapped(self, device: ThinDevice, begin: int, end: int) -> None:
        """The blocks [begin, end) are unmapped from now on."""
        with self.publish_lock:
            assert not self.dirty.is_full, "admit lets nobody come this far"
            self.dirty.append_unmapped(device.dev_id, begin, end - begin)
            device.table.clear_run(begin, end)

    def admit(self) -> None:
        """Before a mapping change, inside the gate: waits for a commit when the dirty set is full (P8)."""
        while self.dirty.count >= self._dirty_limit:
            self._check_alive()
            if not self.dirty.count and self._dirty_limit <= 0:
                raise NoSpaceError(
                    f"metadata space is out: {self.metadata.transaction.metadata.counts.free_count} blocks are free",
                    mend="grow it: replicator pool grow POOL --metadata +SIZE",
                )
            self._wait_outside()
        self._check_alive()

    def _wait_outside(self) -> None:
        with self.gate.outside():
            self.commit()

    def has_room(self, count: int) -> bool:
        """Whether `count` blocks can be provisioned now without waiting for tree work or a commit."""
        return self.space.stock_count >= count and self.dirty.count + count <= self._dirty_limit

    def wait_for_space(self) -> None:
        """No data block was to be had: what the next commit frees may help; else NoSpaceError (P8)."""
        self._wait_outside()
        self.space.refill()
        if not self.space.free_count:
            self._wait_outside()
            self.space.refill()
        if not self.space.free_count:
            raise NoSpaceError(
                "the pool's data space is full",
                mend="grow it: replicator pool grow POOL --data +SIZE; or delete snapshots, or trim volumes",
            )

    def _check_alive(self) -> None:
        if self.failed:
            raise BrokenPoolError(self.failed, mend="stop what has the pool open, and open it again")

    def flush(self, done: Callable[[str | None], None]) -> None:
        """Make everything that was answered so far durable; `done(None)`, or `done(reason)`, from the committer."""
        with self._waiting:
            self._flushes.append(done)
            self._waiting.notify()

    # -- for those who manage the pool -------------------------------------------------------------------------

    def change(self, change: Change) -> Any:
        """Hand in a change and wait until the commit that holds it is durable; returns what `apply` returned."""
        self.submit(change)
        return change.done.result()

    def submit(self, change: Change) -> None:
        """Hand in a change; `change.done` tells when it is durable."""
        with self._waiting:
            if self._closing:
                raise ReplicatorError("the pool is being closed")
            self._changes.append(change)
            self._waiting.notify()

    def commit(self) -> None:
        """Make all that is dirty durable, and wait for it."""
        done: Future[str | None] = Future()
        self.flush(done.set_result)
        reason = done.result()
        if reason:
            raise BrokenPoolError(reason, mend="stop what has the pool open, and open it again")

    def close(self) -> None:
        """Commit, and end the committer; the devices stay open for their owner to close."""
        with self._waiting:
            self._closing = True
            self._waiting.notify()
        self._thread.join()
        if not self.failed:
            self.dirty.restart(superblock_sum(self.metadata.superblock.pack()))
        self.dirty.close()

    # -- the committer -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._waiting:
                while not (self._changes or self._flushes or self._closing):
                    self._waiting.wait()
                change = self._changes.popleft() if self._changes else None
                flushes, self._flushes = self._flushes, []
                closing = self._closing
            reason = self._round_of(change)
            for done in flushes:
                done(reason)
            if closing and not (self._changes or self._flushes):
                return

    def _round_of(self, change: Change | None) -> str | None:
        """One commit of what is dirty, with `change`; returns why it failed, or None."""
        try:
            self._check_alive()
            if change is not None and not self._accepts(change):
                change = None
            if change is not None or self.dirty.count:
                self._commit(change)
            else:
                self.data.flush()
        except Exception as error:  # noqa: BLE001 - whatever it was, every waiter has to hear of it
            self._fail(error)
            if change is not None:
                change.done.set_exception(error)
            return str(error)
        return None

    def _fail(self, error: Exception) -> None:
        if self.failed is None:
            self.failed = f"a commit failed, and nothing is known of the disk since: {error}"
            self.dirty.void()

    def _accepts(self, change: Change) -> bool:
        if change.prepare is not None:
            try:
                with self.lock:
                    change.prepare(self.metadata)
            except ReplicatorError as error:
                change.done.set_exception(error)
                return False
        return True

    def _commit(self, change: Change | None) -> None:
        frozen = self._freeze(change)
        result = None
        with self.lock:
            superseded = fold_into(self.metadata, frozen)
            if change is not None:
                result = change.apply(self.metadata)
                self._unsettled = change.deletes
                if self.before_seal is not None:
                    self.before_seal(self.metadata, result)
            block0 = self.metadata.seal()
            self.dirty.committing(superblock_sum(block0))
        self.metadata.write(block0, self.data.flush)
        self._finish(superseded)
        if change is not None:
            if self.after_commit is not None:
                self.after_commit(result)
            change.done.set_result(result)

    def _freeze(self, change: Change | None) -> DirtySet:
        cut = frozenset(change.cut_devices) if change is not None else frozenset()
        began = time.perf_counter()
        with self.gate.closed() if cut else nullcontext(), self.publish_lock:
            self._frozen = self.dirty.freeze()
            self._frozen_cut = cut
            self._unsettled = bool(cut) or (change is not None and change.deletes)
            for dev_id in cut & self.devices.keys():
                self.devices[dev_id].next_epoch()
            if change is not None:
                change.cut_at_ns = self._clock_ns()
        if cut:
            self.last_pause_s = time.perf_counter() - began
        return self._frozen

    def _finish(self, superseded: list[Words]) -> None:
        with self.lock:
            freed = self.metadata.finish()
            self.gate.retire(np.concatenate([freed, *superseded]))
            self.metadata.transaction.data.counts.settle(self.gate.reclaim())
            self.metadata.transaction.data.counts.unload(_KEEP_SECTIONS)
            self._unsettled = False
            self._bound()
        with self.publish_lock:
            self.dirty.committed()
            self._frozen = None
            self._frozen_cut = frozenset()
            self._fold_generation += 1
        self.commit_count += 1
        self.space.refill()

    def _bound(self) -> None:
        """How many dirty records the free metadata can take in the worst case (P8)."""
        transaction = self.metadata.transaction
        free, low, high = transaction.metadata.counts.free_count, 0, self.dirty.capacity - _MARGIN_RECORDS
        while low < high:
            middle = (low + high + 1) // 2
            if transaction.worst_case_blocks(middle) <= free:
                low = middle
            else:
                high = middle - 1
        self._dirty_limit = low


def fold_into(metadata: PoolMetadata, changes: DirtySet) -> list[Words]:
    """Bring a dirty set into the mapping trees; returns the data blocks that were provisioned in vain."""
    superseded = []
    for dev_id, folded in split_by_device(changes):
        for begin, end in folded.unmapped.tolist():
            unmap_range(metadata, dev_id, begin, end, but=folded.virtual_blocks)
        metadata.map(dev_id, folded.virtual_blocks, folded.data_blocks)
        superseded.append(folded.superseded)
    return superseded


def unmap_range(metadata: PoolMetadata, dev_id: int, begin: int, end: int, *, but: Words | None = None) -> None:
    """Unmap what is mapped in [begin, end), except the blocks `but`; in bounded pieces."""
    for low in range(begin, end, _UNMAP_PIECE):
        pieces = [keys for keys, _ in metadata.mapped(dev_id, low, min(end, low + _UNMAP_PIECE))]
        if pieces:
            keys = np.concatenate(pieces)
            metadata.unmap(dev_id, keys if but is None else keys[~np.isin(keys, but)])


def _overlay(entries: Words, begin: int, changes: DirtySet, stamp: int) -> None:
    """Apply one device's dirty changes to the stretch that begins at virtual block `begin`."""
    end = begin + len(entries)
    touching = (changes.begins < end) & ((changes.kinds == MAPPED) | (changes.begins + changes.values > begin))
    touching &= (changes.begins >= begin) | (changes.kinds != MAPPED)
    rows = np.flatnonzero(touching)
    kinds, begins, values = changes.kinds[rows], changes.begins[rows], changes.values[rows]
    if (kinds == MAPPED).all():
        entries[(begins - np.uint64(begin)).astype(np.int64)] = values << np.uint64(STAMP_BITS) | np.uint64(stamp)
        return
    for kind, first, value in zip(kinds.tolist(), begins.tolist(), values.tolist(), strict=True):
        if kind == MAPPED:
            entries[first - begin] = value << STAMP_BITS | stamp
        else:
            entries[max(first - begin, 0) : min(first + value, end) - begin] = 0
