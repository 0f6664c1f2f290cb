"""Devices that are closed while the engine goes on: durable, forgotten, dead to who still has them, opened anew."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replicator.blockdev.faulty import Fault, FaultyDevice, OperationKind
from replicator.blockdev.memory import MemoryDevice
from replicator.errors import ConflictError
from replicator.pdata.transaction import BrokenPoolError
from replicator.thin.closing import close_device
from replicator.thin.device import ThinDevice
from replicator.thin.engine import Engine
from tests.support.enginerig import BLOCK, assert_sound, cut, delete, formatted, running, within, write

BLOCKS = 8
SIZE = BLOCKS * BLOCK
DATA_BLOCKS = 400


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    metadata = formatted(2 << 20, DATA_BLOCKS)
    with running(metadata, MemoryDevice(DATA_BLOCKS * BLOCK), tmp_path / "dirty") as engine:
        yield engine
    assert_sound(metadata)


def opened(engine: Engine) -> ThinDevice:
    return engine.open_device(1, SIZE, read_only=False)


def test_what_was_written_is_durable_and_the_device_forgotten(engine: Engine) -> None:
    device = opened(engine)
    write(engine, device, b"a" * 5000, BLOCK - 2000)
    close_device(engine, device)
    assert not engine.dirty.count and 1 not in engine.devices and engine.metadata.device(1).mapped_blocks == 2
    again = engine.open_device(1, SIZE)
    assert again is not device and again.pread(5000, BLOCK - 2000) == b"a" * 5000
    delete(engine, 1)


def test_who_still_has_it_finds_it_closed(engine: Engine) -> None:
    """Z1: nothing is read, written or unmapped by it any more."""
    device = opened(engine)
    write(engine, device, b"a" * SIZE, 0)
    close_device(engine, device)
    again = opened(engine)
    uses: list[Callable[[], object]] = [
        lambda: device.pread(1, 0),
        lambda: write(engine, device, b"b", 0),
        lambda: write(engine, device, b"b" * BLOCK, BLOCK),
        lambda: device.discard(0, SIZE),
        lambda: device.write_zeroes(0, SIZE),
        lambda: engine.publish_unmapped(device, 0, 1),
    ]
    for use in uses:
        with pytest.raises(ConflictError, match="was closed"):
            use()
    assert not engine.publish(device, 0, 99) and again.pread(SIZE, 0) == b"a" * SIZE and not engine.dirty.count
    close_device(engine, device)
    assert engine.devices[1] is again, "to close it once more does nothing"


def test_the_last_user_closes_it(engine: Engine) -> None:
    first, second = opened(engine), opened(engine)
    assert first is second and engine.open_device(1, SIZE) is first
    for _ in range(2):
        close_device(engine, first)
        write(engine, second, b"a", 0)
    close_device(engine, first)
    assert 1 not in engine.devices


def test_a_reader_that_goes_leaves_the_writer_alone(engine: Engine) -> None:
    reader = engine.open_device(1, SIZE)
    writer = opened(engine)
    close_device(engine, reader)
    write(engine, writer, b"a", 0)
    assert reader.closed and engine.devices[1] is writer and writer.pread(1, 0) == b"a"


def test_it_is_opened_anew_before_its_commit_is_durable(engine: Engine) -> None:
    device = opened(engine)
    write(engine, device, b"a" * SIZE, 0)
    closing = threading.Thread(target=close_device, args=(engine, device))
    with engine.lock:  # no commit gets further than its freeze
        closing.start()
        assert within(10, lambda: _until(lambda: device.closed))
        assert not engine.devices[1].read_only, "until it is durable it counts as open for writing"
        again = opened(engine)
        assert again is not device
        write(engine, again, b"b", 5)
    closing.join(10)
    assert not closing.is_alive() and engine.devices[1] is again
    again.table.clear()
    assert again.pread(SIZE, 0) == b"aaaaab" + b"a" * (SIZE - 6)
    engine.commit()
    again.table.clear()
    assert again.pread(SIZE, 0) == b"aaaaab" + b"a" * (SIZE - 6)


def _until(true: Callable[[], bool]) -> bool:
    while not true():
        pass
    return True


def test_a_failed_commit_leaves_it_open_for_writing(tmp_path: Path) -> None:
    """Z2."""
    data = FaultyDevice(MemoryDevice(DATA_BLOCKS * BLOCK), [Fault(2, kinds=frozenset({OperationKind.FLUSH}))])
    with running(formatted(2 << 20, DATA_BLOCKS), data, tmp_path / "dirty") as engine:
        device = opened(engine)
        write(engine, device, b"a", 0)
        with pytest.raises(BrokenPoolError):
            close_device(engine, device)
        assert engine.devices[1] is device and not device.read_only and device.closed


@pytest.mark.parametrize("seed", range(6))
def test_by_chance_with_cuts_and_commits(engine: Engine, seed: int) -> None:
    """The device and each snapshot read as a model does, however often it is closed in between."""
    chance = random.Random(seed)
    device, model, kept = opened(engine), bytearray(SIZE), dict[int, bytes]()
    closed = 0
    for _ in range(150):
        match chance.choices("wdxcf", (50, 8, 20, 12, 10))[0]:
            case "w":
                begin = chance.randrange(SIZE - 1)
                data = chance.randbytes(min(chance.choice((512, 4096, BLOCK + 3)), SIZE - begin))
                write(engine, device, data, begin)
                model[begin : begin + len(data)] = data
            case "d":
                block = chance.randrange(BLOCKS)
                with engine.gate.writing():
                    device.discard(block * BLOCK, BLOCK)
                model[block * BLOCK : (block + 1) * BLOCK] = bytes(BLOCK)
            case "x":
                close_device(engine, device)
                device, closed = opened(engine), closed + 1
            case "c":
                cut(engine, 1, 2 + len(kept))
                kept[2 + len(kept)] = bytes(model)
            case _:
                engine.commit()
        assert device.pread(SIZE, 0) == model
    assert closed > 15 and len(kept) > 8
    for dev_id, content in kept.items():
        assert engine.open_device(dev_id, SIZE).pread(SIZE, 0) == content


def test_beside_writers_and_cuts(engine: Engine) -> None:
    """Writers open it, write their own block, check it and close it, while it is cut all the time."""
    ended = threading.Event()

    def writer(block: int) -> None:
        before = bytes(BLOCK)
        for number in range(40):
            device = opened(engine)
            assert device.pread(BLOCK, block * BLOCK) == before
            before = bytes([block + 1, number]) * (BLOCK // 2)
            write(engine, device, before, block * BLOCK)
            close_device(engine, device)

    def cutter() -> int:
        made = 0
        while not ended.is_set():
            cut(engine, 1, 2 + made % 4)
            delete(engine, 2 + made % 4)
            made += 1
        return made

    failures: list[BaseException] = []

    def guarded(block: int) -> None:
        try:
            writer(block)
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(block,)) for block in range(3)]
    for thread in threads:
        thread.start()

    def end() -> None:
        for thread in threads:
            thread.join()
        ended.set()

    ending = threading.Thread(target=end)
    ending.start()
    assert within(60, cutter) > 0
    ending.join()
    assert not failures, failures[0]
    assert not engine.devices
