"""Saves what is intact of a damaged pool's metadata into new metadata; the old one is only read.

    scan of all blocks -> believed superblock -> heights and ranges -> roots, orphans into gaps -> new metadata
    (repair_scan)         (repair_roots)         (repair_shapes)       (repair_trees, _devices)    (repair_write)

Asked by pool/repairing. What is saved beyond what thin_repair saves: subtrees below a destroyed branch, devices whose
root or details are gone, pools whose superblock is damaged and which have no second one.

What can't be saved: a mapping leaf that was overwritten is the only place where its mappings stood. Its range of
virtual blocks is named, and reads as zeros afterwards. A metadata snapshot isn't kept.

Invariants
  R1  The old device is never written.
  R2  A mapping of the new metadata stood in a verified leaf of the old one, in a tree of the same device (R1 of
      repair_roots, T2 of repair_trees), or under a new id.
  R3  The new metadata passes thin/check: the caller is told if it doesn't.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from replicator.blockdev.interface import BlockDevice
from replicator.errors import DamageError, DeviceError
from replicator.pdata.store import MetadataStore
from replicator.thin.check import check
from replicator.thin.check_counts import bitmap_count
from replicator.thin.geometry import DATA_BLOCK_LIMIT
from replicator.thin.mapping import data_blocks
from replicator.thin.repair_devices import Rescue, rescue
from replicator.thin.repair_roots import Believed, Hints, Pair, believe, best_pair, usable
from replicator.thin.repair_scan import Scan, What, scan
from replicator.thin.repair_shapes import Shapes, measure
from replicator.thin.repair_trees import Range
from replicator.thin.repair_write import Clock, write_repaired
from replicator.thin.report import CheckReport, Severity

Progress = Callable[[str, int], None]
"""Hears of a step by its name, and the bytes that it has done."""


@dataclass(frozen=True, slots=True)
class DeviceOutcome:
    """What became of one device: `expected` mappings by its details (None: nobody knows), and the ranges lost."""

    dev_id: int
    saved: int
    expected: int | None
    lost: tuple[Range, ...]
    put_back: int
    note: str
    is_there: bool = True

    @property
    def whole(self) -> bool:
        """Whether nothing of it is missing."""
        return self.is_there and not self.lost and (self.expected is None or self.saved >= self.expected)


@dataclass(frozen=True, slots=True)
class Salvage:
    """What a repair can save, not yet written."""

    believed: Believed
    shapes: Shapes
    rescued: Rescue
    report: CheckReport | None
    unreadable: tuple[int, ...]

    @property
    def devices(self) -> tuple[DeviceOutcome, ...]:
        """All devices that are saved, and those that aren't (with 0 mappings saved)."""
        saved = [
            DeviceOutcome(
                each.dev_id,
                each.mapped,
                each.details.mapped_blocks if each.details else None,
                each.lost,
                each.put_back,
                each.note,
            )
            for each in self.rescued.devices
        ]
        gone = [
            DeviceOutcome(dev_id, 0, details.mapped_blocks if details else None, (), 0, LOST, False)
            for dev_id, details in self.rescued.missing.items()
        ]
        return tuple(sorted([*saved, *gone], key=lambda each: each.dev_id))

    @property
    def intact(self) -> bool:
        """Whether the old metadata has no damage at all (leaks and warnings aside)."""
        return self.report is not None and not self.report.of(Severity.DAMAGE)


LOST = "lost: nothing of its tree was found"


def examine(device: BlockDevice, hints: Hints, progress: Progress = lambda *_: None) -> Salvage:
    """Find all that can be saved; nothing is written. DamageError where no tree of devices is left at all."""
    found = scan(device, lambda done: progress("scanning", done))
    believed = believe(device, found, hints)
    store = MetadataStore(device, found.nr_blocks)
    believed, shapes = _measured(store, found, believed, hints)
    superblock = believed.superblock
    told = Pair(superblock.data_mapping_root, superblock.device_details_root)
    pairs = [told] if usable(shapes, told) or shapes.is_tree(told.details, What.DETAILS) else []
    if not usable(shapes, told) or believed.problem:
        other = best_pair(shapes)
        pairs += [other] if other is not None and other != told else []
    if not pairs:
        raise DamageError(
            f"{device.name}: neither its superblock nor any tree of devices can be read",
            mend="restore the volumes from their log: replicator restore LOG VOLUME@POINT --to FILE",
        )
    attempts = [rescue(device, shapes, superblock, pair) for pair in pairs]
    best = max(attempts, key=lambda each: each.mapped)
    return Salvage(believed, shapes, best, _check(device), tuple(found.unreadable))


def _check(device: BlockDevice) -> CheckReport | None:
    """What is wrong with the old metadata; None where the disk can't be read."""
    try:
        return check(device)
    except DeviceError:
        return None


def _measured(store: MetadataStore, found: Scan, believed: Believed, hints: Hints) -> tuple[Believed, Shapes]:
    """Shapes, with a number of data blocks that can be true: the superblock's, the data device's, or what is mapped."""
    superblock = believed.superblock
    blocks = superblock.data_space_map.nr_blocks
    if not blocks or bitmap_count(blocks) >= found.nr_blocks:
        blocks = (hints.data_bytes or 0) // superblock.data_block_bytes
    shapes = measure(store, found, blocks or DATA_BLOCK_LIMIT)
    if not blocks:
        blocks = _highest(shapes) + 1
    data_map = replace(superblock.data_space_map, nr_blocks=blocks)
    return replace(believed, superblock=replace(superblock, data_space_map=data_map)), shapes


def _highest(shapes: Shapes) -> int:
    """The highest data block that a leaf names, of those that a map could cover."""
    limit = shapes.scan.nr_blocks * 16320 // 2
    highest = 0
    for nodes in shapes.read(shapes.scan.all_of(What.MAPPINGS), True):
        blocks = data_blocks(nodes.flat()[1])
        highest = max(highest, int(blocks[blocks < limit].max(initial=0)))
    return highest


def write(salvage: Salvage, target: BlockDevice, progress: Progress = lambda *_: None) -> CheckReport:
    """Write the repaired metadata to `target`, which begins with zeros, and check it (R3). NoSpaceError: too small."""
    renew = not salvage.intact
    clock = Clock.after(salvage.believed.superblock, renew=renew)
    superblock = salvage.believed.superblock
    write_repaired(target, salvage.shapes, superblock, salvage.rescued, clock, lambda done: progress("writing", done))
    report = check(target)
    if not report.clean:
        raise DamageError(f"{target.name}: the repaired metadata isn't clean: {report.findings[0]}")
    return report
