"""The simulation of two hosts: one seed is one history of writes, cuts, faults and disasters, and how it ends.

    with a seed      sizes, volumes, replicas, the log's kind, how often a call fails, at most two disasters
    steps            a client writes; an agent makes a round, a follower has a turn, in any order, with faults
    the end          faults stop, what can be put back is put back, pools get room; hosts go on until they are done
    the verdict      each volume converged, or stands stopped by an error that the history explains

Every error that a host meets has a name, and must be one that the faults so far explain (`licensed`): a wrong name is
a Violation like a wrong byte.
"""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import agent.append
import replicator.log.segment
from replicator.errors import DamageError, NoSpaceError, ReplicatorError
from replicator.units import CHUNK_BYTES, SECTOR_BYTES
from tests.support.two_hosts_disasters import Disasters
from tests.support.two_hosts_line import Line, LineFault
from tests.support.two_hosts_log import LogModel, log_model
from tests.support.two_hosts_plan import Plan, Report
from tests.support.two_hosts_pool import DeadError, HostPool, Shape, grown, made
from tests.support.two_hosts_replica import ReplicaHost
from tests.support.two_hosts_setting import Clock, Setting
from tests.support.two_hosts_source import Agent, SourceHost
from tests.support.two_hosts_truth import Truth, Violation
from tests.support.two_hosts_verdict import verdict

AWAY = frozenset({"LogAwayError", "UnavailableError"})
_ROUNDS_TO_END = 8


