"""An agent's clock that a test drives: each wait moves the time on, and may do something meanwhile."""

from __future__ import annotations

from collections.abc import Callable

SECOND_NS = 1_000_000_000
BEGIN_NS = 1_800_000_000 * SECOND_NS


class ManualClock:
    """A Clock; `meanwhile` are done one per wait, `stop` ends all waits."""

    def __init__(self, *meanwhile: Callable[[], object]) -> None:
        self.elapsed_ns = 0
        self.waits: list[float] = []
        self._meanwhile = list(meanwhile)
        self._stopping = False

    def now_ns(self) -> int:
        """The test's own instant."""
        return BEGIN_NS + self.elapsed_ns

    def monotonic(self) -> float:
        """The test's own seconds."""
        return self.elapsed_ns / SECOND_NS

    def wait(self, seconds: float) -> bool:
        """Move on at once."""
        self.advance(seconds)
        self.waits.append(seconds)
        if self._meanwhile:
            self._meanwhile.pop(0)()
        return self._stopping

    @property
    def is_stopping(self) -> bool:
        """Whether a stop was asked for."""
        return self._stopping

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.elapsed_ns += int(seconds * SECOND_NS)

    def stop(self) -> None:
        """Ask everybody to stop."""
        self._stopping = True

    def wake(self) -> None:
        """Nobody sleeps here."""
