"""The devices of a damaged pool: which trees are theirs, what was put back into them, and what is lost.

Fourth step of thin/repair, over repair_roots (which state) and repair_trees (what hangs from it).

    the device has                      it becomes
    a tree and details                  itself
    a tree, and no details              itself, with details made up: its mappings counted, both times the pool's
    details, and no tree                itself again if one orphan alone has as many mappings as the details say, or
                                        if it is the only one without a tree, and what is left over could be its
                                        pieces; else it is lost
    neither, but an orphan is there     a new device with a free id, where the top-level tree itself is damaged

Invariants
  E1  No subtree is given to two devices that don't share it: references missing bound how often it is given.
  E2  A tree with more mappings than its device's details say gets nothing put into its gaps.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from replicator.blockdev.interface import BlockDevice
from replicator.errors import FormatError
from replicator.pdata.block import Words
from replicator.thin.mapping import DEV_ID_LIMIT, data_blocks
from replicator.thin.repair_counts import stored_counts
from replicator.thin.repair_roots import Pair, UpperTree
from replicator.thin.repair_scan import What
from replicator.thin.repair_shapes import TOP_KEY, UNKNOWN, Mask, Shapes
from replicator.thin.repair_trees import (
    Fills,
    Placing,
    Range,
    Reached,
    find_orphans,
    join_ranges,
    leaves_of,
    place,
    reach,
)
from replicator.thin.superblock import Superblock, read_superblock
from replicator.thin.view import DeviceDetails

EVERYWHERE: Range = (0, TOP_KEY)
"""Mappings are missing, and nothing tells where."""
_NONE: Words = np.empty(0, dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class Rescued:
    """One device: its tree (or the pieces that are left of it), how many mappings are saved, and the keys lost.

    `whole`: every node is in order, and the tree can be copied as it is. `fills`: what was put into its gaps.
    """

    dev_id: int
    roots: tuple[int, ...]
    whole: bool
    mapped: int
    details: DeviceDetails | None
    lost: tuple[Range, ...] = ()
    put_back: int = 0
    note: str = ""
    fills: Fills = field(default_factory=dict)
    is_foundling: bool = False

    def leaves(self, shapes: Shapes) -> Words:
        """The leaves that are left, ascending by key."""
        parts = [leaves_of(shapes, root, self.fills).leaves for root in self.roots]
        return in_order(shapes, np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64))


@dataclass(frozen=True, slots=True)
class Rescue:
    """All devices of one state, ids that were lost without a trace, and orphans that nobody can place."""

    devices: tuple[Rescued, ...]
    lost_ids: tuple[Range, ...]
    missing: dict[int, DeviceDetails | None]
    ambiguous: int

    @property
    def mapped(self) -> tuple[int, int]:
        """Mappings saved of devices that are known, and of all."""
        known = sum(each.mapped for each in self.devices if not each.is_foundling)
        return known, sum(each.mapped for each in self.devices)


@dataclass(frozen=True, slots=True)
class Treeless:
    """A device whose tree isn't where it should be; `root` as the top-level tree has it, None where that is lost."""

    dev_id: int
    root: int | None
    details: DeviceDetails | None


def _ids(devices: list[Rescued]) -> set[int]:
    return {each.dev_id for each in devices}


def in_order(shapes: Shapes, leaves: Words) -> Words:
    """The same leaves, ascending by their lowest keys."""
    return leaves[np.argsort(shapes.low[leaves.astype(np.int64)], kind="stable")]


def rescue(device: BlockDevice, shapes: Shapes, superblock: Superblock, pair: Pair) -> Rescue:
    """The devices of the state `pair`; nothing is written."""
    return _Rescue(device, shapes, superblock, pair).run()