class TwoHosts:
    """One history."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.chance = random.Random(f"history {plan.seed}")
        self.folder, self.report = folder, Report(1)
        self.truth, self.clock = Truth(), Clock()
        self.truth.counts = self.report.counts
        self.log: LogModel = log_model(
            plan.kind, self.truth, self.chance, leaks="zombies-let-through" in plan.disasters
        )
        self.licensed: dict[str, set[str]] = {"agent": set(), "follower": set()}
        self._uuids = iter(range(1 << 64, 1 << 65))
        self.setting = Setting(self.truth, self.clock, self.chance, self._new_uuid, self.log.connect)
        self.setting.meanwhile = self._meanwhile
        self._is_between = False
        self.sources = [self._source("alpha", plan.source)]
        self.replicas = [self._replica(i, shape) for i, shape in enumerate(plan.replicas)]
        self.disasters = Disasters(self)
        self.errors: dict[str, ReplicatorError | None] = {}

    def _new_uuid(self) -> UUID:
        return UUID(int=next(self._uuids))

    def _source(self, name: str, shape: Shape) -> SourceHost:
        pool = HostPool(made(shape), self.folder, name, self.clock.now_ns, self.chance)
        return SourceHost(name, pool, self.plan.volumes, self.plan.group, self.setting)

    def _replica(self, index: int, shape: Shape) -> ReplicaHost:
        name = f"replica-{index}"
        pool = HostPool(made(shape), self.folder, name, self.clock.now_ns, self.chance)
        return ReplicaHost(name, pool, self.plan.volumes, self.plan.apply, self.setting)

    @property
    def pools(self) -> list[HostPool]:
        """Everybody's."""
        return [each.pool for each in self.sources] + [each.pool for each in self.replicas]

    # -- the whole ---------------------------------------------------------------------------------------------

    def run(self) -> Report:
        """From the first write to the verdict."""
        try:
            self.sources[0].start_agents()
            for step in range(self.plan.steps):
                self.disasters.at_step(step)
                for _ in range(self.chance.randrange(1, 3)):
                    self._something()
                    self.setting.late_calls_arrive(0.15)
                self.clock.advance(self.chance.choice((0.1, 1.0, 15.0, 70.0)))
            self._end()
        finally:
            for pool in self.pools:
                pool.end()
        return self.report

    def _meanwhile(self, name: str) -> None:
        """Between two calls of a source's agent the other source's may have a whole round."""
        others = [each for each in self.sources if each.name != name and each.agents]
        likelihood = 0.4 if "rivals" in self.plan.disasters else 0.1
        if others and not self._is_between and self.chance.random() < likelihood:
            self._is_between = True
            self.agent_turn(others[0], self.chance.choice(others[0].agents))
            self._is_between = False

    def _something(self) -> None:
        source = self.chance.choice(self.sources)
        what = self.chance.random()
        if what < 0.55:
            self._client(source)
            source.start_agents()
            self.agent_turn(source, self.chance.choice(source.agents))
        elif what < 0.93:
            replica = self.chance.choice(self.replicas)
            self.follower_turn(replica, self.chance.choice(self.plan.volumes))
        elif what < 0.96:
            self._client(source)
        else:
            self._operator(source)

    # -- the client and the operator ---------------------------------------------------------------------------

    def _client(self, source: SourceHost) -> None:
        dies = self.chance.random() < self.plan.trouble / 4
        if dies:
            self._arm_pool(source.pool, 6)
        try:
            for _ in range(self.chance.randrange(1, 4)):
                self._write(source, self.chance.choice(self.plan.volumes))
            if self.chance.random() < 0.2:
                source.pool.real.flush()
                if source.pool.is_dead:
                    raise DeadError
                source.flushed()
        except DeadError:
            self._source_dies(source)
        source.pool.disarm()

    def _write(self, source: SourceHost, volume: UUID) -> None:
        rng, size = self.chance, len(source.content[volume])
        offset, what = rng.randrange(size), rng.random()
        if what < 0.15:
            source.write(volume, offset, None, rng.randrange(1, 3) * CHUNK_BYTES)
        elif what < 0.3:
            begin = offset // CHUNK_BYTES * CHUNK_BYTES
            source.write(volume, begin, bytes(CHUNK_BYTES * rng.randrange(1, 3)))
        elif what < 0.45:
            source.write(volume, offset // CHUNK_BYTES * CHUNK_BYTES, rng.randbytes(CHUNK_BYTES))
        else:
            source.write(volume, offset, rng.randbytes(rng.choice((1, 512, 4096, 9000))))

    def _operator(self, source: SourceHost) -> None:
        volume, what = self.chance.choice(self.plan.volumes), self.chance.random()
        try:
            if what < 0.4:
                size = self.chance.randrange(1, 5) * CHUNK_BYTES + self.chance.choice((0, SECTOR_BYTES))
                source.resize(volume, size)
            elif what < 0.6:
                replica = self.chance.choice(self.replicas)
                replica.retainer.round(replica.pool.real)
            elif what < 0.8:
                self.disasters.trim(volume, ahead=False)
            else:
                for each in source.agents:
                    each.worker.close()
                source.agents.clear()
        except NoSpaceError:
            self.truth.counts["operators refused: no space"] += 1

    def trim(self, volume: UUID, below_sequence: int) -> None:
        """The log drops events, by whole units."""
        with suppress(DamageError):  # a damaged log isn't trimmed
            kept = self.log.connect(Line(lambda: False)).trim(volume, 1, below_sequence)
            self.truth.trims((volume, 1), kept)

    # -- turns -------------------------------------------------------------------------------------------------

    def agent_turn(self, source: SourceHost, agent: Agent, *, calm: bool = False) -> ReplicatorError | None:
        """A round of an agent, with whatever befalls it."""
        if agent.worker.over is not None and not calm:
            return None
        licensed = set() if calm else self._agent_faults(source, agent)
        licensed |= self._strange(agent)
        labels = ("kept",) if not calm and self.chance.random() < 0.1 else ()
        error = None
        try:
            error = source.step(agent, labels)
        except DeadError:
            self._source_dies(source)
        agent.line.calm()
        source.pool.disarm()
        source.pool.reading.at = 0
        if error is not None:
            self._judge("agent", error, licensed | self._strange(agent))
        return error

    def _strange(self, agent: Agent) -> set[str]:
        """Where the log lost an abort: who gave the transaction up knows that, others take it for another pool's."""
        opened = [self.truth.stream(volume).open_transaction() for volume in agent.volumes]
        return {"PoolOlderError"} if any(self.truth.is_strange(agent.name, each) for each in opened) else set()

    def _agent_faults(self, source: SourceHost, agent: Agent) -> set[str]:
        licensed: set[str] = set()
        if {"zombies", "zombies-let-through"} & set(self.plan.disasters) and self.chance.random() < 0.4:
            agent.line.arm(LineFault.DEAD_LATE, self.chance.randrange(1, 4))
            self.report.faults["line dead-late"] += 1
        elif self.chance.random() < (0.8 if "line-breaks-often" in self.plan.disasters else self.plan.trouble):
            licensed |= self._arm_line(agent.line, 16)
        if self.chance.random() < (0.8 if "source-dies-often" in self.plan.disasters else self.plan.trouble / 2):
            self._arm_pool(source.pool, 24)
        if self.chance.random() < self.plan.trouble / 10:
            source.pool.reading.at = self.chance.randrange(1, 6)
            self.truth.may_abort = True
            self.licensed["agent"].add("VoidedError")  # told when the abort stands, which may be rounds later
            self.report.faults["read error at the source"] += 1
        return licensed

    def _arm_line(self, line: Line, reach: int) -> set[str]:
        fault = self.chance.choice(list(LineFault))
        calls = 4 if fault.is_of_appends else reach
        line.arm(fault, self.chance.randrange(1, calls), self.chance.choice((1, 1, 1, 3)))
        self.report.faults[f"line {fault.value}"] += 1
        return set(AWAY)

    def _arm_pool(self, pool: HostPool, reach: int) -> None:
        power = self.chance.random() < 0.5
        pool.arm(self.chance.randrange(1, reach), power=power)
        self.report.faults["power cut" if power else "process death"] += 1

    def _source_dies(self, source: SourceHost) -> None:
        """Of its pool's fate, or only an agent, or that agent and all else."""
        self.truth.counts["deaths"] += 1
        fate = source.pool.fate
        source.agents = [each for each in source.agents if not each.line.is_gone]
        if source.pool.is_dead or self.chance.random() < 0.5:
            source.reborn(power=fate.power if source.pool.is_dead else self.chance.random() < 0.5)
        source.check()

    def follower_turn(self, replica: ReplicaHost, volume: UUID, *, calm: bool = False) -> list[ReplicatorError]:
        """A turn of a follower, with whatever befalls it."""
        following = replica.followings[volume]
        licensed, is_blind = (set(), False) if calm else self._follower_faults(replica, volume)
        try:
            met = replica.step(volume)
        except DeadError:
            self.truth.counts["deaths"] += 1
            replica.reborn()
            return []
        following.line.calm()
        replica.pool.disarm()
        self.log.clear_sight(following.log)
        for error in met:
            self._judge("follower", error, licensed)
        if not met and not is_blind:
            self._require_caught_up(replica, volume)
        return met

    def _follower_faults(self, replica: ReplicaHost, volume: UUID) -> tuple[set[str], bool]:
        """What is planned: the errors that it explains, and whether the follower may miss the newest."""
        licensed: set[str] = set()
        is_blind = False
        following = replica.followings[volume]
        if self.chance.random() < self.plan.trouble:
            licensed |= self._arm_line(following.line, 20)
            is_blind = True
        if self.chance.random() < (0.8 if "replica-dies-often" in self.plan.disasters else self.plan.trouble / 2):
            self._arm_pool(replica.pool, 24)
        if self.chance.random() < (
            0.8 if {"readers-misled", "segments-unseen"} & set(self.plan.disasters) else self.plan.trouble
        ):
            fault, names, blinds = self.log.disturb(following.log, volume)
            self.report.faults[fault] += 1
            licensed |= names
            is_blind = is_blind or blinds
        return licensed, is_blind

    def _require_caught_up(self, replica: ReplicaHost, volume: UUID) -> None:
        last = self.truth.stream(volume).committed()
        held = replica.held[volume]
        if last is not None and (held is None or held.digest != last.digest):
            raise Violation(f"{replica.name} stays at {held.number if held else 0} behind {last}, and says nothing")

    def _judge(self, who: str, error: ReplicatorError, licensed: set[str]) -> None:
        name = type(error).__name__
        self.report.refusals[f"{who} {name}"] += 1
        if error.mend is None and name not in AWAY:
            self.report.unmended[f"{who} {name}"] += 1
        if name not in licensed | self.licensed[who]:
            raise Violation(f"{who} met {name}, which nothing explains: {error.message}") from error

    # -- the end -----------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Faults stop; hosts go on until they are done; the verdict."""
        self.log.mend()
        for pool in self.pools:
            grown(pool, data_blocks=pool.real.status().data_blocks + 16)
        self._is_between = True
        seen: list[list[object]] = [[], []]
        is_alone = len(self.sources) == 1 and "zombie" not in self.plan.disasters
        for number in range(_ROUNDS_TO_END):
            self.clock.advance(40)  # so that each round looks for a lost end, too
            for source in self.sources:
                self._last_rounds(source, may_start=number in (0, 3))
            for replica in self.replicas:
                for volume in self.plan.volumes:
                    error = next(iter(self.follower_turn(replica, volume, calm=True)), None)
                    self.errors[f"{replica.name} {volume}"] = error
            self.setting.late_calls_arrive(1.0)
            seen.append(self._summary())
            is_fine = all(error is None for error in self.errors.values())
            # an agent with rivals learns from its next beacon that it was overtaken, and stops in the round behind it
            is_still = seen[-1] == seen[-2] and (is_alone or seen[-2] == seen[-3])
            if number >= (1 if is_fine else 4) and is_still:
                break
        verdict(self)

    def _summary(self) -> list[object]:
        """What still changes from one of the last rounds to the next."""
        streams = [len(self.truth.stream(volume).events) for volume in self.plan.volumes]
        return [
            streams,
            [replica.held for replica in self.replicas],
            {name: type(e) for name, e in self.errors.items()},
        ]

    def _last_rounds(self, source: SourceHost, *, may_start: bool) -> None:
        if may_start:
            source.start_agents(instead_of_ended=True)
        for each in source.agents:
            if each.worker.over is None:
                error = self.agent_turn(source, each, calm=True)
                self.errors.update({f"{source.name} {volume}": error for volume in each.volumes})


def run_plan(plan: Plan, folder: Path) -> Report:
    """One history, in a folder for its small files; Violation, or any error that isn't ours to raise, fails it."""
    kept = agent.append.GATHERED_BYTES_MAX, replicator.log.segment.ROLL_BYTES
    agent.append.GATHERED_BYTES_MAX, replicator.log.segment.ROLL_BYTES = plan.gathered_bytes, plan.roll_bytes
    try:
        return TwoHosts(plan, folder).run()
    finally:
        agent.append.GATHERED_BYTES_MAX, replicator.log.segment.ROLL_BYTES = kept
