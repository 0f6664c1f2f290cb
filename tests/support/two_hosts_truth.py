"""The oracle of the simulation of two hosts: what was cut, what stands in the log, what a replica may hold.

It sees more than either host: each cut's bytes when it is made, each event as it becomes visible, each loss. It knows
nothing of how agent and receiver work.

    named    a committed transaction by its digest: its volume, number, base, and the bytes at its cut
    stream   the events that stand, in order, without those of fenced publishers

Invariants that are checked on the way (a Violation names the broken one)
  T1  A replica is byte for byte the transaction that its position names.
  T2  A replica goes from a transaction to the one that stands on it: none is left out, none comes twice.
  T3  What a pool calls published is, or was, in the log.
  T4  No transaction begins twice in a log that lost nothing, and none is aborted without a cause.
  T5  Epochs go up, a publisher that was fenced doesn't come back, and in an epoch its host alone begins transactions:
      of its own cuts, or of those that its pool's image held.
  T6  A beacon claims an instant at which the volume was what the beacon names.
  T7  A digest names one transaction for ever. A log that lost its end may get the same transaction again: with its
      digest comes the same number, base, instant and content.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

from replicator.events.beacon import Beacon
from replicator.events.bodies import (
    PublisherOpened,
    TransactionAborted,
    TransactionBegan,
    TransactionCommitted,
)
from replicator.events.codec import Event

StreamKey = tuple[UUID, int]


class Violation(AssertionError):  # noqa: N818 - a broken promise, not an error of the program
    """A promise was broken."""


@dataclass(frozen=True, slots=True)
class Named:
    """A transaction that was committed in the log."""

    volume: UUID
    number: int
    digest: bytes
    base: bytes | None
    transaction: UUID
    host: str
    timestamp_ns: int
    content: bytes


@dataclass(slots=True)
class Stream:
    """The events that stand."""

    events: list[Event] = field(default_factory=list)
    epoch: int = 0
    trimmed: int = 0
    owners: dict[int, str] = field(default_factory=dict)

    def copy(self) -> Stream:
        """As it stands now."""
        return Stream(list(self.events), self.epoch, self.trimmed, dict(self.owners))

    @property
    def last(self) -> Event | None:
        """The newest."""
        return self.events[-1] if self.events else None

    def at(self, sequence: int) -> Event | None:
        """The event of that number."""
        index = sequence - 1 - self.trimmed
        return self.events[index] if 0 <= index < len(self.events) else None

    def committed(self) -> Event | None:
        """The newest TransactionCommitted."""
        found = (each for each in reversed(self.events) if isinstance(each.body, TransactionCommitted))
        return next(found, None)

    def publishers(self) -> list[str]:
        """Who opened it, in order."""
        return [each.body.host for each in self.events if isinstance(each.body, PublisherOpened)]

    def open_transaction(self) -> UUID | None:
        """The transaction that began and hasn't ended."""
        for each in reversed(self.events):
            if isinstance(each.body, TransactionCommitted | TransactionAborted):
                return None
            if isinstance(each.body, TransactionBegan):
                return each.body.transaction
        return None