class _Rescue:
    """One attempt at one state."""

    def __init__(self, device: BlockDevice, shapes: Shapes, superblock: Superblock, pair: Pair) -> None:
        self.shapes, self.pair = shapes, pair
        self.data_nr_blocks = superblock.data_space_map.nr_blocks
        self.held = _held_copy(device, superblock)
        self.counts = stored_counts(shapes, superblock.metadata_space_map)
        self.reached = Reached.nothing(len(shapes.height))
        self.fills: dict[tuple[int, int], tuple[int, ...]] = {}
        self.ambiguous: set[int] = set()
        self.given: Counter[int] = Counter()

    def run(self) -> Rescue:
        """Upper trees, then devices' trees, then who has what."""
        upper = self.shapes.upper & (self.shapes.leaf_kind == What.MAPPINGS)
        tops = [self.pair.top, self.held.data_mapping_root if self.held else 0]
        top_pieces = self._upper(tops, What.MAPPINGS, upper)
        is_details = self.shapes.leaf_kind == What.DETAILS
        records = [self.pair.details, self.held.device_details_root if self.held else 0]
        details_pieces = self._upper(records, What.DETAILS, is_details)
        top = self._tree(self.pair.top, What.MAPPINGS, top_pieces)
        details = self._tree(self.pair.details, What.DETAILS, details_pieces)
        trees = [block for block in [*tops, *top_pieces] if self.shapes.is_tree(block, What.MAPPINGS)]
        self._lower(np.unique(np.concatenate([leaves_of(self.shapes, b, self.fills).leaves for b in trees] or [_NONE])))
        return self._devices(top, details, self._orphans(~upper & (self.shapes.leaf_kind == What.MAPPINGS)))

    def _upper(self, roots: list[int], what: What, family: Mask) -> list[int]:
        """Follow upper trees; returns pieces of the live one, where that has lost its root."""
        trees = [root for root in dict.fromkeys(roots) if self.shapes.is_tree(root, what)]
        for root in trees:
            self.reached.references[root] += 1
        reach(self.shapes, np.array(trees, dtype=np.uint64), self.reached)
        pieces = self._orphans(family)
        return pieces if not self.shapes.is_tree(roots[0], what) and self._are_apart(pieces) else []

    def _lower(self, top_leaves: Words) -> None:
        named = [nodes.flat()[1] for nodes in self.shapes.read(top_leaves, True)]
        roots = np.concatenate(named) if named else np.empty(0, dtype=np.uint64)
        roots = roots[roots < len(self.shapes.height)]
        np.add.at(self.reached.references, roots.astype(np.int64), 1)
        reach(self.shapes, np.unique(roots), self.reached)

    def _orphans(self, family: Mask) -> list[int]:
        """Orphans of one kind of tree, those that fit a gap put there; the others, highest first."""
        orphans = find_orphans(self.shapes, family & (self.shapes.height != UNKNOWN), self.counts, self.reached)
        gaps = [gap for gap in self.reached.gaps if family[gap.branch]]
        placing: Placing = place(self.shapes, orphans, self.counts - self.reached.references, gaps)
        self.fills.update(placing.fills)
        self.ambiguous |= placing.ambiguous
        used = {block for blocks in placing.fills.values() for block in blocks}
        return [block for block in orphans.tolist() if block not in used and block not in placing.ambiguous]

    def _tree(self, root: int, what: What, pieces: list[int]) -> UpperTree:
        """An upper tree, or what is left of it."""
        if self.shapes.is_tree(root, what):
            return UpperTree.read(self.shapes, root, self.fills)
        parts = [UpperTree.read(self.shapes, block, self.fills) for block in pieces]
        ids = np.concatenate([part.ids for part in parts] or [_NONE])
        values = np.concatenate([part.values for part in parts] or [_NONE])
        order = np.argsort(ids, kind="stable")
        return UpperTree(root, ids[order], values[order], ((0, DEV_ID_LIMIT - 1),))

    def _devices(self, top: UpperTree, details: UpperTree, orphans: list[int]) -> Rescue:
        roots = dict(zip(top.ids.tolist(), top.values.tolist(), strict=True))
        records = {
            dev_id: _details(record) for dev_id, record in zip(details.ids.tolist(), details.values, strict=True)
        }
        found: list[Rescued] = []
        treeless: dict[int, Treeless] = {}
        for dev_id in sorted(roots.keys() | records.keys()):
            if dev_id >= DEV_ID_LIMIT:
                continue
            root = roots.get(dev_id)
            if root is not None and self.shapes.is_tree(root, What.MAPPINGS):
                found.append(self._whole_or_not(dev_id, root, records.get(dev_id)))
            elif root is not None or _is_in(dev_id, top.lost):
                treeless[dev_id] = Treeless(dev_id, root, records.get(dev_id))
        found += self._reunited(treeless, orphans)
        missing = {dev_id: treeless[dev_id].details for dev_id in treeless.keys() - {each.dev_id for each in found}}
        lost_ids = _common(top.lost, details.lost)
        if lost_ids or missing:
            taken = roots.keys() | records.keys()
            found += self._foundlings(taken, [block for block in orphans if not self.given[block]])
        found.sort(key=lambda each: each.dev_id)
        return Rescue(tuple(found), lost_ids, missing, len(self.ambiguous))

    def _whole_or_not(self, dev_id: int, root: int, details: DeviceDetails | None) -> Rescued:
        note = "" if details else "its details were lost"
        if self.shapes.sound[root]:
            return Rescued(dev_id, (root,), True, self._entries(root), details, note=note)
        bare = self._tree_of(dev_id, (root,), details, {})
        full = self._tree_of(dev_id, (root,), details, self.fills)
        if details is not None and full.mapped > max(details.mapped_blocks, bare.mapped):
            full = bare  # E2
        return replace(full, put_back=full.mapped - bare.mapped, note=note)

    def _tree_of(self, dev_id: int, roots: tuple[int, ...], details: DeviceDetails | None, fills: Fills) -> Rescued:
        """A damaged tree, its mappings counted."""
        flats = [leaves_of(self.shapes, root, fills) for root in roots]
        leaves = np.concatenate([flat.leaves for flat in flats])
        lost = [each for flat in flats for each in flat.lost]
        mapped = int(self.shapes.entries[leaves.astype(np.int64)].sum())
        for nodes in self.shapes.read(leaves[~self.shapes.sound[leaves.astype(np.int64)]], True):
            keys, values = nodes.flat()
            outside = keys[data_blocks(values) >= self.data_nr_blocks].tolist()
            lost += [(key, key) for key in outside]
            mapped -= len(outside)
        if details is not None and mapped >= details.mapped_blocks:
            lost = []
        elif details is not None and not lost:
            lost = [EVERYWHERE]
        return Rescued(dev_id, roots, False, mapped, details, join_ranges(lost), fills=fills)

    def _reunited(self, treeless: dict[int, Treeless], orphans: list[int]) -> list[Rescued]:
        """Devices without a tree that an older top-level tree, one orphan, or what is left over belongs to."""
        found = self._remembered(treeless, set(orphans))
        found += self._by_size([each for each in treeless.values() if each.dev_id not in _ids(found)], orphans)
        left = [each for each in treeless.values() if each.dev_id not in _ids(found)]
        pieces = [block for block in orphans if not self.given[block]]
        same = len({(each.root, each.details and each.details.mapped_blocks) for each in left}) == 1
        same = same and (left[0].root is not None or len(left) == 1)
        if same and pieces and self._could_be_one(pieces, left[0].details):
            found += [self._adopt(each, pieces) for each in left]
        return found

    def _remembered(self, treeless: dict[int, Treeless], orphans: set[int]) -> list[Rescued]:
        """Devices whose tree is the one that the metadata snapshot had: it is still in use, and as long as it was."""
        if self.held is None or not self.shapes.is_tree(self.held.data_mapping_root, What.MAPPINGS):
            return []
        top = self._tree(self.held.data_mapping_root, What.MAPPINGS, [])
        found: list[Rescued] = []
        for dev_id, root in zip(top.ids.tolist(), top.values.tolist(), strict=True):
            device = treeless.get(dev_id)
            if device is None or root not in orphans or device.details is None:
                continue
            if self._entries(root) == device.details.mapped_blocks:
                found.append(self._adopt(device, [root]))
        return found

    def _by_size(self, treeless: list[Treeless], orphans: list[int]) -> list[Rescued]:
        """Devices for which there is one orphan alone that has as many mappings."""
        missing = self.counts - self.reached.references
        sizes: dict[int, list[int]] = {}
        for block in orphans:
            if self.given[block] < missing[block]:
                sizes.setdefault(self._whole_or_not(0, block, None).mapped, []).append(block)
        wanted: dict[int, list[Treeless]] = {}
        for each in treeless:
            if each.details is not None:
                wanted.setdefault(each.details.mapped_blocks, []).append(each)
        found: list[Rescued] = []
        for mapped, devices in wanted.items():
            blocks = sizes.get(mapped, [])
            roots = {each.root if each.root is not None else -1 - each.dev_id for each in devices}
            if len(blocks) == 1 and len(roots) <= int(missing[blocks[0]]) - self.given[blocks[0]]:
                found += [self._adopt(each, blocks) for each in devices]
            elif not mapped:
                found += [Rescued(each.dev_id, (), False, 0, each.details) for each in devices]
        return found

    def _could_be_one(self, pieces: list[int], details: DeviceDetails | None) -> bool:
        """Whether the pieces overlap nowhere, and are no more than the device had."""
        if details is None or not self._are_apart(pieces):
            return False
        return sum(map(self._entries, pieces)) <= details.mapped_blocks

    def _are_apart(self, pieces: list[int]) -> bool:
        ordered = sorted(pieces, key=lambda block: int(self.shapes.low[block]))
        return all(self.shapes.high[a] < self.shapes.low[b] for a, b in pairwise(ordered))

    def _entries(self, block: int) -> int:
        return int(self.shapes.entries[block])

    def _adopt(self, device: Treeless, blocks: list[int]) -> Rescued:
        self.given.update(blocks)
        dev_id, details = device.dev_id, device.details
        if len(blocks) == 1:
            found = self._whole_or_not(dev_id, blocks[0], details)
            if details is None or found.mapped >= details.mapped_blocks:
                return replace(found, note="its root was found by its size")
        whole = self._tree_of(dev_id, tuple(blocks), details, self.fills)
        if details is not None and whole.mapped < details.mapped_blocks:
            whole = replace(whole, lost=(EVERYWHERE,))  # what lies between the pieces is unknown
        return replace(whole, put_back=whole.mapped, note="put together from its pieces")

    def _foundlings(self, taken: Any, orphans: list[int]) -> list[Rescued]:
        """Trees that are in use, and whose device nobody knows any more."""
        free = (dev_id for dev_id in range(1, DEV_ID_LIMIT) if dev_id not in taken)
        note = "a device that nothing names any more, under a new id"
        found = [
            replace(self._whole_or_not(dev_id, block, None), note=note, is_foundling=True)
            for dev_id, block in zip(free, orphans, strict=False)
            if self._entries(block)
        ]
        self.given.update(orphans)
        return found


def _held_copy(device: BlockDevice, superblock: Superblock) -> Superblock | None:
    try:
        return read_superblock(device, superblock.held_root) if superblock.held_root else None
    except FormatError:
        return None


def _common(a: tuple[Range, ...], b: tuple[Range, ...]) -> tuple[Range, ...]:
    """Ids that both trees have lost: one of the two names a device that there is."""
    return join_ranges(
        [
            (max(first, other), min(last, end))
            for first, last in a
            for other, end in b
            if max(first, other) <= min(last, end)
        ]
    )


def _is_in(dev_id: int, ranges: tuple[Range, ...]) -> bool:
    return any(first <= dev_id <= last for first, last in ranges)


def _details(record: Any) -> DeviceDetails:
    mapped, transaction_id, created, snapshotted = record.item()
    return DeviceDetails(mapped, transaction_id, created, snapshotted)
