"""The engine at its bounds: a page table of one stretch, device ids that are given again, the end of the clock."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from replicator.blockdev.memory import MemoryDevice
from replicator.thin.change import Change
from replicator.thin.closing import close_device
from replicator.thin.device import ThinDevice
from replicator.thin.engine import Engine, EngineSettings
from replicator.thin.metadata import TIME_CAP, Device, PoolMetadata
from replicator.thin.opening import open_engine
from replicator.thin.table import STRETCH_BLOCKS
from tests.support.enginerig import BLOCK, UUID, assert_sound, cut, delete, formatted, running, write

STRETCHES = 5
SIZE = STRETCHES * STRETCH_BLOCKS * BLOCK - 5000
DATA_BLOCKS = 600
SPOTS = 40  # where it is written: neighbours, and edges of stretches


class Twin:
    """One of several engines that do the same work; `stretches` of each page table are loaded at most."""

    def __init__(self, folder: Path, stretches: int) -> None:
        folder.mkdir()
        self.metadata, data = formatted(8 << 20, DATA_BLOCKS), MemoryDevice(DATA_BLOCKS * BLOCK)
        settings = EngineSettings(table_stretches=stretches)
        self.engine, _ = open_engine(self.metadata, data, folder / "dirty", settings, dirty_capacity=64)
        self.stretches = stretches
        self.loads = 0
        whole = self.engine.paging.load

        def counted(device: ThinDevice, index: int) -> memoryview:
            self.loads += 1
            return whole(device, index)

        self.engine.paging.load = counted  # type: ignore[method-assign] # only counts
        self.device = self.open(1, read_only=False)

    def open(self, dev_id: int, *, read_only: bool = True) -> ThinDevice:
        return self.engine.open_device(dev_id, SIZE, read_only=read_only)

    def within_bounds(self) -> bool:
        return all(
            sum(each is not None for each in device.table.stretches) <= self.stretches
            for device in self.engine.devices.values()
        )


@pytest.mark.parametrize("seed", range(4))
def test_one_stretch_tells_what_all_tell(tmp_path: Path, seed: int) -> None:
    """S0-36: the same work on both, with cuts, trims, zeroes, commits; each read is compared, and with a model."""
    twins = [Twin(tmp_path / "one", 1), Twin(tmp_path / "all", STRETCHES)]
    chance = random.Random(seed)
    spots = [chance.randrange(STRETCHES) * STRETCH_BLOCKS + chance.choice((-1, 0, 1, 7, 2000)) for _ in range(SPOTS)]
    spots = sorted({min(max(spot, 0), STRETCHES * STRETCH_BLOCKS - 2) for spot in spots})
    model: dict[int, bytes] = {}
    kept: dict[int, dict[int, bytes]] = {}
    for number in range(250):
        spot = chance.choice(spots)
        kind = chance.choices("wwdzcxf", (40, 20, 10, 5, 8, 3, 8))[0]
        if kind == "w":
            data, inside = chance.randbytes(chance.choice((512, 4096, BLOCK))), 0
            inside = chance.randrange(BLOCK - len(data) + 1)
            if spot * BLOCK + inside + len(data) <= SIZE:
                old = bytearray(model.get(spot, bytes(BLOCK)))
                old[inside : inside + len(data)] = data
                model[spot] = bytes(old)
                for twin in twins:
                    write(twin.engine, twin.device, data, spot * BLOCK + inside)
        elif kind in "dz":
            model.pop(spot, None)
            for twin in twins:
                with twin.engine.gate.writing():
                    twin.device.write_zeroes(spot * BLOCK, min(BLOCK, SIZE - spot * BLOCK), may_unmap=kind == "d")
        elif kind == "c":
            kept[2 + number] = dict(model)
            for twin in twins:
                cut(twin.engine, 1, 2 + number)
        elif kind == "x" and kept:
            gone = chance.choice(list(kept))
            del kept[gone]
            for twin in twins:
                delete(twin.engine, gone)
        else:
            for twin in twins:
                twin.engine.commit()
        _compare(twins, 1, model, chance.sample(spots, 4))
        if kept and number % 5 == 0:
            dev_id = chance.choice(list(kept))
            _compare(twins, dev_id, kept[dev_id], chance.sample(spots, 3))
        assert all(twin.within_bounds() for twin in twins)
    for twin in twins:
        twin.engine.close()
        assert_sound(twin.metadata)
    print(f"{twins[0].loads} stretches were loaded with room for one, {twins[1].loads} with room for all")
    assert twins[0].loads > 4 * twins[1].loads / 2


def _compare(twins: list[Twin], dev_id: int, model: dict[int, bytes], spots: list[int]) -> None:
    for spot in spots:
        length = min(BLOCK, SIZE - spot * BLOCK)
        expected = model.get(spot, bytes(BLOCK))[:length]
        for twin in twins:
            device = twin.device if dev_id == 1 else twin.open(dev_id)
            assert device.pread(length, spot * BLOCK) == expected, (dev_id, spot, twin.stretches)


def test_dev_ids_are_given_again(tmp_path: Path) -> None:
    """One id through many lives, the last of the 24 bits too: nothing of a life before shows in the next."""
    metadata = formatted(4 << 20, DATA_BLOCKS)
    size = 20 * BLOCK
    with running(metadata, MemoryDevice(DATA_BLOCKS * BLOCK), tmp_path / "dirty") as engine:
        for dev_id in (2, (1 << 24) - 1):
            for life in range(12):
                engine.change(Change(_creating(dev_id)))
                device = engine.open_device(dev_id, size, read_only=False)
                assert device.pread(size, 0) == bytes(size)
                write(engine, device, bytes([life + 1]) * size, 0)
                if life % 3 == 0:
                    _close_all(engine, device)
                    delete(engine, dev_id)
                elif life % 3 == 1:
                    delete(engine, dev_id)  # what is dirty of it goes with it
                else:
                    cut(engine, dev_id, 7)
                    delete(engine, dev_id)
                    assert engine.open_device(7, size).pread(size, 0) == bytes([life + 1]) * size
                    delete(engine, 7)
        engine.commit()
        engine.commit()
        assert engine.space.free_count == DATA_BLOCKS
    assert_sound(metadata)


def _creating(dev_id: int) -> Callable[[PoolMetadata], Device]:
    return lambda metadata: metadata.create_thin(dev_id)


def _close_all(engine: Engine, device: ThinDevice) -> None:
    close_device(engine, device)
    assert device.dev_id not in engine.devices


@pytest.mark.parametrize("seed", range(3))
def test_snapshots_keep_their_content_across_the_mark_of_the_clock(tmp_path: Path, seed: int) -> None:
    """Cuts from before TIME_CAP to behind it, and on after another writer, whose times count again (D3)."""
    size, chance = 12 * BLOCK, random.Random(seed)
    metadata, data = MemoryDevice(2 << 20), MemoryDevice(DATA_BLOCKS * BLOCK)
    made = PoolMetadata.format(metadata, BLOCK, DATA_BLOCKS, UUID)
    made.create_thin(1)
    made.superblock = replace(made.superblock, time=TIME_CAP - 4)
    made.commit(lambda: None)
    model, kept, seen = bytearray(size), dict[int, bytes](), list[tuple[int, bool]]()
    is_capped = False
    for opening in range(3):
        with running(metadata, data, tmp_path / "dirty", time_is_capped=is_capped) as engine:
            device = engine.open_device(1, size, read_only=False)
            for number in range(9):
                for _ in range(3):
                    at, data_written = chance.randrange(size - BLOCK), chance.randbytes(chance.choice((512, BLOCK)))
                    write(engine, device, data_written, at)
                    model[at : at + len(data_written)] = data_written
                cut(engine, 1, 2 + 9 * opening + number)
                kept[2 + 9 * opening + number] = bytes(model)
            seen.append((engine.metadata.superblock.time - TIME_CAP, engine.metadata.time_is_capped))
            assert device.pread(size, 0) == model
            for dev_id, content in kept.items():
                assert engine.open_device(dev_id, size).pread(size, 0) == content
        assert_sound(metadata)
        is_capped = opening == 0  # the second opening knows the mark; before the third another program wrote
    assert seen == [(1, True), (1, True), (2, True)]
