"""The agent's sign of life in the log: "nothing newer than N up to this instant", every few seconds and after commits.

Beside the stream, for readers that must tell an idle disk from a dead agent. Before one is written the log's tail is
looked at: a later epoch means that another publisher took over, and then its beacon is left alone; a tail before what
stood means that the log lost its end, and nothing is said until the publisher has found out.

Invariants
  B1  A beacon names the tail that stands for sure, and an instant at which the volume was N; it never promises more.
  B2  Nothing is said before the first transaction is in the log.
"""

from __future__ import annotations

from agent.append import log_errors
from agent.clock import Clock
from replicator.events.beacon import Beacon
from replicator.events.state import StreamState
from replicator.log.interface import Log

INTERVAL_S = 10.0
"""As readers expect it; a beacon costs the log one small object."""


class BeaconKeeper:
    """Writes one volume's beacon when it is due; for one thread."""

    def __init__(self, log: Log, clock: Clock, interval_s: float = INTERVAL_S) -> None:
        self._log, self._clock, self._interval_s = log, clock, interval_s
        self._due_s = clock.monotonic()

    @property
    def due_s(self) -> float:
        """When the next one is due, on the monotonic clock."""
        return self._due_s

    def hurry(self) -> None:
        """There is news: the next one is due now."""
        self._due_s = self._clock.monotonic()

    def postpone(self) -> None:
        """Nothing can be said now: the next one is due an interval later."""
        self._due_s = self._clock.monotonic() + self._interval_s

    def write(self, durable: StreamState, equal_until_ns: int) -> bool:
        """Write it; False, with nothing written, where the log's tail isn't ours any more: look at it again."""
        self.postpone()
        if durable.committed is None:
            return True
        with log_errors():
            tail = self._log.reader(durable.volume, durable.timeline).tail()
            if tail.epoch > durable.epoch or tail.sequence < durable.sequence:
                return False
            now = max(self._clock.now_ns(), equal_until_ns)
            self._log.write_beacon(Beacon.of(durable, equal_until_ns, now))
        return True
