"""The stock of data blocks: taken ahead, made room for, put back, told of when it runs low."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from replicator.blockdev.memory import MemoryDevice
from replicator.errors import NoSpaceError
from replicator.pdata.bitmap import ENTRIES_PER_BITMAP, Counts
from replicator.pdata.block import Words
from replicator.pdata.counts import CountArray
from replicator.thin import space
from replicator.thin.space import DataSpace

BLOCK = 65536


class Roomy(MemoryDevice):
    """Remembers the room it was asked for."""

    def __init__(self, room: int) -> None:
        super().__init__(100 * BLOCK)
        self.room, self.asked = room, list[tuple[int, int]]()

    def preallocate(self, offset_bytes: int, length_bytes: int) -> None:
        """Room for a range, or NoSpaceError."""
        if length_bytes > self.room * BLOCK:
            raise NoSpaceError("the file system is full")
        self.room -= length_bytes // BLOCK
        self.asked.append((offset_bytes // BLOCK, length_bytes // BLOCK))


def made(blocks: int = 20, device: object = None, low_water: int = 0) -> tuple[DataSpace, CountArray]:
    def load(sections: Words) -> Counts:
        return np.zeros((len(sections), ENTRIES_PER_BITMAP), dtype=np.uint32)

    counts = CountArray("data", blocks, 0, load, recycle=False)
    return DataSpace(counts, threading.RLock(), device, BLOCK, low_water), counts


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "STOCK_BLOCKS", 8)
    monkeypatch.setattr(space, "_AHEAD_BYTES", 3 * BLOCK)


def test_blocks_come_one_by_one_until_none_is_left() -> None:
    stock, counts = made(10)
    assert [stock.take_one() for _ in range(10)] == list(range(10))
    assert counts.nr_allocated == 0 and stock.free_count == 0
    with pytest.raises(NoSpaceError, match="10 blocks") as refused:
        stock.take_one()
    assert refused.value.mend
    stock.give_back(np.array([4], dtype=np.uint64))
    assert stock.take_one() == 4


def test_many_at_once_come_from_the_stock_too() -> None:
    stock, _ = made(10)
    stock.refill()
    stock.take_one()
    assert (stock.stock_count, stock.free_count) == (7, 9)
    with pytest.raises(NoSpaceError):
        stock.take(10)
    assert stock.free_count == 9
    assert sorted(stock.take(9).tolist()) == list(range(1, 10)) and stock.free_count == 0


def test_room_is_made_ahead_and_never_where_somebody_writes() -> None:
    device = Roomy(100)
    stock, _ = made(20, device)
    stock.take_one()
    assert device.asked == [(0, 3)]
    for _ in range(3):
        stock.take_one()
    assert device.asked == [(0, 3), (3, 3)]
    assert stock.take(2).tolist() == [8, 9] and device.asked[-1] == (8, 2)


def test_a_disk_without_room_takes_nothing_out_of_the_stock() -> None:
    device = Roomy(0)
    stock, _ = made(20, device)
    for _ in range(2):
        with pytest.raises(NoSpaceError, match="file system"):
            stock.take_one()
        with pytest.raises(NoSpaceError, match="file system"):
            stock.take(5)
        assert stock.free_count == 20
    device.room = 3
    assert stock.take_one() == 0


def test_low_water_is_told_once_a_crossing() -> None:
    stock, counts = made(20, low_water=5)
    told: list[int] = []
    stock.on_low_water = told.append
    taken = stock.take(14)
    assert told == []
    more = stock.take(2)
    stock.take(1)
    assert told == [4]
    counts.put_back(np.concatenate((taken, more)))
    stock.refill()
    stock.take(16)
    assert told == [4, 3]
