"""The source of the simulation: a pool, the client that writes to its volumes, and the real agent's GroupWorkers.

It knows what a death may leave (P1, P1b, P2, P8 of design), and looks after each round whether T3 of two_hosts_truth
holds.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

import numpy as np

from agent.context import Context
from agent.ratelimit import TokenBucket
from agent.worker import GroupWorker, Plan
from replicator.blockdev.interface import BlockDevice
from replicator.errors import NoSpaceError, ReplicatorError
from replicator.events.beacon import Beacon
from replicator.log.interface import Log
from replicator.pool.catalogue_schema import Position, Role
from replicator.pool.interface import CutMade, CutRequest, Pool
from replicator.units import SECTOR_BYTES
from tests.support.two_hosts_line import Line
from tests.support.two_hosts_pool import DeadError, HostPool, Image, Mortal
from tests.support.two_hosts_setting import Setting
from tests.support.two_hosts_truth import Violation


@dataclass(slots=True)
class Agent:
    """An agent's process; `name` is the host of its epochs."""

    name: str
    worker: GroupWorker
    line: Line
    volumes: tuple[UUID, ...]


class CutWatcher(Mortal):
    """A source's pool that tells the truth of each cut."""

    def __init__(self, host: SourceHost, is_dead: Callable[[], bool]) -> None:
        super().__init__(host.pool.real, is_dead)
        self._host = host

    def cut(self, request: CutRequest) -> CutMade:
        """As the pool's."""
        self.live()
        for each in request.prepared:
            self._host.truth.cut(each.transaction_uuid, self._host.name, bytes(self._host.content[each.volume]))
        made: CutMade = self.inner.cut(request)
        self.live()
        if made.made:  # else nothing was committed: others' writes go on being what a power cut may take
            self._host.flushed()
        return made


class BeaconWatcher:
    """A log that tells the truth of each beacon, once it is written."""

    def __init__(self, log: Log, said: Callable[[Beacon], None]) -> None:
        self._log, self._said = log, said

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def write_beacon(self, beacon: Beacon) -> None:
        """As the log's."""
        self._log.write_beacon(beacon)
        self._said(beacon)


