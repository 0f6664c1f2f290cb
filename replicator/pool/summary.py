"""A pool in a few numbers: what `pool status` shows, with an owner, without one, ours or foreign.

The kernel's status line of a thin pool (Documentation/admin-guide/device-mapper/thin-provisioning.rst), so that who
reads dmsetup's can read ours:

    TRANSACTION-ID USED/TOTAL-METADATA USED/TOTAL-DATA HELD-ROOT MODE DISCARDS WHEN-FULL NEEDS-CHECK METADATA-LOW-WATER

    blocks       metadata in 4 KiB, data in the pool's blocks; a held root is a metadata block, `-` is none
    MODE         rw, ro (a commit failed, or a foreign pool), out_of_data_space
    DISCARDS     no_discard_passdown: a trim unmaps, the data file keeps its room until the block is given again
    WHEN-FULL    error_if_no_space
    LOW-WATER    the kernel's: a quarter of the metadata, at most 4 MiB
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

from replicator.blockdev.interface import BlockDevice
from replicator.pool.catalogue import Catalogue
from replicator.pool.deleting import being_deleted
from replicator.pool.identity import LOW_WATER_SETTING, low_water_blocks
from replicator.pool.inspection import is_foreign, settled
from replicator.pool.interface import PoolStatus
from replicator.pool.metadata_device import open_metadata
from replicator.pool.mirroring import MirrorFacts, mirror_facts
from replicator.pool.view import CatalogueView
from replicator.thin.superblock import Superblock
from replicator.thin.view import PoolView

_LOW_WATER_LIMIT = 1024  # metadata blocks: dm-thin.c, calc_metadata_threshold


@dataclass(frozen=True, slots=True)
class PoolSummary:
    """One pool's numbers, and how many names it has; `volume_count` counts thin devices in a foreign pool."""

    path: Path
    status: PoolStatus
    foreign: bool
    needs_check: bool
    volume_count: int
    snapshot_count: int
    mirror: MirrorFacts | None = None

    @property
    def used_data_blocks(self) -> int:
        """Data blocks that some device maps, or that are given out to be written."""
        return self.status.data_blocks - self.status.data_free_blocks

    @property
    def used_metadata_blocks(self) -> int:
        """Metadata blocks in use."""
        return self.status.metadata_blocks - self.status.metadata_free_blocks

    @property
    def is_low(self) -> bool:
        """Whether free data space is below the low-water mark."""
        return self.status.data_free_blocks < self.status.low_water_blocks

    @property
    def status_line(self) -> str:
        """The line that dmsetup would show."""
        now = self.status
        mode = "ro" if now.failed or self.foreign else "rw" if now.data_free_blocks else "out_of_data_space"
        return (
            f"{now.transaction_id} {self.used_metadata_blocks}/{now.metadata_blocks} "
            f"{self.used_data_blocks}/{now.data_blocks} {now.held_root or '-'} {mode} no_discard_passdown "
            f"error_if_no_space {'needs_check' if self.needs_check else '-'} "
            f"{min(now.metadata_blocks // 4, _LOW_WATER_LIMIT)}"
        )


def summarise(path: Path) -> PoolSummary:
    """The numbers of this instant: the owner's, or those on disk."""
    with settled(path) as owner, open_metadata(path, settled=owner is None) as device:
        if owner is not None:
            volumes, snapshots = _counts(owner.view())
            return PoolSummary(path, owner.status(), False, False, volumes, snapshots, mirror_facts(path))
        return replace(_on_disk_alone(path, device), mirror=mirror_facts(path, device))


def _on_disk_alone(path: Path, device: BlockDevice) -> PoolSummary:
    view = PoolView.live(device)
    superblock = view.superblock
    if is_foreign(path):
        return PoolSummary(path, _on_disk(superblock), True, superblock.needs_check, len(view.devices()), 0)
    with closing(Catalogue(path / "catalog.db", read_only=True)) as catalogue:
        rows = catalogue.view(superblock.transaction_id)
    text = rows.setting(LOW_WATER_SETTING, "0%")
    low = low_water_blocks(text, superblock.data_space_map.nr_blocks, superblock.data_block_bytes)
    now = _with_deletions(_on_disk(superblock, low), rows, view)
    return PoolSummary(path, now, False, superblock.needs_check, *_counts(rows))


def _counts(rows: CatalogueView) -> tuple[int, int]:
    return len(rows.volumes), sum(not each.hidden for each in rows.snapshots)


def _with_deletions(now: PoolStatus, rows: CatalogueView, view: PoolView) -> PoolStatus:
    """With what is still to be deleted by whoever opens the pool next."""
    dying = being_deleted(rows)
    left = [entry for entry in view.devices() if entry.dev_id in dying]
    return replace(
        now,
        deleting_devices=len(left),
        deleting_blocks=sum(each.details.mapped_blocks for each in left),
        deleting_total_blocks=sum(dying[each.dev_id] for each in left),
    )


def _on_disk(superblock: Superblock, low_water: int = 0) -> PoolStatus:
    data, metadata = superblock.data_space_map, superblock.metadata_space_map
    return PoolStatus(
        uuid=UUID(bytes=superblock.uuid),
        transaction_id=superblock.transaction_id,
        time=superblock.time,
        block_bytes=superblock.data_block_bytes,
        data_blocks=data.nr_blocks,
        data_free_blocks=data.nr_blocks - data.nr_allocated,
        metadata_blocks=metadata.nr_blocks,
        metadata_free_blocks=metadata.nr_blocks - metadata.nr_allocated,
        held_root=superblock.held_root,
        dirty_count=0,
        commit_count=0,
        last_pause_s=0.0,
        low_water_blocks=low_water,
    )
