"""Pools of the simulation of two hosts: the real engine over disks in memory, its process and its machine mortal.

A `HostPool` is armed to die before its n-th write, flush or read-ahead of data; what the death leaves is taken at that
instant, while the doomed owner goes on, unheard, until its caller notices.

    death            disks                                         `dirty`     catalogue
    of the process   all that was written                          as it was   as it was (what was staged is synced)
    power cut        what was flushed; of later writes each lost,  gone        as it was
                     whole, or torn behind a sector

Invariants
  H1  After the instant of death nothing of the owner's comes out: every call of its pool raises DeadError.
  H2  An image taken twice is opened twice: a copy of a pool, a rolled-back state directory, and a death are one thing.
"""

from __future__ import annotations

import errno
import functools
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from agent.delta import PoolFiles
from receiver.disks import Disks
from replicator._buffer import Buffer
from replicator.blockdev.memory import MemoryDevice
from replicator.errors import DamageError, DeviceError
from replicator.pool.catalogue import Catalogue
from replicator.pool.catalogue_schema import LoggedPoint, PoolIdentity, Volume
from replicator.pool.changes import Change, Put
from replicator.pool.interface import Pool, Switch
from replicator.pool.local import LocalPool
from replicator.pool.view import CatalogueView
from replicator.thin.device import ThinDevice
from replicator.thin.dirty import DirtyLog
from replicator.thin.mapping import data_blocks
from replicator.thin.metadata import PoolMetadata
from replicator.thin.opening import open_engine
from replicator.thin.view import PoolView
from replicator.units import METADATA_BLOCK_BYTES
from tests.support.two_hosts_disk import Content, Disk

_DIRTY_RECORDS = 64
_POINTS_KEPT = 10_000


class DeadError(BaseException):
    """The process is dead: nothing catches it."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What the catalogue has as of one transaction id."""

    view: CatalogueView
    points: dict[tuple[Any, ...], LoggedPoint]


class MemoryCatalogue(Catalogue):
    """A Catalogue without SQLite: every transaction id's rows, as values."""

    def __init__(self, history: tuple[Rows, ...]) -> None:
        self.history = history

    def view(self, at_id: int) -> CatalogueView:
        return self._at(at_id).view

    def points(self, at_id: int, volume: UUID, limit: int, timeline: int | None = None) -> list[LoggedPoint]:
        found = [each for each in self._at(at_id).points.values() if each.volume == volume]
        found = [each for each in found if timeline in (None, each.timeline)]
        return sorted(found, key=lambda each: (each.timeline, each.number))[-limit:]

    def stage(self, next_id: int, changes: Any) -> None:
        newest = self.history[-1]
        view, points = newest.view.after(changes, next_id), dict(newest.points)
        for change in changes:
            if isinstance(change, Put) and isinstance(change.value, LoggedPoint):
                points[change.table.key_of(change.value)] = change.value
        self.history = (*self.history, Rows(view, points))

    def discard_beyond(self, at_id: int) -> int:
        """As SQLite's: the rows of a switch whose superblock never came are no more."""
        kept = tuple(each for each in self.history if each.view.at_id <= at_id)
        if not kept or kept[-1].view.at_id != at_id:
            raise DamageError(f"the catalogue has nothing of transaction {at_id}")
        gone, self.history = len(self.history) - len(kept), kept
        return gone

    def purge(self, oldest_reader_id: int) -> int:
        self.history = tuple(each for each in self.history if each.view.at_id >= oldest_reader_id)
        return 0

    def close(self) -> None:
        """Nothing is held."""

    def _at(self, at_id: int) -> Rows:
        for each in reversed(self.history):
            if each.view.at_id == at_id:
                return each
        raise DamageError(f"the catalogue has nothing of transaction {at_id}")


