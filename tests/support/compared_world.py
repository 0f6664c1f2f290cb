"""A source host, a log in memory, and what the volume held at each N: for transactions that are found by comparing."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from agent.context import Context
from agent.cut import GroupPublisher
from agent.rows import let_go, switched
from replicator.events.bodies import (
    TransactionBegan,
)
from replicator.log.object_log import ObjectLog
from replicator.units import CHUNK_BYTES, MIB
from tests.support.agent_world import VOLUME, Replica, SourceHost, context_of
from tests.support.manual_clock import ManualClock
from tests.support.memory_objects import MemoryStore

SIZE = 5 * MIB + 512


def change(host: SourceHost, round_number: int) -> None:
    rng = random.Random(round_number)
    size = host.pool.view().volume(VOLUME).size_bytes
    for _ in range(6):
        length = rng.randrange(1, 60_000)
        host.write(rng.randrange(size - length), rng.randbytes(length))
    host.write(CHUNK_BYTES * rng.randrange(size // CHUNK_BYTES - 2), bytes(CHUNK_BYTES))
    host.discard(CHUNK_BYTES * rng.randrange(size // CHUNK_BYTES - 2), 2 * CHUNK_BYTES)


class World:
    """A host, a log in memory, and what the volume held at each N."""

    def __init__(self, folder: Path, origin: Path | None = None) -> None:
        self.host = SourceHost(folder, size_bytes=24 * MIB)
        self.store = MemoryStore()
        self.log = ObjectLog(self.store, create=True)
        self.host.create("disk", SIZE, origin=origin)
        self.context = context_of(self.host, self.log, ManualClock())
        self.expected: dict[int, bytes] = {}

    def publish(self, *seeds: int, context: Context | None = None) -> None:
        """Rounds, each with changes of its own."""
        publisher = GroupPublisher(context or self.context, [VOLUME])
        for seed in seeds:
            change(self.host, seed)
            done = publisher.round()
            committed = done.tails[VOLUME].committed
            assert committed is not None
            self.expected[committed.number] = self.host.content()
        publisher.close()

    def let_go(self) -> None:
        """The pool keeps no base."""
        switched(self.host.pool, lambda view: let_go(view, [VOLUME]))
        assert not self.host.pool.view().snapshots

    def began(self, timeline: int = 1) -> list[TransactionBegan]:
        events = self.log.reader(VOLUME, timeline).read(1)
        return [event.body for event in events if isinstance(event.body, TransactionBegan)]

    def check(self) -> Replica:
        """The stream is what the source held, and the pool agrees with it."""
        replica = Replica.of(self.log)
        assert replica.points == self.expected
        assert replica.content == self.host.content()
        view = self.host.pool.view()
        assert not view.prepared and not view.cuts
        (base,) = view.snapshots_of(VOLUME)
        committed = replica.checker.state.committed
        assert committed is not None and (base.number, base.digest) == (committed.number, committed.digest)
        return replica


def leave_open(world: World) -> None:
    """Transaction 2 is in the log in part."""
    clock = ManualClock()
    change(world.host, 2)
    publisher = GroupPublisher(replace(world.context, clock=clock, tell=clock.stop), [VOLUME])
    with suppress(Exception):
        publisher.round()
    publisher.sync()
    publisher.close()
    assert world.log.reader(VOLUME, 1).tail().open is not None
