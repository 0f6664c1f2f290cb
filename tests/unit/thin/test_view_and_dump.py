"""Views of a live pool and of its metadata snapshot: devices, lookups, runs, and the XML of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from replicator.blockdev.file import FileDevice
from replicator.errors import FormatError, NotFoundError
from replicator.thin.dump import dump
from replicator.thin.view import PoolView
from tests.support.golden import KernelPool
from tests.support.thinpools import BASE, EMPTY, GRANDCHILD, SNAPSHOT, STRANGER, Patient, make_pool, model

BLOCK = 65536


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[PoolView]:
    make_pool(tmp_path / "metadata")
    with FileDevice(tmp_path / "metadata", read_only=True) as device:
        yield PoolView.live(device)


@pytest.mark.parametrize("held", [False, True])
def test_every_device_of_the_kernels_pool_has_the_content_that_the_kernel_read(
    kernel_pool_a: KernelPool, held: bool
) -> None:
    facts = kernel_pool_a.facts
    seen = (facts["held_root_on_final_data"] if held else facts["checkpoints"]["final"])["devices"]
    data = kernel_pool_a.data.read_bytes()
    with FileDevice(kernel_pool_a.metadata, read_only=True) as device:
        view = PoolView.held(device) if held else PoolView.live(device)
        devices = view.devices()
        assert [str(entry.dev_id) for entry in devices] == sorted(seen, key=int)
        for entry in devices:
            content = bytearray(seen[str(entry.dev_id)]["sectors"] * 512)
            for runs in view.mapped_runs(entry.root):
                for begin, at, length in zip(runs.virtual_begin, runs.data_begin, runs.length_blocks, strict=True):
                    first, last = int(begin) * BLOCK, min((int(begin) + int(length)) * BLOCK, len(content))
                    content[first:last] = data[int(at) * BLOCK : int(at) * BLOCK + max(0, last - first)]
            assert hashlib.sha256(content).hexdigest() == seen[str(entry.dev_id)]["sha256"], entry


@pytest.mark.parametrize(("held", "name"), [(False, "full.xml"), (True, "held.xml")])
def test_the_dump_is_thin_dumps_letter_by_letter(kernel_pool_a: KernelPool, held: bool, name: str) -> None:
    with FileDevice(kernel_pool_a.metadata, read_only=True) as device:
        view = PoolView.held(device) if held else PoolView.live(device)
        assert "".join(dump(view)) == kernel_pool_a.text(name)


def test_devices_and_details(pool: PoolView) -> None:
    devices = {entry.dev_id: entry for entry in pool.devices()}
    assert len(devices) == 7 and max(devices) == STRANGER
    assert devices[EMPTY].details.mapped_blocks == 0
    assert pool.device(SNAPSHOT) == devices[SNAPSHOT]
    details = devices[SNAPSHOT].details
    assert (details.transaction_id, details.creation_time, details.snapshotted_time) == (2, 1, 2)
    with pytest.raises(NotFoundError, match="no thin device 99; it has: 1, 2, 3"):
        pool.device(99)


def test_lookup_range_and_highest_agree_with_the_whole(pool: PoolView) -> None:
    for dev_id in (BASE, GRANDCHILD, EMPTY):
        root, whole = pool.device(dev_id).root, model(pool, dev_id)
        asked = np.arange(0, 9000, 7, dtype=np.uint64)
        mapped, values = pool.lookup(root, asked)
        assert {int(k): int(v) >> 24 for k, v in zip(asked[mapped], values[mapped], strict=True)} == {
            k: v for k, v in whole.items() if k < 9000 and k % 7 == 0
        }
        part = [int(key) for keys, _ in pool.mappings(root, 1000, 2000) for key in keys]
        assert part == [key for key in sorted(whole) if 1000 <= key < 2000]
        assert pool.highest_mapped(root) == max(whole, default=None)


def test_a_pool_without_metadata_snapshot_says_so(tmp_path: Path) -> None:
    make_pool(tmp_path / "metadata", held=False)
    with FileDevice(tmp_path / "metadata", read_only=True) as device, pytest.raises(NotFoundError, match="no metadata"):
        PoolView.held(device)


def test_mappings_beyond_the_data_device_are_refused(tmp_path: Path) -> None:
    make_pool(tmp_path / "metadata")
    Patient(tmp_path / "metadata").put_superblock(64, 100, 8)
    with FileDevice(tmp_path / "metadata", read_only=True) as device:
        for view in (PoolView.live(device), PoolView.held(device)):
            with pytest.raises(FormatError, match="data blocks below 100"):
                list(view.mapped_runs(view.device(BASE).root))
            with pytest.raises(FormatError, match="data blocks below 100"):
                list(dump(view))
