"""A deterministic scheduler: real threads of the engine, of which one runs at a time, switched where `chance` says.

    with scheduled(chance) as scheduler:         # the engine's modules get this module's locks and threads
        scheduler.run(scenario)                  # scenario() may start Thread(…); a seed does the same again

A task may be stopped before any line of the traced modules, at each lock, and in the middle of each read and write of
a `HalvingDevice`. A task that waits for a lock or a condition isn't chosen until that is there; if nobody can go on,
waits with a time limit run out first, and else it is a deadlock, told with what everybody waits for.

Invariants
  S1  Exactly one task runs at any time: whoever has the turn. So what a seed does once, it does always.
  S2  Nothing outlives `run`: after a deadlock or an error every other task is ended at its next stop.
"""

from __future__ import annotations

import concurrent.futures._base as futures_base
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType, ModuleType
from typing import Any, Self

from replicator._buffer import Buffer
from replicator.blockdev import memory
from replicator.blockdev.memory import MemoryDevice
from replicator.pdata import counts
from replicator.thin import device, engine, folding, gate, paging, space, table

SCHEDULED: tuple[ModuleType, ...] = (counts, device, engine, gate, memory, paging, space, futures_base)
TRACED = frozenset(module.__file__ for module in (device, engine, folding, gate, paging, space, table))
LIMIT_S = 60.0


class DeadlockError(AssertionError):
    """Nobody can go on."""


class EndedError(BaseException):
    """This task is to end, since another one failed (S2)."""


class Task:
    """One thread, and what it waits for."""

    def __init__(self, name: str, work: Callable[[], object]) -> None:
        self.name, self.work = name, work
        self.turn = threading.Semaphore(0)
        self.ready: Callable[[], bool] | None = None
        self.waits_for = ""
        self.may_time_out = self.done = False
        self.thread = threading.Thread(target=lambda: None)


class Scheduler:
    """The tasks of one run. `switch_chance` is that of a switch before a line."""

    def __init__(self, chance: random.Random, switch_chance: float = 0.03) -> None:
        self._chance, self._switch_chance = chance, switch_chance
        self._tasks: list[Task] = []
        self._current: Task | None = None
        self._failure: BaseException | None = None
        self._over = threading.Event()
        self._lines: dict[CodeType, bool] = {}
        self.steps = self.switches = 0

    def run(self, scenario: Callable[[], object]) -> None:
        """`scenario` as the first task, to its end and that of all that it started; raises what failed."""
        first = self.start("scenario", scenario)
        self._current = first
        first.turn.release()
        assert self._over.wait(LIMIT_S), self._who_waits()
        for task in self._tasks:
            task.thread.join(LIMIT_S)
        if self._failure is not None:
            raise self._failure

    def start(self, name: str, work: Callable[[], object]) -> Task:
        """One more task, which may go on from now."""
        task = Task(name, work)
        task.thread = threading.Thread(target=self._body, args=(task,), name=name, daemon=True)
        self._tasks.append(task)
        task.thread.start()
        return task

    def _body(self, task: Task) -> None:
        task.turn.acquire()
        try:
            if self._failure is None:
                sys.settrace(self._trace)
                task.work()
        except EndedError:
            pass
        except BaseException as error:  # noqa: BLE001 - told by `run`
            self._failure = self._failure or error
        finally:
            sys.settrace(None)
            task.done = True
            self._pass_on()

    def _pass_on(self) -> None:
        """The current task is done."""
        left = [task for task in self._tasks if not task.done]
        if not left:
            self._over.set()
            return
        try:
            chosen = left[0] if self._failure is not None else self._choose()
        except DeadlockError as error:
            self._failure = error
            chosen = left[0]
        self._current = chosen
        chosen.turn.release()

    # -- where tasks stop --------------------------------------------------------------------------------------

    def pause(self, ready: Callable[[], bool] | None = None, what: str = "", *, may_time_out: bool = False) -> bool:
        """Let others go on, until `ready()`; False when the time ran out instead."""
        task = self._current
        assert task is not None and task.thread is threading.current_thread(), "a thread that isn't scheduled (S1)"
        self._end_if_failed()
        task.ready, task.waits_for, task.may_time_out = ready, what, may_time_out
        try:
            chosen = self._choose()
        except DeadlockError as error:
            self._failure = error
            raise EndedError from None
        if chosen is not task:
            self.switches += 1
            self._current = chosen
            chosen.turn.release()
            task.turn.acquire()
        task.ready, was_ready = None, task.ready is None or task.ready()
        self._end_if_failed()
        return was_ready

    def _end_if_failed(self) -> None:
        if self._failure is not None:
            raise EndedError

    def _choose(self) -> Task:
        left = [task for task in self._tasks if not task.done]
        able = [task for task in left if task.ready is None or task.ready()]
        able = able or [task for task in left if task.may_time_out]
        if not able:
            raise DeadlockError(self._who_waits())
        return self._chance.choice(able)

    def _who_waits(self) -> str:
        return "; ".join(f"{task.name} waits for {task.waits_for}" for task in self._tasks if not task.done)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename in TRACED else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.steps += 1
            if self._chance.random() < self._switch_chance:
                self.pause()
        return self._line


