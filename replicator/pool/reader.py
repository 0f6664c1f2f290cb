"""Reading a pool's devices: roots from its owner (or from a superblock that nobody changes), data from the disk itself.

What diff, publish, export, restore and read-only serving stand on, beside a running owner or without one; opened by
pool/reading. A Disk is one device as bytes: its mapping in packed stretches (thin/table), loaded when asked for.

    lease      whoever reads holds one: in this process, or over the owner's socket
    metadata   nodes under the leased roots never change; they are read from the device and verified (pdata/store)
    data       blocks under them never change either

Invariants
  D1  What a Disk returns was read while its lease stood: it is looked at after each read, and a read that a fallen
      lease may have spoilt is UnavailableError, whatever else went wrong in it.
  D2  Memory is bounded: at most `stretches` of 32 KiB of mapping a Disk (P5), and no copy of data.
  D3  Threads may share a Disk.

Failures: UnavailableError (void), NotFoundError (no such device any more), FormatError, DeviceError, UsageError.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from replicator._buffer import Buffer
from replicator.blockdev.file import FileDevice
from replicator.blockdev.interface import BlockDevice
from replicator.errors import DeviceError, FormatError, UnavailableError, UsageError
from replicator.pdata.node import MAPPING
from replicator.pdata.store import MetadataStore
from replicator.pdata.tree import walk
from replicator.pool.interface import DeviceFacts, Lease
from replicator.pool.metadata_device import MetadataDevice
from replicator.pool.view import CatalogueView
from replicator.thin.table import SHARED, STAMP_BITS, STRETCH_BLOCKS, STRETCH_MASK, STRETCH_SHIFT, MappingTable
from replicator.units import METADATA_BLOCK_BYTES

DEFAULT_STRETCHES = 512
"""16 MiB of mapping: 128 GiB of volume in the smallest blocks, beyond which a sequential reader loads anew anyway."""

_SHIFT = np.uint64(STAMP_BITS)
_SHARED = np.uint64(SHARED)


class Roots(Protocol):
    """Where a reader's roots come from: a Pool, or pool/reading's still and foreign ones."""

    def view(self) -> CatalogueView: ...

    def facts(self, dev_ids: Sequence[int]) -> dict[int, DeviceFacts]: ...

    def lease(self, dev_ids: Sequence[int]) -> AbstractContextManager[Lease]: ...


class PoolReader:
    """A pool, open for reading; a context manager. Everything it leased is released when it is closed."""

    def __init__(
        self, path: Path, roots: Roots, metadata: MetadataDevice, data: FileDevice, block_bytes: int, held: ExitStack
    ) -> None:
        self.path, self.block_bytes, self.data = path, block_bytes, data
        self._roots, self._metadata, self._held = roots, metadata, held

    def view(self) -> CatalogueView:
        """What is in the pool, as of its newest transaction id."""
        return self._roots.view()

    def facts(self, dev_ids: Sequence[int] = ()) -> dict[int, DeviceFacts]:
        """The devices that there are, of those asked for (all, when none is named)."""
        return self._roots.facts(dev_ids)

    def lease(self, dev_ids: Sequence[int]) -> AbstractContextManager[Lease]:
        """Hold these devices for as long as the block lasts."""
        return self._roots.lease(dev_ids)

    def metadata_store(self) -> MetadataStore:
        """The metadata's blocks, as long as the device is now. Only nodes under leased roots stay as they are."""
        return MetadataStore(self._metadata, self._metadata.refresh_size() // METADATA_BLOCK_BYTES)

    def disk(
        self,
        dev_id: int,
        size_bytes: int,
        origin: BlockDevice | None = None,
        *,
        lease: Lease | None = None,
        stretches: int = DEFAULT_STRETCHES,
    ) -> Disk:
        """The device as bytes, under `lease`, or under one of its own until it is closed; `origin` stays open."""
        with ExitStack() as stack:
            held = stack.enter_context(self.lease([dev_id])) if lease is None else lease
            if dev_id not in held.devices:
                raise UsageError(f"thin device {dev_id} isn't among those leased")
            return Disk(self, held, dev_id, size_bytes, origin, stretches, stack.pop_all())

    def close(self) -> None:
        """Close the devices, and what roots came from if this reader opened it; a second call does nothing."""
        self._held.close()

    def __enter__(self) -> PoolReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Disk:
    """One thin device, to be read; see the module's invariants."""

    read_only = True

    def __init__(
        self,
        reader: PoolReader,
        lease: Lease,
        dev_id: int,
        size_bytes: int,
        origin: BlockDevice | None,
        stretches: int,
        held: ExitStack,
    ) -> None:
        self.dev_id, self.size_bytes, self.origin = dev_id, size_bytes, origin
        self.block_bytes = reader.block_bytes
        self._data, self._store = reader.data, reader.metadata_store()
        self._root, self._lease, self._held = lease.devices[dev_id].root, lease, held
        self._table = MappingTable(-(-size_bytes // self.block_bytes), stretches)
        self._turn = threading.Lock()

    @property
    def name(self) -> str:
        return f"thin device {self.dev_id}"

    def pread(self, length_bytes: int, offset_bytes: int) -> bytes:
        """`length_bytes` from `offset_bytes` on."""
        self._check_range(length_bytes, offset_bytes)
        target = bytearray(length_bytes)
        self.pread_into(target, offset_bytes)
        return bytes(target)

    def pread_into(self, target: Buffer, offset_bytes: int) -> None:
        """Fill `target` from `offset_bytes` on."""
        view = memoryview(target).cast("B")
        with self._under_lease():
            for start, length, where in self._runs(offset_bytes, len(view)):
                part = view[start - offset_bytes : start - offset_bytes + length]
                if where >= 0:
                    self._data.pread_into(part, where)
                else:
                    self._read_behind(part, start)

    def runs(self, offset_bytes: int, length_bytes: int) -> Iterator[tuple[int, int, int]]:
        """(offset, length, where) of pieces that lie in one place: `where` is a byte of the data device, or -1.

        What was read from there by others is void unless `stands` afterwards.
        """
        with self._under_lease():
            yield from self._runs(offset_bytes, length_bytes)

    @property
    def stands(self) -> bool:
        """Whether what was read so far may be used."""
        return self._lease.stands

    def close(self) -> None:
        """Release the lease if it is this disk's own."""
        self._held.close()

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _runs(self, offset_bytes: int, length_bytes: int) -> Iterator[tuple[int, int, int]]:
        self._check_range(length_bytes, offset_bytes)
        stretch_bytes, end = STRETCH_BLOCKS * self.block_bytes, offset_bytes + length_bytes
        while offset_bytes < end:
            stop = min(end, (offset_bytes // stretch_bytes + 1) * stretch_bytes)
            yield from self._runs_of_stretch(offset_bytes, stop)
            offset_bytes = stop

    def _runs_of_stretch(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        size = self.block_bytes
        first, last = begin // size, -(-end // size)
        stretch = self._stretch(first >> STRETCH_SHIFT)
        if last - first == 1:  # small reads: ten times faster than by arrays
            entry = stretch[first & STRETCH_MASK]
            yield begin, end - begin, (entry >> STAMP_BITS) * size + begin - first * size if entry else -1
            return
        low = first & STRETCH_MASK
        entries = np.asarray(stretch)[low : low + last - first]
        places = (entries >> _SHIFT).astype(np.int64)
        places[entries == 0] = -1
        before, after = places[:-1], places[1:]
        joined = np.where(before < 0, after < 0, after == before + 1)
        starts = np.concatenate(([0], np.flatnonzero(~joined) + 1))
        ends = np.append(starts[1:], len(places))
        for start, stop, place in zip(starts.tolist(), ends.tolist(), places[starts].tolist(), strict=True):
            low_byte = max(begin, (first + start) * size)
            high_byte = min(end, (first + stop) * size)
            where = place * size + low_byte - (first + start) * size if place >= 0 else -1
            yield low_byte, high_byte - low_byte, where

    def _stretch(self, index: int) -> memoryview:
        found = self._table.stretches[index]
        if found is not None:
            return found
        begin = index * STRETCH_BLOCKS
        entries = np.zeros(STRETCH_BLOCKS, dtype=np.uint64)
        limit = self._data.refresh_size() // self.block_bytes
        for keys, values in walk(self._store, self._root, MAPPING, begin, begin + STRETCH_BLOCKS):
            blocks = values >> _SHIFT
            if int(blocks.max()) >= limit:
                where = f"the mapping of thin device {self.dev_id}"
                raise FormatError(where, f"data blocks below {limit}", str(int(blocks.max())))
            entries[keys.astype(np.int64) - begin] = blocks << _SHIFT | _SHARED
        with self._turn:
            return self._table.install(index, entries)

    def _read_behind(self, part: memoryview, offset_bytes: int) -> None:
        """What an unmapped stretch reads as: the external origin; zeros beyond its end, or without one."""
        inside = 0
        if self.origin is not None:
            inside = max(0, min(len(part), self.origin.size_bytes - offset_bytes))
            if inside:
                self.origin.pread_into(part[:inside], offset_bytes)
        part[inside:] = bytes(len(part) - inside)

    def _check_range(self, length_bytes: int, offset_bytes: int) -> None:
        if offset_bytes < 0 or length_bytes < 0 or offset_bytes + length_bytes > self.size_bytes:
            span = f"bytes {offset_bytes}..{offset_bytes + length_bytes}"
            raise UsageError(f"{self.name}: {span} aren't all inside its {self.size_bytes}")

    @contextmanager
    def _under_lease(self) -> Iterator[None]:
        """Around each read: what comes out was covered (D1)."""
        try:
            yield
        except (FormatError, DeviceError):
            self._check_lease()
            raise
        self._check_lease()

    def _check_lease(self) -> None:
        if not self._lease.stands:
            raise UnavailableError(
                f"{self.name}: its lease fell while it was read, so what was read is void",
                mend="read it again: the pool's owner has ended, or was restarted",
            )
