"""Our own engine as a Hand of tests.support.thin_sessions: on a bare pool, and on one with a catalogue."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import count

from replicator.blockdev.interface import BlockDevice
from replicator.pool import volumes
from replicator.pool.catalogue_schema import Origin, Snapshot, Volume
from replicator.pool.interface import Switch
from replicator.pool.opening import OwnedPool
from replicator.thin.change import Change
from replicator.thin.device import ThinDevice
from replicator.thin.engine import Engine
from tests.support.thin_sessions import content


@dataclass(slots=True)
class EngineHand:
    """The engine of a pool without names; `sizes` are its devices, which the metadata doesn't hold.

    `origin` lies behind all of them.
    """

    engine: Engine
    sizes: dict[int, int]
    origin: BlockDevice | None = field(default=None, kw_only=True)

    def device(self, dev_id: int) -> ThinDevice:
        """The device, open for writing."""
        return self.engine.open_device(dev_id, self.sizes[dev_id], origin=self.origin, read_only=False)

    def _new(self) -> int:
        with self.engine.lock:
            return self.engine.metadata.free_dev_id()

    def create(self, size_bytes: int) -> int:
        dev_id = self._new()
        self.engine.change(Change(lambda metadata: metadata.create_thin(dev_id)))
        self.sizes[dev_id] = size_bytes
        return dev_id

    def snapshot(self, origin: int) -> int:
        dev_id = self._new()
        self.engine.change(Change(lambda metadata: metadata.create_snap(dev_id, origin), cut_devices=[origin]))
        self.sizes[dev_id] = self.sizes[origin]
        return dev_id

    def delete(self, dev_id: int) -> set[int]:
        self.engine.change(Change(lambda metadata: metadata.delete(dev_id), deletes=True))
        self.engine.devices.pop(dev_id, None)
        del self.sizes[dev_id]
        return {dev_id}

    def write(self, dev_id: int, offset_bytes: int, length_bytes: int, seed: int) -> None:
        with self.engine.gate.writing():
            self.device(dev_id).pwrite(content(seed, length_bytes), offset_bytes)

    def discard(self, dev_id: int, offset_bytes: int, length_bytes: int) -> None:
        with self.engine.gate.writing():
            self.device(dev_id).discard(offset_bytes, length_bytes)

    def hashes(self) -> dict[int, str]:
        """The sha256 of each device, as the engine reads it."""
        found = {}
        for dev_id, size in self.sizes.items():
            device = self.engine.open_device(dev_id, size, origin=self.origin)
            found[dev_id] = hashlib.sha256(device.pread(size, 0)).hexdigest()
        return found


@dataclass(slots=True)
class PoolHand(EngineHand):
    """A pool with a catalogue: volumes, users' snapshots and clones of snapshots, by the rows that there are.

    Devices that the catalogue doesn't know (another engine made them) are worked on all the same.
    """

    pool: OwnedPool
    behind: Origin | None = None
    _numbers: count[int] = field(default_factory=lambda: count(1))

    def _row(self, dev_id: int) -> Volume | Snapshot | None:
        view = self.pool.view()
        rows: list[Volume | Snapshot] = [*view.volumes, *view.snapshots]
        return next((each for each in rows if each.dev_id == dev_id), None)

    def _name(self, kind: str) -> str:
        return f"{kind}-{self.pool.view().at_id}-{next(self._numbers)}"

    def create(self, size_bytes: int) -> int:
        made = volumes.create_volume(self.pool, self._name("disk"), size_bytes, self.behind)
        self.sizes[made.dev_id] = size_bytes
        return made.dev_id

    def snapshot(self, origin: int) -> int:
        row = self._row(origin)
        if isinstance(row, Volume):
            dev_id = volumes.create_snapshot(self.pool, row.uuid, self._name("snap")).dev_id
        elif row is not None:
            dev_id = volumes.clone(self.pool, origin, self._name("clone")).dev_id
        else:
            dev_id = volumes.free_dev_id(self.pool, self.pool.view())
            self.pool.switch(Switch(snapshot=((dev_id, origin),)))
        self.sizes[dev_id] = self.sizes[origin]
        return dev_id

    def delete(self, dev_id: int) -> set[int]:
        before = self.pool.facts(())
        row = self._row(dev_id)
        for each in list(self.engine.devices):  # nobody has one open any more: what is open for writing stays
            self.engine.devices.pop(each)
        if isinstance(row, Volume):
            volumes.delete_volume(self.pool, row.uuid, with_snapshots=True)
        elif row is not None:
            volumes.delete_snapshot(self.pool, dev_id)
        else:
            self.pool.switch(Switch(delete=(dev_id,)))
        gone = before.keys() - self.pool.facts(()).keys()
        for each in gone:
            del self.sizes[each]
        return set(gone)
