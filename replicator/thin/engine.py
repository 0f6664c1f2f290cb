"""The engine of one pool: acknowledged changes on one side, transactions on disk on the other, one thread between them.

Above thin/metadata (what the pool is) and below pool/ (names, catalogue). Whoever serves I/O calls `load_stretch`,
`publish`, `admit` and `flush`; whoever manages the pool hands in changes with `change`. The committer thread makes one
commit of all flushes that wait and the next change, which so is a compare-and-swap of its own:

    freeze    swap the dirty set (a cut closes the gate for that long, and raises its devices' epochs)      P3, P4
    fold      frozen mappings into the trees, then the changes (snapshots, deletes, …), under `lock`; reads and writes
              go on from the last durable state
    seal      space maps and block 0 placed
    write     data flushed, metadata written and flushed, block 0 written and flushed, without `lock`        P1, P2
    finish    the new state is the one to read from; then freed blocks go into their grace period, waiters are answered

Where the process dies, `dirty` has what was acknowledged (thin/dirty has the table); where the machine dies, the last
block 0 has what was flushed.

Invariants
  E1  `lock` is held by whoever reads or changes the running transaction, counts or reserved blocks; `publish_lock` by
      whoever changes page tables and dirty records. `publish_lock` is never held while waiting for `lock`.
  E2  Nobody who reads or writes a disk waits for `lock` as long as there is room: page tables are loaded from the last
      durable state (thin/paging), and data blocks are in stock (thin/space).
  E3  After a failed commit or flush nothing is acknowledged any more, until the pool is opened again. What was, is
      replayed then; only where a write or flush failed is it given up.
  E4  A change that fails before its commit is written (nothing could be staged, a node couldn't be read, it asked for
      nonsense) was never begun; what was dirty is committed without it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from replicator.blockdev.interface import BlockDevice
from replicator.errors import ReplicatorError
from replicator.pdata.block import Words
from replicator.pdata.room import UNMAP_WEIGHT, PoolShape
from replicator.pdata.transaction import BrokenPoolError
from replicator.thin.admission import Admission, Opened, no_metadata_space, shape_of
from replicator.thin.change import Change, ChangeQueue
from replicator.thin.committed import Committed
from replicator.thin.device import ThinDevice
from replicator.thin.dirty import DirtyLog, DirtySet, superblock_sum
from replicator.thin.folding import fold_into
from replicator.thin.gate import Gate
from replicator.thin.metadata import PoolMetadata
from replicator.thin.paging import Paging
from replicator.thin.space import DataSpace
from replicator.thin.table import DEFAULT_LIMIT, STAMP_BITS, sections_beside

_log = logging.getLogger(__name__)
_CLOSED = "the pool is being closed"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What bounds the engine's memory and warns its owner."""

    table_stretches: int = DEFAULT_LIMIT
    low_water_blocks: int = 0


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
        metadata.transaction.limit_counts(sections_beside(self.settings.table_stretches))
        counts = metadata.transaction.data.counts
        self.space = DataSpace(counts, self.lock, data, self.block_bytes, self.settings.low_water_blocks)
        self.devices: dict[int, ThinDevice] = {}
        self.failed: str | None = None
        self.given_up_count = 0
        self.commit_count = 0
        self.last_pause_s = 0.0
        self.before_seal: Callable[[PoolMetadata, Any], None] | None = None
        self.after_commit: Callable[[Any], None] | None = None
        self._clock_ns = clock_ns
        self.paging = Paging(Committed(metadata.superblock, metadata.transaction), dirty, self.lock, self.publish_lock)
        self._committing = self._in_doubt = False
        self._waiting = threading.Condition()
        self._changes = ChangeQueue()
        self._flushes: list[Callable[[str | None], None]] = []
        self._closing = self._ended = False
        self.admission = Admission(dirty.capacity)
        self.admission.idle(*self._shape())
        self.space.refill()
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._thread.start()

    # -- for those who serve I/O -------------------------------------------------------------------------------

    def open_device(
        self, dev_id: int, size_bytes: int, *, origin: BlockDevice | None = None, read_only: bool = True
    ) -> ThinDevice:
        """The device as a disk; one that is open is found again. `close_device` of thin/closing ends its use."""
        with nullcontext() if read_only else self.lock:
            found = None if read_only else self.metadata.find(dev_id)
            with self.publish_lock:
                device = self.devices.get(dev_id)
                if device is None or device.closed or (device.read_only and not read_only):
                    device = ThinDevice(self, dev_id, size_bytes, origin=origin, read_only=read_only)
                    self.devices[dev_id] = device
                    if not read_only:
                        self.admission.device_opened(found.mapped_blocks if found is not None else 0)
                device.users += 1
            if not read_only:
                looked = self._shape()
                with self.publish_lock:
                    self.admission.look_again(*looked)
        return device

    def load_stretch(self, device: ThinDevice, index: int) -> memoryview:
        """A stretch of the page table that isn't loaded; waits for no tree work (thin/paging)."""
        return self.paging.load(device, index)

    def publish(self, device: ThinDevice, virtual_block: int, data_block: int, before: int | None = None) -> bool:
        """`virtual_block` stands in `data_block`, which is written whole, from now on (W3 of thin/device).

        False, with nothing changed: no room for the record (`admit` waits for it), or a copy of `before` is void (W2).
        """
        with self.publish_lock:
            if device.is_void(virtual_block, before) or not self._takes(1):
                return False
            self.dirty.append_mapped(device.dev_id, virtual_block, data_block)
            device.table.set_entry(virtual_block, data_block << STAMP_BITS | device.epoch)
            return True

    def publish_unmapped(self, device: ThinDevice, begin: int, end: int) -> bool:
        """The blocks [begin, end) are unmapped from now on; False as for `publish`."""
        with self.publish_lock:
            if not self._takes(1, trims=True):
                return False
            device.void_claims(begin, end)
            self.dirty.append_unmapped(device.dev_id, begin, end - begin)
            device.table.clear_run(begin, end)
            return True

    def _takes(self, count: int, *, trims: bool = False) -> bool:
        weight = self.dirty.weight + count * (UNMAP_WEIGHT if trims else 1)
        limit = self.admission.trim_limit if trims else self.admission.write_limit
        return weight <= limit and self.dirty.count + count <= self.dirty.capacity

    def has_room(self, count: int) -> bool:
        """Whether `count` blocks can be provisioned now without waiting for tree work or a commit."""
        return self.space.stock_count >= count and self._takes(count)

    def admit(self, *, trims: bool = False) -> bool:
        """Before a mapping change, inside the gate: waits outside for a commit when it's full (P8); whether it did."""
        self._check_alive()
        waited = False
        while not self._takes(1, trims=trims):
            with self.publish_lock:
                idle = not self._committing and not self.dirty.count and not self._takes(1, trims=trims)
            if idle:
                raise no_metadata_space(self.metadata.transaction.metadata.counts.free_count)
            self.wait_outside()
            waited = True
            self._check_alive()
        return waited

    def wait_outside(self) -> None:
        """A commit, awaited outside the gate by one who is inside it."""
        with self.gate.outside():
            self.commit()

    def wait_for_space(self) -> None:
        """No data block was to be had: what the next commits free may help; else NoSpaceError (P8)."""
        for _ in range(2):
            self.wait_outside()
            self.space.refill()
            if self.space.stock_count:
                break
        self.space.ensure_one()

    def _check_alive(self) -> None:
        if self.failed:
            raise BrokenPoolError(self.failed, mend="stop what has the pool open, and open it again")

    def flush(self, done: Callable[[str | None], None]) -> None:
        """Make everything that was answered so far durable; `done(None)`, or `done(reason)`, from the committer."""
        with self._waiting:
            if not self._ended:
                self._flushes.append(done)
                self._waiting.notify()
                return
        done(_CLOSED)

    # -- for those who manage the pool -------------------------------------------------------------------------

    def change(self, change: Change) -> Any:
        """Hand in a change and wait until the commit that holds it is durable; returns what `apply` returned."""
        self.submit(change)
        return change.done.result()

    def submit(self, change: Change) -> None:
        """Hand in a change; `change.done` tells when it is durable."""
        with self._waiting:
            if self._closing:
                raise ReplicatorError(_CLOSED)
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
                change = self._changes.pop()
                flushes, self._flushes = self._flushes, []
                closing = self._closing
            reason = self._round_of(change)
            for done in flushes:
                try:
                    done(reason)
                except Exception:  # noqa: BLE001 - who can't be told is no reason to let all others wait for ever
                    _log.exception("a flush was done, but its asker couldn't be told")
            with self._waiting:
                if closing and not (self._changes or self._flushes):
                    self._ended = True
                    return

    def _round_of(self, change: Change | None) -> str | None:
        """One commit of what is dirty, with `change`; returns why it failed, or None."""
        try:
            self._check_alive()
            if change is not None and not (self._accepts(change) and self._has_room_for(change)):
                change = None
            if change is not None or self.dirty.count:
                self._commit(change)
            else:
                self._to_disk(self.data.flush)
                with self.lock:
                    self.metadata.transaction.data.counts.settle(self.gate.reclaim())
                    self.metadata.transaction.trim_counts()
        except Exception as error:  # noqa: BLE001 - whatever it was, every waiter has to hear of it
            self._fail(error)
            if change is not None and not change.done.done():
                change.done.set_exception(error)
            return str(error)
        return None

    def _fail(self, error: Exception) -> None:
        if self.failed is None:
            self.failed = f"a commit failed, and nothing is acknowledged since: {error}"
            with self.publish_lock:
                if self._in_doubt:
                    self.dirty.void()
                self.paging.may_own = False
                for device in self.devices.values():
                    device.next_epoch()  # nothing is overwritten in place any more: every write meets `admit`

    def _accepts(self, change: Change) -> bool:
        if change.prepare is not None:
            try:
                with self.lock:
                    change.prepare(self.metadata)
            except Exception as error:  # noqa: BLE001 - whatever it was, the change was never begun (E4)
                change.done.set_exception(error)
                return False
        return True

    def _has_room_for(self, change: Change) -> bool:
        """Whether the change fits beside what is dirty, that being committed first if need be; else it's refused."""
        for _ in range(2):
            shape, seen = self._shape(change)
            with self.publish_lock:
                weight = self.dirty.weight + change.weight
                if self.admission.fits(self.admission.now(shape, seen), weight, may_use_kept=change.deletes):
                    self.admission.frozen(shape, seen, change.weight, 1)  # until the freeze nobody takes its room
                    return True
            if not self.dirty.count:
                break
            self._commit(None)
        with self.publish_lock:
            self.admission.idle(shape, seen)
        change.done.set_exception(no_metadata_space(shape.free_blocks))
        return False

    def _commit(self, change: Change | None) -> None:
        frozen = self._freeze(change, *self._shape(change))
        result = None
        with self.lock:
            superseded = fold_into(self.metadata, frozen)
            if change is not None and self._accepts(change):
                result = self._apply(change)
            if change is not None and change.done.done():
                change = None
            block0 = self.metadata.seal()
            self.dirty.committing(superblock_sum(block0))
        self._to_disk(partial(self.metadata.write, block0, self.data.flush))
        self._finish(superseded, change)
        if change is not None:
            if self.after_commit is not None:
                self.after_commit(result)
            change.done.set_result(result)

    def _apply(self, change: Change) -> Any:
        """What the change returns; where it fails, its maker hears of it, and the commit goes on without it (E4)."""

        def work(metadata: PoolMetadata) -> Any:
            result = change.apply(metadata)
            if self.before_seal is not None:
                self.before_seal(metadata, result)
            return result

        try:
            return self.metadata.attempt(work)
        except Exception as error:  # noqa: BLE001 - whatever it was, nothing of the change was done
            change.done.set_exception(error)
            return None

    def _to_disk(self, write: Callable[[], None]) -> None:
        """Where this fails, nothing is known of the disk; where anything else does, `dirty` can be replayed (E3)."""
        self._in_doubt = True
        write()
        self._in_doubt = False

    def _freeze(self, change: Change | None, shape: PoolShape, seen: Opened) -> DirtySet:
        cut = frozenset(change.cut_devices) if change is not None else frozenset()
        began = time.perf_counter()
        with self.gate.closed() if cut else nullcontext(), self.publish_lock:
            weight = self.dirty.weight + (change.weight if change is not None else 0)
            frozen, self._committing = self.paging.freeze(cut), True
            self.admission.frozen(shape, seen, weight, 1 if change is not None else 0)
            for dev_id in cut & self.devices.keys():
                self.devices[dev_id].next_epoch()
            if change is not None:
                change.cut_at_ns = self._clock_ns()
        if cut:
            self.last_pause_s = time.perf_counter() - began
        return frozen

    def _finish(self, superseded: list[Words], change: Change | None) -> None:
        with self.lock:
            freed = self.metadata.finish(partial(self._show, change.fills if change is not None else ()))
            self.gate.retire(np.concatenate([freed, *superseded]))
            self.metadata.transaction.data.counts.settle(self.gate.reclaim())
            self.metadata.transaction.trim_counts()
            shape, seen = self._shape()
        with self.publish_lock:
            self.admission.idle(shape, seen)
            self._committing = False
        self.commit_count += 1
        self.space.refill()

    def _show(self, filled: Sequence[int]) -> None:
        """The commit is durable: from now on its state is read, and what `filled` devices had before isn't."""
        durable = Committed(self.metadata.superblock, self.metadata.transaction)
        self.paging.show(durable, [self.devices[dev_id] for dev_id in filled if dev_id in self.devices])

    def _shape(self, change: Change | None = None) -> tuple[PoolShape, Opened]:
        """What bounds the commits to come: the devices open for writing may change, and those that `change` fills."""
        with self.lock:
            dev_ids = [device.dev_id for device in list(self.devices.values()) if not device.read_only]
            dev_ids += change.fills if change is not None else ()
            room_blocks = change.room_blocks if change is not None else 0
            return shape_of(self.metadata, dev_ids, room_blocks), self.admission.opened
