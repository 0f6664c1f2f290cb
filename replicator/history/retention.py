"""Which restore points are materialised, and which snapshots retire: the default policy, as pure functions.

Asked by whoever applies transactions into a pool. To retire is to delete the snapshot; the point itself stays in the
list as long as its events, or a fold, are in the log.

    age of a materialised point      what stays
    up to a day                      all
    up to 7 days                     the newest of each hour
    up to 31 days                    the newest of each day
    up to 12 times 31 days               the newest of each month
    beyond                           none
    a labelled one                   stays up to 12 times 31 days whatever the hour, day or month
    the newest; held; leased         stays

Ages are counted to the last instant that the source is known to have come to (its newest point's stamp, or what its
beacon said since), and never beyond: a clock here that is ahead would retire for good what is young. So the points of a
source that is silent don't age; they stay as they are until it is heard of again.

Hours, days and months are UTC's. Snapshots cost metadata, which dm-thin can't have more of than 15.9 GiB. So from half
of it in use on, points are spaced: with each further two hundredths by the next step of 2, 4, 12 minutes, 1, 2, 6, 12
hours, 1 day, 1 month, and of each stretch of that length only the newest stays. This takes the densest first, and also
spaces what is newly materialised. From three quarters on labels count no more: applying never stops for a point's sake.

Invariants
  Y1  Held, leased and newest points never retire; nor do labelled ones below three quarters, within 12 months.
  Y2  Idempotent: of what stays, nothing retires at the same instant and use.
  Y3  Monotone: what retires now retires at any later instant, after any later word of the source, and at any higher
      use, of the same points. (Each step's stretches are whole ones of the step before, of hours and of days: so none
      leans on a point that another drops.)
  Y4  The order of the answer: densest first, so that whoever retires only some takes the right ones.
  Y5  A clock that is ahead of the source's makes no point older than the source's newest word does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from replicator.errors import UsageError
from replicator.history.points import NS_PER_S, RestorePoint

_HOUR_NS = 3600 * NS_PER_S
_DAY_NS = 24 * _HOUR_NS
_LONGEST_MONTH_DAYS = 31
_PRESSURE_STEP = 0.02
"""How much more metadata in use takes the next step: the last is reached well before labels stop counting."""


def _hour(timestamp_ns: int) -> int:
    return timestamp_ns // _HOUR_NS


def _day(timestamp_ns: int) -> int:
    return timestamp_ns // _DAY_NS


def _month(timestamp_ns: int) -> int:
    moment = datetime.fromtimestamp(timestamp_ns // NS_PER_S, UTC)
    return moment.year * 12 + moment.month


_SPACINGS_NS = tuple(minutes * 60 * NS_PER_S for minutes in (2, 4, 12, 60, 120, 360, 720, 1440, 31 * 1440))
"""Each divides the next, and either an hour, or a whole number of them; the last stands for a calendar month."""


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """How dense the materialised points are, and for how long; the values are the defaults."""

    materialise_every_s: float = 60.0
    keep_all_days: int = 1
    hourly_days: int = 7
    daily_days: int = 31
    monthly_count: int = 12
    pressure_fraction: float = 0.5
    labelled_pressure_fraction: float = 0.75

    def __post_init__(self) -> None:
        if not 1 <= self.materialise_every_s <= 31 * 86400:
            raise UsageError("points are materialised every second at most, and every 31 days at least")
        if min(self.keep_all_days, self.hourly_days, self.daily_days, self.monthly_count) < 0:
            raise UsageError("a time to keep points for can't be negative")
        if not 0 < self.pressure_fraction <= self.labelled_pressure_fraction <= 1:
            raise UsageError("pressure begins between 0 and 1, and for labelled points no earlier")

    @property
    def longest_ns(self) -> int:
        """The age beyond which nothing stays that isn't exempt."""
        days = max(self.keep_all_days, self.hourly_days, self.daily_days, self.monthly_count * _LONGEST_MONTH_DAYS)
        return days * _DAY_NS


DEFAULT_POLICY = RetentionPolicy()


def spacing_ns(policy: RetentionPolicy, metadata_used_fraction: float) -> int:
    """The least distance between materialised points at this use of the metadata."""
    every_ns = round(policy.materialise_every_s * NS_PER_S)
    step = _pressure_step(policy, metadata_used_fraction)
    return every_ns if step is None else max(every_ns, _SPACINGS_NS[step])


