"""Damage to be repaired, what a pool maps, and what other people's repairs save of it.

Mappings are compared, not counted: what a repair "saves" counts only where it is what the pool mapped before.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from replicator.blockdev.file import FileDevice
from replicator.errors import ReplicatorError
from replicator.pdata.block import BlockKind
from replicator.thin.repair import Salvage, examine, write
from replicator.thin.repair_roots import Hints
from replicator.thin.view import PoolView
from tests.support.damage import ROWS, Hand, a_branch, a_leaf
from tests.support.judges import Engine, thin_tool
from tests.support.thinpools import BASE, METADATA_BLOCKS, STRANGER, Patient

Mappings = dict[int, dict[int, int]]
BLOCK = 4096


def ruin(*blocks: Callable[[Patient], int]) -> Hand:
    """Overwrite blocks with what no checksum fits."""

    def hand(pool: Patient) -> None:
        for block in [find(pool) for find in blocks]:
            pool.write(block, bytearray(b"\x55" * BLOCK))

    return hand


def _flipped_superblock(pool: Patient) -> None:
    data = pool.read(0)
    data[48] ^= 4
    pool.write(0, data)


def _hole(pool: Patient) -> None:
    """128 KiB of zeros, as a lost stripe leaves them."""
    first = a_leaf(pool)
    for block in range(first, first + 32):
        pool.write(block, bytearray(BLOCK))


def _cut_short(pool: Patient) -> None:
    """Behind the upper trees, so that both space maps are gone."""
    last = max(pool.superblock.data_mapping_root, pool.superblock.device_details_root)
    with pool.path.open("r+b") as file:
        file.truncate((last + 1) * BLOCK)


def _wrong_child(pool: Patient) -> None:
    """A slot of a branch names the root of another device."""
    pool.put_node(a_branch(pool), 2048 + 8 * 5, pool.root_of(STRANGER), 8)


def _metadata_bitmap(pool: Patient) -> int:
    return int.from_bytes(pool.read(pool.superblock.metadata_space_map.bitmap_root)[16:24], "little")


def _of_rows(*names: str) -> dict[str, Hand]:
    rows = {row.name: row.hand for row in ROWS}
    return {name: rows[name] for name in names}


KINDS: dict[str, Hand] = {
    "leaf destroyed": ruin(a_leaf),
    "branch destroyed": ruin(a_branch),
    "two branches destroyed": ruin(a_branch, lambda p: p.child(p.root_of(STRANGER), 0)),
    "root destroyed that two devices share": ruin(lambda p: p.root_of(BASE)),
    "root of a device without kin destroyed": ruin(lambda p: p.root_of(STRANGER)),
    "top-level root destroyed": ruin(lambda p: p.superblock.data_mapping_root),
    "details root destroyed": ruin(lambda p: p.superblock.device_details_root),
    "superblock destroyed": ruin(lambda _: 0),
    "superblock zeroed": lambda p: p.write(0, bytearray(BLOCK)),
    "superblock and its copy destroyed": ruin(lambda p: p.superblock.held_root, lambda _: 0),
    "one bit of the superblock flipped": _flipped_superblock,
    "held copy destroyed": ruin(lambda p: p.superblock.held_root),
    "metadata index destroyed": ruin(lambda p: p.superblock.metadata_space_map.bitmap_root),
    "metadata bitmap destroyed": ruin(_metadata_bitmap),
    "metadata bitmap and a branch destroyed": ruin(_metadata_bitmap, a_branch),
    "data index destroyed": ruin(lambda p: p.superblock.data_space_map.bitmap_root),
    "overflow trees destroyed": ruin(
        lambda p: p.superblock.data_space_map.ref_count_root, lambda p: p.superblock.metadata_space_map.ref_count_root
    ),
    "128 KiB of zeros": _hole,
    "cut short": _cut_short,
    "a branch names another device's root": _wrong_child,
    "a bitmap's checksum on a leaf": lambda p: p.edit(a_leaf(p), BlockKind.BITMAP, lambda _: None),
    **_of_rows(
        "node: value size",
        "node: max_entries not in threes",
        "node: max_entries too big",
        "node: too many entries",
        "node: keys descend",
        "leaf flags 3",
        "leaf where a branch belongs",
        "a node that is its own child",
        "child beyond the device",
        "child below its parent's key",
        "child below the root's first key",
        "leaf too empty",
        "branch too empty",
        "data block out of range",
        "mapped_blocks",
        "device without details, details without device",
        "one data block twice",
        "held root isn't a superblock",
        "pool's time reset",
        "data map larger than memory",
        "magic",
        "NEEDS_CHECK",
    ),
}


@dataclass(frozen=True, slots=True)
class Repaired:
    """Our repair of one image: what was said, and what the new metadata maps."""

    salvage: Salvage
    mappings: Mappings


def mappings_of(path: Path) -> Mappings:
    """Virtual block -> data block of each device that maps something."""
    with FileDevice(path, read_only=True) as device:
        view = PoolView.live(device)
        found: Mappings = {}
        for entry in view.devices():
            pieces = list(view.mappings(entry.root))
            found[entry.dev_id] = {
                key: value >> 24
                for keys, values in pieces
                for key, value in zip(keys.tolist(), values.tolist(), strict=True)
            }
    return {dev_id: mapped for dev_id, mapped in found.items() if mapped}


def repair(source: Path, target: Path, hints: Hints | None = None) -> Repaired:
    """Our repair of `source` into the new file `target`."""
    with FileDevice(source, read_only=True) as device:
        salvage = examine(device, hints or Hints(block_bytes=64 << 10))
        with FileDevice.create(target, METADATA_BLOCKS * BLOCK) as new:
            write(salvage, new)
    return Repaired(salvage, mappings_of(target))


def others_repair(engine: Engine, source: Path, target: Path) -> Mappings:
    """What thin_repair saves; nothing where it gives up, or leaves what nobody can read."""
    with target.open("wb") as file:
        file.truncate(METADATA_BLOCKS * BLOCK)
    argv = thin_tool(engine, "thin_repair").argv("-i", source, "-o", target)
    done = subprocess.run(argv, capture_output=True, check=False, timeout=60)
    try:
        return mappings_of(target) if done.returncode == 0 else {}
    except ReplicatorError:
        return {}
    finally:
        target.unlink()


def right(saved: Mappings, truth: Mappings) -> Mappings:
    """Those of the saved mappings that are what the pool mapped."""
    return {
        dev_id: {virtual: data for virtual, data in mapped.items() if truth.get(dev_id, {}).get(virtual) == data}
        for dev_id, mapped in saved.items()
    }
