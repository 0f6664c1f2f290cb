"""Pools that our engine and a real kernel write in turns: each goes on where the other stopped, and both read the same.

What must hold is known beforehand (tests.support.thin_sessions): neither engine is asked what the other wrote.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from replicator.blockdev.file import FileDevice
from replicator.blockdev.interface import BlockDevice
from replicator.errors import DamageError
from replicator.pool.creation import PoolPlan, create_pool
from replicator.pool.opening import grow_pool, own_pool
from replicator.thin.check import check
from replicator.thin.opening import open_engine
from replicator.thin.superblock import read_superblock
from replicator.thin.view import PoolView
from replicator.units import KIB, MIB
from tests.support import judges, kernel
from tests.support.golden import KernelPool
from tests.support.thin_hands import EngineHand, PoolHand
from tests.support.thin_sessions import Model, Recorder, Seen, Session, guest_script, held_root, seen

BLOCK = 64 * KIB
SIZE = 20 * MIB + 4096 + 512  # more than a leaf's 252 blocks, and a last block that is short
SMALL = 2 * MIB

pytestmark = pytest.mark.usefixtures("thin_judges")


def assert_sound(metadata: Path) -> None:
    """Nobody finds anything: neither our own check, which recomputes every count, nor the two thin_checks."""
    with FileDevice(metadata, read_only=True) as device:
        report = check(device)
    assert report.findings == () and report.counts_compared, [str(finding) for finding in report.findings]
    judges.assert_clean(metadata)


class Pool:
    """One of our pools with what its devices must read as."""

    def __init__(self, path: Path, seed: int, block_bytes: int = BLOCK) -> None:
        self.path, self.model, self.rng, self.block_bytes = path, Model(), random.Random(seed), block_bytes
        create_pool(path, PoolPlan(size_bytes=96 * MIB, metadata_bytes=4 * MIB, block_bytes=block_bytes))

    @contextmanager
    def ours(self) -> Iterator[tuple[PoolHand, Session]]:
        """A turn of ours: what is there reads as it must; so it does at the end, and is sound."""
        with own_pool(self.path) as pool:
            hand = PoolHand(pool.engine, self.model.sizes(), pool)
            assert pool.facts(()).keys() == self.model.devices.keys()
            assert hand.hashes() == self.model.hashes()
            yield hand, Session(self.rng, self.model, hand, self.block_bytes)
            assert hand.hashes() == self.model.hashes()
        assert_sound(self.path / "metadata")

    def kernel(self, guest: kernel.Kernel, steps: int = 0, *, end: tuple[tuple[str | int, ...], ...] = ()) -> Seen:
        """A turn of the kernel's: it reads all, goes `steps` on, takes messages, and reads all again."""
        sizes, before = self.model.sizes(), self.model.hashes()
        recorder = Recorder(set(sizes))
        Session(self.rng, self.model, recorder, self.block_bytes).steps(steps)
        for words in end:
            recorder.message(*words)
        script = guest_script(sizes, recorder.orders, self.block_bytes // 512)
        result = seen(guest.boot(script, [self.path / "metadata", self.path / "data"]).output)
        assert result.before == before
        assert result.after == self.model.hashes()
        assert_sound(self.path / "metadata")
        return result

    def lengthen(self, data_bytes: int, metadata_bytes: int) -> None:
        """Make the devices longer, as somebody does who lets the kernel grow a pool."""
        os.truncate(self.path / "data", data_bytes)
        os.truncate(self.path / "metadata", metadata_bytes)

    def mappings(self, of: Callable[[BlockDevice], PoolView]) -> dict[int, list[object]]:
        """What each device maps, by the live or the held root."""
        with FileDevice(self.path / "metadata", read_only=True) as device:
            view = of(device)
            return {
                entry.dev_id: [(keys.tolist(), values.tolist()) for keys, values in view.mappings(entry.root)]
                for entry in view.devices()
            }


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
