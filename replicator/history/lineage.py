"""Timelines: how a volume's history branches, who descends from whom, and what lies between two revisions.

A promote begins a new timeline at a transaction of another one and goes on counting (as PostgreSQL's do):

    timeline 1     1 … 1041 1042 1043         1043 is seen by nobody who follows timeline 2
    timeline 2              └─ 1042 1043 …    forked at (1, 1041)

A *revision* names a state of a volume by (timeline, number, digest); number 0 is the empty volume before transaction 1.

`compare(held, offer, lineage)` is the pure heart of every reconciliation: a replica holds one revision, a log offers
a history; the answer is the way on, or a conflict that carries both sides. Nothing is raised: who can't go on raises
`HistoryConflictError(conflict)`.

    held                                              answer
    the tip                                           Way with no stretch
    an ancestor of the tip, all between is offered    Way: stretches of (timeline, numbers), in order
    ahead of the tip on its own timeline              HeldIsAhead    (the log lost its end, or is another one)
    same number, other digest                         Forked         (two publishers, or a restored pool)
    on a timeline the lineage doesn't know            NoCommonBase
    off the tip's path                                LeftBehind     (promoted away; the last common revision is named)
    between them something was trimmed                Trimmed        (numbers that are gone)

Invariants
  L1  A timeline's parent has a smaller number; so the walk to the root ends.
  L2  is_ancestor is reflexive and transitive, and agrees with compare: Way iff ancestor and nothing is missing.
  L3  Stretches of a Way are contiguous: each begins one behind the end of the one before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from replicator.errors import ConflictError, UsageError

TIMELINES_LIMIT = 4096
"""Each takes a person's promote; more is damage, and would make every walk long."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """One branch; `parent` None for the first, else it forked at transaction `forked_at` of `parent`."""

    number: int
    parent: int | None = None
    forked_at: int = 0

    def __post_init__(self) -> None:
        if self.number < 1 or self.forked_at < 0 or (self.parent is not None and not 1 <= self.parent < self.number):
            raise UsageError(f"timeline {self.number} can't fork from {self.parent} at {self.forked_at}")


@dataclass(frozen=True, slots=True)
class Revision:
    """A state of a volume: after transaction `number` of `timeline`; `digest` empty where it isn't known."""

    timeline: int
    number: int
    digest: bytes = b""

    def __str__(self) -> str:
        digest = f" ({self.digest.hex()[:12]})" if self.digest else ""
        return f"{self.timeline}:{self.number}{digest}"


@dataclass(frozen=True, slots=True)
class Stretch:
    """Transactions `[begin, end)` of one timeline."""

    timeline: int
    begin: int
    end: int

    def __post_init__(self) -> None:
        assert 1 <= self.begin <= self.end

    @property
    def count(self) -> int:
        return self.end - self.begin

    def __str__(self) -> str:
        return f"{self.timeline}:{self.begin}…{self.end - 1}"


@dataclass(frozen=True, slots=True)
class Lineage:
    """All timelines of one volume that are known; the current one is the newest."""

    timelines: tuple[Timeline, ...] = (Timeline(1),)

    def __post_init__(self) -> None:
        numbers = [each.number for each in self.timelines]
        if not 1 <= len(numbers) <= TIMELINES_LIMIT or len(set(numbers)) != len(numbers):
            raise UsageError(f"{len(numbers)} timelines, or one of them twice, are no lineage")
        for each in self.timelines:
            if each.parent is not None and each.parent not in numbers:
                raise UsageError(f"timeline {each.number} forks from {each.parent}, which isn't there")

    @property
    def current(self) -> int:
        """The newest timeline's number."""
        return max(each.number for each in self.timelines)

    def knows(self, timeline: int) -> bool:
        """Whether there is such a timeline."""
        return any(each.number == timeline for each in self.timelines)

    def path(self, timeline: int, number: int) -> tuple[Stretch, ...]:
        """All transactions from 1 up to (timeline, number), oldest first; empty for number 0."""
        by_number = {each.number: each for each in self.timelines}
        stretches: list[Stretch] = []
        end = number + 1
        walked: int | None = timeline
        while walked is not None:
            branch = by_number[walked]
            begin = 1 if branch.parent is None else branch.forked_at + 1
            if begin < end:
                stretches.append(Stretch(walked, begin, end))
            end = min(end, begin)
            walked = branch.parent
        return tuple(reversed(stretches))

    def is_ancestor(self, older: Revision, newer: Revision) -> bool:
        """Whether the history of `newer` goes through `older` (or is it), by timeline and number alone."""
        if not (self.knows(older.timeline) and self.knows(newer.timeline)) or older.number > newer.number:
            return False
        return older.number == 0 or self._at(newer, older.number) == self._at(older, older.number)

    def common_ancestor(self, one: Revision, other: Revision) -> Revision:
        """The last revision that both go through; number 0 when they share nothing."""
        for stretch in reversed(self.path(one.timeline, one.number)):
            for opposite in self.path(other.timeline, other.number):
                if opposite.timeline == stretch.timeline:
                    return Revision(stretch.timeline, min(stretch.end, opposite.end) - 1)
        return Revision(1, 0)

    def _at(self, revision: Revision, number: int) -> int | None:
        """The timeline on which `revision`'s history has transaction `number`."""
        for stretch in self.path(revision.timeline, revision.number):
            if stretch.begin <= number < stretch.end:
                return stretch.timeline
        return None


