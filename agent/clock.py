"""The agent's clock and patience: one seam, so that tests drive both.

Passed to whoever waits, stamps or retries. Two clocks in one: `now_ns` is the instant that stands in events and
beacons (it may jump), `monotonic` measures (it never goes back).
"""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """Now, and waiting for later."""

    def now_ns(self) -> int:
        """Nanoseconds since 1970 UTC."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until a stop or a wake is asked for; True once a stop was asked for."""

    @property
    def is_stopping(self) -> bool:
        """Whether a stop was asked for."""


class SystemClock:
    """The machine's clocks; `wake` ends one wait, `stop` ends all of them, for ever."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._stopping = False
        self._wakes = 0

    def now_ns(self) -> int:
        """Nanoseconds since 1970 UTC."""
        return time.time_ns()

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        return time.monotonic()

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until a stop or a wake is asked for."""
        with self._changed:
            wakes = self._wakes
            self._changed.wait_for(lambda: self._stopping or self._wakes != wakes, max(0.0, seconds))
            return self._stopping

    @property
    def is_stopping(self) -> bool:
        """Whether a stop was asked for."""
        return self._stopping

    def wake(self) -> None:
        """End the waits that are under way."""
        with self._changed:
            self._wakes += 1
            self._changed.notify_all()

    def stop(self) -> None:
        """Ask everybody to stop."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
