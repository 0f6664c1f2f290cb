"""A clock and patience that a test drives: each wait moves the time on, and may do something meanwhile."""

from __future__ import annotations

from collections.abc import Callable


class ManualWaiter:
    """A Waiter; `meanwhile` are done one per wait, `stop_after` waits ask for a stop."""

    def __init__(self, *meanwhile: Callable[[], object], stop_after: int | None = None) -> None:
        self.now_s = 0.0
        self.waits = 0
        self._meanwhile = list(meanwhile)
        self._stop_after = stop_after

    def monotonic(self) -> float:
        """The test's own time."""
        return self.now_s

    def wait(self, seconds: float) -> bool:
        """Move on at once."""
        assert seconds > 0, "a wait that doesn't wait"
        self.now_s += seconds
        self.waits += 1
        if self._meanwhile:
            self._meanwhile.pop(0)()
        return self._stop_after is not None and self.waits >= self._stop_after


class WatchedWaiter(ManualWaiter):
    """Time goes on with each look at it, which a follower takes at least once an event; `look` is called at each."""

    def __init__(self, step_s: float) -> None:
        super().__init__()
        self._step_s = step_s
        self.look: Callable[[], None] = lambda: None

    def monotonic(self) -> float:
        self.now_s += self._step_s
        self.look()
        return self.now_s
