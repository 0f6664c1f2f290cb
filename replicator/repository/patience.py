"""A daemon's clock and patience: what its threads wait by, ended all at once by a stop.

A Waiter as log/interface knows it; tests drive one of their own.
"""

from __future__ import annotations

import threading
import time


class StopWaiter:
    """Waits on the machine's clock; `stop` ends all waits, for ever."""

    def __init__(self) -> None:
        self._stopped = threading.Event()

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        return time.monotonic()

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until a stop; True then."""
        return self._stopped.wait(seconds)

    def stop(self) -> None:
        """Ask everybody to stop."""
        self._stopped.set()

    def is_stopping(self) -> bool:
        """Whether a stop was asked for."""
        return self._stopped.is_set()
