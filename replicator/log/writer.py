"""Appends events to a stream of segments.

    append  -> events go into the open segment's sink (a temporary file), not visible yet
    roll    -> footer, trailer, and the name: durable, visible; the next event opens the next segment

A segment is rolled at TransactionCommitted and TransactionAborted, at the end of an append that leaves no transaction
open or that holds a PublisherOpened, at 64 MiB, before a folder's boundary, and at `sync`.

Failure table. `n` is the first event that isn't durable, the segment to come is named by it.

    dies or fails at                      what stands                     who goes on
    writing the sink                      events below n                  settle: the tail is n - 1; sent again from n
    the put, before the name is given     events below n, a stray         the same; the next PublisherOpened sweeps
    the put, after                        the segment, whole              settle finds it: AppendUnknown becomes done
    between two segments of an append     the first of them               settle: the tail is the first one's last event
    catalogue entry after the segment     the segment; an old entry       rewritten at the next PublisherOpened

Invariants
  W1  A segment is put only when its predecessor is known to stand: it was found durable at opening, or put by us.
  W2  Every event was accepted by the same checker that readers use, before it was written.
  W3  After anything but Appended the writer is spent until `settle` (L4).
  W4  Strays are swept by whoever's PublisherOpened stands, and by nobody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from replicator.errors import ConflictError
from replicator.events.bodies import (
    PublisherOpened,
    TimelineStarted,
    TransactionAborted,
    TransactionCommitted,
    VolumeCreated,
)
from replicator.events.chain import ChainChecker, Verdict
from replicator.events.codec import Event
from replicator.events.record import RECORD_BYTES_MAX
from replicator.events.state import Life, StreamState
from replicator.events.values import Link
from replicator.log import names
from replicator.log.errors import PutUnknownError
from replicator.log.interface import AppendConflict, Appended, AppendOutcome, AppendUnknown, VolumeEntry
from replicator.log.records import decode_entry, encode_entry
from replicator.log.segment import SegmentBuilder
from replicator.log.stream import SegmentStream


class SegmentWriter:
    """A StreamWriter over segments."""

    def __init__(self, stream: SegmentStream) -> None:
        self._stream = stream
        self._builder: SegmentBuilder | None = None
        self._spent = False
        self._host = ""
        self._opened: Link | None = None
        self._entry: VolumeEntry | None = None
        self._durable = stream.checked_tail()
        self._checker = ChainChecker(self._durable)

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
        self._spent = True  # until all went well: an exception leaves it so (W3)
        for event in events:
            self._take(event)
            closes = isinstance(event.body, TransactionCommitted | TransactionAborted)
            failed = self._roll() if closes or (self._builder and self._builder.full) else None
            if failed:
                return failed
        claims = self._opened is not None and self._opened.sequence > self._durable.sequence
        failed = self._roll() if claims or self.state.open is None else None
        if failed:
            return failed
        self._after_roll()
        self._spent = False
        return Appended(self._durable)

    def sync(self) -> AppendOutcome:
        """Put what was taken."""
        self._require_ready()
        self._spent = True
        failed = self._roll()
        if failed:
            return failed
        self._after_roll()
        self._spent = False
        return Appended(self._durable)

    def settle(self) -> StreamState:
        """Read the stream's end again (L3)."""
        self._drop()
        self._durable = self._stream.checked_tail()
        self._checker = ChainChecker(self._durable)
        if self._opened != self._durable.link:  # not known to be ours: the next PublisherOpened sweeps (W4)
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

    def _require_ready(self) -> None:
        if self._spent:
            raise ConflictError("the writer must settle before it can append again")

    def _conflict(self, expected: Link, reason: str) -> AppendConflict:
        self._drop()
        self._spent = True
        return AppendConflict(self._durable, expected, reason)

    def _drop(self) -> None:
        builder, self._builder = self._builder, None
        if builder is not None:
            builder.abort()

    def _take(self, event: Event) -> None:
        """W2."""
        before = self.state
        verdict = self._checker.accept(event)
        assert verdict is Verdict.APPLY, f"{event} isn't the next event"
        if isinstance(event.body, VolumeCreated | TimelineStarted | PublisherOpened):
            self._host = event.body.host
        if isinstance(event.body, PublisherOpened):
            self._opened = event.link
        if self._builder is None:
            sink = self._stream.store.create(self._stream.name_of(before.sequence + 1))
            self._builder = SegmentBuilder(sink, before)
        self._builder.add(event, self.state)

    def _roll(self) -> AppendOutcome | None:
        """Put the open segment; None when it stands, or when there is none."""
        builder, self._builder = self._builder, None
        if builder is None:
            return None
        try:
            stands = builder.commit()
        except PutUnknownError as error:
            return AppendUnknown(self._durable, error.message)
        finally:
            builder.abort()
        if not stands:
            name = self._stream.name_of(self._durable.sequence + 1)
            return self._conflict(self._durable.link, f"somebody else put {name}")
        self._durable = builder.state
        return None

    def _after_roll(self) -> None:
        """Sweep and keep the catalogue, once they are ours to touch and no sink of ours is open."""
        if self._builder is not None:
            return
        if self._opened is not None:
            self._sweep()
            self._opened = self._entry = None
        if self._host:
            self._keep_catalogue()

    def _sweep(self) -> None:
        """W4."""
        volume = self._durable.volume
        prefix = names.timeline_prefix(volume, self._durable.timeline)
        for owned in (f"{prefix}/", names.beacon_name(volume), names.catalogue_name(volume)):
            self._stream.store.sweep(owned)

    def _keep_catalogue(self) -> None:
        """Write the entry where it isn't what the stream says, unless a later timeline has it."""
        state = self._durable
        deleted = state.life is Life.DELETED
        entry = VolumeEntry(state.volume, state.timeline, state.name, self._host, state.size_bytes, deleted)
        if entry == self._entry:
            return
        name = names.catalogue_name(state.volume)
        data = self._stream.store.get(name, RECORD_BYTES_MAX)
        known = decode_entry(data, name) if data else None
        if known is None or (known != entry and known.timeline <= entry.timeline):
            self._stream.store.put(name, encode_entry(entry))
        self._entry = entry
