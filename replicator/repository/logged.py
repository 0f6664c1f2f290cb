"""What a log knows of a volume: its restore points and labels, its timelines, what still stands, complete to when.

Read by source: wholly for a log alone, and only behind what the catalogue remembers for a pool. A timeline is walked by
its parts (log/parts), so no data is read; a volume's point costs one small read of the log.

    event                    what follows from it
    TransactionCommitted     a restore point, with the timestamp of its TransactionBegan, and its labels
    PointLabelled            one label more for a point that came before
    TimelineStarted          a timeline's parent
    beacon at the tail       complete to: nothing newer than the tail up to that instant

Invariants
  H1  A transaction stands if all its events are kept: those below the stream's start, and one cut by it, are gone; so
      is, where a part is damaged, everything from that part on.
  H2  A beacon that doesn't match the tail says nothing, and neither does a damaged one.
  H3  What is read only behind a point that somebody remembers is read so because the log still has that very
      transaction, by its digest; else the timeline is read from its beginning, and `denied` names it.

Failures: those of the log's readers. `read_history` raises damage, too; `read_standing` tells it beside what stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from uuid import UUID

from replicator.errors import DamageError, FormatError
from replicator.events.bodies import PointLabelled, TimelineStarted, TransactionCommitted
from replicator.events.codec import Event
from replicator.events.state import StreamState
from replicator.history.lineage import Lineage, Revision, Stretch, Timeline
from replicator.history.points import Consistency
from replicator.log.interface import Log
from replicator.log.parts import IndexedReader, Part, indexed
from replicator.pool.catalogue_schema import LoggedGroup, LoggedPoint
from replicator.repository.groups import logged_group
from replicator.repository.labels import valid_labels


@dataclass(frozen=True, slots=True)
class LoggedHistory:
    """`points` by timeline and number; `labels` are those given to points that aren't among them.

    `committed` is the number of each timeline's last transaction (0 for none), where its end could be read; `denied`
    are the timelines whose remembered point the log hasn't (H3); `damage` is what was met first; `end` is the newest
    timeline's last transaction, where its end could be read.
    """

    points: tuple[LoggedPoint, ...]
    timelines: tuple[Timeline, ...]
    standing: tuple[Stretch, ...]
    complete_to_ns: int | None
    labels: Mapping[tuple[int, int], tuple[str, ...]] = field(default_factory=dict)
    groups: tuple[LoggedGroup, ...] = ()
    committed: Mapping[int, int] = field(default_factory=dict)
    denied: frozenset[int] = frozenset()
    damage: DamageError | None = None
    end: Revision | None = None

    @property
    def lineage(self) -> Lineage:
        """The timelines that have events; the first, where there are none."""
        return Lineage(self.timelines or (Timeline(1),))


def read_history(log: Log, volume: UUID) -> LoggedHistory:
    """All that `log` has of `volume`."""
    history = read_standing(log, volume)
    if history.damage is not None:
        raise history.damage
    return history


def read_standing(log: Log, volume: UUID, after: Mapping[int, LoggedPoint] | None = None) -> LoggedHistory:
    """What of `volume` can be read; points of a timeline only behind `after[timeline]`, if that is given (H3)."""
    after = after or {}
    gathered = _Gathered(volume)
    looks = [_Look(gathered, indexed(log.reader(volume, number)), number) for number in log.timelines(volume)]
    for look in looks:
        look.take(after.get(look.timeline))
    looks = [look for look in looks if look.is_begun]
    known = {look.timeline for look in looks}
    branches = [look.branch for look in looks]
    damage = next((look.damage for look in looks if look.damage is not None), None)
    return LoggedHistory(
        tuple(gathered.points.values()),
        tuple(each if each.parent in known else Timeline(each.number) for each in branches),
        tuple(look.standing for look in looks if look.standing is not None),
        complete_to(log, volume, looks[-1].tail if looks else None) if damage is None else None,
        gathered.labels,
        tuple(gathered.groups),
        {look.timeline: look.committed for look in looks if look.tail is not None},
        frozenset(after) - {look.timeline for look in looks if not look.denied},
        damage,
        _end_of(looks[-1].tail if looks else None),
    )


def _end_of(tail: StreamState | None) -> Revision | None:
    found = tail.committed if tail is not None else None
    return Revision(found.timeline, found.number, found.digest) if found is not None else None


def complete_to(log: Log, volume: UUID, tail: StreamState | None) -> int | None:
    """The instant up to which the log is known to hold everything, by the beacon; None where it says nothing (H2)."""
    with suppress(FormatError):
        beacon = log.read_beacon(volume)
        if beacon is not None and tail is not None and beacon.matches(tail):
            return beacon.equal_until_ns
    return None


class _Look:
    """One timeline, walked as far as it can be read."""

    def __init__(self, gathered: _Gathered, reader: IndexedReader, timeline: int) -> None:
        self._gathered, self._reader, self.timeline = gathered, reader, timeline
        self.branch = Timeline(timeline)
        self.tail: StreamState | None = None
        self.standing: Stretch | None = None
        self.damage: DamageError | None = None
        self.denied = False
        self._anchor: LoggedPoint | None = None

    @property
    def is_begun(self) -> bool:
        """Whether it has events: not only claimed, with nothing published yet."""
        return self.tail is None or self.tail.sequence > 0

    @property
    def committed(self) -> int:
        """The number of its last transaction; 0 where it has none of its own."""
        found = self.tail.committed if self.tail is not None else None
        return found.number if found is not None and found.timeline == self.timeline else 0

    def take(self, anchor: LoggedPoint | None) -> None:
        """Walk it, behind `anchor` if that stands in it (H3)."""
        try:
            self.tail = self._reader.tail()
        except DamageError as error:
            self.damage = error
        try:
            start = self._reader.start()
            if self.is_begun:
                self._walk(start, anchor)
        except DamageError as error:
            self.damage = self.damage or error
            return
        self.standing = self._stands_from(start)

    def _walk(self, start: StreamState, anchor: LoggedPoint | None) -> None:
        self.branch = _timeline(self._reader, start, self.timeline)
        begin = start.sequence + 1
        try:
            if anchor is not None:
                self.denied = not self._has(anchor, start)
                if not self.denied and anchor.sequence >= begin:
                    self._anchor, begin = anchor, anchor.sequence + 1
            if self.tail is None or begin <= self.tail.sequence:
                self._gathered.walk(self._reader, begin)
        except DamageError as error:
            self.damage = self.damage or error

    def _has(self, anchor: LoggedPoint, start: StreamState) -> bool:
        """Whether the log has this transaction; of one that was trimmed nobody can tell otherwise."""
        if self.tail is not None and self.tail.sequence < anchor.sequence:
            return False
        if anchor.sequence <= start.sequence or not anchor.digest:
            return True
        try:
            part = next(iter(self._reader.parts(anchor.sequence)), None)
        except DamageError as error:  # as if it were there: what is damaged contradicts nobody
            self.damage = self.damage or error
            return True
        events = part.facts if part is not None else ()
        found = next((each for each in events if each.header.sequence == anchor.sequence), None)
        return found is not None and found.digest == anchor.digest

    def _stands_from(self, start: StreamState) -> Stretch | None:
        """The transactions of the timeline that are whole (H1)."""
        end = self.committed + 1
        if self.damage is not None:
            numbers = [number for timeline, number in self._gathered.points if timeline == self.timeline]
            end = 1 + max(numbers, default=self._anchor.number if self._anchor is not None else 0)
        begin = start.next_number + (1 if start.open is not None else 0)
        return Stretch(self.timeline, begin, end) if begin < end else None


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
