"""What differs between the two states of one transaction: which chunks, and where each side's bytes lie.

First half of extracting, between the cut and the events: mapping trees -> changed blocks -> chunks -> bytes. A state is
a leased thin device: the root of its mapping tree and its size. Reads go to the pool's devices, which this process has
open read-only; the lease alone makes them safe.

    kind                what is looked at
    DELTA               blocks that thin/diff finds between base and target
    DELTA, grown over   the same, and every block of the external origin beyond the base's end
      an origin
    FULL                every mapped block, and every block of the external origin

    a chunk in target   reads as
    mapped              its 64 KiB on the data device
    unmapped            the external origin's bytes, zeros beyond its end; zeros where there is no origin
    beyond the size     zeros (a short last chunk is padded)

Invariants
  D1  The same base and target give the same chunks in the same order, each once, ascending.
  D2  Memory is bounded: changed blocks are kept while they are few (HELD_BLOCKS_MAX), and found again else.
  D3  Nothing read is given out unless the lease stood after the read.

Failures: LeaseLostError; DeviceError (a block can't be read), FormatError (damaged metadata).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from replicator.blockdev.interface import BlockDevice
from replicator.errors import UnavailableError
from replicator.events.values import chunk_count_of
from replicator.pdata.node import MAPPING
from replicator.pdata.store import MetadataStore
from replicator.pdata.tree import walk
from replicator.thin.diff import diff_blocks
from replicator.thin.leafpairs import NO_BLOCK, BlockChanges
from replicator.thin.mapping import data_blocks
from replicator.units import CHUNK_BYTES

HELD_BLOCKS_MAX = 1 << 18
"""Changed blocks kept for the next pass: 6 MiB; beyond that the trees are walked again, which costs no memory."""

_WINDOW_BLOCKS = 1 << 16  # blocks over an external origin that are looked at together: 1.5 MiB of tables
_HEAD_BYTES = 512  # of a chunk: nearly all that aren't zeros show it there
_HEAD_ZEROS = bytes(_HEAD_BYTES)
_NOWHERE = np.int64(-1)
_TOP = 1 << 63

Offsets = npt.NDArray[np.int64]
Rows = npt.NDArray[np.uint8]


class LeaseLostError(UnavailableError):
    """The connection that held the lease fell: what was read since may be anything."""


@dataclass(frozen=True, slots=True)
class State:
    """One side: the root of a leased device's mapping tree, and the volume's size then."""

    root: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class PoolFiles:
    """A pool's devices, open for reading, and how large its blocks are."""

    metadata: BlockDevice
    data: BlockDevice
    block_bytes: int


@dataclass(frozen=True, slots=True)
class ChunkList:
    """Chunks that may differ, ascending; byte offsets of both sides on the data device, -1 where nothing is mapped."""

    chunks: npt.NDArray[np.uint64]
    base: Offsets
    target: Offsets

    def __len__(self) -> int:
        return len(self.chunks)

    def only(self, which: npt.NDArray[np.bool_] | slice) -> ChunkList:
        """Some of them."""
        return ChunkList(self.chunks[which], self.base[which], self.target[which])


