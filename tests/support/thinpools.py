"""Pools for tests of the readers: a varied one from a seed, models to hold answers against, and hands that damage it.

The varied pool has what makes trees differ: overwritten, inserted and discarded blocks, leaves that were split and
joined, an untouched snapshot, an empty device, two devices without kin, three levels, counts of three, a held copy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from replicator.blockdev.file import FileDevice
from replicator.pdata.block import BlockKind, seal
from replicator.thin.mapping import pack_many
from replicator.thin.superblock import Superblock, read_superblock
from replicator.thin.view import PoolView
from replicator.units import METADATA_BLOCK_BYTES
from tests.support.thinimage import U64, Thin, ThinImage, Tree

BASE, SNAPSHOT, GRANDCHILD, TWIN, EMPTY, SMALL, STRANGER = 1, 2, 3, 4, 5, 70_000, 16_777_215
METADATA_BLOCKS = 1024
Run = tuple[int, int, str]
_DELTA_WORDS = {"different": "changed", "left_only": "removed", "right_only": "added"}


class Mapper:
    """Gives out data blocks while mappings change; never the same twice."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.next_block = 0

    def fresh(self, count: int, time: int) -> U64:
        """Mapping values of `count` new data blocks."""
        first, self.next_block = self.next_block, self.next_block + count
        return pack_many(np.arange(first, first + count, dtype=np.uint64), time)

    def base(self, count: int, span: int) -> tuple[U64, U64]:
        """`count` mappings scattered over `span` virtual blocks."""
        keys = np.sort(self.rng.choice(span, count, replace=False)).astype(np.uint64)
        return keys, self.fresh(count, 0)

    def change(
        self, keys: U64, values: U64, time: int, *, overwrite: float = 0.01, discard: float = 0.0, insert: int = 0
    ) -> tuple[U64, U64]:
        """The mappings after overwrites, discards of a stretch and inserted blocks."""
        keep = np.ones(len(keys), dtype=bool)
        begin = int(self.rng.integers(0, len(keys) + 1))
        keep[begin : begin + int(len(keys) * discard)] = False
        keys, values = keys[keep], values[keep].copy()
        hit = self.rng.random(len(keys)) < overwrite
        values[hit] = self.fresh(int(hit.sum()), time)
        begin = int(self.rng.integers(0, 1 + (int(keys[-1]) if len(keys) else 0)))
        more = np.setdiff1d(np.arange(begin, begin + insert, dtype=np.uint64), keys)
        keys, values = np.concatenate((keys, more)), np.concatenate((values, self.fresh(len(more), time)))
        order = np.argsort(keys, kind="stable")
        return keys[order], values[order]


