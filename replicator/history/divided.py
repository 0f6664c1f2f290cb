"""Two histories of one volume, a pool's and its log's, and which point is meant where they disagree.

A log may be replaced by an older copy of itself, and be published to again: then the replica that followed it before
holds transactions that the log hasn't, or has otherwise. Both are whole; no rule can tell which one is wanted.

    wanted         answer
    N, T:N, LABEL  what the one history calls so that has it; or what both call so, if it is the same transaction
    TIME, -5m      what both answer, if it is the same transaction: the time lies before they part
    latest         the same

All else is refused, with both named.

Invariants
  V1  A point is chosen only if no reading of what was asked for names another one.
  V2  A history's meanings are all that it knows of, also what can't be had any more: a number that a pool remembers is
      not given to the log's transaction of that number.

Failures: TwoHistoriesError; PointNotFoundError, AmbiguousPointError and StampedAheadError of history/resolve.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, tzinfo

from replicator.errors import ConflictError
from replicator.history.lineage import Lineage
from replicator.history.points import ByLabel, ByNumber, PointSpecification, RestorePoint
from replicator.history.resolve import PointNotFoundError, resolve

_NO_END_NS = 1 << 63
"""Behind every instant: how far a history is complete is asked of neither where both must agree."""


class TwoHistoriesError(ConflictError):
    """Pool and log don't tell of one history; `histories` are both."""

    kind = "two-histories"

    def __init__(self, message: str, histories: tuple[History, History], *, mend: str | None = None) -> None:
        super().__init__(message, mend=mend)
        self.histories = histories


@dataclass(frozen=True, slots=True)
class History:
    """All that one side knows of: `name` says whose it is."""

    name: str
    points: tuple[RestorePoint, ...]
    lineage: Lineage
    digests: Mapping[tuple[int, int], frozenset[bytes]]

    @classmethod
    def of(cls, name: str, points: Iterable[RestorePoint], lineage: Lineage) -> History:
        """The history that has these points."""
        listed = tuple(points)
        digests: dict[tuple[int, int], frozenset[bytes]] = {}
        for each in listed:
            place = (each.timeline, each.number)
            digests[place] = digests.get(place, frozenset()) | {each.digest}
        return cls(name, listed, lineage, digests)

    def has(self, point: RestorePoint) -> bool:
        """Whether this transaction is in it, as far as is known."""
        known = self.digests.get((point.timeline, point.number), frozenset())
        return bool(known) and (point.digest in known or b"" in known or not point.digest)

    def newest(self) -> RestorePoint | None:
        """Its last point."""
        return max(self.points, key=lambda each: (each.timeline, each.number), default=None)

    def describe(self, zone: tzinfo = UTC) -> str:
        """Who has what, up to when."""
        newest = self.newest()
        if newest is None:
            return f"{self.name} has nothing"
        digest = f" ({newest.digest.hex()[:12]})" if newest.digest else ""
        return f"{self.name} ends with {newest.describe(zone)}{digest}"


@dataclass(frozen=True, slots=True)
class Divided:
    """Both histories of a volume, and what mends it."""

    volume: str
    pool: History
    log: History
    mend: str

    def is_only_the_pools(self, point: RestorePoint) -> bool:
        """Whether the log hasn't this point."""
        return not self.log.has(point)

    def side_of(self, point: RestorePoint) -> str:
        """ "pool" or "log": which of them alone has the point; "both" if it is before they part."""
        if self.is_only_the_pools(point):
            return "pool"
        return "both" if self.pool.has(point) else "log"

    def message(self, zone: tzinfo = UTC) -> str:
        """Both histories, for people."""
        common = [each for each in self.pool.points if self.side_of(each) == "both"]
        last = max(common, key=lambda each: (each.timeline, each.number), default=None)
        parted = "they have nothing in common" if last is None else f"they part after {last.describe(zone)}"
        return f"{self.volume} has two histories: {self.pool.describe(zone)}, {self.log.describe(zone)}; {parted}"

    def error(self, asked: str = "", zone: tzinfo = UTC) -> TwoHistoriesError:
        """The refusal; `asked` is what was written behind the `@`."""
        question = f"@{asked} doesn't say which is meant: " if asked else ""
        return TwoHistoriesError(question + self.message(zone), (self.pool, self.log), mend=self.mend)

    def resolve(
        self, specification: PointSpecification, *, now_ns: int, accept_gap: bool = False, zone: tzinfo = UTC
    ) -> RestorePoint:
        """The point that both histories, or the only one that knows it, mean."""
        found: list[RestorePoint] = []
        missing: list[PointNotFoundError] = []
        for history in (self.pool, self.log):
            try:
                found.append(_meant(history, specification, now_ns, accept_gap, zone))
            except PointNotFoundError as error:
                missing.append(error)
        if not found:
            raise missing[0]
        named = isinstance(specification.wanted, ByNumber | ByLabel)
        if len(found) == 1 and named:
            return found[0]
        if len(found) == 2 and same(*found):
            return found[1]
        raise self.error(specification.text, zone)


def same(one: RestorePoint, other: RestorePoint) -> bool:
    """Whether both are one transaction, as far as is known."""
    place = (one.timeline, one.number) == (other.timeline, other.number)
    return place and (one.digest == other.digest or not one.digest or not other.digest)


def _meant(
    history: History, specification: PointSpecification, now_ns: int, accept_gap: bool, zone: tzinfo
) -> RestorePoint:
    """What this history alone would answer; how far it is complete is no question where both must agree."""
    return resolve(
        specification,
        history.points,
        now_ns=now_ns,
        complete_to_ns=_NO_END_NS,
        lineage=history.lineage,
        accept_gap=accept_gap,
        zone=zone,
    )
