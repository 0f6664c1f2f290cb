"""The publisher as a process: builds pool, socket, log and workers, lets them run, and stops them in reverse.

Only wiring. The disks outlive it: the pool is the exporter's, which `connect_pool` adopts or starts; a lost connection
is made again here, and publishing goes on from the same base.

    thread      does
    main        signals, watchdog, the pool's room, volumes that come and go
    worker      one for each group, or volume by itself: rounds and beacons
    socket      status, snapshot, pause, resume, stop (pool/daemons)

    build   socket (one agent a pool) → pool → registration → log → workers
    stop    workers (open transactions stay, what was sent is synced) → log → exporter, if it's ours → pool → socket
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, tzinfo
from typing import Any
from uuid import UUID

from agent.backoff import Backoff
from agent.clock import Clock
from agent.config import AgentConfig
from agent.context import Context, open_files, open_origin
from agent.cut import points_of
from agent.gather import Absent, Gatherer
from agent.holder import PoolHolder
from agent.job import SOCKET_NAME
from agent.plans import absent_names, plans_of, point_of
from agent.published import failed_of
from agent.ratelimit import TokenBucket
from agent.rebase import rebase_from_log, rebase_to_new_timeline
from agent.remembering import Remembering
from agent.status import STUCK_S, document
from agent.ticket import Act, Ticket
from agent.worker import CrashedError, GroupWorker, Plan
from replicator.errors import ConflictError, NotFoundError, ReplicatorError, UnavailableError, UsageError
from replicator.events.bodies import PointLabelled
from replicator.exporter.journal import Journal, notify_systemd
from replicator.history.names import check_label
from replicator.history.protection import Failure
from replicator.log.interface import Log
from replicator.pool.catalogue_schema import Role
from replicator.pool.daemons import DaemonSocket
from replicator.pool.interface import Pool
from replicator.pool.registrations import registered
from replicator.pool.view import CatalogueView
from replicator.repository.taken import refuse_waiting

TURN_S = 1.0
"""Between two turns of the main thread: watchdog, dead workers, new volumes."""

SAMPLE_S = 10.0
SNAPSHOT_S = 300.0
"""How long a cut may take to be in the log before whoever asked hears that it takes longer."""


class Agent:
    """One agent over one pool and one log."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        connect_pool: Callable[[], Pool],
        open_log: Callable[[bool], Log],
        end_exporter: Callable[[Pool], None],
        remember_log: Callable[[Pool], None],
        clock: Clock,
        stop: Callable[[], None],
        wake: Callable[[], None],
        new_uuid: Callable[[], UUID],
        chance: Callable[[], float],
        host: str,
        journal: Journal,
        zone: tzinfo = UTC,
        look: Callable[[Pool | None], None] = lambda _: None,
    ) -> None:
        """`look` is shown the pool every turn of the main thread."""
        self.config, self.clock = config, clock
        self.workers: list[GroupWorker] = []
        self._holder, self._open_log, self._end_exporter = PoolHolder(connect_pool), open_log, end_exporter
        self._remember_log, self._look = remember_log, look
        self._stop, self._wake, self._zone = stop, wake, zone
        self._new_uuid, self._chance, self._host, self._journal = new_uuid, chance, host, journal
        self._bucket = TokenBucket(config.bandwidth_bytes_s, clock.monotonic)
        self._gatherer = Gatherer(str(config.pool), config.log, config.when_full)
        self._log: Log | None = None
        self._threads: dict[GroupWorker, threading.Thread] = {}
        self._sampled_s = float("-inf")
        self._is_clean = False
        self._log_away: ReplicatorError | None = None
        self._absent: dict[str, Absent] = {}
        self._apart: dict[str, Failure] = {}
        self._remembering: Remembering | None = None

    # -- life --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until a stop is asked for, or no volume is left to publish: then its error is raised (exit 4)."""
        path = self.config.pool
        calls = {"status": self.status, "snapshot": self.snapshot, "pause": self.pause, "resume": self.resume}
        calls |= {"label": self.label, "rebase": self.rebase, "stop": self.stop}
        with ExitStack() as stack:
            stack.enter_context(DaemonSocket(path, SOCKET_NAME, calls, group=self.config.socket_group))
            stack.callback(self._holder.lose)
            pool = self._first_pool()
            if pool is None:
                return
            stack.enter_context(registered("agent", path, SOCKET_NAME))
            stack.callback(self._end_ours)
            self._log = self._opened_log(pool.view())
            if self._log is not None:
                self._remembering = Remembering(pool.view(), self._remember_log)
                stack.callback(self._log.close)
                stack.callback(self._join)
                self._publish(pool)
            self._is_clean = True
            notify_systemd("STOPPING=1")
        self._journal.info("agent stopped")

    def _publish(self, pool: Pool) -> None:
        """Workers, and turns until a stop is asked for."""
        self.plan_workers(pool.view())
        self._journal.info("agent started", pool=str(self.config.pool), log=self.config.log)
        notify_systemd("READY=1")
        while not self.clock.is_stopping:
            self.turn()
            self.clock.wait(TURN_S)

    def _first_pool(self) -> Pool | None:
        """The pool; where another unit starts its exporter, as soon as that runs. None once a stop is asked for."""
        attempt, backoff = 0, Backoff(longest_s=5.0)
        while True:
            try:
                return self._holder.get()
            except UnavailableError as error:
                if not self.config.adopt:
                    raise
                attempt += 1
                self._journal.warning("waiting for the exporter", reason=error.message)
                if self.clock.wait(backoff.delay_s(attempt, self._chance())):
                    return None

    def _opened_log(self, view: CatalogueView) -> Log | None:
        """The log, however long it is away (an unmounted one isn't there at all); None once a stop is asked for.

        Made only for a pool that never published, so that an unmounted one isn't taken for new.
        """
        is_new = all(view.position(each.uuid, Role.PUBLISHED) is None for each in view.volumes)
        attempt, backoff = 0, Backoff()
        while True:
            try:
                log = self._open_log(is_new)
            except (UnavailableError, NotFoundError) as error:
                if is_new and isinstance(error, NotFoundError):
                    raise
                attempt += 1
                self._log_away = error
                self._journal.warning("log unreachable", reason=error.message)
                if self.clock.wait(backoff.delay_s(attempt, self._chance())):
                    return None
            else:
                self._log_away = None
                return log

    def _end_ours(self) -> None:
        """A clean stop also ends the exporter that an agent started."""
        pool = self._holder.known()
        if pool is not None and self._is_clean:
            self._end_exporter(pool)

    def _join(self) -> None:
        self._stop()
        for thread in self._threads.values():
            thread.join()

    # -- the main thread's turn --------------------------------------------------------------------------------

    def turn(self) -> None:
        """Watchdog, room, and volumes that came; ends the agent when every worker is over, or one has crashed."""
        now = self.clock.monotonic()
        self._look(self._holder.known())
        for worker, thread in list(self._threads.items()):
            if worker.over is not None and not thread.is_alive():
                self._journal.warning("publishing ended", reason=worker.over.message, mend=worker.over.mend)
                del self._threads[worker]
                if isinstance(worker.over, CrashedError):
                    raise worker.over
        if self.workers and not self._threads and not self.clock.is_stopping:
            self._sample(now)  # one may have come since: a volume that was deleted, and made again
            if not self._threads:
                raise self.workers[0].over or ReplicatorError("every volume was deleted from the pool")
        if all(thread.is_alive() and now - worker.beat_s <= STUCK_S for worker, thread in self._threads.items()):
            notify_systemd("WATCHDOG=1")
        if now - self._sampled_s >= SAMPLE_S:
            self._sampled_s = now
            self._sample(now)

    def _sample(self, now_s: float) -> None:
        pool = self._holder.known()
        if pool is None:
            return
        try:
            self._gatherer.sample(pool, now_s)
            self.plan_workers(pool.view())
        except ReplicatorError as error:
            self._journal.warning("the pool can't be looked at", reason=error.message)
        notify_systemd(f"STATUS={self.status({})['headline']}")

    def plan_workers(self, view: CatalogueView, *, start: bool = True) -> None:
        """A worker for every group and volume that has none yet; who joins a group goes to its worker."""
        self._note_absent(view)
        taken = {uuid for worker in self.workers for uuid in worker.plan.members}
        groups = {each.plan.name: each for each in self.workers if each.plan.name and each.over is None}
        plans = plans_of(self.config, view)
        self._note_apart(plans, taken, groups)
        for plan in plans:
            fresh = [uuid for uuid in plan.members if uuid not in taken]
            if fresh and plan.name in groups:
                groups[plan.name].join(fresh)
            elif len(fresh) == len(plan.members):
                worker = self._worker(plan)
                self.workers.append(worker)
                if start:
                    thread = threading.Thread(target=worker.run, name=f"publish {plan.name or plan.members[0]}"[:60])
                    self._threads[worker] = thread
                    thread.start()

    def _note_apart(self, plans: Sequence[Plan], taken: set[UUID], groups: Mapping[str, GroupWorker]) -> None:
        """Members of a group that have a worker of their own: they got the group's name when that was there."""
        now: dict[str, Failure] = {}
        for plan in plans:
            group = groups.get(plan.name)
            for uuid in taken.intersection(plan.members) - set(group.plan.members) if group else ():
                if str(uuid) not in self._apart:
                    self._journal.warning("a volume isn't cut with its group", uuid=str(uuid), group=plan.name)
                why = f"it is published by itself, and not at one instant with group {plan.name}"
                now[str(uuid)] = self._apart.get(str(uuid)) or Failure(self.clock.now_ns(), why, "restart the agent")
        self._apart = now  # replaced whole: the status is asked for from another thread

    def _note_absent(self, view: CatalogueView) -> None:
        """Since when a name of the configuration is no volume's: told once, and in the status until it is there."""
        now: dict[str, Absent] = {}
        for name, group in absent_names(self.config, view):
            if name not in self._absent:
                self._journal.warning("a volume isn't there", volume=name, group=group)
            now[name] = self._absent.get(name) or Absent(name, group, self.clock.now_ns())
        self._absent = now  # likewise replaced whole

    def _worker(self, plan: Plan) -> GroupWorker:
        context = self._context(plan)
        return GroupWorker(context, plan, chance=self._chance, lose_pool=self._holder.lose, zone=self._zone)

    def _context(self, plan: Plan) -> Context:
        assert self._log is not None and self._remembering is not None
        return Context(
            pool=self._holder.get,
            log=self._log,
            files=open_files,
            origin=open_origin,
            clock=self.clock,
            new_uuid=self._new_uuid,
            host=self._host,
            bucket=self._bucket,
            report=lambda reason: self._journal.warning("publishing", group=plan.name, reason=reason),
            answered=lambda: self._gatherer.sample_log(self.clock.monotonic()),
            agreed=self._remembering.agreed,
            level=self.config.level,
            threads=self.config.threads,
        )

    # -- calls of the socket -----------------------------------------------------------------------------------

    def status(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """The document of agent/status."""
        now_ns, away, pool = self.clock.now_ns(), self._log_away, self._holder.known()
        if away is None or pool is None:
            facts = self._gatherer.facts(pool, list(self.workers), self.clock.monotonic())
            if self.workers:  # before, nothing is planned yet
                absent = list(self._absent.values())
                facts = self._gatherer.with_unpublished(facts, list(self.workers), self.config, absent, now_ns)
                told = [replace(v, failure=v.failure or self._apart.get(v.uuid)) for v in facts.volumes]
                facts = replace(facts, volumes=tuple(told))
        else:
            reason, mend = f"log unreachable: {away.message}", away.mend or "mount it, or name the one that there is"
            exporter = self._gatherer.exporter_of(pool)
            facts = self._gatherer.unpublished(pool.view(), now_ns, reason, mend, os.getpid(), exporter)
        return document(facts, now_ns, self._zone)

    def snapshot(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """A cut now, in the log when this returns; {"points": [...], "failed": [...]} (agent/published)."""
        labels = tuple(dict.fromkeys(check_label(str(label)) for label in arguments.get("labels", ())))
        workers = self._chosen(arguments)
        pool = self._holder.get()
        there = {each.uuid for each in pool.view().volumes}
        members = [uuid for worker in workers for uuid in worker.plan.members if uuid in there]
        refuse_waiting(self.config.pool, pool.view(), members, labels)
        tickets = [worker.request(labels) for worker in workers]
        self._wake()
        timeout_s = float(arguments.get("wait_s", SNAPSHOT_S))
        points: list[dict[str, Any]] = []
        errors: list[tuple[GroupWorker, ReplicatorError]] = []
        for worker, ticket in zip(workers, tickets, strict=True):
            try:
                points += _points(ticket, timeout_s)
            except ReplicatorError as error:
                errors.append((worker, error))
        if errors and not points:
            raise max((error for _, error in errors), key=lambda error: error.exit_code)
        return {"points": points, "failed": [failed_of(self._name_of(worker), error) for worker, error in errors]}

    def _name_of(self, worker: GroupWorker) -> str:
        """How people know it."""
        names = [each.name for each in self._holder.get().view().volumes if each.uuid in worker.plan.members]
        return worker.plan.name or ", ".join(names)

    def pause(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """No more cuts until `resume`."""
        for worker in self._chosen(arguments):
            worker.pause()
        return self.status({})

    def resume(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Cuts again."""
        for worker in self._chosen(arguments):
            worker.resume()
        self._wake()
        return self.status({})

    def label(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """One label more for a point that the log has; in the log when this returns."""
        label = check_label(str(arguments.get("label", "")))
        uuid = self._holder.get().view().volume(str(arguments.get("volume", ""))).uuid
        point = point_of(arguments)
        body = PointLabelled(point, label, self.clock.now_ns())
        (worker,) = self._chosen({"volumes": [str(uuid)]})
        _wait(self._asked(worker, lambda publisher: publisher.say(uuid, body)), SNAPSHOT_S)
        return {"labelled": label, "number": point.number}

    def rebase(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """A common base with the log again (agent/rebase); {"done": what was done}."""
        uuid = self._holder.get().view().volume(str(arguments.get("volume", ""))).uuid
        (worker,) = self._chosen({"volumes": [str(uuid)]})
        act = rebase_to_new_timeline if arguments.get("new_timeline") else rebase_from_log
        if worker.over is None:
            ticket = self._asked(worker, lambda publisher: publisher.rebase(uuid, lambda of: act(of, uuid)))
            return {"done": _wait(ticket, SNAPSHOT_S)}
        done = act(self._context(worker.plan), uuid)
        self.workers.remove(worker)
        self.plan_workers(self._holder.get().view())
        return {"done": done}

    def _asked(self, worker: GroupWorker, act: Act) -> Ticket:
        ticket = worker.ask(act)
        self._wake()
        return ticket

    def stop(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for a clean stop; it is done when the socket is gone."""
        self._stop()
        return {"stopping": True}

    def _chosen(self, arguments: Mapping[str, Any]) -> list[GroupWorker]:
        """The workers of the volumes that were named, or all."""
        names = arguments.get("volumes") or []
        if not isinstance(names, list):
            raise UsageError("volumes is a list of names")
        view = self._holder.get().view()
        wanted = {view.volume(str(name)).uuid for name in names}
        found = [worker for worker in self.workers if not wanted or wanted & set(worker.plan.members)]
        missing = wanted - {uuid for worker in found for uuid in worker.plan.members}
        if missing or not found:
            raise NotFoundError("the agent doesn't publish that volume", mend="name one that `agent status` lists")
        return found


def _wait(ticket: Ticket, timeout_s: float) -> Any:
    """What a ticket's worker came to."""
    if not ticket.done.wait(timeout_s):
        raise ConflictError(f"it isn't in the log after {timeout_s:g} s; it will be", mend="agent status says why")
    if ticket.error is not None:
        raise ticket.error
    return ticket.result


def _points(ticket: Ticket, timeout_s: float) -> list[dict[str, Any]]:
    """What a ticket's round came to, as restore points."""
    _wait(ticket, timeout_s)
    assert ticket.round is not None, "answered"
    return points_of(ticket.round, ticket.labels)
