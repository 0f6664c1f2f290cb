"""A file or block device into a volume: only its data is read, only blocks that aren't zeros are mapped.

`volume import`; the other way is pool/exporting. Blocks are reserved, written here, and mapped into a hidden device in
steps; the last switch makes that device the volume. So it is one path beside an owner and without one. Into a volume
that is there, blocks that are what they were stay shared with its snapshots: the next delta carries what differs. A new
volume may begin as a snapshot of another device (`over`): then only what differs from it is read and written.

    read a window -> drop zeros (and what the volume has already) -> reserve -> write -> map, each STEP_BYTES -> name it

    dies …                         on disk                                          mended by
    before the first switch        what was there                                   -
    between steps                  a hidden device, in no list, filled in part      the next import: it takes away what
                                                                                    imports left, when none is running
    between reserve and map        written blocks that no committed map names       nobody has to: free on disk
    after the last switch          the volume, whole                                -

Invariants
  J1  Nobody sees a volume that is imported in part; one that was there has its old content until the last switch.
  J2  After an error everything is given back: blocks, the hidden device, its row.
  J3  A volume that is open for writing isn't replaced (the last switch refuses it), nor one that changed meanwhile.

Failures: UsageError (a size that can't be), ConflictError (in use, a replica, changed), NoSpaceError, DeviceError.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Protocol, TypeAlias
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from replicator.blockdev.file import FileDevice
from replicator.errors import ConflictError, DeviceError, ReplicatorError, UsageError
from replicator.history.names import check_name
from replicator.pdata.block import Words
from replicator.pool.catalogue_schema import Purpose, Snapshot, Volume
from replicator.pool.changes import End, Put
from replicator.pool.devices import refuse_replica
from replicator.pool.exporting import Progress
from replicator.pool.interface import Filling, Pool, Switch
from replicator.pool.reader import Disk
from replicator.pool.reading import read_beside
from replicator.pool.remote import RemotePool
from replicator.pool.sparse import data_extents, nonzero_blocks
from replicator.pool.view import CatalogueView
from replicator.pool.volumes import delete_row, free_dev_id, sweep_hidden, switched
from replicator.units import MIB, SECTOR_BYTES

STEP_BYTES = 1024 * MIB
"""Mapped by one switch: each one flushes the data device, and a gigabyte between two flushes hides that."""

_WINDOW_BYTES = 16 * MIB
_UNMAPPED_LIMIT = 4096  # ranges to unmap that wait for a step
Places: TypeAlias = npt.NDArray[np.int64]
_MARK = "importing"  # the name of hidden rows that are imports', and of the lock file that running ones hold


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of it: the volume, whether it was there before, and the bytes that were written to the pool."""

    volume: Volume
    created: bool
    written_bytes: int


