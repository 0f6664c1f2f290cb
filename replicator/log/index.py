"""A segment's index: for each chunk where its pages are, as packed arrays that a restore can binary-search.

Part of a segment's footer (see `segment`). Little-endian; counts are the footer's.

    offsets  e x 4    offset in the segment of each event, u32
    frames   f x 24   FRAME_ROW: offset u32, stored_bytes u32, raw_bytes u32, crc32c u32, event u32, codec u32
    chunks   c x 8    chunk, u64, ascending
    rows     c x 24   CHUNK_ROW: frame u32, page u16 (its first page within the frame), mask u16, hash 16 bytes
    runs     r x 24   RUN_ROW: begin u64, end u64, event u32, kind u32 (1 discarded, 2 zeroed), as they came

`event` counts from 0 within the segment. A segment holds events of at most one transaction, so a chunk is written
at most once in it; a run with that chunk stands before it (writes come last).

Invariants
  X1  offsets and chunks ascend strictly; frames lie within their events; rows name frames that there are.
  X2  The index follows from the events: it can be recomputed, and never says more than they do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from replicator._buffer import Buffer
from replicator.events.chunks import ChunksDiscarded, ChunksWritten, ChunksZeroed
from replicator.events.codec import Event
from replicator.events.fields import FieldReader
from replicator.events.pages import page_counts
from replicator.units import PAGE_BYTES

FRAME_ROW = np.dtype(
    [("offset", "<u4"), ("stored_bytes", "<u4"), ("raw_bytes", "<u4"), ("crc32c", "<u4"), ("event", "<u4"),
     ("codec", "<u4")]
)  # fmt: skip
CHUNK_ROW = np.dtype([("frame", "<u4"), ("page", "<u2"), ("mask", "<u2"), ("hash", "V16")])
RUN_ROW = np.dtype([("begin", "<u8"), ("end", "<u8"), ("event", "<u4"), ("kind", "<u4")])

DISCARDED = 1
ZEROED = 2


@dataclass(frozen=True, slots=True)
class SegmentIndex:
    """The arrays of one segment."""

    offsets: npt.NDArray[np.uint32]
    frames: npt.NDArray[np.void]
    chunks: npt.NDArray[np.uint64]
    rows: npt.NDArray[np.void]
    runs: npt.NDArray[np.void]

    def encode(self) -> list[Buffer]:
        """Its arrays, one behind the other."""
        return [array.tobytes() for array in (self.offsets, self.frames, self.chunks, self.rows, self.runs)]

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Events, frames, chunks, runs."""
        return len(self.offsets), len(self.frames), len(self.chunks), len(self.runs)


def decode_index(reader: FieldReader, counts: tuple[int, int, int, int], events_end: int) -> SegmentIndex:
    """The index that `reader` stands before (X1); FormatError for anything else."""
    events, frames, chunks, runs = counts

    def array(dtype: npt.DTypeLike, count: int) -> npt.NDArray[Any]:
        kind = np.dtype(dtype)
        return np.frombuffer(reader.take(kind.itemsize * count), dtype=kind)

    index = SegmentIndex(
        array("<u4", events), array(FRAME_ROW, frames), array("<u8", chunks), array(CHUNK_ROW, chunks),
        array(RUN_ROW, runs),
    )  # fmt: skip
    ascending = _ascends(index.offsets) and _ascends(index.chunks)
    ends = index.frames["offset"].astype(np.int64) + index.frames["stored_bytes"]
    within = bool((ends <= events_end).all()) and bool((index.frames["event"] < events).all())
    named = bool((index.rows["frame"] < frames).all()) and bool((index.runs["event"] < events).all())
    if not (ascending and within and named and _pages_within(index)):
        raise reader.wrong("an index that fits its events (X1)", "one that doesn't")
    return index


def _ascends(array: npt.NDArray[np.unsignedinteger]) -> bool:
    return bool((array[1:] > array[:-1]).all())


def _pages_within(index: SegmentIndex) -> bool:
    """Whether each chunk's pages lie within its frame."""
    ends = (index.rows["page"] + page_counts(index.rows["mask"])) * PAGE_BYTES
    return bool((ends <= index.frames["raw_bytes"][index.rows["frame"]]).all())


@dataclass(slots=True)
class IndexBuilder:
    """Gathers the arrays while a segment is written."""

    offsets: list[int] = field(default_factory=list)
    frame_count: int = 0
    chunk_count: int = 0
    run_count: int = 0
    _frames: list[npt.NDArray[np.void]] = field(default_factory=list)
    _chunks: list[npt.NDArray[np.uint64]] = field(default_factory=list)
    _rows: list[npt.NDArray[np.void]] = field(default_factory=list)
    _runs: list[npt.NDArray[np.void]] = field(default_factory=list)

    def add(self, event: Event, offset_bytes: int) -> None:
        """Take the event that begins at `offset_bytes` of the segment."""
        ordinal = len(self.offsets)
        self.offsets.append(offset_bytes)
        body = event.body
        if isinstance(body, ChunksWritten):
            self._add_written(body, offset_bytes + event.length_bytes, ordinal)
        elif isinstance(body, ChunksDiscarded | ChunksZeroed):
            rows = np.zeros(len(body.table), dtype=RUN_ROW)
            rows["begin"], rows["end"] = body.table[:, 0], body.table[:, 1]
            rows["event"], rows["kind"] = ordinal, DISCARDED if isinstance(body, ChunksDiscarded) else ZEROED
            self._runs.append(rows)
            self.run_count += len(rows)

    def _add_written(self, body: ChunksWritten, end_bytes: int, ordinal: int) -> None:
        """The frames are the last part of the event, which ends at `end_bytes`."""
        table = body.frame_rows
        stored = table["stored_bytes"].astype(np.int64)
        frames = np.zeros(len(table), dtype=FRAME_ROW)
        frames["offset"] = end_bytes - int(stored.sum()) + np.cumsum(stored) - stored
        for name in ("stored_bytes", "raw_bytes", "crc32c", "codec"):
            frames[name] = table[name]
        frames["event"] = ordinal
        held = table["chunks"].astype(np.int64)
        pages = page_counts(body.page_masks)
        before = np.cumsum(pages) - pages
        rows = np.zeros(body.chunk_count, dtype=CHUNK_ROW)
        rows["frame"] = self.frame_count + np.repeat(np.arange(len(table)), held)
        rows["page"] = before - np.repeat(before[np.cumsum(held) - held], held)
        rows["mask"] = body.page_masks
        rows["hash"] = np.frombuffer(body.hashes, dtype="V16")
        self._frames.append(frames)
        self._chunks.append(body.chunk_indices)
        self._rows.append(rows)
        self.frame_count += len(frames)
        self.chunk_count += len(rows)

    def build(self) -> SegmentIndex:
        """The index; chunks ascend already, as they do within a transaction (fold O1)."""
        return SegmentIndex(
            np.array(self.offsets, dtype="<u4"),
            np.concatenate([np.zeros(0, dtype=FRAME_ROW), *self._frames]),
            np.concatenate([np.zeros(0, dtype="<u8"), *self._chunks]),
            np.concatenate([np.zeros(0, dtype=CHUNK_ROW), *self._rows]),
            np.concatenate([np.zeros(0, dtype=RUN_ROW), *self._runs]),
        )
