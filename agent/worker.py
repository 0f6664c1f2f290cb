"""One group's life: a round every interval, beacons in between, and patience when something is away.

Driven by the daemon's thread (`run`), or by a test (`step`): no step waits, each says when the next one is due.

    what a round meets                  shown                                   next
    done, or nothing changed            protected                               at the next interval
    LogAwayError                        not protected: log unreachable          backoff, for ever; base and target stay
    UnavailableError                    not protected: the exporter is away     backoff; the pool is connected again
    VoidedError, other errors           not protected: what it says, its mend   backoff; a new cut
    FencedError, TimelineOverError      not protected: what it says             never: another one publishes
    other RefusedError                  not protected, with its mend            the longest delay, until it is mended
    StoppedError                        -                                       what was sent is synced

Invariants
  W1  A failure's instant is that of the first in a row (T2 of history/protection).
  W2  A request for a cut is answered exactly once: with its points, or with the error that its round met.
  W3  An instant stands in a beacon only with the transaction that the volume was found equal to at it: after a log
      lost its end, what was known of a later one says nothing of an earlier one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import astuple, dataclass, field, replace
from uuid import UUID

from agent.append import LogAwayError
from agent.backoff import Backoff
from agent.beacon import BeaconKeeper
from agent.context import Context
from agent.cut import GroupPublisher, Round
from agent.decide import FencedError, RefusedError, TimelineOverError
from agent.hooks import Hooks
from agent.meter import SentMeter
from agent.publish import StoppedError
from replicator.errors import NotFoundError, ReplicatorError, UnavailableError
from replicator.events.state import StreamState
from replicator.events.values import StateName
from replicator.history.protection import Failure
from replicator.pool.catalogue_schema import Role

LONGEST_STEP_S = 10.0
"""Between two steps at most, so that a stop of the clock or a missed wake is never longer felt."""


@dataclass(slots=True)
class Ticket:
    """A cut that somebody waits for."""

    labels: tuple[str, ...] = ()
    done: threading.Event = field(default_factory=threading.Event)
    result: Round | None = None
    error: ReplicatorError | None = None

    def answer(self, result: Round | None, error: ReplicatorError | None = None) -> None:
        """W2."""
        self.result, self.error = result, error
        self.done.set()


@dataclass(frozen=True, slots=True)
class Plan:
    """How one group is cut: its name (empty for a volume by itself), members, interval and hooks."""

    members: tuple[UUID, ...]
    name: str = ""
    interval_s: float = 1.0
    hooks: Hooks = field(default_factory=Hooks)
    backoff: Backoff = field(default_factory=Backoff)


class GroupWorker:
    """Rounds and beacons of one group; `request` and `pause` may be called from any thread, `step` from one."""

    def __init__(
        self,
        context: Context,
        plan: Plan,
        *,
        chance: Callable[[], float],
        lose_pool: Callable[[], None] = lambda: None,
    ) -> None:
        self.plan = plan
        self.meter = SentMeter()
        self.over: ReplicatorError | None = None
        self.failure: Failure | None = None
        self.last_success_ns: int | None = None
        self.equal_until: dict[UUID, int] = {}
        self._equal_to: dict[UUID, StateName | None] = {}
        self.paused_since_ns: int | None = None
        self._context = replace(context, tell=self._tell, count=self._count)
        self._publisher = GroupPublisher(self._context, plan.members, name=plan.name, hooks=plan.hooks)
        self._beacons = {uuid: BeaconKeeper(context.log, context.clock) for uuid in plan.members}
        self._chance, self._lose_pool = chance, lose_pool
        self._attempts = 0
        self._last: ReplicatorError | None = None
        self._next_s = context.clock.monotonic()
        self._tickets: deque[Ticket] = deque()
        plan.hooks.thaw_now(context.report)

    # -- from any thread ---------------------------------------------------------------------------------------

    def request(self, labels: tuple[str, ...] = ()) -> Ticket:
        """A cut as soon as may be; its ticket."""
        ticket = Ticket(labels)
        if self.over is not None:
            ticket.answer(None, self.over)
        else:
            self._tickets.append(ticket)
        return ticket

    def pause(self) -> None:
        """No more rounds until `resume`; beacons go on."""
        self.paused_since_ns = self.paused_since_ns or self._context.clock.now_ns()

    def resume(self) -> None:
        """Rounds again."""
        self.paused_since_ns = None

    def tails(self) -> dict[UUID, StreamState | None]:
        """Each member's tail as it stands in the log, as far as known."""
        return {uuid: member.durable for uuid, member in list(self._publisher.members.items())}

    # -- the worker's thread -----------------------------------------------------------------------------------

    def run(self) -> None:
        """Steps until a stop is asked for, or nothing is left to do."""
        clock = self._context.clock
        while not clock.is_stopping and self.over is None:
            delay = self.step()
            if delay > 0 and clock.wait(delay):
                break
        self.close()

    def step(self) -> float:
        """What is due now; how long until something is due again."""
        now = self._context.clock.monotonic()
        is_wanted = bool(self._tickets) or (self.paused_since_ns is None and now >= self._next_s)
        if is_wanted and self.over is None:
            self._round(now)
        if self.over is None and not self._context.clock.is_stopping:
            self._guard(self._write_beacons)
        due_s = [keeper.due_s for keeper in self._beacons.values()]
        if self.paused_since_ns is None:
            due_s.append(self._next_s)
        delay_s = min(due_s, default=float("inf")) - self._context.clock.monotonic()
        return 0.0 if self._tickets else min(LONGEST_STEP_S, max(0.0, delay_s))

    def close(self) -> None:
        """Sync what was sent, let go, and answer who still waits."""
        if self.over is None:
            self._guard(self._publisher.sync)
        self._publisher.close()
        stopped = StoppedError("the agent was stopped before the cut could be made")
        while self._tickets:
            self._tickets.popleft().answer(None, self.over or stopped)

    def _round(self, began_s: float) -> None:
        tickets = [self._tickets.popleft() for _ in range(len(self._tickets))]
        labels = tuple(dict.fromkeys(label for ticket in tickets for label in ticket.labels))
        done: list[Round] = []
        error = self._guard(lambda: done.append(self._publisher.round(labels)))
        if error is None:
            self._succeeded(done[0], began_s)
        for ticket in tickets:
            ticket.answer(done[0] if done else None, error)

    def _succeeded(self, done: Round, began_s: float) -> None:
        for uuid in self._publisher.members:
            self.equal_until[uuid], self._equal_to[uuid] = done.timestamp_ns, done.tails[uuid].committed
            if done.made:
                self._beacons[uuid].hurry()
        self.failure, self._attempts = None, 0
        self.last_success_ns = self._context.clock.now_ns()
        self._next_s = max(began_s + self.plan.interval_s, self._context.clock.monotonic())

    def _write_beacons(self) -> None:
        """Those that are due; whose place was taken, or whose log lost its end, finds out in the next round."""
        for uuid in self._due_beacons():
            self._publisher.members[uuid].look_again()
            self._next_s = self._context.clock.monotonic()

    def _tell(self) -> None:
        """After each event: signs of life go on during a transaction of hours; appending itself meets who took over."""
        self._due_beacons()

    def _due_beacons(self) -> list[UUID]:
        """Write what is due; the volumes whose tail isn't ours any more."""
        now, taken = self._context.clock.monotonic(), []
        for uuid, keeper in self._beacons.items():
            if now < keeper.due_s:
                continue
            durable = self._publisher.members[uuid].durable
            until = self._equal_until(durable) if durable is not None else 0
            if durable is None or not until:
                keeper.postpone()
            elif not keeper.write(durable, until):
                taken.append(uuid)
        return taken

    def _equal_until(self, durable: StreamState) -> int:
        """The latest instant at which the volume was found equal to the log's last transaction (W3); 0: none known."""
        uuid, committed = durable.volume, durable.committed
        if committed is None:
            return 0
        if uuid not in self.equal_until or self._equal_to.get(uuid) != committed:
            self.equal_until.pop(uuid, None)
            position = self._context.pool().view().position(uuid, Role.PUBLISHED)
            if position is None or (position.timeline, position.number, position.digest) != astuple(committed):
                return 0
            self.equal_until[uuid], self._equal_to[uuid] = position.timestamp_ns, committed
        return self.equal_until[uuid]

    def _count(self, count_bytes: int) -> None:
        self.meter.add(self._context.clock.monotonic(), count_bytes)

    # -- failures ----------------------------------------------------------------------------------------------

    def _guard(self, act: Callable[[], object]) -> ReplicatorError | None:
        """Do it; what it meets becomes the group's state (the table above), and is returned."""
        try:
            act()
        except StoppedError as error:
            return error
        except (FencedError, TimelineOverError) as error:
            self.over = error
            self._failed(error, error.message)
        except LogAwayError as error:
            self._publisher.look_again()
            self._failed(error, f"log unreachable: {error.message}")
        except RefusedError as error:
            self._publisher.look_again()
            self._failed(error, error.message, attempts=32)
        except NotFoundError as error:
            if not self._drop_deleted():
                self._failed(error, error.message)
            return error
        except UnavailableError as error:
            self._lose_pool()
            self._failed(error, f"the pool's exporter is away: {error.message}")
        except ReplicatorError as error:
            self._publisher.look_again()
            self._failed(error, error.message)
        else:
            return None
        return self.over or self._last

    def _failed(self, error: ReplicatorError, reason: str, attempts: int = 0) -> None:
        clock = self._context.clock
        self._attempts = max(self._attempts + 1, attempts)
        delay = self.plan.backoff.delay_s(self._attempts, self._chance())
        self._next_s = clock.monotonic() + delay
        since = self.failure.since_ns if self.failure else clock.now_ns()
        self.failure = Failure(since, reason, error.mend)
        self._last = error
        for keeper in self._beacons.values():
            keeper.postpone()
        self._context.report(reason)

    def _drop_deleted(self) -> bool:
        """Go on without members that were deleted from the pool; whether there were any."""
        there = {each.uuid for each in self._context.pool().view().volumes}
        gone = set(self._publisher.members) - there
        self._publisher.only(gone)
        for uuid in gone:
            self._beacons.pop(uuid, None)
        if gone and not self._publisher.members:
            self.over = NotFoundError("the volume was deleted from the pool")
        return bool(gone)
