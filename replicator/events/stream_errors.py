"""What can be wrong with the next event of a stream, as types: each says where the stream stands.

    type                exit  meaning
    GapError            3     a later event came: at least one is missing
    ReorderedError      3     the missing one came after the later one
    BrokenOrderError    3     the event may not follow here, or its running counts are wrong
    WrongBaseError      4     a transaction stands on another state than the stream's last commit
    OtherHistoryError   4     another volume, a timeline that doesn't fork here, or a later epoch on other events
    ForkError           4     two events of one epoch claim one place
    StreamEndedError    4     something came after TimelineEnded

Damage (3) is mended by getting the log's bytes again; a conflict (4) by a person, since two histories exist.
"""

from __future__ import annotations

from replicator.errors import ConflictError, DamageError
from replicator.events.state import StreamState


def _message(state: StreamState, what: str) -> str:
    name = f"{state.name} ({state.volume})" if state.name else str(state.volume)
    return f"volume {name}, after {state.position}: {what}"


class StreamDamageError(DamageError):
    """The stream's bytes aren't what was written; `state` is where it stood."""

    kind = "stream-damage"

    def __init__(self, state: StreamState, what: str, *, mend: str | None = None) -> None:
        super().__init__(_message(state, what), mend=mend)
        self.state = state


class StreamConflictError(ConflictError):
    """The stream holds another history than ours; `state` is where we stand."""

    kind = "stream-conflict"

    def __init__(self, state: StreamState, what: str, *, mend: str | None = None) -> None:
        super().__init__(_message(state, what), mend=mend)
        self.state = state


class GapError(StreamDamageError):
    """At least one event is missing: `missing` is [begin, end) in sequence numbers."""

    kind = "gap"

    def __init__(self, state: StreamState, found_sequence: int) -> None:
        super().__init__(state, f"gap: expected event {state.sequence + 1}, found {found_sequence}")
        self.missing = (state.sequence + 1, found_sequence)


class ReorderedError(StreamDamageError):
    """The expected event came, but after a later one."""

    kind = "reordered"


class BrokenOrderError(StreamDamageError):
    """An event that may not follow here."""

    kind = "broken-order"


class WrongBaseError(StreamConflictError):
    """A transaction's base isn't what the stream last committed."""

    kind = "wrong-base"


class OtherHistoryError(StreamConflictError):
    """An event of another history: it doesn't go on from the events we have."""

    kind = "other-history"


class ForkError(StreamConflictError):
    """Two events of one epoch for one place: two publishers that believe they are one."""

    kind = "fork"


class StreamEndedError(StreamConflictError):
    """The timeline has ended; another one took over."""

    kind = "stream-ended"