def make_pool(path: Path, seed: int = 0, *, count: int = 24_000, fill: int = 86, held: bool = True) -> Superblock:
    """The varied pool; with the defaults three levels deep."""
    mapper = Mapper(np.random.default_rng(seed))
    keys, values = mapper.base(count, 3 * count + 1)
    snapshot = mapper.change(keys, values, 1, overwrite=0.02)
    grandchild = mapper.change(*snapshot, 2, overwrite=0.01, discard=0.1, insert=count // 10)
    stranger = mapper.base(count // 2, count)
    small = np.arange(0, 80, 2, dtype=np.uint64), mapper.fresh(40, 3)
    image = ThinImage(path, mapper.next_block + 1000, metadata_nr_blocks=METADATA_BLOCKS)
    trees: dict[int, Tree] = {BASE: image.mapping_tree(keys, values, fill=fill)}
    image.skip(3)
    trees[SNAPSHOT] = image.mapping_tree(*snapshot, like=trees[BASE])
    trees[GRANDCHILD] = image.mapping_tree(*grandchild, like=trees[SNAPSHOT])
    trees[TWIN] = trees[BASE]
    trees[EMPTY] = image.mapping_tree(keys[:0], values[:0])
    trees[SMALL] = image.mapping_tree(*small)
    trees[STRANGER] = image.mapping_tree(*stranger)
    times = {BASE: (0, 3), SNAPSHOT: (1, 2), GRANDCHILD: (2, 2), TWIN: (3, 3), SMALL: (3, 3)}
    thins = {dev: Thin(tree, min(dev, 4), *times.get(dev, (0, 0))) for dev, tree in trees.items()}
    earlier = {BASE: Thin(trees[BASE], 1, 0, 1), SNAPSHOT: Thin(trees[SNAPSHOT], 2, 1, 1)} if held else None
    return image.finish(thins, time=3, transaction_id=4, held=earlier)


def model(view: PoolView, dev_id: int) -> dict[int, int]:
    """Virtual block -> data block of one device, by the plainest reading."""
    pieces = list(view.mappings(view.device(dev_id).root))
    return {int(key): int(value) >> 24 for keys, values in pieces for key, value in zip(keys, values, strict=True)}


def model_diff(base: dict[int, int], target: dict[int, int]) -> list[Run]:
    """Maximal runs of what differs between two models."""
    runs: list[Run] = []
    for block in sorted(base.keys() | target.keys()):
        if base.get(block) == target.get(block):
            continue
        kind = "added" if block not in base else "removed" if block not in target else "changed"
        _extend(runs, (block, block + 1, kind))
    return runs


def _extend(runs: list[Run], run: Run) -> None:
    if runs and runs[-1][1] == run[0] and runs[-1][2] == run[2]:
        runs[-1] = (runs[-1][0], run[1], run[2])
    else:
        runs.append(run)


def parse_thin_delta(text: str) -> list[Run]:
    """thin_delta's output as maximal runs in our words."""
    runs: list[Run] = []
    for word, begin, length in re.findall(r'<(different|left_only|right_only) begin="(\d+)" length="(\d+)"', text):
        _extend(runs, (int(begin), int(begin) + int(length), _DELTA_WORDS[word]))
    return runs


def canonical_xml(text: str) -> list[object]:
    """A thin_dump document as values: attributes, and mappings as (virtual, data, length, time), <ref>s written out.

    The Rust tools leave `flags` out, and cut runs where a shared part begins; so runs are joined here.
    """
    root = ElementTree.fromstring(text)
    shared = {part.get("name"): part for part in root.findall("def")}
    devices = [
        (sorted(device.attrib.items()), list(_joined(_mappings(device, shared)))) for device in root.findall("device")
    ]
    return [sorted({"flags": "0", **root.attrib}.items()), *devices]


def _mappings(
    parent: ElementTree.Element, shared: dict[str | None, ElementTree.Element]
) -> Iterator[tuple[int, int, int, int]]:
    for part in parent:
        if part.tag == "ref":
            yield from _mappings(shared[part.get("name")], shared)
            continue
        single = part.tag == "single_mapping"
        names = ("origin_block", "data_block") if single else ("origin_begin", "data_begin")
        virtual, data = (int(part.attrib[name]) for name in names)
        yield virtual, data, 1 if single else int(part.attrib["length"]), int(part.attrib["time"])


def _joined(runs: Iterator[tuple[int, int, int, int]]) -> Iterator[tuple[int, int, int, int]]:
    held: tuple[int, int, int, int] | None = None
    for virtual, data, length, time in runs:
        if held and (held[0] + held[2], held[1] + held[2], held[3]) == (virtual, data, time):
            held = (held[0], held[1], held[2] + length, time)
            continue
        if held:
            yield held
        held = (virtual, data, length, time)
    if held:
        yield held


@dataclass(frozen=True, slots=True)
class Patient:
    """A metadata file whose blocks a test rewrites, checksums made right again unless told otherwise."""

    path: Path

    @property
    def superblock(self) -> Superblock:
        with FileDevice(self.path, read_only=True) as device:
            return read_superblock(device)

    def read(self, block: int) -> bytearray:
        """One block."""
        with self.path.open("rb") as file:
            file.seek(block * METADATA_BLOCK_BYTES)
            return bytearray(file.read(METADATA_BLOCK_BYTES))

    def edit(
        self, block: int, kind: BlockKind, change: Callable[[bytearray], object], number: int | None = None
    ) -> None:
        """Let `change` edit a block, and seal it (as standing at `number`)."""
        data = self.read(block)
        change(data)
        seal(data, kind, block if number is None else number)
        self.write(block, data)

    def write(self, block: int, data: bytearray) -> None:
        """Write a block as it is."""
        with self.path.open("r+b") as file:
            file.seek(block * METADATA_BLOCK_BYTES)
            file.write(data)

    def put(self, block: int, kind: BlockKind, offset: int, value: int, size: int) -> None:
        """One little-endian field."""
        self.edit(
            block, kind, lambda data: data.__setitem__(slice(offset, offset + size), value.to_bytes(size, "little"))
        )

    def put_superblock(self, offset: int, value: int, size: int) -> None:
        """One field of block 0."""
        self.put(0, BlockKind.SUPERBLOCK, offset, value, size)

    def put_node(self, block: int, offset: int, value: int, size: int) -> None:
        """One field of a node."""
        self.put(block, BlockKind.NODE, offset, value, size)

    def child(self, block: int, slot: int) -> int:
        """The child (or device root, or mapping value) in a slot of a node with values of eight bytes."""
        return int.from_bytes(self.read(block)[2048 + 8 * slot :][:8], "little")

    def key(self, block: int, slot: int) -> int:
        """A key of a node."""
        return int.from_bytes(self.read(block)[32 + 8 * slot :][:8], "little")

    def leaf_of(self, root: int, slot: int) -> int:
        """The leaf at the left edge below a slot of the root."""
        block = self.child(root, slot)
        while self.read(block)[4] == 1:
            block = self.child(block, 0)
        return block

    def root_of(self, dev_id: int) -> int:
        """The root of a device's tree."""
        with FileDevice(self.path, read_only=True) as device:
            return PoolView.live(device).device(dev_id).root
