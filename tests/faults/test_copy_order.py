"""Copies that take their time: what others see of a block meanwhile (the four bugs that dm-snapshot's authors named).

The data disk holds a read or a write back until it is let go, so each order of events is played, not hoped for.

    bug of dm-snapshot                                         here
    a read of a block being copied goes to the origin          a read beside a copy sees the old block
    the index is read after the device is registered           a page table loaded while a commit runs has all answers
    a write hangs on one of several pending copies             two writers of one block make one copy, with both in it
    reads passed on aren't tracked, and a write overtakes      a freed block isn't given again while it is being read
    one lock for all                                           a stalled block delays no other

One more is ours alone: a block may become the device's own while it is being copied, when the snapshot that shares it
goes, and its stretch of the page table is loaded anew.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from replicator._buffer import Buffer
from replicator.blockdev.memory import MemoryDevice
from replicator.thin import space
from replicator.thin.engine import Engine
from replicator.thin.gate import IDLE
from tests.support.enginerig import BLOCK, assert_sound, cut, delete, formatted, running, within, write

BLOCKS = 12
OLD, STALE = b"\x11", b"\xee"
WAIT_S = 20.0


class Held:
    """One read or write that waits at the disk's door."""

    def __init__(self) -> None:
        self.reached, self.let_go = threading.Event(), threading.Event()


class HoldingDisk(MemoryDevice):
    """A data disk full of old content; `hold` makes its next read, or write, of at least so many bytes wait."""

    def __init__(self, blocks: int) -> None:
        super().__init__(content=STALE * (blocks * BLOCK), name="data")
        self._held: dict[str, tuple[int, Held]] = {}

    def hold(self, kind: str, length_bytes: int = 1) -> Held:
        """The next such operation waits."""
        held = Held()
        self._held[kind] = length_bytes, held
        return held

    def _pass(self, kind: str, length_bytes: int) -> None:
        least, held = self._held.get(kind, (0, None))
        if held is not None and length_bytes >= least:
            del self._held[kind]
            held.reached.set()
            assert held.let_go.wait(WAIT_S), "nobody let the disk go on"

    def pread_into(self, target: Buffer, offset_bytes: int) -> None:
        self._pass("read", memoryview(target).nbytes)
        super().pread_into(target, offset_bytes)

    def pwrite(self, data: Buffer, offset_bytes: int) -> None:
        self._pass("write", memoryview(data).nbytes)
        super().pwrite(data, offset_bytes)


@pytest.fixture
def disk() -> HoldingDisk:
    return HoldingDisk(BLOCKS)


