"""Opening a pool for writing: a dead owner's answers are replayed, once, wherever that dies; others are refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from replicator.blockdev.faulty import FaultyDevice
from replicator.blockdev.memory import MemoryDevice
from replicator.errors import ConflictError, DeviceError, FormatError
from replicator.thin.opening import open_engine
from replicator.thin.superblock import NEEDS_CHECK, read_superblock
from tests.support.enginerig import BLOCK, assert_sound, formatted, running, write

SIZE = 8 * BLOCK
DATA_BLOCKS = 100


def left_behind(tmp_path: Path) -> tuple[bytes, bytes, Path]:
    """Metadata, data and dirty file of an owner that died with three records in it."""
    metadata, data = formatted(2 << 20, DATA_BLOCKS), MemoryDevice(DATA_BLOCKS * BLOCK)
    with running(metadata, data, tmp_path / "dirty") as engine:
        device = engine.open_device(1, SIZE, read_only=False)
        write(engine, device, b"a" * BLOCK, 0)
        engine.commit()
        for block in range(1, 4):
            write(engine, device, bytes([block]) * 9, block * BLOCK)
        shutil.copy(tmp_path / "dirty", tmp_path / "left")
        return metadata.content(), data.content(), tmp_path / "left"


def assert_whole(metadata: MemoryDevice, data: MemoryDevice, dirty: Path, replayed: int) -> None:
    engine, found = open_engine(metadata, data, dirty)
    device = engine.open_device(1, SIZE)
    assert found == replayed and [device.pread(3, block * BLOCK) for block in range(5)] == [
        b"aaa", b"\1" * 3, b"\2" * 3, b"\3" * 3, bytes(3)
    ]  # fmt: skip
    engine.close()
    assert_sound(metadata)


def test_what_was_answered_is_replayed_once(tmp_path: Path) -> None:
    metadata, data, dirty = left_behind(tmp_path)
    disks = MemoryDevice(content=metadata), MemoryDevice(content=data)
    assert_whole(*disks, dirty, 3)
    assert_whole(*disks, dirty, 0)


def test_an_opening_that_dies_is_begun_again(tmp_path: Path) -> None:
    """At each write and flush of the replay: before its block 0 is on disk all is replayed again, after it nothing."""
    metadata, data, dirty = left_behind(tmp_path)
    replays = []
    for number in range(1, 100):
        disk, copy = MemoryDevice(content=metadata), tmp_path / f"dirty-{number}"
        shutil.copy(dirty, copy)
        faulty = FaultyDevice(disk)
        calls = 0

        def fail(*_: object, n: int = number) -> None:
            nonlocal calls
            calls += 1
            if calls == n:
                raise DeviceError("metadata", 0, 5, "gone")

        for name in ("pwrite", "pwritev", "flush"):
            _before(faulty, name, fail)
        try:
            engine, _ = open_engine(faulty, MemoryDevice(content=data), copy)
        except DeviceError:
            block0 = disk.pread(4096, 0)
            replays.append(3 if block0 == metadata[:4096] else 0)
            assert_whole(disk, MemoryDevice(content=data), copy, replays[-1])
            continue
        engine.close()
        break
    assert replays == sorted(replays, reverse=True) and {0, 3} == set(replays)


def _before(device: FaultyDevice, name: str, first: object) -> None:
    inner = getattr(device, name)

    def call(*given: object) -> object:
        first()  # type: ignore[operator] # the counter above
        return inner(*given)

    setattr(device, name, call)


def test_what_isnt_a_pool_to_write_to_is_refused(tmp_path: Path) -> None:
    metadata = formatted(2 << 20, DATA_BLOCKS)
    with pytest.raises(FormatError, match="data device"):
        open_engine(metadata, MemoryDevice(DATA_BLOCKS * BLOCK - 1), tmp_path / "dirty")
    with pytest.raises(FormatError):
        open_engine(MemoryDevice(2 << 20), MemoryDevice(DATA_BLOCKS * BLOCK), tmp_path / "dirty")
    assert not (tmp_path / "dirty").exists()
    metadata.pwrite(replace(read_superblock(metadata), flags=NEEDS_CHECK).pack(), 0)
    with pytest.raises(ConflictError, match="NEEDS_CHECK"):
        open_engine(metadata, MemoryDevice(DATA_BLOCKS * BLOCK), tmp_path / "dirty")
