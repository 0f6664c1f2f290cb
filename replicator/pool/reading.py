"""Opening a pool for reading: beside its owner on leases, without one under the shared lock, or one that others wrote.

Used by commands that only read, and by everybody who reads data; what they get is a PoolReader.

    the directory               roots from                        what keeps them
    own, with an owner          the owner's control socket        a lease (pool/remote)
    own, without one            the superblock                    `lock`, shared: an opener waits for us
    own, already open here      the Pool that is passed in        its leases
    foreign (no catalogue)      the superblock                    a block device is opened exclusively
    any, `held`                 the pool's metadata snapshot      whoever reserved it

Foreign devices are named thin-ID after their dev_id; their sizes aren't in the metadata, so that one ends with its
highest mapped block.

Invariants
  R1  Nothing is written, but for the lock file of a pool that has none.
  R2  The catalogue that is shown is the superblock's (pool/identity, I1, I2).

Failures: NotFoundError (no pool), OwnedElsewhereError (an owner without a socket that doesn't end), ConflictError
(a foreign pool that the kernel uses), DamageError, FormatError.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid5

from replicator.blockdev.file import FileDevice
from replicator.errors import NotFoundError, UnavailableError
from replicator.pool.catalogue import Catalogue
from replicator.pool.catalogue_schema import PoolIdentity, Volume
from replicator.pool.deleting import being_deleted
from replicator.pool.identity import check_age, check_identity, is_ours
from replicator.pool.interface import DeviceFacts, Pool
from replicator.pool.locks import PoolLock, owned_elsewhere
from replicator.pool.metadata_device import MetadataDevice, has_metadata, open_metadata
from replicator.pool.reader import PoolReader
from replicator.pool.remote import RemotePool
from replicator.pool.view import CatalogueView
from replicator.thin.view import DeviceEntry, PoolView

OWNER_S = 15.0
"""How long to wait for the socket of an owner that has the lock: it may be replaying, or a command about to end."""

_STEP_S = 0.05


@dataclass(slots=True)
class StillLease:
    """Devices of a pool that nobody changes while it is read."""

    devices: dict[int, DeviceFacts]
    stands: bool = True

    def release(self) -> None:
        """Nothing to tell anybody."""
        self.stands = False


class StillRoots:
    """Roots of a superblock that stays as it is: no owner (the lock is held), or a metadata snapshot."""

    def __init__(self, devices: PoolView, catalogue: CatalogueView) -> None:
        self._devices, self._catalogue = devices, catalogue

    def view(self) -> CatalogueView:
        """The catalogue as of the superblock."""
        return self._catalogue

    def facts(self, dev_ids: Sequence[int] = ()) -> dict[int, DeviceFacts]:
        """The devices that there are, of those asked for (all, when none is named)."""
        wanted, dying = set(dev_ids), being_deleted(self._catalogue)
        there = (entry for entry in self._devices.devices() if entry.dev_id not in dying)
        return {entry.dev_id: _facts(entry) for entry in there if not wanted or entry.dev_id in wanted}

    @contextmanager
    def lease(self, dev_ids: Sequence[int]) -> Iterator[StillLease]:
        """The devices, which stay as they are; NotFoundError if one isn't there."""
        gone = sorted(being_deleted(self._catalogue).keys() & set(dev_ids))
        if gone:
            raise NotFoundError(f"the pool has no thin device {gone[0]} any more")
        lease = StillLease({dev_id: _facts(self._devices.device(dev_id)) for dev_id in dev_ids})
        try:
            yield lease
        finally:
            lease.release()


def read_pool(path: Path, *, role: str = "own", held: bool = False, owner_s: float = OWNER_S) -> PoolReader:
    """The pool at `path`, to be read and closed; `held`: its metadata snapshot, whoever writes the pool meanwhile."""
    if not path.is_dir():
        mend = f"replicator pool create {path} --size …"
        raise NotFoundError(f"there is no pool {path}: it isn't a directory", mend=mend)
    if not has_metadata(path):
        raise NotFoundError(f"{path} isn't a pool: it has no metadata", mend=f"replicator pool create {path} --size …")
    with ExitStack() as stack:
        if held or not (path / "catalog.db").exists():
            return _read_foreign(path, stack, held=held)
        end = time.monotonic() + owner_s
        while (lock := PoolLock.read(path, make=is_ours(path))) is None:
            try:
                return _reader(stack.enter_context(RemotePool(path, role=role)), stack)
            except UnavailableError:
                if time.monotonic() >= end:
                    raise owned_elsewhere(path) from None
            time.sleep(_STEP_S)
        stack.enter_context(lock)
        return _read_still(path, stack)


def read_beside(pool: Pool) -> PoolReader:
    """A reader of a pool that is open here; it ends before the pool is closed."""
    with ExitStack() as stack:
        return _reader(pool, stack)


def _reader(pool: Pool, stack: ExitStack) -> PoolReader:
    path = pool.path
    metadata = stack.enter_context(closing(open_metadata(path)))
    data = stack.enter_context(FileDevice(path / "data", read_only=True))
    return PoolReader(path, pool, metadata, data, pool.block_bytes, stack.pop_all())


def _read_still(path: Path, stack: ExitStack) -> PoolReader:
    metadata = stack.enter_context(closing(open_metadata(path, settled=True)))
    data = stack.enter_context(FileDevice(path / "data", read_only=True))
    devices = PoolView.live(metadata)
    catalogue = Catalogue(path / "catalog.db", read_only=True)
    try:
        check_age(catalogue.newest_id(), devices.superblock, metadata, data, True)
        view = catalogue.view(devices.superblock.transaction_id)
    finally:
        catalogue.close()
    check_identity(view, devices.superblock, metadata, data)
    return _still_reader(path, StillRoots(devices, view), devices, metadata, data, stack)


def _read_foreign(path: Path, stack: ExitStack, *, held: bool) -> PoolReader:
    metadata = stack.enter_context(closing(open_metadata(path, exclusive=not held)))
    data = stack.enter_context(FileDevice(path / "data", read_only=True, exclusive=not held))
    devices = PoolView.held(metadata) if held else PoolView.live(metadata)
    return _still_reader(path, StillRoots(devices, _names_of(devices)), devices, metadata, data, stack)


def _still_reader(
    path: Path, roots: StillRoots, devices: PoolView, metadata: MetadataDevice, data: FileDevice, stack: ExitStack
) -> PoolReader:
    return PoolReader(path, roots, metadata, data, devices.superblock.data_block_bytes, stack.pop_all())


def _names_of(devices: PoolView) -> CatalogueView:
    """A catalogue for a pool that has none: each device is a volume named thin-ID."""
    superblock = devices.superblock
    pool = UUID(bytes=superblock.uuid)
    volumes: dict[tuple[object, ...], Volume] = {}
    for entry in devices.devices():
        highest = devices.highest_mapped(entry.root)
        size = 0 if highest is None else (highest + 1) * superblock.data_block_bytes
        uuid = uuid5(pool, f"thin-{entry.dev_id}")
        volumes[(uuid,)] = Volume(uuid, f"thin-{entry.dev_id}", entry.dev_id, size, 0)
    identity = PoolIdentity(pool, 0)
    return CatalogueView(superblock.transaction_id, {PoolIdentity: {(pool,): identity}, Volume: volumes})


def _facts(entry: DeviceEntry) -> DeviceFacts:
    details = entry.details
    return DeviceFacts(
        entry.dev_id,
        entry.root,
        details.mapped_blocks,
        details.transaction_id,
        details.creation_time,
        details.snapshotted_time,
    )
