"""Opening a pool for writing: as its owner if it has none, else through the owner's control socket; and growing it.

Over locks, identity, thin/opening and local or remote; used by the exporter, the hosts and every command that changes
something. What an opener does, in this order, and what is on disk if it dies there:

    line                                     on disk
    lock and writers taken, and the files    what was there (the pid in `lock`)
    metadata, data and catalogue synced      what was there
    catalogue's rows beyond the superblock   removed, in one SQLite transaction
    identity and age checked                 -
    a mirror settled                         pdata/mirror and pool/metadata_device have the tables
    opening marked                           attributes of the files (pool/identity, I3)
    engine opened, `dirty` replayed          thin/opening has the table
    the mark of our capped time ended, where
    another program has written since        one switch: before or after
    hidden snapshots swept                   one switch each (pool/volumes)

Invariants
  O1  Nothing is changed before the locks are held and the parts are known to be one pool's.
  O2  A pool that is open elsewhere is never opened twice: its owner's socket, or ConflictError with its pid (P9).
  O3  Whatever fails on the way, locks and devices are let go.

Failures: ConflictError, DamageError, NotFoundError, UsageError (network file system, a foreign pool), DeviceError.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path

from replicator.blockdev.file import FileDevice
from replicator.errors import NotFoundError, UnavailableError, UsageError
from replicator.pool.catalogue import Catalogue
from replicator.pool.catalogue_schema import Setting
from replicator.pool.changes import End, Put
from replicator.pool.creation import finish_creation
from replicator.pool.identity import (
    LOW_WATER_SETTING,
    TIME_CAPPED_SETTING,
    check_age,
    check_identity,
    low_water_blocks,
    mark_opening,
    mark_reached,
    open_catalogue,
)
from replicator.pool.interface import Pool, Switch
from replicator.pool.local import LocalPool
from replicator.pool.locks import (
    READERS_S,
    OwnedElsewhereError,
    PoolLock,
    Waiting,
    hold_files,
    refuse_network_file_system,
)
from replicator.pool.metadata_device import (
    MetadataDevice,
    copies_in_use,
    dirty_sums,
    has_metadata,
    is_of_this_boot,
    open_metadata,
    settle_metadata,
)
from replicator.pool.outcome import Outcome
from replicator.pool.remote import RemotePool
from replicator.pool.view import CatalogueView
from replicator.pool.volumes import sweep_hidden
from replicator.thin.dirty import superblock_sum
from replicator.thin.engine import Engine, EngineSettings
from replicator.thin.geometry import MAX_METADATA_BLOCKS
from replicator.thin.metadata import PoolMetadata
from replicator.thin.opening import open_engine
from replicator.thin.superblock import Superblock, read_superblock
from replicator.thin.table import DEFAULT_LIMIT
from replicator.units import METADATA_BLOCK_BYTES

OWNER_S = 15.0
"""How long to wait for the socket of an owner that has the lock: it may be replaying, or a command about to end."""

_STEP_S = 0.05


class OwnedPool(LocalPool):
    """A LocalPool with all that it stands on: `close` lets go of catalogue, devices and locks too."""

    def __init__(
        self, path: Path, engine: Engine, catalogue: Catalogue, data: FileDevice, held: ExitStack, replayed: int
    ) -> None:
        """`held` is taken over at the end, when nothing can fail any more (O3)."""
        super().__init__(path, engine, catalogue, replayed=replayed)
        self._data = data
        self._closing = threading.Lock()
        self._is_closed = False
        self._held = held.pop_all()

    def close(self) -> None:
        """Commit, and let go of everything; a second call does nothing."""
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
        with self._held:
            super().close()
            mark_reached(self._view.at_id, self._data)

    def __enter__(self) -> OwnedPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stage(self, metadata: PoolMetadata, outcome: Outcome) -> None:
        """Once `time` is capped by us, the same switch says so (thin/metadata, D3)."""
        if metadata.time_is_capped and not self.view().setting(TIME_CAPPED_SETTING):
            outcome.changes.append(Put(Setting(TIME_CAPPED_SETTING, str(metadata.superblock.time))))
        super()._stage(metadata, outcome)


def open_pool(
    path: Path,
    *,
    role: str = "own",
    table_stretches: int = DEFAULT_LIMIT,
    wait_s: float = READERS_S,
    owner_s: float = OWNER_S,
    waiting: Waiting = lambda _: None,
) -> OwnedPool | RemotePool:
    """The pool at `path`, to be closed: owned by this process if nobody has it, else through its owner.

    `role` is what the owner is told of us; `waiting` hears what takes a while.
    """
    end = time.monotonic() + owner_s
    while True:
        try:
            return own_pool(path, table_stretches=table_stretches, wait_s=wait_s, waiting=waiting)
        except OwnedElsewhereError as refusal:
            try:
                return RemotePool(path, role=role)
            except UnavailableError:
                if time.monotonic() >= end:
                    raise refusal from None
        time.sleep(_STEP_S)


def own_pool(
    path: Path,
    *,
    table_stretches: int = DEFAULT_LIMIT,
    wait_s: float = READERS_S,
    waiting: Waiting = lambda _: None,
) -> OwnedPool:
    """The pool at `path`, owned by this process; OwnedElsewhereError with the pid where another has it (P9)."""
    require_pool(path)
    refuse_network_file_system(path)
    with ExitStack() as held:
        held.enter_context(PoolLock.own(path, wait_s=wait_s, waiting=waiting))
        held.enter_context(PoolLock.only_writer(path, wait_s=wait_s, waiting=waiting))
        metadata = held.enter_context(closing(open_metadata(path, read_only=False, exclusive=True)))
        data = held.enter_context(FileDevice(path / "data", exclusive=True))
        hold_files([data])  # the metadata is held since it was opened
        metadata.flush()
        data.flush()
        superblock = read_superblock(metadata)
        ours = not is_of_this_boot(path / "dirty") or _was_written_by_us(path / "dirty", metadata)

        def check(newest_id: int) -> None:
            check_age(newest_id, superblock, metadata, data, ours)

        catalogue, view = open_catalogue(path / "catalog.db", superblock, check)
        held.callback(catalogue.close)
        check_identity(view, superblock, metadata, data)
        settle_metadata(metadata, superblock, telling=waiting)
        was_capped = bool(view.setting(TIME_CAPPED_SETTING))
        is_capped = was_capped and _was_written_by_us(path / "dirty", metadata)
        settings = EngineSettings(table_stretches, _low_water(view, superblock))
        engine, replayed = open_engine(metadata, data, path / "dirty", settings, time_is_capped=is_capped)
        try:
            mark_opening(superblock, metadata, data)
            pool = OwnedPool(path, engine, catalogue, data, held, replayed)
        except BaseException:
            engine.close()
            raise
    try:
        if was_capped and not is_capped:
            pool.switch(Switch(changes=(End(Setting, (TIME_CAPPED_SETTING,)),)))
        finish_creation(path)
        sweep_hidden(pool)
    except BaseException:
        pool.close()
        raise
    return pool


def require_pool(path: Path) -> None:
    """NotFoundError unless `path` is a pool's directory; UsageError for a foreign pool, which has no names.

    FormatError for a metadata file that isn't dm-thin's.
    """
    if not path.is_dir():
        mend = f"replicator pool create {path} --size …"
        raise NotFoundError(f"there is no pool {path}: it isn't a directory", mend=mend)
    if not has_metadata(path):
        raise NotFoundError(f"{path} isn't a pool: it has no metadata", mend=f"replicator pool create {path} --size …")
    named = (path / "catalog.db").exists()
    if not named or not (path / "lock").exists():
        with open_metadata(path) as metadata:
            read_superblock(metadata)  # what isn't dm-thin's at all is told as that, and gets no lock file
    if not named:
        raise UsageError(
            f"{path} has no catalogue, so another program wrote it: it is opened for reading only",
            mend="read its devices as thin-ID: replicator volume export, serve --read-only",
        )


def _low_water(view: CatalogueView, superblock: Superblock) -> int:
    text = view.setting(LOW_WATER_SETTING, "0%")
    return low_water_blocks(text, superblock.data_space_map.nr_blocks, superblock.data_block_bytes)


def _was_written_by_us(dirty: Path, metadata: MetadataDevice) -> bool:
    """Whether the superblock on disk is one that the pool's last owner wrote: its `dirty` file names it."""
    return superblock_sum(metadata.pread(METADATA_BLOCK_BYTES, 0)) in dirty_sums(dirty)


