"""The n-th operation of a disk fails, for every n: the engine says so, and the next opening finds all that was flushed.

What failed is told to whoever asked; what was acknowledged by a flush is there afterwards, to the sector or newer.
"""

from __future__ import annotations

import errno
from functools import partial
from pathlib import Path

import pytest

from replicator.blockdev.faulty import Fault, FaultyDevice, OperationKind
from replicator.blockdev.memory import MemoryDevice
from replicator.errors import ReplicatorError
from replicator.pdata.transaction import BrokenPoolError
from replicator.thin.engine import Engine
from replicator.thin.opening import open_engine
from tests.support.enginerig import BLOCK, assert_sound, cut, delete, formatted, running, within, write

SIZE = 6 * BLOCK
DATA_BLOCKS = 40


def workload(engine: Engine, answered: list[tuple[bytes, bytes]]) -> None:
    """Appends (content written, content flushed) of device 1 after each answer; stops at the first error."""
    device = engine.open_device(1, SIZE, read_only=False)
    now, flushed = bytearray(SIZE), bytes(SIZE)
    for number in range(14):
        begin = number * 40960 % (SIZE - 40960)
        write(engine, device, bytes([number + 1]) * 40960, begin)
        now[begin : begin + 40960] = bytes([number + 1]) * 40960
        if number % 4 == 1:
            engine.commit()
            flushed = bytes(now)
        if number == 4:
            cut(engine, 1, 2)
            flushed = bytes(now)
        if number == 9:
            delete(engine, 2)
            flushed = bytes(now)
        answered.append((bytes(now), flushed))


def run(metadata: FaultyDevice, data: FaultyDevice, dirty: Path) -> tuple[list[tuple[bytes, bytes]], bool]:
    """What was answered, and whether an error came."""
    answered: list[tuple[bytes, bytes]] = []
    try:
        engine, _ = open_engine(metadata, data, dirty, dirty_capacity=64)
    except ReplicatorError:
        return answered, True
    try:
        workload(engine, answered)
        failed = False
    except ReplicatorError:
        failed = True
        if engine.failed:
            with pytest.raises(BrokenPoolError):
                engine.commit()
            with pytest.raises(BrokenPoolError):
                write(engine, engine.devices[1], bytes(512), 0)
    finally:
        engine.close()
    return answered, failed or engine.failed is not None


@pytest.mark.parametrize("side", ["metadata", "data"])
@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for-good"])
@pytest.mark.parametrize("kind", [OperationKind.WRITE, OperationKind.FLUSH, OperationKind.READ])
def test_the_nth_operation_fails(tmp_path: Path, side: str, for_good: bool, kind: OperationKind) -> None:
    nth, dirty = 0, tmp_path / "dirty"
    while True:
        nth += 1
        fault = Fault(nth, errno.EIO, frozenset({kind}), torn_bytes=1024, for_good=for_good)
        disks = {"metadata": formatted(1 << 20, DATA_BLOCKS), "data": MemoryDevice(DATA_BLOCKS * BLOCK)}
        faulty = {name: FaultyDevice(disk, [fault] if name == side else []) for name, disk in disks.items()}
        answered, failed = within(30, partial(run, faulty["metadata"], faulty["data"], dirty))
        met = bool(faulty[side].met)
        assert met or not failed
        assert_sound(disks["metadata"])
        with running(disks["metadata"], disks["data"], dirty) as engine:
            found = engine.open_device(1, SIZE).pread(SIZE, 0)
        assert_sound(disks["metadata"])
        if not met:
            assert found == answered[-1][0]
            break
        assert_is_flushed_or_later(found, answered)
    assert nth > 1 or (side, kind) == ("data", OperationKind.READ)


def assert_is_flushed_or_later(found: bytes, answered: list[tuple[bytes, bytes]]) -> None:
    """Each sector has its last flushed content, or that of a later write (answered, or the one that failed)."""
    flushed = answered[-1][1] if answered else bytes(SIZE)
    since = [now for now, _ in answered if now == flushed] or [flushed]
    later = answered[answered.index((flushed, flushed)) :] if (flushed, flushed) in answered else answered
    allowed = [*since, *(now for now, _ in later)]
    under_way = bytes([len(answered) + 1]) * 512
    for begin in range(0, SIZE, 512):
        sector = found[begin : begin + 512]
        assert sector == under_way or any(sector == each[begin : begin + 512] for each in allowed), begin // 512
