"""What a check finds, as values: how bad, what kind, where, what was expected, what was found.

Filled by thin/check, shown by `pool check`. Two bounds keep a wholly ruined pool from filling memory or a screen: per
kind the first FINDINGS_PER_KIND are kept and the rest are counted.

    severity    meaning
    DAMAGE      the pool contradicts itself: the kernel or thin_check refuse it, or content is wrong
    LEAK        space that nothing refers to is counted as used: nothing is wrong but the room it takes
    WARNING     odd, and harmless to content: a counter that somebody else left wrong, a pool marked for a check
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

from replicator.errors import FormatError

FINDINGS_PER_KIND = 20  # what a person reads; the rest is a number


class Severity(Enum):
    """How bad a finding is; the order of definition is from worst to mildest."""

    DAMAGE = "damage"
    LEAK = "leak"
    WARNING = "warning"


class FindingKind(Enum):
    """What a finding is about."""

    SUPERBLOCK = "superblock"
    HELD_ROOT = "held root"
    NODE = "node"
    KEY_RANGE = "key range"
    NODE_FILL = "node fill"
    LOST_RANGE = "lost range"
    BLOCK_USED_TWICE = "block used twice"
    DEVICE_SETS = "device sets"
    DEVICE_ID = "device id"
    MAPPED_BLOCKS = "mapped blocks"
    DATA_BLOCK = "data block"
    TIME = "time"
    SHARING_TIME = "sharing time"
    TRANSACTION_ID = "transaction id"
    BITMAP_INDEX = "bitmap index"
    METADATA_COUNT = "metadata count"
    DATA_COUNT = "data count"
    OVERFLOW = "overflow tree"
    NR_FREE = "nr_free"
    NONE_FREE_BEFORE = "none_free_before"
    NR_ALLOCATED = "nr_allocated"
    NEEDS_CHECK = "needs check"
    MIRROR = "mirror"
    MIRROR_DIFFERS = "mirror differs"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that isn't as it must be."""

    severity: Severity
    kind: FindingKind
    where: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.severity.value}: {self.kind.value}, {self.where}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The outcome of a check: the kept findings, how many of each kind there were, and what the pool holds.

    `counts_compared` is False where damage in the trees made comparing reference counts pointless.
    """

    findings: tuple[Finding, ...]
    totals: dict[tuple[Severity, FindingKind], int]
    counts_compared: bool
    device_count: int = 0
    held_device_count: int = 0
    metadata_blocks_used: int = 0
    data_blocks_used: int = 0

    @property
    def clean(self) -> bool:
        """Neither damage nor leaks; warnings may be there."""
        return all(severity is Severity.WARNING for severity, _ in self.totals)

    def of(self, severity: Severity) -> int:
        """How many findings of one severity there were, kept or not."""
        return sum(count for (each, _), count in self.totals.items() if each is severity)


@dataclass(slots=True)
class Findings:
    """Collects findings while a check runs, within the bound."""

    kept: list[Finding] = field(default_factory=list)
    totals: Counter[tuple[Severity, FindingKind]] = field(default_factory=Counter)

    def add(
        self, severity: Severity, kind: FindingKind, where: str, expected: object, found: object, *, count: int = 1
    ) -> None:
        """One finding that stands for `count` of its kind."""
        if self.has_room(severity, kind):
            self.kept.append(Finding(severity, kind, where, str(expected), str(found)))
        self.totals[severity, kind] += count

    def has_room(self, severity: Severity, kind: FindingKind) -> bool:
        """Whether another one of this kind would be kept."""
        return self.totals[severity, kind] < FINDINGS_PER_KIND

    def count_only(self, severity: Severity, kind: FindingKind, count: int) -> None:
        """More of a kind whose first ones were kept."""
        if count:
            self.totals[severity, kind] += count

    def from_error(self, kind: FindingKind, error: FormatError) -> None:
        """Damage that a reader refused."""
        self.add(Severity.DAMAGE, kind, error.where, error.expected, error.found)

    @property
    def damaged(self) -> bool:
        """Whether any damage was found so far."""
        return any(severity is Severity.DAMAGE for severity, _ in +self.totals)