class Lock:
    """threading.Lock; `waiters` don't queue, chance decides."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.owner: Task | None = None
        self.depth = 0

    def acquire(self) -> bool:
        """Wait until it is free."""
        self._scheduler.pause(lambda: self.owner is None, "a lock")
        self.owner, self.depth = self._scheduler._current, 1
        return True

    def release(self) -> None:
        """Whoever has it may let go."""
        if self.owner is None:  # its task was ended while it waited to get the lock back
            raise EndedError
        self.depth -= 1
        if not self.depth:
            self.owner = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class RLock(Lock):
    """threading.RLock."""

    def acquire(self) -> bool:
        """Wait until it is free, or this task's already."""
        if self.owner is self._scheduler._current:
            self.depth += 1
            return True
        return super().acquire()


class Condition(RLock):
    """threading.Condition with a lock of its own."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler)
        self._waiting: list[list[bool]] = []

    def wait(self, timeout: float | None = None) -> bool:
        """Until somebody notifies."""
        told = [False]
        self._waiting.append(told)
        depth, self.owner, self.depth = self.depth, None, 0
        was_told = self._scheduler.pause(lambda: told[0], "a condition", may_time_out=timeout is not None)
        if told in self._waiting:
            self._waiting.remove(told)
        super().acquire()
        self.depth = depth
        return was_told

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        """Until `predicate()`."""
        while not (found := predicate()):
            if not self.wait(timeout):
                return predicate()
        return found

    def notify(self, count: int = 1) -> None:
        """Let `count` of those who wait go on, the longest waiting first."""
        for told in self._waiting[:count]:
            told[0] = True
        del self._waiting[:count]

    def notify_all(self) -> None:
        """Let all go on."""
        self.notify(len(self._waiting))


class Thread:
    """threading.Thread: a task."""

    def __init__(
        self, scheduler: Scheduler, target: Callable[..., object], args: tuple[Any, ...] = (), name: str = "thread"
    ) -> None:
        self._scheduler, self._name, self._work = scheduler, name, lambda: target(*args)
        self._task: Task | None = None

    def start(self) -> None:
        """It may go on from now."""
        self._task = self._scheduler.start(self._name, self._work)

    def join(self) -> None:
        """Wait for its end."""
        task = self._task
        assert task is not None
        self._scheduler.pause(lambda: task.done, f"the end of {self._name}")


class ScheduledThreading:
    """What the scheduled modules find under the name `threading`."""

    local = threading.local

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def Lock(self) -> Lock:  # noqa: N802 - as in threading
        return Lock(self._scheduler)

    def RLock(self) -> RLock:  # noqa: N802 - as in threading
        return RLock(self._scheduler)

    def Condition(self) -> Condition:  # noqa: N802 - as in threading
        return Condition(self._scheduler)

    def Thread(  # noqa: N802 - as in threading
        self,
        *,
        target: Callable[..., object],
        args: tuple[Any, ...] = (),
        name: str = "thread",
        daemon: bool = True,
    ) -> Thread:
        return Thread(self._scheduler, target, args, name)


class HalvingDevice(MemoryDevice):
    """A disk whose reads and writes are done in two halves, with others in between."""

    scheduler: Scheduler

    def pread_into(self, target: Buffer, offset_bytes: int) -> None:
        view = memoryview(target).cast("B")
        half = len(view) // 1024 * 512
        self.scheduler.pause()
        super().pread_into(view[:half], offset_bytes)
        self.scheduler.pause()
        super().pread_into(view[half:], offset_bytes + half)

    def pwrite(self, data: Buffer, offset_bytes: int) -> None:
        view = memoryview(data).cast("B")
        half = len(view) // 1024 * 512
        self.scheduler.pause()
        super().pwrite(view[:half], offset_bytes)
        self.scheduler.pause()
        super().pwrite(view[half:], offset_bytes + half)


@contextmanager
def scheduled(chance: random.Random, switch_chance: float = 0.03) -> Iterator[Scheduler]:
    """The engine's modules, with this scheduler's threads and locks for the block's time."""
    scheduler = Scheduler(chance, switch_chance)
    stand_in = ScheduledThreading(scheduler)
    try:
        for module in SCHEDULED:
            module.__dict__["threading"] = stand_in
        yield scheduler
    finally:
        for module in SCHEDULED:
            module.__dict__["threading"] = threading
