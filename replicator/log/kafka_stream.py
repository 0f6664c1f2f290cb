"""Where a stream's events are in its topic: the tail, the start, and the offset of an event.

Offsets are no sequence numbers: commit markers and aborted transactions take some too. But both only grow, so an
event's offset is found by interpolation, and remembered where somebody read on.

    offset   log start ........................................... last stable
             [anchor][event][event][marker][event].. aborted ..[event][marker]

Invariants
  K1  Each record's `state` header is the state after its event; it is believed only where it names that event.
  K2  A topic that begins with offset 0 begins with the stream. Else the first record that is kept is the *anchor*: its
      event counts as trimmed, its state is the stream's start.
  K3  Events of an earlier epoch, or exact duplicates, that a broker let in beside the fence, may stand behind those
      whose numbers they have. The first record with a number counts; the tail is the last of the latest epoch.

Failures raised: SegmentError, TrimmedError, LostEndError; of `kafka` UnavailableError, OffsetGoneError, and
DamagedRecordError where it is another topic that is damaged.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

from replicator.errors import FormatError, UnavailableError
from replicator.events.codec import Event, decode_event
from replicator.events.digests import digest128
from replicator.events.header import Header, unpack_header
from replicator.events.state import StreamState, decode_state
from replicator.log.errors import LostEndError, SegmentError, TrimmedError
from replicator.log.kafka import Client, Consumer
from replicator.log.kafka_compacted import CompactedTopic
from replicator.log.kafka_consumers import Consumers
from replicator.log.kafka_errors import DamagedRecordError
from replicator.log.kafka_names import stream_topic
from replicator.log.kafka_records import Record

TAIL_OFFSETS = 2  # the last event and its transaction's marker: what a tail usually takes
CAREFUL_OFFSETS = 16  # what is looked at before something is built on the tail (K3): 20 MiB at most
HINTS_MAX = 1 << 16  # 10 MB, for the events of a few restores and followers
_WINDOW_FACTOR = 8
_MARKER_S = 0.002  # a broker writes a transaction's marker a moment after it answered its commit


class Hints:
    """Offsets that were met, the latest HINTS_MAX of all topics; from any thread.

    The event of that number comes at that offset or behind it, and none before it does.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._offsets: OrderedDict[tuple[str, int], int] = OrderedDict()

    def get(self, topic: str, sequence: int) -> int | None:
        """The offset, if it was met."""
        return self._offsets.get((topic, sequence))

    def put(self, topic: str, sequence: int, offset: int) -> None:
        """Remember one."""
        with self._turn:
            self._offsets[topic, sequence] = offset
            if len(self._offsets) > HINTS_MAX:
                self._offsets.popitem(last=False)

    def clear(self) -> None:
        """Forget all: one was wrong, since a topic was made anew or put back from a copy."""
        with self._turn:
            self._offsets.clear()


@dataclass(slots=True)
class KafkaPlace:
    """What the streams of one log share."""

    name: str
    prefix: str
    client: Client
    consumers: Consumers
    catalogue: CompactedTopic
    hints: Hints = field(default_factory=Hints)


