"""Single chunks out of a log by its indexes: where a chunk's pages are, and the pages themselves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from replicator.events.frames import Decompressor
from replicator.log.index import SegmentIndex
from replicator.log.interface import StreamReader
from replicator.log.parts import indexed
from replicator.units import PAGE_BYTES


@dataclass(frozen=True, slots=True)
class ChunkPlace:
    """A chunk's row of the index, and its frame's."""

    frame: int
    frame_row: tuple[int, ...]
    page: int
    mask: int
    digest: bytes

    @property
    def offset_bytes(self) -> int:
        """Where the frame begins."""
        return self.frame_row[0]

    @property
    def event(self) -> int:
        """Which event of the segment it is in."""
        return self.frame_row[4]


def index_at(reader: StreamReader, sequence: int) -> tuple[int, SegmentIndex]:
    """(first event, index) of the part that holds `sequence`."""
    part = next(iter(indexed(reader).parts(sequence)))
    return part.first, part.index


def find(index: SegmentIndex, chunk: int) -> ChunkPlace | None:
    """Where the pages of `chunk` are, if the segment writes some."""
    at = int(np.searchsorted(index.chunks, np.uint64(chunk)))
    if at == len(index.chunks) or int(index.chunks[at]) != chunk:
        return None
    number, page, mask, digest = index.rows[at].tolist()
    return ChunkPlace(number, index.frames[number].tolist(), page, mask, digest)


def cleared(index: SegmentIndex, chunk: int) -> int:
    """DISCARDED or ZEROED if the segment's last run with `chunk` says so, else 0."""
    inside = np.flatnonzero((index.runs["begin"] <= chunk) & (chunk < index.runs["end"]))
    return int(index.runs["kind"][inside[-1]]) if len(inside) else 0


def pages_at(reader: StreamReader, first: int, place: ChunkPlace) -> bytes:
    """The pages of one chunk out of the part that begins with `first`."""
    frame = memoryview(indexed(reader).frame(first, place.frame, place.frame_row, Decompressor()))
    return bytes(frame[place.page * PAGE_BYTES : (place.page + place.mask.bit_count()) * PAGE_BYTES])
