"""Bytes can't hurt the readers of metadata: flips, checksums made right again or not, give answers or our errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from replicator.blockdev.memory import MemoryDevice
from replicator.errors import ReplicatorError
from replicator.pdata.block import BlockKind, checksum, seal
from replicator.thin.check import check
from replicator.thin.diff import diff
from replicator.thin.dump import dump
from replicator.thin.superblock import read_superblock
from replicator.thin.view import DeviceEntry, PoolView
from replicator.units import METADATA_BLOCK_BYTES
from tests.support.golden import KernelPool
from tests.support.thinpools import make_pool

ROUNDS = 120


def kind_of(block: bytes) -> BlockKind | None:
    """What a sound block is, told by its checksum."""
    stored = int.from_bytes(block[:4], "little")
    return next((kind for kind in BlockKind if checksum(block, kind) == stored), None)


def damaged(image: bytes, rng: np.random.Generator) -> bytes:
    """A copy with a few bytes changed in blocks that are in use, mostly with the checksum made right again."""
    result = bytearray(image)
    used = [n for n in range(len(image) // METADATA_BLOCK_BYTES) if any(_block(image, n)[:16])]
    for _ in range(int(rng.integers(1, 5))):
        number = int(rng.choice(used))
        block = bytearray(_block(image, number))
        kind = kind_of(bytes(block))
        edge = int(rng.choice([40, 400, METADATA_BLOCK_BYTES]))
        for _ in range(int(rng.integers(1, 4))):
            at, width = int(rng.integers(4, edge)), int(rng.choice([1, 4, 8]))
            special = int(rng.choice([0, 1, 3, 255, 1 << 24, (1 << 32) - 1, int(rng.integers(1 << 62))]))
            block[at : at + width] = (special % (1 << 8 * width)).to_bytes(width, "little")
            del block[METADATA_BLOCK_BYTES:]
        if kind is not None and rng.random() < 0.9:
            seal(block, kind, number)
        result[number * METADATA_BLOCK_BYTES : (number + 1) * METADATA_BLOCK_BYTES] = block
    return bytes(result)


def _block(image: bytes, number: int) -> bytes:
    return image[number * METADATA_BLOCK_BYTES : (number + 1) * METADATA_BLOCK_BYTES]


def read_all(device: MemoryDevice) -> None:
    """Everything that a reader does with a pool; each step may fail by itself."""
    for open_view in (PoolView.held, PoolView.live):
        try:
            view = open_view(device)
            devices = view.devices()
        except ReplicatorError:
            continue
        for entry, other in zip(devices, devices[1:] + devices[:1], strict=True):
            for action in (lookup, highest, compare):
                _by_itself(action, view, entry, other)
        _by_itself(print_all, view)


def lookup(view: PoolView, entry: DeviceEntry, _: DeviceEntry) -> None:
    view.lookup(entry.root, np.arange(0, 1000, 3, dtype=np.uint64))


def highest(view: PoolView, entry: DeviceEntry, _: DeviceEntry) -> None:
    view.highest_mapped(entry.root)


def compare(view: PoolView, entry: DeviceEntry, other: DeviceEntry) -> None:
    for part in diff(view.store, entry.root, other.root):
        assert len(part)


def print_all(view: PoolView) -> None:
    for text in dump(view):
        assert text.endswith("\n") or not text


def _by_itself(action: Callable[..., None], *arguments: object) -> None:
    try:
        action(*arguments)
    except ReplicatorError as error:
        assert error.message


@pytest.fixture
def image(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    if request.param == "kernel":
        pool: KernelPool = request.getfixturevalue("kernel_pool_a")
        return pool.metadata.read_bytes()
    make_pool(tmp_path / "metadata", 7, count=2000)
    return (tmp_path / "metadata").read_bytes()


@pytest.mark.parametrize("image", ["kernel", "made"], indirect=True)
@pytest.mark.timeout(120)
def test_flipped_bytes_give_findings_or_our_errors(image: bytes) -> None:
    rng = np.random.default_rng(20261)
    found = 0
    for _ in range(ROUNDS):
        device = MemoryDevice(content=damaged(image, rng))
        report = check(device)
        found += not report.clean
        assert len(report.findings) <= 400
        read_all(device)
    assert found > ROUNDS // 10  # the rest fell on stale blocks and unused slots


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 8192, 65536])
def test_cut_short(tmp_path: Path, length: int) -> None:
    make_pool(tmp_path / "metadata", 7, count=2000)
    device = MemoryDevice(content=(tmp_path / "metadata").read_bytes()[:length])
    assert not check(device).clean
    read_all(device)
    with pytest.raises(ReplicatorError):
        read_superblock(device)
