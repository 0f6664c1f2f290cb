"""Making a pool: its data, its metadata, its catalogue, and the one rename that makes a pool of them.

The way in before pool/opening. A directory is a pool when it has `metadata`: that name comes last. The file `creating`
stands there meanwhile, locked, with the new pool's UUID in it; what is found beside it and without `metadata` is what
an interrupted creation left, and the next one takes it away.

    dies …                          on disk                                       what it is
    before `creating`               an empty directory, or none                   nothing
    after it                        creating                                      leftovers: creating again is allowed
    data made                       + data.new (full length, sparse)              leftovers
    metadata formatted              + metadata.new, or a formatted device         leftovers; a device is known by UUID
    catalogue made                  + catalog.db                                  leftovers
    data renamed, or linked to      + data                                        leftovers
    metadata renamed, or linked to  + metadata                                    a pool; opening removes `creating`
    creating removed                the pool                                      the pool

An error on the way takes away what was made; a device gets its first 4 KiB zeroed again, a data file loses its mark.

Invariants
  N1  Nothing that holds something is overwritten: not a directory's files, not a device that doesn't begin with zeros,
      not the data file of another pool, however empty.
  N2  Superblock, catalogue and data file name one UUID; a raw data device is known by its own id and size.
  N3  No pool is made inside another pool's directory.

Failures: ConflictError (not empty, in use, being created), UsageError, NotFoundError, NoSpaceError, DeviceError.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID, uuid4

from replicator.blockdev.file import FileDevice, sync_folder
from replicator.errors import ConflictError, DeviceError, FormatError, NotFoundError, UsageError
from replicator.pool.catalogue import Catalogue
from replicator.pool.catalogue_schema import PoolIdentity, Setting
from replicator.pool.changes import Put
from replicator.pool.identity import (
    DATA_DEVICE_SETTING,
    LOW_WATER_SETTING,
    describe_device,
    low_water_blocks,
    mark_file,
    marked_pool,
    unmark_file,
)
from replicator.pool.locks import refuse_network_file_system
from replicator.thin import geometry
from replicator.thin.metadata import PoolMetadata
from replicator.thin.superblock import read_superblock
from replicator.units import KIB, METADATA_BLOCK_BYTES, format_size

MARK = "creating"
_BEGINNING_BYTES = 128 * KIB  # every file system, LVM, RAID and partition table has its first signature in here
_MARK_BYTES = 4096
_CATALOGUE = {f"catalog.db{new}{tail}" for new in ("", ".new") for tail in ("", "-wal", "-shm", "-journal")}
_METADATA_BYTES_MIN = 64 * METADATA_BLOCK_BYTES
_LEFTOVERS = frozenset({"data", "data.new", "metadata.new", "lock", "writers", *_CATALOGUE})


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """What is wanted: sizes, and devices or files that are there already (None: files in the pool's directory)."""

    size_bytes: int | None = None
    data: Path | None = None
    metadata: Path | None = None
    block_bytes: int = 64 * KIB
    metadata_bytes: int | None = None
    low_water: str = "10%"

    def __post_init__(self) -> None:
        geometry.require_block_bytes(self.block_bytes)
        low_water_blocks(self.low_water, 1, self.block_bytes)
        if self.size_bytes is None and self.data is None:
            raise UsageError("a pool needs a size, or a data device", mend="say --size SIZE or --data DEVICE")
        if self.size_bytes is not None and self.size_bytes < self.block_bytes:
            raise UsageError(f"a pool of {format_size(self.size_bytes)} has no room for a single block")
        if self.metadata_bytes is not None and self.metadata_bytes < _METADATA_BYTES_MIN:
            raise UsageError(f"{format_size(self.metadata_bytes)} of metadata is too small", mend="take 2MiB or more")


@dataclass(frozen=True, slots=True)
class NewPool:
    """A pool that was just made; `warning` is what people should hear about its sizes."""

    path: Path
    uuid: UUID
    block_bytes: int
    data_blocks: int
    metadata_bytes: int
    warning: str | None


def create_pool(path: Path, plan: PoolPlan, *, reached: Callable[[str], None] = lambda _: None) -> NewPool:
    """Make the pool `plan` at `path`, an empty or new directory; after an error nothing of it is left.

    `reached` hears of each line of the module's table, for tests that die there.
    """
    if plan.data is not None and plan.metadata is not None and plan.data.resolve() == plan.metadata.resolve():
        raise UsageError(f"{plan.data} can't be both the data and the metadata")
    _refuse_inside(path)
    with _creating(path) as creation, ExitStack() as devices:
        reached("creating")
        data = devices.enter_context(creation.data_device(plan))
        new = _measured(path, creation.uuid, plan, data.size_bytes)
        mark_file(data, creation.uuid)
        data.flush()
        reached("data made")
        metadata = devices.enter_context(creation.metadata_device(plan, new.metadata_bytes))
        if plan.metadata is not None:
            new = _with_metadata(new, plan, metadata.size_bytes)
        _format(metadata, data, new)
        reached("metadata formatted")
        _make_catalogue(path, plan, data, creation.uuid)
        for name in ("lock", "writers"):
            (path / name).touch(mode=0o660)
        reached("catalogue made")
        _place(path / "data", plan.data)
        reached("data renamed")
        _place(path / "metadata", plan.metadata)
        reached("metadata renamed")
    return new


def _refuse_inside(path: Path) -> None:
    """ConflictError if a directory above is a pool's: what it holds is that pool's alone (N3)."""
    for above in path.resolve().parents:
        metadata, others = above / "metadata", (above / "data", above / "catalog.db")
        if (metadata.is_file() or metadata.is_block_device()) and any(each.exists() for each in others):
            raise ConflictError(f"{path} lies inside the pool {above}", mend="name a directory beside that pool")


def finish_creation(path: Path) -> None:
    """Remove the mark of a creation that died at its very end; for those who open the pool for writing."""
    with contextlib.suppress(FileNotFoundError):
        (path / MARK).unlink()
        sync_folder(path)


@contextmanager
def _creating(path: Path) -> Iterator[_Creation]:
    """The empty directory, locked against others who create there; after an error it is as it was."""
    made = _make_directory(path)
    try:
        refuse_network_file_system(path)
        creation = _Creation(path)
        try:
            yield creation
        except BaseException:
            if not (path / "metadata").is_symlink() and not (path / "metadata").exists():
                creation.undo()
            raise
        finally:
            creation.close()
        finish_creation(path)
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


class _Creation:
    """A pool on its way: the open, locked mark, and the UUIDs that this and earlier attempts gave."""

    def __init__(self, path: Path) -> None:
        """Take the mark, and clear what an interrupted creation left."""
        self.path = path
        self.uuid = uuid4()
        self._formatted: FileDevice | None = None
        self._marked: Path | None = None
        self._mark = _take_mark(path)
        earlier = os.pread(self._mark, _MARK_BYTES, 0).decode("ascii", "replace").split()
        self._attempts = {self.uuid.hex, *earlier}
        self._clear()
        os.pwrite(self._mark, " ".join([self.uuid.hex, *earlier])[:_MARK_BYTES].encode(), 0)
        os.fsync(self._mark)
        sync_folder(path)

    def data_device(self, plan: PoolPlan) -> FileDevice:
        """The data device, which holds nothing."""
        if plan.data is None:
            assert plan.size_bytes is not None
            return FileDevice.create(self.path / "data.new", plan.size_bytes)
        device = _empty_device(plan.data, _BEGINNING_BYTES)
        owner = marked_pool(device)
        if owner is not None and owner.hex not in self._attempts:
            device.close()
            raise ConflictError(
                f"{plan.data} is the data of pool {owner}",
                mend="name another file; or, if that pool is gone, remove the file and make it anew",
            )
        self._marked = plan.data
        return device

    def metadata_device(self, plan: PoolPlan, size_bytes: int) -> FileDevice:
        """The metadata device, allocated wholly (P8); what an earlier attempt formatted is zeroed first."""
        if plan.metadata is None:
            device = FileDevice.create(self.path / "metadata.new", size_bytes)
        else:
            refuse_network_file_system(plan.metadata)
            device = FileDevice(plan.metadata, exclusive=True)
            self._formatted = FileDevice(plan.metadata)
            self._unformat()
            device.close()
            device = _empty_device(plan.metadata, METADATA_BLOCK_BYTES)
        try:
            device.preallocate(0, device.size_bytes)
        except BaseException:
            device.close()
            raise
        return device

    def _unformat(self) -> None:
        """Zero the first 4 KiB of the metadata device if an attempt of this creation wrote them."""
        assert self._formatted is not None
        with contextlib.suppress(FormatError):
            if read_superblock(self._formatted).uuid.hex() in self._attempts:
                self._formatted.pwrite(bytes(METADATA_BLOCK_BYTES), 0)
                self._formatted.flush()

    def undo(self) -> None:
        """Take away everything that was made."""
        if self._formatted is not None:
            self._unformat()
        if self._marked is not None:
            unmark_file(self._marked, self.uuid)
        self._clear()
        (self.path / MARK).unlink(missing_ok=True)

    def _clear(self) -> None:
        for name in _LEFTOVERS:
            (self.path / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the mark."""
        if self._formatted is not None:
            self._formatted.close()
        os.close(self._mark)


def _make_directory(path: Path) -> bool:
    try:
        path.mkdir(mode=0o770)
        sync_folder(path.parent)
    except FileExistsError:
        if not path.is_dir():
            raise ConflictError(f"{path} is there, and isn't a directory") from None
        return False
    except FileNotFoundError:
        raise NotFoundError(f"{path.parent} isn't there", mend=f"mkdir -p {path.parent}") from None
    except OSError as error:
        raise _device_error(f"creating {path}", error) from error
    return True


def _take_mark(path: Path) -> int:
    """The open, locked mark; ConflictError for a directory that holds anything but leftovers (N1)."""
    there = {each.name for each in path.iterdir()}
    if there - _LEFTOVERS - {MARK, "lost+found"} or (there - {"lost+found"} and MARK not in there):
        raise ConflictError(
            f"{path} isn't empty: it holds {', '.join(sorted(there)[:4])}", mend="name an empty or a new directory"
        )
    try:
        fd = os.open(path / MARK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _device_error(f"creating {path / MARK}", error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise ConflictError(f"another process is creating a pool at {path}") from None
    return fd


def _empty_device(path: Path, beginning_bytes: int) -> FileDevice:
    """The device or file at `path`, for us alone; ConflictError unless it begins with zeros (N1)."""
    refuse_network_file_system(path)
    device = FileDevice(path, exclusive=True)
    beginning = min(beginning_bytes, device.size_bytes)
    if any(device.pread(beginning, 0)):
        device.close()
        raise ConflictError(
            f"{path} isn't empty: its first {format_size(beginning)} aren't all zeros",
            mend=f"if what it holds may go: blkdiscard, or dd if=/dev/zero of={path} bs={beginning} count=1",
        )
    return device


def _measured(path: Path, uuid: UUID, plan: PoolPlan, device_bytes: int) -> NewPool:
    size = device_bytes if plan.size_bytes is None else plan.size_bytes
    if size > device_bytes:
        raise UsageError(f"{plan.data} has {format_size(device_bytes)}, less than {format_size(size)}")
    blocks = size // plan.block_bytes
    if not 0 < blocks < geometry.DATA_BLOCK_LIMIT:
        raise UsageError(f"{format_size(size)} isn't a pool's size in blocks of {format_size(plan.block_bytes)}")
    advised = geometry.metadata_size(size, plan.block_bytes)
    metadata_bytes, warning = advised.size_bytes, advised.warning
    if plan.metadata_bytes is not None:
        metadata_bytes = -(-plan.metadata_bytes // METADATA_BLOCK_BYTES) * METADATA_BLOCK_BYTES
        warning = geometry.metadata_warning(metadata_bytes)
    return NewPool(path, uuid, plan.block_bytes, blocks, metadata_bytes, warning)


def _with_metadata(new: NewPool, plan: PoolPlan, device_bytes: int) -> NewPool:
    """With the metadata device as long as it is; UsageError where that is too short."""
    least = max(_METADATA_BYTES_MIN, plan.metadata_bytes or 0)
    if device_bytes < least:
        raise UsageError(
            f"{plan.metadata} has {format_size(device_bytes)}, less than {format_size(least)}", mend="take 2MiB or more"
        )
    warning = geometry.metadata_warning(device_bytes)
    if warning is None and device_bytes < new.metadata_bytes:
        warning = f"{format_size(device_bytes)} of metadata, where {format_size(new.metadata_bytes)} are advised"
    return replace(new, metadata_bytes=device_bytes, warning=warning)


def _format(metadata: FileDevice, data: FileDevice, new: NewPool) -> None:
    """An empty pool at transaction 1, durable."""
    pool = PoolMetadata.format(metadata, new.block_bytes, new.data_blocks, new.uuid.bytes)
    pool.set_transaction_id(0, 1)
    pool.commit(data.flush)


def _make_catalogue(path: Path, plan: PoolPlan, data: FileDevice, uuid: UUID) -> None:
    settings = {LOW_WATER_SETTING: plan.low_water, DATA_DEVICE_SETTING: describe_device(data)}
    catalogue = Catalogue.create(path / "catalog.db", PoolIdentity(uuid, time.time_ns()), 0)
    try:
        catalogue.stage(1, [Put(Setting(name, value)) for name, value in settings.items() if value])
    finally:
        catalogue.close()


def _place(path: Path, target: Path | None) -> None:
    """Give a part its final name, durably: the file made here is renamed, another one is linked to."""
    try:
        if target is None:
            path.with_name(f"{path.name}.new").rename(path)
        else:
            path.symlink_to(target.absolute())
    except OSError as error:
        raise _device_error(f"placing {path}", error) from error
    sync_folder(path.parent)


def _device_error(what: str, error: OSError) -> DeviceError:
    return DeviceError(what, 0, error.errno or errno.EIO, error.strerror or str(error))
