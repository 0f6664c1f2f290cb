"""Pools that our engine and a real kernel write in turns: each goes on where the other stopped, and both read the same.

What must hold is known beforehand (tests.support.thin_sessions): neither engine is asked what the other wrote.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from replicator.blockdev.file import FileDevice
from replicator.errors import DamageError
from replicator.pool.opening import grow_pool, own_pool
from replicator.thin.mapping import TIME_LIMIT, times
from replicator.thin.metadata import TIME_CAP
from replicator.thin.opening import open_engine
from replicator.thin.superblock import read_superblock
from replicator.thin.view import PoolView
from replicator.units import KIB, MIB
from tests.support import kernel
from tests.support.golden import KernelPool
from tests.support.kernel_turns import BLOCK, Message, Pool, assert_sound
from tests.support.thin_hands import EngineHand
from tests.support.thin_sessions import Model, Recorder, Session, guest_script, held_root, seen

SIZE = 20 * MIB + 4096 + 512  # more than a leaf's 252 blocks, and a last block that is short
SMALL = 2 * MIB
ROUNDS = 3

pytestmark = pytest.mark.usefixtures("thin_judges")


def test_our_pool_is_continued_by_the_kernel_and_by_us_in_turns(guest: kernel.Kernel, tmp_path: Path) -> None:
    """Each grows the pool once. When the kernel changes the transaction id, our catalogue is that of another state."""
    pool = Pool(tmp_path / "pool", seed=1)
    with pool.ours() as (_, session):
        for size in (SIZE, SIZE - BLOCK, SMALL):
            session.create(size)
        session.steps(60)
    pool.kernel(guest, 60)
    with pool.ours() as (hand, session):
        grow_pool(hand.pool, data_bytes=104 * MIB, metadata_bytes=5 * MIB)
        session.steps(60)
    pool.lengthen(112 * MIB, 6 * MIB)  # the kernel goes on with whatever length it finds
    pool.kernel(guest, 60)
    with pool.ours() as (hand, session):
        status = hand.pool.status()
        assert (status.data_blocks * BLOCK, status.metadata_blocks * 4096) == (112 * MIB, 6 * MIB)
        session.steps(60)
    with FileDevice(pool.path / "metadata", read_only=True) as device:
        current = read_superblock(device).transaction_id
    pool.kernel(guest, end=(("set_transaction_id", current, current + 1),))
    before = (pool.path / "metadata").read_bytes()
    with pytest.raises(DamageError):
        own_pool(pool.path)
    assert (pool.path / "metadata").read_bytes() == before


def test_a_metadata_snapshot_is_released_by_the_other_engine(guest: kernel.Kernel, tmp_path: Path) -> None:
    """Ours by the kernel, the kernel's by us, and both write under it; in larger blocks, too."""
    pool = Pool(tmp_path / "pool", seed=2, block_bytes=256 * KIB)
    with pool.ours() as (hand, session):
        session.create(SIZE)
        session.fill()
        session.snapshot()
        ours = hand.pool.set_metadata_snapshot(True)
        session.steps(30)
    first = pool.kernel(guest, 15, end=(("release_metadata_snap",), ("reserve_metadata_snap",)))
    assert held_root(first.status_before) == ours
    theirs = held_root(first.status_after)
    frozen = pool.mappings(PoolView.held)
    assert frozen == pool.mappings(PoolView.live)
    with pool.ours() as (hand, session):
        assert hand.pool.status().held_root == theirs
        session.steps(30)
        hand.pool.flush()
        assert pool.mappings(PoolView.held) == frozen != pool.mappings(PoolView.live)
        assert hand.pool.set_metadata_snapshot(False) == 0
        session.steps(10)
    assert held_root(pool.kernel(guest).status_before) == 0


