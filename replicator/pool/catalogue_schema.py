"""What a pool's catalogue holds, as values: each class is a table, each instance a row.

Read by whoever lists, cuts, publishes or applies; stored by catalogue through rows. dm-thin's metadata has numbers
only: what they mean stands here.

    class        key                          what
    PoolIdentity uuid                         whose catalogue this is
    Volume       uuid                         name, live thin device, size, external origin
    Snapshot     dev_id                       every other thin device: what it was cut of, and what for
    LoggedPoint  volume, timeline, number     a restore point that the log has (in no view: there may be millions)
    LoggedGroup  uuid, number                 a cut of several volumes that the log has (likewise)
    Branch       volume, timeline             where a timeline forked
    Position     volume, role                 how far it's published, or applied
    Prepared     volume                       the transaction being published: it stands here before its first event
    Cut          cut_id                       a client's id of a cut, so that asking again finds it
    Setting      name                         a policy, or a mark that a switch has to carry

Invariants
  K1  A value that breaks a limit can't be built; limits are the constants below.
  K2  dev_ids have 24 bits, as dm-thin's do.

Failures: UsageError.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias
from uuid import UUID

from replicator.errors import UsageError
from replicator.history.names import LABELS_LIMIT, NAME_LIMIT_BYTES, check_label, check_name
from replicator.history.points import DIGEST_LIMIT_BYTES, NUMBER_LIMIT, TIMELINE_LIMIT, Consistency, RestorePoint
from replicator.pool.rows import Table, table_of

DEV_ID_LIMIT = 1 << 24
"""dm-thin's dev_id has 24 bits."""

VOLUME_BYTES_LIMIT = 1 << 50
"""1 PiB: a page table's list is then 32 MiB at most, in blocks of 64 KiB (LISTED of thin/table). It is far more
than the metadata can map of such blocks (16 GiB of it: some 60 TiB). A volume that is there is kept, however large."""

LOCATION_LIMIT_BYTES = 4096
"""PATH_MAX: an origin's path or URI."""

CHAIN_STATE_LIMIT_BYTES = 64 << 10
"""What a follower needs to go on verifying a stream: counts and a digest, far below this."""

SETTING_LIMIT_BYTES = 64 << 10
"""A policy as JSON, with room to spare."""

CUT_VOLUMES_LIMIT = 4096
"""Volumes of a group, cut at one instant."""


class OriginKind(StrEnum):
    """What stands behind a volume's unmapped blocks."""

    FILE = "file"
    DEVICE = "device"
    NBD = "nbd"


class Purpose(StrEnum):
    """What a snapshot is kept for; who may delete it follows from that."""

    BASE = "base"
    TARGET = "target"
    POINT = "point"
    USER = "user"
    CLONE = "clone"
    STAGING = "staging"


class Role(StrEnum):
    """Which end of the log a position belongs to."""

    PUBLISHED = "published"
    APPLIED = "applied"


@dataclass(frozen=True, slots=True)
class PoolIdentity:
    """The pool that this catalogue belongs to; its UUID stands in the superblock too."""

    uuid: UUID
    created_ns: int

    def __post_init__(self) -> None:
        _within("created_ns", self.created_ns, NUMBER_LIMIT)


