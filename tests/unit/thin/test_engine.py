"""The engine as its users see it: devices as disks, cuts, changes, flushes, opening and closing, limits."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from replicator.blockdev.memory import MemoryDevice
from replicator.errors import ConflictError, DamageError, FormatError, ReplicatorError, UsageError
from replicator.pdata.room import PoolShape
from replicator.thin import device as device_module
from replicator.thin.admission import KEPT_WEIGHT, Admission, Opened
from replicator.thin.change import Change
from replicator.thin.device import ThinDevice
from replicator.thin.engine import Engine
from replicator.thin.opening import open_engine
from replicator.thin.table import FIRST_EPOCH, STAMP_MASK
from tests.support.enginerig import BLOCK, assert_sound, cut, formatted, running, within, write

SIZE = 9 * BLOCK + 5000
DATA_BLOCKS = 1000
ORIGIN = bytes(range(256)) * (7 * 256) + b"end"


@pytest.fixture
def disks() -> tuple[MemoryDevice, MemoryDevice]:
    """Metadata with device 1, and data full of what was there before."""
    return formatted(2 << 20, DATA_BLOCKS), MemoryDevice(content=b"\xdd" * (DATA_BLOCKS * BLOCK))


@pytest.fixture
def engine(disks: tuple[MemoryDevice, MemoryDevice], tmp_path: Path) -> Iterator[Engine]:
    with running(*disks, tmp_path / "dirty") as engine:
        yield engine
    assert_sound(disks[0])


@pytest.mark.parametrize("with_origin", [False, True], ids=["zeros", "origin"])
@pytest.mark.parametrize("seed", range(3))
def test_a_device_is_a_disk(engine: Engine, with_origin: bool, seed: int) -> None:
    """Reads, writes, trims and zeroes of any length against a bytearray (P7: what was on the data disk never shows)."""
    chance = random.Random(seed)
    origin = MemoryDevice(content=ORIGIN, read_only=True) if with_origin else None
    below = (ORIGIN + bytes(SIZE))[:SIZE] if with_origin else bytes(SIZE)
    device, model = engine.open_device(1, SIZE, origin=origin, read_only=False), bytearray(below)
    for number in range(150):
        begin = chance.randrange(SIZE)
        length = min(chance.choice((1, 512, 4096, BLOCK, 3 * BLOCK + 7)), SIZE - begin)
        end, kind = begin + length, chance.choice("wwwwzZd")
        with engine.gate.writing():
            if kind == "w":
                model[begin:end] = chance.randbytes(length)
                device.pwrite(model[begin:end], begin)
            elif kind == "d":
                device.discard(begin, length)
                low, high = -(-begin // BLOCK) * BLOCK, SIZE if end == SIZE else end // BLOCK * BLOCK
                if low < high:
                    model[low:high] = below[low:high]
            else:
                device.write_zeroes(begin, length, may_unmap=kind == "z")
                model[begin:end] = bytes(length)
        if number % 10 == 0:
            engine.commit()
        if number % 7 == 0:
            device.table.clear()
        probe = chance.randrange(SIZE)
        assert device.pread(min(70_000, SIZE - probe), probe) == model[probe : probe + 70_000]
    assert device.pread(SIZE, 0) == model


@pytest.mark.parametrize(("length", "offset"), [(1, SIZE), (2, SIZE - 1), (1, -1), (SIZE + 1, 0)])
def test_beyond_the_end_is_refused(engine: Engine, length: int, offset: int) -> None:
    device = engine.open_device(1, SIZE, read_only=False)
    calls: list[Callable[[], object]] = [
        lambda: device.pread(length, offset),
        lambda: device.pwrite(bytes(length), offset),
        lambda: device.discard(offset, length),
        lambda: device.write_zeroes(offset, length),
    ]
    for call in calls:
        with pytest.raises(UsageError):
            call()


def test_a_device_that_is_open_for_reading_isnt_written(engine: Engine) -> None:
    device = engine.open_device(1, SIZE)
    calls: list[Callable[[], object]] = [
        lambda: device.pwrite(b"x", 0),
        lambda: device.discard(0, 9),
        lambda: device.write_zeroes(0, 9),
    ]
    for call in calls:
        with pytest.raises(ConflictError):
            call()
    writable = engine.open_device(1, SIZE, read_only=False)
    assert engine.open_device(1, SIZE) is writable is engine.open_device(1, SIZE, read_only=False)


def test_what_is_mapped_tells_runs(engine: Engine) -> None:
    device = engine.open_device(1, SIZE, read_only=False)
    write(engine, device, bytes(3 * BLOCK), 2 * BLOCK)
    first = device.entry(2) >> 24
    assert list(device.runs(100, SIZE - 200)) == [
        (100, 2 * BLOCK - 100, -1),
        (2 * BLOCK, 3 * BLOCK, first * BLOCK),
        (5 * BLOCK, SIZE - 100 - 5 * BLOCK, -1),
    ]


def test_overwriting_ones_own_block_changes_no_metadata(engine: Engine) -> None:
    device = engine.open_device(1, SIZE, read_only=False)
    write(engine, device, b"a" * BLOCK, 0)
    engine.commit()
    count = engine.commit_count
    for _ in range(5):
        write(engine, device, b"b" * 100, 7)
        engine.commit()
    assert engine.commit_count == count and engine.dirty.count == 0
    cut(engine, 1, 2)
    write(engine, device, b"c", 0)
    assert engine.dirty.count == 1 and engine.open_device(2, SIZE).pread(8, 0) == b"aaaaaaab"


def test_epochs_begin_again_at_the_end_of_their_bits(engine: Engine) -> None:
    device = engine.open_device(1, SIZE, read_only=False)
    device.epoch = STAMP_MASK
    write(engine, device, b"a" * BLOCK, 0)
    cut(engine, 1, 2)
    assert device.epoch == FIRST_EPOCH
    write(engine, device, b"b" * BLOCK, 0)
    assert engine.open_device(2, SIZE).pread(3, 0) == b"aaa" and device.pread(3, 0) == b"bbb"


def test_a_refused_change_does_nothing(engine: Engine) -> None:
    def refuse(_: object) -> None:
        raise ConflictError("no")

    applied: list[int] = []
    with pytest.raises(ConflictError):
        engine.change(Change(lambda _: applied.append(1), prepare=refuse))
    assert not applied and engine.failed is None


def test_a_change_that_fails_of_itself_before_it_has_begun_ends_nobody_elses(engine: Engine) -> None:
    """E4: whatever it was; only its maker hears of it."""
    device = engine.open_device(1, SIZE, read_only=False)
    write(engine, device, b"kept", 0)

    def fail(_: object) -> None:
        raise OverflowError("a number that nothing can hold")

    applied: list[int] = []
    with pytest.raises(OverflowError):
        engine.change(Change(lambda _: applied.append(1), prepare=fail))
    engine.commit()
    assert not applied and engine.failed is None and device.pread(4, 0) == b"kept"


def test_a_full_half_forces_a_commit(disks: tuple[MemoryDevice, MemoryDevice], tmp_path: Path) -> None:
    with running(*disks, tmp_path / "dirty", capacity=64) as engine:
        device = engine.open_device(1, 150 * BLOCK, read_only=False)
        for block in range(150):
            within(20, lambda: write(engine, device, b"x", block * BLOCK))  # noqa: B023 - it ends before the next turn
        assert engine.commit_count >= 2 and engine.dirty.count <= 64
        with engine.gate.writing():
            for block in range(150):
                device.discard(block * BLOCK, BLOCK)
    assert_sound(disks[0])


def test_opening_replays_what_a_dead_owner_answered(disks: tuple[MemoryDevice, MemoryDevice], tmp_path: Path) -> None:
    with running(*disks, tmp_path / "dirty") as engine:
        device = engine.open_device(1, SIZE, read_only=False)
        write(engine, device, b"a" * BLOCK, 0)
        engine.commit()
        write(engine, device, b"b" * 9, BLOCK)
        with engine.gate.writing():
            device.discard(0, BLOCK)
        metadata, data = (MemoryDevice(content=disk.content()) for disk in disks)
        shutil.copy(tmp_path / "dirty", tmp_path / "left")
    again, replayed = open_engine(metadata, data, tmp_path / "left")
    assert replayed == 2 and again.given_up_count == 0
    device = again.open_device(1, SIZE)
    assert device.pread(3, 0) == bytes(3) and device.pread(10, BLOCK) == b"b" * 9 + b"\0"
    again.close()
    assert_sound(metadata)
    again, replayed = open_engine(metadata, data, tmp_path / "left")
    assert replayed == 0
    again.close()


def test_opening_refuses_what_doesnt_belong_together(disks: tuple[MemoryDevice, MemoryDevice], tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="data device"):
        open_engine(disks[0], MemoryDevice(BLOCK), tmp_path / "dirty")
    with running(*disks, tmp_path / "dirty") as engine:
        write(engine, engine.open_device(1, SIZE, read_only=False), b"b" * 9, BLOCK)
        shutil.copy(tmp_path / "dirty", tmp_path / "left")
    with pytest.raises(DamageError, match="another state") as refused:
        open_engine(*disks, tmp_path / "left")
    assert refused.value.exit_code == 3


def test_nothing_hangs_on_an_engine_that_is_closed(disks: tuple[MemoryDevice, MemoryDevice], tmp_path: Path) -> None:
    with running(*disks, tmp_path / "dirty") as engine:
        pass
    with pytest.raises(ReplicatorError, match="closed"):
        within(10, engine.commit)
    with pytest.raises(ReplicatorError, match="closed"):
        within(10, lambda: engine.change(Change(lambda _: None)))


def test_what_a_write_copied_is_void_when_the_block_is_zeroed_meanwhile(engine: Engine) -> None:
    """W2: zeros of a whole block, answered while a page of it is written, aren't undone by the rest of that copy."""
    device = engine.open_device(1, SIZE, read_only=False)
    write(engine, device, b"a" * BLOCK, 0)
    cut(engine, 1, 2)
    read, zeroed = device.engine.data.pread_into, list[bool]()

    def reading(target: bytearray, offset_bytes: int) -> None:
        read(target, offset_bytes)
        if not zeroed:
            zeroed.append(True)
            device.write_zeroes(0, BLOCK)

    device.engine.data.pread_into = reading  # type: ignore[method-assign, assignment] # between copy and record
    write(engine, device, b"b" * 4096, 8192)
    device.engine.data.pread_into = read  # type: ignore[method-assign] # as it was
    assert zeroed and device.pread(BLOCK, 0) == bytes(8192) + b"b" * 4096 + bytes(BLOCK - 12288)