class KafkaStream:
    """The topic of one timeline of one volume. For one thread."""

    def __init__(self, place: KafkaPlace, volume: UUID, timeline: int) -> None:
        self.place, self.consumers = place, place.consumers
        self.volume, self.timeline = volume, timeline
        self.topic = stream_topic(place.prefix, volume, timeline)

    @property
    def empty(self) -> StreamState:
        """The state before the first event."""
        return StreamState.start(self.volume, self.timeline)

    @contextmanager
    def borrow(self) -> Iterator[Consumer]:
        """A consumer of the topic; where that is damaged on the broker's disk, it is damage of this volume."""
        try:
            with self.consumers.borrow(self.topic) as consumer:
                yield consumer
        except DamagedRecordError as error:
            if error.topic != self.topic:  # the catalogue's, which was looked at meanwhile
                raise
            path = f"{self.place.name}: {self.topic} offset {error.offset}"
            raise SegmentError(path, self.volume, 0, error.expected, error.found) from error

    # -- records -----------------------------------------------------------------------------------------------

    def wrong(self, record: Record, expected: str, found: str) -> SegmentError:
        """The error for this record."""
        number = int(record.key) if record.key and record.key.isdigit() else 0
        return SegmentError(
            f"{self.place.name}: {self.topic} offset {record.offset}", self.volume, number, expected, found
        )

    def header(self, record: Record) -> Header:
        """The header of a record's event, checked, with its body by the checksum."""
        try:
            header = unpack_header(record.value or b"", "the event")
        except FormatError as error:
            raise self.wrong(record, f"{error.where}: {error.expected}", error.found) from None
        self._require_ours(record, header)
        return header

    def event(self, record: Record) -> Event:
        """A record's event, every byte checked."""
        try:
            event = decode_event(record.value or b"", "the event")
        except FormatError as error:
            raise self.wrong(record, f"{error.where}: {error.expected}", error.found) from None
        self._require_ours(record, event.header)
        return event

    def _require_ours(self, record: Record, header: Header) -> None:
        if (header.volume, header.timeline) != (self.volume, self.timeline):
            found = f"one of volume {header.volume}, timeline {header.timeline}"
            raise self.wrong(record, f"an event of timeline {self.timeline}", found)

    def state(self, record: Record) -> StreamState:
        """The state after a record's event (K1)."""
        header = self.header(record)
        try:
            state = decode_state(record.state or b"", "the record's state")
        except FormatError as error:
            raise self.wrong(record, f"{error.where}: {error.expected}", error.found) from None
        named = (state.volume, state.timeline, state.sequence, state.digest)
        expected = (self.volume, self.timeline, header.sequence, digest128(record.value or b""))
        if named != expected:
            raise self.wrong(record, f"the state after event {header.sequence}", f"one after {state.link}")
        return state

    # -- ends --------------------------------------------------------------------------------------------------

    def tail(self, least_offsets: int = TAIL_OFFSETS) -> StreamState:
        """The state at the stream's end, from the records in the last `least_offsets`, or more where those are none."""
        if not self.consumers.has_topic(self.topic):
            return self.empty
        with self.borrow() as consumer:
            begin, end = consumer.bounds()
            last = self.last_before(consumer, begin, end, least_offsets)
            return self._of_nothing(begin) if last is None else self.state(last)

    def await_visible(self, offset: int) -> None:
        """Until what was committed at `offset` is seen by readers; UnavailableError when it isn't in time."""
        until = time.monotonic() + self.place.client.timeout_s
        with self.borrow() as consumer:
            while consumer.end() <= offset:
                if time.monotonic() > until:
                    raise UnavailableError(f"topic {self.topic}: a commit at offset {offset} isn't seen in time")
                time.sleep(_MARKER_S)

    def await_ended(self) -> None:
        """Until each transaction that is open in the topic now has ended; UnavailableError when one doesn't in time."""
        client = self.place.client
        written, until = client.written_end(self.topic), time.monotonic() + client.timeout_s
        with self.borrow() as consumer:
            while (end := consumer.end()) < written:
                if time.monotonic() > until:
                    what = f"topic {self.topic}: a transaction is open at offset {end}, and doesn't end"
                    tool, of = client.tool("transactions"), f"--topic {self.topic} --partition 0"
                    mend = f"{tool} find-hanging {of}; if it is named: {tool} abort {of} --start-offset {end}"
                    raise UnavailableError(f"{what}: nobody would see what comes behind it", mend=mend)
                time.sleep(_MARKER_S)

    def start(self) -> StreamState:
        """The state before the first event that is kept (K2)."""
        if not self.consumers.has_topic(self.topic):
            return self.empty
        with self.borrow() as consumer:
            begin, end = consumer.bounds()
            return self.start_at(consumer, begin, end)

    def start_at(self, consumer: Consumer, begin: int, end: int) -> StreamState:
        """As `start`, of a topic with these bounds."""
        anchor = self.first_at(consumer, begin, end) if begin else None
        return self.state(anchor) if anchor is not None else self._of_nothing(begin)

    def _of_nothing(self, begin: int) -> StreamState:
        """The state of a topic without events, which must never have had any."""
        if begin:
            what = f"{self.place.name}: topic {self.topic}"
            mend = "somebody else deleted its records: see its retention and cleanup.policy, then `agent rebase`"
            raise FormatError(what, "the last event", f"nothing but offset {begin}", mend=mend)
        return self.empty

    def first_at(self, consumer: Consumer, offset: int, end: int) -> Record | None:
        """The first record at `offset` or behind it; None if none is below `end`."""
        consumer.seek(offset)
        return next(consumer.read_until(end), None)

    def last_before(self, consumer: Consumer, begin: int, end: int, least: int = TAIL_OFFSETS) -> Record | None:
        """The last record of the latest epoch before `end`: walks back over markers and what was aborted (K3)."""
        window = least
        while True:
            low = max(begin, end - window)
            consumer.seek(low)
            best: tuple[tuple[int, int], Record] | None = None
            for record in consumer.read_until(end):
                if record.offset >= end:
                    break
                header = self.header(record)
                if best is None or (header.epoch, header.sequence) > best[0]:
                    best = ((header.epoch, header.sequence), record)
            if best is not None or low == begin:
                return best[1] if best else None
            window *= _WINDOW_FACTOR

    # -- an event's offset -------------------------------------------------------------------------------------

    def locate(self, consumer: Consumer, sequence: int) -> int:
        """Where to read on for event `sequence`, or a little before it; the end, if it is the next to come.

        Raises TrimmedError, or LostEndError if the stream ends before.
        """
        begin, end = consumer.bounds()
        hint = self.place.hints.get(self.topic, sequence)
        if hint is not None and begin < hint <= end:
            return hint
        start = self.start_at(consumer, begin, end).sequence
        if sequence <= start:
            raise TrimmedError(self.volume, self.timeline, sequence, start)
        if sequence == start + 1:
            return begin
        for window in (TAIL_OFFSETS, CAREFUL_OFFSETS):
            last = self.last_before(consumer, begin, end, window)
            tail = self.header(last).sequence if last is not None else 0
            if last is not None and sequence <= tail:
                return self._search(consumer, sequence, (begin - 1, start), (last.offset, tail), end)
            if sequence == tail + 1:
                return end
        raise LostEndError(self.volume, self.timeline, sequence, tail)

    def _search(
        self, consumer: Consumer, sequence: int, below: tuple[int, int], found: tuple[int, int], end: int
    ) -> int:
        """The offset of the first record with a number of at least `sequence`; both ends are (offset, number)."""
        for turn in range(below[0], end):
            if found[0] - below[0] <= 1:
                break
            share = (sequence - below[1]) / (found[1] - below[1]) if (turn - below[0]) % 3 else 0.5
            guess = below[0] + round(share * (found[0] - below[0]))
            guess = min(max(guess, below[0] + 1), found[0] - 1)
            record = self.first_at(consumer, guess, end)
            assert record is not None, "the record at `found` comes behind every guess"
            number = self.header(record).sequence
            if number < sequence:
                below = (record.offset, number)
            elif number == sequence and self._hangs(consumer, record, below[0]):
                return record.offset
            else:
                found = (min(guess, record.offset), max(number, sequence))
        return found[0]

    def _hangs(self, consumer: Consumer, record: Record, lowest: int) -> bool:
        """Whether nothing before the record has its number, or a later one (K3)."""
        before = None
        for window in (2, 16):
            low = max(lowest, record.offset - window, 0)
            consumer.seek(low)
            for each in consumer.read_until(record.offset):
                before = each if each.offset < record.offset else before
            if before is not None or low in (lowest, 0):
                break
        return before is None or self.header(before).sequence < self.header(record).sequence
