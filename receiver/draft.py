"""One step of a transaction on its way into a replica: blocks that are written where nobody sees them, then switched.

Between apply (which event means what) and blocks (where they are). Out of place: whatever changes goes to a reserved
data block; the old one is read, where it is needed, and freed by the switch.

    chunk       64 KiB of the volume, the unit of events
    block       the pool's data block, one chunk or several
    fresh       block -> reserved data block that holds its new content, whole (P7)
    gone        ranges of blocks that this step unmaps; a fresh one of them is mapped again
    wiped       block -> bit mask of its chunks that are zeros from now on, not written yet (blocks of several chunks)

What a block reads now: `wiped` over `fresh` over `gone` over the device's committed mapping.

    what comes for a block                      what happens
    a whole chunk, blocks of one chunk          written to a fresh block; nothing is read
    pages of a chunk                            the old chunk is read first
    some chunks of a larger block               the others are copied
    zeros, all of the block                     unmapped
    zeros, a part of it                         wiped; written, or unmapped if all else is zero, when the step ends

Invariants
  D1  Each chunk that was written has the hash that its event names, after applying: else ChunkMismatchError, and
      nothing of the step is kept.
  D2  A fresh block is wholly written; nothing of it that wasn't sent or copied is left as it was on the disk.
  D3  What was read is used only while the lease stands.
  D4  Memory: a batch of chunks, 16 bytes a gone range, and what a dict needs for each fresh or wiped block; the
      applier ends a step before these pass its limits.

Failures: ChunkMismatchError, NoSpaceError, UnavailableError (the lease fell), FormatError, DeviceError.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from receiver.blocks import NOWHERE, UNASKED, StepBlocks, is_zero
from receiver.errors import ChunkMismatchError
from replicator._buffer import Buffer
from replicator.events.chunks import ChunksDiscarded, ChunksWritten, ChunksZeroed
from replicator.events.digests import digest128
from replicator.events.frames import AppliedChunk, Decompressor
from replicator.events.pages import ALL_PAGES, apply_pages
from replicator.events.values import chunk_count_of
from replicator.pdata.block import Words
from replicator.pool.interface import Filling
from replicator.units import CHUNK_BYTES

_BATCH_CHUNKS = 64  # 4 MiB: long enough to look mappings up and write in one go
_ZEROS = bytes(CHUNK_BYTES)
ZERO_HASH = digest128(_ZEROS)


class Draft:
    """A step of transaction `number` of `volume`, over `blocks`; the volume has `size_bytes` after it."""

    def __init__(self, blocks: StepBlocks, volume: str, number: int, size_bytes: int) -> None:
        self.blocks = blocks
        self._volume, self._number = volume, number
        self._chunks_per_block = blocks.block_bytes // CHUNK_BYTES
        self._chunk_count = chunk_count_of(size_bytes)
        self._block_count = -(-size_bytes // blocks.block_bytes)
        self._wiped: dict[int, int] = {}
        self._decompressor = Decompressor()

    @property
    def fresh_bytes(self) -> int:
        """How much data the step holds so far, in whole blocks."""
        return (len(self.blocks.fresh) + len(self._wiped)) * self.blocks.block_bytes

    @property
    def range_count(self) -> int:
        """How many ranges it unmaps so far."""
        return len(self.blocks.gone)

    def shrink(self, old_size_bytes: int, new_size_bytes: int) -> None:
        """What lies beyond the new end is gone, the tail of the last chunk zero."""
        end = -(-old_size_bytes // self.blocks.block_bytes) * self._chunks_per_block
        if self._chunk_count < end:
            self._wipe(np.array([(self._chunk_count, end)], dtype=np.uint64))
        inside = new_size_bytes % CHUNK_BYTES
        if inside:
            self._clear_tail(new_size_bytes // CHUNK_BYTES, inside)

    def _clear_tail(self, chunk: int, inside_bytes: int) -> None:
        block, ordinal = divmod(chunk, self._chunks_per_block)
        content = bytearray(CHUNK_BYTES)
        self.blocks.read_into(content, self.blocks.places([block])[block], ordinal * CHUNK_BYTES)
        if not is_zero(memoryview(content)[inside_bytes:]):
            content[inside_bytes:] = bytes(CHUNK_BYTES - inside_bytes)
            self._put(block, self.blocks.places([block])[block], {ordinal: content})

    def wipe(self, body: ChunksDiscarded | ChunksZeroed) -> None:
        """These chunks read as zeros."""
        rows = body.table.copy()
        if int(rows[-1, 1]) == self._chunk_count:  # the last block has no more chunks than these
            rows[-1, 1] = self._block_count * self._chunks_per_block
        self._wipe(rows)

    def _wipe(self, rows: Words) -> None:
        per_block = np.uint64(self._chunks_per_block)
        first = (rows[:, 0] + per_block - np.uint64(1)) // per_block
        last = rows[:, 1] // per_block
        whole = first < last
        self.blocks.unmap_many(np.stack([first[whole], last[whole]], axis=1))
        if self._chunks_per_block == 1:
            return
        for begin, end in rows.tolist():
            for block in {begin // self._chunks_per_block, (end - 1) // self._chunks_per_block}:
                self._wipe_part(block, begin, end)

    def _wipe_part(self, block: int, begin: int, end: int) -> None:
        """The chunks [begin, end) of `block`, unless they are all of it."""
        per_block = self._chunks_per_block
        low, high = max(begin - block * per_block, 0), min(end - block * per_block, per_block)
        if high - low < per_block:
            self._wiped[block] = self._wiped.get(block, 0) | (1 << high) - (1 << low)
        else:
            self._wiped.pop(block, None)

    def write(self, body: ChunksWritten) -> None:
        """Apply the pages of these chunks, each checked (D1)."""
        for batch in _batches(self._decompressor.iter_chunks(body), self._chunks_per_block):
            groups = [
                (block, list(chunks)) for block, chunks in groupby(batch, lambda c: c.chunk // self._chunks_per_block)
            ]
            places = self._places(groups)
            for block, chunks in groups:
                wiped = self._wiped.get(block, 0)
                parts = {
                    chunk.chunk % self._chunks_per_block: self._applied(chunk, places[block], wiped) for chunk in chunks
                }
                self._put(block, places[block], parts)
            self.blocks.write_queued()

    def _places(self, groups: list[tuple[int, list[AppliedChunk]]]) -> dict[int, int]:
        """Where the blocks are; UNASKED for those that are overwritten wholly, whatever they hold."""
        whole = {block for block, chunks in groups if len(chunks) == self._chunks_per_block and _are_whole(chunks)}
        places = self.blocks.places([block for block, _ in groups if block not in whole])
        return places | {block: self.blocks.fresh.get(block, UNASKED) for block in whole}

    def _applied(self, chunk: AppliedChunk, place: int, wiped: int) -> Buffer:
        """The whole chunk, with its hash checked."""
        content: Buffer = chunk.pages
        if chunk.mask != ALL_PAGES:
            ordinal = chunk.chunk % self._chunks_per_block
            content = bytearray(CHUNK_BYTES)
            if not wiped >> ordinal & 1:
                self.blocks.read_into(content, place, ordinal * CHUNK_BYTES)
            apply_pages(content, chunk.mask, chunk.pages)
        found = digest128(content)
        if found != chunk.digest:
            raise ChunkMismatchError(self._volume, self._number, chunk.chunk, chunk.digest, found)
        return _ZEROS if found == ZERO_HASH else content

    def _put(self, block: int, place: int, parts: dict[int, Buffer]) -> None:
        """Write `parts` (chunk inside the block -> content) and what was wiped; the rest stays as it is (D2)."""
        wiped = self._wiped.pop(block, 0)
        for ordinal in range(self._chunks_per_block) if wiped else ():
            if wiped >> ordinal & 1:
                parts.setdefault(ordinal, _ZEROS)
        all_zero = all(content is _ZEROS for content in parts.values())
        if all_zero and place == NOWHERE:
            return
        if all_zero and len(parts) == self._chunks_per_block:
            self.blocks.unmap(block, block + 1)
            return
        is_fresh = block in self.blocks.fresh
        target = place if is_fresh else self.blocks.fresh_place(block)
        for ordinal, content in parts.items():
            self.blocks.write(target, ordinal * CHUNK_BYTES, content)
        holds = not all_zero
        for begin, end in () if is_fresh else _others(sorted(parts), self._chunks_per_block):
            holds = self.blocks.copy(place, target, begin * CHUNK_BYTES, end * CHUNK_BYTES) or holds
        if not holds and not (is_fresh and self.blocks.holds_data(target)):
            self.blocks.unmap(block, block + 1)

    def finish(self) -> Filling:
        """Write what was only wiped so far; what the switch makes true."""
        left = sorted(self._wiped)
        for begin in range(0, len(left), _BATCH_CHUNKS):
            batch = left[begin : begin + _BATCH_CHUNKS]
            for block, place in self.blocks.places(batch).items():
                self._put(block, place, {})
        self.blocks.require_lease()
        return self.blocks.filling()


def _are_whole(chunks: list[AppliedChunk]) -> bool:
    return all(chunk.mask == ALL_PAGES for chunk in chunks)


def _others(ordinals: Sequence[int], count: int) -> Iterator[tuple[int, int]]:
    """The ranges of [0, count) that `ordinals` (ascending) leave out."""
    begin = 0
    for ordinal in [*ordinals, count]:
        if begin < ordinal:
            yield begin, ordinal
        begin = ordinal + 1


def _batches(chunks: Iterator[AppliedChunk], chunks_per_block: int) -> Iterator[list[AppliedChunk]]:
    """Lists of some chunks each; a block's stay together unless it is larger than a batch."""
    batch: list[AppliedChunk] = []
    for chunk in chunks:
        full = len(batch) >= _BATCH_CHUNKS
        if full and (
            len(batch) >= 2 * _BATCH_CHUNKS or chunk.chunk // chunks_per_block != batch[-1].chunk // chunks_per_block
        ):
            yield batch
            batch = []
        batch.append(chunk)
    if batch:
        yield batch
