"""What all hosts of one simulated world share: time, chance, the truth, and the way to the log."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID

from replicator.errors import ReplicatorError
from replicator.log.interface import Log
from tests.support.two_hosts_line import Line
from tests.support.two_hosts_truth import Truth

SECOND_NS = 1_000_000_000


class Clock:
    """One time for all, which nobody waits for: an agent's Clock, and what pools stamp cuts with."""

    def __init__(self) -> None:
        self.at_ns = 1_800_000_000 * SECOND_NS

    def now_ns(self) -> int:
        """Never twice the same."""
        self.at_ns += 1000
        return self.at_ns

    def monotonic(self) -> float:
        """Seconds."""
        return self.at_ns / SECOND_NS

    def wait(self, seconds: float) -> bool:
        """Time passes at once."""
        self.advance(seconds)
        return False

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.at_ns += int(seconds * SECOND_NS)

    @property
    def is_stopping(self) -> bool:
        """Nobody is asked to stop."""
        return False

    def wake(self) -> None:
        """Nobody sleeps."""


@dataclass(slots=True)
class Setting:
    """What all hosts of one world share."""

    truth: Truth
    clock: Clock
    chance: random.Random
    new_uuid: Callable[[], UUID]
    connect: Callable[[Line], Log]
    late: list[Callable[[], object]] = field(default_factory=list)
    meanwhile: Callable[[str], None] = lambda _: None

    def late_calls_arrive(self, likelihood: float) -> None:
        """What dead agents had sent is carried out now, or later still; nobody hears the answer."""
        for call in list(self.late):
            if self.chance.random() < likelihood:
                self.late.remove(call)
                with suppress(ReplicatorError), self.truth.acts(""):
                    call()
