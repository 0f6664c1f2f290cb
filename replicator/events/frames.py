"""Chunk compression: pages of neighbouring chunks are packed into frames and compressed at once; and back.

The publisher's workers have a Compressor each, the applier's a Decompressor each (neither is for two threads at
once; the GIL is released inside). The hash is taken by the worker that compresses: two more threads were slower.

    publisher:  masks = changed_pages_many(base, target)
                frames = compressor.pack(indices, masks, target)      in a worker, a batch of some MiB
                for body in written_events(all frames, in order)      ChunksWritten, up to 1 MiB each
    applier:    for chunk, mask, pages, digest in decompressor.iter_chunks(body)

Invariants
  F1  A frame holds at most 256 KiB of pages, of whole chunks in ascending order; what doesn't shrink stays as is.
  F2  Each zstd frame names its content size; decompression gives exactly the declared length or FormatError, and
      never allocates more than 256 KiB for it.
  F3  A frame's crc32c is that of its stored bytes; frames read alone are checked against it before decompression.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import zstandard

from replicator._buffer import Buffer
from replicator.errors import FormatError
from replicator.events.chunks import (
    CHUNKS_PER_EVENT_MAX,
    CODEC_RAW,
    CODEC_ZSTD,
    FRAME,
    FRAME_RAW_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    Chunks,
    ChunksWritten,
)
from replicator.events.digests import crc32c, digest128
from replicator.events.pages import Masks, page_counts, select_pages
from replicator.units import CHUNK_BYTES, PAGE_BYTES

LEVEL_DEFAULT = 1  # level 3 saves 3 % for half as much time again (measured on real blocks)
_FRAME_PAGES_MAX = FRAME_RAW_BYTES_MAX // PAGE_BYTES


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame with the tables of its chunks, on its way into a ChunksWritten."""

    indices: bytes
    masks: bytes
    hashes: bytes
    codec: int
    raw_bytes: int
    data: bytes
    crc32c: int

    @property
    def chunk_count(self) -> int:
        """How many chunks' pages it holds."""
        return len(self.masks) // 2


class AppliedChunk(NamedTuple):
    """What the applier gets for one chunk: pages in ascending order, and the chunk's hash once they are applied."""

    chunk: int
    mask: int
    pages: memoryview
    digest: bytes


def chunk_hash(chunk: Buffer) -> bytes:
    """xxh3-128 of a whole chunk; a short last one is padded with zeros to 64 KiB."""
    assert len(chunk) <= CHUNK_BYTES, "longer than a chunk"
    return digest128(chunk if len(chunk) == CHUNK_BYTES else bytes(chunk).ljust(CHUNK_BYTES, b"\0"))


class Compressor:
    """Packs chunks into frames; one for each thread."""

    def __init__(self, level: int = LEVEL_DEFAULT) -> None:
        assert 1 <= level <= zstandard.MAX_COMPRESSION_LEVEL, "not a zstd level"
        self._zstd = zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=False)

    def pack(self, indices: Chunks, masks: Masks, target: Buffer) -> list[Frame]:
        """Frames for the n chunks `indices` (ascending), whose content is `target` (n x 64 KiB).

        Chunks with mask 0 are left out: nothing of them travels. `target` may be reused afterwards.
        """
        assert len(target) == len(indices) * CHUNK_BYTES == len(masks) * CHUNK_BYTES, "tables and data disagree"
        kept = np.flatnonzero(masks)
        if not len(kept):
            return []
        view = memoryview(target)
        hashes = [digest128(view[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES]) for i in kept.tolist()]
        pages = select_pages(masks, target)
        ends = np.cumsum(page_counts(masks[kept]))
        chunks, kept_masks = indices[kept].astype("<u8", copy=False), masks[kept].astype("<u2", copy=False)
        frames = []
        for begin, end in _frame_bounds(ends):
            first_page = int(ends[begin - 1]) if begin else 0
            data = pages[first_page * PAGE_BYTES : int(ends[end - 1]) * PAGE_BYTES]
            tables = (chunks[begin:end].tobytes(), kept_masks[begin:end].tobytes(), b"".join(hashes[begin:end]))
            codec, stored = self._shrink(data)
            frames.append(Frame(*tables, codec, len(data), stored, crc32c(stored)))
        return frames

    def _shrink(self, pages: memoryview) -> tuple[int, bytes]:
        """(codec, stored bytes) (F1)."""
        packed = self._zstd.compress(pages)
        if len(packed) < len(pages):
            return CODEC_ZSTD, packed
        return CODEC_RAW, bytes(pages)


