"""The committed transactions that lie over a base, as parts of the log in their order, checked against each other.

Between history/plan (which stretches of which timelines) and overlay (which page is the newest). A part is named by
its reader and first event; its index is read again when the overlay needs it, so a long history costs 32 bytes a part.

    table, PART rows: reader u32 (which stretch's), first u64, number u64, cut u64 (the volume ends there: nothing of
    what lies beyond survives this transaction)

Invariants
  L1  Only parts of committed transactions are in it: what was aborted, or is still open, is left out.
  L2  Each transaction stands on the one before it, by (timeline, number, digest): from the base to the target,
      whose digest is the one that the restore point has.
  L3  Indexes kept in memory take at most KEPT_BYTES.

Failures: HistoryConflictError (base or target of another history), PointUnreachableError (a transaction is missing),
and those of the log's readers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

import numpy as np
import numpy.typing as npt

from replicator._buffer import Buffer
from replicator.errors import DamageError
from replicator.events.bodies import TimelineEnded, TransactionAborted, TransactionBegan, TransactionCommitted
from replicator.events.codec import Event
from replicator.events.frames import Decompressor
from replicator.events.values import CHUNK_LIMIT, chunk_count_of
from replicator.history.lineage import Forked, HistoryConflictError, Revision, Stretch
from replicator.history.plan import Plan, PointUnreachableError
from replicator.log.index import CHUNK_ROW, FRAME_ROW, RUN_ROW, SegmentIndex
from replicator.log.interface import Log
from replicator.log.parts import IndexedReader, Part, indexed
from replicator.units import MIB

PART = np.dtype([("reader", "<u4"), ("first", "<u8"), ("number", "<u8"), ("cut", "<u8")])
NO_CUT = CHUNK_LIMIT
_MEND = "restore from the log alone, or take a point that is materialised in the pool"
KEPT_BYTES = 64 * MIB
"""Indexes kept while the overlay is built: most restores touch fewer, and then no footer is read twice."""


class Layers:
    """Parts to lay over a base, oldest first."""

    def __init__(self, readers: tuple[IndexedReader, ...], table: npt.NDArray[np.void]) -> None:
        self.table = table
        self._readers = readers
        self._kept: dict[int, SegmentIndex] = {}
        self.row_count = 0
        self.stored_bytes = 0
        self.transaction_count = 0

    def __len__(self) -> int:
        return len(self.table)

    def index(self, ordinal: int) -> SegmentIndex:
        """The index of one part."""
        kept = self._kept.get(ordinal)
        return kept if kept is not None else self._reader(ordinal).index_of(int(self.table["first"][ordinal]))

    def frame(self, ordinal: int, number: int, row: tuple[int, ...], decompressor: Decompressor) -> Buffer:
        """The pages of one frame."""
        return self._reader(ordinal).frame(int(self.table["first"][ordinal]), number, row, decompressor)

    def number(self, ordinal: int) -> int:
        """The transaction that a part belongs to."""
        return int(self.table["number"][ordinal])

    def cut(self, ordinal: int) -> int:
        """The first chunk that doesn't survive the part's transaction, or NO_CUT."""
        return int(self.table["cut"][ordinal])

    def _reader(self, ordinal: int) -> IndexedReader:
        return self._readers[int(self.table["reader"][ordinal])]

    def keep(self, indexes: Mapping[int, SegmentIndex]) -> None:
        """Keep these parts' indexes (L3)."""
        self._kept.update(indexes)


def no_layers() -> Layers:
    """Nothing to lay over the base."""
    return Layers((), np.zeros(0, dtype=PART))


def collect(log: Log, volume: UUID, plan: Plan, base_size_bytes: int, after_sequence: int | None) -> Layers:
    """The parts of `plan`'s overlay.

    `base_size_bytes` is how long the base is (0 for none), `after_sequence` that of the base's commit where it is
    known: the log is read from behind it, else from the first event that it keeps.
    """
    walk = _Walk(plan, base_size_bytes)
    for i, stretch in enumerate(plan.overlay):
        reader = indexed(log.reader(volume, stretch.timeline))
        on_base = i == 0 and stretch.timeline == plan.base.revision.timeline and after_sequence is not None
        begin = after_sequence if on_base and after_sequence is not None else reader.start().sequence
        walk.take(reader, stretch, begin + 1)
    return walk.finish()