class ImportSource(Protocol):
    """What can be brought into a volume: a file, or any disk that tells where it has data."""

    @property
    def name(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...

    def extents(self, unit_bytes: int) -> Iterator[tuple[int, int]]:
        """[begin, end) of what may hold something, ascending, on the grid of `unit_bytes` but for the disk's end."""

    def pread_into(self, target: memoryview, offset_bytes: int) -> None: ...


class _FileSource(FileDevice):
    """A file or block device whose holes its file system knows."""

    def extents(self, unit_bytes: int) -> Iterator[tuple[int, int]]:
        """What isn't a hole."""
        return data_extents(self.fileno(), self.size_bytes, unit_bytes)


def import_file(pool: Pool, name: str, source: Path, *, progress: Progress = lambda _done, _total: None) -> Imported:
    """Make the file `source` the content of the volume `name` (import_disk)."""
    before = _volume_there(pool, name)
    _refuse_served(pool, before)
    with closing(_open_source(source)) as file:
        return import_disk(pool, name, file, progress=progress)


@dataclass(frozen=True, slots=True)
class Shared:
    """A thin device without an external origin, whose blocks a new volume begins with; held by whoever names it."""

    dev_id: int
    size_bytes: int


def import_disk(
    pool: Pool,
    name: str,
    file: ImportSource,
    *,
    progress: Progress = lambda _done, _total: None,
    over: Shared | None = None,
) -> Imported:
    """Make `file` the content of the volume `name`; a new volume gets its size, an old one's rest becomes zeros.

    `over`: the volume is new, and what isn't in the extents of `file` stays shared with that device.
    """
    before = _volume_there(pool, name)
    if over is not None and before is not None:
        raise ConflictError(f"there is a volume {name!r} already", mend="take another name")
    _refuse_served(pool, before)
    with ExitStack() as stack:
        size = _size_for(before, file)
        stack.enter_context(_running(pool))
        sweep_hidden(pool)
        data = stack.enter_context(FileDevice(pool.path / "data"))
        work = _Import(pool, data, before or Volume(uuid4(), name, 0, size, time.time_ns()), over)
        stack.callback(work.give_up)
        if before is not None and before.origin is None:
            reader = stack.enter_context(read_beside(pool))
            work.begin(stack.enter_context(reader.disk(before.dev_id, before.size_bytes)))
        else:
            work.begin(None)
        work.copy(file, progress)
        volume = work.finish(before)
    return Imported(volume, before is None, work.written_bytes)


def _volume_there(pool: Pool, name: str) -> Volume | None:
    view = pool.view()
    found = [each for each in view.volumes if name in (each.name, str(each.uuid))]
    if not found:
        check_name(name)
        if view.snapshot_named(name) is not None:
            raise ConflictError(f"{name} is a snapshot, which stays as it is", mend="import under another name")
        return None
    refuse_replica(view, found[0])
    return found[0]


def _refuse_served(pool: Pool, before: Volume | None) -> None:
    """J3 at once, where the owner tells; the last switch sees to the rest."""
    if before is None or not isinstance(pool, RemotePool):
        return
    if any(each.dev_id == before.dev_id and not each.read_only for each in pool.exports()):
        raise ConflictError(
            f"{before.name} is served for writing, so its content can't be replaced",
            mend="import under another name, or stop serving it",
        )


def _open_source(path: Path) -> _FileSource:
    if path.is_dir():
        raise UsageError(f"{path} is a directory", mend="name an image file, or a block device")
    return _FileSource(path, read_only=True)


def _size_for(before: Volume | None, file: ImportSource) -> int:
    """The volume's size; UsageError where the file's can't be one, or doesn't fit."""
    if not file.size_bytes or file.size_bytes % SECTOR_BYTES:
        mend = f"truncate --size=%{SECTOR_BYTES} {file.name}, on a copy of it" if file.size_bytes else None
        raise UsageError(f"{file.name} has {file.size_bytes} bytes, not whole sectors of {SECTOR_BYTES}", mend=mend)
    if before is not None and file.size_bytes > before.size_bytes:
        raise UsageError(
            f"{file.name} has {file.size_bytes} bytes, more than {before.name}, which has {before.size_bytes}",
            mend=f"replicator volume resize POOL {before.name} --size {file.size_bytes}",
        )
    return file.size_bytes if before is None else before.size_bytes


@contextmanager
def _running(pool: Pool) -> Iterator[None]:
    """Be one of the imports that run; the first takes away what dead ones left."""
    try:
        fd = os.open(pool.path / _MARK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
    except OSError as error:
        raise DeviceError(f"opening {pool.path / _MARK}", 0, error.errno or 0, str(error.strerror)) from error
    try:
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for row in pool.view().snapshots:
                if _is_import(row):
                    delete_row(pool, row)
        fcntl.flock(fd, fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)


def _is_import(row: Snapshot) -> bool:
    return row.hidden and row.purpose is Purpose.STAGING and row.name == _MARK


@dataclass(slots=True)
class _Import:
    """One import on its way: the hidden device, what is reserved, what is written and not yet mapped."""

    pool: Pool
    data: FileDevice
    volume: Volume
    over: Shared | None = None
    dev_id: int | None = None
    written_bytes: int = 0
    _old: Disk | None = None
    _old_root: int = 0
    _reserved: list[Words] = field(default_factory=list)
    _virtual: list[Words] = field(default_factory=list)
    _unmapped: list[tuple[int, int]] = field(default_factory=list)
    _waiting_bytes: int = 0

    def begin(self, old: Disk | None) -> None:
        """Make the hidden device: empty, or sharing everything with `old`, the volume as it is, or with `over`."""
        self._old = old

        def plan(view: CatalogueView) -> tuple[Switch, int]:
            dev_id = free_dev_id(self.pool, view)
            size, uuid = self.volume.size_bytes, self.volume.uuid
            row = Snapshot(dev_id, uuid, Purpose.STAGING, time.time_ns(), size, name=_MARK, hidden=True)
            if old is None and self.over is None:
                return Switch(create=(dev_id,), changes=(Put(row),)), dev_id
            shared = self.over.dev_id if self.over is not None else view.volume(uuid).dev_id
            return Switch(snapshot=((dev_id, shared),), changes=(Put(row),)), dev_id

        self.dev_id = switched(self.pool, plan)
        if old is not None:
            self._old_root = self.pool.facts((self.volume.dev_id,))[self.volume.dev_id].root

    def copy(self, file: ImportSource, progress: Progress) -> None:
        """Bring all of the file in, and take out what the volume has beyond it."""
        block, at = self.pool.block_bytes, 0
        window = memoryview(bytearray(max(_WINDOW_BYTES // block, 1) * block))
        for begin, end in file.extents(block):
            self._clear(at, begin)
            for offset in range(begin, end, len(window)):
                length = min(len(window), end - offset)
                file.pread_into(window[:length], offset)
                whole = -(-length // block) * block
                window[length:whole] = bytes(whole - length)
                self._take(window[:whole], offset // block)
                progress(offset + length, file.size_bytes)
            at = end
        self._clear(at, self.volume.size_bytes)
        if self.over is not None:
            self._unmap(self.volume.size_bytes, self.over.size_bytes)
        self._map()

    def _take(self, data: memoryview, first: int) -> None:
        """Blocks from `first` on: write those that hold something new, unmap those that are zeros now."""
        numbers = np.flatnonzero(self._wanted(data, first))
        if numbers.size:
            blocks = self.pool.reserve(len(numbers))
            self._reserved.append(blocks)
            self._virtual.append(numbers.astype(np.uint64) + np.uint64(first))
            self._write(data, numbers.astype(np.int64), blocks.astype(np.int64))
        if self._waiting_bytes >= STEP_BYTES or len(self._unmapped) >= _UNMAPPED_LIMIT:
            self._map()

    def _write(self, data: memoryview, numbers: Places, blocks: Places) -> None:
        """The blocks of `data` numbered so, to these data blocks; neighbours in one call."""
        size = self.pool.block_bytes
        ends = np.flatnonzero((np.diff(numbers) != 1) | (np.diff(blocks) != 1)) + 1
        for begin, end in pairwise([0, *ends.tolist(), len(numbers)]):
            low = int(numbers[begin]) * size
            self.data.pwrite(data[low : low + (end - begin) * size], int(blocks[begin]) * size)
        self.written_bytes += len(numbers) * size
        self._waiting_bytes += len(numbers) * size

    def _wanted(self, data: memoryview, first: int) -> npt.NDArray[np.bool_]:
        """Which blocks of `data` have to be written; those that the volume maps and are zeros now are unmapped."""
        size, wanted = self.pool.block_bytes, nonzero_blocks(data, self.pool.block_bytes)
        for number in np.flatnonzero(~wanted).tolist() if self.over is not None else ():
            self._unmap((first + number) * size, (first + number + 1) * size)
        if self._old is None:
            return wanted
        mapped = np.zeros(len(wanted), dtype=bool)
        offset = first * size
        for start, length, where in self._old.runs(offset, min(len(data), self._old.size_bytes - offset)):
            if where >= 0:
                mapped[(start - offset) // size : -(-(start + length - offset) // size)] = True
        for number in np.flatnonzero(mapped & ~wanted).tolist():
            self._clear((first + number) * size, (first + number + 1) * size)
        for number in np.flatnonzero(mapped & wanted).tolist():
            low = number * size
            there = self._old.pread(min(size, self._old.size_bytes - offset - low), offset + low)
            wanted[number] = data[low : low + len(there)] != there
        return wanted

    def _clear(self, begin_bytes: int, end_bytes: int) -> None:
        """Nothing is left of what the volume has in there; whole blocks but for the volume's end."""
        if self._old is not None:
            self._unmap(begin_bytes, end_bytes)

    def _unmap(self, begin_bytes: int, end_bytes: int) -> None:
        """Nothing is mapped from the first whole block in there to the last, which may be a device's end."""
        size = self.pool.block_bytes
        begin, end = -(-begin_bytes // size), -(-end_bytes // size)
        if begin >= end:
            return
        if self._unmapped and self._unmapped[-1][1] == begin:
            begin = self._unmapped.pop()[0]
        self._unmapped.append((begin, end))

    def _map(self) -> None:
        """One step: what was written so far is mapped in the hidden device, durably."""
        if not self._reserved and not self._unmapped:
            return
        assert self.dev_id is not None
        self.data.flush()
        virtual, blocks = _joined(self._virtual), _joined(self._reserved)
        unmapped = np.array(self._unmapped, dtype=np.uint64).reshape(-1, 2)
        self.pool.switch(Switch(fill=(Filling(self.dev_id, virtual, blocks, unmapped),)))
        self._virtual, self._reserved, self._unmapped, self._waiting_bytes = [], [], [], 0

    def finish(self, before: Volume | None) -> Volume:
        """The hidden device becomes the volume."""
        assert self.dev_id is not None
        after = replace(self.volume, dev_id=self.dev_id, origin=None)
        changes = (End(Snapshot, (self.dev_id,)), Put(after))

        def plan(view: CatalogueView) -> tuple[Switch, None]:
            if before is None:
                _require_free(view, after.name)
                return Switch(changes=changes), None
            self._require_unchanged(view, before)
            return Switch(changes=changes, delete=(before.dev_id,)), None

        if self._old is not None:
            self._old.close()
        switched(self.pool, plan)
        self.dev_id = None
        return after

    def _require_unchanged(self, view: CatalogueView, before: Volume) -> None:
        """J3; what is dirty is no matter here: only a volume that is open for writing has such, and isn't deleted."""
        same = view.volume(before.uuid) == before
        if self._old is not None:
            same &= self.pool.facts((before.dev_id,))[before.dev_id].root == self._old_root
        if not same:
            raise ConflictError(f"{before.name} was changed while it was imported", mend="import it again")

    def give_up(self) -> None:
        """Give back what isn't used; nothing after `finish`."""
        with suppress(ReplicatorError):  # an owner that is gone gives it back by itself
            if self._reserved:
                self.pool.give_back(_joined(self._reserved))
        with suppress(ReplicatorError):  # the next import takes it away
            if self.dev_id is not None:
                self.pool.switch(Switch(delete=(self.dev_id,), changes=(End(Snapshot, (self.dev_id,)),)))


def _require_free(view: CatalogueView, name: str) -> None:
    taken = [each.name for each in view.volumes] + [each.name for each in view.snapshots if not each.hidden]
    if name in taken:
        raise ConflictError(f"somebody else made {name} meanwhile", mend="import it again, or under another name")


def _joined(parts: list[Words]) -> Words:
    return np.concatenate([np.empty(0, dtype=np.uint64), *parts])
