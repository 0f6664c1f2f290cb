"""A publisher that never gives up: it appends a script's events through every failure, settling by the tail.

Invariant R1: after each settle the log's end must be an event of the script; so what was appended is never another
history, and nothing is sent twice that stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from replicator.errors import ReplicatorError, UnavailableError
from replicator.events.codec import Event
from replicator.events.state import StreamState
from replicator.log.interface import AppendConflict, Appended, Log, StreamWriter
from tests.support.event_streams import VOLUME

TRIES_MAX = 400


class Resender:
    """Appends `events`, a stream from its beginning that may grow, to what `open_log` gives; counts what happened."""

    def __init__(self, open_log: Callable[[], Log], events: Sequence[Event]) -> None:
        self._open_log = open_log
        self._events = events
        self._writer: StreamWriter | None = None
        self.failures = self.unknowns = self.conflicts = 0

    def send(self, up_to: int) -> None:
        """Until the events up to `up_to` (a sequence number) are durable."""
        for _ in range(TRIES_MAX):
            try:
                writer = self._ready()
                if writer.durable.sequence >= up_to:
                    return
                state = self._known(writer.state)
                outcome = writer.append(state.link, self._events[state.sequence : up_to])
                if isinstance(outcome, Appended) and outcome.durable.sequence < up_to:
                    outcome = writer.sync()
            except UnavailableError:
                self.failures += 1
                self._writer = None
                continue
            if not isinstance(outcome, Appended):
                self.conflicts += isinstance(outcome, AppendConflict)
                self.unknowns += not isinstance(outcome, AppendConflict)
                self._settle(writer)
        raise AssertionError(f"not sent after {TRIES_MAX} tries")

    def _ready(self) -> StreamWriter:
        if self._writer is None:
            self._writer = self._open_log().writer(VOLUME, 1)
        return self._writer

    def _settle(self, writer: StreamWriter) -> None:
        try:
            self._known(writer.settle())
        except ReplicatorError:
            self.failures += 1
            self._writer = None

    def _known(self, state: StreamState) -> StreamState:
        """R1."""
        if state.sequence:
            assert state.link == self._events[state.sequence - 1].link, "the log has another history"
        return state

    def close(self) -> None:
        """Let go of the writer."""
        if self._writer is not None:
            self._writer.close()
