"""Room runs out, of data or of metadata: the operation that finds none is refused, and nothing else suffers (P8)."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from replicator.blockdev.file import FileDevice
from replicator.blockdev.memory import MemoryDevice
from replicator.errors import NoSpaceError
from replicator.pdata.transaction import BrokenPoolError
from replicator.thin import space
from replicator.thin.change import Change
from replicator.thin.device import ThinDevice
from replicator.thin.engine import Engine
from replicator.thin.metadata import PoolMetadata
from replicator.units import METADATA_BLOCK_BYTES
from tests.support.enginerig import BLOCK, assert_sound, cut, delete, formatted, running, within, write

PAGE = 4096


@pytest.fixture
def disks() -> dict[str, MemoryDevice]:
    """64 data blocks, and metadata enough."""
    return {"metadata": formatted(2 << 20, 64), "data": MemoryDevice(64 * BLOCK)}


@pytest.fixture
def engine(disks: dict[str, MemoryDevice], tmp_path: Path) -> Iterator[Engine]:
    with running(disks["metadata"], disks["data"], tmp_path / "dirty") as engine:
        yield engine
    assert_sound(disks["metadata"])


def fill(engine: Engine, device: ThinDevice, begin: int = 0) -> dict[int, int]:
    """Write a page into each block until there is no room: block -> its byte."""
    written: dict[int, int] = {}
    with pytest.raises(NoSpaceError):
        for block in range(begin, device.size_bytes // BLOCK):
            value = 1 + block % 255
            within(20, partial(write, engine, device, bytes([value]) * PAGE, block * BLOCK))
            written[block] = value
    return written


def assert_holds(device: ThinDevice, written: dict[int, int]) -> None:
    for block, value in written.items():
        assert device.pread(BLOCK, block * BLOCK) == bytes([value]) * PAGE + bytes(BLOCK - PAGE), block


def test_data_space_out_refuses_writes_and_a_trim_mends_it(engine: Engine) -> None:
    device = engine.open_device(1, 80 * BLOCK, read_only=False)
    written = fill(engine, device)
    assert len(written) == 64
    assert_holds(device, written)
    write(engine, device, b"\xee" * PAGE, 0)  # a block of its own needs no room
    written[0] = 0xEE
    with engine.gate.writing():
        device.discard(5 * BLOCK, 2 * BLOCK)
    del written[5], written[6]
    write(engine, device, b"\7" * PAGE, 70 * BLOCK)  # after the commit that frees them (P6)
    engine.commit()
    assert_holds(device, {**written, 70: 7})


def test_data_space_out_in_a_copy_on_write_and_a_delete_mends_it(engine: Engine) -> None:
    device = engine.open_device(1, 60 * BLOCK, read_only=False)
    for block in range(60):
        write(engine, device, bytes([block + 1]) * PAGE, block * BLOCK)
    cut(engine, 1, 2)
    copied = fill(engine, device, 0)
    assert len(copied) == 4
    snapshot = engine.open_device(2, 60 * BLOCK)
    assert_holds(snapshot, {block: block + 1 for block in range(60)})
    engine.devices.pop(2)
    delete(engine, 2)
    write(engine, device, b"\x99" * PAGE, 40 * BLOCK)
    assert device.pread(1, 40 * BLOCK) == b"\x99"


def test_data_space_out_and_growing_mends_it(engine: Engine, disks: dict[str, MemoryDevice]) -> None:
    device = engine.open_device(1, 80 * BLOCK, read_only=False)
    written = fill(engine, device)
    disks["data"].grow(80 * BLOCK)
    engine.change(Change(lambda metadata: metadata.grow_data(80), deletes=True))
    for block in range(64, 80):
        write(engine, device, bytes([block]) * PAGE, block * BLOCK)
    engine.commit()
    assert_holds(device, {**written, **{block: block for block in range(64, 80)}})


def test_what_a_busy_reader_keeps_comes_back_when_it_is_done(engine: Engine) -> None:
    device = engine.open_device(1, 80 * BLOCK, read_only=False)
    fill(engine, device)
    slot = within(5, engine.gate.register)
    slot.generation = engine.gate.generation
    with engine.gate.writing():
        device.discard(0, 8 * BLOCK)
    with pytest.raises(NoSpaceError):
        within(20, lambda: write(engine, device, b"\7" * PAGE, 70 * BLOCK))
    slot.generation = 0
    within(20, lambda: write(engine, device, b"\7" * PAGE, 70 * BLOCK))


class FullDisk(MemoryDevice):
    """A data disk whose file system has room for `room` more blocks."""

    room = 0

    def preallocate(self, offset_bytes: int, length_bytes: int) -> None:
        """Room for a range, or NoSpaceError."""
        if length_bytes > self.room * BLOCK:
            raise NoSpaceError("the file system is full")
        self.room -= length_bytes // BLOCK


def test_a_full_file_system_refuses_writes_and_leaves_the_pool_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "_AHEAD_BYTES", 2 * BLOCK)
    metadata, data = formatted(2 << 20, 64), FullDisk(64 * BLOCK)
    with running(metadata, data, tmp_path / "dirty") as engine:
        device = engine.open_device(1, 80 * BLOCK, read_only=False)
        with pytest.raises(NoSpaceError, match="file system"):
            within(20, lambda: write(engine, device, b"\1" * PAGE, 0))
        engine.commit()
        assert device.pread(PAGE, 0) == bytes(PAGE) and engine.failed is None
        data.room = 4
        assert len(fill(engine, device)) == 4
    assert_sound(metadata)


@pytest.mark.parametrize("metadata_blocks", [64, 96, 128, 200])
def test_metadata_space_out(tmp_path: Path, metadata_blocks: int) -> None:
    """Scattered writes, cuts and deletes in a tiny pool: each is done or refused, deletes get the pool out again."""
    chance, span = random.Random(metadata_blocks), 1 << 22
    metadata, data = formatted(metadata_blocks * METADATA_BLOCK_BYTES, 4000), MemoryDevice(4000 * BLOCK)
    with running(metadata, data, tmp_path / "dirty") as engine:
        device = engine.open_device(1, span * BLOCK, read_only=False)
        written: dict[int, bytes] = {}
        refused, snapshots = 0, list[int]()
        for number in range(600):
            block, page = chance.randrange(span), chance.randbytes(16)
            try:
                write(engine, device, page, block * BLOCK)
                written[block] = page
                if number % 40 == 39:
                    cut(engine, 1, number)
                    snapshots.append(number)
            except NoSpaceError:
                refused += 1
                if refused % 10 == 0 and snapshots:
                    delete(engine, snapshots.pop(0))
        engine.commit()
        assert engine.failed is None
        assert all(device.pread(16, block * BLOCK) == page for block, page in written.items())
        for snapshot in snapshots:
            delete(engine, snapshot)
        with engine.gate.writing():
            device.discard(0, span * BLOCK)
        engine.commit()
        assert engine.metadata.device(1).mapped_blocks == 0
    assert_sound(metadata)


def test_growing_the_metadata_lets_writes_go_on(tmp_path: Path) -> None:
    metadata, data = formatted(64 * METADATA_BLOCK_BYTES, 4000), MemoryDevice(4000 * BLOCK)
    with running(metadata, data, tmp_path / "dirty") as engine:
        device = engine.open_device(1, (1 << 22) * BLOCK, read_only=False)
        with pytest.raises(NoSpaceError, match="metadata"):
            for number in range(4000):
                write(engine, device, b"x" * 512, number * 977 * BLOCK)
        metadata.grow(2048 * METADATA_BLOCK_BYTES)
        engine.change(Change(lambda pool: pool.grow_metadata(2048), deletes=True))
        for number in range(4000):
            write(engine, device, b"y" * 512, number * 977 * BLOCK)
        engine.commit()
        assert device.pread(512, 977 * BLOCK) == b"y" * 512
    assert_sound(metadata)


def test_a_change_without_room_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    metadata, data = formatted(160 * METADATA_BLOCK_BYTES, 4000), MemoryDevice(4000 * BLOCK)
    with running(metadata, data, tmp_path / "dirty") as engine:
        applied: list[int] = []
        with pytest.raises(NoSpaceError):
            engine.change(Change(lambda _: applied.append(1), weight=100_000))
        assert not applied and engine.failed is None
        with pytest.raises(NoSpaceError):
            for dev_id in range(2, 4000):
                engine.change(Change(partial(PoolMetadata.create_thin, dev_id=dev_id)))
        delete(engine, 2)
        assert engine.failed is None
    assert_sound(metadata)


@pytest.mark.parametrize("metadata_blocks", [150, 230])
def test_a_commit_finds_room_for_what_was_answered_however_scattered(tmp_path: Path, metadata_blocks: int) -> None:
    """Every leaf is shared with a snapshot, so that a write of 4 KiB may cost a leaf and 252 counts of its own (P8)."""
    count, step = 15_000, 3
    metadata = formatted(metadata_blocks * METADATA_BLOCK_BYTES, count + 500)
    pool = PoolMetadata.open(metadata)
    data_blocks = pool.transaction.data.counts.take(count)
    pool.map(1, np.arange(count, dtype=np.uint64) * np.uint64(step), data_blocks)
    pool.create_snap(2, 1)
    pool.commit(lambda: None)
    chance, refused, written = random.Random(3), 0, 0
    with (
        FileDevice.create(tmp_path / "data", (count + 500) * BLOCK) as data,
        running(metadata, data, tmp_path / "dirty") as engine,
    ):
        device = engine.open_device(1, count * step * BLOCK, read_only=False)
        for _ in range(300):
            block = chance.randrange(count * step)
            try:
                within(20, partial(write, engine, device, b"x" * 512, block * BLOCK))
                written += 1
            except NoSpaceError:
                refused += 1
            except BrokenPoolError as error:
                raise AssertionError(f"after {written} writes a commit found no room") from error
        engine.commit()
        print(f"\n{written} written, {refused} refused")
    assert_sound(metadata)
    assert refused and (written or metadata_blocks < 200)


class HeldDisk(MemoryDevice):
    """A data disk whose flushes wait, while `held` says so, until they may go on."""

    held = False

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.reached, self.goes_on = threading.Event(), threading.Event()

    def flush(self) -> None:
        """Durable, once it may be."""
        if self.held:
            self.reached.set()
            assert self.goes_on.wait(60)
        super().flush()


@pytest.mark.parametrize("metadata_blocks", [250, 290, 600])
def test_a_device_opened_during_a_commit_is_answered_what_the_next_commits_have_room_for(
    tmp_path: Path, metadata_blocks: int
) -> None:
    """A1 of thin/admission: another commit is under way when a device is opened, all of whose leaves are shared."""
    count, step = 15_000, 3
    metadata = formatted(metadata_blocks * METADATA_BLOCK_BYTES, count + 2000, (1, 3))
    pool = PoolMetadata.open(metadata)
    keys = np.arange(count, dtype=np.uint64) * np.uint64(step)
    pool.map(3, keys, pool.transaction.data.counts.take(count))
    pool.create_snap(2, 3)
    pool.commit(lambda: None)
    pool.map(3, keys[::100], pool.transaction.data.counts.take(count // 100))
    pool.create_snap(4, 3)
    pool.commit(lambda: None)
    chance, data, told = random.Random(3), HeldDisk((count + 2000) * BLOCK), threading.Event()
    with running(metadata, data, tmp_path / "dirty", capacity=4096) as engine:
        write(engine, engine.open_device(1, BLOCK, read_only=False), b"x" * 512, 0)
        data.held = True
        engine.flush(lambda _: told.set())
        assert data.reached.wait(60)
        device, written = within(20, partial(engine.open_device, 3, count * step * BLOCK, read_only=False)), 0
        while engine.has_room(1) and written < 400:
            write(engine, device, b"x" * 512, chance.randrange(count * step) * BLOCK)
            written += 1
        data.held = False
        data.goes_on.set()
        assert told.wait(60)
        try:
            within(60, engine.commit)
        except BrokenPoolError as error:
            raise AssertionError(
                f"after {written} writes that were answered a commit found no room: {error}"
            ) from error
        print(f"\n{written} written during a commit")
    assert_sound(metadata)
