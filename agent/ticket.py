"""What somebody waits for while a group's worker does it: a cut, or a job between two rounds.

Made by the daemon's socket, answered by the worker, exactly once, by `answer`: with what came out, or with the error.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from agent.cut import GroupPublisher, Round
from replicator.errors import ReplicatorError

Act = Callable[[GroupPublisher], Any]


@dataclass(slots=True)
class Ticket:
    """A cut with `labels`, whose Round is `result`; or a job `act`, whose value is."""

    labels: tuple[str, ...] = ()
    act: Act | None = None
    done: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    error: ReplicatorError | None = None

    def answer(self, result: Any, error: ReplicatorError | None = None) -> None:
        """Somebody hears it now."""
        self.result, self.error = result, error
        self.done.set()

    @property
    def round(self) -> Round | None:
        """The round of a cut."""
        return self.result if isinstance(self.result, Round) else None


class Tickets:
    """Those that wait for one worker; closed once, after which every new one is answered at once."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._waiting: deque[Ticket] = deque()
        self._in_hand: list[Ticket] = []
        self._ended: ReplicatorError | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, ticket: Ticket) -> None:
        """Let it wait; where nobody works any more it is answered with why."""
        with self._turn:
            ended = self._ended
            if ended is None:
                self._waiting.append(ticket)
        if ended is not None:
            ticket.answer(None, ended)

    def take(self) -> list[Ticket]:
        """All that wait; who takes them answers each, before it takes the next ones."""
        with self._turn:
            taken, self._waiting = list(self._waiting), deque()
            self._in_hand = [*taken]
        return taken

    def close(self, error: ReplicatorError) -> None:
        """Nobody works any more: all are answered with `error`, and so is who comes later."""
        with self._turn:
            self._ended = self._ended or error
            left, self._waiting, self._in_hand = [*self._in_hand, *self._waiting], deque(), []
        for ticket in left:
            if not ticket.done.is_set():
                ticket.answer(None, error)
