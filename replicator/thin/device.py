"""One thin device as a disk: reads, writes, trims and zeroes bytes, by its page table and the data device.

Served by the exporter, between NBD requests and thin/engine. The exporter's loop answers the plain cases itself (one
mapped block that may be overwritten in place) from `table`, `epoch` and the data descriptor; all others come here.

    what a write finds                what it does
    a block of its own                overwrites in place; nothing changes in the metadata
    a shared block, overwritten whole provisions a new one; the old one isn't read
    a shared block, in part           copies it to a new one with the change in it (COW)
    nothing, or the external origin   provisions a new one, zeros or the origin's content around the change (P7)

The new block is written whole before its mapping is known to anyone: a record in `dirty`, then the page table, then
the reply (P1b). Whoever changes a block claims it first; other blocks never wait for it.

Invariants
  W1  Writers are inside the gate (thin/gate), so `epoch` doesn't change under them. A write of several blocks finds
      room for all of them before its first; only where others take that room meanwhile, in a pool that is nearly full,
      may it leave the gate halfway, and stand on both sides of a cut.
      So may a trim, or zeroes that unmap, of more than TRIM_LEAVES leaves: it goes in pieces, with a commit after each,
      so that none is long (P4).
  W2  At most one thread provisions or breaks one block at a time; it never leaves the gate while it has a claim. What
      it copied is void when the block was unmapped meanwhile, or became the device's own (the snapshot that shared it
      went, and its stretch was loaded anew): others may have overwritten it in place since.
  W3  Table and dirty records change together, under the publish lock: their order is the same.
  W4  No new block holds content from beyond the device's end: it would show when the device grows (P7).
  W5  Nothing is written or mapped beyond the end, and no block is unmapped for its short end that is longer by now. The
      size changes while the gate is closed, so that who looked at it inside may go on; who left the gate looks again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from replicator._buffer import Buffer
from replicator.blockdev.interface import BlockDevice
from replicator.errors import ConflictError, NoSpaceError, UsageError
from replicator.pdata.block import Words
from replicator.pdata.node import INTERNAL_MAX
from replicator.thin.sharing import Mapped
from replicator.thin.table import (
    FIRST_EPOCH,
    SHARED,
    STAMP_BITS,
    STAMP_MASK,
    STRETCH_BLOCKS,
    STRETCH_MASK,
    STRETCH_SHIFT,
    MappingTable,
)

if TYPE_CHECKING:
    from replicator.thin.engine import Engine

TRIM_LEAVES = 256  # unmapped at once: at most 64 thousand mappings, 4 GiB in 64 KiB blocks
_TRIM_BLOCKS = TRIM_LEAVES * INTERNAL_MAX // 3  # whatever is mapped there, it stands in no more leaves than that
_ROOM_TRIES = 2  # one commit empties the dirty set, the next frees what the first one's snapshots gave up


@dataclass(frozen=True, slots=True)
class Copied:
    """What a writer inside the gate read of `block` already: its table entry, and all of its content, in a buffer of
    the writer's own that is changed by the write."""

    block: int
    entry: int
    content: memoryview


class _Claim:
    """One thread's right to give a block another home; `lock` is held while it stands."""

    __slots__ = ("lock", "void")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()
        self.void = False


