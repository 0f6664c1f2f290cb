"""Repairing a pool's metadata into a new file: what `pool repair` stands on.

Over thin/repair, with what only the pool knows: the names of its devices (catalogue), how long its data is, and, where
the superblock is lost, its UUID and newest transaction id.

    dies …                       on disk
    while looking                what was there
    while writing FILE           FILE without a superblock: nothing opens it; remove it
    FILE written and checked     FILE; the pool is as it was, until its user puts FILE in place (`steps`)

Which of two copies is read, and what the steps leave where: pool/repair_source.

Invariants
  E1  Nothing of the pool is written. Nobody opens it for writing meanwhile (pool/locks), no kernel has its devices.
  E2  FILE is new, or nothing is done.

Failures: ConflictError (in use, FILE is there), NotFoundError, UsageError (no block size known), DamageError (nothing
left to save), NoSpaceError, DeviceError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from replicator.blockdev.file import FileDevice
from replicator.errors import ConflictError, NoSpaceError, ReplicatorError
from replicator.pool.catalogue import Catalogue
from replicator.pool.identity import is_ours
from replicator.pool.inspection import is_foreign, require_metadata
from replicator.pool.locks import PoolLock, owned_elsewhere
from replicator.pool.repair_source import Source, open_source, steps_in_place
from replicator.pool.view import CatalogueView
from replicator.thin.geometry import SMALLEST_METADATA_BYTES
from replicator.thin.repair import DeviceOutcome, Salvage, examine, write
from replicator.thin.repair_roots import Hints

Progress = Callable[[str, int], None]
_GROWTH = 4  # sharing is kept, so that a larger file is needed only where new branches don't fit a full device


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be repaired into what; `block_bytes` where no superblock is left."""

    path: Path
    target: Path
    data: Path | None = None
    block_bytes: int | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class PoolRepair:
    """What was saved, by device; `names` of devices, `nameless` devices, names whose devices are gone, what to do.

    `read_from`, `note`, `is_older`: which copies it comes from, as pool/repair_source has it.
    """

    wish: Wish
    read_from: tuple[Path, ...]
    note: str
    is_older: bool
    origin: str
    problem: str
    intact: bool
    devices: tuple[DeviceOutcome, ...]
    names: Mapping[int, str]
    lost_ids: tuple[tuple[int, int], ...]
    ambiguous_subtrees: int
    unreadable_blocks: tuple[int, ...]
    catalogue_problem: str
    written_bytes: int
    steps: tuple[str, ...]

    def name_of(self, dev_id: int) -> str:
        """The device's name in the catalogue, or the one that a foreign pool gives it."""
        return self.names.get(dev_id, f"thin-{dev_id}")

    @property
    def nameless(self) -> tuple[int, ...]:
        """Saved devices that the catalogue doesn't name."""
        return tuple(each.dev_id for each in self.devices if each.saved and each.dev_id not in self.names)

    @property
    def gone(self) -> tuple[int, ...]:
        """Devices that the catalogue names, and that aren't there any more."""
        there = {each.dev_id for each in self.devices if each.is_there}
        return tuple(sorted(self.names.keys() - there))

    @property
    def whole(self) -> bool:
        """Whether every mapping that anybody knows of was saved."""
        known = not self.lost_ids and not self.gone and not self.is_older
        return known and all(each.whole for each in self.devices)


def repair_pool(wish: Wish, progress: Progress = lambda *_: None) -> PoolRepair:
    """Save what is intact of the pool's metadata into `wish.target` (E1, E2); `progress` hears steps and bytes."""
    require_metadata(wish.path)
    if not wish.dry_run and (wish.target.exists() or wish.target.is_symlink()):
        raise ConflictError(f"{wish.target} is there already", mend="name a new file")
    with ExitStack() as held:
        lock = PoolLock.read(wish.path, make=is_ours(wish.path))
        if lock is None:
            raise owned_elsewhere(wish.path)
        held.enter_context(lock)
        source = open_source(wish.path)
        metadata = held.enter_context(closing(source.device))
        catalogue = _Names(wish.path)
        salvage = examine(metadata, _hints(wish, catalogue, source), progress)
        written = 0 if wish.dry_run else _write(salvage, wish.target, metadata.size_bytes, progress)
        superblock = salvage.believed.superblock
        return PoolRepair(
            wish,
            source.read,
            source.note,
            source.is_older,
            salvage.believed.origin,
            salvage.believed.problem,
            salvage.intact,
            salvage.devices,
            catalogue.of_devices(superblock.transaction_id),
            salvage.rescued.lost_ids,
            salvage.rescued.ambiguous,
            salvage.unreadable,
            catalogue.problem,
            written,
            steps_in_place(wish.path, wish.target, source.read),
        )


class _Names:
    """The catalogue, as far as it can be read: a damaged one must not keep anybody from repairing."""

    def __init__(self, path: Path) -> None:
        self.problem = ""
        self.newest: CatalogueView | None = None
        self._file = path / "catalog.db"
        if not is_foreign(path):
            self.newest = self._view(None)

    def _view(self, at_id: int | None) -> CatalogueView | None:
        try:
            with Catalogue(self._file, read_only=True) as catalogue:
                return catalogue.view(catalogue.newest_id() if at_id is None else at_id)
        except ReplicatorError as error:
            self.problem = self.problem or error.message
            return None

    def of_devices(self, at_id: int) -> dict[int, str]:
        """Names by device, as of the transaction `at_id` if the catalogue knows it."""
        view = self._view(at_id) if self.newest is not None else None
        view = view or self.newest
        if view is None:
            return {}
        volumes = {each.uuid: each.name for each in view.volumes}
        names = {each.dev_id: each.name for each in view.volumes}
        for each in view.snapshots:
            names[each.dev_id] = each.name or f"a snapshot of {volumes.get(each.volume, each.volume)}"
        return names


def _hints(wish: Wish, catalogue: _Names, source: Source) -> Hints:
    data_bytes = None
    data = wish.path / "data" if wish.data is None else wish.data
    if wish.data is not None or data.exists():
        with FileDevice(data, read_only=True) as device:
            data_bytes = device.size_bytes
    known = catalogue.newest
    uuid, newest = (known.pool.uuid.bytes, known.at_id) if known is not None else (bytes(16), 0)
    block_bytes = wish.block_bytes
    if source.other is not None and (known is None or source.other.uuid == uuid):
        block_bytes = block_bytes or source.other.data_block_bytes
    return Hints(block_bytes, data_bytes, uuid, newest)


def _write(salvage: Salvage, target: Path, size_bytes: int, progress: Progress) -> int:
    """The repaired metadata as a new file, as long as the old one if that will do; its length."""
    smallest = max(size_bytes // 4096 * 4096, SMALLEST_METADATA_BYTES)
    for length in (smallest, smallest * _GROWTH):
        try:
            with FileDevice.create(target, length) as device:
                write(salvage, device, progress)
                device.preallocate(0, length)
                device.flush()
            return length
        except NoSpaceError:
            target.unlink(missing_ok=True)
            if length > smallest:
                raise
        except ConflictError:
            raise
        except BaseException:
            target.unlink(missing_ok=True)
            raise
    raise AssertionError("the loop returns or raises")
