"""When a group's volumes are attested, and what was read waits to be appended: between worker and attest.

    due          the next cut is labelled `attested-TIME`, and each member read beside the rounds that follow
    read         the hashes wait here; the worker appends them before its next cut
    appended     the pool remembers when, so that restarts don't begin anew
    failed       reported, and tried again RETRY_S later

    setting          value
    attested UUID    the instant of the cut that was attested last, in nanoseconds

Invariants
  I1  One attestation of a group at a time; none begins while the log is away, and those under way end then: a read
      snapshot can't be let go of to make room (relief).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from uuid import UUID

from agent.attest import attested
from agent.context import Context
from agent.cut import base_of
from agent.rows import switched
from replicator.errors import ReplicatorError
from replicator.events.bodies import VolumeAttested
from replicator.events.state import StreamState
from replicator.events.values import StateName
from replicator.history.points import NS_PER_S
from replicator.pool.catalogue_schema import Setting
from replicator.pool.changes import Put
from replicator.pool.interface import Switch

SETTING = "attested "
"""With the volume's UUID behind it."""

RETRY_S = 3600.0

Background = Callable[[Callable[[], None]], None]


def in_thread(act: Callable[[], None]) -> None:
    """Do it beside the rounds; ends with the process."""
    threading.Thread(target=act, name="attest", daemon=True).start()


class Attesting:
    """The attestations of one group; `ready` is filled from another thread, all else is the worker's."""

    def __init__(self, context: Context, interval_s: float | None, background: Background = in_thread) -> None:
        self._context, self._interval_s, self._background = context, interval_s, background
        self._due_ns: int | None = None
        self._running = 0
        self._ending = threading.Event()
        self._turn = threading.Lock()
        self.ready: deque[tuple[UUID, VolumeAttested]] = deque()

    def labels(self, members: Sequence[UUID]) -> tuple[str, ...]:
        """What the next cut is labelled with; nothing while none is due."""
        if self._interval_s is None or self._running or self.ready:
            return ()
        now_ns = self._context.clock.now_ns()
        if self._due_ns is None:
            view = self._context.pool().view()
            last = min((int(view.setting(f"{SETTING}{uuid}", "0")) for uuid in members), default=0)
            self._due_ns = last + int(self._interval_s * NS_PER_S)
        if now_ns < self._due_ns:
            return ()
        return (f"attested-{datetime.fromtimestamp(now_ns // NS_PER_S, UTC):%Y%m%dT%H%M%SZ}",)

    def begin(self, tails: Mapping[UUID, StreamState]) -> None:
        """The labelled cut is in the log: read it."""
        assert self._interval_s is not None
        self._due_ns = self._context.clock.now_ns() + int(self._interval_s * NS_PER_S)
        self._ending.clear()
        for uuid, tail in tails.items():
            if tail.committed is not None:
                with self._turn:
                    self._running += 1
                self._background(partial(self._read, uuid, tail.committed))

    def end(self) -> None:
        """Read on no further (I1)."""
        self._ending.set()

    def appended(self, uuid: UUID) -> None:
        """The log has it: remembered."""
        row = Setting(f"{SETTING}{uuid}", str(self._context.clock.now_ns()))
        switched(self._context.pool(), lambda _: Switch(changes=(Put(row),)))

    def _is_ending(self) -> bool:
        return self._ending.is_set() or self._context.clock.is_stopping

    def _read(self, uuid: UUID, point: StateName) -> None:
        try:
            view = self._context.pool().view()
            dev_id = base_of(view, uuid)
            if dev_id is None or view.snapshot(dev_id).digest != point.digest:
                raise ReplicatorError("the attested cut was let go of meanwhile")
            body = attested(self._context, view.volume(uuid), view.snapshot(dev_id), point, self._is_ending)
            self.ready.append((uuid, body))
        except ReplicatorError as error:
            self._due_ns = self._context.clock.now_ns() + int(RETRY_S * NS_PER_S)
            self._context.report(f"the volume couldn't be attested: {error.message}")
        finally:
            with self._turn:
                self._running -= 1
