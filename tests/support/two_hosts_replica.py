"""The replica of the simulation: a pool, and the real receiver's Follower for each volume.

It looks after each turn whether T1, T2 and T6 of two_hosts_truth hold.
"""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from dataclasses import dataclass, field
from uuid import UUID

from receiver.access import PoolAccess
from receiver.apply import ApplySettings
from receiver.follow import Follower, World
from receiver.retain import Retainer
from replicator.errors import ReplicatorError
from replicator.history.retention import DEFAULT_POLICY
from replicator.log.interface import Log
from replicator.pool.catalogue_schema import Position, Purpose, Role
from replicator.units import CHUNK_BYTES
from tests.support.two_hosts_line import Line
from tests.support.two_hosts_pool import DeadError, HostPool, Image
from tests.support.two_hosts_setting import Clock, Setting
from tests.support.two_hosts_truth import Named, Truth, Violation


class Turn:
    """A follower's patience: its first wait ends its turn."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.is_over = False

    def monotonic(self) -> float:
        """Seconds."""
        return self._clock.monotonic()

    def wait(self, seconds: float) -> bool:
        """Enough for now."""
        self._clock.advance(min(seconds, 1.0))
        self.is_over = True
        return True


@dataclass(slots=True)
class Following:
    """A follower's process for one volume, and what it met in its last turn."""

    follower: Follower
    line: Line
    log: Log
    turn: Turn
    met: list[ReplicatorError] = field(default_factory=list)


class ReplicaHost:
    """A replica."""

    def __init__(
        self, name: str, pool: HostPool, volumes: tuple[UUID, ...], settings: ApplySettings, setting: Setting
    ) -> None:
        self.name, self.pool, self.volumes, self._settings, self._setting = name, pool, volumes, settings, setting
        self.truth = setting.truth
        self.held: dict[UUID, Named | None] = dict.fromkeys(volumes)
        self.rotten: dict[UUID, set[int]] = {volume: set() for volume in volumes}
        self.was_rotten = False
        self.retainer = Retainer(DEFAULT_POLICY, setting.clock.now_ns)
        self.followings: dict[UUID, Following] = {}
        self.start()

    def start(self) -> None:
        """A new receiver process."""
        self.followings = {volume: self._following(volume) for volume in self.volumes}

    def _following(self, volume: UUID) -> Following:
        real, setting = self.pool.real, self._setting
        line = Line(lambda: self.pool.is_dead or self.pool.real is not real)
        log, turn = setting.connect(line), Turn(setting.clock)
        met: list[ReplicatorError] = []
        pool, disks = self.pool.pool(), self.pool.disks()
        pools = PoolAccess(lambda: pool, lambda _: nullcontext(disks))

        def report(_: str, __: UUID, error: ReplicatorError) -> None:
            met.append(error)

        world = World(
            pools,
            log,
            turn,
            setting.clock.now_ns,
            setting.chance.random,
            lambda: turn.is_over,
            self._settings,
            report,
        )
        return Following(Follower(world, volume, str(volume)), line, log, turn, met)

    def step(self, volume: UUID) -> list[ReplicatorError]:
        """One turn of the volume's follower; what it met. DeadError: the host died."""
        following = self.followings[volume]
        following.turn.is_over = False
        following.met.clear()
        following.follower.run()
        self.truth.counts["turns"] += 1
        if self.pool.is_dead:
            raise DeadError
        self.check(volume, following)
        return list(following.met)

    def reborn(self, *, image: Image | None = None) -> None:
        """The next owner opens what the last one left, or an older copy."""
        self.pool.reborn(image)
        if image is not None:
            self.held = {volume: self._named(volume) for volume in self.volumes}
        self.start()
        for volume in self.volumes:
            self.check(volume, None)
            self.check_points(volume)

    def position(self, volume: UUID) -> Position | None:
        """What the pool says was applied."""
        return self.pool.real.view().position(volume, Role.APPLIED)

    def _named(self, volume: UUID) -> Named | None:
        position = self.position(volume)
        if position is None or not position.number:
            return None
        named = self.truth.named.get(position.digest)
        if named is None or named.number != position.number or named.volume != volume:
            raise Violation(f"T1: {self.name} says that it holds {position.number}, which never stood")
        return named

    def check(self, volume: UUID, following: Following | None) -> None:
        """T1, T2."""
        named, held = self._named(volume), self.held[volume]
        if named is None:
            if held is not None:
                raise Violation(f"T2: {self.name} went back from {held.number} to nothing")
            return
        if held is not named:
            steps = _steps(self.truth, held, named)
            self.truth.counts["transactions applied"] += len(steps)
            self._heal(volume, steps)
            self.held[volume] = named
        row = self.pool.real.view().volume(volume)
        self._require_equal(volume, self.pool.committed(row.dev_id, row.size_bytes), named)
        until_ns = following.follower.progress.complete_to_ns if following else None
        if until_ns is not None and not self.rotten[volume] and not self.truth.was_anywhere(named, until_ns):
            raise Violation(f"T6: {self.name} says complete to {until_ns}, but holds {named.number} only")

    def check_points(self, volume: UUID) -> None:
        """T1, for every restore point that is a snapshot."""
        for each in self.pool.real.view().snapshots_of(volume, Purpose.POINT, hidden=True):
            if each.digest in self.truth.named and not self.was_rotten:
                found = self.pool.committed(each.dev_id, each.size_bytes)
                self._require_equal(volume, found, self.truth.named[each.digest])
                self.truth.counts["restore points compared"] += 1

    def _heal(self, volume: UUID, steps: list[Named]) -> None:
        """Chunks that a transaction touched were checked by their hashes: they must be right again."""
        for before, after in itertools.pairwise(steps):
            for chunk in list(self.rotten[volume]):
                part = slice(chunk * CHUNK_BYTES, (chunk + 1) * CHUNK_BYTES)
                if before.content[part] != after.content[part]:
                    self.rotten[volume].discard(chunk)

    def _require_equal(self, volume: UUID, found: bytes, named: Named) -> None:
        if found == named.content:
            return
        count = -(-max(len(found), len(named.content)) // CHUNK_BYTES)
        parts = [slice(chunk * CHUNK_BYTES, (chunk + 1) * CHUNK_BYTES) for chunk in range(count)]
        wrong = {chunk for chunk, part in enumerate(parts) if found[part] != named.content[part]}
        if len(found) != len(named.content) or wrong - self.rotten[volume]:
            raise Violation(f"T1: {self.name}, transaction {named.number}: chunks {sorted(wrong)} aren't its source's")


def _steps(truth: Truth, held: Named | None, named: Named) -> list[Named]:
    """The transactions from `held` to `named`, both ends, each on the one before it (T2)."""
    steps = [named]
    while steps[-1] is not held:
        base = steps[-1].base
        if base is None and held is None:
            return steps[::-1]
        if base is None or len(steps) > 100:
            raise Violation(f"T2: transaction {named.number} doesn't stand on what was held before")
        steps.append(truth.named[base])
    return steps[::-1]
