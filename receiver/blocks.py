"""The data blocks of one step: what is reserved, what is fresh, what a block reads now; reads and writes of them.

Beneath draft, over a pool's reservations and its data device.

    place of a block   data block that holds its content, or NOWHERE (it reads as zeros), or UNASKED

Invariants
  K1  Only reserved blocks are written; each belongs to one block of the volume, or to the stock.
  K2  Writes are queued, and joined where they touch; whoever reads data first has them written.
  K3  `close` gives back whatever no Filling named.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from receiver.disks import Disks
from receiver.runs import BlockRuns
from replicator._buffer import Buffer
from replicator.errors import ConflictError, NoSpaceError, NotFoundError, UnavailableError, UsageError
from replicator.pdata.block import Words
from replicator.pool.interface import Filling, Lease, Pool
from replicator.thin.mapping import data_blocks
from replicator.thin.view import PoolView

NOWHERE = -1
UNASKED = -2
_RESERVE_AHEAD = 256  # blocks asked for at once: a call each of them would cost more than writing it
_QUEUED_BYTES_MAX = 16 << 20  # of writes that wait to be joined
_PIECE_BYTES = 1 << 20  # of a block that is copied or looked at
_REFUSALS = (NoSpaceError, ConflictError, NotFoundError, UsageError)


class StepBlocks:
    """The blocks of a step over the thin device that `lease` holds; `need` is how many it may take at most."""

    def __init__(self, pool: Pool, disks: Disks, dev_id: int, lease: Lease, need: int) -> None:
        self.block_bytes = pool.block_bytes
        self.dev_id = dev_id
        self.fresh: dict[int, int] = {}
        self.gone = BlockRuns()
        self._pool, self._disks, self._lease = pool, disks, lease
        self._root = lease.devices[dev_id].root
        self._view = PoolView.live(disks.metadata)
        self._left = need
        self._stock: list[int] = []
        self._queue: list[tuple[int, Buffer]] = []
        self._queued_bytes = 0

    def places(self, blocks: list[int]) -> dict[int, int]:
        """Where each of `blocks` (ascending) is now."""
        found = {block: self.fresh.get(block, NOWHERE) for block in blocks}
        asked = np.array([block for block in blocks if found[block] == NOWHERE], dtype=np.uint64)
        if len(asked):
            asked = asked[~self.gone.holds(asked)]
        if len(asked):
            mapped, values = self._view.lookup(self._root, asked)
            found.update(zip(asked[mapped].tolist(), data_blocks(values[mapped]).tolist(), strict=True))
            self.require_lease()
        return found

    def require_lease(self) -> None:
        """UnavailableError unless what was read may be used."""
        if not self._lease.stands:
            raise UnavailableError("the pool's owner went away while a transaction was applied")

    def fresh_place(self, block: int) -> int:
        """A reserved data block for `block`, which will be written wholly."""
        if not self._stock:
            count = max(1, min(_RESERVE_AHEAD, self._left))
            self._stock = self._pool.reserve(count).tolist()[::-1]
            self._left -= count
        place = self.fresh[block] = self._stock.pop()
        return place

    def unmap(self, begin: int, end: int) -> None:
        """The blocks [begin, end) hold nothing from now on."""
        near = range(begin, end) if end - begin < len(self.fresh) else list(self.fresh)
        for block in [each for each in near if begin <= each < end and each in self.fresh]:
            self.write_queued()  # before its place is given to another block
            self._stock.append(self.fresh.pop(block))
        self.gone.add(np.array([(begin, end)], dtype=np.uint64))

    def unmap_many(self, rows: Words) -> None:
        """As `unmap`, for ranges (n, 2)."""
        if self.fresh:
            for begin, end in rows.tolist():
                self.unmap(begin, end)
        else:
            self.gone.add(rows)

    def read_into(self, target: Buffer, place: int, inside_bytes: int) -> None:
        """Fill `target` from the block at `place`, or with zeros where it is NOWHERE."""
        if place == NOWHERE:
            view = memoryview(target)
            view[:] = bytes(len(view))
            return
        self.write_queued()
        self._disks.data.pread_into(target, place * self.block_bytes + inside_bytes)

    def write(self, place: int, inside_bytes: int, data: Buffer) -> None:
        """Write `data` into a fresh block; it is kept until it is written (K2)."""
        self._queue.append((place * self.block_bytes + inside_bytes, data))
        self._queued_bytes += len(data)
        if self._queued_bytes >= _QUEUED_BYTES_MAX:
            self.write_queued()

    def write_queued(self) -> None:
        """Write what waits, joined where it touches; what came later wins."""
        queue, self._queue, self._queued_bytes = self._queue, [], 0
        parts: list[Buffer] = []
        begin = end = 0
        for offset, data in sorted(queue, key=lambda each: each[0]):
            if parts and offset != end:
                self._disks.data.pwritev(parts, begin)
                parts = []
            if not parts:
                begin = offset
            parts.append(data)
            end = offset + len(data)
        if parts:
            self._disks.data.pwritev(parts, begin)

    def copy(self, source: int, target: int, begin_byte: int, end_byte: int) -> bool:
        """Copy that part of one block to another (zeros from NOWHERE); whether any of it isn't zero."""
        holds = False
        for offset in range(begin_byte, end_byte, _PIECE_BYTES):
            piece = bytearray(min(_PIECE_BYTES, end_byte - offset))
            if source != NOWHERE:
                self.read_into(piece, source, offset)
                holds = holds or not is_zero(piece)
            self.write(target, offset, piece)
        return holds

    def holds_data(self, place: int) -> bool:
        """Whether any byte of the block isn't zero."""
        return any(not is_zero(piece) for piece in self._pieces(place))

    def _pieces(self, place: int) -> Iterator[bytearray]:
        for offset in range(0, self.block_bytes, _PIECE_BYTES):
            piece = bytearray(min(_PIECE_BYTES, self.block_bytes - offset))
            self.read_into(piece, place, offset)
            yield piece

    def filling(self) -> Filling:
        """What the switch makes true; everything was written."""
        self.write_queued()
        blocks = np.array(sorted(self.fresh), dtype=np.uint64)
        data = np.array([self.fresh[block] for block in blocks.tolist()], dtype=np.uint64)
        return Filling(self.dev_id, blocks, data, self.gone.rows)

    @contextmanager
    def named_by(self, part: Filling) -> Iterator[None]:
        """While the switch with `part` is asked for: its blocks are the device's, or ours again if it was refused.

        After any other error nobody knows; whoever ends the connection, or opens the pool again, frees them.
        """
        named = {block: self.fresh.pop(block) for block in part.virtual_blocks.tolist()}
        try:
            yield
        except _REFUSALS:
            self.fresh.update(named)
            raise

    def close(self) -> None:
        """Give back what nobody named (K3)."""
        left = np.array([*self._stock, *self.fresh.values()], dtype=np.uint64)
        self._stock, self.fresh, self._queue = [], {}, []
        if len(left):
            self._pool.give_back(left)


def is_zero(data: Buffer) -> bool:
    """Whether all of `data` is zeros."""
    return not np.frombuffer(data, dtype=np.uint8).any() if len(data) % 8 else not np.frombuffer(data, np.uint64).any()
