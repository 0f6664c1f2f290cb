"""How a switch, a cut and a resize become one commit of the engine: looked at first, then done without fail.

Used by pool/local only. `prepare` runs before anything is changed and refuses what can't be (unknown or leased
devices); `apply` runs in the commit and returns an Outcome: the catalogue rows that go with it.

Invariants
  A1  What `prepare` let through, `apply` does whole: no error of a caller's making comes after the first change.
  A2  New dev_ids are none that the metadata has, whoever made it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from replicator.blockdev.file import FileDevice
from replicator.blockdev.interface import BlockDevice
from replicator.errors import ConflictError, NotFoundError, ReplicatorError, UsageError
from replicator.pdata.bitmap import ENTRIES_PER_BITMAP, LARGEST_METADATA_BLOCKS
from replicator.pdata.block import Words
from replicator.pdata.mirror import MirroredDevice
from replicator.pdata.room import UNMAP_WEIGHT
from replicator.pool.catalogue_schema import VOLUME_BYTES_LIMIT, Cut, Snapshot, Volume
from replicator.pool.changes import Put
from replicator.pool.deleting import being_deleted, delete_some
from replicator.pool.interface import CutMade, CutRequest, Filling, StaleSwitchError, Switch
from replicator.pool.outcome import Outcome
from replicator.pool.view import CatalogueView
from replicator.thin.folding import unmap_range
from replicator.thin.mapping import data_blocks
from replicator.thin.metadata import PoolMetadata
from replicator.units import METADATA_BLOCK_BYTES, format_size

if TYPE_CHECKING:
    from replicator.pool.local import LocalPool


_INDEX_FILL = 42  # bitmaps that a leaf of their index has at the least, once split


class NothingChangedError(ReplicatorError):
    """The volumes of a cut were what the snapshots that its client has still are, at `looked_at_ns`."""

    kind = "unchanged"

    def __init__(self, looked_at_ns: int) -> None:
        super().__init__("nothing has changed since the last cut")
        self.looked_at_ns = looked_at_ns


class CutMadeAlreadyError(ReplicatorError):
    """A cut of that id has been made; its client asks again (I2 of pool/interface)."""

    kind = "made already"

    def __init__(self, cut: Cut) -> None:
        super().__init__(f"the cut {cut.cut_id} has been made already")
        self.cut = cut


class SwitchChange:
    """A Switch on its way through one commit."""

    def __init__(self, switch: Switch, pool: LocalPool) -> None:
        self.switch = switch
        self.pool = pool

    def prepare(self, metadata: PoolMetadata) -> None:
        """Refuse what can't be done (A1)."""
        switch, current = self.switch, metadata.superblock.transaction_id
        if switch.expected_id is not None and switch.expected_id != current:
            raise StaleSwitchError(f"the pool's transaction id is {current}, not {switch.expected_id}")
        new = [*switch.create, *(dev_id for dev_id, _ in switch.snapshot)]
        if len(set(new)) != len(new):
            raise UsageError("a switch names one new device twice")
        if len(set(switch.delete)) != len(switch.delete):
            raise UsageError("a switch deletes one device twice")
        self._refuse_dying(metadata)
        for dev_id in new:
            metadata.check_new(dev_id)
        for origin in [origin for _, origin in switch.snapshot if origin not in new]:
            metadata.device(origin)
        for filling in switch.fill:
            self._prepare_filling(metadata, filling, new)
        for dev_id in switch.delete:
            metadata.device(dev_id)
            self._refuse_used(dev_id, "deleted")
        self._check_rows(current)
        self._check_growth(metadata)
        if switch.snapshot:
            metadata.check_time()

    def _refuse_dying(self, metadata: PoolMetadata) -> None:
        """A device that is being deleted isn't there any more (B1 of pool/deleting)."""
        switch, dying = self.switch, being_deleted(self.pool.view())
        named = {*switch.delete, *(origin for _, origin in switch.snapshot), *(each.dev_id for each in switch.fill)}
        for dev_id in named & dying.keys():
            raise NotFoundError(f"the pool has no thin device {dev_id} any more")

    def _check_growth(self, metadata: PoolMetadata) -> None:
        switch, counts = self.switch, metadata.transaction.data.counts
        held, block_bytes = metadata.transaction.metadata.counts, self.pool.block_bytes
        data, store = self.pool.engine.data, metadata.store.device
        _check_total("data", switch.grow_data_blocks, counts.nr_blocks, data, block_bytes)
        most = min(switch.grow_metadata_blocks, LARGEST_METADATA_BLOCKS)
        _check_total("metadata", most, held.nr_blocks, store, METADATA_BLOCK_BYTES)

    @property
    def room_blocks(self) -> int:
        """Metadata blocks that a grown pool needs beyond today's: bitmaps and their index, once more while in use."""
        transaction = self.pool.engine.metadata.transaction
        wanted = -(-self.switch.grow_data_blocks // ENTRIES_PER_BITMAP) - transaction.data.counts.sections
        gained = self.switch.grow_metadata_blocks - transaction.metadata.counts.nr_blocks
        return max(0, 2 * wanted + max(0, wanted) // _INDEX_FILL - max(0, gained))

    @property
    def fills(self) -> list[int]:
        """The devices whose trees are filled; a new one's is its origin's."""
        origins = dict(self.switch.snapshot)
        return [origins.get(each.dev_id, each.dev_id) for each in self.switch.fill]

    @property
    def weight(self) -> int:
        """What the change adds to its commit (pdata/room)."""
        switch = self.switch
        devices = len(switch.create) + len(switch.snapshot) + len(switch.delete)
        filled = sum(len(each.virtual_blocks) + UNMAP_WEIGHT * len(each.unmapped) for each in switch.fill)
        return filled + UNMAP_WEIGHT * max(devices - 1, 0)

    def _prepare_filling(self, metadata: PoolMetadata, filling: Filling, new: Iterable[int]) -> None:
        if filling.dev_id not in new:
            metadata.device(filling.dev_id)
            self._refuse_used(filling.dev_id, "filled")
        blocks = filling.virtual_blocks
        if len(blocks) != len(filling.data_blocks) or bool((blocks[1:] <= blocks[:-1]).any()):
            raise UsageError("a filling's virtual blocks ascend, each with one data block")
        if not metadata.transaction.data.counts.are_reserved(filling.data_blocks):
            raise ConflictError("a filling names data blocks that weren't reserved, or one twice")

    def _refuse_used(self, dev_id: int, what: str) -> None:
        device = self.pool.engine.devices.get(dev_id)
        if device is not None and not device.read_only:
            raise ConflictError(f"thin device {dev_id} is open for writing, so it can't be {what}")
        self.pool.refuse_leased(dev_id, what)

    def _check_rows(self, current: int) -> None:
        """A row to end that isn't there would fail the commit: evolve the view first."""
        self.pool.view().after(self.switch.changes, current + 1)
        rows = [each.value for each in self.switch.changes if isinstance(each, Put)]
        _refuse_too_large(self.pool.view(), [row for row in rows if isinstance(row, Volume | Snapshot)])

    def apply(self, metadata: PoolMetadata) -> Outcome:
        """Do it, in the order that Switch tells."""
        switch = self.switch
        for dev_id in switch.create:
            metadata.create_thin(dev_id)
            self.pool.used_dev_id(dev_id)
        waiting = list(switch.fill)
        for dev_id, origin in switch.snapshot:
            waiting = _fill(metadata, waiting, origin)
            metadata.create_snap(dev_id, origin)
            self.pool.used_dev_id(dev_id)
        _fill(metadata, waiting)
        marks, gone = delete_some(metadata, switch.delete)
        if switch.grow_data_blocks:
            metadata.grow_data(switch.grow_data_blocks)
        if switch.grow_metadata_blocks:
            metadata.grow_metadata(switch.grow_metadata_blocks)
        return Outcome([*switch.changes, *marks], gone)


def _refuse_too_large(view: CatalogueView, rows: Sequence[Volume | Snapshot]) -> None:
    """UsageError for a volume of more than VOLUME_BYTES_LIMIT, unless the pool has one that is as large."""
    size_bytes = max((row.size_bytes for row in rows), default=0)
    if size_bytes > VOLUME_BYTES_LIMIT:
        there = [*(each.size_bytes for each in view.volumes), *(each.size_bytes for each in view.snapshots)]
        if size_bytes > max(there, default=0):
            most = format_size(VOLUME_BYTES_LIMIT)
            raise UsageError(
                f"a volume of {format_size(size_bytes)} can't be: {most} are the most", mend="make it smaller"
            )


def _check_total(what: str, blocks: int, before: int, device: BlockDevice, block_bytes: int) -> None:
    if blocks and blocks < before:
        raise UsageError(f"a pool's {what} device can't shrink: it has {before} blocks, more than {blocks}")
    if isinstance(device, FileDevice | MirroredDevice):
        device.refresh_size()
    if blocks * block_bytes > device.size_bytes:
        raise UsageError(
            f"{device.name} has {device.size_bytes} bytes, too few for {blocks} blocks of {block_bytes}",
            mend="grow the device first; replicator pool grow does both with files",
        )


def _fill(metadata: PoolMetadata, fillings: list[Filling], only: int | None = None) -> list[Filling]:
    """Do those of the device `only` (None: all of them); returns the others."""
    left = []
    for filling in fillings:
        if only not in (None, filling.dev_id):
            left.append(filling)
            continue
        for begin, end in filling.unmapped.tolist():
            unmap_range(metadata, filling.dev_id, begin, end)
        metadata.map(filling.dev_id, filling.virtual_blocks, filling.data_blocks)
    return left


class CutChange:
    """A CutRequest on its way through one commit."""

    def __init__(self, request: CutRequest, pool: LocalPool) -> None:
        self.request = request
        self.pool = pool
        self.made: CutMade | None = None
        self.live: list[int] = []

    def prepare(self, metadata: PoolMetadata) -> None:
        """Refuse what can't be cut; NothingChangedError where the client has it all already. Sets `live`."""
        request = self.request
        if (before := self.pool.view().cut(request.cut_id)) is not None:
            raise CutMadeAlreadyError(before)
        if not request.volumes or len(set(request.volumes)) != len(request.volumes):
            raise UsageError("a cut takes one volume or more, each once")
        volumes = [self.pool.view().volume(uuid) for uuid in request.volumes]
        self.live = [volume.dev_id for volume in volumes]
        if request.prepared and tuple(each.volume for each in request.prepared) != request.volumes:
            raise UsageError("a cut's prepared transactions are one for each of its volumes, in their order")
        if len(request.unless_equal) == len(volumes):
            pairs = zip(volumes, request.unless_equal, strict=True)
            if all(self._is_equal(metadata, volume, dev_id) for volume, dev_id in pairs):
                raise NothingChangedError(self.pool.clock_ns())
        metadata.check_time()

    @property
    def weight(self) -> int:
        """What the cut adds to its commit (pdata/room)."""
        return UNMAP_WEIGHT * (len(self.request.volumes) - 1)

    def _is_equal(self, metadata: PoolMetadata, volume: Volume, dev_id: int) -> bool:
        snapshot = metadata.find(dev_id)
        if snapshot is None or snapshot.root != metadata.device(volume.dev_id).root:
            return False
        known = self.pool.view().snapshot(dev_id)
        engine = self.pool.engine
        with engine.publish_lock:
            dirty = len(engine.dirty.active().of_device(volume.dev_id))
        return not dirty and known.size_bytes == volume.size_bytes

    def apply(self, metadata: PoolMetadata, timestamp_ns: int) -> Outcome:
        """Make the snapshots and their rows."""
        request, outcome, dev_ids = self.request, Outcome(), []
        for volume in map(self.pool.view().volume, request.volumes):
            dev_id = metadata.free_dev_id(self.pool.next_dev_id())
            metadata.create_snap(dev_id, volume.dev_id)
            self.pool.used_dev_id(dev_id)
            dev_ids.append(dev_id)
            outcome.changes.append(Put(self._snapshot(dev_id, volume, timestamp_ns)))
        for each, dev_id in zip(request.prepared, dev_ids, strict=False):
            size = self.pool.view().volume(each.volume).size_bytes
            row = replace(each, target_dev_id=dev_id, timestamp_ns=timestamp_ns, size_bytes=size)
            outcome.changes.append(Put(row))
        outcome.changes.append(Put(Cut(request.cut_id, tuple(dev_ids), timestamp_ns)))
        self.made = CutMade(request.cut_id, tuple(dev_ids), timestamp_ns, 0)
        return outcome

    def _snapshot(self, dev_id: int, volume: Volume, timestamp_ns: int) -> Snapshot:
        request = self.request
        return Snapshot(
            dev_id,
            volume.uuid,
            request.purpose,
            timestamp_ns,
            volume.size_bytes,
            consistency=request.consistency,
            labels=request.labels,
            name=request.name,
        )


class ResizeChange:
    """A volume's new size on its way through one commit; what lies beyond is gone with it.

    The volume counts as cut for as long as that commit takes, so that nobody overwrites its last block in place while a
    copy of it, with zeros behind the new end, takes its place. Who gives that block a home of their own meanwhile puts
    zeros there too (W4 of thin/device).
    """

    def __init__(self, volume: Volume, size_bytes: int, pool: LocalPool, spare: Words | None) -> None:
        """`spare` is a data block for what is left of a smaller volume's last one; None once it is used."""
        self.volume = replace(volume, size_bytes=size_bytes)
        self.pool, self.spare = pool, spare

    def prepare(self, metadata: PoolMetadata) -> None:
        """NotFoundError or ConflictError before anything is done; takes the volume's row as it is by now."""
        now = self.pool.view().volume(self.volume.uuid)
        if now.dev_id != self.volume.dev_id:
            raise ConflictError(f"{now.name} was rolled back meanwhile", mend="try again")
        self.volume = replace(now, size_bytes=self.volume.size_bytes)
        metadata.device(self.volume.dev_id)
        _refuse_too_large(self.pool.view(), [self.volume])
        if self.volume.size_bytes < now.size_bytes:
            self.pool.refuse_leased(now.dev_id, "made smaller")

    def apply(self, metadata: PoolMetadata) -> Outcome:
        """Unmap beyond the end, and put the row."""
        begin = -(-self.volume.size_bytes // self.pool.block_bytes)
        end = max((int(keys[-1]) + 1 for keys, _ in metadata.mapped(self.volume.dev_id, begin, 1 << 48)), default=begin)
        unmap_range(metadata, self.volume.dev_id, begin, end)
        block, inside = divmod(self.volume.size_bytes, self.pool.block_bytes)
        found = next(metadata.mapped(self.volume.dev_id, block, block + 1), None)
        if self.spare is not None and found is not None:
            data, size = self.pool.engine.data, self.pool.block_bytes
            head = data.pread(inside, int(data_blocks(found[1])[0]) * size)
            data.pwrite(head + bytes(size - inside), int(self.spare[0]) * size)
            metadata.map(self.volume.dev_id, found[0], self.spare)
            self.spare = None
        return Outcome([Put(self.volume)])