def test_held_roots_come_and_go_on_both_sides_for_rounds(guest: kernel.Kernel, tmp_path: Path) -> None:
    """Chance says when; whoever finds one that the other has taken writes, cuts, trims and deletes beneath it."""
    pool, chance = Pool(tmp_path / "pool", seed=4, devices_max=4), random.Random(118)
    holder, taken, kept = "", {"ours": 0, "theirs": 0}, {"ours": 0, "theirs": 0}
    with pool.ours() as (_, session):
        for size in (SIZE, SMALL):
            session.create(size)
        session.steps(20)
    for mine in ("ours", "theirs") * ROUNDS:
        found, before = holder, pool.mappings(PoolView.held) if holder else {}
        changes = []  # True: take it
        for _ in range(chance.choice((0, 1, 2, 3))):
            changes.append(not holder)
            holder = "" if holder else mine
        if mine == "theirs":
            words: list[Message] = [("reserve_metadata_snap" if take else "release_metadata_snap",) for take in changes]
            said = pool.kernel(guest, 40, amid=words)
            held = [bool(held_root(line)) for line in (said.status_before, said.status_after)]
            assert held == [bool(found), bool(holder)]
        else:
            with pool.ours() as (hand, session):
                for take in changes:
                    session.steps(40 // (len(changes) + 1))
                    hand.pool.set_metadata_snapshot(take)
                session.steps(40 // (len(changes) + 1))
        taken[mine] += len(changes)
        if found and not changes:
            assert pool.mappings(PoolView.held) == before != pool.mappings(PoolView.live)
            kept[mine] += found != mine
    assert min(taken.values()) >= 2 and min(kept.values()) >= 1, (taken, kept)
    print(f"{2 * ROUNDS} turns; roots taken or released {taken}, found and left as they were {kept}")


@pytest.mark.parametrize("start", [TIME_CAP, pytest.param(TIME_LIMIT - 100, marks=pytest.mark.soak)])
def test_the_kernel_goes_on_where_our_snapshot_counter_stands_still(
    guest: kernel.Kernel, tmp_path: Path, start: int
) -> None:
    """New mappings of ours have time 0 there; the kernel counts on, and we go on after it."""
    pool = Pool(tmp_path / "pool", seed=5)
    with pool.ours() as (hand, session):
        session.create(3 * SMALL + 512)
        session.create(SMALL)
        session.fill()
        with hand.engine.lock:
            metadata = hand.engine.metadata
            metadata.superblock = replace(metadata.superblock, time=start)
        session.snapshot(1)
        session.steps(20)
        session.snapshot(1)
        session.steps(40)
        assert hand.engine.metadata.time_is_capped
    assert clock(pool) == start + 1
    with FileDevice(pool.path / "metadata", read_only=True) as device:
        view = PoolView.live(device)
        found = [times(values) for entry in view.devices() for _, values in view.mappings(entry.root)]
    without = sum(int((each == 0).sum()) for each in found)
    pool.kernel(guest, 40)
    theirs = clock(pool)
    with pool.ours() as (hand, session):
        session.snapshot(1)
        session.steps(40)
    ours = clock(pool)
    assert without and start + 1 < theirs < ours <= theirs + 1
    print(f"{without} mappings with time 0; the counter {start} -> {start + 1} (ours) -> {theirs} (theirs) -> {ours}")


def test_an_external_origin_shines_through_for_both(guest: kernel.Kernel, tmp_path: Path) -> None:
    """It ends within a block; volumes end before it, beyond it; what is trimmed shows it again."""
    origin = tmp_path / "base"
    origin.write_bytes(random.Random(6).randbytes(4 * MIB + 4096 + 512))
    pool = Pool(tmp_path / "pool", seed=6, origin=origin)
    with pool.ours() as (_, session):
        for size in (6 * MIB + 512, SMALL):
            session.create(size)
        session.steps(30)
    pool.kernel(guest, 40)
    with pool.ours() as (_, session):
        session.steps(20)
    assert origin.read_bytes() == random.Random(6).randbytes(4 * MIB + 4096 + 512)


def clock(pool: Pool) -> int:
    """The superblock's snapshot counter."""
    with FileDevice(pool.path / "metadata", read_only=True) as device:
        return read_superblock(device).time


def test_the_kernel_reads_what_we_wrote_into_its_pool(
    guest: kernel.Kernel, tmp_path: Path, kernel_pool_a: KernelPool
) -> None:
    """A pool without a catalogue, with a metadata snapshot of its own, which stays."""
    facts = kernel_pool_a.facts["checkpoints"]["final"]["devices"]
    sizes = {int(dev_id): int(device["status"].split()[1]) * 512 for dev_id, device in facts.items()}
    block_bytes = kernel_pool_a.facts["data_block_sectors"] * 512
    paths = [kernel_pool_a.metadata, kernel_pool_a.data]
    model, rng = Model(), random.Random(3)
    with FileDevice(paths[0]) as metadata, FileDevice(paths[1]) as data:
        engine, _ = open_engine(metadata, data, tmp_path / "dirty")
        try:
            for dev_id, size in sizes.items():
                model.devices[dev_id] = bytearray(engine.open_device(dev_id, size).pread(size, 0))
            assert model.hashes() == {int(dev_id): device["sha256"] for dev_id, device in facts.items()}
            hand = EngineHand(engine, sizes)
            Session(rng, model, hand, block_bytes, devices_max=12).steps(60)
            assert hand.hashes() == model.hashes()
        finally:
            engine.close()
    assert_sound(paths[0])
    recorder, before = Recorder(set(model.devices)), model.hashes()
    sizes = model.sizes()
    Session(rng, model, recorder, block_bytes, devices_max=12).steps(25)
    result = seen(guest.boot(guest_script(sizes, recorder.orders, block_bytes // 512), paths).output)
    assert result.before == before
    assert result.after == model.hashes()
    assert held_root(result.status_after) == kernel_pool_a.facts["superblock"]["held_root"]
    assert_sound(paths[0])