@dataclass(slots=True)
class _Walk:
    """What has been seen of the overlay's transactions so far."""

    plan: Plan
    size_bytes: int
    readers: list[IndexedReader] = field(default_factory=list)
    rows: list[tuple[int, int, int, int]] = field(default_factory=list)
    kept: dict[int, SegmentIndex] = field(default_factory=dict)
    kept_bytes: int = 0
    row_count: int = 0
    stored_bytes: int = 0
    transaction_count: int = 0
    last: Revision | None = None
    _pending: list[Part] = field(default_factory=list)
    _began: TransactionBegan | None = None

    def take(self, reader: IndexedReader, stretch: Stretch, sequence: int) -> None:
        """The parts of one stretch, whose first event isn't before `sequence`."""
        self.readers.append(reader)
        self._pending, self._began = [], None
        for part in reader.parts(sequence):
            if self._take_part(part, stretch):
                return
        raise PointUnreachableError(self.plan.target, (Stretch(stretch.timeline, self._next(stretch), stretch.end),))

    def _next(self, stretch: Stretch) -> int:
        return max(stretch.begin, self.last.number + 1 if self.last is not None else stretch.begin)

    def _take_part(self, part: Part, stretch: Stretch) -> bool:
        """Whether the part ends the stretch."""
        for event in part.facts:
            body = event.body
            if isinstance(body, TransactionBegan):
                self._began, self._pending = body if stretch.begin <= body.number < stretch.end else None, []
                if self._began is not None:
                    self._check_base(event, body)
        if self._began is not None:
            self._pending.append(part)
        for event in part.facts:
            body = event.body
            if isinstance(body, TransactionAborted | TimelineEnded):
                self._pending, self._began = [], None
            elif isinstance(body, TransactionCommitted) and self._began is not None:
                self._commit(event, body)
                if body.number == stretch.end - 1:
                    return True
        return False

    def _check_base(self, event: Event, body: TransactionBegan) -> None:
        """L2: the transaction stands on what came before it."""
        before = self.last if self.last is not None else self.plan.base.revision
        found = Revision(body.base.timeline, body.base.number, body.base.digest) if body.base else Revision(1, 0)
        alike = found.number == before.number and (before.number == 0 or found.timeline == before.timeline)
        if not alike and found.number != before.number:
            raise PointUnreachableError(
                self.plan.target,
                (Stretch(event.header.timeline, before.number + 1, max(body.number, before.number + 2)),),
            )
        if not alike or (before.digest and found.digest and before.digest != found.digest):
            raise HistoryConflictError(Forked(before, found), mend=_MEND)

    def _commit(self, event: Event, body: TransactionCommitted) -> None:
        assert self._began is not None
        self.last = Revision(event.header.timeline, body.number, event.digest)
        shrinks = self._began.size_bytes < self.size_bytes
        cut = chunk_count_of(self._began.size_bytes) if shrinks else NO_CUT
        self.size_bytes = self._began.size_bytes
        for i, part in enumerate(self._pending):
            self._keep(part, body.number, cut if i == 0 else NO_CUT)
        self.transaction_count += 1
        self._pending, self._began = [], None

    def _keep(self, part: Part, number: int, cut: int) -> None:
        rows = len(part.index.chunks) + len(part.index.runs)
        if not rows and cut == NO_CUT:
            return
        size = index_bytes(part.index)
        if self.kept_bytes + size <= KEPT_BYTES:
            self.kept[len(self.rows)] = part.index
            self.kept_bytes += size
        self.rows.append((len(self.readers) - 1, part.first, number, cut))
        self.row_count += rows
        self.stored_bytes += part.stored_bytes

    def finish(self) -> Layers:
        """The layers, if they lead to the target (L2)."""
        target = self.plan.target
        if self.last is not None and target.digest and self.last.digest != target.digest:
            raise HistoryConflictError(
                Forked(target, self.last), mend="restore from the log alone, or from the pool alone"
            )
        if self.last is not None and (self.last.timeline, self.last.number) != (target.timeline, target.number):
            raise DamageError(f"the log leads to {self.last}, not to {target}")
        layers = Layers(tuple(self.readers), np.array(self.rows, dtype=PART))
        layers.keep(self.kept)
        layers.row_count, layers.stored_bytes = self.row_count, self.stored_bytes
        layers.transaction_count = self.transaction_count
        return layers


def index_bytes(index: SegmentIndex) -> int:
    """What an index takes in memory."""
    events, frames, chunks, runs = index.counts
    return 4 * events + FRAME_ROW.itemsize * frames + (8 + CHUNK_ROW.itemsize) * chunks + RUN_ROW.itemsize * runs
