"""The receiver as a process: builds pool, socket, log and followers, lets them run, and stops them in reverse.

Only wiring. The pool is its owner's, which `connect_pool` adopts or starts; a lost connection is made again.

    thread       does
    main         looks for new volumes, retires points, tells systemd
    follower     one for each volume
    attester     compares what sources attest (receiver/attest)
    socket       status, stop (pool/daemons)

    build   socket (one receiver a pool) → registration → pool → log, if it can be reached → followers
    stop    followers (open transactions are dropped, or stay staged) → attester → exporter, if it's ours → log → pool

systemd's watchdog is fed as long as every follower moves: one that is stuck in a call for STUCK_S stops it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import tzinfo
from pathlib import Path
from typing import Any
from uuid import UUID

from receiver.access import PoolAccess
from receiver.attest import Attester
from receiver.config import ReceiverConfig
from receiver.disks import Disks, open_disks
from receiver.errors import DriftError
from receiver.follow import Follower, World
from receiver.log_access import PatientLog
from receiver.remember import drift_of, verified_of
from receiver.replica import refuse_source, replicas
from receiver.retain import Retainer, Round
from receiver.status import Standing, report
from replicator.errors import ReplicatorError, UnavailableError
from replicator.exporter.journal import Journal, notify_systemd
from replicator.history.resolve import NamedVolume, resolve_volume
from replicator.log.interface import Log, VolumeEntry
from replicator.pool.catalogue_schema import Role
from replicator.pool.daemons import DaemonSocket
from replicator.pool.interface import Pool
from replicator.pool.registrations import registered
from replicator.repository.patience import StopWaiter
from replicator.repository.remembered import follows_log, remember_log

SOCKET_NAME = "receiver"
TURN_S = 1.0
"""Between two looks of the main thread at what is due."""

STUCK_S = 600.0
"""A follower that hasn't moved for so long hangs: the longest it works on end is one commit of `apply_commit_bytes`."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a receiver stands on, passed in: pool, log, clocks, chance, where it tells what it does.

    `look` is shown the pool every turn of the main thread.
    """

    connect_pool: Callable[[], Pool]
    open_log: Callable[[], Log]
    waiter: StopWaiter
    clock_ns: Callable[[], int]
    chance: Callable[[], float]
    journal: Journal
    zone: tzinfo
    end_owner: Callable[[Pool], None]
    open_devices: Callable[[Path], AbstractContextManager[Disks]] = open_disks
    look: Callable[[Pool | None], None] = lambda _: None


class Receiver:
    """A receiver of one pool; `run` blocks until a stop, `catch_up` applies what is there."""

    def __init__(self, config: ReceiverConfig, around: Surroundings) -> None:
        self.config, self._around = config, around
        self._turn = threading.Lock()
        self._followers: dict[UUID, Follower] = {}
        self._threads: list[threading.Thread] = []
        self._retainer = Retainer(config.retention, around.clock_ns)
        self._last_round: Round | None = None
        self._troubles: dict[str, str] = {}
        self._drifts: list[ReplicatorError] = []
        self._known = Standing(
            str(config.pool), config.log, os.getpid(), 0, around.clock_ns(), config.patience, config.retention, {}
        )
        self._known = replace(self._known, name=config.registered_name)
        self._world: World | None = None

    # -- running -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Follow until a stop is asked for."""
        with ExitStack() as stack:
            calls = {"status": self.status, "stop": self.stop}
            stack.enter_context(DaemonSocket(self.config.pool, SOCKET_NAME, calls, group=self.config.socket_group))
            stack.enter_context(registered("receiver", self.config.pool, SOCKET_NAME))
            self._world = stack.enter_context(self._opened(patient=True))
            stack.callback(self._end_owner)
            stack.callback(self._end_followers)
            self._start(f"attester of {self.config.pool.name}", self._attester.run)
            self._around.journal.info("receiver started", pool=str(self.config.pool), log=self.config.log)
            notify_systemd("READY=1")
            self._turns()
            notify_systemd("STOPPING=1")
        self._around.journal.info("receiver stopped")

    def catch_up(self) -> list[dict[str, Any]]:
        """Apply what the log has now, every volume, and retire points; raises the first volume's error at the end."""
        errors: list[ReplicatorError] = []
        with self._opened(patient=False) as world:
            self._world = world
            for entry in self._wanted(world.log):
                follower = self._followers.setdefault(entry.volume, Follower(world, entry.volume, entry.name))
                try:
                    follower.follow(None)
                except ReplicatorError as error:
                    self._report("stopped", entry.volume, error)
                    errors.append(error)
            self._attester.compare_waiting()
            errors += self._drifts
            self._retire()
            volumes: list[dict[str, Any]] = self.status({})["volumes"]
        if errors:
            raise errors[0]
        return volumes

    @contextmanager
    def _opened(self, *, patient: bool) -> Iterator[World]:
        """`patient`: a log that is away is waited for."""
        around = self._around
        with ExitStack() as stack:
            pools = stack.enter_context(PoolAccess(around.connect_pool, around.open_devices))
            known = follows_log(pools.current().pool.view(), self.config.log)
            log = PatientLog(self.config.log, around.open_log, known=known)
            stack.callback(log.close)
            self._attester = Attester(around.clock_ns, self._drifted)
            stack.callback(self._attester.close)
            world = World(
                pools,
                log,
                around.waiter,
                around.clock_ns,
                around.chance,
                around.waiter.is_stopping,
                self.config.apply,
                self._report,
                self.config.registered_name,
                self._attester,
                log.require_there,
            )
            self._met_log(world, patient=patient)
            yield world

    def _met_log(self, world: World, *, patient: bool) -> None:
        """Refuse a pool that is the source; remember the log. While it's away, the replicas there are wait for it."""
        pool = world.pools.current().pool
        try:
            refuse_source(pool.view(), self.config.pool, world.log.volumes())
            remember_log(pool, Role.APPLIED, self.config.log)
        except UnavailableError:
            if not patient:
                raise
            for volume in replicas(pool.view(), self.config.volumes):
                self._follow(world, volume.uuid, volume.name)

    def _turns(self) -> None:
        """The main thread's work, each thing when it is due."""
        monotonic = self._around.waiter.monotonic
        discover_at = retain_at = monotonic()
        while not self._around.waiter.is_stopping():
            if monotonic() >= discover_at:
                self._tried("looking for volumes", self._discover)
                discover_at = monotonic() + self.config.discover_every_s
            if monotonic() >= retain_at:
                self._tried("retiring restore points", self._retire)
                retain_at = monotonic() + self.config.retain_every_s
                notify_systemd(f"STATUS={self.status({})['headline']}")
            access = self._world.pools.known() if self._world is not None else None
            self._around.look(access.pool if access is not None else None)
            if self.is_moving():
                notify_systemd("WATCHDOG=1")
            self._around.waiter.wait(TURN_S)

    @property
    def followers(self) -> list[Follower]:
        """One for each volume that is followed."""
        with self._turn:
            return list(self._followers.values())

    def is_moving(self) -> bool:
        """Whether every follower lives, and none is stuck."""
        now_s = self._around.waiter.monotonic()
        alive = all(thread.is_alive() for thread in self._threads)
        return alive and all(now_s - each.alive_s < STUCK_S for each in self.followers)

    def _tried(self, what: str, act: Callable[[], None]) -> None:
        """Do it; what fails is told, shown by status, and tried again when it is next due."""
        try:
            act()
            self._troubles.pop(what, None)
        except ReplicatorError as error:
            self._troubles[what] = f"{what}: {error.message}"
            self._around.journal.warning("failed", what=what, reason=error.message, mend=error.mend)

    def _discover(self) -> None:
        """A follower for every volume that is to have one."""
        assert self._world is not None
        entries = self._wanted(self._world.log)
        remember_log(self._world.pools.current().pool, Role.APPLIED, self.config.log)
        for entry in entries:
            if entry.volume in self._followers:
                continue
            if len(self._followers) >= self.config.max_volumes:
                raise ReplicatorError(
                    f"the log has more volumes than {self.config.max_volumes}: {entry.name} isn't followed",
                    mend="raise max_volumes",
                )
            self._follow(self._world, entry.volume, entry.name)

    def _follow(self, world: World, volume: UUID, name: str) -> None:
        """A follower in a thread of its own."""
        follower = Follower(world, volume, name)
        with self._turn:
            self._followers[volume] = follower
        self._start(f"follower {name}", follower.run)
        self._around.journal.info("following", volume=name, uuid=str(volume))

    def _start(self, name: str, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)  # once it lives: `is_moving` may be asked in between

    def _wanted(self, log: Log) -> list[VolumeEntry]:
        """The log's volumes that this receiver is for; NotFoundError for a name that the log hasn't."""
        entries = log.volumes()
        if not self.config.volumes:
            return entries
        named = [NamedVolume(each.volume, each.name, each.host) for each in entries]
        wanted = {resolve_volume(name, named).uuid for name in self.config.volumes}
        return [each for each in entries if each.volume in wanted]

    def _retire(self) -> None:
        assert self._world is not None
        pool = self._world.pools.current().pool
        heard = {each.volume: each.complete_to_ns or 0 for each in (follower.progress for follower in self.followers)}
        self._last_round = self._retainer.round(pool, heard)
        if self._last_round.deleted:
            self._around.journal.info("points retired", count=len(self._last_round.deleted))

    def _end_followers(self) -> None:
        self._around.waiter.stop()
        self._attester.close()
        for thread in self._threads:
            thread.join()

    def _end_owner(self) -> None:
        """A clean stop also ends the exporter that a receiver started."""
        access = self._world.pools.known() if self._world is not None else None
        if access is not None:
            self._around.end_owner(access.pool)

    # -- asked over the socket ---------------------------------------------------------------------------------

    def stop(self, _: dict[str, Any]) -> dict[str, Any]:
        """End, after this answer."""
        self._around.waiter.stop()
        return {"pid": os.getpid()}

    def status(self, _: dict[str, Any]) -> dict[str, Any]:
        """The report of this instant; never waits for the log."""
        progresses = [each.progress for each in self.followers]
        return report(progresses, self._standing(), self._around.clock_ns(), self._around.zone)

    def _standing(self) -> Standing:
        troubles = tuple(self._troubles.values())
        access = self._world.pools.known() if self._world is not None else None
        try:
            if access is not None:
                pid, view = access.pool.status().owner_pid, access.pool.view()
                drifts = {str(each.uuid): drift for each in view.volumes if (drift := drift_of(view, each.uuid))}
                self._known = replace(self._known, exporter_pid=pid, verified=verified_of(view), drifts=drifts)
        except ReplicatorError as error:
            troubles += (f"the pool can't be reached: {error.message}",)
        return replace(self._known, last_round=self._last_round, troubles=troubles)

    def _drifted(self, volume: UUID, error: ReplicatorError) -> None:
        """From the attester: what it found, or couldn't read."""
        if isinstance(error, DriftError):
            self._drifts = [*self._drifts[-15:], error]
        self._report("attested", volume, error)

    def _report(self, activity: str, volume: UUID, error: ReplicatorError) -> None:
        follower = self._followers.get(volume)
        name = follower.progress.name if follower else str(volume)
        self._around.journal.warning(
            activity, volume=name, uuid=str(volume), kind=error.kind, reason=error.message, mend=error.mend
        )