def _frame_bounds(ends: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Iterator[tuple[int, int]]:
    """Ranges of chunks that make a frame each; `ends` is the running sum of their pages."""
    begin = 0
    while begin < len(ends):
        before = int(ends[begin - 1]) if begin else 0
        end = int(np.searchsorted(ends, before + _FRAME_PAGES_MAX, side="right"))
        yield begin, end
        begin = end


@dataclass(slots=True)
class _Gathered:
    """Frames that will make the next ChunksWritten."""

    frames: list[Frame] = field(default_factory=list)
    chunk_count: int = 0
    stored_bytes: int = 0

    def takes(self, frame: Frame) -> bool:
        """Whether `frame` still fits (C5)."""
        fits = self.stored_bytes + len(frame.data) <= PAYLOAD_BYTES_MAX
        return fits and self.chunk_count + frame.chunk_count <= CHUNKS_PER_EVENT_MAX

    def add(self, frame: Frame) -> None:
        """Take `frame`."""
        self.frames.append(frame)
        self.chunk_count += frame.chunk_count
        self.stored_bytes += len(frame.data)

    def body(self) -> ChunksWritten:
        """The event's body."""
        rows = [(f.chunk_count, f.codec, f.raw_bytes, len(f.data), f.crc32c) for f in self.frames]
        return ChunksWritten(
            indices=b"".join(f.indices for f in self.frames),
            masks=b"".join(f.masks for f in self.frames),
            hashes=b"".join(f.hashes for f in self.frames),
            frame_table=np.array(rows, dtype=FRAME).tobytes(),
            frames=tuple(f.data for f in self.frames),
        )


def written_events(frames: Iterable[Frame]) -> Iterator[ChunksWritten]:
    """The bodies that carry `frames`, which come in ascending order of their chunks; lazily, one event ahead."""
    gathered = _Gathered()
    for frame in frames:
        if not gathered.takes(frame):
            yield gathered.body()
            gathered = _Gathered()
        gathered.add(frame)
    if gathered.frames:
        yield gathered.body()


class Decompressor:
    """Gives frames' pages back; one for each thread."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdDecompressor()

    def expand(self, codec: int, raw_bytes: int, stored: Buffer) -> memoryview:
        """The pages of one frame, exactly `raw_bytes` (F2)."""
        if codec == CODEC_RAW and len(stored) == raw_bytes:
            return memoryview(stored).cast("B")
        if codec != CODEC_ZSTD or raw_bytes > FRAME_RAW_BYTES_MAX:
            raise FormatError("frame", "codec 0 or 1, at most 256 KiB", f"codec {codec}, {raw_bytes} B")
        try:
            declared = zstandard.frame_content_size(stored)
            if declared != raw_bytes:
                raise FormatError("frame", f"zstd content of {raw_bytes} B", f"{declared} B")
            pages = self._zstd.decompress(stored, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise FormatError("frame", "a whole zstd frame", str(error)) from None
        if len(pages) != raw_bytes:
            raise FormatError("frame", f"{raw_bytes} B", f"{len(pages)} B")
        return memoryview(pages)

    def expand_checked(self, codec: int, raw_bytes: int, stored: Buffer, crc: int) -> memoryview:
        """As `expand`, for a frame that was read alone, not with its event (F3)."""
        found = crc32c(stored)
        if found != crc:
            raise FormatError("frame", f"crc32c {crc:08x}", f"{found:08x}")
        return self.expand(codec, raw_bytes, stored)

    def iter_chunks(self, body: ChunksWritten) -> Iterator[AppliedChunk]:
        """Each chunk of `body` with its pages, frame by frame: 256 KiB in memory at once."""
        ordinal = 0
        indices, masks = body.chunk_indices.tolist(), body.page_masks.tolist()
        lengths = (page_counts(body.page_masks) * PAGE_BYTES).tolist()
        for row, stored in zip(body.frame_rows.tolist(), body.frames, strict=True):
            count, codec, raw_bytes = row[:3]
            pages = self.expand(codec, raw_bytes, stored)
            taken = 0
            for i in range(ordinal, ordinal + count):
                end = taken + lengths[i]
                yield AppliedChunk(indices[i], masks[i], pages[taken:end], body.chunk_hash(i))
                taken = end
            ordinal += count
