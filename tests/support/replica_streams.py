"""Random streams of a volume, with what it reads after each transaction: the source's side of the receiver's tests.

The volume is a bytearray; changes are made on it, and the events are made from base and target as a publisher would:
discards, zeroes, then pages that differ, with the hash of each whole chunk.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from uuid import UUID

import numpy as np

from replicator.events.bodies import (
    GroupCut,
    PublisherOpened,
    TransactionAborted,
    TransactionBegan,
    TransactionCommitted,
    VolumeCreated,
)
from replicator.events.chain import seal
from replicator.events.chunks import ChunksDiscarded, ChunksZeroed
from replicator.events.codec import Event
from replicator.events.frames import Compressor, written_events
from replicator.events.pages import changed_pages_many
from replicator.events.state import StreamState
from replicator.events.values import Consistency, DeltaKind, chunk_count_of
from replicator.log.interface import Appended, Log
from replicator.units import CHUNK_BYTES, SECTOR_BYTES
from tests.support.packed_runs import pack_runs

SECOND_NS = 1_000_000_000


class SourceVolume:
    """A volume at the source; `images[n]` is what it reads after transaction n (0: before the first)."""

    def __init__(
        self, seed: int, size_bytes: int, *, uuid: UUID | None = None, name: str = "disk-1", step_s: int = 20
    ) -> None:
        self.random = random.Random(seed)
        self.uuid = uuid or UUID(int=self.random.getrandbits(128), version=4)
        self.data = bytearray(size_bytes)
        self.images: dict[int, bytes] = {0: b""}
        self.events: list[Event] = []
        self.state = StreamState.start(self.uuid)
        self.now_ns = 1_700_000_000 * SECOND_NS
        self._step_ns = step_s * SECOND_NS
        self._base = b""
        self.put(VolumeCreated(name, size_bytes, "alpha", self.now_ns))
        self.put(PublisherOpened(1, "alpha", (), self.now_ns))

    def put(self, body: object) -> Event:
        """Seal `body` as the next event."""
        event, self.state = seal(self.state, body)  # type: ignore[arg-type]  # any body of the union
        self.events.append(event)
        return event

    def take(self) -> list[Event]:
        """The events since the last call."""
        events, self.events = self.events, []
        return events

    def publish(self, log: Log) -> None:
        """Append the events since the last call to the log."""
        events = self.take()
        with log.writer(self.uuid, self.state.timeline) as writer:
            assert isinstance(writer.append(writer.state.link, events), Appended)
            assert isinstance(writer.sync(), Appended)

    # -- changes -----------------------------------------------------------------------------------------------

    def scribble(self, count: int = 6) -> set[int]:
        """Some random writes and discards; returns the chunks that were discarded."""
        discarded: set[int] = set()
        for _ in range(count):
            what = self.random.random()
            if what < 0.25:
                discarded |= self._clear()
            else:
                self._write(self.random.choice((1, 512, 4096, 5000, CHUNK_BYTES, 200_000)))
        return discarded

    def _write(self, length: int) -> None:
        begin = self.random.randrange(len(self.data))
        if self.random.random() < 0.5:
            begin -= begin % CHUNK_BYTES
        length = min(length, len(self.data) - begin)
        noise = self.random.randbytes(min(length, 300))
        self.data[begin : begin + length] = (noise * (length // len(noise) + 1))[:length]

    def _clear(self) -> set[int]:
        count = chunk_count_of(len(self.data))
        first = self.random.randrange(count)
        last = min(count, first + self.random.choice((1, 2, 5, 20)))
        end = min(last * CHUNK_BYTES, len(self.data))
        self.data[first * CHUNK_BYTES : end] = bytes(end - first * CHUNK_BYTES)
        return set(range(first, last))

    def resize(self, size_bytes: int) -> None:
        """Grow or shrink, as the source does: nothing is left beyond the end."""
        del self.data[size_bytes:]
        self.data.extend(bytes(size_bytes - len(self.data)))

    def random_resize(self) -> None:
        """To another whole number of sectors."""
        self.resize(self.random.randrange(1, 3 * len(self.data) // SECTOR_BYTES // 2 + 2) * SECTOR_BYTES)

    # -- transactions ------------------------------------------------------------------------------------------

    def transaction(self, discarded: set[int] | None = None, labels: Sequence[str] = ()) -> int:
        """All that changed since the last one, as one transaction; its number."""
        self.begin()
        self.put_changes(discarded or set())
        return self.commit(labels)

    def begin(self) -> None:
        """TransactionBegan."""
        self.now_ns += self._step_ns
        number, base = self.state.next_number, self.state.committed
        kind = DeltaKind.DELTA if base else DeltaKind.FULL
        uuid = UUID(int=self.random.getrandbits(128), version=4)
        bound = chunk_count_of(len(self.data)) * 3
        self.put(TransactionBegan(number, uuid, base, self.now_ns, len(self.data), bound, kind))

    def put_changes(self, discarded: set[int]) -> None:
        """Discards, zeroes and writes, from base and target."""
        count = chunk_count_of(len(self.data))
        target = bytes(self.data).ljust(count * CHUNK_BYTES, b"\0")
        base = self._base[: len(target)].ljust(len(target), b"\0")
        masks = changed_pages_many(base, target)
        zero = [c for c in range(count) if not any(target[c * CHUNK_BYTES : (c + 1) * CHUNK_BYTES])]
        runs = _runs(sorted(c for c in zero if c in discarded))
        if runs:
            self.put(ChunksDiscarded(pack_runs(runs)))
        zeroes = [c for c in zero if c not in discarded and masks[c] and self.random.random() < 0.7]
        if zeroes:
            self.put(ChunksZeroed(pack_runs(_runs(zeroes))))
        written = masks.copy()
        written[[*zeroes, *(c for c in zero if c in discarded)]] = 0
        for body in self._bodies(written, target):
            self.put(body)

    def _bodies(self, masks: np.ndarray, target: bytes) -> list[object]:
        """In events of a few chunks, so that there are places between them."""
        indices = np.arange(len(masks), dtype=np.uint64)
        bodies: list[object] = []
        compressor = Compressor()
        for begin in range(0, len(masks), 16):
            end = begin + 16
            frames = compressor.pack(
                indices[begin:end], masks[begin:end], target[begin * CHUNK_BYTES : end * CHUNK_BYTES]
            )
            bodies += written_events(frames)
        return bodies

    def commit(self, labels: Sequence[str] = (), group: GroupCut | None = None) -> int:
        """TransactionCommitted; the image is kept."""
        opened = self.state.open
        assert opened is not None
        self.put(TransactionCommitted(opened.number, opened.counts, Consistency.CRASH, tuple(labels), group))
        self._base = bytes(self.data)
        self.images[opened.number] = self._base
        return opened.number

    def abort(self) -> None:
        """TransactionAborted; the volume goes on from the base."""
        opened = self.state.open
        assert opened is not None
        self.put(TransactionAborted(opened.number, opened.transaction, "a test says so"))

    def reopen(self) -> None:
        """A new publisher, with the next epoch."""
        self.put(PublisherOpened(self.state.epoch + 1, "alpha", (), self.now_ns))


def random_source(seed: int, size_bytes: int, transactions: int, *, resizing: bool = True) -> SourceVolume:
    """A volume with a history of its own."""
    source = SourceVolume(seed, size_bytes)
    for _ in range(transactions):
        discarded = source.scribble()
        if resizing and source.random.random() < 0.4:
            source.random_resize()
        if source.random.random() < 0.1:
            source.begin()
            source.put_changes(discarded)
            source.abort()
        if source.random.random() < 0.2:
            source.reopen()
        source.transaction(discarded)
    return source


def _runs(chunks: Sequence[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for chunk in chunks:
        if runs and runs[-1][1] == chunk:
            runs[-1] = (runs[-1][0], chunk + 1)
        else:
            runs.append((chunk, chunk + 1))
    return runs