def grow_pool(pool: Pool, *, data_bytes: int = 0, metadata_bytes: int = 0) -> int:
    """Go on with larger devices (new totals; 0: as it is): files are grown here, others were by whoever made them.

    A crash leaves longer files, and the pool as it was; the metadata's new part is allocated first (P8). Returns the
    transaction id.
    """
    status = pool.status()
    data_blocks = data_bytes // pool.block_bytes
    metadata_blocks = metadata_bytes // METADATA_BLOCK_BYTES
    if (data_bytes and data_blocks < status.data_blocks) or (
        metadata_bytes and metadata_blocks < min(status.metadata_blocks, MAX_METADATA_BLOCKS)
    ):
        raise UsageError("a pool can't shrink", mend="copy its volumes into a smaller one: volume export, import")
    _grow_device(pool.path / "data", data_bytes, allocate=False)
    for name in copies_in_use(pool.path):
        _grow_device(name, metadata_bytes, allocate=True)
    return pool.switch(Switch(grow_data_blocks=data_blocks, grow_metadata_blocks=metadata_blocks))


def _grow_device(path: Path, size_bytes: int, *, allocate: bool) -> None:
    with FileDevice(path) as device:
        before = device.size_bytes
        if size_bytes <= before:
            return
        if device.is_block_device:
            raise UsageError(
                f"{path} is a block device of {before} bytes, not {size_bytes}", mend="grow it first: lvextend, …"
            )
        device.grow(size_bytes)
        if allocate:
            device.preallocate(before, size_bytes - before)
        device.flush()
