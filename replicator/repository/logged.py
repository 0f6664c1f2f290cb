"""What a log knows of a volume: its restore points and labels, its timelines, what still stands, complete to when.

Read by source: wholly for a log alone, and only behind what the catalogue remembers for a pool. A timeline is walked by
its parts (log/parts), so no data is read; a volume's point costs one small read of the log.

    event                    what follows from it
    TransactionCommitted     a restore point, with the timestamp of its TransactionBegan, and its labels
    PointLabelled            one label more for a point that came before
    TimelineStarted          a timeline's parent
    beacon at the tail       complete to: nothing newer than the tail up to that instant

Invariants
  H1  A transaction stands if all its events are kept: those below the stream's start, and one cut by it, are gone.
  H2  A beacon that doesn't match the tail says nothing, and neither does a damaged one.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from uuid import UUID

from replicator.errors import FormatError
from replicator.events.bodies import PointLabelled, TimelineStarted, TransactionCommitted
from replicator.events.codec import Event
from replicator.events.state import StreamState
from replicator.history.lineage import Lineage, Stretch, Timeline
from replicator.history.points import Consistency
from replicator.log.interface import Log
from replicator.log.parts import IndexedReader, Part, indexed
from replicator.pool.catalogue_schema import LoggedGroup, LoggedPoint
from replicator.repository.groups import logged_group
from replicator.repository.labels import valid_labels


@dataclass(frozen=True, slots=True)
class LoggedHistory:
    """`points` by timeline and number; `labels` are those given to points that aren't among them."""

    points: tuple[LoggedPoint, ...]
    timelines: tuple[Timeline, ...]
    standing: tuple[Stretch, ...]
    complete_to_ns: int | None
    labels: Mapping[tuple[int, int], tuple[str, ...]] = field(default_factory=dict)
    groups: tuple[LoggedGroup, ...] = ()

    @property
    def lineage(self) -> Lineage:
        """The timelines that have events; the first, where there are none."""
        return Lineage(self.timelines or (Timeline(1),))


def read_history(log: Log, volume: UUID, after: Mapping[int, int] | None = None) -> LoggedHistory:
    """All that `log` has of `volume`; points of a timeline only behind the event `after[timeline]`, if it is given."""
    gathered = _Gathered(volume)
    timelines: list[Timeline] = []
    standing: list[Stretch] = []
    tail: StreamState | None = None
    for number in log.timelines(volume):
        reader = indexed(log.reader(volume, number))
        start, state = reader.start(), reader.tail()
        if not state.sequence:
            continue  # claimed, and nothing published yet
        tail = state
        timelines.append(_timeline(reader, start, number))
        if stretch := _standing(start, state):
            standing.append(stretch)
        begin = max((after or {}).get(number, 0), start.sequence) + 1
        if begin <= state.sequence:
            gathered.walk(reader, begin)
    known = {each.number for each in timelines}
    kept = tuple(each if each.parent in known else Timeline(each.number) for each in timelines)
    return LoggedHistory(
        tuple(gathered.points.values()),
        kept,
        tuple(standing),
        complete_to(log, volume, tail),
        gathered.labels,
        tuple(gathered.groups),
    )


def complete_to(log: Log, volume: UUID, tail: StreamState | None) -> int | None:
    """The instant up to which the log is known to hold everything, by the beacon; None where it says nothing (H2)."""
    with suppress(FormatError):
        beacon = log.read_beacon(volume)
        if beacon is not None and tail is not None and beacon.matches(tail):
            return beacon.equal_until_ns
    return None


def _timeline(reader: IndexedReader, start: StreamState, number: int) -> Timeline:
    """The timeline with its parent, if the event that names it is kept."""
    if number == 1 or start.sequence:
        return Timeline(number)
    for part in reader.parts(1):
        for event in part.facts:
            if isinstance(event.body, TimelineStarted):
                return Timeline(number, event.body.parent.timeline, event.body.parent.number)
        break
    return Timeline(number)


def _standing(start: StreamState, tail: StreamState) -> Stretch | None:
    """The transactions of a timeline that are whole (H1)."""
    committed = tail.committed
    if committed is None or committed.timeline != tail.timeline:
        return None
    begin = start.next_number + (1 if start.open is not None else 0)
    return Stretch(tail.timeline, begin, committed.number + 1) if begin <= committed.number else None


@dataclass(slots=True)
class _Gathered:
    """Points so far, and the transaction that is being walked through."""

    volume: UUID
    points: dict[tuple[int, int], LoggedPoint] = field(default_factory=dict)
    labels: dict[tuple[int, int], tuple[str, ...]] = field(default_factory=dict)
    groups: list[LoggedGroup] = field(default_factory=list)

    def walk(self, reader: IndexedReader, sequence: int) -> None:
        """Take a timeline's parts."""
        for part in reader.parts(sequence):
            self._take(part, sequence)

    def _take(self, part: Part, sequence: int) -> None:
        for event in part.facts:
            if event.header.sequence < sequence:
                continue
            body = event.body
            if isinstance(body, TransactionCommitted):
                self._commit(event, body, part)
            elif isinstance(body, PointLabelled):
                self._label((body.point.timeline, body.point.number), body.label)

    def _commit(self, event: Event, body: TransactionCommitted, part: Part) -> None:
        """The point; its part's state has the timestamp and size of the last TransactionBegan, which is its own."""
        timeline = event.header.timeline
        if (group := logged_group(body)) is not None:
            self.groups.append(group)
        self.points[timeline, body.number] = LoggedPoint(
            self.volume,
            timeline,
            body.number,
            part.state.timestamp_ns,
            part.state.size_bytes,
            event.header.sequence,
            Consistency[body.consistency.name],
            valid_labels(body.labels),
            event.digest,
        )

    def _label(self, place: tuple[int, int], label: str) -> None:
        point = self.points.get(place)
        if point is None:
            self.labels[place] = valid_labels((*self.labels.get(place, ()), label))
        else:
            self.points[place] = replace(point, labels=valid_labels((*point.labels, label)))