class ThinDevice:
    """An open thin device of `engine`, `size_bytes` long; `origin` lies behind its unmapped blocks."""

    def __init__(
        self, engine: Engine, dev_id: int, size_bytes: int, *, origin: BlockDevice | None = None, read_only: bool = True
    ) -> None:
        self.engine = engine
        self.dev_id = dev_id
        self.size_bytes = size_bytes
        self.origin = origin
        self.read_only = read_only
        self.block_bytes = engine.block_bytes
        self.epoch = FIRST_EPOCH
        self.table = MappingTable(-(-size_bytes // self.block_bytes), engine.settings.table_stretches)
        self.users = 0
        self.closed = False
        self._claims: dict[int, _Claim] = {}
        self._zeros = bytes(self.block_bytes)

    @property
    def name(self) -> str:
        return f"thin device {self.dev_id}"

    def refuse_closed(self) -> None:
        """ConflictError when its use has ended (thin/closing)."""
        if self.closed:
            raise ConflictError(f"{self.name} was closed")

    def _check(self, offset_bytes: int, length_bytes: int) -> None:
        if offset_bytes < 0 or length_bytes < 0 or offset_bytes + length_bytes > self.size_bytes:
            span = f"bytes {offset_bytes}..{offset_bytes + length_bytes}"
            raise UsageError(f"{self.name}: {span} aren't all inside its {self.size_bytes}")

    # -- looking up ------------------------------------------------------------------------------------------

    def entry(self, virtual_block: int) -> int:
        """The page table's entry of one block, loaded when it isn't there."""
        return self.stretch(virtual_block >> STRETCH_SHIFT)[virtual_block & STRETCH_MASK]

    def stretch(self, index: int) -> memoryview:
        """A stretch of the page table, loaded when it isn't there; UsageError when the device got shorter meanwhile."""
        try:
            stretch = self.table.stretches[index]
            return self.engine.load_stretch(self, index) if stretch is None else stretch
        except IndexError:
            raise UsageError(f"{self.name} was made smaller, and ends at byte {self.size_bytes}") from None

    def runs(self, offset_bytes: int, length_bytes: int) -> Iterator[tuple[int, int, int]]:
        """(offset, length, where) of pieces that read from one place: `where` is a byte of the data device, or -1.

        Neighbours that lie behind one another on the data device, or are unmapped, are one piece.
        """
        size, end = self.block_bytes, offset_bytes + length_bytes
        start, length, place = offset_bytes, 0, -2
        at = offset_bytes
        while at < end:
            block, inside = divmod(at, size)
            step = min(size - inside, end - at)
            entry = self.entry(block)
            where = (entry >> STAMP_BITS) * size + inside if entry else -1
            if length and where == (place + length if place >= 0 else -1) and (where >= 0) == (place >= 0):
                length += step
            else:
                if length:
                    yield start, length, place
                start, length, place = at, step, where
            at += step
        if length:
            yield start, length, place

    # -- reading ---------------------------------------------------------------------------------------------

    def pread_into(self, target: Buffer, offset_bytes: int) -> None:
        """Fill `target` from `offset_bytes` on."""
        view = memoryview(target).cast("B")
        self._check(offset_bytes, len(view))
        for start, length, where in self.runs(offset_bytes, len(view)):
            part = view[start - offset_bytes : start - offset_bytes + length]
            if where >= 0:
                self.engine.data.pread_into(part, where)
            else:
                self._read_behind(part, start)

    def pread(self, length_bytes: int, offset_bytes: int) -> bytes:
        """`length_bytes` from `offset_bytes` on."""
        target = bytearray(length_bytes)
        self.pread_into(target, offset_bytes)
        return bytes(target)

    def _read_behind(self, part: memoryview, offset_bytes: int) -> None:
        """What an unmapped stretch reads as: the external origin, zeros beyond its end or without one."""
        inside = 0
        if self.origin is not None:
            inside = max(0, min(len(part), self.origin.size_bytes - offset_bytes))
            if inside:
                self.origin.pread_into(part[:inside], offset_bytes)
        part[inside:] = bytes(len(part) - inside)

    # -- writing ---------------------------------------------------------------------------------------------

    def pwrite(self, data: Buffer, offset_bytes: int, copied: Copied | None = None) -> None:
        """Write `data`; the caller is inside the gate (W1). NoSpaceError when the pool is full (P8).

        `copied`, read in this stay in the gate, saves reading that block again if it is to be copied.
        """
        view = memoryview(data).cast("B")
        self._check(offset_bytes, len(view))
        self._refuse_read_only()
        at, size = 0, self.block_bytes
        if offset_bytes % size + len(view) > size:
            copied = None
            self._make_room(offset_bytes // size, (offset_bytes + len(view) - 1) // size + 1)
        while at < len(view):
            block, inside = divmod(offset_bytes + at, size)
            step = min(size - inside, len(view) - at)
            self.write_block(block, inside, view[at : at + step], copied)
            at += step

    def _make_room(self, begin: int, end: int) -> None:
        """Before a write of the blocks [begin, end): wait now for what it would leave the gate for halfway (P3)."""
        for _ in range(_ROOM_TRIES):
            if (end - 1) * self.block_bytes >= self.size_bytes:
                return  # it was made smaller meanwhile, as write_block will tell (W5)
            count = sum(self.entry(block) & STAMP_MASK != self.epoch for block in range(begin, end))
            if not count or self.engine.has_room(count):
                return
            self.engine.space.refill()
            if self.engine.has_room(count):
                return
            self.engine.wait_outside()

    def _refuse_read_only(self) -> None:
        if self.read_only:
            raise ConflictError(f"{self.name} is open for reading only")

    def write_block(self, block: int, inside: int, data: memoryview, copied: Copied | None = None) -> None:
        """Write within one block; `copied` as for pwrite."""
        size = self.block_bytes
        begin = block * size + inside
        end = begin + len(data)
        while True:
            if end > self.size_bytes:  # by now (W5)
                self._check(begin, len(data))
            entry = self.entry(block)
            if entry & STAMP_MASK == self.epoch:
                self.engine.data.pwrite(data, (entry >> STAMP_BITS) * size + inside)
                return
            if self.engine.admit():
                copied = None  # it left the gate: the data block may hold something else by now
                continue
            claim = _Claim()
            holder = self._claims.setdefault(block, claim)
            if holder is not claim:
                with holder.lock:
                    continue
            full = False
            try:
                if self._provision(block, inside, data, copied):
                    return
            except NoSpaceError:
                full = True
            finally:
                del self._claims[block]
                claim.lock.release()
            copied = None
            if full:
                self.engine.wait_for_space()

    def is_void(self, block: int, before: int | None) -> bool:
        """Whether a copy of `block`, whose entry was `before`, is void (W2), or all is over; under the publish lock.

        None: nothing was copied.
        """
        claim = self._claims.get(block)
        if self.closed or self.engine.failed or (claim is not None and claim.void):
            return True
        if before is None:
            return False
        stretch = self.table.stretches[block >> STRETCH_SHIFT]
        if stretch is None:  # nobody can say what it was meanwhile
            return True
        entry = stretch[block & STRETCH_MASK]
        is_other = bool(entry) != bool(before) or entry >> STAMP_BITS != before >> STAMP_BITS
        return is_other or entry & STAMP_MASK == self.epoch

    def void_claims(self, begin: int, end: int) -> None:
        """The blocks [begin, end) are being unmapped (W2); under the publish lock."""
        self.refuse_closed()
        for block, claim in list(self._claims.items()):
            claim.void |= begin <= block < end

    def _provision(self, block: int, inside: int, data: memoryview, copied: Copied | None) -> bool:
        """Give `block`, which is claimed, a data block of its own with `data` in it.

        False when there was no room for its record, or the copy is void (W2); NoSpaceError when there was no data
        block to be had.
        """
        entry = self.entry(block)
        if entry & STAMP_MASK == self.epoch:
            self.engine.data.pwrite(data, (entry >> STAMP_BITS) * self.block_bytes + inside)
            return True
        new, published = self.engine.space.take_one(), False
        try:
            whole = data if len(data) == self.block_bytes else self._with_old(entry, block, inside, data, copied)
            self.engine.data.pwrite(whole, new * self.block_bytes)
            published = self.engine.publish(self, block, new, entry)
        finally:
            if not published:
                self.engine.space.give_back(np.array([new], dtype=np.uint64))
        return published

    def _with_old(
        self, entry: int, block: int, inside: int, data: memoryview, copied: Copied | None
    ) -> bytearray | memoryview:
        size = self.block_bytes
        whole: bytearray | memoryview
        if copied is not None and (copied.block, copied.entry) == (block, entry):
            whole = copied.content
        else:
            whole = bytearray(size)
            if entry:
                self.engine.data.pread_into(whole, (entry >> STAMP_BITS) * size)
            elif self.origin is not None:
                self._read_behind(memoryview(whole), block * size)
        whole[inside : inside + len(data)] = data
        end = self.size_bytes - block * size
        if end < size:  # W4
            whole[max(end, 0) :] = bytes(size - max(end, 0))
        return whole

    def discard(self, offset_bytes: int, length_bytes: int) -> None:
        """Unmap the whole blocks inside the range (the volume's short last block counts as whole); edges stay."""
        self._check(offset_bytes, length_bytes)
        self._refuse_read_only()
        size, end = self.block_bytes, offset_bytes + length_bytes
        begin = -(-offset_bytes // size)
        last = -(-end // size) if end == self.size_bytes else end // size
        while begin < last:
            piece = last
            if last - begin > _TRIM_BLOCKS:
                piece = self.engine.paging.leaf_bound(self.dev_id, begin, last, TRIM_LEAVES)
            self._unmap(begin, piece, end)
            begin = piece
            if begin < last:
                self.engine.wait_outside()

    def _unmap(self, begin: int, end: int, end_bytes: int) -> None:
        size = self.block_bytes
        while True:
            self.engine.admit(trims=True)
            end = min(end, -(-self.size_bytes // size))  # by now (W5): what lies beyond is gone
            if end_bytes < min(end * size, self.size_bytes):
                end -= 1  # it was the short last block, which has more behind it now
            if begin >= end or self.engine.publish_unmapped(self, begin, end):
                return

    def write_zeroes(self, offset_bytes: int, length_bytes: int, *, may_unmap: bool = True) -> None:
        """Make the range read as zeros; whole blocks are unmapped where `may_unmap` and no origin shines through."""
        self._check(offset_bytes, length_bytes)
        self._refuse_read_only()
        size, end = self.block_bytes, offset_bytes + length_bytes
        if not may_unmap or self.origin is not None:
            self._write_zeros(offset_bytes, length_bytes)
            return
        begin = -(-offset_bytes // size)
        last = -(-end // size) if end == self.size_bytes else end // size
        if begin >= last:
            self._zero_part(offset_bytes, length_bytes)
            return
        self._zero_part(offset_bytes, begin * size - offset_bytes)
        self.discard(begin * size, min(last * size, end) - begin * size)
        edge = end // size * size
        self._zero_part(edge, end - edge)  # nothing is there if it was unmapped as the short last block

    def _zero_part(self, offset_bytes: int, length_bytes: int) -> None:
        """Zero within blocks that aren't zeroed whole; unmapped ones are zeros already."""
        at, end, size = offset_bytes, offset_bytes + length_bytes, self.block_bytes
        while at < end:
            block, inside = divmod(at, size)
            step = min(size - inside, end - at)
            if self.entry(block):
                self.write_block(block, inside, memoryview(self._zeros)[:step])
            at += step

    def _write_zeros(self, offset_bytes: int, length_bytes: int) -> None:
        zeros, at, end = memoryview(self._zeros), offset_bytes, offset_bytes + length_bytes
        while at < end:
            step = min(self.block_bytes - at % self.block_bytes, end - at)
            self.write_block(at // self.block_bytes, at % self.block_bytes, zeros[:step])
            at += step

    def resize(self, size_bytes: int) -> None:
        """Go on with another length; the catalogue has it already."""
        with self.engine.publish_lock:
            self.table.resize(-(-size_bytes // self.block_bytes))
            self.size_bytes = size_bytes

    # -- cuts and changes from outside -------------------------------------------------------------------------

    def next_epoch(self) -> None:
        """A snapshot was cut: from now on every block is shared. Inside the closed gate."""
        self.epoch += 1
        if self.epoch > STAMP_MASK:
            self.table.clear()
            self.epoch = FIRST_EPOCH

    def stretch_of(self, index: int, found: Mapped, *, may_own: bool) -> Words:
        """A stretch's entries from what the mapping tree says; all of it shared unless the device `may_own` any."""
        entries = np.zeros(STRETCH_BLOCKS, dtype=np.uint64)
        own = np.uint64(self.epoch if may_own else SHARED)
        stamps = np.where(found.own, own, np.uint64(SHARED))
        places = found.blocks.astype(np.int64) - index * STRETCH_BLOCKS
        entries[places] = found.data_blocks << np.uint64(STAMP_BITS) | stamps
        return entries