def test_a_large_trim_goes_in_pieces(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """P4: with a commit after each, so that none is long; small ones and empty volumes don't."""
    monkeypatch.setattr(device_module, "TRIM_LEAVES", 1)
    monkeypatch.setattr(device_module, "_TRIM_BLOCKS", 4)
    device = engine.open_device(1, 3000 * BLOCK, read_only=False)
    blocks = engine.space.take(600)
    keys = np.arange(600, dtype=np.uint64)
    engine.change(Change(lambda metadata: metadata.map(1, keys, blocks), fills=(1,), weight=600))
    commits, pieces, unmap = engine.commit_count, list[tuple[int, int]](), engine.publish_unmapped

    def publish(device: ThinDevice, begin: int, end: int) -> bool:
        pieces.append((begin, end))
        return unmap(device, begin, end)

    monkeypatch.setattr(engine, "publish_unmapped", publish)
    with engine.gate.writing():
        device.discard(BLOCK, 2998 * BLOCK)
        device.discard(0, BLOCK)
    assert engine.commit_count == commits + 2  # three leaves
    assert [end for _, end in pieces] == [200, 400, 2999, 1] and [begin for begin, _ in pieces] == [1, 200, 400, 0]
    assert not any(device.entry(block) for block in range(3000))
    pieces.clear()
    with engine.gate.writing():
        device.discard(0, 3000 * BLOCK)
    engine.commit()
    with engine.gate.writing():
        device.discard(0, 3000 * BLOCK)
    assert pieces[-1] == (0, 3000)


def test_concurrent_flushes_share_commits(engine: Engine) -> None:
    device = engine.open_device(1, 64 * BLOCK, read_only=False)

    def client(number: int) -> None:
        for turn in range(10):
            write(engine, device, bytes([turn]), number * BLOCK)
            engine.commit()

    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads) and engine.commit_count <= 8


