"""A pool of ours that our engine and the real kernel work on in turns, with what its devices must read as.

What must hold is known beforehand (tests.support.thin_sessions): neither engine is asked what the other wrote.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from replicator.blockdev.file import FileDevice
from replicator.blockdev.interface import BlockDevice
from replicator.pool.creation import PoolPlan, create_pool
from replicator.pool.opening import own_pool
from replicator.pool.origins import identify_origin, open_origin
from replicator.thin.check import check
from replicator.thin.view import PoolView
from replicator.units import KIB, MIB
from tests.support import judges, kernel
from tests.support.thin_hands import PoolHand
from tests.support.thin_sessions import DEVICES_MAX, Hand, Model, Recorder, Seen, Session, guest_script, seen

BLOCK = 64 * KIB
Message = tuple[str | int, ...]


def assert_sound(metadata: Path) -> None:
    """Nobody finds anything: neither our own check, which recomputes every count, nor the two thin_checks."""
    with FileDevice(metadata, read_only=True) as device:
        report = check(device)
    assert report.findings == () and report.counts_compared, [str(finding) for finding in report.findings]
    judges.assert_clean(metadata)


class Pool:
    """One of our pools with what its devices must read as; all lie over `origin`, if there is one."""

    def __init__(
        self,
        path: Path,
        seed: int,
        block_bytes: int = BLOCK,
        *,
        origin: Path | None = None,
        devices_max: int = DEVICES_MAX,
    ) -> None:
        self.devices_max = devices_max
        self.path, self.model, self.rng, self.block_bytes = path, Model(), random.Random(seed), block_bytes
        self.origin, self._behind = origin, None if origin is None else identify_origin(str(origin))
        create_pool(path, PoolPlan(size_bytes=96 * MIB, metadata_bytes=4 * MIB, block_bytes=block_bytes))

    @contextmanager
    def ours(self) -> Iterator[tuple[PoolHand, Session]]:
        """A turn of ours: what is there reads as it must; so it does at the end, and is sound."""
        with ExitStack() as held, own_pool(self.path) as pool:
            origin = None if self._behind is None else open_origin(self._behind)
            if origin is not None:
                held.callback(origin.close)
            hand = PoolHand(pool.engine, self.model.sizes(), pool, self._behind, origin=origin)
            assert pool.facts(()).keys() == self.model.devices.keys()
            assert hand.hashes() == self.model.hashes()
            yield hand, self._session(hand)
            assert hand.hashes() == self.model.hashes()
        assert_sound(self.path / "metadata")

    def kernel(
        self, guest: kernel.Kernel, steps: int = 0, *, amid: Sequence[Message] = (), end: Sequence[Message] = ()
    ) -> Seen:
        """A turn of the kernel's: it reads all, goes `steps` on, and reads all again.

        The pool takes the messages `amid` between the steps, evenly spread, and those of `end` after them.
        """
        sizes, before = self.model.sizes(), self.model.hashes()
        recorder = Recorder(set(sizes))
        session = self._session(recorder)
        for words in amid:
            session.steps(steps // (len(amid) + 1))
            recorder.message(*words)
        session.steps(steps // (len(amid) + 1))
        for words in end:
            recorder.message(*words)
        script = guest_script(sizes, recorder.orders, self.block_bytes // 512, over_origin=self.origin is not None)
        devices = [self.path / "metadata", self.path / "data", *([self.origin] if self.origin else [])]
        result = seen(guest.boot(script, devices).output)
        assert result.before == before
        assert result.after == self.model.hashes()
        assert_sound(self.path / "metadata")
        return result

    def _session(self, hand: Hand) -> Session:
        behind = b"" if self.origin is None else self.origin.read_bytes()
        return Session(self.rng, self.model, hand, self.block_bytes, self.devices_max, behind)

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
