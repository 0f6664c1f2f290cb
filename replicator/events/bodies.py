"""The events that carry facts, as frozen values; those that carry data are in `chunks`.

    VolumeCreated         first of a volume's first timeline
    TimelineStarted       first of every later timeline: what it forked from
    PublisherOpened       whoever publishes from now on, with an epoch of its own
    TransactionBegan      N opens: what it stands on, how large it may become
    TransactionCommitted  N is whole: a restore point
    TransactionAborted    N is void; its number is used again
    VolumeRenamed         a new name, the same volume
    VolumeDeleted         the volume is gone at the source; its restore points stay
    PointLabelled         a name for a restore point that is in the stream already
    VolumeAttested        hashes of the whole volume at a cut, to find drift
    TimelineEnded         nothing more comes on this timeline: another one took over

Each is validated when built (FormatError). What must fit to the events before it is `chain`'s affair.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

from replicator.events.chunks import ChunksDiscarded, ChunksWritten, ChunksZeroed
from replicator.events.digests import DIGEST_BYTES
from replicator.events.values import (
    CHUNK_LIMIT,
    EPOCH_LIMIT,
    GROUP_MEMBERS_MAX,
    LABELS_MAX,
    NUMBER_LIMIT,
    SETTINGS_MAX,
    TIMELINE_LIMIT,
    Consistency,
    Counts,
    DeltaKind,
    StateName,
    require,
    require_label,
    require_name,
    require_number,
    require_range,
    require_size,
    require_text,
)

ATTESTED_SPANS_MAX = 65536  # 1 MiB of hashes: spans of 256 chunks cover a tebibyte


@dataclass(frozen=True, slots=True)
class VolumeCreated:
    """A volume begins to exist in this log."""

    name: str
    size_bytes: int
    host: str
    timestamp_ns: int

    def __post_init__(self) -> None:
        require_name(self.name, "VolumeCreated.name")
        require_size(self.size_bytes, "VolumeCreated.size_bytes")
        require_text(self.host, "VolumeCreated.host")
        require_number(self.timestamp_ns, "VolumeCreated.timestamp_ns")


@dataclass(frozen=True, slots=True)
class TimelineStarted:
    """A promote began this timeline at `parent`, a committed transaction of an earlier one."""

    parent: StateName
    name: str
    size_bytes: int
    host: str
    timestamp_ns: int

    def __post_init__(self) -> None:
        require_name(self.name, "TimelineStarted.name")
        require_size(self.size_bytes, "TimelineStarted.size_bytes")
        require_text(self.host, "TimelineStarted.host")
        require_number(self.timestamp_ns, "TimelineStarted.timestamp_ns")


@dataclass(frozen=True, slots=True)
class PublisherOpened:
    """A publisher took over with `epoch`; events of earlier epochs that come later don't count."""

    epoch: int
    host: str
    settings: tuple[tuple[str, str], ...]
    timestamp_ns: int

    def __post_init__(self) -> None:
        require_range(self.epoch, 1, EPOCH_LIMIT, "PublisherOpened.epoch")
        require_text(self.host, "PublisherOpened.host")
        require_number(self.timestamp_ns, "PublisherOpened.timestamp_ns")
        require(len(self.settings) <= SETTINGS_MAX, "PublisherOpened.settings", "at most 64", len(self.settings))
        names = [name for name, _ in self.settings]
        ascending = all(a < b for a, b in itertools.pairwise(names))
        require(ascending, "PublisherOpened.settings", "names that ascend", names)
        for name, value in self.settings:
            require_text(name, "PublisherOpened.settings")
            require_text(value, "PublisherOpened.settings")


@dataclass(frozen=True, slots=True)
class TransactionBegan:
    """Transaction `number` opens on `base` (None: on nothing); `chunk_bound` is the most chunks it may touch."""

    number: int
    transaction: UUID
    base: StateName | None
    timestamp_ns: int
    size_bytes: int
    chunk_bound: int
    kind: DeltaKind

    def __post_init__(self) -> None:
        require_range(self.number, 1, NUMBER_LIMIT, "TransactionBegan.number")
        require_number(self.timestamp_ns, "TransactionBegan.timestamp_ns")
        require_size(self.size_bytes, "TransactionBegan.size_bytes")
        require_range(self.chunk_bound, 0, CHUNK_LIMIT + 1, "TransactionBegan.chunk_bound")
        stands = (self.base is None) == (self.kind is DeltaKind.FULL)
        require(stands, "TransactionBegan.base", "a base, unless the kind is FULL", self.base)