def test_a_device_that_is_deleted_while_it_is_dirty_harms_nobody(engine: Engine) -> None:
    engine.change(Change(lambda metadata: metadata.create_thin(2)))
    device = engine.open_device(2, SIZE, read_only=False)
    engine.change(Change(lambda metadata: metadata.delete(2), deletes=True))
    write_quietly(engine, device)
    engine.commit()
    assert engine.failed is None and engine.metadata.dev_ids() == [1]


def write_quietly(engine: Engine, device: ThinDevice) -> None:
    """A record of a device that its owner forgot to close."""
    block = engine.space.take_one()
    with engine.gate.writing():
        assert engine.publish(device, 0, block)


# -- what is admitted ------------------------------------------------------------------------------------------


def shape(free: int) -> PoolShape:
    return PoolShape(free, 20_000, 2, 3, 300, 1, 1, 10_000, 1)


@pytest.mark.parametrize("free", [0, 30, 60, 100, 150, 300, 1000, 100_000])
def test_two_sets_and_a_delete_always_fit(free: int) -> None:
    pool, admission = shape(free), Admission(65536)
    admission.idle(pool, Opened())
    for first in {admission.write_limit, admission.trim_limit} - {-1}:
        assert pool.worst_case(first) <= free
        admission.frozen(pool, Opened(), first, 0)
        for second in (admission.write_limit, admission.trim_limit):
            assert second < 0 or pool.worst_case(first) + pool.worst_case(second) < free
    admission.idle(pool, Opened())
    assert admission.write_limit <= admission.trim_limit <= 65536
    if admission.write_limit >= 0:
        left = shape(free - pool.worst_case(admission.write_limit))
        assert Admission.fits(left, KEPT_WEIGHT, may_use_kept=True)


