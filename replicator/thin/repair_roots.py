"""Which state of a damaged pool to save: what block 0 says, or what its copies and the trees themselves say.

Used by thin/repair before trees are followed. What may be believed, in this order:

    block 0                verified: its fields and its roots
    block 0 as it stands   its checksum is wrong, and all fields make sense: they, and its roots if trees stand there
    a metadata snapshot    the newest copy of the superblock that is found anywhere: its fields
    the caller             what data device, catalogue and command line say

Where no believed root leads to devices, all pairs of a top-level and a details tree are compared, as thin_repair does:
first those in which each device has as many mappings as its details say, then the youngest, then the fullest.

Invariants
  R1  No state is made up: both trees of a pair stand on the disk. A tree without its twin is better than none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from replicator.blockdev.interface import BlockDevice
from replicator.errors import DeviceError, FormatError, UsageError
from replicator.pdata.block import BlockKind, Words, seal
from replicator.pdata.smroot import NO_SPACE_MAP
from replicator.thin.geometry import DATA_BLOCK_LIMIT, require_block_bytes
from replicator.thin.repair_scan import Scan, What
from replicator.thin.repair_shapes import UNKNOWN, Shapes
from replicator.thin.repair_trees import Fills, Range, leaves_of
from replicator.thin.superblock import VERSION, Superblock, read_superblock
from replicator.units import METADATA_BLOCK_BYTES, SECTOR_BYTES

CANDIDATES_MAX = 1024  # stale roots that are compared: each commit leaves one, until its block is used again


@dataclass(frozen=True, slots=True)
class Hints:
    """What others know of the pool; None, or 0: nothing."""

    block_bytes: int | None = None
    data_bytes: int | None = None
    uuid: bytes = bytes(16)
    transaction_id: int = 0


@dataclass(frozen=True, slots=True)
class Believed:
    """The fields that the repaired pool starts from, where they come from, and why block 0 wasn't enough ("")."""

    superblock: Superblock
    origin: str
    problem: str


def believe(device: BlockDevice, scan: Scan, hints: Hints) -> Believed:
    """The best superblock there is; UsageError where nobody knows the size of a data block."""
    try:
        return Believed(read_superblock(device), "block 0", "")
    except (FormatError, DeviceError) as error:
        problem = str(error)
    for origin, found in _others(device, scan):
        return Believed(_completed(found, hints), origin, problem)
    if hints.block_bytes is None:
        raise UsageError(
            f"{device.name}: no superblock is left that says how large a data block is ({problem})",
            mend="say it: --block-size SIZE, as the pool was created with (64KiB unless told otherwise)",
        )
    require_block_bytes(hints.block_bytes)
    bare = Superblock(
        flags=0,
        uuid=hints.uuid,
        version=VERSION,
        time=0,
        transaction_id=hints.transaction_id,
        held_root=0,
        data_space_map=NO_SPACE_MAP,
        metadata_space_map=NO_SPACE_MAP,
        data_mapping_root=0,
        device_details_root=0,
        data_block_sectors=hints.block_bytes // SECTOR_BYTES,
    )
    return Believed(_completed(bare, hints), "the trees alone", problem)


def _others(device: BlockDevice, scan: Scan) -> Iterator[tuple[str, Superblock]]:
    """Block 0 as it stands, then its copies, the youngest first."""
    try:
        data = bytearray(device.pread(METADATA_BLOCK_BYTES, 0))
        seal(data, BlockKind.SUPERBLOCK, 0)
        if any(data[4:64]):
            yield "block 0 as it stands", Superblock.unpack(bytes(data), 0, device.name)
    except (FormatError, DeviceError):
        pass
    copies: list[Superblock] = []
    for block in scan.all_of(What.SUPERBLOCK).tolist():
        try:
            copies.append(read_superblock(device, block))
        except FormatError:
            continue
    for copy in sorted(copies, key=lambda each: (each.transaction_id, each.time), reverse=True):
        yield f"the copy in metadata block {copy.block}", replace(copy, block=0)


