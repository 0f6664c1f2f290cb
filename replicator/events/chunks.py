"""The events that carry data: runs of chunks that are discarded or zeroed, and pages that are written.

Built by the publisher (the last from `frames.written_events`), read by the applier and by a segment's index.
Tables are packed arrays as they travel, with numpy views on them; nothing per chunk is an object.

ChunksDiscarded, ChunksZeroed: `runs` is r x 16 bytes, little-endian

    0   8   begin   first chunk of the run
    8   8   end     first chunk after it

ChunksWritten: n chunks in f frames

    indices      n x 8    chunk, u64
    masks        n x 2    bit p set: page p of the chunk travels, u16
    hashes       n x 16   xxh3-128 of the whole chunk after applying (a short last one padded with zeros)
    frame_table  f x 16   a row of FRAME each:
        0   2   chunks        how many chunks' pages it holds, in the order of `indices`
        2   2   codec         0 as is, 1 zstd
        4   4   raw_bytes     4096 x the pages in it
        8   4   stored_bytes  length as stored
        12  4   crc32c        of the stored bytes, for reads that take the frame alone
    frames       f buffers

Invariants
  C1  Runs aren't empty, ascend, and neither touch nor overlap: one set of chunks has one encoding.
  C2  Chunks ascend strictly; no mask is 0.
  C3  Frames partition the chunks in order; no chunk is split; raw_bytes fits the masks and is at most 256 KiB.
  C4  A frame is stored smaller than raw, or as is: stored_bytes <= raw_bytes, with equality exactly for codec 0.
  C5  All frames of an event have at most 1 MiB as stored; an event has at most 4,096 chunks, or 65,536 runs.

Failure raised: FormatError when built from what breaks C1 to C5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from replicator._buffer import Buffer
from replicator.events.digests import DIGEST_BYTES
from replicator.events.pages import Masks, page_counts
from replicator.events.values import CHUNK_LIMIT, Counts, require, require_range
from replicator.units import KIB, MIB, PAGE_BYTES

RUNS_PER_EVENT_MAX = 65536  # 1 MiB of runs
CHUNKS_PER_EVENT_MAX = 4096  # bounds the tables (170 KiB) where pages shrink to nothing
PAYLOAD_BYTES_MAX = MIB  # of frames in an event: fits every broker's and store's limits, and is worth a write
FRAME_RAW_BYTES_MAX = 256 * KIB  # larger gains nothing (measured), smaller costs 4-8 %

CODEC_RAW = 0
CODEC_ZSTD = 1
FRAME = np.dtype(
    [("chunks", "<u2"), ("codec", "<u2"), ("raw_bytes", "<u4"), ("stored_bytes", "<u4"), ("crc32c", "<u4")]
)

Chunks: TypeAlias = npt.NDArray[np.uint64]


def _require_runs(runs: bytes, where: str) -> None:
    """C1, C5."""
    require(len(runs) % 16 == 0, where, "rows of 16 bytes", len(runs))
    require_range(len(runs) // 16, 1, RUNS_PER_EVENT_MAX + 1, f"{where}, count")
    flat = np.frombuffer(runs, dtype="<u8")
    require(bool((flat[1:] > flat[:-1]).all()), where, "runs that ascend and don't touch", "others")
    require_range(int(flat[-1]), 1, CHUNK_LIMIT + 1, f"{where}, last end")


class _Runs:
    """What the two events of runs have in common."""

    __slots__ = ()
    runs: bytes

    @property
    def table(self) -> Chunks:
        """The runs as an r x 2 array."""
        return np.frombuffer(self.runs, dtype="<u8").reshape(-1, 2)

    @property
    def chunk_count(self) -> int:
        """How many chunks all runs have together."""
        return int((self.table[:, 1] - self.table[:, 0]).sum())

    @property
    def first_chunk(self) -> int:
        """The first chunk it touches."""
        return int(self.table[0, 0])

    @property
    def end_chunk(self) -> int:
        """One past the last chunk it touches."""
        return int(self.table[-1, 1])

    def iter_runs(self) -> list[tuple[int, int]]:
        """The runs as pairs (begin, end)."""
        return [(begin, end) for begin, end in self.table.tolist()]


@dataclass(frozen=True, slots=True)
class ChunksDiscarded(_Runs):
    """These chunks hold nothing any more: they read as zeros, and may be unmapped."""

    runs: bytes

    def __post_init__(self) -> None:
        _require_runs(self.runs, "ChunksDiscarded.runs")

    @property
    def counts(self) -> Counts:
        """What it adds to its transaction's counts."""
        return Counts(discarded_chunks=self.chunk_count)


