"""A bounded number of threads for what would keep a connection's thread waiting: cold reads, COW, trims, status.

Between exporter/transmission, which submits, and exporter/execution, which is what they do. A thread of the pool
never waits for a client, so that one client's requests don't stop another's.

Invariants
  K1  While a job runs, its thread's slot shows the gate's generation of its begin: no block that it looks up is given
      to another volume meanwhile (thin/gate).
  K2  A connection has at most _MOST_JOBS jobs and _MOST_BYTES of their data and replies, or one larger job.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from replicator.thin.gate import IDLE, Gate, Slot
from replicator.units import MIB

WORKERS = 16  # cold random reads at depth 32 want as many at once as a disk takes; each costs a stack
_MOST_JOBS = 256  # of one connection: twice the deepest queue that clients use
_MOST_BYTES = 8 * MIB  # of one connection: sixty-four connections stay below half a gigabyte

_log = logging.getLogger(__name__)


class Workers:
    """Threads that carry out jobs in the order in which they were submitted."""

    def __init__(self, gate: Gate, count: int = WORKERS) -> None:
        self._gate = gate
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"nbd-worker-{number}", daemon=True) for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Callable[[], None]) -> None:
        """Run `job` soon; it answers for its own failures."""
        self._jobs.put(job)

    def close(self) -> None:
        """End the threads when all that was submitted is done."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        slot = self._gate.register()
        try:
            while (job := self._jobs.get()) is not None:
                self._do(job, slot)
        finally:
            self._gate.unregister(slot)

    def _do(self, job: Callable[[], None], slot: Slot) -> None:
        slot.generation = self._gate.generation
        try:
            job()
        except Exception:  # noqa: BLE001 - a fault of ours in one job ends no worker
            _log.exception("a worker's job failed")
        finally:
            slot.generation = IDLE


class InFlight:
    """One connection's jobs that aren't answered yet: how many, and how many bytes they hold."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.count = 0
        self.held_bytes = 0

    def has_room(self, length_bytes: int) -> bool:
        """Whether a job of that size may be begun now (K2)."""
        with self._changed:
            return self._has_room(length_bytes)

    def wait_for_room(self, length_bytes: int) -> None:
        """Wait until it may."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_room(length_bytes))

    def begin(self, length_bytes: int) -> None:
        """A job begins; only the connection's thread begins any."""
        with self._changed:
            self.count += 1
            self.held_bytes += length_bytes

    def end(self, length_bytes: int) -> None:
        """It is answered."""
        with self._changed:
            self.count -= 1
            self.held_bytes -= length_bytes
            self._changed.notify_all()

    def wait_for_none(self, limit_s: float | None = None) -> bool:
        """Wait until nothing is in flight, at most `limit_s`; whether that came true."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.count, limit_s)

    def _has_room(self, length_bytes: int) -> bool:
        return self.count < _MOST_JOBS and (not self.count or self.held_bytes + length_bytes <= _MOST_BYTES)