@dataclass(frozen=True, slots=True)
class GroupCut:
    """The cut of a group: its number, and each member's transaction number at this cut, by ascending UUID."""

    group: UUID
    number: int
    members: tuple[tuple[UUID, int], ...]

    def __post_init__(self) -> None:
        require_range(self.number, 1, NUMBER_LIMIT, "GroupCut.number")
        require_range(len(self.members), 1, GROUP_MEMBERS_MAX + 1, "GroupCut.members")
        ids = [member.int for member, _ in self.members]
        ascending = all(a < b for a, b in itertools.pairwise(ids))
        require(ascending, "GroupCut.members", "members that ascend", ids[:8])
        for _, number in self.members:
            require_number(number, "GroupCut.members")


@dataclass(frozen=True, slots=True)
class TransactionCommitted:
    """Transaction `number` is whole; its digest is the chain's at this event."""

    number: int
    counts: Counts
    consistency: Consistency
    labels: tuple[str, ...]
    group: GroupCut | None

    def __post_init__(self) -> None:
        require_range(self.number, 1, NUMBER_LIMIT, "TransactionCommitted.number")
        require(len(self.labels) <= LABELS_MAX, "TransactionCommitted.labels", "at most 64", len(self.labels))
        for label in self.labels:
            require_label(label, "TransactionCommitted.labels")
        unlike = len(set(self.labels)) == len(self.labels)
        require(unlike, "TransactionCommitted.labels", "labels that differ", self.labels)


@dataclass(frozen=True, slots=True)
class TransactionAborted:
    """Transaction `number` ends void; whoever staged it drops it."""

    number: int
    transaction: UUID
    reason: str

    def __post_init__(self) -> None:
        require_range(self.number, 1, NUMBER_LIMIT, "TransactionAborted.number")
        require_text(self.reason, "TransactionAborted.reason")


@dataclass(frozen=True, slots=True)
class VolumeRenamed:
    """The volume goes by `name` from now on."""

    name: str
    timestamp_ns: int

    def __post_init__(self) -> None:
        require_name(self.name, "VolumeRenamed.name")
        require_number(self.timestamp_ns, "VolumeRenamed.timestamp_ns")


@dataclass(frozen=True, slots=True)
class VolumeDeleted:
    """The volume was deleted at the source; this deletes no restore point."""

    timestamp_ns: int

    def __post_init__(self) -> None:
        require_number(self.timestamp_ns, "VolumeDeleted.timestamp_ns")


@dataclass(frozen=True, slots=True)
class PointLabelled:
    """The restore point `point` got `label` after its commit."""

    point: StateName
    label: str
    timestamp_ns: int

    def __post_init__(self) -> None:
        require_label(self.label, "PointLabelled.label")
        require_number(self.timestamp_ns, "PointLabelled.timestamp_ns")


@dataclass(frozen=True, slots=True)
class VolumeAttested:
    """What the volume reads at `point`: a digest for each span of `span_chunks` chunks, in order.

    A span's digest is the xxh3-128 of its chunks' hashes, one behind the other.
    """

    point: StateName
    size_bytes: int
    span_chunks: int
    hashes: bytes

    def __post_init__(self) -> None:
        require_size(self.size_bytes, "VolumeAttested.size_bytes")
        require_range(self.span_chunks, 1, 1 << 32, "VolumeAttested.span_chunks")
        spans = -(-self.size_bytes // (self.span_chunks << 16))
        require(spans <= ATTESTED_SPANS_MAX, "VolumeAttested.span_chunks", "at most 65,536 spans", spans)
        expected = spans * DIGEST_BYTES
        require(len(self.hashes) == expected, "VolumeAttested.hashes", f"{expected} bytes", len(self.hashes))


@dataclass(frozen=True, slots=True)
class TimelineEnded:
    """Timeline `successor` took over; an open transaction is void. Appended by a promote, or by the publisher."""

    successor: int
    host: str
    timestamp_ns: int

    def __post_init__(self) -> None:
        require_range(self.successor, 2, TIMELINE_LIMIT, "TimelineEnded.successor")
        require_text(self.host, "TimelineEnded.host")
        require_number(self.timestamp_ns, "TimelineEnded.timestamp_ns")


ChunkBody: TypeAlias = ChunksDiscarded | ChunksZeroed | ChunksWritten
Body: TypeAlias = (
    VolumeCreated
    | TimelineStarted
    | PublisherOpened
    | TransactionBegan
    | ChunkBody
    | TransactionCommitted
    | TransactionAborted
    | VolumeRenamed
    | VolumeDeleted
    | PointLabelled
    | VolumeAttested
    | TimelineEnded
)
