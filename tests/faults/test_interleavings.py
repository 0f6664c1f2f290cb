"""Every kind of work on the same and on neighbouring blocks at once, in interleavings that a seed chooses (P3, P6, P7).

The engine's own threads and locks run under a deterministic scheduler (tests/support/scheduler): a switch may come at
any line of it, at each lock, and in the middle of each read and write of the data. What each client saw is judged
against all orders that its operations may have had (tests/support/interleaved).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from replicator.blockdev.memory import MemoryDevice
from replicator.thin import space
from replicator.thin.opening import open_engine
from tests.support.enginerig import BLOCK, assert_sound, formatted
from tests.support.interleaved import SIZE, Client, History, Seen, tags_of
from tests.support.scheduler import DeadlockError, HalvingDevice, Lock, Scheduler, Thread, scheduled

VOLUMES = (1, 2)
DATA_BLOCKS = 20
SECTORS = BLOCK // 512
SPANS = (
    (0, 1),
    (0, SECTORS),
    (SECTORS // 2, SECTORS + SECTORS // 2),
    (SECTORS, 2 * SECTORS),
    (SECTORS - 1, SECTORS + 1),
)
SEEDS_A_PART = 25
Step = Callable[[Client], None]


@pytest.fixture(autouse=True)
def small_stock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data blocks come by twos, so that what was freed too early would be given again at once."""
    monkeypatch.setattr(space, "STOCK_BLOCKS", 2)


def steps_of(chance: random.Random, numbers: list[int]) -> list[Step]:
    """What one client does: one to three operations."""
    return [a_step(chance, numbers) for _ in range(chance.randint(1, 3))]


def a_step(chance: random.Random, numbers: list[int]) -> Step:
    volume, (begin, end) = chance.choice(VOLUMES), chance.choice(SPANS)
    kind = chance.choices("wrdcxf", (10, 6, 3, 3, 2, 2))[0]
    number = numbers.pop()
    if kind == "w":
        return lambda client: client.write(volume, begin, end, number)
    if kind == "r":
        return lambda client: client.read(volume, begin, end)
    if kind == "d":
        return lambda client: client.discard(volume, begin // SECTORS)
    if kind == "c":
        group = VOLUMES if chance.random() < 0.6 else (volume,)
        return lambda client: client.cut({each: 100 + number * 2 + place for place, each in enumerate(group)})
    return Client.delete_last_cut if kind == "x" else Client.commit


class Run:
    """One seed: pool, clients, and what they saw."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.chance, self.history, self.dirty = random.Random(seed), History(), folder / f"dirty-{seed}"

    def play(self) -> Scheduler:
        """From an empty pool to a closed one, judged."""
        empty = formatted(1 << 20, DATA_BLOCKS, VOLUMES).content()
        with scheduled(self.chance, self.chance.choice((0.005, 0.03, 0.1))) as scheduler:
            HalvingDevice.scheduler = scheduler
            self.metadata = MemoryDevice(content=empty)
            self.data = HalvingDevice(content=b"\xff" * (DATA_BLOCKS * BLOCK))  # old content never shows (P7)
            scheduler.run(lambda: self._scenario(scheduler))
        self.history.judge()
        assert_sound(self.metadata)
        self._judge_reopened()
        self.dirty.unlink()
        return scheduler

    def _scenario(self, scheduler: Scheduler) -> None:
        engine, _ = open_engine(self.metadata, self.data, self.dirty, dirty_capacity=64)
        first = Client(engine, scheduler, self.history, VOLUMES)
        numbers = list(range(40, 0, -1))
        for volume in VOLUMES:
            first.write(volume, 0, SECTORS * 2, numbers.pop())
        clients = []
        for _ in range(self.chance.randint(2, 4)):
            work = Client(engine, scheduler, self.history, VOLUMES).working(steps_of(self.chance, numbers))
            clients.append(Thread(scheduler, work, name="a client"))
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        for volume in VOLUMES:
            first.read(volume, 0, SIZE // 512)
        for cut in self.history.cuts:
            if all(each in engine.devices for each in cut.snapshots.values()):
                first.look_at(cut)
        engine.close()

    def _judge_reopened(self) -> None:
        """The same after closing and opening, without the scheduler."""
        data = MemoryDevice(content=self.data.content())
        engine, _ = open_engine(MemoryDevice(content=self.metadata.content()), data, self.dirty, dirty_capacity=64)
        try:
            for seen in self.history.reads[-len(VOLUMES) :]:
                again = tags_of(engine.open_device(seen.volume, SIZE).pread(SIZE, 0))
                assert (again == seen.tags).all()
        finally:
            engine.close()


@pytest.mark.parametrize("part", range(8))
def test_clients_at_once_see_only_what_some_order_gives(tmp_path: Path, part: int) -> None:
    switches = steps = 0
    for seed in range(part * SEEDS_A_PART, (part + 1) * SEEDS_A_PART):
        try:
            scheduler = Run(tmp_path, seed).play()
        except BaseException:
            print(f"seed {seed} of test_clients_at_once_see_only_what_some_order_gives")
            raise
        switches += scheduler.switches
        steps += scheduler.steps
    print(f"{SEEDS_A_PART} interleavings, {steps} lines of the engine, {switches} switches")


@pytest.mark.soak
@pytest.mark.parametrize("part", range(8))
def test_many_more_interleavings(tmp_path: Path, part: int) -> None:
    for seed in range(10**6 + part * 5_000, 10**6 + (part + 1) * 5_000):
        Run(tmp_path, seed).play()


def test_a_seed_gives_the_same_run_again(tmp_path: Path) -> None:
    runs = [Run(tmp_path, 3) for _ in range(2)]
    assert len({(each.switches, each.steps) for each in (run.play() for run in runs)}) == 1
    assert [run.history.writes for run in runs[:1]] == [run.history.writes for run in runs[1:]]


def test_the_scheduler_finds_a_deadlock() -> None:
    found = 0
    for seed in range(20):
        scheduler = Scheduler(random.Random(seed))
        locks = Lock(scheduler), Lock(scheduler)

        def crossing(first: Lock, second: Lock) -> None:
            with first, second:
                pass

        def scenario(scheduler: Scheduler = scheduler, locks: tuple[Lock, Lock] = locks) -> None:
            for one, other in (locks, locks[::-1]):
                Thread(scheduler, crossing, (one, other)).start()

        try:
            scheduler.run(scenario)
        except DeadlockError:
            found += 1
    assert 0 < found < 20


def test_the_judge_sees_a_torn_cut_and_an_overtaken_read() -> None:
    history = History()
    with pytest.raises(AssertionError, match="possible"):
        history.reads.append(Seen(1, 0, tags_of(bytes(512 - 8) + bytes(8)) + 7, 0, 1))
        history.judge()
