"""The committed transactions that lie over a base, as parts of the log in their order, checked against each other.

Between history/plan (which stretches of which timelines) and overlay (which page is the newest). A part is named by
its reader and first event; its index is read again when the overlay needs it, so a long history costs 44 bytes a part.

    table, PART rows: reader u32 (which stretch's), first u64, number u64, cut u64 (the volume ends there: nothing of
    what lies beyond survives this transaction), low u64 and high u64 (its chunks lie in [low, high))

Invariants
  L1  Only parts of committed transactions are in it: what was aborted, or is still open, is left out.
  L2  Each transaction stands on the one before it, by (timeline, number, digest): from the base to the target,
      whose digest is the one that the restore point has.
  L3  Indexes kept in memory, those of an open transaction too, take at most KEPT_BYTES. Each is kept as the bytes that
      it is in a log: a small one's arrays take thirty times that.

Failures: HistoryConflictError (base or target of another history), PointUnreachableError (a transaction is missing),
and those of the log's readers.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
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

_COLUMNS = ("reader", "first", "number", "cut", "low", "high")
PART = np.dtype([(name, "<u4" if name == "reader" else "<u8") for name in _COLUMNS])
NO_CUT = CHUNK_LIMIT
_MEND = "restore from the log alone, or take a point that is materialised in the pool"
KEPT_BYTES = 64 * MIB
"""Indexes kept while the overlay is built: most restores touch fewer, and then no footer is read twice."""

_COUNTS = struct.Struct("<4I")
_ARRAYS: tuple[np.dtype[Any], ...] = (np.dtype("<u4"), FRAME_ROW, np.dtype("<u8"), CHUNK_ROW, RUN_ROW)
_ENTRY_BYTES = 200  # what a dict's entry and an object take, beside their bytes


class Layers:
    """Parts to lay over a base, oldest first."""

    def __init__(self, readers: tuple[IndexedReader, ...], table: npt.NDArray[np.void]) -> None:
        self.table = table
        self._readers = readers
        self._kept: dict[int, bytes] = {}
        self.row_count = 0
        self.stored_bytes = 0
        self.transaction_count = 0

    def __len__(self) -> int:
        return len(self.table)

    def index(self, ordinal: int) -> SegmentIndex:
        """The index of one part."""
        kept = self._kept.get(ordinal)
        if kept is not None:
            return _unpacked(kept)
        return self._reader(ordinal).index_of(int(self.table["first"][ordinal]))

    def frame(self, ordinal: int, number: int, row: tuple[int, ...], decompressor: Decompressor) -> Buffer:
        """The pages of one frame."""
        return self._reader(ordinal).frame(int(self.table["first"][ordinal]), number, row, decompressor)

    def number(self, ordinal: int) -> int:
        """The transaction that a part belongs to."""
        return int(self.table["number"][ordinal])

    def within(self, begin: int, end: int) -> list[int]:
        """The parts that say something of chunks in [begin, end), oldest first: no index of another one is read."""
        table = self.table
        return np.flatnonzero((table["low"] < end) & (table["high"] > begin) | (table["cut"] < end)).tolist()

    def cut(self, ordinal: int) -> int:
        """The first chunk that doesn't survive the part's transaction, or NO_CUT."""
        return int(self.table["cut"][ordinal])

    def _reader(self, ordinal: int) -> IndexedReader:
        return self._readers[int(self.table["reader"][ordinal])]

    def keep(self, indexes: Mapping[int, bytes]) -> None:
        """Keep these parts' indexes, packed (L3)."""
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


def packed(index: SegmentIndex) -> bytes:
    """An index in one piece."""
    return _COUNTS.pack(*index.counts) + b"".join(index.encode())


def _unpacked(data: bytes) -> SegmentIndex:
    events, frames, chunks, runs = _COUNTS.unpack_from(data)
    arrays, at = [], _COUNTS.size
    for kind, count in zip(_ARRAYS, (events, frames, chunks, chunks, runs), strict=True):
        arrays.append(np.frombuffer(data, kind, count, at))
        at += kind.itemsize * count
    return SegmentIndex(*arrays)


