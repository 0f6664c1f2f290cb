"""The receiver as a process: builds pool, socket, log and followers, lets them run, and stops them in reverse.

Only wiring. The pool is its owner's, which `connect_pool` adopts or starts; a lost connection is made again.

    thread       does
    main         looks for new volumes, retires points, tells systemd
    follower     one for each volume
    socket       status, stop (pool/daemons)

    build   socket (one receiver a pool) → registration → pool → followers
    stop    followers (open transactions are dropped, or stay staged) → exporter, if it's ours → pool → socket
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import tzinfo
from pathlib import Path
from typing import Any
from uuid import UUID

from receiver.access import PoolAccess
from receiver.config import ReceiverConfig
from receiver.disks import Disks, open_disks
from receiver.follow import Follower, World
from receiver.patience import StopWaiter
from receiver.remember import verified_of
from receiver.retain import Retainer, Round
from receiver.status import Standing, report
from replicator.errors import ReplicatorError, UnavailableError
from replicator.exporter.journal import Journal, notify_systemd
from replicator.history.resolve import NamedVolume, resolve_volume
from replicator.log.interface import Log, VolumeEntry
from replicator.pool.daemons import DaemonSocket
from replicator.pool.interface import Pool
from replicator.pool.registrations import registered
from replicator.repository.remembered import remember_log

SOCKET_NAME = "receiver"
TURN_S = 1.0
"""Between two looks of the main thread at what is due."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a receiver stands on, passed in: pool, log, clocks, chance, where it tells what it does."""

    connect_pool: Callable[[], Pool]
    open_log: Callable[[], Log]
    waiter: StopWaiter
    clock_ns: Callable[[], int]
    chance: Callable[[], float]
    journal: Journal
    zone: tzinfo
    end_owner: Callable[[Pool], None]
    open_devices: Callable[[Path], AbstractContextManager[Disks]] = open_disks


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
        self._known = Standing(
            str(config.pool), config.log, os.getpid(), 0, around.clock_ns(), config.patience, config.retention, {}
        )
        self._world: World | None = None

    # -- running -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Follow until a stop is asked for."""
        with ExitStack() as stack:
            calls = {"status": self.status, "stop": self.stop}
            stack.enter_context(DaemonSocket(self.config.pool, SOCKET_NAME, calls, group=self.config.socket_group))
            stack.enter_context(registered("receiver", self.config.pool, SOCKET_NAME))
            self._world = stack.enter_context(self._opened())
            stack.callback(self._end_owner)
            stack.callback(self._end_followers)
            self._around.journal.info("receiver started", pool=str(self.config.pool), log=self.config.log)
            notify_systemd("READY=1")
            self._turns()
            notify_systemd("STOPPING=1")
        self._around.journal.info("receiver stopped")

    def catch_up(self) -> list[dict[str, Any]]:
        """Apply what the log has now, every volume, and retire points; raises the first volume's error at the end."""
        errors: list[ReplicatorError] = []
        with self._opened() as world:
            self._world = world
            for entry in self._wanted(world.log):
                follower = self._followers.setdefault(entry.volume, Follower(world, entry.volume, entry.name))
                try:
                    follower.follow(None)
                except ReplicatorError as error:
                    self._report("stopped", entry.volume, error)
                    errors.append(error)
            self._retire()
            volumes: list[dict[str, Any]] = self.status({})["volumes"]
        if errors:
            raise errors[0]
        return volumes

    @contextmanager
    def _opened(self) -> Iterator[World]:
        around = self._around
        with ExitStack() as stack:
            log = around.open_log()
            stack.callback(log.close)
            pools = stack.enter_context(PoolAccess(around.connect_pool, around.open_devices))
            remember_log(pools.current().pool, self.config.log)
            yield World(
                pools,
                log,
                around.waiter,
                around.clock_ns,
                around.chance,
                around.waiter.is_stopping,
                self.config.apply,
                self._report,
            )

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
            self._around.waiter.wait(TURN_S)

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
        for entry in self._wanted(self._world.log):
            if entry.volume in self._followers:
                continue
            if len(self._followers) >= self.config.max_volumes:
                raise ReplicatorError(
                    f"the log has more volumes than {self.config.max_volumes}: {entry.name} isn't followed",
                    mend="raise max_volumes",
                )
            follower = Follower(self._world, entry.volume, entry.name)
            with self._turn:
                self._followers[entry.volume] = follower
            thread = threading.Thread(target=follower.run, name=f"follower {entry.name}", daemon=True)
            self._threads.append(thread)
            thread.start()
            self._around.journal.info("following", volume=entry.name, uuid=str(entry.volume))

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
        self._last_round = self._retainer.round(pool)
        if self._last_round.deleted:
            self._around.journal.info("points retired", count=len(self._last_round.deleted))

    def _end_followers(self) -> None:
        self._around.waiter.stop()
        for thread in self._threads:
            thread.join()

    def _end_owner(self) -> None:
        """A clean stop also ends the exporter that a receiver started."""
        access = self._world.pools.known() if self._world is not None else None
        if access is not None:
            with suppress(UnavailableError):
                self._around.end_owner(access.pool)

    # -- asked over the socket ---------------------------------------------------------------------------------

    def stop(self, _: dict[str, Any]) -> dict[str, Any]:
        """End, after this answer."""
        self._around.waiter.stop()
        return {"pid": os.getpid()}

    def status(self, _: dict[str, Any]) -> dict[str, Any]:
        """The report of this instant; never waits for the log."""
        with self._turn:
            progresses = [each.progress for each in self._followers.values()]
        return report(progresses, self._standing(), self._around.clock_ns(), self._around.zone)

    def _standing(self) -> Standing:
        troubles = tuple(self._troubles.values())
        access = self._world.pools.known() if self._world is not None else None
        try:
            if access is not None:
                pid, verified = access.pool.status().owner_pid, verified_of(access.pool.view())
                self._known = replace(self._known, exporter_pid=pid, verified=verified)
        except ReplicatorError as error:
            troubles += (f"the pool can't be reached: {error.message}",)
        return replace(self._known, last_round=self._last_round, troubles=troubles)

    def _report(self, activity: str, volume: UUID, error: ReplicatorError) -> None:
        follower = self._followers.get(volume)
        name = follower.progress.name if follower else str(volume)
        self._around.journal.warning(
            activity, volume=name, uuid=str(volume), kind=error.kind, reason=error.message, mend=error.mend
        )
