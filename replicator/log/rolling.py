"""The order of things in every StreamWriter: take events, roll what was gathered, be spent after a failure, settle.

Between log/interface and the writers of a kind of log (writer: segments; kafka_writer: transactions of a broker), which
say how events are gathered, and how what was gathered becomes durable.

    append  -> each event is checked, and gathered
    roll    -> what was gathered becomes durable and visible, as a whole

Rolled at TransactionCommitted and TransactionAborted, when enough is gathered, at the end of an append that leaves no
transaction open or that holds a PublisherOpened, and at `sync`.

Invariants
  G1  Every event was accepted by the same checker that readers use, before it was gathered.
  G2  After anything but Appended the writer is spent until `settle` (L4).
  G3  The catalogue's entry is written after what it tells of is durable, and never over that of a later timeline; over
      a damaged one always, so that no flipped bit in it keeps a volume from being published.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from replicator.errors import ConflictError, FormatError
from replicator.events.bodies import (
    PublisherOpened,
    TimelineStarted,
    TransactionAborted,
    TransactionCommitted,
    VolumeCreated,
)
from replicator.events.chain import ChainChecker, Verdict
from replicator.events.codec import Event
from replicator.events.state import Life, StreamState
from replicator.events.values import Link
from replicator.log.discovery import entry_of
from replicator.log.interface import AppendConflict, Appended, AppendOutcome, VolumeEntry
from replicator.log.records import encode_entry


class RollingWriter(ABC):
    """A StreamWriter but for its log: its abstract methods are the log's."""

    def __init__(self) -> None:
        self._spent = False
        self._host = ""
        self._opened: Link | None = None
        self._entry: VolumeEntry | None = None
        self._durable = self._read_tail()
        self._checker = ChainChecker(self._durable)

    # -- what the log says -------------------------------------------------------------------------------------

    @abstractmethod
    def _read_tail(self) -> StreamState:
        """The stream's end, which is durable."""

    @abstractmethod
    def _gather(self, event: Event, before: StreamState) -> None:
        """Keep an event, which was accepted; the stream stood at `before`."""

    @abstractmethod
    def _is_full(self) -> bool:
        """Whether what was gathered should be rolled now."""

    @abstractmethod
    def _has_gathered(self) -> bool:
        """Whether something waits for a roll."""

    @abstractmethod
    def _roll(self) -> AppendOutcome | None:
        """Make what was gathered durable; None when it stands, or when there is nothing."""

    @abstractmethod
    def _drop(self) -> None:
        """Forget what isn't durable."""

    @abstractmethod
    def _read_entry(self) -> tuple[bytes | None, str]:
        """The catalogue's entry of this volume, and how errors name it."""

    @abstractmethod
    def _write_entry(self, data: bytes) -> None:
        """Replace it."""

    @abstractmethod
    def _on_opened(self) -> None:
        """Our PublisherOpened stands now: what others left half done may be cleared away."""

    # -- StreamWriter ------------------------------------------------------------------------------------------

    @property
    def state(self) -> StreamState:
        """After the last event that was taken."""
        return self._checker.state

    @property
    def durable(self) -> StreamState:
        """After the last event that is known to stand."""
        return self._durable

    def append(self, expected: Link, events: Sequence[Event]) -> AppendOutcome:
        """Take `events`, which hang on `expected` (L2)."""
        self._require_ready()
        if expected != self.state.link:
            return self._conflict(expected, f"the stream stands at {self.state.link}")
        self._spent = True  # until all went well: an exception leaves it so (G2)
        for event in events:
            self._take(event)
            closes = isinstance(event.body, TransactionCommitted | TransactionAborted)
            failed = self._roll() if closes or self._is_full() else None
            if failed:
                return failed
        claims = self._opened is not None and self._opened.sequence > self._durable.sequence
        failed = self._roll() if claims or self.state.open is None else None
        return failed or self._appended()

    def sync(self) -> AppendOutcome:
        """Make what was taken durable."""
        self._require_ready()
        self._spent = True
        return self._roll() or self._appended()

    def settle(self) -> StreamState:
        """Read the stream's end again (L3)."""
        self._drop()
        self._durable = self._read_tail()
        self._checker = ChainChecker(self._durable)
        if self._opened != self._durable.link:  # not known to be ours: what it allows waits for the next one
            self._opened = None
        self._spent = False
        return self._durable

    def close(self) -> None:
        """Drop what isn't durable."""
        self._drop()
        self._spent = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- in common ---------------------------------------------------------------------------------------------

    def _require_ready(self) -> None:
        if self._spent:
            raise ConflictError("the writer must settle before it can append again")

    def _conflict(self, expected: Link, reason: str) -> AppendConflict:
        self._drop()
        self._spent = True
        return AppendConflict(self._durable, expected, reason)

    def _take(self, event: Event) -> None:
        """G1."""
        before = self.state
        verdict = self._checker.accept(event)
        assert verdict is Verdict.APPLY, f"{event} isn't the next event"
        if isinstance(event.body, VolumeCreated | TimelineStarted | PublisherOpened):
            self._host = event.body.host
        if isinstance(event.body, PublisherOpened):
            self._opened = event.link
        self._gather(event, before)

    def _appended(self) -> Appended:
        """All went well; what is ours to keep is kept, once nothing waits for a roll."""
        if not self._has_gathered():
            if self._opened is not None:
                self._on_opened()
                self._opened = self._entry = None
            if self._host:
                self._keep_catalogue()
        self._spent = False
        return Appended(self._durable)

    def _keep_catalogue(self) -> None:
        """Write the entry where it isn't what the stream says (G3)."""
        state = self._durable
        deleted = state.life is Life.DELETED
        entry = VolumeEntry(state.volume, state.timeline, state.name, self._host, state.size_bytes, deleted)
        if entry == self._entry:
            return
        known = None
        with suppress(FormatError):  # a damaged one is written over
            data, where = self._read_entry()
            known = entry_of(state.volume, data, where) if data else None
        if known is None or (known != entry and known.timeline <= entry.timeline):
            self._write_entry(encode_entry(entry))
        self._entry = entry
