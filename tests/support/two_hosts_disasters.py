"""What befalls a world once, in the simulation of two hosts, and the errors that it explains from then on.

disaster            what happens                                        agents may meet        followers may meet
log-loses-end       acknowledged events are gone                        LostEnd, Voided        a gap, another history
  of an abort       the same, and the agent isn't who made it           PoolOlderError         -
log-damaged         flipped, torn or missing, until the end             SegmentError           SegmentError, LogGapError
stale-copy, rivals  a copy of the source's pool starts an agent         PoolOlder, Fenced      -
source-rolled-back  the source's pool becomes an older copy             PoolOlderError         -
both-put-back       the source's pool and the log do, of one instant    -                      a gap, another history
replica-rolled-back a replica's pool becomes an older copy              -                      TrimmedError
zombie              a second agent on one pool; the first goes on       FencedError            -
trimmed-ahead       the log is trimmed beyond a replica                 -                      TrimmedError
source-full         the source's pool has hardly any room               NoSpaceError           -
replica-full        a replica's pool has hardly any room                -                      RoomError, NoSpaceError
replica-rots        a bit of a replica's data turns over                -                      ChunkMismatchError
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from uuid import UUID

from replicator.events.bodies import TransactionBegan
from replicator.units import CHUNK_BYTES, PAGE_BYTES, PAGES_PER_CHUNK
from tests.support.two_hosts_pool import HostPool, Image
from tests.support.two_hosts_replica import ReplicaHost
from tests.support.two_hosts_source import SourceHost
from tests.support.two_hosts_truth import Stream, StreamKey

if TYPE_CHECKING:
    from tests.support.two_hosts import TwoHosts

DISASTERS = (
    "log-loses-end",
    "log-damaged",
    "stale-copy",
    "source-rolled-back",
    "replica-rolled-back",
    "trimmed-ahead",
    "zombie",
    "zombies",
    "readers-misled",
    "line-breaks-often",
    "source-dies-often",
    "replica-dies-often",
    "source-full",
    "replica-full",
    "replica-rots",
)
"""What a seed chooses from."""

SHARPER = ("rivals", "zombies-let-through", "segments-unseen")
"""Where a seed would seldom meet what is to be shown: two publishers whose calls alternate from early on, a
broker that fences nobody, and readers that see segments late or out of their order in most turns."""

WHOLE = ("both-put-back",)
"""What is no accident but a restore: the machine that held the source's pool and the log is set back."""

KINDS = {
    "readers-misled": "broker",
    "zombies-let-through": "broker",
    "segments-unseen": "objects",
    "rivals": "objects",
    "log-damaged": "objects",
}
"""The kind of log that a disaster means; a broker checks its own disks."""