@dataclass(frozen=True, slots=True)
class Origin:
    """A read-only device outside the pool; by its `digest` (or empty) it is known again."""

    kind: OriginKind
    location: str
    size_bytes: int
    digest: str = ""

    def __post_init__(self) -> None:
        _within("size_bytes", self.size_bytes, NUMBER_LIMIT)
        _short("location", self.location, LOCATION_LIMIT_BYTES)
        _short("digest", self.digest, 2 * DIGEST_LIMIT_BYTES)


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume that lives in this pool, as thin device `dev_id`."""

    uuid: UUID
    name: str
    dev_id: int
    size_bytes: int
    created_ns: int
    origin: Origin | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        _within("dev_id", self.dev_id, DEV_ID_LIMIT)
        _within("size_bytes", self.size_bytes, NUMBER_LIMIT)
        _within("created_ns", self.created_ns, NUMBER_LIMIT)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A thin device that is no volume's live one.

    `timeline` and `number` name the transaction that it equals (number 0: none, as a user's snapshot of a volume that
    was never published); `hidden` ones are being deleted or filled and are in no list; `held` ones retire never.
    """

    dev_id: int
    volume: UUID
    purpose: Purpose
    timestamp_ns: int
    size_bytes: int
    timeline: int = 1
    number: int = 0
    consistency: Consistency = Consistency.CRASH
    labels: tuple[str, ...] = ()
    digest: bytes = b""
    name: str = ""
    hidden: bool = False
    held: bool = False

    def __post_init__(self) -> None:
        _within("dev_id", self.dev_id, DEV_ID_LIMIT)
        _within("timestamp_ns", self.timestamp_ns, NUMBER_LIMIT)
        _within("size_bytes", self.size_bytes, NUMBER_LIMIT)
        _transaction(self.timeline, self.number, self.digest)
        _labelled(self.labels)
        if self.name:
            check_name(self.name)

    def restore_point(self, leased: bool = False) -> RestorePoint:
        """This snapshot as the restore point that it materialises; UsageError for one that equals no transaction."""
        return RestorePoint(
            self.volume,
            self.timeline,
            self.number,
            self.timestamp_ns,
            self.consistency,
            self.labels,
            self.dev_id,
            self.size_bytes,
            self.digest,
            self.held,
            leased,
        )


@dataclass(frozen=True, slots=True)
class LoggedPoint:
    """A committed transaction, as this pool remembers the log; `sequence` is that of its TransactionCommitted."""

    volume: UUID
    timeline: int
    number: int
    timestamp_ns: int
    size_bytes: int
    sequence: int
    consistency: Consistency = Consistency.CRASH
    labels: tuple[str, ...] = ()
    digest: bytes = b""

    def __post_init__(self) -> None:
        _within("timestamp_ns", self.timestamp_ns, NUMBER_LIMIT)
        _within("size_bytes", self.size_bytes, NUMBER_LIMIT)
        _within("sequence", self.sequence, NUMBER_LIMIT)
        _transaction(self.timeline, self.number, self.digest)
        _labelled(self.labels)

    def restore_point(self) -> RestorePoint:
        """This point, to be folded from the log."""
        return RestorePoint(
            self.volume,
            self.timeline,
            self.number,
            self.timestamp_ns,
            self.consistency,
            self.labels,
            None,
            self.size_bytes,
            self.digest,
        )


@dataclass(frozen=True, slots=True)
class LoggedGroup:
    """A cut of a group, as this pool remembers the log: each member's transaction number at it (0: none yet)."""

    uuid: UUID
    number: int
    members: tuple[tuple[UUID, int], ...]
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _within("number", self.number, NUMBER_LIMIT)
        _labelled(self.labels)
        if len(self.members) > CUT_VOLUMES_LIMIT:
            raise UsageError(f"a cut takes at most {CUT_VOLUMES_LIMIT} volumes, this one has {len(self.members)}")
        for _, number in self.members:
            _within("number", number, NUMBER_LIMIT)


@dataclass(frozen=True, slots=True)
class Branch:
    """Timeline `timeline` of a volume forked from `parent` behind its transaction `forked_at`."""

    volume: UUID
    timeline: int
    parent: int
    forked_at: int
    digest: bytes = b""

    def __post_init__(self) -> None:
        _transaction(self.timeline, self.forked_at, self.digest)
        if not 1 <= self.parent < self.timeline:
            raise UsageError(f"timeline {self.timeline} can't fork from {self.parent}")


@dataclass(frozen=True, slots=True)
class Position:
    """How far a volume is published (its last transaction in the log), or applied (what its thin device equals).

    `sequence` is that of the last event taken into account, `chain_state` what verifying goes on from there with.
    """

    volume: UUID
    role: Role
    timeline: int
    number: int
    digest: bytes
    sequence: int
    epoch: int
    timestamp_ns: int = 0
    chain_state: bytes = b""

    def __post_init__(self) -> None:
        _transaction(self.timeline, self.number, self.digest)
        _within("sequence", self.sequence, NUMBER_LIMIT)
        _within("epoch", self.epoch, NUMBER_LIMIT)
        _within("timestamp_ns", self.timestamp_ns, NUMBER_LIMIT)
        if len(self.chain_state) > CHAIN_STATE_LIMIT_BYTES:
            raise UsageError(f"a chain's state has {len(self.chain_state)} bytes, more than {CHAIN_STATE_LIMIT_BYTES}")


