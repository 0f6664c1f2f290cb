"""The beacon: the agent's last word about a volume, beside its stream and outside the chain.

Overwritten every few seconds. By it a reader tells an idle disk from a dead agent: with N at the reader's own
tail, the log is complete up to `equal_until_ns`; `alive_at_ns` that stands still is an alarm.

    magic "RPBC"; volume uuid, timeline u32, epoch u32, sequence u64, number u64, digest,
    equal_until_ns u64, alive_at_ns u64

Invariants
  N1  A beacon that doesn't match the reader's tail (timeline, epoch, sequence, number, digest) says nothing.
  N2  equal_until_ns is the instant of the latest cut that was found equal to N, never after alive_at_ns.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from replicator._buffer import Buffer
from replicator.errors import FormatError
from replicator.events.fields import DIGEST, U32, U64, UUID16, value_field
from replicator.events.record import decode_record, encode_record
from replicator.events.state import StreamState
from replicator.events.values import (
    EPOCH_LIMIT,
    TIMELINE_LIMIT,
    require,
    require_digest,
    require_number,
    require_range,
)

_MAGIC = b"RPBC"


@dataclass(frozen=True, slots=True)
class Beacon:
    """Nothing newer than `number` up to `equal_until_ns`, said at `alive_at_ns`."""

    volume: UUID
    timeline: int
    epoch: int
    sequence: int
    number: int
    digest: bytes
    equal_until_ns: int
    alive_at_ns: int

    def __post_init__(self) -> None:
        require_range(self.timeline, 1, TIMELINE_LIMIT, "Beacon.timeline")
        require_range(self.epoch, 0, EPOCH_LIMIT, "Beacon.epoch")
        for name in ("sequence", "number", "equal_until_ns", "alive_at_ns"):
            require_number(getattr(self, name), f"Beacon.{name}")
        require_digest(self.digest, "Beacon.digest")
        order = self.equal_until_ns <= self.alive_at_ns
        require(order, "Beacon.equal_until_ns", "not after alive_at_ns", self.equal_until_ns)

    @classmethod
    def of(cls, state: StreamState, equal_until_ns: int, alive_at_ns: int) -> Beacon:
        """The beacon that goes with a stream at `state`."""
        place = (state.volume, state.timeline, state.epoch, state.sequence, state.number, state.digest)
        return cls(*place, equal_until_ns, alive_at_ns)

    def matches(self, state: StreamState) -> bool:
        """N1."""
        return Beacon.of(state, self.equal_until_ns, self.alive_at_ns) == self


_BEACON = value_field(Beacon, (UUID16, U32, U32, U64, U64, DIGEST, U64, U64))


def encode_beacon(beacon: Beacon) -> bytes:
    """`beacon` as a record."""
    return encode_record(_MAGIC, _BEACON, beacon)


def decode_beacon(data: Buffer, where: str = "beacon") -> Beacon:
    """The beacon that `data` holds; FormatError for anything else."""
    value = decode_record(_MAGIC, _BEACON, data, where)
    if not isinstance(value, Beacon):
        raise FormatError(where, "a beacon", type(value).__name__)
    return value


def beacon_beyond(data: Buffer | None, timeline: int, sequence: int) -> Beacon | None:
    """A log's beacon, if it tells of an event at or beyond `sequence`; one that can't be read must stop no reader.

    It shows something only if its epoch isn't older than that of the log's tail.
    """
    try:
        beacon = decode_beacon(data) if data else None
    except FormatError:
        return None
    return beacon if beacon and beacon.timeline == timeline and beacon.sequence >= sequence else None