@dataclass(frozen=True, slots=True)
class Offer:
    """What a log has of a volume: its tip, the numbers that still stand there, and the digests that are known."""

    tip: Revision
    standing: tuple[Stretch, ...]
    digests: tuple[Revision, ...] = ()

    def digest_at(self, timeline: int, number: int) -> bytes:
        """The digest that the log has for a transaction, or nothing."""
        for each in (self.tip, *self.digests):
            if (each.timeline, each.number) == (timeline, number):
                return each.digest
        return b""


@dataclass(frozen=True, slots=True)
class Way:
    """How to get from what is held to the tip: transactions to apply, oldest first."""

    held: Revision
    tip: Revision
    stretches: tuple[Stretch, ...]

    @property
    def count(self) -> int:
        return sum(each.count for each in self.stretches)


@dataclass(frozen=True, slots=True)
class Forked:
    """Both have transaction `held.number`, with different content."""

    held: Revision
    offered: Revision

    @property
    def message(self) -> str:
        return f"two histories: here {self.held}, in the log {self.offered}"


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """What is held lies on a branch that the tip's history left at `common`."""

    held: Revision
    tip: Revision
    common: Revision

    @property
    def message(self) -> str:
        return f"here {self.held}, but the log's {self.tip} left that branch behind at {self.common}"


@dataclass(frozen=True, slots=True)
class HeldIsAhead:
    """What is held is newer than the log's tip, on one branch with it."""

    held: Revision
    tip: Revision

    @property
    def message(self) -> str:
        return f"here {self.held}, but the log ends at {self.tip}: it lost its end, or is another one"


@dataclass(frozen=True, slots=True)
class NoCommonBase:
    """What is held stands on a timeline that the log has never had."""

    held: Revision
    tip: Revision

    @property
    def message(self) -> str:
        return f"here {self.held}, of a timeline that the log (at {self.tip}) doesn't know"


@dataclass(frozen=True, slots=True)
class Trimmed:
    """The way on goes through transactions that the log no longer has."""

    held: Revision
    tip: Revision
    missing: tuple[Stretch, ...]

    @property
    def message(self) -> str:
        return f"from {self.held} to {self.tip} these are gone from the log: {', '.join(map(str, self.missing))}"


Conflict: TypeAlias = Forked | LeftBehind | HeldIsAhead | NoCommonBase | Trimmed


class HistoryConflictError(ConflictError):
    """Two histories can't be joined; `conflict` carries both sides."""

    def __init__(self, conflict: Conflict, *, mend: str | None = None) -> None:
        super().__init__(conflict.message, mend=mend)
        self.conflict = conflict


def compare(held: Revision, offer: Offer, lineage: Lineage) -> Way | Conflict:
    """The way from `held` to the log's tip, or the conflict that bars it; see the module's table."""
    tip = offer.tip
    if not lineage.knows(held.timeline) or not lineage.knows(tip.timeline):
        return NoCommonBase(held, tip)
    if not lineage.is_ancestor(held, tip):
        if lineage.is_ancestor(tip, held):
            return HeldIsAhead(held, tip)
        return LeftBehind(held, tip, lineage.common_ancestor(held, tip))
    offered = offer.digest_at(held.timeline, held.number)
    if held.digest and offered and held.digest != offered:
        return Forked(held, Revision(held.timeline, held.number, offered))
    stretches = between(held.number, lineage.path(tip.timeline, tip.number))
    missing = absent(stretches, offer.standing)
    return Trimmed(held, tip, missing) if missing else Way(held, tip, stretches)


def between(number: int, path: tuple[Stretch, ...]) -> tuple[Stretch, ...]:
    """The part of `path` behind transaction `number`."""
    behind = (Stretch(each.timeline, max(each.begin, number + 1), max(each.end, number + 1)) for each in path)
    return tuple(each for each in behind if each.count)


def absent(needed: tuple[Stretch, ...], standing: tuple[Stretch, ...]) -> tuple[Stretch, ...]:
    """The parts of `needed` that no stretch of `standing` covers."""
    missing: list[Stretch] = []
    for each in needed:
        begin = each.begin
        for there in sorted((s for s in standing if s.timeline == each.timeline), key=lambda s: s.begin):
            if there.end <= begin or there.begin >= each.end:
                continue
            if there.begin > begin:
                missing.append(Stretch(each.timeline, begin, there.begin))
            begin = there.end
        if begin < each.end:
            missing.append(Stretch(each.timeline, begin, each.end))
    return tuple(missing)
