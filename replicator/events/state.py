"""What a stream has come to: the fold of its events so far, small enough to be kept beside everything.

A segment's footer ends with it (so the tail is known without reading the stream), and a receiver keeps it in its
pool's catalogue, switched with the data. Whoever has it can judge the next event, and needs no older one.

    OpenTransaction   the transaction that began and neither committed nor aborted
    StreamState       position, chain, epoch, name, size, last commit, open transaction

Invariants
  S1  `sequence` and `digest` name the last event that was taken; (0, zeros) before the first.
  S2  `committed` is the last committed state, of this timeline or, right after a fork, of the parent's.
  S3  An open transaction's number is `next_number`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from uuid import UUID

from replicator._buffer import Buffer
from replicator.errors import FormatError
from replicator.events.digests import NO_DIGEST
from replicator.events.fields import (
    COUNTS,
    DIGEST,
    OPTIONAL_STATE_NAME,
    TEXT,
    U32,
    U64,
    UUID16,
    enum_field,
    value_field,
)
from replicator.events.record import decode_record, encode_record
from replicator.events.values import (
    CHUNK_LIMIT,
    EPOCH_LIMIT,
    TIMELINE_LIMIT,
    Counts,
    DeltaKind,
    Link,
    Phase,
    Position,
    StateName,
    require,
    require_digest,
    require_name,
    require_number,
    require_range,
    require_size,
)

_MAGIC = b"RPST"


class Life(enum.IntEnum):
    """What has become of the volume on this timeline."""

    EMPTY = 0  # no event yet
    LIVE = 1
    DELETED = 2
    ENDED = 3


@dataclass(frozen=True, slots=True)
class OpenTransaction:
    """What TransactionBegan said, and how far the transaction has come."""

    number: int
    transaction: UUID
    base: StateName | None
    timestamp_ns: int
    size_bytes: int
    chunk_bound: int
    kind: DeltaKind
    began: int
    phase: Phase
    cursor: int
    counts: Counts

    def __post_init__(self) -> None:
        for name in ("number", "timestamp_ns", "began"):
            require_number(getattr(self, name), f"OpenTransaction.{name}")
        require_size(self.size_bytes, "OpenTransaction.size_bytes")
        require_range(self.chunk_bound, 0, CHUNK_LIMIT + 1, "OpenTransaction.chunk_bound")
        require_range(self.cursor, 0, CHUNK_LIMIT + 1, "OpenTransaction.cursor")
        require(self.phase is not Phase.OUTSIDE, "OpenTransaction.phase", "a phase", self.phase)


@dataclass(frozen=True, slots=True)
class StreamState:
    """The fold of one timeline's events so far."""

    volume: UUID
    timeline: int
    epoch: int
    sequence: int
    digest: bytes
    life: Life
    name: str
    size_bytes: int
    timestamp_ns: int
    committed: StateName | None
    committed_sequence: int
    open: OpenTransaction | None

    def __post_init__(self) -> None:
        require_range(self.timeline, 1, TIMELINE_LIMIT, "StreamState.timeline")
        require_range(self.epoch, 0, EPOCH_LIMIT, "StreamState.epoch")
        for name in ("sequence", "timestamp_ns", "committed_sequence"):
            require_number(getattr(self, name), f"StreamState.{name}")
        require_digest(self.digest, "StreamState.digest")
        if self.life is not Life.EMPTY:
            require_name(self.name, "StreamState.name")
            require_size(self.size_bytes, "StreamState.size_bytes")
        if self.open is not None:
            require(self.open.number == self.next_number, "StreamState.open", "S3", self.open.number)

    @classmethod
    def start(cls, volume: UUID, timeline: int = 1) -> StreamState:
        """Before the first event of a timeline."""
        return cls(volume, timeline, 0, 0, NO_DIGEST, Life.EMPTY, "", 0, 0, None, 0, None)

    @property
    def link(self) -> Link:
        """Where the next event must hang."""
        return Link(self.sequence, self.digest)

    @property
    def number(self) -> int:
        """The open transaction's number, or else the last committed one's; 0 where there is none."""
        if self.open is not None:
            return self.open.number
        return self.committed.number if self.committed else 0

    @property
    def next_number(self) -> int:
        """The number of the transaction that is open, or comes next."""
        return self.committed.number + 1 if self.committed else 1

    @property
    def position(self) -> Position:
        """The last event's place."""
        return Position(self.timeline, self.number, self.sequence)


_OPEN = value_field(
    OpenTransaction,
    (U64, UUID16, OPTIONAL_STATE_NAME, U64, U64, U64, enum_field(DeltaKind), U64, enum_field(Phase), U64, COUNTS),
    optional=True,
)
_STATE = value_field(
    StreamState,
    (UUID16, U32, U32, U64, DIGEST, enum_field(Life), TEXT, U64, U64, OPTIONAL_STATE_NAME, U64, _OPEN),
)


def encode_state(state: StreamState) -> bytes:
    """`state` as a record (magic "RPST"), at most a kilobyte."""
    return encode_record(_MAGIC, _STATE, state)


def decode_state(data: Buffer, where: str = "stream state") -> StreamState:
    """The state that `data` holds; FormatError for anything else."""
    value = decode_record(_MAGIC, _STATE, data, where)
    if not isinstance(value, StreamState):
        raise FormatError(where, "a stream state", type(value).__name__)
    return value
