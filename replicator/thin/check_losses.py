"""What damaged trees mean to those who use the pool: which devices, and which of their virtual blocks, can't be read.

Last part of thin/check, where a tree of devices or mappings is damaged; it stands on the same walk as thin/repair, so
that a check names what a repair would lose if nothing could be put back.
"""

from __future__ import annotations

from replicator.blockdev.interface import BlockDevice
from replicator.pdata.store import MetadataStore
from replicator.thin.mapping import DEV_ID_LIMIT
from replicator.thin.repair_roots import UpperTree
from replicator.thin.repair_scan import What, scan
from replicator.thin.repair_shapes import TOP_KEY, Shapes, measure
from replicator.thin.repair_trees import join_ranges, leaves_of
from replicator.thin.report import FINDINGS_PER_KIND, FindingKind, Findings, Severity
from replicator.thin.superblock import Superblock


def name_losses(device: BlockDevice, superblock: Superblock, findings: Findings) -> None:
    """Add a finding for each device, and each range of virtual blocks, that damaged nodes keep from being read."""
    found = scan(device)
    data_blocks = superblock.data_space_map.nr_blocks
    shapes = measure(MetadataStore(device, found.nr_blocks), found, data_blocks)
    if not shapes.is_tree(superblock.data_mapping_root, What.MAPPINGS):
        _add(findings, "every device", "a top-level mapping tree", "none that can be read")
        return
    top = UpperTree.read(shapes, superblock.data_mapping_root, {})
    for first, last in top.lost:
        where = f"devices {first} to {min(last, DEV_ID_LIMIT - 1)}"
        _add(findings, where, "entries in the top-level mapping tree", "none that can be read")
    for dev_id, root in zip(top.ids.tolist(), top.values.tolist(), strict=True):
        _name_ranges(shapes, dev_id, root, findings)


def _name_ranges(shapes: Shapes, dev_id: int, root: int, findings: Findings) -> None:
    where = f"device {dev_id}"
    if not shapes.is_tree(root, What.MAPPINGS):
        _add(findings, where, f"a mapping tree in metadata block {root}", "none: all its virtual blocks are lost")
        return
    if shapes.sound[root]:
        return
    lost = join_ranges(leaves_of(shapes, root, {}).lost)
    for first, last in lost[:FINDINGS_PER_KIND]:
        end = "the end" if last == TOP_KEY else last
        _add(findings, f"{where}, virtual blocks {first} to {end}", "mappings", "none that can be read")
    findings.count_only(Severity.DAMAGE, FindingKind.LOST_RANGE, max(0, len(lost) - FINDINGS_PER_KIND))


def _add(findings: Findings, where: str, expected: str, found: str) -> None:
    findings.add(Severity.DAMAGE, FindingKind.LOST_RANGE, where, expected, found)