def test_a_device_that_is_opened_counts_whatever_was_judged_before_or_comes_after() -> None:
    """A2: the shape of a set that is being committed, or of the end of a commit, was looked at without it."""
    alone, with_it, late = Admission(65536), Admission(65536), Opened(1, 60_000)
    small = PoolShape(4000, 80_000, 3, 300, 400, 1, 1, 20, 1)
    large = replace(small, mapped_blocks=60_020, trees=2)
    judgements: list[Callable[[Admission, PoolShape, Opened], None]] = [
        lambda admission, shape, seen: admission.idle(shape, seen),
        lambda admission, shape, seen: admission.frozen(shape, seen, 5, 1),
    ]
    for judge in judgements:
        admission = Admission(65536)
        judge(alone, small, Opened())
        judge(with_it, large, Opened())
        judge(admission, small, Opened())
        admission.device_opened(late.mapped_blocks)
        told = [(admission.write_limit, admission.trim_limit)]
        judge(admission, small, Opened())  # what the committer had looked at before
        told.append((admission.write_limit, admission.trim_limit))
        judge(admission, large, late)  # and what it looks at now
        told.append((admission.write_limit, admission.trim_limit))
        assert told == [(with_it.write_limit, with_it.trim_limit)] * 3
        assert with_it.write_limit < alone.write_limit