@dataclass(frozen=True, slots=True)
class Prepared:
    """The transaction whose events may be in the log in part; both its snapshots stay until it is settled.

    `base_dev_id` None: from nothing (a volume's first transaction, or one found by comparing hashes).
    """

    volume: UUID
    timeline: int
    number: int
    transaction_uuid: UUID
    base_dev_id: int | None
    target_dev_id: int
    timestamp_ns: int
    size_bytes: int

    def __post_init__(self) -> None:
        _transaction(self.timeline, self.number, b"")
        _within("base_dev_id", self.base_dev_id or 0, DEV_ID_LIMIT)
        _within("target_dev_id", self.target_dev_id, DEV_ID_LIMIT)
        _within("timestamp_ns", self.timestamp_ns, NUMBER_LIMIT)
        _within("size_bytes", self.size_bytes, NUMBER_LIMIT)


@dataclass(frozen=True, slots=True)
class Cut:
    """What a client's cut made: the snapshots' dev_ids, in the order of the volumes it named."""

    cut_id: UUID
    dev_ids: tuple[int, ...]
    timestamp_ns: int

    def __post_init__(self) -> None:
        _within("timestamp_ns", self.timestamp_ns, NUMBER_LIMIT)
        if len(self.dev_ids) > CUT_VOLUMES_LIMIT:
            raise UsageError(f"a cut takes at most {CUT_VOLUMES_LIMIT} volumes, this one has {len(self.dev_ids)}")
        for dev_id in self.dev_ids:
            _within("dev_id", dev_id, DEV_ID_LIMIT)


@dataclass(frozen=True, slots=True)
class Setting:
    """A policy of this pool, or a mark tied to its superblock; `value` is whoever's text."""

    name: str
    value: str

    def __post_init__(self) -> None:
        _short("name", self.name, NAME_LIMIT_BYTES)
        _short("value", self.value, SETTING_LIMIT_BYTES)


Row: TypeAlias = (
    PoolIdentity | Volume | Snapshot | LoggedPoint | LoggedGroup | Branch | Position | Prepared | Cut | Setting
)

TABLES: tuple[Table[Any], ...] = (
    table_of(PoolIdentity, "pool", ("uuid",)),
    table_of(Volume, "volumes", ("uuid",)),
    table_of(Snapshot, "snapshots", ("dev_id",)),
    table_of(LoggedPoint, "logged_points", ("volume", "timeline", "number"), whole=False),
    table_of(LoggedGroup, "logged_groups", ("uuid", "number"), whole=False),
    table_of(Branch, "branches", ("volume", "timeline")),
    table_of(Position, "positions", ("volume", "role")),
    table_of(Prepared, "prepared", ("volume",)),
    table_of(Cut, "cuts", ("cut_id",)),
    table_of(Setting, "settings", ("name",)),
)
"""Every table there is; a new one is one more line, and is made when an older catalogue is next opened for writing."""

TABLE_BY_TYPE: dict[type, Table[Any]] = {table.value_type: table for table in TABLES}
TABLE_BY_NAME: dict[str, Table[Any]] = {table.name: table for table in TABLES}


def _within(name: str, value: int, limit: int) -> None:
    if not 0 <= value < limit:
        raise UsageError(f"{name} {value} isn't between 0 and {limit - 1}")


def _short(name: str, text: str, limit_bytes: int) -> None:
    try:
        length = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise UsageError(f"{name} {text!r} isn't UTF-8") from None
    if length > limit_bytes:
        raise UsageError(f"{name} has {length} bytes, more than {limit_bytes}")


def _transaction(timeline: int, number: int, digest: bytes) -> None:
    if not 1 <= timeline < TIMELINE_LIMIT:
        raise UsageError(f"timeline {timeline} isn't between 1 and {TIMELINE_LIMIT - 1}")
    _within("number", number, NUMBER_LIMIT)
    if len(digest) > DIGEST_LIMIT_BYTES:
        raise UsageError(f"a digest has {len(digest)} bytes, more than {DIGEST_LIMIT_BYTES}")


def _labelled(labels: tuple[str, ...]) -> None:
    if len(labels) > LABELS_LIMIT:
        raise UsageError(f"a point has at most {LABELS_LIMIT} labels, this one {len(labels)}")
    for label in labels:
        check_label(label)