class SourceHost:
    """A source: `content` is what its volumes must read."""

    def __init__(self, name: str, pool: HostPool, volumes: tuple[UUID, ...], group: str, setting: Setting) -> None:
        self.name, self.pool, self.volumes, self.group, self._setting = name, pool, volumes, group, setting
        self.truth, self.chance = setting.truth, setting.chance
        self.agents: list[Agent] = []
        self.content: dict[UUID, bytearray] = {}
        self._versions: dict[UUID, list[bytes]] = {}
        self._checked: dict[UUID, bytes] = {}
        self._started = 0
        self.look(expected=None)

    # -- the client --------------------------------------------------------------------------------------------

    def look(self, expected: dict[UUID, list[bytes]] | None) -> None:
        """Read what the volumes are now; each sector must be one of `expected`'s (P1, P1b, P2).

        What was replayed is made durable first, as `flushed` says of it: P1b promises nothing against a power cut that
        comes before the opening's commit, and how far that is by then would be chance.
        """
        self.pool.real.flush()
        for volume in self.volumes:
            found = self.pool.live(volume)
            if expected is not None and not _is_mix(found, expected[volume]):
                raise Violation(f"P1: {self.name} lost what a client was promised of {volume}")
            self._is_now(volume, found)
        self.flushed()

    def _is_now(self, volume: UUID, content: bytes) -> None:
        self.content[volume] = bytearray(content)
        self._versions.setdefault(volume, []).append(bytes(content))
        self.truth.lived(self.name, volume, self._setting.clock.now_ns(), bytes(content))

    def flushed(self) -> None:
        """All that was written so far is durable."""
        self._versions = {volume: [bytes(content)] for volume, content in self.content.items()}

    def write(self, volume: UUID, offset_bytes: int, data: bytes | None, length_bytes: int = 0) -> None:
        """A client's write, or (None) its trim of whole blocks."""
        before = self.content[volume]
        after = bytearray(before)
        size = self.pool.block_bytes
        if data is None:
            begin, end = -(-offset_bytes // size) * size, (offset_bytes + length_bytes) // size * size
            if offset_bytes + length_bytes >= len(before):
                end = len(before)  # the last block may be short
            after[begin:end] = bytes(max(0, end - begin))
        else:
            data = data[: len(before) - offset_bytes]
            after[offset_bytes : offset_bytes + len(data)] = data
        self._versions[volume].append(bytes(after))
        self._do(volume, offset_bytes, data, length_bytes, bytes(before), bytes(after))

    def _do(
        self, volume: UUID, offset_bytes: int, data: bytes | None, length_bytes: int, before: bytes, after: bytes
    ) -> None:
        device = self.pool.device(volume)
        try:
            with self.pool.real.engine.gate.writing():
                if data is None:
                    device.discard(offset_bytes, min(length_bytes, len(before) - offset_bytes))
                else:
                    device.pwrite(data, offset_bytes)
        except NoSpaceError:
            after = self.pool.live(volume)
            if not _is_mix(after, [before, self._versions[volume][-1]]):
                raise Violation("P8: a refused write left what nobody wrote") from None
            self.truth.counts["writes refused: no space"] += 1
        if self.pool.is_dead:
            raise DeadError
        self._is_now(volume, after)
        self.truth.counts["writes"] += 1

    def resize(self, volume: UUID, size_bytes: int) -> None:
        """The operator resizes the volume."""
        content = bytes(self.content[volume][:size_bytes]).ljust(size_bytes, b"\0")
        self._versions[volume].append(content)
        self.pool.real.resize(volume, size_bytes)
        if self.pool.is_dead:
            raise DeadError
        self._is_now(volume, content)
        self.flushed()

    # -- deaths ------------------------------------------------------------------------------------------------

    def reborn(self, *, power: bool) -> None:
        """The machine, or its processes, died: what is there again must be what clients may expect."""
        versions = {volume: [each[-1]] if not power else each for volume, each in self._versions.items()}
        under_way = {volume: [each[-1], bytes(self.content[volume])] for volume, each in self._versions.items()}
        self.pool.reborn(power=power)
        self.agents = []
        self.look({volume: [*versions[volume], *under_way[volume]] for volume in self.volumes})

    def rolled_back(self, image: Image) -> None:
        """The operator put an older copy of the pool in its place."""
        self.pool.reborn(image)
        self.agents = []
        self.look(expected=None)

    # -- the agent ---------------------------------------------------------------------------------------------

    def start_agents(self, *, instead_of_ended: bool = False) -> None:
        """An agent for each group that has none; or (instead_of_ended) whose agent has ended."""
        for members in self.groups():
            there = [each for each in self.agents if each.volumes == members]
            if instead_of_ended:
                for each in [each for each in there if each.worker.over is not None]:
                    self.agents.remove(each)
                    there.remove(each)
            if not there:
                self._start_agent(members)

    def start_second_agents(self) -> None:
        """Another process on this pool, for each group: the first ones don't know of it, and go on."""
        for members in self.groups():
            self._start_agent(members)

    def groups(self) -> list[tuple[UUID, ...]]:
        """The volumes that are cut together."""
        return [self.volumes] if self.group else [(volume,) for volume in self.volumes]

    def _start_agent(self, members: tuple[UUID, ...]) -> None:
        real = self.pool.real
        self._started += 1
        setting = self._setting
        line = Line(lambda: self.pool.is_dead or self.pool.real is not real, setting.late, self._meanwhile)
        log = setting.connect(line)
        watched = cast("Log", BeaconWatcher(log, lambda beacon: self.truth.said(self.name, beacon)))
        pool = cast("Pool", CutWatcher(self, lambda: line.is_gone))
        context = Context(
            pool=lambda: pool,
            log=watched,
            files=lambda _: nullcontext(self.pool.files),
            origin=_no_origin,
            clock=setting.clock,
            new_uuid=setting.new_uuid,
            host=(name := f"{self.name}-{self._started}"),
            bucket=TokenBucket(None, setting.clock.monotonic),
            threads=1,
        )
        worker = GroupWorker(context, Plan(members, self.group), chance=setting.chance.random)
        self.agents.append(Agent(name, worker, line, members))

    def _meanwhile(self) -> None:
        """Before an agent's call: another's may overtake it."""
        if self._setting.late:
            self._setting.late_calls_arrive(0.1)
        self._setting.meanwhile(self.name)

    def step(self, agent: Agent, labels: tuple[str, ...]) -> ReplicatorError | None:
        """One cut, published; what it met. DeadError: somebody died."""
        ticket = agent.worker.request(labels)
        if ticket.error is None:
            with self.truth.acts(agent.name):
                agent.worker.step()
            self.truth.counts["rounds"] += 1
        assert ticket.done.is_set(), "W2: a request without an answer"
        self.check()
        return ticket.error

    def position(self, volume: UUID) -> Position | None:
        """What the pool says was published."""
        return self.pool.real.view().position(volume, Role.PUBLISHED)

    def check(self) -> None:
        """T3, and that the base of the next delta is there."""
        view = self.pool.real.view()
        for volume in self.volumes:
            position = view.position(volume, Role.PUBLISHED)
            if position is None:
                continue
            if position.digest == self._checked.get(volume):
                continue
            self._checked[volume] = position.digest
            named = self.truth.named.get(position.digest)
            if named is None or named.number != position.number:
                raise Violation(f"T3: {self.name} says that it published {position.number}, which never stood")
            bases = [each for each in view.snapshots_of(volume) if each.digest == position.digest]
            if not bases and self.truth.may_lack_base:
                continue
            if not bases or self.pool.committed(bases[0].dev_id, bases[0].size_bytes) != named.content:
                raise Violation(f"T3: {self.name} has no snapshot that is transaction {position.number}")


@contextmanager
def _no_origin(_: object) -> Any:
    raise AssertionError("no volume here has an origin")
    yield cast("BlockDevice", None)


def _is_mix(found: bytes, versions: list[bytes]) -> bool:
    """Whether each sector of `found` stands in one of `versions`."""
    have = np.frombuffer(found, dtype=np.uint64).reshape(-1, SECTOR_BYTES // 8)
    same = np.zeros(len(have), dtype=bool)
    for each in versions:
        padded = each[: len(found)].ljust(len(found), b"\0")
        same |= (np.frombuffer(padded, dtype=np.uint64).reshape(have.shape) == have).all(axis=1)
    return bool(same.all())
