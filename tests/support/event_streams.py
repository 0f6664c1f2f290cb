"""Streams to test with: a script that seals event after event, and the bodies of every type."""

from __future__ import annotations

import random
from uuid import UUID

import numpy as np

from replicator.events.bodies import (
    Body,
    GroupCut,
    PointLabelled,
    PublisherOpened,
    TimelineEnded,
    TimelineStarted,
    TransactionAborted,
    TransactionBegan,
    TransactionCommitted,
    VolumeAttested,
    VolumeCreated,
    VolumeDeleted,
    VolumeRenamed,
)
from replicator.events.chain import seal
from replicator.events.chunks import ChunksDiscarded, ChunksWritten, ChunksZeroed
from replicator.events.codec import Event
from replicator.events.frames import Compressor, written_events
from replicator.events.pages import whole_masks
from replicator.events.state import StreamState
from replicator.events.values import Consistency, Counts, DeltaKind, StateName
from replicator.units import CHUNK_BYTES, GIB
from tests.support.packed_runs import pack_runs

VOLUME = UUID("6f1c0000-0000-4000-8000-00000000cafe")
OTHER_VOLUME = UUID("6f1c0000-0000-4000-8000-00000000beef")
SIZE_BYTES = GIB
NAME = StateName(1, 7, bytes(range(16)))


def chunk_of(seed: int, *, compressible: bool = True) -> bytes:
    """64 KiB that follow from `seed`."""
    if compressible:
        return (f"chunk {seed} ".encode() * CHUNK_BYTES)[:CHUNK_BYTES]
    return random.Random(seed).randbytes(CHUNK_BYTES)


def written(*chunks: int, compressible: bool = True) -> ChunksWritten:
    """One event that writes `chunks` wholly."""
    data = b"".join(chunk_of(chunk, compressible=compressible) for chunk in chunks)
    frames = Compressor().pack(np.array(chunks, dtype=np.uint64), whole_masks(len(chunks)), data)
    (body,) = written_events(frames)
    return body


class Script:
    """Seals bodies one after the other; keeps the events and the state."""

    def __init__(self, state: StreamState | None = None, host: str = "alpha") -> None:
        self.state = state or StreamState.start(VOLUME)
        self.events: list[Event] = []
        self.host = host

    def put(self, body: Body) -> Event:
        """`body` as the next event."""
        event, self.state = seal(self.state, body)
        self.events.append(event)
        return event

    def take(self) -> list[Event]:
        """The events since the last call."""
        events, self.events = self.events, []
        return events

    def create(self) -> Script:
        """VolumeCreated and PublisherOpened, where they aren't yet."""
        self.put(VolumeCreated("disk-1", SIZE_BYTES, self.host, 1_000))
        return self.open()

    def open(self) -> Script:
        """PublisherOpened with the next epoch."""
        self.put(PublisherOpened(self.state.epoch + 1, self.host, (("interval_s", "1"),), 2_000))
        return self

    def begin(self, bound: int = 1000) -> Script:
        """TransactionBegan on the last commit."""
        kind = DeltaKind.DELTA if self.state.committed else DeltaKind.FULL
        number = self.state.next_number
        at = self.state.timestamp_ns + 1_000_000_000
        self.put(TransactionBegan(number, UUID(int=number), self.state.committed, at, SIZE_BYTES, bound, kind))
        return self

    def commit(self, *labels: str) -> Script:
        """TransactionCommitted with the right counts."""
        opened = self.state.open
        assert opened is not None
        self.put(TransactionCommitted(opened.number, opened.counts, Consistency.CRASH, labels, None))
        return self

    def transaction(self, *chunks: int, compressible: bool = True) -> Script:
        """A whole transaction that discards, zeroes, and writes `chunks`."""
        self.begin()
        self.put(ChunksDiscarded(pack_runs([(900, 910), (950, 951)])))
        self.put(ChunksZeroed(pack_runs([(920, 930)])))
        self.put(written(*(chunks or (1, 2, 7)), compressible=compressible))
        return self.commit()


def every_body() -> list[Body]:
    """One valid body of each type, with every optional part present."""
    return [
        VolumeCreated("disk-1", SIZE_BYTES, "alpha", 1),
        TimelineStarted(NAME, "disk-1", SIZE_BYTES, "beta", 2),
        PublisherOpened(3, "alpha", (("interval_s", "1"), ("level", "1")), 3),
        TransactionBegan(8, UUID(int=8), NAME, 4, SIZE_BYTES, 100, DeltaKind.DELTA),
        TransactionBegan(1, UUID(int=9), None, 4, SIZE_BYTES, 100, DeltaKind.FULL),
        ChunksDiscarded(pack_runs([(0, 4), (9, 10)])),
        ChunksZeroed(pack_runs([(5, 6)])),
        written(0, 3, 4, 90),
        written(1, 2, compressible=False),
        TransactionCommitted(
            8, Counts(5, 1, 4, 64, 999), Consistency.FILESYSTEM, ("nightly", "before-upgrade"),
            GroupCut(UUID(int=77), 12, ((UUID(int=1), 0), (VOLUME, 8))),
        ),
        TransactionCommitted(8, Counts(), Consistency.CRASH, (), None),
        TransactionAborted(8, UUID(int=8), "read error at chunk 17"),
        VolumeRenamed("Größe-1", 5),
        VolumeDeleted(6),
        PointLabelled(NAME, "friday", 7),
        VolumeAttested(NAME, SIZE_BYTES, 4096, bytes(range(64))),
        TimelineEnded(2, "beta", 8),
    ]  # fmt: skip
