"""When the next cut is due: intervals are measured, cron expressions follow the wall clock, summer time too."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from agent.schedule import Cron, Every
from replicator.errors import UsageError

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str, zone: ZoneInfo = BERLIN) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=zone).timestamp() * 1e9)


def test_an_interval_counts_from_the_rounds_beginning() -> None:
    assert Every(10.0).delay_s(3.0, 0, UTC) == 7.0
    assert Every(10.0).delay_s(30.0, 0, UTC) == 0.0
    assert Every(1.0).late_s == 5.0
    with pytest.raises(UsageError, match="too short"):
        Every(0.01)
    with pytest.raises(UsageError, match="too short"):
        Every(float("nan"))


@pytest.mark.parametrize(
    ("expression", "now", "hours"),
    [
        ("0 2 * * *", "2026-11-22T01:00", 1.0),
        ("0 2 * * *", "2026-11-22T02:00", 24.0),
        ("*/15 * * * *", "2026-11-22T10:05", 1 / 6),
        ("0 3 * * 1", "2026-11-22T03:00", 24.0),
        ("0 4 * * *", "2026-03-28T04:00", 23.0),
        ("0 4 * * *", "2026-10-24T04:00", 25.0),
    ],
)
def test_cron_follows_the_wall_clock(expression: str, now: str, hours: float) -> None:
    assert Cron(expression).delay_s(5.0, at(now), BERLIN) == pytest.approx(hours * 3600)


def test_a_scheduled_backup_is_late_after_its_longest_gap() -> None:
    assert Cron("0 2 * * *").late_s == pytest.approx(86400 * 1.1)
    assert Cron("0 2 * * 1-5").late_s == pytest.approx(3 * 86400 * 1.1), "weekends"
    assert Cron("*/5 * * * *").late_s == pytest.approx(300 + 900)


@pytest.mark.parametrize("expression", ["", "1 2 3", "61 * * * *", "0 0 31 2 *", "@often"])
def test_what_is_no_cron_expression(expression: str) -> None:
    with pytest.raises(UsageError, match="cron expression"):
        Cron(expression)