class Disasters:
    """The disasters of one world: when each begins, and when it strikes."""

    def __init__(self, world: TwoHosts) -> None:
        self._world, self._chance = world, world.chance
        steps = world.plan.steps
        self._begins = {name: self._chance.randrange(steps) for name in world.plan.disasters}
        self._strikes = {name: self._chance.randrange(at, steps) for name, at in self._begins.items()}
        if "stale-copy" in self._begins and self._chance.random() < 0.6:
            self._strikes["stale-copy"] = self._begins["stale-copy"]  # a copy of what is there now: as good as it
        if "rivals" in self._begins:
            self._begins["rivals"] = self._strikes["rivals"] = 1  # there is a past to share by then, mostly
        if "both-put-back" in self._begins:
            self._begins["both-put-back"] = at = self._chance.randrange(1, 3)
            self._strikes["both-put-back"] = at + self._chance.randrange(2, 5)
        self._images: dict[str, tuple[str, Image]] = {}
        self._copies: tuple[Callable[[], None], dict[StreamKey, Stream]] | None = None
        if "source-full" in self._begins:
            world.licensed["agent"] |= {"NoSpaceError"}
        if "replica-full" in self._begins:
            world.licensed["follower"] |= {"RoomError", "NoSpaceError"}

    def at_step(self, step: int) -> None:
        """What begins or strikes now."""
        for name, at in self._begins.items():
            if at == step and name in ("stale-copy", "rivals", "source-rolled-back", "both-put-back"):
                self._images[name] = "alpha", self._world.sources[0].pool.image()
                self._world.truth.inherited |= set(self._world.truth.cuts)
            elif at == step and name == "replica-rolled-back":
                self._images[name] = "replica-0", self._world.replicas[0].pool.image()
        self._keep_both(step)
        for name in [name for name, at in self._strikes.items() if at == step]:
            self._strike(name)

    def _keep_both(self, step: int) -> None:
        """The log beside the image of the source's pool; from then on agents come and go, and take epochs."""
        world, at = self._world, self._begins.get("both-put-back")
        if at == step:
            standing = {key: stream.copy() for key, stream in world.truth.streams.items()}
            self._copies = world.log.copied(), standing
        if at is not None and at < step <= self._strikes["both-put-back"]:
            for each in world.sources[0].agents:
                each.worker.close()
            world.sources[0].agents.clear()

    def _strike(self, name: str) -> None:
        act = {
            "log-loses-end": self._lose_end,
            "log-damaged": self._damage,
            "stale-copy": lambda: self._copy("stale-copy"),
            "rivals": lambda: self._copy("rivals"),
            "zombie": self._double,
            "source-rolled-back": self._roll_source_back,
            "both-put-back": self._put_both_back,
            "replica-rolled-back": self._roll_replica_back,
            "trimmed-ahead": lambda: self.trim(self._chance.choice(self._world.plan.volumes), ahead=True),
            "replica-rots": self._rot,
        }.get(name)
        self._world.report.faults[name] += 1
        if act is not None:
            act()

    def _explain(self, who: str, *names: str) -> None:
        self._world.licensed[who] |= set(names)

    def _lose_end(self) -> None:
        world = self._world
        world.setting.late.clear()  # the log is another one now: what was on its way is lost
        if world.log.lose_end(self._chance.choice(world.plan.volumes)):
            world.truth.may_abort = world.truth.may_lack_base = True
            self._explain("agent", "LostEndError", "VoidedError")
            self._explain("follower", "LogGapError", "LostEndError", "OtherHistoryError", "ForkError")

    def _damage(self) -> None:
        found = self._world.log.damage(self._chance.choice(self._world.plan.volumes))
        if found is not None:
            self._world.report.faults[found[0]] += 1
            self._explain("agent", *found[1])
            self._explain("follower", *found[1])

    def _copy(self, name: str) -> None:
        """Two hosts with one past."""
        world = self._world
        first = world.sources[0]
        pool = HostPool(self._images[name][1], world.folder, "copy", world.clock.now_ns, world.chance)
        copy = SourceHost("copy", pool, first.volumes, first.group, world.setting)
        world.sources.append(copy)
        copy.start_agents()
        self._explain("agent", "PoolOlderError", "FencedError")

    def _double(self) -> None:
        """Two agents on one pool."""
        self._world.sources[0].start_second_agents()
        self._explain("agent", "FencedError")

    def _roll_source_back(self) -> None:
        self._world.sources[0].rolled_back(self._images["source-rolled-back"][1])
        self._explain("agent", "PoolOlderError")

    def _put_both_back(self) -> None:
        assert self._copies is not None, "it strikes behind its beginning"
        world, (put_back, standing) = self._world, self._copies
        world.setting.late.clear()
        world.sources[0].rolled_back(self._images["both-put-back"][1])
        put_back()
        world.truth.put_back(standing)
        self._explain("follower", "LostEndError", "LogGapError", "GapError", "OtherHistoryError", "ForkError")

    def _roll_replica_back(self) -> None:
        replica: ReplicaHost = self._world.replicas[0]
        replica.reborn(image=self._images["replica-rolled-back"][1])
        self._explain("follower", "TrimmedError")

    def _rot(self) -> None:
        """One bit of one mapped chunk of a replica's head."""
        replica: ReplicaHost = self._chance.choice(self._world.replicas)
        volume: UUID = self._chance.choice(self._world.plan.volumes)
        held = replica.held[volume]
        if held is None:
            self._strikes["replica-rots"] += 1  # there is nothing yet that could rot
            return
        row = replica.pool.real.view().volume(volume)
        byte = self._chance.randrange(row.size_bytes)
        place = replica.pool.place_of(row.dev_id, byte // replica.pool.block_bytes)
        if place is not None:
            replica.pool.data.rot(place * replica.pool.block_bytes + byte % replica.pool.block_bytes)
            replica.rotten[volume].add(byte // CHUNK_BYTES)
            replica.was_rotten = True
            self._explain("follower", "ChunkMismatchError")
            self._touch(volume, byte)

    def _touch(self, volume: UUID, byte: int) -> None:
        """The source writes into another page of the chunk."""
        source = self._world.sources[0]
        begin = byte // CHUNK_BYTES * CHUNK_BYTES
        page = (byte % CHUNK_BYTES // PAGE_BYTES + 1) % PAGES_PER_CHUNK
        if begin + page * PAGE_BYTES < len(source.content[volume]):
            source.write(volume, begin + page * PAGE_BYTES, self._chance.randbytes(16))

    def trim(self, volume: UUID, *, ahead: bool) -> None:
        """The log drops what every replica has; or (ahead) more, but for its last transaction."""
        world = self._world
        positions = [each.position(volume) for each in world.replicas]
        applied = min((each.sequence if each else 0 for each in positions), default=0)
        stream = world.truth.stream(volume)
        began = [each.header.sequence for each in stream.events if isinstance(each.body, TransactionBegan)]
        newest = began[-2] if len(began) > 1 else 0
        below = min(newest, newest if ahead else applied)
        if below > stream.trimmed + 1:
            world.trim(volume, below)
            if ahead:
                self._explain("follower", "TrimmedError")
