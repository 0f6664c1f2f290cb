"""Reads and writes beside a commit that stands still: none waits for tree work (P4), nothing false is own (P6).

The committer is stopped wherever it may be: in the trees with the metadata lock held, and between its writes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from replicator.blockdev.memory import MemoryDevice
from replicator.errors import DamageError, NotFoundError
from replicator.thin.change import Change
from replicator.thin.committed import Committed
from replicator.thin.device import ThinDevice
from replicator.thin.engine import Engine
from replicator.thin.metadata import PoolMetadata
from replicator.thin.sharing import Mapped
from replicator.thin.table import SHARED, STAMP_MASK
from tests.support.enginerig import BLOCK, assert_sound, cut, delete, formatted, running, within, write

BLOCKS = 40
SIZE = BLOCKS * BLOCK


class Standing:
    """A change whose `apply` waits, with the metadata lock held, for `go`."""

    def __init__(self, engine: Engine, cut_devices: tuple[int, ...] = ()) -> None:
        self.engine = engine
        self.there, self.go = threading.Event(), threading.Event()
        self.change = Change(self._apply, cut_devices=cut_devices)

    def _apply(self, metadata: PoolMetadata) -> None:
        if self.change.cut_devices:
            metadata.create_snap(90, self.change.cut_devices[0])
        self.there.set()
        assert self.go.wait(30)


@contextmanager
def standing_still(engine: Engine, *cut_devices: int) -> Iterator[None]:
    """Inside the block a commit has folded what was dirty, and made its snapshot, and holds the lock."""
    standing = Standing(engine, cut_devices)
    engine.submit(standing.change)
    assert standing.there.wait(30)
    try:
        yield
    finally:
        standing.go.set()
        standing.change.done.result(30)


@pytest.fixture
def disks() -> tuple[MemoryDevice, MemoryDevice]:
    return formatted(4 << 20, 400), MemoryDevice(400 * BLOCK)


@pytest.fixture
def engine(disks: tuple[MemoryDevice, MemoryDevice], tmp_path: Path) -> Iterator[Engine]:
    with running(*disks, tmp_path / "dirty", capacity=256) as engine:
        yield engine
    assert_sound(disks[0])


def page(number: int) -> bytes:
    return number.to_bytes(4, "little") * 1024


def own(device: ThinDevice) -> list[int]:
    """The blocks that may be overwritten in place, by a table that is loaded anew."""
    device.table.clear()
    return [block for block in range(BLOCKS) if device.entry(block) & STAMP_MASK == device.epoch]


@pytest.mark.parametrize("is_cut", [False, True], ids=["flush", "cut"])
def test_a_fold_that_stands_still_holds_nobody_up(engine: Engine, is_cut: bool) -> None:
    device = engine.open_device(1, SIZE, read_only=False)
    for block in range(20):
        write(engine, device, page(block), block * BLOCK)
    engine.commit()
    write(engine, device, page(100), 3 * BLOCK)
    write(engine, device, page(101), 25 * BLOCK)
    with standing_still(engine, *((1,) if is_cut else ())):

        def work() -> None:
            assert own(device) == ([] if is_cut else [*range(20), 25])
            assert [device.pread(4096, block * BLOCK) for block in (0, 3, 25, 30)] == [
                page(0), page(100), page(101), bytes(4096)
            ]  # fmt: skip
            write(engine, device, page(200), 3 * BLOCK)  # breaks what is being cut, or overwrites in place
            write(engine, device, page(201), 31 * BLOCK)  # a first touch
            with engine.gate.writing():
                device.discard(25 * BLOCK, BLOCK)
            device.table.clear()
            assert [device.pread(4096, block * BLOCK) for block in (0, 3, 25, 31)] == [
                page(0), page(200), bytes(4096), page(201)
            ]  # fmt: skip
            assert own(device) == ([3, 31] if is_cut else [*range(20), 31])

        within(20, work)
        second = threading.Thread(target=cut, args=(engine, 1, 91))  # a cut waits for its turn, and holds nobody up
        second.start()
        within(20, lambda: write(engine, device, page(202), 4 * BLOCK))
    second.join(30)
    assert device.pread(4096, 4 * BLOCK) == page(202)
    assert engine.open_device(91, SIZE).pread(4096, 3 * BLOCK) == page(200)
    if is_cut:
        snapshot = engine.open_device(90, SIZE)
        assert [snapshot.pread(4096, block * BLOCK) for block in (3, 4, 25, 31)] == [
            page(100), page(4), page(101), bytes(4096)
        ]  # fmt: skip


def test_a_base_that_is_going_isnt_overwritten_before_it_is_gone(engine: Engine) -> None:
    """P6: a power cut brings it back; once its deletion is durable its blocks are the volume's own."""
    device = engine.open_device(1, SIZE, read_only=False)
    write(engine, device, bytes(range(256)) * (5 * 256), 0)
    cut(engine, 1, 2)
    going = Standing(engine)
    wait = going.change.apply

    def apply(metadata: PoolMetadata) -> None:
        metadata.delete(2)
        wait(metadata)

    going.change.apply = apply
    engine.submit(going.change)
    assert going.there.wait(30)
    assert within(20, lambda: own(device)) == []
    going.go.set()
    going.change.done.result(30)
    assert own(device) == list(range(5))