def should_materialise(
    point: RestorePoint, newest: RestorePoint | None, policy: RetentionPolicy, metadata_used_fraction: float
) -> bool:
    """Whether the transaction being committed becomes a snapshot; `newest` is the newest that is one.

    Labelled ones always do, below three quarters of the metadata; the first one does.
    """
    if newest is None or (point.labels and metadata_used_fraction < policy.labelled_pressure_fraction):
        return True
    return point.timestamp_ns - newest.timestamp_ns >= spacing_ns(policy, metadata_used_fraction)


def to_retire(
    points: Iterable[RestorePoint],
    now_ns: int,
    policy: RetentionPolicy,
    metadata_used_fraction: float,
    heard_ns: int = 0,
) -> list[RestorePoint]:
    """Of one volume's points, those whose snapshots go now, densest first; what isn't materialised is skipped.

    `heard_ns`: the last instant of the source's clock that is known of, if that is later than the newest point.
    """
    there = sorted((each for each in points if each.materialised), key=lambda each: (each.timestamp_ns, each.number))
    if not there:
        return []
    assert len({each.volume for each in there}) == 1, "points of one volume at a time"
    now_ns = min(now_ns, max(heard_ns, there[-1].timestamp_ns))  # Y5
    kept = _kept_by_age(there, now_ns, policy)
    step = _pressure_step(policy, metadata_used_fraction)
    if step is not None:
        kept = _spaced(there, kept, step)
    if metadata_used_fraction < policy.labelled_pressure_fraction:
        youngest_gone_ns = now_ns - policy.longest_ns
        kept |= {index for index, each in enumerate(there) if each.labels and each.timestamp_ns >= youngest_gone_ns}
    kept |= {index for index, each in enumerate(there) if each.held or each.leased}
    return _densest_first(there, kept | {len(there) - 1})


def _kept_by_age(there: Sequence[RestorePoint], now_ns: int, policy: RetentionPolicy) -> set[int]:
    """Indexes into `there` (ascending) of what age alone lets stay."""
    tiers = (
        (policy.hourly_days * _DAY_NS, _hour),
        (policy.daily_days * _DAY_NS, _day),
        (policy.monthly_count * _LONGEST_MONTH_DAYS * _DAY_NS, _month),
    )
    kept = {len(there) - 1}
    seen: set[tuple[int, int]] = set()
    for index in range(len(there) - 1, -1, -1):
        timestamp_ns = there[index].timestamp_ns
        age_ns = now_ns - timestamp_ns
        if age_ns <= policy.keep_all_days * _DAY_NS:
            kept.add(index)
        for tier, (limit_ns, bucket_of) in enumerate(tiers):
            bucket = (tier, bucket_of(timestamp_ns))
            if bucket not in seen and age_ns <= limit_ns:
                kept.add(index)
            seen.add(bucket)
    return kept


def _spaced(there: Sequence[RestorePoint], kept: set[int], step: int) -> set[int]:
    """Of `kept`, the newest in each stretch of the step's length."""
    is_last = step == len(_SPACINGS_NS) - 1
    newest: dict[int, int] = {}
    for index in sorted(kept):
        timestamp_ns = there[index].timestamp_ns
        newest[_month(timestamp_ns) if is_last else timestamp_ns // _SPACINGS_NS[step]] = index
    return set(newest.values())


def _densest_first(there: Sequence[RestorePoint], kept: set[int]) -> list[RestorePoint]:
    """What isn't in `kept`, by the distance to the next newer point; equals by age, oldest first (Y4)."""
    gaps = [(newer.timestamp_ns - older.timestamp_ns, index) for index, (older, newer) in enumerate(pairwise(there))]
    return [there[index] for _, index in sorted(gaps) if index not in kept]


def _pressure_step(policy: RetentionPolicy, metadata_used_fraction: float) -> int | None:
    """Which of the spacings holds, or None below the pressure."""
    over = metadata_used_fraction - policy.pressure_fraction
    return None if over < 0 else min(len(_SPACINGS_NS) - 1, int(over / _PRESSURE_STEP))
