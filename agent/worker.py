"""One group's life: a round when it is due, beacons in between, and patience when something is away.

Driven by the daemon's thread (`run`), or by a test (`step`): no step waits, each says when the next one is due.

    what a round meets                  shown                                   next
    done, or nothing changed            protected                               as the schedule says
    LogAwayError                        not protected: log unreachable          backoff, for ever; base and target stay,
                                                                                unless the pool runs low (relief)
    UnavailableError                    not protected: the exporter is away     backoff; the pool is connected again
    VoidedError, other errors           not protected: what it says, its mend   backoff; a new cut
    FencedError, TimelineOverError      not protected: what it says             never: another one publishes
    other RefusedError                  not protected, with its mend            the longest delay, until it is mended
    any other exception (a bug)         not protected: crashed                  never: the agent ends with exit 1
    StoppedError                        -                                       what was sent is synced

Invariants
  W1  A failure's instant is that of the first in a row (T2 of history/protection).
  W2  A request is answered exactly once: with what came out, or with the error that it met; after the end, at once.
  W3  An instant stands in a beacon only with the transaction that the volume was found equal to at it: after a log
      lost its end, what was known of a later one says nothing of an earlier one.
  W4  `beat_s` moves while anything goes on: between steps, events, and slices of every wait and read of ours.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, tzinfo
from typing import Any
from uuid import UUID

from agent.append import LogAwayError
from agent.attesting import Attesting, Background, in_thread
from agent.backoff import Backoff
from agent.beacon import INTERVAL_S as BEACON_S
from agent.context import Context
from agent.cut import GroupPublisher, Round
from agent.decide import FencedError, RefusedError, TimelineOverError
from agent.farewell import buried, gone_volumes
from agent.hooks import Hooks
from agent.meter import SentMeter
from agent.relief import WhenFull, relieve
from agent.schedule import Every, Schedule
from agent.signs import Signs
from agent.ticket import Act, Ticket, Tickets
from agent.transmit import StoppedError
from replicator.errors import NotFoundError, ReplicatorError, UnavailableError
from replicator.events.state import StreamState
from replicator.history.points import NS_PER_S
from replicator.history.protection import Failure

LONGEST_STEP_S = 10.0
"""Between two steps at most, so that a stop of the clock or a missed wake is never longer felt."""


class CrashedError(ReplicatorError):
    """A bug of ours ended a worker."""

    kind = "crashed"


@dataclass(frozen=True, slots=True)
class Plan:
    """How one group is cut: its name (empty for a volume by itself), members, schedule, hooks, and what gives way."""

    members: tuple[UUID, ...]
    name: str = ""
    schedule: Schedule = field(default_factory=Every)
    hooks: Hooks = field(default_factory=Hooks)
    backoff: Backoff = field(default_factory=Backoff)
    when_full: WhenFull = WhenFull.DROP_BASE
    attest_s: float | None = None
    beacon_s: float = BEACON_S


class GroupWorker:
    """Rounds and beacons of one group; `request`, `ask` and `pause` from any thread, `step` from one."""

    def __init__(
        self,
        context: Context,
        plan: Plan,
        *,
        chance: Callable[[], float],
        lose_pool: Callable[[], None] = lambda: None,
        background: Background = in_thread,
        zone: tzinfo = UTC,
    ) -> None:
        self.plan = plan
        self.meter = SentMeter()
        self.over: ReplicatorError | None = None
        self.failure: Failure | None = None
        self.last_success_ns: int | None = None
        self.paused_since_ns: int | None = None
        self.resumed_ns: int | None = None
        self.beat_s = context.clock.monotonic()
        self._context = replace(context, tell=self._tell, count=self._count)
        self._publisher = GroupPublisher(self._context, plan.members, name=plan.name, hooks=plan.hooks)
        self.signs = Signs(self._context, self._publisher, plan.beacon_s)
        self._attesting = Attesting(self._context, plan.attest_s, background)
        self._chance, self._lose_pool, self._zone = chance, lose_pool, zone
        self._attempts = 0
        self._last: ReplicatorError | None = None
        self._next_s = self.beat_s
        self._due_ns = 0
        if not isinstance(plan.schedule, Every):
            self._schedule(0.0)
        self._tickets = Tickets()
        self._joining: set[UUID] = set()
        plan.hooks.thaw_now(context.report)

    # -- from any thread ---------------------------------------------------------------------------------------

    def request(self, labels: tuple[str, ...] = ()) -> Ticket:
        """A cut as soon as may be; its ticket."""
        ticket = Ticket(labels)
        self._tickets.add(ticket)
        return ticket

    def ask(self, act: Act) -> Ticket:
        """Have `act` done between two rounds; its ticket."""
        ticket = Ticket(act=act)
        self._tickets.add(ticket)
        return ticket

    def join(self, members: Sequence[UUID]) -> None:
        """Have these cut with the group's others, as soon as what is under way is in the log (G6 of cut)."""
        if not self._joining.issuperset(members):
            self._joining.update(members)
            self.ask(lambda publisher: self._join(publisher, members))

    def pause(self) -> None:
        """No more rounds until `resume`; beacons go on."""
        self.paused_since_ns = self.paused_since_ns or self._context.clock.now_ns()
        self.resumed_ns = None

    def resume(self) -> None:
        """Rounds again."""
        if self.paused_since_ns is not None:
            self.resumed_ns, self.paused_since_ns = self._context.clock.now_ns(), None

    def failure_of(self, volume: UUID) -> Failure | None:
        """What hinders publishing, in one member's words: what it is refused for, or whom its group waits for."""
        failure, refused = self.failure, self._publisher.refused
        if failure is None or not refused or len(self.plan.members) == 1:
            return failure
        own = refused.get(volume)
        if own is not None:
            return Failure(failure.since_ns, own.message, own.mend)
        return replace(failure, reason=f"its group is cut together, and waits: {failure.reason}")

    def tails(self) -> dict[UUID, StreamState | None]:
        """Each member's tail as it stands in the log, as far as known."""
        return {uuid: member.durable for uuid, member in list(self._publisher.members.items())}

    # -- the worker's thread -----------------------------------------------------------------------------------

    def run(self) -> None:
        """Steps until a stop is asked for, or nothing is left to do."""
        clock = self._context.clock
        try:
            while not clock.is_stopping and self.over is None:
                delay = self.step()
                if delay > 0 and clock.wait(delay):
                    break
            self.close()
        except BaseException as error:
            self._crashed(error)
            raise

    def step(self) -> float:
        """What is due now; how long until something is due again."""
        clock = self._context.clock
        self._beat()
        cuts = self._do_jobs()
        is_due = clock.monotonic() >= self._next_s and clock.now_ns() >= self._due_ns
        if self.over is None and (cuts or (is_due and self.paused_since_ns is None)):
            self._round(cuts)
        if self.over is None and not clock.is_stopping:
            self._guard(self._between_rounds)
        self._beat()
        return 0.0 if self._tickets or cuts else self._delay_s()

    def close(self) -> None:
        """Sync what was sent, let go, and answer who still waits (W2)."""
        self._attesting.end()
        if self.over is None:
            self._guard(self._publisher.sync)
        self._publisher.close()
        self._tickets.close(self.over or StoppedError("the agent was stopped before it could be done"))

    def _delay_s(self) -> float:
        clock = self._context.clock
        due_s = self.signs.due_s()
        if self.paused_since_ns is None:
            due_s.append(max(self._next_s, clock.monotonic() + (self._due_ns - clock.now_ns()) / NS_PER_S))
        return min(LONGEST_STEP_S, max(0.0, min(due_s, default=LONGEST_STEP_S) - clock.monotonic()))

    def _do_jobs(self) -> list[Ticket]:
        """Do what was asked for besides cuts; the tickets of those."""
        cuts = []
        for ticket in self._tickets.take():
            if ticket.act is None:
                cuts.append(ticket)
                continue
            try:
                ticket.answer(ticket.act(self._publisher))
                self._next_s = min(self._next_s, self._context.clock.monotonic())
            except ReplicatorError as error:
                self._publisher.look_again()
                ticket.answer(None, error)
        return cuts

    def _join(self, publisher: GroupPublisher, members: Sequence[UUID]) -> None:
        try:
            self._guard_deletion()  # one that went hinders nobody who comes
            if self.over is not None:
                return
            publisher.join(members)
        finally:
            self._joining.difference_update(members)  # who wants them here asks again
        self.plan = replace(self.plan, members=tuple(publisher.members))
        self.signs = Signs(self._context, publisher, self.plan.beacon_s)

    def _round(self, tickets: list[Ticket]) -> None:
        began_s = self._context.clock.monotonic()
        asked = [label for ticket in tickets for label in ticket.labels]
        done: list[Round] = []

        def act() -> None:
            attesting = self._attesting.labels(self.plan.members)
            done.append(self._publisher.round(tuple(dict.fromkeys((*asked, *attesting)))))
            if attesting:
                self._attesting.begin(done[0].tails)

        error = self._guard(act)
        if error is None:
            self._succeeded(done[0], began_s)
        for ticket in tickets:
            ticket.answer(done[0] if done and error is None else None, error)

    def _succeeded(self, done: Round, began_s: float) -> None:
        self.signs.found_equal(done)
        self.failure, self._attempts, self._last = None, 0, None
        self.resumed_ns = None
        self.last_success_ns = self._context.clock.now_ns()
        self._schedule(self._context.clock.monotonic() - began_s)

    def _schedule(self, took_s: float) -> None:
        """The next round: an interval is measured, an hour of the day is looked up."""
        clock = self._context.clock
        delay_s = self.plan.schedule.delay_s(took_s, clock.now_ns(), self._zone)
        if isinstance(self.plan.schedule, Every):
            self._next_s = clock.monotonic() + delay_s
        else:
            self._next_s, self._due_ns = clock.monotonic(), clock.now_ns() + int(delay_s * NS_PER_S)

    def _between_rounds(self) -> None:
        """Beacons that are due; whose place was taken, or whose log lost its end, finds out in the next round."""
        if isinstance(self._last, LogAwayError):
            self._relieve()
        while self._attesting.ready and self.failure is None:
            uuid, body = self._attesting.ready[0]
            self._publisher.say(uuid, body)
            self._attesting.ready.popleft()
            self._attesting.appended(uuid)
        for uuid in self.signs.write_due():
            self._publisher.members[uuid].look_again()
            self._next_s, self._due_ns = self._context.clock.monotonic(), 0

    def _relieve(self) -> None:
        self._attesting.end()
        if self.plan.when_full is WhenFull.DROP_BASE and relieve(self._context.pool(), self.plan.members):
            self._context.report(
                "the pool runs low while the log is away: the base was let go of, so that writes go on;"
                " the next transaction is found by comparing hashes with those in the log"
            )

    def _beat(self) -> None:
        """W4."""
        self.beat_s = self._context.clock.monotonic()

    def _tell(self) -> None:
        """After each event: signs of life go on during a transaction of hours; appending itself meets who took over."""
        self._beat()
        self.signs.write_due()

    def _count(self, count_bytes: int) -> None:
        self.meter.add(self._context.clock.monotonic(), count_bytes)

    # -- failures ----------------------------------------------------------------------------------------------

    def _guard(self, act: Callable[[], Any]) -> ReplicatorError | None:
        """Do it; what it meets becomes the group's state (the table above), and is returned."""
        try:
            act()
        except StoppedError as error:
            return error
        except (FencedError, TimelineOverError) as error:
            self._failed(error, error.message)
            self._end(error)
        except LogAwayError as error:
            self._publisher.look_again()
            self._failed(error, f"log unreachable: {error.message}")
        except RefusedError as error:
            self._publisher.look_again()
            self._failed(error, error.message, attempts=32)
        except NotFoundError as error:
            return self._meet_absence(error)
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
        self._next_s, self._due_ns = clock.monotonic() + delay, 0
        since = self.failure.since_ns if self.failure else clock.now_ns()
        self.failure = Failure(since, reason, error.mend)
        self._last = error
        self.signs.postpone()
        self._context.report(reason)

    def _end(self, error: ReplicatorError) -> None:
        """No more rounds, ever."""
        self.over = error
        self._tickets.close(error)

    def _crashed(self, error: BaseException) -> None:
        """A bug: loud, in the status and by the agent's end; the trace goes to the journal."""
        reason = f"crashed: {type(error).__name__}: {error}"
        self._context.report("".join(traceback.format_exception(error))[-4000:])
        self._failed(ReplicatorError(reason), reason)
        self._end(CrashedError(f"publishing {reason}", mend="a bug of replicator: please report what the journal says"))

    # -- volumes that were deleted -----------------------------------------------------------------------------

    def _meet_absence(self, error: NotFoundError) -> ReplicatorError:
        """Something isn't there: members that were deleted from the pool leave, and the log is told."""
        failed = self._guard_deletion()
        if failed is not None and not isinstance(failed, NotFoundError):
            return failed
        if failed is None:
            self._failed(error, error.message)
        return self.over or error

    def _guard_deletion(self) -> ReplicatorError | None:
        """None: nothing was deleted; NotFoundError: it was, and it's done; else what hindered."""
        gone: set[UUID] = set()
        try:
            gone = set(self._publisher.members) - {each.uuid for each in self._context.pool().view().volumes}
            self._bury(gone)
        except LogAwayError as error:
            self._failed(error, f"log unreachable: {error.message}")
            return error
        except UnavailableError as error:
            self._lose_pool()
            self._failed(error, f"the pool's exporter is away: {error.message}")
            return error
        except ReplicatorError as error:
            self._failed(error, error.message)
            return error
        if gone and not self._publisher.members:
            self._end(NotFoundError("the volume was deleted from the pool"))
        return NotFoundError("a volume was deleted from the pool") if gone else None

    def _bury(self, gone: set[UUID]) -> None:
        pool = self._context.pool()
        known = {each.volume: each for each in gone_volumes(pool.view())}
        for uuid in gone & known.keys():
            self._publisher.members[uuid].bury(known[uuid])
            buried(pool, uuid)
        self._publisher.only(gone)
        self.signs.leave(gone)
