"""Makes the golden files of events, version 1, and of the object log, version 1: `python make.py DIRECTORY`.

Deterministic: nothing is compressed here (the zstd frame is a literal), so every machine makes the same bytes.
Run it from the checkout's root. The files that stand beside it are never made again: a new version gets a new folder.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from uuid import UUID

import numpy as np

from replicator.events.beacon import Beacon
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
from replicator.events.chunks import FRAME, ChunksDiscarded, ChunksWritten, ChunksZeroed
from replicator.events.codec import Event
from replicator.events.digests import crc32c, digest128
from replicator.events.layouts import type_name
from replicator.events.state import StreamState, encode_state
from replicator.events.values import Consistency, Counts, DeltaKind, StateName
from replicator.log.object_log import ObjectLog
from replicator.units import CHUNK_BYTES, MIB, PAGE_BYTES
from tests.support.memory_objects import MemoryStore
from tests.support.packed_runs import pack_runs

VOLUME = UUID("00112233-4455-6677-8899-aabbccddeeff")
FIRST, SECOND, GROUP = UUID(int=1), UUID(int=2), UUID(int=3)
ZSTD_OF_A_ZERO_PAGE = bytes.fromhex("28b52ffd60000f4d00001000000100fbf70116")
RAW_PAGE = bytes(range(256)) * 16
SIZE = 4 * MIB + 512


def written() -> ChunksWritten:
    """Chunk 3: page 0 zero, in a zstd frame; chunk 64, the short last one: page 0, as is."""
    chunks = [bytes(CHUNK_BYTES), RAW_PAGE[:512].ljust(CHUNK_BYTES, b"\0")]
    raw = RAW_PAGE[:512].ljust(PAGE_BYTES, b"\0")
    frames = (ZSTD_OF_A_ZERO_PAGE, raw)
    rows = [(1, 1, PAGE_BYTES, len(frames[0]), crc32c(frames[0])), (1, 0, PAGE_BYTES, PAGE_BYTES, crc32c(raw))]
    hashes = b"".join(digest128(chunk) for chunk in chunks)
    table = np.array(rows, dtype=FRAME).tobytes()
    return ChunksWritten(struct.pack("<2Q", 3, 64), struct.pack("<2H", 1, 1), hashes, table, frames)


def first_timeline() -> list[Body]:
    """Every type but TimelineStarted, up to the first commit and beyond it; None stands for the commit's name."""
    return [
        VolumeCreated("größe-1", SIZE, "alpha.example", 1_700_000_000_000_000_000),
        PublisherOpened(1, "alpha.example", (("interval_s", "1"), ("level", "1")), 1_700_000_000_100_000_000),
        TransactionBegan(1, FIRST, None, 1_700_000_001_000_000_000, SIZE, 65, DeltaKind.FULL),
        ChunksDiscarded(pack_runs([(0, 2), (10, 11)])),
        ChunksZeroed(pack_runs([(5, 7)])),
        written(),
        TransactionCommitted(
            1, Counts(3, 2, 2, 2, PAGE_BYTES + len(ZSTD_OF_A_ZERO_PAGE)), Consistency.FILESYSTEM, ("before-upgrade",),
            GroupCut(GROUP, 12, ((UUID(int=9), 4), (VOLUME, 1))),
        ),
    ]  # fmt: skip


def after_commit(name: StateName) -> list[Body]:
    """What comes after the commit `name` on the first timeline."""
    return [
        PointLabelled(name, "friday", 1_700_000_002_000_000_000),
        VolumeAttested(name, SIZE, 64, bytes(range(32))),
        VolumeRenamed("disk-2", 1_700_000_003_000_000_000),
        TransactionBegan(2, SECOND, name, 1_700_000_004_000_000_000, SIZE, 1, DeltaKind.REBASE),
        PublisherOpened(2, "alpha.example", (), 1_700_000_005_000_000_000),
        TransactionAborted(2, SECOND, "read error at chunk 17"),
        VolumeDeleted(1_700_000_006_000_000_000),
        TimelineEnded(2, "beta.example", 1_700_000_007_000_000_000),
    ]


def sealed(state: StreamState, bodies: list[Body]) -> tuple[list[Event], StreamState]:
    """`bodies` as the events that follow `state`."""
    events = []
    for body in bodies:
        event, state = seal(state, body)
        events.append(event)
    return events, state


def timelines() -> tuple[list[Event], list[Event], list[StreamState]]:
    """Both timelines' events, and the states: at the commit, with an open transaction, and at both ends."""
    first, at_commit = sealed(StreamState.start(VOLUME), first_timeline())
    assert at_commit.committed is not None
    more = after_commit(at_commit.committed)
    opened, with_open = sealed(at_commit, more[:5])
    rest, end = sealed(with_open, more[5:])
    promoted: list[Body] = [
        TimelineStarted(at_commit.committed, "disk-2", SIZE, "beta.example", 1_700_000_006_500_000_000),
        PublisherOpened(1, "beta.example", (), 1_700_000_006_600_000_000),
    ]
    second, second_end = sealed(StreamState.start(VOLUME, 2), promoted)
    return first + opened + rest, second, [at_commit, with_open, end, second_end]


def files() -> dict[str, bytes]:
    """Every golden file, by its name below this folder."""
    first, second, states = timelines()
    made = {}
    for event in [*first, *second]:
        number = f"{event.header.timeline}-{event.header.sequence:02d}"
        made[f"events/{number}-{type_name(event.header.type)}.event"] = bytes(event.encoded)
    made["states/empty.state"] = encode_state(StreamState.start(VOLUME))
    made["states/open.state"] = encode_state(states[1])
    store = MemoryStore()
    log = ObjectLog(store, create=True)
    for timeline, events in ((1, first), (2, second)):
        with log.writer(VOLUME, timeline) as writer:
            for event in events:
                writer.append(writer.state.link, [event])
    log.claim_timeline(VOLUME, 2, "beta.example")
    log.write_beacon(Beacon.of(states[3], 1_700_000_008_000_000_000, 1_700_000_009_000_000_000))
    log.trim(VOLUME, 1, 3)
    return made | {f"log/{name}": data for name, data in store.objects.items()}


if __name__ == "__main__":
    for name, data in files().items():
        path = Path(sys.argv[1]) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
