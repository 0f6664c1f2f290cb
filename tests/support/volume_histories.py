"""Random histories of one volume: a log of its transactions, and what the volume read after each of them.

The model is a bytearray; each transaction discards, zeroes and writes pages, may shrink or grow the volume, may be cut
into several segments, may be aborted first, may get labels; a history may fork into a second timeline.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

import numpy as np

from replicator.events.bodies import (
    Body,
    PointLabelled,
    PublisherOpened,
    TimelineStarted,
    TransactionAborted,
    TransactionBegan,
    TransactionCommitted,
    VolumeCreated,
)
from replicator.events.chunks import ChunksDiscarded, ChunksZeroed
from replicator.events.frames import Compressor, written_events
from replicator.events.state import StreamState
from replicator.events.values import Consistency, DeltaKind, StateName, chunk_count_of
from replicator.log.interface import Appended, Log, StreamWriter
from replicator.units import CHUNK_BYTES, PAGE_BYTES, SECTOR_BYTES
from tests.support.event_streams import VOLUME, Script
from tests.support.packed_runs import pack_runs

NAME = "disk-1"
HOST = "alpha"
SECOND_NS = 1_000_000_000
BEGAN_NS = 1_700_000_000 * SECOND_NS
"""The first transaction's timestamp; the others follow, a second each."""


