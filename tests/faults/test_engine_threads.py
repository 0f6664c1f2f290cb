"""Many threads on one pool: neighbours and the same blocks, with cuts, flushes and deletes among them; nothing hangs.

Each thread writes pages that name it and its turn. A page ends as one of the last writes that overlapped in time; a
snapshot reads the same for as long as it lives; a page never shows what its device was never given.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from replicator.blockdev.memory import MemoryDevice
from replicator.errors import NoSpaceError
from replicator.thin import space
from replicator.thin.device import ThinDevice
from replicator.thin.engine import Engine
from replicator.thin.gate import IDLE
from tests.support.enginerig import BLOCK, assert_sound, cut, delete, formatted, running, within, write

PAGE = 4096
BLOCKS = 12
PAGES = BLOCKS * BLOCK // PAGE
THREADS = 6


@contextmanager
def batch(engine: Engine) -> Iterator[None]:
    """What a serving thread does around each request: its slot shows that it is reading."""
    slot = engine.gate.register()
    slot.generation = engine.gate.generation
    try:
        yield
    finally:
        slot.generation = IDLE
        engine.gate.unregister(slot)


def page_of(thread: int, turn: int) -> bytes:
    return (thread << 32 | turn).to_bytes(8, "little") * (PAGE // 8)


def all_done(works: list[Callable[[], None]]) -> None:
    """Run each in a thread; the first error is raised, and a thread that hangs is one."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised below, in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]


class Writer:
    """Writes pages by chance, and remembers the last turn of each; its own pages (one in THREADS) read back exactly."""

    def __init__(self, engine: Engine, device: ThinDevice, number: int, turns: int) -> None:
        self.engine, self.device, self.number, self.turns = engine, device, number, turns
        self.chance = random.Random(number)
        self.last: dict[int, int] = {}

    def __call__(self) -> None:
        for turn in range(1, self.turns + 1):
            page = self.chance.randrange(PAGES)
            mine = page % THREADS == self.number
            if mine and self.chance.random() < 0.3:
                self.read_back(page)
                continue
            with batch(self.engine):
                write(self.engine, self.device, page_of(self.number, turn), page * PAGE)
            self.last[page] = turn
            if self.chance.random() < 0.02:
                self.engine.commit()
            if self.chance.random() < 0.05:
                self.device.table.clear()

    def read_back(self, page: int) -> None:
        """Nobody but the threads writes: each page is whole, and one that somebody wrote."""
        with batch(self.engine):
            found = self.device.pread(PAGE, page * PAGE)
        assert found == found[:8] * (PAGE // 8), f"page {page} is torn"
        assert found[:8] == bytes(8) or int.from_bytes(found[4:8], "little") < THREADS


@pytest.mark.parametrize("capacity", [64, 4096])
def test_writers_cuts_and_flushes_on_one_device(tmp_path: Path, capacity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "STOCK_BLOCKS", 8)
    metadata, data = formatted(4 << 20, 120), MemoryDevice(120 * BLOCK)
    with running(metadata, data, tmp_path / "dirty", capacity=capacity) as engine:
        device = engine.open_device(1, BLOCKS * BLOCK, read_only=False)
        writers = [Writer(engine, device, number, 150) for number in range(THREADS)]
        snapshots: dict[int, bytes] = {}

        def cutter() -> None:
            for number in range(2, 26):
                cut(engine, 1, number)
                snapshots[number] = engine.open_device(number, BLOCKS * BLOCK).pread(BLOCKS * BLOCK, 0)
                if len(snapshots) > 3:
                    oldest = min(snapshots)
                    assert_stable(engine, oldest, snapshots.pop(oldest))
                    engine.devices.pop(oldest)
                    delete(engine, oldest)

        all_done([*writers, cutter])
        for number, content in snapshots.items():
            assert_stable(engine, number, content)
        assert_last_writes(device, writers)
    assert_sound(metadata)


def assert_stable(engine: Engine, snapshot: int, content: bytes) -> None:
    engine.devices[snapshot].table.clear()
    assert engine.devices[snapshot].pread(BLOCKS * BLOCK, 0) == content


def assert_last_writes(device: ThinDevice, writers: list[Writer]) -> None:
    """Each page is some thread's last write to it: an earlier one of the same thread can't come after that."""
    for page in range(PAGES):
        found = device.pread(PAGE, page * PAGE)
        turn, thread = int.from_bytes(found[:4], "little"), int.from_bytes(found[4:8], "little")
        assert found == found[:8] * (PAGE // 8)
        expected = {writer.number: writer.last[page] for writer in writers if page in writer.last}
        assert (expected.get(thread) == turn) if expected else not any(found), page


def test_two_devices_that_share_and_trim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device and its clone, each written and trimmed by its own threads: neither ever shows what the other wrote."""
    monkeypatch.setattr(space, "STOCK_BLOCKS", 8)
    metadata, data = formatted(4 << 20, 100), MemoryDevice(100 * BLOCK)
    with running(metadata, data, tmp_path / "dirty", capacity=128) as engine:
        base = engine.open_device(1, BLOCKS * BLOCK, read_only=False)
        write(engine, base, page_of(0, 9999) * PAGES, 0)
        cut(engine, 1, 2)
        clone = engine.open_device(2, BLOCKS * BLOCK, read_only=False)

        def worker(device: ThinDevice, number: int) -> None:
            chance = random.Random(number)
            mine = range(number // 2 * PAGES // 3, (number // 2 + 1) * PAGES // 3)
            model = dict.fromkeys(mine, page_of(0, 9999))
            for turn in range(200):
                page = chance.choice(mine)
                with batch(engine):
                    if chance.random() < 0.15:
                        first = page * PAGE // BLOCK
                        with engine.gate.writing():
                            device.discard(first * BLOCK, BLOCK)
                        block = range(first * BLOCK // PAGE, (first + 1) * BLOCK // PAGE)
                        model.update((each, bytes(PAGE)) for each in block)
                    else:
                        model[page] = page_of(number, turn)
                        write(engine, device, model[page], page * PAGE)
                    probe = chance.choice(mine)
                    assert device.pread(PAGE, probe * PAGE) == model[probe], (device.name, probe, turn)
                if chance.random() < 0.05:
                    engine.commit()
                if chance.random() < 0.05:
                    device.table.clear()

        pairs = [(device, number) for number in range(6) for device in ((base, clone)[number % 2],)]
        all_done([partial(worker, *pair) for pair in pairs])
    assert_sound(metadata)


def test_a_full_pool_never_hangs(tmp_path: Path) -> None:
    """Ten times the room is asked for by many threads: each write is done or refused."""
    metadata, data = formatted(1 << 20, 40), MemoryDevice(40 * BLOCK)
    with running(metadata, data, tmp_path / "dirty") as engine:
        device = engine.open_device(1, 400 * BLOCK, read_only=False)
        refused: list[int] = []

        def filler(number: int) -> None:
            for block in range(number, 400, 8):
                try:
                    with batch(engine):
                        write(engine, device, page_of(number, block + 1), block * BLOCK)
                except NoSpaceError:
                    refused.append(block)

        within(100, lambda: all_done([partial(filler, number) for number in range(8)]))
        assert len(refused) == 360
    assert_sound(metadata)
