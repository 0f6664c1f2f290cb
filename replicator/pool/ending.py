"""Waiting for the end of the process that listens at a socket beside a pool: then its locks and devices are let go.

Used where a daemon is stopped (agent/job, receiver/running), and by daemons that end their exporter
(exporter/supervise). A daemon's socket goes a moment before its process, which may still hold the pool's lock.

Invariants
  W1  The process is held by a descriptor (pidfd) from a connection to it on, so that its number can't become another's.

A process that can't be held is waited for by its socket alone: one of another PID namespace (its number is 0 here), of
a kernel before 5.3, or this one.

Failures: UnavailableError (it is still there after the time given), and what the daemon itself raises.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from pathlib import Path

from replicator.errors import UnavailableError
from replicator.pool.daemons import ANSWER_S, Document, ask
from replicator.pool.sockets import connect, peer_of

_STEP_S = 0.05


class Listening:
    """The process that listens at `pool`/`name`: UnavailableError where none does. A context manager."""

    def __init__(self, pool: Path, name: str) -> None:
        self._pool, self._name = pool, name
        with contextlib.closing(connect(pool, name, ANSWER_S)) as connection:
            self.pid = peer_of(connection).pid
            self._process = _held(self.pid)

    def __enter__(self) -> Listening:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            os.close(self._process)

    def wait_gone(self, wait_s: float) -> None:
        """Until it has ended; UnavailableError, with its pid, where it hasn't after `wait_s`."""
        end = time.monotonic() + wait_s
        while not self._is_gone(max(0.0, end - time.monotonic())):
            if time.monotonic() >= end:
                where = self._pool / self._name
                mend = f"wait for it, or end it: kill -KILL {self.pid}; what was answered isn't lost"
                raise UnavailableError(f"pid {self.pid}, of {where}, hasn't ended after {wait_s:.0f} s", mend=mend)

    def _is_gone(self, left_s: float) -> bool:
        """After at most so long, or a step where its socket is all that is known of it."""
        if self._process is not None:
            poll = select.poll()
            poll.register(self._process, select.POLLIN)
            return bool(poll.poll(left_s * 1000))
        try:
            connect(self._pool, self._name, ANSWER_S).close()
        except UnavailableError:
            return True
        time.sleep(min(_STEP_S, left_s))
        return False


def _held(pid: int) -> int | None:
    """A descriptor of the process (W1); None for one that can't be held."""
    if pid in (0, os.getpid()):
        return None
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):  # a Python that was built without it
        return None


def stop_daemon(pool: Path, name: str, wait_s: float) -> Document | None:
    """Stop the daemon at `pool`/`name`, and return when its process is gone; None where none runs.

    It may be gone before it has answered: then the answer is empty.
    """
    try:
        daemon = Listening(pool, name)
    except UnavailableError:
        return None
    answer: Document = {}
    with daemon:
        with contextlib.suppress(UnavailableError):
            answer = ask(pool, name, "stop")
        daemon.wait_gone(wait_s)
    return answer
