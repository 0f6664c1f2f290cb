"""`kill -9` of the exporter under load, again and again: nothing that was answered is lost (P1b), nothing is torn (P3).

A client writes all the time, sixteen requests deep, and never flushes; another cuts, deletes and flushes, so that kills
fall into commits. After each kill the pool is opened here, and the volume must be an exact prefix of the client's
writes up to what was answered. How many requests were in flight at each kill is printed: a kill with none proves
nothing, and fails.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from replicator.cli.demo_writer import Writer, counter
from replicator.errors import ReplicatorError
from replicator.pool import volumes
from replicator.pool.catalogue_schema import Snapshot
from replicator.pool.creation import PoolPlan, create_pool
from replicator.pool.opening import OwnedPool, own_pool
from replicator.pool.remote import RemotePool
from replicator.thin.check import check
from replicator.units import MIB, PAGE_BYTES
from tests.support.crash_knowledge import rows_of
from tests.support.forked_exporters import exporters
from tests.support.judges import assert_clean, require

VOLUME_BYTES = 6 * MIB + 5 * PAGE_BYTES  # not a multiple of a block
ANSWERS_BETWEEN_KILLS = (5, 220)
SPIN_LIMIT = 50_000_000


class Manager(threading.Thread):
    """Cuts, flushes and deletes through the control socket, whoever has the pool; a dying owner's errors are normal."""

    def __init__(self, pool: Path) -> None:
        super().__init__(name="manager", daemon=True)
        self.pool, self.done, self.refused = pool, 0, 0
        self.stopping = threading.Event()

    def has_done(self, count: int) -> bool:
        """Whether so many rounds are done."""
        return self.done >= count

    def run(self) -> None:
        while not self.stopping.is_set():
            try:
                with RemotePool(self.pool) as pool:
                    self._work(pool)
            except (ReplicatorError, OSError):
                self.refused += 1
                self.stopping.wait(0.005)

    def _work(self, pool: RemotePool) -> None:
        while not self.stopping.is_set():
            kept = [row.name for row in pool.view().snapshots if row.name and not row.hidden]
            for name in kept[:-1]:
                volumes.delete_snapshot(pool, name)
            number = max((int(name[1:]) for name in kept), default=0) + 1
            volumes.create_snapshot(pool, "vm1", f"s{number}")
            pool.flush()
            self.done += 1


@pytest.mark.long
def test_fifty_kills_under_load(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path, 50)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_five_hundred_kills_under_load(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path, 500)


def kill_again_and_again(folder: Path, kill_count: int) -> None:
    require("thin-cpp", "thin-rust")
    chance, pool, image = random.Random(kill_count), folder / "pool", folder / "before.img"
    image.write_bytes(counter(0) + os.urandom(VOLUME_BYTES - PAGE_BYTES))
    make_pool(pool, image)
    writer = Writer(f"nbd+unix:///vm1?socket={folder}/nbd.sock", range(VOLUME_BYTES // PAGE_BYTES), image)
    manager, in_flight, replayed = Manager(pool), list[int](), list[int]()
    with exporters(pool, f"unix:{folder}/nbd.sock") as started:
        pid = started.start()
        writer.start()
        manager.start()
        for number in range(kill_count):
            cuts = manager.done + number % 2  # every other kill comes with a cut or a deletion just done, or under way
            in_flight.append(
                await_load(writer, chance.randrange(*ANSWERS_BETWEEN_KILLS), partial(manager.has_done, cuts))
            )
            started.kill(pid)
            replayed.append(prove(pool, writer, folder / "found.img"))
            pid = started.start()
        manager.stopping.set()
        manager.join()
        writer.stop()
        started.stop(pid)
    prove(pool, writer, folder / "found.img")
    assert_clean(pool / "metadata")
    print(f"\n{kill_count} kills, requests in flight at each: {in_flight}")
    print(f"changes replayed after each: {replayed}")
    print(f"{writer.figures.answered} writes answered in {writer.figures.rounds} rounds, {manager.done} cuts meanwhile")
    assert all(in_flight), "a kill with nothing in flight proves nothing"
    assert writer.figures.reconnected >= kill_count and manager.done and any(replayed)


def make_pool(path: Path, image: Path) -> None:
    """A pool whose volume vm1 holds what `image` holds."""
    create_pool(path, PoolPlan(size_bytes=32 * MIB))
    with own_pool(path) as pool:
        row = volumes.create_volume(pool, "vm1", VOLUME_BYTES)
        device = pool.open_live(row.dev_id, row.size_bytes, None)
        with pool.engine.gate.writing():
            device.pwrite(image.read_bytes(), 0)


def await_load(writer: Writer, answers: int, too: Callable[[], bool]) -> int:
    """Until so many more writes were answered, what `too` says is so, and some are in flight: how many."""
    until = writer.figures.answered + answers
    for _ in range(SPIN_LIMIT):
        assert writer.failed is None, writer.failed
        if writer.figures.answered >= until and too() and (in_flight := writer.in_flight):
            return in_flight
    raise AssertionError("the writer came to a standstill")


def prove(path: Path, writer: Writer, found: Path) -> int:
    """Open the pool as its next owner, hold volume and snapshots against the writer; how much was replayed."""
    known = writer.figures.rounds
    with own_pool(path) as pool:
        rounds = Counter[str]()
        for row in rows_of(pool.view()):
            if isinstance(row, Snapshot) and (row.hidden or not row.name):
                continue
            found.write_bytes(content_of(pool, row.dev_id, row.size_bytes))
            proof = writer.prove(found)
            assert proof.ok, f"{row.name}: {proof.why}"
            rounds[row.name] = proof.round_
        assert rounds["vm1"] >= known, f"round {known} was answered, {rounds['vm1']} is there"
        assert max(rounds.values()) == rounds["vm1"], "a snapshot is newer than its volume"
        replayed = pool.status().replayed
        report = check(pool.engine.metadata.store.device)
    assert report.findings == (), [str(each) for each in report.findings]
    return replayed


def content_of(pool: OwnedPool, dev_id: int, size_bytes: int) -> bytes:
    """All of a device, as it is durable: the opening has committed what it replayed."""
    return pool.engine.open_device(dev_id, size_bytes).pread(size_bytes, 0)