@dataclass(slots=True)
class History:
    """A volume's history in `log`; `contents` by (timeline, number), `names` likewise."""

    log: Log
    rng: random.Random
    size_bytes: int
    volume: UUID = VOLUME
    contents: dict[tuple[int, int], bytes] = field(default_factory=dict)
    names: dict[tuple[int, int], StateName] = field(default_factory=dict)
    _disk: bytearray = field(default_factory=bytearray)
    _script: Script = field(default_factory=Script)
    _writer: StreamWriter | None = None
    _tail: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        self._disk = bytearray(self.size_bytes)
        self._script = Script(StreamState.start(self.volume), HOST)
        self._writer = self.log.writer(self.volume, 1)
        self._script.put(VolumeCreated(NAME, self.size_bytes, HOST, BEGAN_NS))
        self._open()

    @property
    def state(self) -> StreamState:
        """The stream's state at its end."""
        return self._script.state

    def close(self) -> None:
        """Let go of the writer."""
        if self._writer is not None:
            self._writer.close()

    def transaction(self, *labels: str, resize: bool = False, abort_first: bool = False) -> int:
        """One random transaction; its number."""
        if abort_first:
            self._begin(self.size_bytes)
            for body in self._bodies(bytearray(self._disk)):
                self._put(body)
            opened = self.state.open
            assert opened is not None
            self._put(TransactionAborted(opened.number, opened.transaction, "a test's whim"))
        if resize:
            self._resize()
        return self.commit(self._bodies(self._disk), *labels)

    def commit(self, bodies: list[Body], *labels: str) -> int:
        """A transaction of these bodies, whose outcome stands in the model already."""
        number = self._begin(self.size_bytes)
        for body in bodies:
            self._put(body)
        opened = self.state.open
        assert opened is not None
        self._put(TransactionCommitted(number, opened.counts, Consistency.CRASH, labels, None))
        self._flush()
        committed = self.state.committed
        assert committed is not None
        place = (committed.timeline, committed.number)
        self.contents[place], self.names[place] = bytes(self._disk), committed
        return number

    def write(self, offset_bytes: int, data: bytes, *labels: str) -> int:
        """A transaction that writes `data`; its number."""
        before = bytearray(self._disk)
        self._disk[offset_bytes : offset_bytes + len(data)] = data
        touched = range(offset_bytes // CHUNK_BYTES, chunk_count_of(offset_bytes + len(data)))
        masks = {chunk: _differing(before, self._disk, chunk) for chunk in touched}
        return self.commit(self._written(masks), *labels)

    def write_pages(self, data: bytes, pages: Sequence[int]) -> int:
        """A transaction that writes these pages, ascending, a page of `data` each; only the first content is kept."""
        masks: dict[int, int] = {}
        for i, page in enumerate(pages):
            self._disk[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = data[i * PAGE_BYTES : (i + 1) * PAGE_BYTES]
            masks[page // 16] = masks.get(page // 16, 0) | 1 << page % 16
        number = self.commit(self._written(masks))
        for place in list(self.contents)[1:]:
            del self.contents[place]
        return number

    def label(self, place: tuple[int, int], label: str) -> None:
        """PointLabelled for an earlier point."""
        self._put(PointLabelled(self.names[place], label, self.state.timestamp_ns))
        self._flush()

    def fork(self, at: tuple[int, int]) -> None:
        """Go on from an earlier point on the next timeline."""
        timeline = self.state.timeline + 1
        assert self.log.claim_timeline(self.volume, timeline, HOST)
        self.close()
        self._writer = self.log.writer(self.volume, timeline)
        self._disk = bytearray(self.contents[at])
        self.size_bytes = len(self._disk)
        before = self.state.timestamp_ns
        self._script = Script(StreamState.start(self.volume, timeline), HOST)
        self._script.put(TimelineStarted(self.names[at], NAME, self.size_bytes, HOST, before))
        self._open()

    def _open(self) -> None:
        self._script.put(PublisherOpened(self.state.epoch + 1, HOST, (), BEGAN_NS))
        self._flush()

    def _begin(self, size_bytes: int) -> int:
        number = self.state.next_number
        base = self.state.committed
        kind = DeltaKind.DELTA if base else DeltaKind.FULL
        at = BEGAN_NS + number * SECOND_NS
        self._script.put(TransactionBegan(number, UUID(int=number), base, at, size_bytes, 1 << 20, kind))
        return number

    def _put(self, body: Body) -> None:
        """One more event; now and then all so far becomes a segment of its own."""
        self._script.put(body)
        if self.rng.random() < 0.3:
            self._flush()
            assert self._writer is not None
            assert isinstance(self._writer.sync(), Appended)

    def _flush(self) -> None:
        assert self._writer is not None
        events = self._script.take()
        if events:
            assert isinstance(self._writer.append(self._writer.state.link, events), Appended)

    def _resize(self) -> None:
        sectors = self.rng.randrange(SECTOR_BYTES, len(self._disk) * 2) // SECTOR_BYTES
        self.size_bytes = max(1, sectors) * SECTOR_BYTES
        if self.size_bytes < len(self._disk):
            chunk = self.size_bytes // CHUNK_BYTES
            before = bytearray(self._disk)
            del self._disk[self.size_bytes :]
            tail = _differing(before, self._disk, chunk) if self.size_bytes % CHUNK_BYTES else 0
            if tail:
                self._tail = (chunk, tail)
        else:
            self._disk.extend(bytes(self.size_bytes - len(self._disk)))

    def _bodies(self, disk: bytearray) -> list[Body]:
        """Random changes of `disk`, done to it: discards, zeroes, writes."""
        count = chunk_count_of(len(disk))
        bodies: list[Body] = []
        for kind in (ChunksDiscarded, ChunksZeroed):
            if self.rng.random() < 0.5:
                runs = self._runs(count)
                for begin, end in runs:
                    high = min(end * CHUNK_BYTES, len(disk))
                    disk[begin * CHUNK_BYTES : high] = bytes(high - begin * CHUNK_BYTES)
                bodies.append(kind(pack_runs(runs)))
        masks = dict([self._pending_tail()] if self._tail else [])
        between = bytearray(disk)
        for chunk in self.rng.sample(range(count), self.rng.randrange(0, count + 1)):
            mask = self.rng.choice((0xFFFF, 1 << self.rng.randrange(16), self.rng.getrandbits(16) or 1))
            self._scribble(disk, chunk, mask)
            masks[chunk] = masks.get(chunk, 0) | mask | _differing(between, disk, chunk)
        return [*bodies, *self._written(dict(sorted(masks.items())), disk)]

    def _pending_tail(self) -> tuple[int, int]:
        assert self._tail is not None
        tail, self._tail = self._tail, None
        return tail

    def _runs(self, count: int) -> list[tuple[int, int]]:
        edges = sorted(self.rng.sample(range(count + 1), min(count + 1, 2 * self.rng.randrange(1, 4))))
        return [(edges[i], edges[i + 1]) for i in range(0, len(edges) - 1, 2)]

    def _scribble(self, disk: bytearray, chunk: int, mask: int) -> None:
        for page in range(16):
            begin = chunk * CHUNK_BYTES + page * PAGE_BYTES
            end = min(begin + PAGE_BYTES, len(disk))
            if mask >> page & 1 and begin < end:
                word = self.rng.choice((b"\0", self.rng.randbytes(8), self.rng.randbytes(PAGE_BYTES)))
                disk[begin:end] = (word * PAGE_BYTES)[: end - begin]

    def _written(self, masks: dict[int, int], disk: bytearray | None = None) -> list[Body]:
        """ChunksWritten of these pages as they now are."""
        source = self._disk if disk is None else disk
        chunks = [chunk for chunk, mask in masks.items() if mask]
        data = b"".join(_chunk(source, chunk) for chunk in chunks)
        packed = Compressor().pack(
            np.array(chunks, dtype=np.uint64), np.array([masks[chunk] for chunk in chunks], dtype=np.uint16), data
        )
        return list(written_events(packed)) if chunks else []


def _chunk(disk: bytearray, chunk: int) -> bytes:
    return bytes(disk[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]).ljust(CHUNK_BYTES, b"\0")


def _differing(before: bytearray, after: bytearray, chunk: int) -> int:
    old, new = _chunk(before, chunk), _chunk(after, chunk)
    pages = range(0, CHUNK_BYTES, PAGE_BYTES)
    return sum(1 << i for i, at in enumerate(pages) if old[at : at + PAGE_BYTES] != new[at : at + PAGE_BYTES])
