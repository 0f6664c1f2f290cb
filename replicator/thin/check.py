"""Checks a pool's metadata: every reference count recomputed from the roots, and what thin_check doesn't look at.

    superblock -> held copy -> top-level and details trees -> mapping trees -> space maps' own trees -> counts compared

Asked by `pool check`, by tests after every crash, and on pools that others wrote. It reads a metadata device that
nobody is writing; nothing is mended here.

What is checked
  K1  Superblock and held copy: all that thin/superblock refuses; NEEDS_CHECK and odd fields as warnings.
  K2  Every reachable block: checksum, own number, kind, sizes, ascending keys, equal depth, fill, key ranges against
      parents (thin/forest); no block serves two purposes.
  K3  The same devices in the top-level and the details tree, ids below 2**24, mapped_blocks of each, live and held.
  K4  Data blocks below the data map's nr_blocks; times of mappings and details not after the superblock's.
  K5  The rule of sharing: a mapping that two live devices reach has a time below the snapshotted_time of both. (The
      kernel takes a mapping for shared iff snapshotted_time > time; a wrong one would be overwritten in place.)
  K6  All metadata and data counts, the overflow trees, nr_free, none_free_before, nr_allocated (thin/check_counts).
  K7  Where a tree is damaged: the devices and ranges of virtual blocks that can't be read (thin/check_losses).

Memory: about 45 bytes for each metadata block and 8 for each data block (virtual; touched where there is something),
bounded by the metadata's size, since a data map without a bitmap for each 16,320 blocks is refused before.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from replicator.blockdev.interface import BlockDevice
from replicator.errors import FormatError
from replicator.pdata.block import Words
from replicator.pdata.node import DETAILS, MAPPING, TOP_LEVEL, Nodes
from replicator.pdata.store import MetadataStore
from replicator.pdata.tree import walk
from replicator.thin.check_counts import bitmap_count, compare, read_data_map, read_metadata_map
from replicator.thin.check_losses import name_losses
from replicator.thin.check_sharing import DeviceTable, MappingVisitor
from replicator.thin.forest import Census, Forest
from replicator.thin.mapping import DEV_ID_LIMIT
from replicator.thin.report import CheckReport, FindingKind, Findings, Severity
from replicator.thin.superblock import Superblock, read_superblock

_U64 = np.uint64


def check(device: BlockDevice, *, data_device_blocks: int | None = None) -> CheckReport:
    """Check the whole metadata on `device`; with `data_device_blocks` also that the data device is long enough.

    Never a FormatError: what is wrong is in the report. DeviceError, when the disk can't be read, comes through.
    """
    findings = Findings()
    try:
        superblock = read_superblock(device)
    except FormatError as error:
        findings.from_error(FindingKind.SUPERBLOCK, error)
        return CheckReport(tuple(findings.kept), dict(findings.totals), counts_compared=False)
    return _Check(device, superblock, findings).run(data_device_blocks)


class _Check:
    """One check of one device."""

    def __init__(self, device: BlockDevice, superblock: Superblock, findings: Findings) -> None:
        self.device, self.superblock, self.findings = device, superblock, findings
        self.store = MetadataStore(device, superblock.metadata_space_map.nr_blocks)
        self.census = Census(self.store, findings)
        self.held: Superblock | None = None
        self.sound_roots = True

    def run(self, data_device_blocks: int | None) -> CheckReport:
        """All of K1 to K6, in the order of the walk."""
        self._superblock_fields(data_device_blocks)
        self.census.references[0] += 1
        self.held = self._held_copy()
        sound = self.held is not None or not self.superblock.held_root
        top_roots, sound_upper = self._upper_trees()
        live, held = self._devices(self.superblock), self._devices(self.held)
        sound &= sound_upper
        data_fits = self._data_map_fits()
        visitor = MappingVisitor(self.superblock, live, self.store.nr_blocks, self.findings, counting=data_fits)
        forest = Forest(self.census, MAPPING, top_roots)
        forest.visit(visitor.leaves, visitor.branches)
        below = forest.measure_subtrees()
        if below is not None:
            live.compare_mapped(below, self.findings, "device")
            held.compare_mapped(below, self.findings, "held device")
        visitor.finish()
        if below is None or not sound_upper:
            name_losses(self.device, self.superblock, self.findings)
        data_map = read_data_map(self.census, self.superblock.data_space_map) if data_fits else None
        metadata_map = read_metadata_map(self.census, self.superblock.metadata_space_map)
        sound &= below is not None
        used = 0
        compared = sound and data_map is not None and metadata_map is not None
        if data_map is not None and sound:
            used = compare(self.census, data_map, visitor.data_counts)
        if metadata_map is not None and compared:
            compare(self.census, metadata_map, self.census.references)
        return CheckReport(
            tuple(self.findings.kept),
            dict(+self.findings.totals),
            counts_compared=compared,
            device_count=len(live),
            held_device_count=len(held),
            metadata_blocks_used=int(np.count_nonzero(self.census.references)),
            data_blocks_used=used,
        )

    def _superblock_fields(self, data_device_blocks: int | None) -> None:
        block = self.superblock
        add, kind = self.findings.add, FindingKind.SUPERBLOCK
        if block.needs_check:
            add(Severity.WARNING, FindingKind.NEEDS_CHECK, "superblock", "NEEDS_CHECK unset", "it is set")
        if block.flags & ~1:
            add(Severity.WARNING, kind, "superblock", "no flag but NEEDS_CHECK", f"flags {block.flags:#x}")
        if block.compat_flags:
            add(Severity.WARNING, kind, "superblock", "compat_flags 0", f"{block.compat_flags:#x}")
        formatted, now = block.metadata_nr_blocks, block.metadata_space_map.nr_blocks
        if formatted > now:
            add(Severity.WARNING, kind, "superblock", f"metadata_nr_blocks of at most {now}", formatted)
        wanted = block.data_space_map.nr_blocks
        if data_device_blocks is not None and data_device_blocks < wanted:
            add(Severity.DAMAGE, kind, "superblock", f"a data device of {wanted} blocks", f"{data_device_blocks}")

    def _held_copy(self) -> Superblock | None:
        """The metadata snapshot's superblock, references counted; None when there is none, or it's damaged."""
        block = self.superblock.held_root
        if not block:
            return None
        place = self.census.claim(
            self.census.refer(np.array([block], dtype=_U64), "held root"), "the held copy of the superblock"
        )
        try:
            if not len(place):
                return None
            copy = read_superblock(self.device, block)
        except FormatError as error:
            self.findings.from_error(FindingKind.HELD_ROOT, error)
            return None
        bare = replace(self.superblock.metadata_space_map, nr_blocks=0, nr_allocated=0, bitmap_root=0, ref_count_root=0)
        if copy.held_root or copy.data_space_map != bare or copy.metadata_space_map != bare:
            where, expected = f"metadata block {block}", "a held copy without held root and space maps"
            self.findings.add(Severity.WARNING, FindingKind.HELD_ROOT, where, expected, "one that has them")
        return copy

    def _upper_trees(self) -> tuple[Words, bool]:
        """Visit the top-level and the details trees, live and held; the device roots that they name."""
        named: list[Words] = [np.empty(0, dtype=_U64)]

        def on_leaves(nodes: Nodes) -> None:
            keys, roots = nodes.flat()
            inside = self.census.refer(roots, "root of a device in the top-level mapping tree")
            named.append(inside)
            self.sound_roots &= len(inside) == len(roots)
            if len(keys) and int(keys.max()) >= DEV_ID_LIMIT:
                where = "top-level mapping tree"
                found = int(keys.max())
                self.findings.add(Severity.DAMAGE, FindingKind.DEVICE_ID, where, f"ids below {DEV_ID_LIMIT}", found)

        superblocks = [self.superblock, *([self.held] if self.held is not None else [])]
        sound = True
        for kind, visit in ((TOP_LEVEL, on_leaves), (DETAILS, lambda _: None)):
            roots = [s.data_mapping_root if kind is TOP_LEVEL else s.device_details_root for s in superblocks]
            referred = self.census.refer(np.array(roots, dtype=_U64), f"root of the {kind.name}")
            forest = Forest(self.census, kind, referred)
            forest.visit(visit)
            sound &= len(referred) == len(roots) and forest.measure_subtrees() is not None
        return np.unique(np.concatenate(named)), sound and self.sound_roots

    def _devices(self, superblock: Superblock | None) -> DeviceTable:
        """The devices of one superblock, as far as both of its trees can be read."""
        if superblock is None:
            return DeviceTable.of([], [])
        try:
            roots = list(walk(self.store, superblock.data_mapping_root, TOP_LEVEL))
            details = list(walk(self.store, superblock.device_details_root, DETAILS))
        except FormatError:
            return DeviceTable.of([], [])  # the forest has reported why
        table = DeviceTable.of(roots, details)
        table.compare_sets(self.findings, "held " if superblock.is_held else "")
        table.compare_times(self.findings, superblock)
        return table

    def _data_map_fits(self) -> bool:
        """Whether the data map's size can be true: it bounds the memory for data counts."""
        nr_blocks = self.superblock.data_space_map.nr_blocks
        if bitmap_count(nr_blocks) < self.store.nr_blocks:
            return True
        where, expected = "superblock, data space map", f"at most {self.store.nr_blocks} bitmaps"
        found = f"{nr_blocks} blocks, {bitmap_count(nr_blocks)} bitmaps"
        self.findings.add(Severity.DAMAGE, FindingKind.SUPERBLOCK, where, expected, found)
        return False