def _completed(found: Superblock, hints: Hints) -> Superblock:
    """What a copy doesn't hold, by what others know: the data's length, and the newest transaction id."""
    blocks = found.data_space_map.nr_blocks
    if not blocks and hints.data_bytes:
        blocks = hints.data_bytes // found.data_block_bytes
    data_map = replace(found.data_space_map, nr_blocks=min(blocks, DATA_BLOCK_LIMIT - 1))
    newest = max(found.transaction_id, hints.transaction_id)
    uuid = found.uuid if any(found.uuid) else hints.uuid
    return replace(found, data_space_map=data_map, transaction_id=newest, uuid=uuid, held_root=0)


@dataclass(frozen=True, slots=True)
class Pair:
    """The two upper trees of one state; 0 where one is missing."""

    top: int
    details: int


def usable(shapes: Shapes, pair: Pair) -> bool:
    """Whether a top-level tree stands where the superblock says (an empty one too)."""
    return shapes.is_tree(pair.top, What.MAPPINGS)


def best_pair(shapes: Shapes) -> Pair | None:
    """The best state that the trees themselves tell of; None where there is no top-level tree (R1)."""
    tops = [UpperTree.read(shapes, block, {}) for block in _roots(shapes, What.MAPPINGS)]
    details = [UpperTree.read(shapes, block, {}) for block in _roots(shapes, What.DETAILS)]
    best: tuple[tuple[bool, tuple[int, int], int, int], Pair] | None = None
    for top in tops:
        twins = [each for each in details if np.array_equal(each.ids, top.ids)] or details[:8]
        for twin in twins:
            score = _score(shapes, top, twin)
            if best is None or score > best[0]:
                best = score, Pair(top.block, twin.block)
    if best is None and tops:
        return Pair(tops[0].block, 0)
    return None if best is None else best[1]


def _roots(shapes: Shapes, what: What) -> list[int]:
    """Trees with leaves of `what` that no other such tree leads to; upper ones only. The highest blocks last."""
    family = (shapes.leaf_kind == what) & (shapes.height != UNKNOWN) & (shapes.entries > 0)
    family &= shapes.upper if what is What.MAPPINGS else shapes.sound
    is_child = np.zeros(len(family), dtype=bool)
    branches = np.flatnonzero(family & (shapes.height > 0)).astype(np.uint64)
    for nodes in shapes.read(branches, False):
        is_child[nodes.flat()[1].astype(np.int64)] = True
    found: list[int] = np.flatnonzero(family & ~is_child)[-CANDIDATES_MAX:].tolist()
    return found


@dataclass(frozen=True, slots=True)
class UpperTree:
    """An upper tree as far as it can be read: device ids, ascending, what stands for each, and ids lost."""

    block: int
    ids: Words
    values: Any
    lost: tuple[Range, ...]

    @staticmethod
    def read(shapes: Shapes, block: int, fills: Fills) -> UpperTree:
        """The tree at `block`, with what was put into its gaps."""
        flat = leaves_of(shapes, block, fills)
        found = [nodes.flat() for nodes in shapes.read(flat.leaves, True)]
        if not found:
            none = np.empty(0, dtype=np.uint64)
            return UpperTree(block, none, none, tuple(flat.lost))
        keys, values = (np.concatenate(part) for part in zip(*found, strict=True))
        order = np.argsort(keys, kind="stable")
        return UpperTree(block, keys[order], values[order], tuple(flat.lost))


def _score(shapes: Shapes, top: UpperTree, twin: UpperTree) -> tuple[bool, tuple[int, int], int, int]:
    """(each device is as its details say, age, devices that are, mappings)."""
    shared, mine, theirs = np.intersect1d(top.ids, twin.ids, return_indices=True)
    roots = top.values[mine].astype(np.int64)
    records = twin.values[theirs]
    said = records["mapped_blocks"]
    exact = (shapes.entries[roots].astype(np.uint64) == said) & (shapes.sound[roots] | (said == 0))
    age = (int(records["transaction_id"].max(initial=0)), int(records["snapshotted_time"].max(initial=0)))
    whole = bool(exact.all()) and len(shared) == len(top.ids) == len(twin.ids)
    return whole, age, int(exact.sum()), int(shapes.entries[roots].sum())