@pytest.fixture
def engine(disk: HoldingDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """Device 1 with four written blocks, shared with snapshot 2."""
    monkeypatch.setattr(space, "STOCK_BLOCKS", 4)
    metadata = formatted(2 << 20, BLOCKS)
    with running(metadata, disk, tmp_path / "dirty") as engine:
        device = engine.open_device(1, 8 * BLOCK, read_only=False)
        write(engine, device, OLD * (4 * BLOCK), 0)
        cut(engine, 1, 2)
        engine.open_device(2, 8 * BLOCK)
        yield engine
    assert_sound(metadata)


@contextmanager
def aside(work: Callable[[], object], held: Held) -> Iterator[threading.Thread]:
    """`work` in a thread, as far as the disk holds it back; done when the block ends."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised below, in the test's own thread
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert held.reached.wait(WAIT_S), "it never came to the disk"
    try:
        yield thread
    finally:
        held.let_go.set()
        thread.join(WAIT_S)
    assert not thread.is_alive() and not errors, errors


def test_a_read_beside_a_copy_sees_the_old_block(engine: Engine, disk: HoldingDisk) -> None:
    device, snapshot = engine.devices[1], engine.devices[2]
    held = disk.hold("write", BLOCK)
    with aside(partial(write, engine, device, b"\x22" * 512, 512), held):
        assert within(WAIT_S, lambda: device.pread(BLOCK, 0)) == OLD * BLOCK
        assert within(WAIT_S, lambda: snapshot.pread(BLOCK, 0)) == OLD * BLOCK
    assert device.pread(1536, 0) == OLD * 512 + b"\x22" * 512 + OLD * 512
    assert snapshot.pread(BLOCK, 0) == OLD * BLOCK


def test_a_stalled_block_delays_no_other(engine: Engine, disk: HoldingDisk) -> None:
    device = engine.devices[1]
    held = disk.hold("write", BLOCK)
    with aside(partial(write, engine, device, b"\x22" * 512, 0), held):
        within(WAIT_S, lambda: write(engine, device, b"\x33" * 512, BLOCK))
        within(WAIT_S, lambda: write(engine, device, b"\x44" * BLOCK, 6 * BLOCK))
        assert device.pread(512, BLOCK) == b"\x33" * 512 and device.pread(BLOCK, 6 * BLOCK) == b"\x44" * BLOCK
        within(WAIT_S, engine.commit)


def test_two_writers_of_one_block_make_one_copy(engine: Engine, disk: HoldingDisk) -> None:
    device, free = engine.devices[1], engine.space.free_count
    held = disk.hold("write", BLOCK)
    second = threading.Thread(target=partial(write, engine, device, b"\x33" * 512, 1024), daemon=True)
    with aside(partial(write, engine, device, b"\x22" * 512, 0), held):
        second.start()
        second.join(0.2)  # it may not get through, however long it is given
        assert second.is_alive(), "a write came into a block that was being copied"
    second.join(WAIT_S)
    assert device.pread(2048, 0) == b"\x22" * 512 + OLD * 512 + b"\x33" * 512 + OLD * 512
    assert engine.space.free_count == free - 1


def test_a_block_that_became_the_devices_own_while_it_was_copied_keeps_what_was_written_there(
    engine: Engine, disk: HoldingDisk
) -> None:
    device = engine.devices[1]
    held = disk.hold("write", BLOCK)
    with aside(partial(write, engine, device, b"\x22" * 512, 0), held):
        within(WAIT_S, lambda: delete(engine, 2))
        with engine.publish_lock:
            device.table.clear()  # as it does where the volume has more stretches than are kept
        within(WAIT_S, lambda: write(engine, device, b"\x33" * 512, 1024))
    assert device.pread(2048, 0) == b"\x22" * 512 + OLD * 512 + b"\x33" * 512 + OLD * 512


def test_a_table_loaded_while_a_commit_runs_has_all_that_was_answered(engine: Engine, disk: HoldingDisk) -> None:
    """The set that is being committed, and what came after it."""
    device, seen = engine.devices[1], list[bytes]()
    write(engine, device, b"\x22" * 512, 0)
    flush = disk.flush

    def look() -> None:
        device.table.clear()
        seen.append(device.pread(512, 0))
        write(engine, device, b"\x33" * 512, BLOCK)
        device.table.clear()
        seen.append(device.pread(512, BLOCK))
        flush()

    disk.flush = look  # type: ignore[method-assign]  # the instant at which the commit asks for the data
    engine.commit()
    disk.flush = flush  # type: ignore[method-assign]  # as it was
    assert seen == [b"\x22" * 512, b"\x33" * 512]
    device.table.clear()
    assert device.pread(512, 0) + device.pread(512, BLOCK) == b"\x22" * 512 + b"\x33" * 512
    assert engine.devices[2].pread(2 * BLOCK, 0) == OLD * (2 * BLOCK)


def test_a_freed_block_isnt_given_again_while_it_is_being_read(engine: Engine, disk: HoldingDisk) -> None:
    device, read = engine.devices[1], list[bytes]()
    write(engine, device, b"\x55" * BLOCK, 5 * BLOCK)
    engine.commit()

    def reader() -> None:
        slot = engine.gate.register()
        slot.generation = engine.gate.generation
        read.append(device.pread(BLOCK, 5 * BLOCK))
        slot.generation = IDLE
        engine.gate.unregister(slot)

    held = disk.hold("read", BLOCK)
    with aside(reader, held):
        with engine.gate.writing():
            device.discard(5 * BLOCK, BLOCK)
        for _ in range(3):
            engine.commit()
        engine.space.refill()
        for block in range(engine.space.free_count):
            write(engine, device, b"\x66" * BLOCK, block * BLOCK)
            engine.commit()
    assert read == [b"\x55" * BLOCK]
