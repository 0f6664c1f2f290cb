"""A pool that this process owns: engine and catalogue under one transaction id.

The one implementation of pool/interface that does the work; the control socket hands its clients' calls to it. Each
change is one commit: rows for id N+1 are staged and synced first, then the superblock switches N → N+1, and only then
does anybody see them.

    line of a switch             superblock   catalogue            next opening
    before staging               N            N                    N
    staged                       N            N, rows of N+1       N: rows of N+1 removed
    block 0 written              N+1          N+1                  N+1

Invariants
  L1  The view is that of the last durable switch; it never shows what isn't durable.
  L2  A device under lease is neither deleted nor filled, nor opened for writing, nor made smaller; a device open for
      writing is neither filled, nor deleted, nor leased.
  L3  Timestamps of cuts never go back.
  L4  A volume that is opened by its name is that volume: its device's id may have been given again since.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

from replicator.blockdev.interface import BlockDevice
from replicator.errors import ConflictError, NotFoundError, ReplicatorError, UsageError
from replicator.pdata.block import Words
from replicator.pool.applying import (
    CutChange,
    CutMadeAlreadyError,
    NothingChangedError,
    SwitchChange,
)
from replicator.pool.catalogue import Catalogue
from replicator.pool.catalogue_schema import DEV_ID_LIMIT, LoggedPoint
from replicator.pool.deleting import Deletions, being_deleted, is_going
from replicator.pool.interface import CutMade, CutRequest, DeviceFacts, PoolStatus, Switch
from replicator.pool.outcome import Outcome
from replicator.pool.sizes import Sizes
from replicator.pool.view import CatalogueView
from replicator.thin.change import Change
from replicator.thin.committed import Committed
from replicator.thin.device import ThinDevice
from replicator.thin.engine import Engine
from replicator.thin.held import release_metadata_snap, reserve_metadata_snap
from replicator.thin.metadata import PoolMetadata
from replicator.thin.view import DeviceEntry

PURGE_EVERY = 256  # switches between two removals of ended rows: cheap, and the file stays small


@dataclass(slots=True)
class LocalLease:
    """Devices held in this process; it stands until it is released."""

    devices: dict[int, DeviceFacts]
    stands: bool
    _let_go: Callable[[], None]

    def release(self) -> None:
        """End it; a second call does nothing."""
        if self.stands:
            self.stands = False
            self._let_go()


class LocalPool:
    """The pool at `path`, open for writing here; `close` commits and ends the engine, the opener closes the rest."""

    def __init__(
        self,
        path: Path,
        engine: Engine,
        catalogue: Catalogue,
        *,
        replayed: int = 0,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._path, self.engine, self.catalogue = path, engine, catalogue
        self._replayed = replayed
        self._clock_ns = clock_ns
        self._view = catalogue.view(engine.metadata.superblock.transaction_id)
        self._next_view = self._view
        self._last_cut_ns = max((each.timestamp_ns for each in self._view.snapshots), default=0)
        given = [*(each.dev_id for each in self._view.volumes), *(each.dev_id for each in self._view.snapshots)]
        self._next_dev_id = max(given, default=0) % (DEV_ID_LIMIT - 1) + 1
        self._leases: Counter[int] = Counter()
        self._leases_lock = threading.Lock()
        self.sizes = Sizes(self)
        self.on_view: Callable[[CatalogueView], None] | None = None
        self._deletions = Deletions(engine.submit, self.view)
        engine.before_seal = self._stage
        engine.after_commit = self._switched
        self._deletions.go_on()

    @property
    def path(self) -> Path:
        return self._path

    @property
    def block_bytes(self) -> int:
        return self.engine.block_bytes

    # -- looking -----------------------------------------------------------------------------------------------

    def view(self) -> CatalogueView:
        """The catalogue as of the last durable switch (L1)."""
        return self._view

    def points(self, volume: UUID, limit: int, timeline: int | None = None) -> list[LoggedPoint]:
        """The newest restore points of the volume that the log has."""
        return self.catalogue.points(self._view.at_id, volume, limit, timeline)

    def status(self) -> PoolStatus:
        """The numbers of this instant."""
        engine = self.engine
        transaction = engine.metadata.transaction
        superblock = engine.paging.committed.superblock
        data, metadata = transaction.data.counts, transaction.metadata.counts
        dying = being_deleted(self._view)
        deleting = self._facts(list(dying))
        return PoolStatus(
            uuid=self._view.pool.uuid,
            transaction_id=self._view.at_id,
            time=superblock.time,
            block_bytes=engine.block_bytes,
            data_blocks=data.nr_blocks,
            data_free_blocks=engine.space.free_count,
            metadata_blocks=metadata.nr_blocks,
            metadata_free_blocks=metadata.free_count,
            held_root=superblock.held_root,
            dirty_count=engine.dirty.count,
            commit_count=engine.commit_count,
            last_pause_s=engine.last_pause_s,
            failed=engine.failed,
            owner_pid=os.getpid(),
            replayed=self._replayed,
            low_water_blocks=engine.space.low_water_blocks,
            deleting_devices=len(deleting),
            deleting_blocks=sum(each.mapped_blocks for each in deleting.values()),
            deleting_total_blocks=sum(dying[dev_id] for dev_id in deleting),
            next_dev_id=self._next_dev_id,
        )

    def facts(self, dev_ids: Sequence[int] = ()) -> dict[int, DeviceFacts]:
        """The devices that there are in the last durable state, of those asked for; all when none is named."""
        dying = being_deleted(self._view)
        wanted = dev_ids or self.engine.paging.durable(lambda state: [each.dev_id for each in state.view.devices()])
        return self._facts([dev_id for dev_id in wanted if dev_id not in dying])

    def _facts(self, dev_ids: Sequence[int]) -> dict[int, DeviceFacts]:
        def look(state: Committed) -> dict[int, DeviceFacts]:
            found = (state.find(dev_id) for dev_id in dev_ids)
            return {entry.dev_id: _facts_of(entry) for entry in found if entry is not None}

        return self.engine.paging.durable(look)

    @contextmanager
    def lease(self, dev_ids: Sequence[int]) -> Iterator[LocalLease]:
        """Hold these devices for as long as the block lasts."""
        lease = self.take_lease(dev_ids)
        try:
            yield lease
        finally:
            lease.release()

    def take_lease(self, dev_ids: Sequence[int]) -> LocalLease:
        """Hold these devices until `release` is called; what a commit is changing is held once that is durable."""
        while (held := self._lease_durable(dev_ids)) is None:
            self.engine.commit()
        return held

    def _lease_durable(self, dev_ids: Sequence[int]) -> LocalLease | None:
        with self.engine.lock, self._leases_lock:
            there = self.facts(dev_ids) if dev_ids else {}
            self._refuse_going(dev_ids, there)
            running = {dev_id: self.engine.metadata.device(dev_id) for dev_id in dev_ids}
            live = self._open_for_writing(dev_ids)
            if live:
                reason = f"thin device {live[0]} is being written, so that it can't be held as it is"
                raise ConflictError(reason, mend="cut it first")
            if any(device.root != there[dev_id].root for dev_id, device in running.items()):
                return None
            self._leases.update(there.keys())

        def let_go() -> None:
            with self._leases_lock:
                self._leases.subtract(there.keys())

        return LocalLease(there, True, let_go)

    def is_leased(self, dev_id: int) -> bool:
        """Whether somebody reads the device under a lease."""
        with self._leases_lock:
            return self._leases[dev_id] > 0

    def refuse_leased(self, dev_id: int, what: str) -> None:
        """ConflictError while somebody reads the device under a lease (L2)."""
        if self.is_leased(dev_id):
            reason = f"thin device {dev_id} is being read, so it can't be {what} now"
            raise ConflictError(reason, mend="wait until its readers are done")

    def open_live(
        self, dev_id: int, size_bytes: int, origin: BlockDevice | None, *, volume: UUID | None = None
    ) -> ThinDevice:
        """The device as a disk that may be written; ConflictError while it is leased (L2).

        Its size is the volume's, whatever the caller knew (pool/sizes). NotFoundError where it isn't `volume`'s (L4).
        """
        with self.engine.lock, self._leases_lock, self.sizes.lock:
            self._refuse_going([dev_id], [dev_id])
            if volume is not None and self._next_view.volume(volume).dev_id != dev_id:
                raise NotFoundError(f"thin device {dev_id} isn't the volume {volume} any more")
            if self._leases[dev_id] > 0:
                mend = "wait until its readers are done, or end the listener that offers it for reading"
                raise ConflictError(f"thin device {dev_id} is being read, so it can't be written now", mend=mend)
            size_bytes = self.sizes.of(dev_id, size_bytes)
            return self.engine.open_device(dev_id, size_bytes, origin=origin, read_only=False)

    def _refuse_going(self, dev_ids: Sequence[int], there: Collection[int]) -> None:
        """NotFoundError for one that isn't there, or goes with the commit under way; under the engine's lock."""
        for dev_id in sorted(dev_ids):
            if dev_id not in there or is_going(dev_id, self.engine.metadata, self._next_view):
                raise NotFoundError(f"the pool has no thin device {dev_id} (any more)")

    # -- changing ----------------------------------------------------------------------------------------------

    def switch(self, switch: Switch) -> int:
        """One atomic change (pool/interface)."""
        work = SwitchChange(switch, self)
        outcome: Outcome = self.engine.change(
            Change(
                apply=work.apply,
                prepare=work.prepare,
                cut_devices=[origin for _, origin in switch.snapshot],  # one may be opened for writing any moment
                deletes=bool(switch.delete or switch.fill or not (switch.create or switch.snapshot)),
                weight=work.weight,
                fills=work.fills,
                room_blocks=work.room_blocks,
            )
        )
        return outcome.transaction_id

    def _open_for_writing(self, dev_ids: Sequence[int]) -> list[int]:
        devices = self.engine.devices
        return [dev_id for dev_id in dev_ids if dev_id in devices and not devices[dev_id].read_only]

    def cut(self, request: CutRequest) -> CutMade:
        """Snapshots of live volumes at one instant (pool/interface)."""
        work = CutChange(request, self)
        change = Change(apply=lambda _: None, weight=work.weight)

        def prepare(metadata: PoolMetadata) -> None:
            work.prepare(metadata)
            change.cut_devices = work.live

        change.prepare = prepare
        change.apply = lambda metadata: work.apply(metadata, self._cut_time(change.cut_at_ns))
        try:
            outcome: Outcome = self.engine.change(change)
        except CutMadeAlreadyError as before:
            made = before.cut
            return CutMade(made.cut_id, made.dev_ids, made.timestamp_ns, self._view.at_id)
        except NothingChangedError as same:
            at_ns = self._cut_time(same.looked_at_ns)
            return CutMade(request.cut_id, request.unless_equal, at_ns, self._view.at_id, made=False)
        assert work.made is not None
        return replace(work.made, transaction_id=outcome.transaction_id)

    def clock_ns(self) -> int:
        """Now, by the clock that this pool was given."""
        return self._clock_ns()

    def _cut_time(self, now_ns: int) -> int:
        """`now_ns`, or one past the last cut's if the clock went back (L3)."""
        self._last_cut_ns = max(now_ns, self._last_cut_ns + 1)
        return self._last_cut_ns

    def reserve(self, count: int) -> Words:
        """Free data blocks for a client that writes them itself."""
        if count < 0:
            raise UsageError(f"{count} blocks can't be reserved")
        return self.engine.space.take(count)

    def give_back(self, blocks: Words) -> None:
        """Reserved blocks that nobody maps."""
        self.engine.space.give_back(blocks)

    def resize(self, volume: UUID, size_bytes: int) -> int:
        """Grow or shrink a volume, live or not (pool/sizes)."""
        return self.sizes.resize(volume, size_bytes)

    def set_metadata_snapshot(self, held: bool) -> int:
        """Reserve or release the metadata snapshot; returns the held root's block, 0 = none."""
        act = reserve_metadata_snap if held else release_metadata_snap

        def apply(metadata: PoolMetadata) -> Outcome:
            act(metadata)
            return Outcome()

        def prepare(metadata: PoolMetadata) -> None:
            there = metadata.superblock.held_root
            if held and there:
                raise ConflictError(f"block {there} holds a metadata snapshot already; release it first")
            if not held and not there:
                raise ConflictError("the pool holds no metadata snapshot")

        self.engine.change(Change(apply=apply, prepare=prepare, deletes=not held))
        return self.engine.metadata.superblock.held_root

    def flush(self) -> None:
        """Commit what live volumes have dirty."""
        self.engine.commit()

    def close(self) -> None:
        """Finish what is being deleted, commit, and end the engine."""
        self._deletions.finish(alone=True)
        self.engine.close()

    def next_dev_id(self) -> int:
        """Where to look for a free dev_id first: behind the last one given, so that ids are given again late."""
        return self._next_dev_id

    def used_dev_id(self, dev_id: int) -> None:
        """`dev_id` was given; one that lies behind, chosen by an older look, doesn't lead back."""
        if (dev_id - self._next_dev_id) % DEV_ID_LIMIT < DEV_ID_LIMIT // 2:
            self._next_dev_id = dev_id % (DEV_ID_LIMIT - 1) + 1  # never 0, which is nobody's

    # -- the one switch (from the committer) -------------------------------------------------------------------

    def _stage(self, metadata: PoolMetadata, outcome: Outcome) -> None:
        if not outcome.staged:
            return
        current = metadata.superblock.transaction_id
        self.catalogue.stage(current + 1, outcome.changes)
        self._next_view = self._view.after(outcome.changes, current + 1)
        metadata.set_transaction_id(current, current + 1)
        outcome.transaction_id = current + 1

    def _switched(self, outcome: Outcome) -> None:
        if not outcome.staged:
            return
        self._view = self._next_view
        for dev_id in outcome.deleted:
            self.engine.devices.pop(dev_id, None)
        if self._view.at_id % PURGE_EVERY == 0:
            with suppress(ReplicatorError):  # the switch is durable: what is kept too long goes the next time
                self.catalogue.purge(self._view.at_id)
        if self.on_view is not None:
            self.on_view(self._view)
        self._deletions.go_on()


def _facts_of(entry: DeviceEntry) -> DeviceFacts:
    now = entry.details
    return DeviceFacts(
        entry.dev_id, entry.root, now.mapped_blocks, now.transaction_id, now.creation_time, now.snapshotted_time
    )
