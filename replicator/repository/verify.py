"""Verifying a log: every segment read whole, the chain through all of them, indexes recomputed, frames expanded.

Asked by `replicator log verify`. What is damaged is named and counted; the walk goes on behind it where the log tells
where the next part begins.

    checked                       by
    header, footer, each event    their own checksums (log/segment, M1)
    order, links, running counts  the chain's checker, from the first event that is kept
    index of each part            made again from its events (log/index, X2): a restore trusts it
    each frame                    expanded; a chunk whose pages all travel is hashed

Failures: none of its own; what the log raises for damage becomes a Finding, anything else is raised.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import UUID

import numpy as np

from replicator.errors import ConflictError, DamageError, FormatError, NotFoundError, ReplicatorError
from replicator.events.bodies import TransactionCommitted
from replicator.events.chain import ChainChecker, Verdict
from replicator.events.chunks import ChunksWritten
from replicator.events.codec import Event
from replicator.events.digests import digest128
from replicator.events.frames import Decompressor
from replicator.events.pages import ALL_PAGES
from replicator.log.index import IndexBuilder, SegmentIndex
from replicator.log.interface import Log
from replicator.log.parts import IndexedReader, Part, indexed

FINDINGS_MAX = 1000
"""Findings kept: a log that has more is lost as a whole, and its list would help nobody."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, and where: the first event of the part that it is in."""

    timeline: int
    sequence: int
    message: str


@dataclass(slots=True)
class Verified:
    """What was read of one volume, and what is wrong with it."""

    volume: UUID
    event_count: int = 0
    part_count: int = 0
    transaction_count: int = 0
    stored_bytes: int = 0
    skipped_count: int = 0
    findings: list[Finding] = field(default_factory=list)

    def add(self, timeline: int, sequence: int, error: ReplicatorError) -> None:
        """One more finding."""
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(Finding(timeline, sequence, error.message))


def verify_volume(log: Log, volume: UUID) -> Verified:
    """Read all that `log` has of `volume`."""
    verified = Verified(volume)
    for timeline in log.timelines(volume):
        walk = _Walk(indexed(log.reader(volume, timeline)), timeline, verified)
        try:
            walk.run()
        except (DamageError, ConflictError, NotFoundError) as error:
            verified.add(timeline, walk.sequence, error)
    return verified


class _Walk:
    """One timeline, part by part."""

    def __init__(self, reader: IndexedReader, timeline: int, verified: Verified) -> None:
        self._reader, self._timeline, self._verified = reader, timeline, verified
        self._decompressor = Decompressor()
        self.sequence = 1

    def run(self) -> None:
        """Every part; behind one that can't be read the walk goes on, as long as its footer says where it ends."""
        start = self._reader.start()
        self.sequence = start.sequence + 1
        checker: ChainChecker | None = ChainChecker(start)
        while True:
            try:
                for part in self._reader.parts(self.sequence):
                    checker = self._checked(part, checker)
                return
            except DamageError as error:
                self._verified.add(self._timeline, self.sequence, error)
            if not (count := self._count_at(self.sequence)):
                return
            self.sequence, checker = self.sequence + count, None

    def _count_at(self, sequence: int) -> int:
        """How many events the part has by its own index; 0 where that can't be read either: it is one finding."""
        try:
            return len(self._reader.index_of(sequence).offsets)
        except DamageError:
            return 0

    def _checked(self, part: Part, checker: ChainChecker | None) -> ChainChecker:
        """The checker behind `part`; what is wrong with the part is noted."""
        self.sequence = part.first
        try:
            self._part(part, checker)
        except (DamageError, ConflictError) as error:
            self._verified.add(self._timeline, part.first, error)
        self._verified.part_count += 1
        self._verified.stored_bytes += part.stored_bytes
        self.sequence = part.last + 1
        return ChainChecker(part.state)

    def _part(self, part: Part, checker: ChainChecker | None) -> None:
        """`checker` stands before the part; None where what came before it couldn't be read."""
        builder = IndexBuilder()
        for event, offset in zip(self._events(part, checker), part.index.offsets.tolist(), strict=True):
            builder.add(event, offset)
            self._verified.event_count += 1
            self._verified.transaction_count += isinstance(event.body, TransactionCommitted)
            if isinstance(event.body, ChunksWritten):
                self._chunks(event, event.body)
        if checker is not None and checker.state != part.state:
            raise FormatError(f"part {part.first}", f"an end at {checker.state.link}", str(part.state.link))
        if not _equal(builder.build(), part.index):
            raise FormatError(f"the index of part {part.first}", "what its events say", "another one")

    def _events(self, part: Part, checker: ChainChecker | None) -> Iterator[Event]:
        """The part's events; what a log lets through beside the stream is counted, and isn't among them."""
        left = part.last - part.first + 1
        for event in self._reader.read(part.first):
            if checker is not None and checker.accept(event) is not Verdict.APPLY:
                self._verified.skipped_count += 1
                continue
            yield event
            left -= 1
            if not left:
                return

    def _chunks(self, event: Event, body: ChunksWritten) -> None:
        for applied in self._decompressor.iter_chunks(body):
            if applied.mask == ALL_PAGES and digest128(applied.pages) != applied.digest:
                found = digest128(applied.pages).hex()
                raise FormatError(f"{event}, chunk {applied.chunk}", f"hash {applied.digest.hex()}", found)


def _equal(one: SegmentIndex, other: SegmentIndex) -> bool:
    return all(
        np.array_equal(mine, theirs)
        for mine, theirs in (
            (one.offsets, other.offsets),
            (one.frames, other.frames),
            (one.chunks, other.chunks),
            (one.rows, other.rows),
            (one.runs, other.runs),
        )
    )
