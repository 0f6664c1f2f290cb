"""A restore point as a read-only disk: a base, and over it what the log has since, newest wins, every chunk verified.

What source opens, and restore and the exporter read. The base is a snapshot in a pool, read under a lease, or nothing.

    chunk          reads as
    untouched      the base; zeros beyond its end, or without one
    cleared        zeros
    written        the base's pages (zeros if it was cleared before), under the pages that won; its hash is checked

Invariants
  D1  Of a chunk that the overlay wrote no byte is given before its xxh3-128 is that of the log's newest write of it:
      a wrong base, a flipped bit in pool or log, a lost discard show here, by volume, N and chunk.
  D2  Any thread may read; memory is the overlay's windows, the frames' cache, and 64 KiB a read.

That nothing counts which was read from the base under a fallen lease is the base's promise (pool/reader, D1).

Failures: ChunkMismatchError, UsageError (a range beyond the end), and those of the base and of the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from replicator._buffer import Buffer
from replicator.blockdev.interface import BlockDevice
from replicator.errors import DamageError, UsageError
from replicator.events.digests import digest128
from replicator.events.pages import ALL_PAGES
from replicator.events.values import chunk_count_of
from replicator.repository.frames import FrameCache
from replicator.repository.layers import Layers, no_layers
from replicator.repository.overlay import HOLE, UNTOUCHED, WRITTEN, ZERO, Overlay, Window, alike, coalesced
from replicator.units import CHUNK_BYTES, PAGE_BYTES

DATA, NOTHING, ZEROS = 0, 3, 2
"""What a run is: data; a hole that reads as zeros; zeros that take room. (NBD's flags HOLE = 1 and ZERO = 2.)"""

_STATE_OF = {HOLE: NOTHING, ZERO: ZEROS, WRITTEN: DATA}


class ChunkMismatchError(DamageError):
    """A chunk of a restore point isn't what the log says: base and log don't fit, or one of them is damaged."""

    kind = "chunk-mismatch"

    def __init__(self, volume: str, number: int, chunk: int, expected: bytes, found: bytes) -> None:
        place = f"volume {volume}, transaction {number}, chunk {chunk}"
        super().__init__(
            f"{place}: expected hash {expected.hex()}, found {found.hex()}",
            mend="restore from another base: name the log itself, or another copy of it or of the pool",
        )
        self.volume = volume
        self.number = number
        self.chunk = chunk
        self.expected = expected
        self.found = found


class BaseDisk(Protocol):
    """What lies beneath an overlay: a snapshot in a pool."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def origin(self) -> BlockDevice | None:
        """What shines through its holes."""

    def pread_into(self, target: Buffer, offset_bytes: int) -> None: ...

    def runs(self, offset_bytes: int, length_bytes: int) -> Iterator[tuple[int, int, int]]:
        """(offset, length, place) of consecutive pieces; a negative place is a hole."""


class EmptyDisk:
    """Nothing: zeros, wherever it is asked; every byte lies behind its end."""

    size_bytes = 0
    origin: BlockDevice | None = None

    def pread_into(self, target: Buffer, offset_bytes: int) -> None:
        """Never called: all of it lies behind the end."""
        raise UsageError(f"{offset_bytes} lies behind the end of nothing")

    def runs(self, offset_bytes: int, length_bytes: int) -> Iterator[tuple[int, int, int]]:
        """One hole."""
        yield offset_bytes, length_bytes, -1


@dataclass(frozen=True, slots=True)
class Beneath:
    """A base, and how to let go of it."""

    disk: BaseDisk
    release: Callable[[], None] = lambda: None


class PointDisk:
    """A volume of `size_bytes` as of a restore point; `close` lets go of the base."""

    def __init__(
        self, name: str, size_bytes: int, beneath: Beneath, layers: Layers | None = None, *, window_chunks: int = 0
    ) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self.layers = no_layers() if layers is None else layers
        self.overlay = Overlay(self.layers, chunk_count_of(size_bytes), window_chunks or None)
        self._beneath = beneath
        self._frames = FrameCache(self.layers)

    @property
    def read_only(self) -> bool:
        """It is what it was."""
        return True

    def close(self) -> None:
        """Let go of the base."""
        self._beneath.release()

    def __enter__(self) -> PointDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- reading -----------------------------------------------------------------------------------------------

    def pread(self, length_bytes: int, offset_bytes: int) -> bytes:
        """`length_bytes` from `offset_bytes` on."""
        target = bytearray(length_bytes)
        self.pread_into(target, offset_bytes)
        return bytes(target)

    def pread_into(self, target: Buffer, offset_bytes: int) -> None:
        """Fill `target` from `offset_bytes` on (D1)."""
        view = memoryview(target).cast("B")
        end = offset_bytes + len(view)
        if offset_bytes < 0 or end > self.size_bytes:
            raise UsageError(f"{self.name}: bytes {offset_bytes}..{end} aren't all inside its {self.size_bytes}")
        at = offset_bytes
        while at < end:
            window = self.overlay.window_of(at // CHUNK_BYTES)
            last = min(end, window.end * CHUNK_BYTES)
            self._read_window(window, view[at - offset_bytes : last - offset_bytes], at)
            at = last

    def _read_window(self, window: Window, view: memoryview, offset_bytes: int) -> None:
        end = offset_bytes + len(view)
        first, last = offset_bytes // CHUNK_BYTES, chunk_count_of(end)
        for begin_chunk, end_chunk, state in alike(window.states(first, last), first):
            begin = max(begin_chunk * CHUNK_BYTES, offset_bytes)
            part = view[begin - offset_bytes : min(end_chunk * CHUNK_BYTES, end) - offset_bytes]
            if state == UNTOUCHED:
                self._read_base(part, begin)
            elif state == WRITTEN:
                self._read_written(window, part, begin, begin_chunk, end_chunk)
            else:
                part[:] = bytes(len(part))

    def _read_base(self, view: memoryview, offset_bytes: int) -> None:
        """The base's bytes, zeros behind its end."""
        inside = max(0, min(len(view), self._beneath.disk.size_bytes - offset_bytes))
        if inside:
            self._beneath.disk.pread_into(view[:inside], offset_bytes)
        if inside < len(view):
            view[inside:] = bytes(len(view) - inside)

    def _read_written(
        self, window: Window, view: memoryview, offset_bytes: int, begin_chunk: int, end_chunk: int
    ) -> None:
        """Chunks [begin_chunk, end_chunk), all of them written; `view` is what is wanted of them."""
        bounds, rows = window.rows_of(begin_chunk, end_chunk)
        listed = rows.tolist()
        scratch = memoryview(bytearray(CHUNK_BYTES))
        for i, (part, digest) in enumerate(window.newest_of(begin_chunk, end_chunk).tolist()):
            chunk = begin_chunk + i
            begin = chunk * CHUNK_BYTES - offset_bytes
            whole = begin >= 0 and begin + CHUNK_BYTES <= len(view)
            buffer = view[begin : begin + CHUNK_BYTES] if whole else scratch
            self._assemble(window, chunk, listed[bounds[i] : bounds[i + 1]], buffer)
            found = digest128(buffer)
            if found != digest:
                raise ChunkMismatchError(self.name, self.layers.number(part), chunk, digest, found)
            if not whole:
                low, high = max(begin, 0), min(begin + CHUNK_BYTES, len(view))
                view[low:high] = scratch[low - begin : high - begin]

    def _assemble(self, window: Window, chunk: int, rows: list[tuple[int, int, int, int]], buffer: memoryview) -> None:
        """One whole chunk into `buffer`."""
        covered = 0
        for row in rows:
            covered |= row[3]
        if covered != ALL_PAGES:
            if window.cleared[chunk - window.begin]:
                buffer[:] = bytes(CHUNK_BYTES)
            else:
                self._read_base(buffer, chunk * CHUNK_BYTES)
        for slot, page, mask, wins in rows:
            part, number, *row = window.frames[slot].item()
            _lay(buffer, self._frames.pages(part, number, tuple(row)), page, mask, wins)

    def touched(self) -> Iterator[tuple[int, int]]:
        """[begin, end) in bytes of what the overlay says something of, ascending; all else is the base's."""
        for begin, end, state in self.overlay.alike(0, chunk_count_of(self.size_bytes)):
            if state != UNTOUCHED:
                yield begin * CHUNK_BYTES, min(end * CHUNK_BYTES, self.size_bytes)

    # -- where there is what -----------------------------------------------------------------------------------

    def runs(self, offset_bytes: int, length_bytes: int) -> Iterator[tuple[int, int, int]]:
        """(offset, length, DATA | NOTHING | ZEROS), consecutive; neighbours differ."""
        for begin, end, state in coalesced(self._pieces(offset_bytes, offset_bytes + length_bytes)):
            yield begin, end - begin, state

    def _pieces(self, at: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(begin, end, state); neighbours may be alike."""
        if at >= end:
            return
        for begin_chunk, end_chunk, state in self.overlay.alike(at // CHUNK_BYTES, chunk_count_of(end)):
            begin, stop = max(begin_chunk * CHUNK_BYTES, at), min(end_chunk * CHUNK_BYTES, end)
            if state == UNTOUCHED:
                yield from self._base_pieces(begin, stop)
            else:
                yield begin, stop, _STATE_OF[state]

    def _base_pieces(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        inside = max(begin, min(end, self._beneath.disk.size_bytes))
        if begin < inside:
            origin = self._beneath.disk.origin
            covered = origin.size_bytes if origin is not None else 0
            for at, length, place in self._beneath.disk.runs(begin, inside - begin):
                seen = length if place >= 0 else max(0, min(length, covered - at))
                if seen:
                    yield at, at + seen, DATA
                if seen < length:
                    yield at + seen, at + length, NOTHING
        if inside < end:
            yield inside, end, NOTHING


def _lay(chunk: memoryview, pages: memoryview, page: int, mask: int, wins: int) -> None:
    """Copy the pages `wins` of a chunk out of a frame that has its pages `mask` from page `page` on."""
    if wins == ALL_PAGES:
        chunk[:] = pages[page * PAGE_BYTES : page * PAGE_BYTES + CHUNK_BYTES]
        return
    while wins:
        low = (wins & -wins).bit_length() - 1
        rest = wins >> low
        count = ((rest + 1) & -(rest + 1)).bit_length() - 1
        source = page + (mask & ((1 << low) - 1)).bit_count()
        chunk[low * PAGE_BYTES : (low + count) * PAGE_BYTES] = pages[
            source * PAGE_BYTES : (source + count) * PAGE_BYTES
        ]
        wins &= ~(((1 << count) - 1) << low)
