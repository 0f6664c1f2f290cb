"""Appends events to a stream of segments.

    append  -> events go into the open segment's sink (a temporary file), not visible yet
    roll    -> footer, trailer, and the name: durable, visible; the next event opens the next segment

A segment is rolled at TransactionCommitted and TransactionAborted, at the end of an append that leaves no transaction
open or that holds a PublisherOpened, at 64 MiB, before a folder's boundary, and at `sync`.

Failure table. `n` is the first event that isn't durable, the segment to come is named by it.

    dies or fails at                      what stands                     who goes on
    writing the sink                      events below n                  settle: the tail is n - 1; sent again from n
    looking for the predecessor           events below n                  the same
    the put, before the name is given     events below n, a stray         the same; the next PublisherOpened sweeps
    the put, after                        the segment, whole              settle finds it: AppendUnknown becomes done
    between two segments of an append     the first of them               settle: the tail is the first one's last event
    catalogue entry after the segment     the segment; an old entry       rewritten at the next PublisherOpened

    the log is put back from an older     events below an earlier m       W1: AppendConflict at the next put, whatever
    copy, while a writer is open                                          it says; settle finds the tail m - 1

Invariants, beside those of every writer (rolling, G1 to G3)
  W1  A segment is put only when its predecessor is known to stand: it was found durable at opening, or put by us, and
      its name is looked for again right before the put. So an end that went away under us isn't built on: that would
      be a hole behind which we go on, content, and nobody can ever read. It costs one request a segment; a log that is
      put back between that look and the put is not noticed.
  W2  Strays are swept by whoever's PublisherOpened stands, and by nobody else.
"""

from __future__ import annotations

from replicator.events.codec import Event
from replicator.events.record import RECORD_BYTES_MAX
from replicator.events.state import StreamState
from replicator.log import names
from replicator.log.errors import PutUnknownError
from replicator.log.interface import AppendOutcome, AppendUnknown
from replicator.log.rolling import RollingWriter
from replicator.log.segment import SegmentBuilder
from replicator.log.stream import SegmentStream


class SegmentWriter(RollingWriter):
    """A StreamWriter over segments."""

    def __init__(self, stream: SegmentStream) -> None:
        self._stream = stream
        self._builder: SegmentBuilder | None = None
        self._last: int | None = None  # where the last segment begins
        super().__init__()

    def _read_tail(self) -> StreamState:
        state, self._last = self._stream.checked_end()
        return state

    def _gather(self, event: Event, before: StreamState) -> None:
        if self._builder is None:
            sink = self._stream.store.create(self._stream.name_of(before.sequence + 1))
            self._builder = SegmentBuilder(sink, before)
        self._builder.add(event, self.state)

    def _is_full(self) -> bool:
        return self._builder is not None and self._builder.full

    def _has_gathered(self) -> bool:
        return self._builder is not None

    def _drop(self) -> None:
        builder, self._builder = self._builder, None
        if builder is not None:
            builder.abort()

    def _roll(self) -> AppendOutcome | None:
        """Put the open segment."""
        builder, self._builder = self._builder, None
        if builder is None:
            return None
        first = self._durable.sequence + 1
        try:
            gone = self._gone()
            if gone:
                return self._conflict(self._durable.link, f"{gone} went away: the log lost its end")
            stands = builder.commit()
        except PutUnknownError as error:
            return AppendUnknown(self._durable, error.message)
        finally:
            builder.abort()
        if not stands:
            return self._conflict(self._durable.link, f"somebody else put {self._stream.name_of(first)}")
        self._durable, self._last = builder.state, first
        return None

    def _gone(self) -> str:
        """The name of the last segment, if it doesn't stand any more (W1)."""
        if self._last is None:
            return ""
        name = self._stream.name_of(self._last)
        return "" if self._stream.store.size(name) is not None else name

    def _on_opened(self) -> None:
        """W2."""
        volume = self._durable.volume
        prefix = names.timeline_prefix(volume, self._durable.timeline)
        for owned in (f"{prefix}/", names.beacon_name(volume), names.catalogue_name(volume)):
            self._stream.store.sweep(owned)

    def _read_entry(self) -> tuple[bytes | None, str]:
        name = names.catalogue_name(self._durable.volume)
        return self._stream.store.get(name, RECORD_BYTES_MAX), name

    def _write_entry(self, data: bytes) -> None:
        self._stream.store.put(names.catalogue_name(self._durable.volume), data)