def span_of(index: SegmentIndex) -> tuple[int, int]:
    """[low, high) in which all chunks of an index lie; ends before it begins, where there are none."""
    low, high = CHUNK_LIMIT, 0
    if len(index.chunks):
        low, high = int(index.chunks[0]), int(index.chunks[-1]) + 1
    if len(index.runs):
        low, high = min(low, int(index.runs["begin"].min())), max(high, int(index.runs["end"].max()))
    return min(low, CHUNK_LIMIT), min(high, CHUNK_LIMIT)


@dataclass(frozen=True, slots=True)
class _Pending:
    """A part of a transaction that isn't committed yet; `kept` is its index, if there is room for that (L3)."""

    first: int
    span: tuple[int, int]
    row_count: int
    stored_bytes: int
    kept: bytes | None


@dataclass(slots=True)
class _Walk:
    """What has been seen of the overlay's transactions so far; `rows` are those of the table, one behind the other."""

    plan: Plan
    size_bytes: int
    readers: list[IndexedReader] = field(default_factory=list)
    rows: array[int] = field(default_factory=lambda: array("Q"))
    kept: dict[int, bytes] = field(default_factory=dict)
    kept_bytes: int = 0
    row_count: int = 0
    stored_bytes: int = 0
    transaction_count: int = 0
    last: Revision | None = None
    _pending: list[_Pending] = field(default_factory=list)
    _pending_bytes: int = 0
    _began: TransactionBegan | None = None

    def take(self, reader: IndexedReader, stretch: Stretch, sequence: int) -> None:
        """The parts of one stretch, whose first event isn't before `sequence`."""
        self.readers.append(reader)
        self._begin(None)
        for part in reader.parts(sequence):
            if self._take_part(part, stretch):
                return
        raise PointUnreachableError(self.plan.target, (Stretch(stretch.timeline, self._next(stretch), stretch.end),))

    def _next(self, stretch: Stretch) -> int:
        return max(stretch.begin, self.last.number + 1 if self.last is not None else stretch.begin)

    def _begin(self, began: TransactionBegan | None) -> None:
        """Nothing is pending, of this transaction or of none."""
        self._pending, self._pending_bytes, self._began = [], 0, began

    def _take_part(self, part: Part, stretch: Stretch) -> bool:
        """Whether the part ends the stretch."""
        for event in part.facts:
            body = event.body
            if isinstance(body, TransactionBegan):
                self._begin(body if stretch.begin <= body.number < stretch.end else None)
                if self._began is not None:
                    self._check_base(event, body)
        if self._began is not None:
            self._append(part)
        for event in part.facts:
            body = event.body
            if isinstance(body, TransactionAborted | TimelineEnded):
                self._begin(None)
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
        self._begin(None)

    def _append(self, part: Part) -> None:
        """A part of a transaction that may still be aborted."""
        index = packed(part.index)
        size = _ENTRY_BYTES + len(index)
        fits = self.kept_bytes + self._pending_bytes + size <= KEPT_BYTES
        if fits:
            self._pending_bytes += size
        rows = len(part.index.chunks) + len(part.index.runs)
        kept = index if fits else None
        self._pending.append(_Pending(part.first, span_of(part.index), rows, part.stored_bytes, kept))

    def _keep(self, part: _Pending, number: int, cut: int) -> None:
        if not part.row_count and cut == NO_CUT:
            return
        if part.kept is not None:
            self.kept[len(self.rows) // len(_COLUMNS)] = part.kept
            self.kept_bytes += _ENTRY_BYTES + len(part.kept)
        self.rows.extend((len(self.readers) - 1, part.first, number, cut, *part.span))
        self.row_count += part.row_count
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
        layers = Layers(tuple(self.readers), self._table())
        layers.keep(self.kept)
        layers.row_count, layers.stored_bytes = self.row_count, self.stored_bytes
        layers.transaction_count = self.transaction_count
        return layers

    def _table(self) -> npt.NDArray[np.void]:
        columns = np.asarray(self.rows).reshape(-1, len(_COLUMNS))
        table = np.empty(len(columns), dtype=PART)
        for i, name in enumerate(_COLUMNS):
            table[name] = columns[:, i]
        return table
