"""A process's line to the log, in the simulation of two hosts: each call may fail, be left unanswered, or be the last.

One Line a process; whatever stands behind it (objects, or a broker) makes its calls through it.

    fault            the call is done    the caller
    AWAY_BEFORE      no                  UnavailableError
    AWAY_AFTER       yes                 UnavailableError; where the seam must tell, that the outcome is unknown
    UNKNOWN_BEFORE   no                  of an append: the outcome is unknown
    UNKNOWN_AFTER    yes                 the same
    DEAD_BEFORE      no                  is dead
    DEAD_AFTER       yes                 is dead
    DEAD_LATE        later               is dead, or will never be heard again: a zombie's last append (no other call)
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TypeVar

from replicator.errors import ReplicatorError, UnavailableError
from tests.support.two_hosts_pool import DeadError

Value = TypeVar("Value")


class LineFault(enum.Enum):
    """What happens to one call."""

    AWAY_BEFORE = "away-before"
    AWAY_AFTER = "away-after"
    UNKNOWN_BEFORE = "unknown-before"
    UNKNOWN_AFTER = "unknown-after"
    DEAD_BEFORE = "dead-before"
    DEAD_AFTER = "dead-after"
    DEAD_LATE = "dead-late"

    @property
    def is_death(self) -> bool:
        """Whether the caller dies of it."""
        return self in (LineFault.DEAD_BEFORE, LineFault.DEAD_AFTER, LineFault.DEAD_LATE)

    @property
    def is_of_appends(self) -> bool:
        """Whether it befalls appends only, where it means something of its own."""
        return self in (LineFault.UNKNOWN_BEFORE, LineFault.UNKNOWN_AFTER, LineFault.DEAD_LATE)

    @property
    def is_done(self) -> bool:
        """Whether the call is carried out all the same."""
        return self in (LineFault.AWAY_AFTER, LineFault.UNKNOWN_AFTER, LineFault.DEAD_AFTER)


class Line:
    """One process's calls to the log; `arm` plans a fault, `calm` drops the plan."""

    def __init__(
        self,
        is_dead: Callable[[], bool],
        late: list[Callable[[], object]] | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """`late` gets the calls that are still on their way when their caller is no more; `meanwhile` may do some."""
        self._is_dead_otherwise, self._meanwhile = is_dead, meanwhile
        self._late = late if late is not None else []
        self._fault: LineFault | None = None
        self._at = self._length = 0
        self.is_dead = False

    def arm(self, fault: LineFault, at: int, length: int = 1) -> None:
        """The `at`-th call from now on, and those behind it, `length` in all, meet `fault`."""
        self._fault, self._at, self._length = fault, at, length

    def calm(self) -> None:
        """Nothing is planned any more."""
        self._fault = None

    @property
    def is_gone(self) -> bool:
        """Whether the process behind the line is dead, of this or otherwise."""
        return self.is_dead or self._is_dead_otherwise()

    def call(self, do: Callable[[], Value], unknown: Callable[[str], ReplicatorError] = UnavailableError) -> Value:
        """One call; `unknown` makes the error that says "perhaps done"."""
        if self.is_gone:
            raise DeadError
        self._meanwhile()
        fault = self._due(is_append=unknown is not UnavailableError)
        if fault is None:
            return do()
        if fault.is_done:
            do()
        if fault is LineFault.DEAD_LATE:
            self._late.append(do)
        if fault.is_death:
            self.is_dead = True
            raise DeadError
        if fault is LineFault.AWAY_BEFORE:
            raise UnavailableError("the line went down")
        raise unknown("the line went down before the answer came")

    def _due(self, *, is_append: bool) -> LineFault | None:
        if self._fault is None or (self._fault.is_of_appends and not is_append):
            return None
        self._at -= 1
        if self._at > 0:
            return None
        self._length -= 1
        fault = self._fault
        if self._length <= 0:
            self._fault = None
        return fault
