"""Reading metadata blocks: verified, many at a time, neighbours in one pread.

Every reader of the pool's metadata goes through here: the engine, diff, check, dump. There is no cache
of our own: the kernel's page cache holds the device, and a verified read of one block costs about 1.5 µs.
A running transaction's new blocks stand in `pending` until its commit writes them, and are found first.

Invariants
  S1  Nothing unverified leaves this room (checksum, kind, own number; pdata/block).
  S2  A block number at or above `nr_blocks`, or 0 where a node is asked for, is a FormatError, never a read.
"""

from __future__ import annotations

import numpy as np

from replicator.blockdev.interface import BlockDevice
from replicator.errors import FormatError
from replicator.pdata.block import WORDS_PER_BLOCK, BlockKind, Words, verify, verify_many
from replicator.pdata.node import Nodes, TreeKind, decode
from replicator.units import METADATA_BLOCK_BYTES

_LARGEST_READ_BLOCKS = 256  # 1 MiB: beyond that a larger pread gains nothing


class MetadataStore:
    """The metadata device as an array of verified blocks, plus the blocks that wait for their commit.

    `pending` maps block numbers to sealed rows (512 words) that the running transaction wrote;
    it belongs to pdata/transaction, and is empty for those who only read.
    """

    def __init__(self, device: BlockDevice, nr_blocks: int | None = None) -> None:
        self.device = device
        self.nr_blocks = device.size_bytes // METADATA_BLOCK_BYTES if nr_blocks is None else nr_blocks
        self.pending: dict[int, Words] = {}
        self.blocks_read = 0

    def read_blocks(self, blocks: Words, kind: BlockKind) -> Words:
        """The blocks as rows (n, 512), in the order asked for, verified as `kind`."""
        blocks = np.ascontiguousarray(blocks, dtype=np.uint64)
        if not blocks.size:
            return np.empty((0, WORDS_PER_BLOCK), dtype=np.uint64)
        highest = int(blocks.max())
        if highest >= self.nr_blocks or (kind is not BlockKind.SUPERBLOCK and not blocks.all()):
            bad = highest if highest >= self.nr_blocks else 0
            raise FormatError(self.device.name, f"metadata block numbers in 1..{self.nr_blocks - 1}", str(bad))
        if blocks.size == 1:
            return self._read_one(highest, kind)
        order = np.argsort(blocks, kind="stable")
        ordered = blocks[order]
        rows = np.empty((len(blocks), WORDS_PER_BLOCK), dtype=np.uint64)
        self._fill(rows, ordered, kind)
        if (order[1:] > order[:-1]).all():
            return rows
        result = np.empty_like(rows)
        result[order] = rows
        return result

    def _read_one(self, block: int, kind: BlockKind) -> Words:
        """As `read_blocks`: most descents read one node of a level, and sorting one costs more than reading it."""
        rows = np.empty((1, WORDS_PER_BLOCK), dtype=np.uint64)
        found = self.pending.get(block)
        if found is not None:
            rows[0] = found
            return rows
        self.device.pread_into(rows.data.cast("B"), block * METADATA_BLOCK_BYTES)
        verify(rows.tobytes(), kind, block, self.device.name)
        self.blocks_read += 1
        return rows

    def _fill(self, rows: Words, ordered: Words, kind: BlockKind) -> None:
        if not self.pending:
            self._read_verified(rows, ordered, kind)
            return
        waiting = list(map(self.pending.get, ordered.tolist()))  # one look each: a commit may end meanwhile
        for row, found in enumerate(waiting):
            if found is not None:
                rows[row] = found
        missing = np.array([row for row, found in enumerate(waiting) if found is None], dtype=np.int64)
        part = np.empty((missing.size, WORDS_PER_BLOCK), dtype=np.uint64)
        self._read_verified(part, ordered[missing], kind)
        rows[missing] = part

    def _read_verified(self, rows: Words, ordered: Words, kind: BlockKind) -> None:
        if len(rows):
            self._read_runs(rows, ordered)
            verify_many(rows, kind, ordered, self.device.name)

    def _read_runs(self, rows: Words, ordered: Words) -> None:
        breaks = np.flatnonzero(ordered[1:] != ordered[:-1] + np.uint64(1)) + 1
        starts = np.concatenate(([0], breaks))
        ends = np.concatenate((breaks, [len(ordered)]))
        target = rows.data.cast("B")
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            for low in range(start, end, _LARGEST_READ_BLOCKS):
                high = min(end, low + _LARGEST_READ_BLOCKS)
                view = target[low * METADATA_BLOCK_BYTES : high * METADATA_BLOCK_BYTES]
                self.device.pread_into(view, int(ordered[low]) * METADATA_BLOCK_BYTES)
        self.blocks_read += len(ordered)

    def read_nodes(self, blocks: Words, kind: TreeKind) -> Nodes:
        """Decoded nodes of one level of a `kind` tree."""
        blocks = np.ascontiguousarray(blocks, dtype=np.uint64)
        return decode(self.read_blocks(blocks, BlockKind.NODE), blocks, kind, self.device.name)
