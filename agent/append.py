"""Bodies become events at the end of one stream: sealed, gathered, limited in rate, and appended.

Between extract and the log. What the log answers is turned into three cases that the driver can act on:

    the log says            raised            what the driver does
    Appended                -                 goes on
    AppendConflict          UnsettledError    settles (reads the tail) and decides again
    AppendUnknown           AnswerLostError   the same: what stands is found by reading, never guessed. It may still
                                              come to stand after that, until something else has taken its place
    unreachable, or full    LogAwayError      keeps base and target, and tries again later, for ever

Invariants
  A1  At most GATHERED_BYTES_MAX of events, and one, wait here; they are sent in order, each once between two settles.
  A2  After an error nothing is sent before `settle`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from replicator.errors import NoSpaceError, ReplicatorError, UnavailableError
from replicator.events.bodies import Body
from replicator.events.chain import seal
from replicator.events.codec import Event
from replicator.events.state import StreamState
from replicator.log.interface import Appended, AppendOutcome, AppendUnknown, Log, StreamWriter
from replicator.units import MIB

GATHERED_BYTES_MAX = 4 * MIB
"""Events sent together: worth a call to any log, small beside a slab."""


class LogAwayError(UnavailableError):
    """The log can't be reached, or is full: what isn't there yet waits in the pool."""

    kind = "log-away"


class UnsettledError(ReplicatorError):
    """The log may hold other events than we thought: read its tail before anything else."""

    kind = "unsettled"


class AnswerLostError(UnsettledError):
    """What was appended may stand, or come to stand later, in a place that nothing else has taken yet."""

    kind = "answer-lost"


@contextmanager
def log_errors() -> Iterator[None]:
    """What a log raises when it is away, as LogAwayError."""
    try:
        yield
    except (UnavailableError, NoSpaceError) as error:
        raise LogAwayError(error.message, mend=error.mend) from error


class Appender:
    """The end of one timeline of one volume; for one thread."""

    def __init__(self, log: Log, volume: UUID, timeline: int, pass_bytes: Callable[[int], None]) -> None:
        """`pass_bytes(count)` waits until so many bytes may pass."""
        self._log, self._volume, self._timeline = log, volume, timeline
        self._pass_bytes = pass_bytes
        self._writer: StreamWriter | None = None
        self._state: StreamState | None = None
        self._gathered: list[Event] = []
        self._gathered_bytes = 0

    @property
    def is_settled(self) -> bool:
        """Whether the tail is known."""
        return self._state is not None

    @property
    def state(self) -> StreamState:
        """The tail, with all bodies that were added."""
        assert self._state is not None, "settle first"
        return self._state

    @property
    def durable(self) -> StreamState:
        """The tail that stands in the log for sure."""
        assert self._writer is not None, "settle first"
        return self._writer.durable

    def settle(self) -> StreamState:
        """Drop what isn't durable, and read the stream's end."""
        self._forget()
        with log_errors():
            if self._writer is None:
                self._writer = self._log.writer(self._volume, self._timeline)
                self._state = self._writer.state
            else:
                self._state = self._writer.settle()
        return self._state

    def add(self, body: Body) -> None:
        """Append `body`, now or with the next ones."""
        event, self._state = seal(self.state, body)
        self._gathered.append(event)
        self._gathered_bytes += event.length_bytes
        if self._gathered_bytes >= GATHERED_BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        """Send what was gathered."""
        if not self._gathered:
            return
        self._pass_bytes(self._gathered_bytes)  # may raise: what was gathered waits on
        events, self._gathered, self._gathered_bytes = self._gathered, [], 0
        assert self._writer is not None
        writer = self._writer
        self._hear(lambda: writer.append(writer.state.link, events))

    def sync(self) -> None:
        """Make what was sent durable now, so that a stop loses none of it."""
        self.flush()
        if self._writer is not None:
            self._hear(self._writer.sync)

    def doubt(self) -> None:
        """The log isn't what we thought: `settle` comes first (A2)."""
        self._forget()

    def close(self) -> None:
        """Let go; what isn't durable is dropped."""
        self._forget()
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _forget(self) -> None:
        self._gathered, self._gathered_bytes, self._state = [], 0, None

    def _hear(self, call: Callable[[], AppendOutcome]) -> None:
        """The log's answer (A2)."""
        try:
            with log_errors():
                outcome = call()
        except BaseException:
            self._forget()
            raise
        if not isinstance(outcome, Appended):
            self._forget()
            kind = AnswerLostError if isinstance(outcome, AppendUnknown) else UnsettledError
            raise kind(f"append: {outcome.reason}")