@dataclass(frozen=True, slots=True)
class ChunksZeroed(_Runs):
    """These chunks are zeros, and stay allocated where they are."""

    runs: bytes

    def __post_init__(self) -> None:
        _require_runs(self.runs, "ChunksZeroed.runs")

    @property
    def counts(self) -> Counts:
        """What it adds to its transaction's counts."""
        return Counts(zeroed_chunks=self.chunk_count)


@dataclass(frozen=True, slots=True)
class ChunksWritten:
    """Pages of chunks, in frames, with each chunk's hash after applying; decompressed by frames.Decompressor."""

    indices: bytes
    masks: bytes
    hashes: bytes
    frame_table: bytes
    frames: tuple[Buffer, ...]

    def __post_init__(self) -> None:
        _require_chunks(self)
        _require_frames(self)

    @property
    def chunk_count(self) -> int:
        """How many chunks it touches."""
        return len(self.indices) // 8

    @property
    def chunk_indices(self) -> Chunks:
        """The chunks, ascending."""
        return np.frombuffer(self.indices, dtype="<u8")

    @property
    def page_masks(self) -> Masks:
        """Their masks."""
        return np.frombuffer(self.masks, dtype="<u2")

    @property
    def frame_rows(self) -> npt.NDArray[np.void]:
        """The frames' rows (dtype FRAME)."""
        return np.frombuffer(self.frame_table, dtype=FRAME)

    @property
    def first_chunk(self) -> int:
        """The first chunk it touches."""
        return int(self.chunk_indices[0])

    @property
    def end_chunk(self) -> int:
        """One past the last chunk it touches."""
        return int(self.chunk_indices[-1]) + 1

    @property
    def counts(self) -> Counts:
        """What it adds to its transaction's counts."""
        rows = self.frame_rows
        return Counts(
            written_chunks=self.chunk_count,
            written_pages=int(rows["raw_bytes"].sum(dtype=np.int64)) // PAGE_BYTES,
            stored_bytes=int(rows["stored_bytes"].sum(dtype=np.int64)),
        )

    def chunk_hash(self, ordinal: int) -> bytes:
        """The hash of the `ordinal`-th chunk of this event."""
        return self.hashes[ordinal * DIGEST_BYTES : (ordinal + 1) * DIGEST_BYTES]


def _require_chunks(event: ChunksWritten) -> None:
    """C2, C5: the tables of chunks have one length, ascend, and name pages."""
    where = "ChunksWritten"
    count = len(event.masks) // 2
    require_range(count, 1, CHUNKS_PER_EVENT_MAX + 1, f"{where}, chunks")
    lengths = (len(event.indices), len(event.masks), len(event.hashes))
    require(lengths == (count * 8, count * 2, count * DIGEST_BYTES), where, f"tables of {count} chunks", lengths)
    chunks = event.chunk_indices
    require(bool((chunks[1:] > chunks[:-1]).all()), f"{where}.indices", "ascending chunks", "others")
    require_range(int(chunks[-1]), 0, CHUNK_LIMIT, f"{where}, last chunk")
    require(bool(event.page_masks.all()), f"{where}.masks", "masks that name a page", 0)


def _require_frames(event: ChunksWritten) -> None:
    """C3, C4, C5: the frames partition the chunks and have the lengths that their rows say."""
    where = "ChunksWritten.frame_table"
    require(len(event.frame_table) % FRAME.itemsize == 0, where, "whole rows", len(event.frame_table))
    rows = event.frame_rows
    require_range(len(rows), 1, event.chunk_count + 1, f"{where}, frames")
    require(len(event.frames) == len(rows), where, f"{len(rows)} frames", len(event.frames))
    held, stored, raw = (rows[name].astype(np.int64) for name in ("chunks", "stored_bytes", "raw_bytes"))
    partition = bool(held.all()) and int(held.sum()) == event.chunk_count
    require(partition, where, f"frames that hold {event.chunk_count} chunks", int(held.sum()))
    pages = np.add.reduceat(page_counts(event.page_masks), np.cumsum(held) - held)
    require(bool((raw == pages * PAGE_BYTES).all()), where, "raw lengths that fit the masks", "others")
    require(int(raw.max()) <= FRAME_RAW_BYTES_MAX, where, f"at most {FRAME_RAW_BYTES_MAX} raw bytes", int(raw.max()))
    smaller = np.where(rows["codec"] == CODEC_RAW, stored == raw, (rows["codec"] == CODEC_ZSTD) & (stored < raw))
    require(bool(smaller.all()), where, "raw frames, or zstd that is smaller", "others")
    require(int(stored.min()) > 0 and int(stored.sum()) <= PAYLOAD_BYTES_MAX, where, "1 B to 1 MiB", int(stored.sum()))
    fits = stored.tolist() == [len(frame) for frame in event.frames]
    require(fits, where, "the frames' stored lengths", "others")