@dataclass(frozen=True, slots=True)
class Image:
    """A pool as it lies on its disks."""

    metadata: Content
    data: Content
    dirty: bytes
    history: tuple[Rows, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """How a pool is made: block size, blocks, metadata, and the volumes that it is born with (uuid, name, size)."""

    uuid: UUID
    block_bytes: int
    data_blocks: int
    metadata_bytes: int
    volumes: tuple[tuple[UUID, str, int], ...] = ()


@dataclass(slots=True)
class Fate:
    """When the owner dies: at operation `at` of its disks (0: never), by a power cut or not."""

    at: int = 0
    power: bool = False
    operations: int = 0
    image: Image | None = None


class HostPool:
    """An open pool and its owner's process; `pool()` is what agents and receivers get."""

    def __init__(
        self, image: Image, folder: Path, name: str, clock_ns: Callable[[], int], chance: random.Random
    ) -> None:
        self._folder, self._name, self._clock_ns, self._chance = folder, name, clock_ns, chance
        self._generation = 0
        self.deaths = 0
        self._open(image)

    def _open(self, image: Image) -> None:
        self._generation += 1
        self.fate = Fate()
        self.metadata = Disk(image.metadata, "metadata", self._reached)
        self.data = Disk(image.data, "data", self._reached)
        self._known_at, self._known = (0, 0), dict[tuple[int, int], bytes]()
        self._dirty = self._folder / f"{self._name}-{self._generation}"
        self._dirty.write_bytes(image.dirty)
        engine, self.replayed = open_engine(self.metadata, self.data, self._dirty, dirty_capacity=_DIRTY_RECORDS)
        engine._clock_ns = self._clock_ns  # open_engine has no seam for it
        self.catalogue = MemoryCatalogue(image.history)
        self.catalogue.discard_beyond(engine.metadata.superblock.transaction_id)
        self.real = LocalPool(self._folder, engine, self.catalogue, replayed=self.replayed, clock_ns=self._clock_ns)
        self.block_bytes = self.real.block_bytes
        self.reading = FailingReads(self.data)
        self.files = PoolFiles(self.metadata, cast("Disk", self.reading), self.block_bytes)
        real = self.real
        self._is_gone = lambda: self.is_dead or self.real is not real

    def pool(self) -> Pool:
        """The pool as the present owner gives it to others."""
        return cast("Pool", Mortal(self.real, self._is_gone))

    def disks(self) -> Disks:
        """Its devices, as the present owner's process uses them."""
        return Disks(self.metadata, cast("Disk", Mortal(self.data, self._is_gone)), nullcontext)

    # -- dying -------------------------------------------------------------------------------------------------

    def arm(self, at: int, *, power: bool) -> None:
        """Die at the `at`-th operation of the disks from now on."""
        self.fate = Fate(at, power)

    def disarm(self) -> None:
        """Nobody dies by plan any more, unless he is dead."""
        if self.fate.image is None:
            self.fate = Fate()

    def _reached(self) -> None:
        fate = self.fate
        fate.operations += 1
        if fate.operations == fate.at and fate.image is None:
            fate.image = self.image(power=fate.power)

    @property
    def is_dead(self) -> bool:
        """Whether the instant of death has passed."""
        return self.fate.image is not None

    def image(self, *, power: bool = False) -> Image:
        """What lies on the disks now; with `power`, what a power cut would leave of it."""
        if power:
            metadata, data = self.metadata.after_power_cut(self._chance), self.data.after_power_cut(self._chance)
            return Image(metadata, data, _no_dirty(self.real.view().pool.uuid.bytes), self.catalogue.history)
        dirty = None
        while dirty != (now := self._dirty.read_bytes()):  # the committer goes on meanwhile: an image is of one instant
            dirty = now
            metadata, data, history = self.metadata.content(), self.data.content(), self.catalogue.history
        return Image(metadata, data, now, history)

    def reborn(self, image: Image | None = None, *, power: bool = False) -> None:
        """The owner is gone, by its fate or (power) a power cut; the next one opens what it left, or `image`."""
        left = image or self.fate.image or self.image(power=power)
        self.deaths += 1
        self.end()
        self._open(left)

    def end(self) -> None:
        """End the owner, without a word to its disks."""
        self.real.engine.failed = "the process is dead"
        self.real.engine.close()
        self._dirty.unlink()

    # -- looking -----------------------------------------------------------------------------------------------

    def device(self, volume: UUID) -> ThinDevice:
        """The live volume as a disk."""
        row = self.real.view().volume(volume)
        return self.real.engine.open_device(row.dev_id, row.size_bytes, read_only=False)

    def live(self, volume: UUID) -> bytes:
        """The live volume as it reads now."""
        return bytes(self.device(volume).pread(self.real.view().volume(volume).size_bytes, 0))

    def committed(self, dev_id: int, size_bytes: int) -> bytes:
        """What a thin device reads by what is committed; read again once anything was written to a disk."""
        changes = self.metadata.changes, self.data.changes
        if self._known_at != changes:
            self._known_at, self._known = changes, {}
        if (dev_id, size_bytes) not in self._known:
            self._known[dev_id, size_bytes] = self._read_committed(dev_id, size_bytes)
        return self._known[dev_id, size_bytes]

    def _read_committed(self, dev_id: int, size_bytes: int) -> bytes:
        view = PoolView.live(self.metadata)
        blocks = -(-size_bytes // self.block_bytes)
        content = bytearray(blocks * self.block_bytes)
        for keys, values in view.mappings(view.device(dev_id).root):
            for block, place in zip(keys.tolist(), data_blocks(values).tolist(), strict=True):
                assert block < blocks, "mapped beyond the end"
                begin, source = block * self.block_bytes, place * self.block_bytes
                content[begin : begin + self.block_bytes] = self.data.pread(self.block_bytes, source)
        assert content.count(0, size_bytes) == len(content) - size_bytes, "the tail of the last block isn't zero"
        return bytes(content[:size_bytes])

    def place_of(self, dev_id: int, block: int) -> int | None:
        """The data block behind a block of a thin device."""
        view = PoolView.live(self.metadata)
        for keys, values in view.mappings(view.device(dev_id).root):
            for key, place in zip(keys.tolist(), data_blocks(values).tolist(), strict=True):
                if key == block:
                    return int(place)
        return None


class FailingReads:
    """A disk that can't be read at its `at`-th read from now on (0: it can)."""

    def __init__(self, disk: Disk) -> None:
        self._disk, self.at = disk, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)

    def pread_into(self, target: Buffer, offset_bytes: int) -> None:
        """As the disk's, unless it is the one."""
        self.at -= 1
        if self.at == 0:
            raise DeviceError("read of data", offset_bytes, errno.EIO, "injected")
        self._disk.pread_into(target, offset_bytes)


class Mortal:
    """What is behind `inner`, until `is_dead` says so (H1): a call that its process doesn't survive has no answer."""

    def __init__(self, inner: Any, is_dead: Callable[[], bool]) -> None:
        self.inner, self.is_dead = inner, is_dead

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if not callable(found):
            return found

        def guarded(*arguments: Any, **named: Any) -> Any:
            self.live()
            answer = found(*arguments, **named)
            self.live()
            return answer

        return guarded

    def live(self) -> None:
        """DeadError once the process is dead."""
        if self.is_dead():
            raise DeadError


@functools.cache
def made(shape: Shape) -> Image:
    """A new pool of this shape; the bytes are shared by all that open it."""
    metadata, data = (
        MemoryDevice(shape.metadata_bytes),
        Content(shape.data_blocks * shape.block_bytes, shape.block_bytes),
    )
    formatted = PoolMetadata.format(metadata, shape.block_bytes, shape.data_blocks, shape.uuid.bytes)
    for dev_id in range(1, len(shape.volumes) + 1):
        formatted.create_thin(dev_id)
    formatted.commit(lambda: None)
    identity = PoolIdentity(shape.uuid, 1)
    changes: list[Change] = [
        Put(Volume(uuid, name, i + 1, size, 1)) for i, (uuid, name, size) in enumerate(shape.volumes)
    ]
    view = CatalogueView(-1, {}).after([Put(identity), *changes], 0)
    formed = Content.of(metadata.content(), METADATA_BLOCK_BYTES)
    return Image(formed, data, _no_dirty(shape.uuid.bytes), (Rows(view, {}),))


@functools.cache
def _no_dirty(uuid: bytes) -> bytes:
    """A `dirty` file that nobody wrote to."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dirty"
        DirtyLog.open(path, uuid, _DIRTY_RECORDS).close()
        return path.read_bytes()


def grown(host: HostPool, *, data_blocks: int = 0, metadata_bytes: int = 0) -> None:
    """The operator gives the pool more room."""
    if data_blocks:
        host.data.grow(data_blocks * host.block_bytes)
    if metadata_bytes:
        host.metadata.grow(metadata_bytes)
    host.real.switch(Switch(grow_data_blocks=data_blocks, grow_metadata_blocks=metadata_bytes // 4096))
