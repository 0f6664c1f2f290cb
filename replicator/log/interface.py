"""One interface for all logs: append with an expected position, read, follow, tail, beacon, trim.

Called by the publisher (StreamWriter), the follower and restore (StreamReader). One contract, one suite for every
implementation (tests/contracts/test_log.py, L11 in test_lost_end.py):

  L1  What `Appended.durable` names survives a crash and a power cut of the log's host, in this order, unchanged.
  L2  An append is refused as AppendConflict, with nothing written, if the stream doesn't end at `expected`, or
      somebody else's event took the place; of two writers exactly one gets a place.
  L3  AppendUnknown says that events after `durable` may stand or not: `settle` reads what does. Never guess.
  L4  After AppendConflict, AppendUnknown or an exception the writer takes nothing until `settle` was called.
  L5  A reader gets whole events in the order of their sequence numbers, each checked, or a typed error; damage
      is found before any event of the damaged part is handed out.
  L6  A reader is told apart: nothing new yet (the iteration ends), trimmed (TrimmedError), missing in the middle
      (LogGapError), the log ends before what was asked for (LostEndError), damaged (SegmentError).
  L7  Events become visible and durable at the latest at a transaction's end, at PublisherOpened, at the end of an
      append that leaves no transaction open, or at `sync`. Until then they may be buffered, in bounded memory.
  L8  A beacon is replaced as a whole; it is never seen torn.
  L9  Trimming removes events below a position, as far as whole units allow, and never the last one; what is kept
      stays readable throughout, and a crash in the middle leaves either the old or the new start.
  L10 Trimming never removes an event that a registered receiver has not verified, whatever position was asked for.
      A registration is replaced as a whole, and holds until it is forgotten, however long its receiver is silent.
  L11 Where the log lost its end under an open writer (it was put back from an older copy), the next append is an
      AppendConflict, with nothing written: no event ever stands behind a hole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TypeAlias
from uuid import UUID

from replicator.events.beacon import Beacon
from replicator.events.codec import Event
from replicator.events.state import StreamState
from replicator.events.values import (
    TIMELINE_LIMIT,
    Link,
    require_name,
    require_number,
    require_range,
    require_size,
    require_text,
)


@dataclass(frozen=True, slots=True)
class VolumeEntry:
    """A line of the catalogue: for discovery only, the stream decides."""

    volume: UUID
    timeline: int
    name: str
    host: str
    size_bytes: int
    deleted: bool

    def __post_init__(self) -> None:
        require_range(self.timeline, 1, TIMELINE_LIMIT, "VolumeEntry.timeline")
        require_name(self.name, "VolumeEntry.name")
        require_text(self.host, "VolumeEntry.host")
        require_size(self.size_bytes, "VolumeEntry.size_bytes")


@dataclass(frozen=True, slots=True)
class Registration:
    """A receiver's word about a volume, beside its stream: all up to `sequence` is verified in its pool (L10).

    Renewed by the receiver as it goes on; `at_ns` is its own clock, so its age tells how long it is silent, and against
    the log's clock how far the clocks differ. `receiver` is the UUID of the replica's pool.
    """

    volume: UUID
    receiver: UUID
    name: str
    timeline: int
    number: int
    sequence: int
    at_ns: int

    def __post_init__(self) -> None:
        require_text(self.name, "Registration.name")
        require_range(self.timeline, 1, TIMELINE_LIMIT, "Registration.timeline")
        for field in ("number", "sequence", "at_ns"):
            require_number(getattr(self, field), f"Registration.{field}")


@dataclass(frozen=True, slots=True)
class Appended:
    """All events were taken; those up to `durable` stand (L1, L7)."""

    durable: StreamState


@dataclass(frozen=True, slots=True)
class AppendConflict:
    """The place is another's (L2); events up to `durable` stand."""

    durable: StreamState
    expected: Link
    reason: str


@dataclass(frozen=True, slots=True)
class AppendUnknown:
    """Events after `durable` may stand or not (L3)."""

    durable: StreamState
    reason: str


AppendOutcome: TypeAlias = Appended | AppendConflict | AppendUnknown


class Waiter(Protocol):
    """The clock and the patience of a follower; tests drive it by hand."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until a stop is asked for; True then."""


class StreamWriter(Protocol):
    """Appends to one timeline of one volume. For one thread; leaves nothing half-written when closed."""

    @property
    def state(self) -> StreamState:
        """After the last event that was taken, durable or not."""

    @property
    def durable(self) -> StreamState:
        """After the last event that is known to stand."""

    def append(self, expected: Link, events: Sequence[Event]) -> AppendOutcome:
        """Add `events`, which hang on `expected`, the end of the stream (L1, L2, L3, L7)."""

    def sync(self) -> AppendOutcome:
        """Make all that was taken durable now."""

    def settle(self) -> StreamState:
        """Drop what isn't durable, read the stream's end again, and be ready to append there (L3, L4)."""

    def close(self) -> None:
        """Drop what isn't durable, and let go."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class StreamReader(Protocol):
    """Reads one timeline of one volume (L5, L6). For one thread."""

    def tail(self) -> StreamState:
        """What the stream has come to at its end; StreamState.start where it is empty."""

    def start(self) -> StreamState:
        """The state before the first event that is kept."""

    def read(self, sequence: int) -> Iterator[Event]:
        """The events from `sequence` on that stand now."""

    def follow(self, sequence: int, waiter: Waiter, timeout_s: float) -> Iterator[Event]:
        """As `read`, and those that come; ends when none came for `timeout_s`, or when a stop is asked for."""


class Log(Protocol):
    """A place that holds the streams of many volumes."""

    @property
    def name(self) -> str:
        """How messages name it."""

    def volumes(self) -> list[VolumeEntry]:
        """The catalogue, by name."""

    def timelines(self, volume: UUID) -> list[int]:
        """The timelines that have events or are claimed, ascending."""

    def claim_timeline(self, volume: UUID, timeline: int, host: str) -> bool:
        """Take the number of a new timeline; False if somebody has it. Of two exactly one gets True."""

    def writer(self, volume: UUID, timeline: int) -> StreamWriter:
        """A writer at the stream's end, which was read and is durable. Takes nothing from another writer yet."""

    def reader(self, volume: UUID, timeline: int) -> StreamReader:
        """A reader."""

    def read_beacon(self, volume: UUID) -> Beacon | None:
        """The volume's last beacon."""

    def write_beacon(self, beacon: Beacon) -> None:
        """Replace it (L8)."""

    def register(self, registration: Registration) -> None:
        """Replace what this receiver said of this volume."""

    def registrations(self, volume: UUID) -> list[Registration]:
        """What the volume's receivers said last, by name."""

    def forget(self, volume: UUID, receiver: UUID) -> bool:
        """Strike a receiver off, so that it no longer holds back trimming; False if it wasn't registered."""

    def trim(self, volume: UUID, timeline: int, below_sequence: int) -> int:
        """Remove events below (L9, L10); the first sequence number that is kept."""

    def close(self) -> None:
        """Let go of what is held."""


def trim_limit(registrations: Sequence[Registration], timeline: int, below_sequence: int) -> int:
    """The highest position up to which `timeline` may be trimmed when `below_sequence` was asked for (L10).

    A receiver that is still on an earlier timeline needs all of this one; one on a later timeline needs none of it.
    """
    limit = below_sequence
    for registration in registrations:
        if registration.timeline < timeline:
            return 0
        if registration.timeline == timeline:
            limit = min(limit, registration.sequence + 1)
    return limit