class Slow(Committed):
    """A state that lets commits end while it is being read."""

    def __init__(self, real: Committed, engine: Engine, error: bool) -> None:
        super().__init__(real.superblock, engine.metadata.transaction)
        self.engine, self.error, self.reads = engine, error, 0

    def mapped(self, dev_id: int, begin: int, end: int) -> Mapped:
        self.reads += 1
        found = super().mapped(dev_id, begin, end)
        self.engine.change(Change(lambda metadata: metadata.create_thin(50 + self.reads)))
        if self.error:
            raise DamageError("a node that was used again")
        return found


@pytest.mark.parametrize("error", [False, True])
def test_what_was_read_of_a_state_that_ended_is_read_again(engine: Engine, error: bool) -> None:
    device = engine.open_device(1, SIZE, read_only=False)
    write(engine, device, page(7), 0)
    engine.commit()
    slow = engine.paging.committed = Slow(engine.paging.committed, engine, error)
    device.table.clear()
    assert within(20, lambda: device.pread(4096, 0)) == page(7) and slow.reads == 1
    assert engine.paging.committed is not slow and own(device) == [0]


def test_a_state_that_never_stands_still_is_held_up_in_the_end(engine: Engine) -> None:
    """The last try holds the lock that the end of a commit needs."""
    device = engine.open_device(1, SIZE, read_only=False)
    with pytest.raises(NotFoundError):
        engine.paging.durable(lambda state: state.root_of(77))
    looks: list[Committed] = []

    def look(state: Committed) -> int:
        looks.append(state)
        if len(looks) < 3:
            engine.paging.committed = Committed(state.superblock, engine.metadata.transaction)
        return len(looks)

    assert engine.paging.durable(look) == 3 and len({id(each) for each in looks}) == 3
    assert device.entry(0) == 0


def test_after_a_failed_commit_nothing_is_overwritten_in_place(engine: Engine) -> None:
    """E3: also not by who loads its table anew."""
    device = engine.open_device(1, SIZE, read_only=False)
    write(engine, device, page(7), 0)
    engine.commit()
    assert own(device) == [0]
    engine.paging.may_own = False
    assert own(device) == [] and device.entry(0) & STAMP_MASK == SHARED
    engine.paging.may_own = True


def test_a_filled_devices_readers_see_the_new_blocks(engine: Engine) -> None:
    """Its table is emptied before anything that it had may be used again."""
    engine.change(Change(lambda metadata: metadata.create_thin(2)))
    device = engine.open_device(2, SIZE)
    assert device.entry(0) == 0
    block = engine.space.take(1)
    zero = np.zeros(1, dtype=np.uint64)
    engine.change(Change(lambda metadata: metadata.map(2, zero, block), fills=(2,), weight=1))
    assert device.entry(0) >> 24 == int(block[0])
    delete(engine, 2)