class Delta:
    """The chunks of one transaction; `base` None: all that isn't zero in `target`."""

    def __init__(
        self,
        files: PoolFiles,
        base: State | None,
        target: State,
        *,
        origin: BlockDevice | None = None,
        stands: Callable[[], bool] = lambda: True,
    ) -> None:
        self.files, self.base, self.target, self.origin = files, base, target, origin
        self._stands = stands
        self._store = MetadataStore(files.metadata)
        self._held: list[BlockChanges] | None = None
        self._walked = False

    @property
    def is_full(self) -> bool:
        """Whether it stands on nothing."""
        return self.base is None

    # -- which chunks ------------------------------------------------------------------------------------------

    def chunk_bound(self) -> int:
        """The most chunks that the transaction may touch."""
        return sum(len(self._expand(changes)) for changes in self._changes())

    def removed(self, after: int = 0) -> Iterator[npt.NDArray[np.uint64]]:
        """Chunks from `after` on that hold nothing any more: unmapped, with no origin behind them."""
        if self.is_full or self.origin is not None:
            return
        for part in self._lists(after):
            gone = part.target == _NOWHERE
            if gone.any():
                yield part.chunks[gone]

    def zeroed(self, after: int) -> Iterator[npt.NDArray[np.uint64]] | None:
        """Chunks from `after` on that turned to zeros, where that is known; None: only their bytes tell."""
        return iter(()) if self.is_full else None

    def kept(self, after: int, at_once: int) -> Iterator[ChunkList]:
        """The others from `after` on, at most `at_once` in a list."""
        for part in self._lists(after):
            rest = part if self.origin is not None else part.only(part.target != _NOWHERE)
            for begin in range(0, len(rest), at_once):
                yield rest.only(slice(begin, begin + at_once))

    def _lists(self, after: int) -> Iterator[ChunkList]:
        for changes in self._changes():
            part = self._expand(changes)
            if len(part) and int(part.chunks[-1]) >= after:
                yield part.only(part.chunks >= np.uint64(after))

    def _expand(self, changes: BlockChanges) -> ChunkList:
        """Blocks as chunks, clipped to the target's size."""
        count = self.files.block_bytes // CHUNK_BYTES
        steps = np.arange(count, dtype=np.uint64)
        chunks = (changes.virtual_blocks[:, None] * np.uint64(count) + steps).reshape(-1)
        inside = slice(0, int(np.searchsorted(chunks, np.uint64(chunk_count_of(self.target.size_bytes)))))
        base, target = self._offsets(changes.base, steps), self._offsets(changes.target, steps)
        return ChunkList(chunks[inside], base[inside], target[inside])

    def _offsets(self, blocks: npt.NDArray[np.uint64], steps: npt.NDArray[np.uint64]) -> Offsets:
        mapped = blocks != NO_BLOCK
        firsts = np.where(mapped, blocks, np.uint64(0)).astype(np.int64) * np.int64(self.files.block_bytes)
        offsets = firsts[:, None] + steps.astype(np.int64) * np.int64(CHUNK_BYTES)
        return np.where(mapped[:, None], offsets, _NOWHERE).reshape(-1)

    # -- which blocks ------------------------------------------------------------------------------------------

    def _changes(self) -> Iterator[BlockChanges]:
        """The changed blocks, from memory when they were few (D2)."""
        if self._held is not None:
            yield from self._held
            return
        held: list[BlockChanges] | None = [] if not self._walked else None
        count = 0
        for changes in self._find():
            self._check()
            if held is not None:
                count += len(changes)
                held = [*held, changes] if count <= HELD_BLOCKS_MAX else None
            yield changes
        self._walked, self._held = True, held

    def _find(self) -> Iterator[BlockChanges]:
        begin, end = self._over_origin()
        if begin >= end:
            yield from self._differing(0, _TOP)
            return
        yield from self._differing(0, begin)
        yield from self._windows(begin, end)
        yield from self._differing(end, _TOP)

    def _over_origin(self) -> tuple[int, int]:
        """Blocks of which each may read differently though neither side maps it."""
        if self.origin is None:
            return 0, 0
        end = -(-min(self.origin.size_bytes, self.target.size_bytes) // self.files.block_bytes)
        if self.base is None:
            return 0, end
        return min(self.base.size_bytes // self.files.block_bytes, end), end

    def _differing(self, begin: int, end: int) -> Iterator[BlockChanges]:
        """What differs in [begin, end)."""
        for changes in self._trees():
            keys = changes.virtual_blocks
            part = slice(int(np.searchsorted(keys, np.uint64(begin))), int(np.searchsorted(keys, np.uint64(end))))
            if part.stop > part.start:
                yield BlockChanges(keys[part], changes.base[part], changes.target[part])

    def _trees(self) -> Iterator[BlockChanges]:
        limit = self.files.data.size_bytes // self.files.block_bytes
        if self.base is not None:
            return diff_blocks(self._store, self.base.root, self.target.root, data_nr_blocks=limit)
        return (
            BlockChanges(keys, np.full(len(keys), NO_BLOCK), data_blocks(values))
            for keys, values in walk(self._store, self.target.root, MAPPING)
            if len(keys)
        )

    def _windows(self, begin: int, end: int) -> Iterator[BlockChanges]:
        """Every block of [begin, end), with what either side maps there."""
        for low in range(begin, end, _WINDOW_BLOCKS):
            high = min(end, low + _WINDOW_BLOCKS)
            blocks = np.arange(low, high, dtype=np.uint64)
            yield BlockChanges(blocks, self._mapped(self.base, low, high), self._mapped(self.target, low, high))

    def _mapped(self, state: State | None, low: int, high: int) -> npt.NDArray[np.uint64]:
        found = np.full(high - low, NO_BLOCK)
        if state is not None:
            for keys, values in walk(self._store, state.root, MAPPING, low, high):
                found[(keys - np.uint64(low)).astype(np.int64)] = data_blocks(values)
        return found

    # -- their bytes -------------------------------------------------------------------------------------------

    def read_target(self, part: ChunkList, rows: Rows) -> None:
        """The chunks as the target has them, a row of 64 KiB each."""
        self._read(part.chunks, part.target, self.target.size_bytes, rows)

    def read_base(self, part: ChunkList, rows: Rows) -> None:
        """The chunks as the base has them; zeros where there is no base."""
        if self.base is None:
            rows[:] = 0
        else:
            self._read(part.chunks, part.base, self.base.size_bytes, rows)

    def blank(self, part: ChunkList) -> npt.NDArray[np.bool_]:
        """Which chunks the base has nothing of: they read as zeros, and needn't be read."""
        if self.base is None:
            return np.ones(len(part), dtype=bool)
        if self.origin is not None:
            return np.zeros(len(part), dtype=bool)
        return np.equal(part.base, _NOWHERE)

    def begin_with_zeros(self, part: ChunkList) -> npt.NDArray[np.bool_]:
        """Which chunks may be all zeros in the target, by their first bytes; of a short last chunk they say nothing."""
        read = self.files.data.pread
        places = zip(part.chunks.tolist(), part.target.tolist(), strict=True)
        begin = (read(_HEAD_BYTES, at) == _HEAD_ZEROS if at >= 0 else self._is_origin_zero(no) for no, at in places)
        found = np.fromiter(begin, dtype=np.bool_, count=len(part))
        self._check()
        return found

    def _is_origin_zero(self, chunk: int) -> bool:
        """The same of an unmapped chunk."""
        begin = chunk * CHUNK_BYTES
        if self.origin is None or begin >= self.origin.size_bytes:
            return True
        head = self.origin.pread(min(_HEAD_BYTES, self.origin.size_bytes - begin), begin)
        return head == _HEAD_ZEROS[: len(head)]

    def _read(self, chunks: npt.NDArray[np.uint64], offsets: Offsets, size_bytes: int, rows: Rows) -> None:
        target = rows.reshape(-1).data
        for begin, end in runs_of(_follows(offsets)):
            if offsets[begin] >= 0:
                view = target[begin * CHUNK_BYTES : end * CHUNK_BYTES]
                self.files.data.pread_into(view, int(offsets[begin]))
            else:
                for row in range(begin, end):
                    self._read_origin(rows[row], int(chunks[row]) * CHUNK_BYTES)
        beyond = np.flatnonzero((chunks + np.uint64(1)) * np.uint64(CHUNK_BYTES) > np.uint64(size_bytes))
        for row in beyond.tolist():
            rows[row, max(0, size_bytes - int(chunks[row]) * CHUNK_BYTES) :] = 0
        self._check()

    def _read_origin(self, row: Rows, offset_bytes: int) -> None:
        row[:] = 0
        if self.origin is not None:
            length = min(CHUNK_BYTES, self.origin.size_bytes - offset_bytes)
            if length > 0:
                self.origin.pread_into(row[:length].data, offset_bytes)

    def _check(self) -> None:
        """D3."""
        if not self._stands():
            raise LeaseLostError("the connection to the pool's owner fell while its snapshots were read")


def _follows(offsets: Offsets) -> npt.NDArray[np.bool_]:
    """Between each two rows: whether they lie one behind the other on the data device, or are both unmapped."""
    before, after = offsets[:-1], offsets[1:]
    found: npt.NDArray[np.bool_] = (after == before + np.int64(CHUNK_BYTES)) & (before >= 0)
    found |= (after == _NOWHERE) & (before == _NOWHERE)
    return found


def runs_of(follows: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Maximal ranges of rows, of which each but the first `follows` the one before it."""
    edges = (np.flatnonzero(~follows) + 1).tolist()
    yield from zip([0, *edges], [*edges, len(follows) + 1], strict=True)
