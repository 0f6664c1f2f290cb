"""The small values that events are made of, with their bounds; an instance that exists is valid.

Invariants
  V1  Timelines count from 1, in 32 bits; transaction and sequence numbers fit in 63 bits.
  V2  A StateName names content: two volumes' states with one name are equal byte for byte.
  V3  A volume's name has 1 to 255 UTF-8 bytes, no control characters, and none of `@ / :`; it isn't `.` or `..`.
  V4  A label is a name that isn't digits only, doesn't begin with `-`, and isn't `latest`.
  V5  Timestamps are nanoseconds since 1970 UTC, not negative, in 63 bits.

Failure raised: FormatError, naming the field, what was expected, and what was found.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from replicator.errors import FormatError
from replicator.events.digests import DIGEST_BYTES
from replicator.units import CHUNK_BYTES, SECTOR_BYTES

TIMELINE_LIMIT = 1 << 32
EPOCH_LIMIT = 1 << 32
NUMBER_LIMIT = 1 << 63
CHUNK_LIMIT = 1 << 47  # 2**63 bytes of 64 KiB chunks: the largest device Linux knows
NAME_BYTES_MAX = 255  # as a file name's
TEXT_BYTES_MAX = 1024  # hosts and reasons: for people, never parsed
LABELS_MAX = 64
SETTINGS_MAX = 64
GROUP_MEMBERS_MAX = 1024
_FORBIDDEN = frozenset("@/:")


def require(holds: bool, where: str, expected: str, found: object) -> None:
    """FormatError unless `holds`."""
    if not holds:
        raise FormatError(where, expected, repr(found)[:200])


def require_range(value: int, begin: int, end: int, where: str) -> None:
    """FormatError unless begin <= value < end."""
    if not begin <= value < end:
        raise FormatError(where, f"a number in [{begin}, {end})", str(value))


def require_number(value: int, where: str) -> None:
    """V1, V5: a number, sequence number or timestamp of 63 bits."""
    require_range(value, 0, NUMBER_LIMIT, where)


def require_size(value: int, where: str) -> None:
    """A volume's size: whole sectors, at least one, below 2**63 bytes."""
    require_range(value, SECTOR_BYTES, NUMBER_LIMIT, where)
    require(value % SECTOR_BYTES == 0, where, f"a multiple of {SECTOR_BYTES}", value)


def require_digest(value: bytes, where: str) -> None:
    """Exactly 16 bytes."""
    require(len(value) == DIGEST_BYTES, where, f"{DIGEST_BYTES} bytes", len(value))


def require_text(value: str, where: str, limit_bytes: int = TEXT_BYTES_MAX) -> None:
    """Text for people: bounded, encodable, without control characters."""
    try:
        length = len(value.encode())
    except UnicodeEncodeError:
        raise FormatError(where, "text that UTF-8 can hold", repr(value)[:200]) from None
    require(length <= limit_bytes, where, f"at most {limit_bytes} bytes", length)
    is_clean = value.isprintable() or all(ord(c) >= 32 and ord(c) != 127 for c in value)
    require(is_clean, where, "text without control characters", value)


def require_name(value: str, where: str) -> None:
    """V3."""
    require_text(value, where, NAME_BYTES_MAX)
    require(value not in ("", ".", ".."), where, "a name", value)
    require(not _FORBIDDEN & set(value), where, "a name without @ / :", value)


def require_label(value: str, where: str) -> None:
    """V4. (That a label isn't a time is for the command line, which knows how times are written.)"""
    require_name(value, where)
    wrong = value.isdigit() or value.startswith("-") or value == "latest"
    require(not wrong, where, "a label: not digits only, not -..., not `latest`", value)


def chunk_count_of(size_bytes: int) -> int:
    """How many chunks a volume of `size_bytes` has; the last may be short."""
    return -(-size_bytes // CHUNK_BYTES)


class DeltaKind(enum.IntEnum):
    """How a transaction's changes were found, and what they stand on."""

    FULL = 1  # all that isn't zero; it stands on nothing
    DELTA = 2  # the difference of two snapshots; it stands on the last committed transaction
    REBASE = 3  # found by comparing hashes with those in the log; stands on the last committed transaction


class Consistency(enum.IntEnum):
    """What a cut promises to whoever opens it."""

    CRASH = 1
    FILESYSTEM = 2
    APPLICATION = 3
    CLEAN = 4


class Phase(enum.IntEnum):
    """Where a transaction stands in its fixed order; OUTSIDE when none is open."""

    OUTSIDE = 0
    BEGAN = 1
    DISCARDS = 2
    ZEROES = 3
    WRITES = 4


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in a volume's history: timeline, transaction number, sequence number of the event."""

    timeline: int
    number: int
    sequence: int

    def __str__(self) -> str:
        return f"timeline {self.timeline}, transaction {self.number}, event {self.sequence}"


@dataclass(frozen=True, slots=True)
class StateName:
    """The name of a volume's content: (timeline, transaction number, digest of the chain at its commit) (V2)."""

    timeline: int
    number: int
    digest: bytes

    def __post_init__(self) -> None:
        require_range(self.timeline, 1, TIMELINE_LIMIT, "StateName.timeline")
        require_range(self.number, 1, NUMBER_LIMIT, "StateName.number")
        require_digest(self.digest, "StateName.digest")

    def __str__(self) -> str:
        return f"{self.timeline}:{self.number} ({self.digest.hex()[:12]})"


@dataclass(frozen=True, slots=True)
class Link:
    """An event's place in the chain of its stream: sequence number and digest; (0, zeros) is before the first."""

    sequence: int
    digest: bytes

    def __post_init__(self) -> None:
        require_number(self.sequence, "Link.sequence")
        require_digest(self.digest, "Link.digest")

    def __str__(self) -> str:
        return f"event {self.sequence} ({self.digest.hex()[:12]})"


@dataclass(frozen=True, slots=True)
class Counts:
    """What a transaction holds so far: chunks by fate, pages written, bytes of frames as stored."""

    discarded_chunks: int = 0
    zeroed_chunks: int = 0
    written_chunks: int = 0
    written_pages: int = 0
    stored_bytes: int = 0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            require_number(getattr(self, name), f"Counts.{name}")

    @property
    def chunks(self) -> int:
        """All chunks that the transaction touches."""
        return self.discarded_chunks + self.zeroed_chunks + self.written_chunks

    def plus(self, other: Counts) -> Counts:
        """The sum, field by field."""
        return Counts(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))
