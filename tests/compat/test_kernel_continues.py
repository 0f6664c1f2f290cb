"""Pools that our engine and a real kernel write in turns: each goes on where the other stopped, and both read the same.

What must hold is known beforehand (tests.support.thin_sessions): neither engine is asked what the other wrote.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from replicator.blockdev.file import FileDevice
from replicator.errors import DamageError
from replicator.pool.creation import PoolPlan, create_pool
from replicator.pool.opening import own_pool
from replicator.thin.check import check
from replicator.thin.opening import open_engine
from replicator.thin.superblock import read_superblock
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

    def __init__(self, path: Path, seed: int) -> None:
        self.path, self.model, self.rng = path, Model(), random.Random(seed)
        create_pool(path, PoolPlan(size_bytes=96 * MIB, metadata_bytes=4 * MIB))

    @contextmanager
    def ours(self) -> Iterator[tuple[PoolHand, Session]]:
        """A turn of ours: what is there is sound and reads as it must; so it is at the end."""
        assert_sound(self.path / "metadata")
        with own_pool(self.path) as pool:
            hand = PoolHand(pool.engine, self.model.sizes(), pool)
            assert pool.facts(()).keys() == self.model.devices.keys()
            assert hand.hashes() == self.model.hashes()
            yield hand, Session(self.rng, self.model, hand, BLOCK)
            assert hand.hashes() == self.model.hashes()
        assert_sound(self.path / "metadata")

    def kernel(self, guest: kernel.Kernel, steps: int = 0, *, end: tuple[tuple[str | int, ...], ...] = ()) -> Seen:
        """A turn of the kernel's: it reads all, goes `steps` on, takes messages, and reads all again."""
        sizes, before = self.model.sizes(), self.model.hashes()
        recorder = Recorder(set(sizes))
        Session(self.rng, self.model, recorder, BLOCK).steps(steps)
        for words in end:
            recorder.message(*words)
        output = guest.boot(guest_script(sizes, recorder.orders), [self.path / "metadata", self.path / "data"]).output
        result = seen(output)
        assert result.before == before
        assert result.after == self.model.hashes()
        assert_sound(self.path / "metadata")
        return result


def test_our_pool_is_continued_by_the_kernel_and_by_us_in_turns(guest: kernel.Kernel, tmp_path: Path) -> None:
    pool = Pool(tmp_path / "pool", seed=1)
    with pool.ours() as (_, session):
        for size in (SIZE, SIZE - BLOCK, SMALL):
            session.create(size)
        session.steps(60)
    for _ in range(2):
        pool.kernel(guest, 60)
        with pool.ours() as (_, session):
            session.steps(60)
    with FileDevice(pool.path / "metadata", read_only=True) as device:
        current = read_superblock(device).transaction_id
    pool.kernel(guest, end=(("set_transaction_id", current, current + 1),))
    with pytest.raises(DamageError):
        own_pool(pool.path)
