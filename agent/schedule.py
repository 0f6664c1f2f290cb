"""When a group is cut next: every so many seconds, or as a cron expression says. Pure but for the zone's rules.

    kind    the next cut
    Every   `interval_s` after the last one began, at once where that took longer
    Cron    the expression's next instant, in local time, by the wall clock: a jump of the clock, and summer time,
            are followed (cronsim knows Debian's rules for them)

`late_s` is how old the oldest change outside the log may become before its volume isn't called protected.

Failures: UsageError (an expression that is none, or that never comes).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from itertools import islice, pairwise
from typing import TypeAlias

from replicator.errors import UsageError
from replicator.history.points import NS_PER_S

INTERVAL_S_MIN = 0.05
LATE_INTERVALS = 3
LATE_MARGIN_S = 2.0
CRON_MARGIN_S = 900.0
"""What a scheduled cut may take to be in the log, at least, before it is called late."""

_GAPS = 16  # firings looked at for the longest gap: enough for weekends


@dataclass(frozen=True, slots=True)
class Every:
    """A cut every `interval_s`."""

    interval_s: float = 1.0

    def __post_init__(self) -> None:
        if not self.interval_s >= INTERVAL_S_MIN:
            raise UsageError(f"an interval of {self.interval_s:g} s is too short", mend="take 50ms or more")

    def delay_s(self, took_s: float, now_ns: int, zone: tzinfo) -> float:
        """From the end of a round that took so long to the next one."""
        return max(0.0, self.interval_s - took_s)

    @property
    def late_s(self) -> float:
        """Several intervals, and a margin."""
        return LATE_INTERVALS * self.interval_s + LATE_MARGIN_S

    def __str__(self) -> str:
        return f"every {self.interval_s:g} s"


@dataclass(frozen=True, slots=True)
class Cron:
    """Cuts at the instants of a cron expression."""

    expression: str

    def __post_init__(self) -> None:
        self._firings(datetime(2026, 1, 1, tzinfo=UTC), 1)

    def delay_s(self, took_s: float, now_ns: int, zone: tzinfo) -> float:
        """From now to the next instant."""
        now = datetime.fromtimestamp(now_ns / NS_PER_S, zone)
        (due,) = self._firings(now, 1)
        return max(0.0, due.timestamp() - now_ns / NS_PER_S)  # instants: wall clocks skip an hour in spring

    @property
    def late_s(self) -> float:
        """The longest gap between two instants, and a margin."""
        firings = self._firings(datetime(2026, 1, 1, tzinfo=UTC), _GAPS)
        gap_s = max((later - earlier).total_seconds() for earlier, later in pairwise(firings))
        return gap_s + max(CRON_MARGIN_S, gap_s / 10)

    def __str__(self) -> str:
        return f"cron {self.expression}"

    def _firings(self, after: datetime, count: int) -> list[datetime]:
        from cronsim import CronSim, CronSimError

        mend = 'five fields: minute hour day month weekday, as in "0 2 * * *"'
        try:
            found = list(islice(CronSim(self.expression, after), count))
        except CronSimError as error:
            raise UsageError(f"{self.expression!r} is no cron expression: {error}", mend=mend) from None
        if len(found) < count:
            raise UsageError(f"the cron expression {self.expression!r} never comes", mend=mend)
        return found


Schedule: TypeAlias = Every | Cron
