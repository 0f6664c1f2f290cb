"""The process or the machine dies at each step of a workload: the pool opens, is sound, and holds what was answered.

Each crash is the instant before one operation of one of the two disks. A dead process leaves every write and the dirty
file as it was; a power cut leaves what was flushed, a choice of the later writes, and no dirty file.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from replicator.thin import space
from tests.support.engine_workload import BASE, DATA_BLOCKS, SIZE, Workload, reopen
from tests.support.enginerig import BLOCK, Knowledge, assert_sound, formatted, running, write
from tests.support.recording import Journal

OTHER_BOOT = bytes(range(16))


def record(tmp_path: Path, seed: int, steps: int) -> Journal:
    """The journal of a workload that ends without a crash."""
    dirty = tmp_path / "live"
    journal = Journal(watch=lambda: dirty.read_bytes() if dirty.exists() else b"")
    metadata = journal.device("metadata", formatted(4 << 20, DATA_BLOCKS).content())
    data = journal.device("data", random.Random(seed).randbytes(DATA_BLOCKS * BLOCK))  # old content must never show
    with running(metadata, data, dirty) as engine:
        workload = Workload(engine, journal, seed)
        journal.at_flush = workload.during_commit
        for _ in range(steps):
            workload.step()
        journal.at_flush = lambda _: None
    assert_sound(metadata)
    return journal


@pytest.fixture(autouse=True)
def small_stock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data blocks come by fours, so that what was freed too early would be given again at once."""
    monkeypatch.setattr(space, "STOCK_BLOCKS", 4)


def crash_everywhere(tmp_path: Path, seed: int, steps: int) -> None:
    chance, journal = random.Random(seed), record(tmp_path, seed, steps)
    seen: object = None
    for crash in journal.crashes():
        same = crash.number > 0 and journal.steps[crash.number - 1].data == b"" and (crash.note, crash.seen) == seen
        seen = crash.note, crash.seen
        if same:  # a read, with nothing noted or written since the last crash
            continue
        dirty = tmp_path / "dirty"
        dirty.write_bytes(crash.seen)
        reopen(crash.note, crash.dead_process("metadata"), crash.dead_process("data"), dirty, power_cut=False)
        dirty.write_bytes(crash.seen and crash.seen[:16] + OTHER_BOOT + crash.seen[32:])
        reopen(crash.note, crash.power_cut("metadata", chance), crash.power_cut("data", chance), dirty, power_cut=True)


@pytest.mark.parametrize("seed", range(3))
def test_a_crash_at_each_step_loses_nothing_that_was_promised(tmp_path: Path, seed: int) -> None:
    crash_everywhere(tmp_path, seed, 40)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 116))
def test_a_crash_at_each_step_of_a_long_run(tmp_path: Path, seed: int) -> None:
    crash_everywhere(tmp_path, seed, 200)


def test_a_freed_block_isnt_given_again_before_its_commit_is_durable(tmp_path: Path) -> None:
    """P6, looked at from inside the commit: before each flush of it."""
    journal, seen = Journal(), list[tuple[str, int]]()
    metadata = journal.device("metadata", formatted(1 << 20, 4).content())
    data = journal.device("data", bytes(4 * BLOCK))
    with running(metadata, data, tmp_path / "dirty") as engine:
        device = engine.open_device(BASE, 4 * BLOCK, read_only=False)
        write(engine, device, b"x" * (4 * BLOCK), 0)
        engine.commit()
        with engine.gate.writing():
            device.discard(BLOCK, 2 * BLOCK)

        def look(name: str) -> None:
            engine.space.refill()
            seen.append((name, engine.space.stock_count))

        journal.at_flush = look
        engine.commit()
        assert seen == [("data", 0), ("metadata", 0), ("metadata", 0)] and engine.space.stock_count == 2
        journal.at_flush = lambda _: None


def test_the_rig_sees_a_lost_write() -> None:
    """The model can fail: one sector that nobody wrote is found."""
    knowledge = Knowledge({BASE: (bytes(SIZE),)})
    wrong = bytearray(SIZE)
    wrong[1000] = 1
    with pytest.raises(AssertionError, match="sectors \\[1\\]"):
        knowledge.explain({BASE: bytes(wrong)}, power_cut=True)