@dataclass(slots=True)
class Truth:
    """All that happened.

    `actor`: the agent whose turn it is, by its name. `aborted`: a transaction's aborts, by who made them. `inherited`:
    the transactions that an image of a pool may hold, which its host goes on with.
    """

    cuts: dict[UUID, tuple[str, bytes]] = field(default_factory=dict)
    named: dict[bytes, Named] = field(default_factory=dict)
    streams: dict[StreamKey, Stream] = field(default_factory=dict)
    lives: dict[tuple[str, UUID], list[tuple[int, bytes]]] = field(default_factory=dict)
    may_abort: bool = False
    may_lack_base: bool = False
    actor: str = ""
    aborted: dict[UUID, set[str]] = field(default_factory=dict)
    inherited: set[UUID] = field(default_factory=set)
    began: set[UUID] = field(default_factory=set)
    lost: set[UUID] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)

    def stream(self, volume: UUID, timeline: int = 1) -> Stream:
        """What stands of a volume."""
        return self.streams.setdefault((volume, timeline), Stream())

    @contextmanager
    def acts(self, agent: str) -> Iterator[None]:
        """That agent's turn, perhaps within another one's."""
        before, self.actor = self.actor, agent
        try:
            yield
        finally:
            self.actor = before

    # -- the sources -------------------------------------------------------------------------------------------

    def lived(self, host: str, volume: UUID, now_ns: int, content: bytes) -> None:
        """From now on the live volume reads so."""
        self.lives.setdefault((host, volume), []).append((now_ns, content))

    def cut(self, transaction: UUID, host: str, content: bytes) -> None:
        """A cut is being made for this transaction."""
        self.cuts[transaction] = (host, content)

    def content_at(self, host: str, volume: UUID, instant_ns: int) -> bytes:
        """The live volume at that instant."""
        found = b""
        for since_ns, content in self.lives[host, volume]:
            if since_ns > instant_ns:
                break
            found = content
        return found

    def said(self, host: str, beacon: Beacon) -> None:
        """T6."""
        self.counts["beacons"] += 1
        named = self.standing_point(beacon.volume, beacon.timeline, beacon.number)
        if named is not None and not self.was(host, named, beacon.equal_until_ns):
            raise Violation(f"T6: at {beacon.equal_until_ns} {host}'s volume wasn't transaction {beacon.number}")

    def was(self, host: str, named: Named, instant_ns: int) -> bool:
        """Whether nothing newer than `named` was in the host's volume at that instant."""
        return instant_ns <= named.timestamp_ns or self.content_at(host, named.volume, instant_ns) == named.content

    def was_anywhere(self, named: Named, instant_ns: int) -> bool:
        """As `was`, for a host that may publish the volume."""
        hosts = [host for host, volume in self.lives if volume == named.volume]
        return any(self.was(host, named, instant_ns) for host in hosts)

    def standing_point(self, volume: UUID, timeline: int, number: int) -> Named | None:
        """Transaction `number` as the log has it now."""
        for event in reversed(self.stream(volume, timeline).events):
            if isinstance(event.body, TransactionCommitted) and event.body.number == number:
                return self.named[event.digest]
        return None

    # -- the log -----------------------------------------------------------------------------------------------

    def stands(self, event: Event) -> None:
        """An event became visible in the log."""
        stream = self.stream(event.header.volume, event.header.timeline)
        last = stream.last
        if event.header.epoch < stream.epoch:
            self.counts["events of fenced publishers"] += 1
            return
        expected = last.header.sequence + 1 if last else stream.trimmed + 1
        if event.header.sequence != expected or (last and event.header.previous != last.digest):
            raise Violation(f"the log took {event} behind {last}")
        self.counts["events"] += 1
        self._open(event, stream)
        stream.events.append(event)
        if isinstance(event.body, TransactionCommitted):
            self._commit(event, stream)

    def _open(self, event: Event, stream: Stream) -> None:
        body = event.body
        if isinstance(body, PublisherOpened):
            if body.epoch <= stream.epoch:
                raise Violation(f"T5: epoch {body.epoch} after {stream.epoch}")
            if body.host in stream.publishers()[:-1] and body.host != stream.publishers()[-1]:
                raise Violation(f"T5: {body.host} was fenced by {stream.publishers()[-1]}, and opened the stream again")
            stream.epoch = body.epoch
            stream.owners[body.epoch] = body.host
        elif isinstance(body, TransactionBegan):
            self._require_owner(event, body, stream)
            if body.transaction in self.began and body.transaction not in self.lost:
                raise Violation(f"T4: transaction {body.number} is published twice from zero")
            self.began.add(body.transaction)
            self.aborted.pop(body.transaction, None)
            self.lost.discard(body.transaction)
        elif isinstance(body, TransactionAborted):
            if not self.may_abort:
                raise Violation(f"T4: transaction {body.number} was aborted without a cause: {body.reason}")
            self.began.discard(body.transaction)  # it may come again, whole
            self.aborted.setdefault(body.transaction, set()).add(self.actor)

    def _require_owner(self, event: Event, began: TransactionBegan, stream: Stream) -> None:
        """T5."""
        owner, (host, _) = stream.owners[event.header.epoch], self.cuts[began.transaction]
        if host != owner.rpartition("-")[0] and began.transaction not in self.inherited:
            raise Violation(f"T5: {host} begins transaction {began.number} in epoch {stream.epoch}, which is {owner}'s")

    def _commit(self, event: Event, stream: Stream) -> None:
        began = next(each.body for each in reversed(stream.events) if isinstance(each.body, TransactionBegan))
        assert isinstance(began, TransactionBegan) and isinstance(event.body, TransactionCommitted)
        host, content = self.cuts[began.transaction]
        base = began.base.digest if began.base else None
        volume, number, at_ns = event.header.volume, began.number, began.timestamp_ns
        named = Named(volume, number, event.digest, base, began.transaction, host, at_ns, content)
        is_new = event.digest not in self.named
        if self.named.setdefault(event.digest, named) != named:
            raise Violation(f"T7: transaction {number} has the digest of another one")
        self.counts["transactions" if is_new else "transactions again"] += 1

    def loses(self, key: StreamKey, from_sequence: int) -> int:
        """The log lost all events from that number on; how many."""
        stream = self.streams[key]
        gone = [each for each in stream.events if each.header.sequence >= from_sequence]
        stream.events = [each for each in stream.events if each.header.sequence < from_sequence]
        self._forget(gone)
        stream.epoch = max((each.header.epoch for each in stream.events), default=0)
        return len(gone)

    def _forget(self, gone: list[Event]) -> None:
        bodies = [each.body for each in gone]
        self.lost |= {body.transaction for body in bodies if isinstance(body, TransactionBegan)}

    def put_back(self, streams: dict[StreamKey, Stream]) -> None:
        """The log is an older copy of itself."""
        for key, stream in self.streams.items():
            kept = {each.digest for each in streams[key].events} if key in streams else set()
            self._forget([each for each in stream.events if each.digest not in kept])
        self.streams = {key: stream.copy() for key, stream in streams.items()}

    def is_strange(self, agent: str, transaction: UUID | None) -> bool:
        """Whether that agent can't know that the transaction was given up: others alone aborted it."""
        return transaction is not None and agent not in self.aborted.get(transaction, {agent})

    def trims(self, key: StreamKey, first_kept: int) -> None:
        """Events below were trimmed."""
        stream = self.streams[key]
        stream.events = [each for each in stream.events if each.header.sequence >= first_kept]
        stream.trimmed = max(stream.trimmed, first_kept - 1)
