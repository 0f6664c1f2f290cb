"""V1 of history/resolve, by seconds: what lists and refusals show is what may be asked for; and no more is answered."""

from __future__ import annotations

from datetime import UTC
from uuid import UUID

import pytest

from replicator.history.points import NS_PER_S, RestorePoint, format_instant, parse_specification
from replicator.history.resolve import BeyondCompleteError, PointNotFoundError, resolve

START = 1_795_348_800 * NS_PER_S
SHOWN = [
    RestorePoint(UUID(int=1), 1, n, START + at_ns) for n, at_ns in ((1, 100), (2, 680 * 10**6), (3, 1_680 * 10**6))
]


def _asked(text: str, complete_to_ns: int = 0) -> int:
    wanted = parse_specification(f"vm@{text}", UTC)
    known_ns = START + complete_to_ns
    return resolve(wanted, SHOWN, now_ns=START, complete_to_ns=known_ns).number


def test_a_time_as_it_was_listed_finds_what_was_listed() -> None:
    """Lists show whole seconds: of the points in one it is the latest, and the oldest there is answers to its own."""
    listed = [format_instant(each.timestamp_ns).removesuffix(" UTC") for each in SHOWN]
    assert listed == ["2026-11-22 12:00:00", "2026-11-22 12:00:00", "2026-11-22 12:00:01"]
    assert [_asked(text) for text in listed] == [2, 2, 3]
    fractions = {"0": 1, "5": 1, "6": 2, "68": 2, "679": 1, "680": 2, "000000099": None, "000000100": 1}
    for fraction, number in fractions.items():
        if number is not None:
            assert _asked(f"2026-11-22T12:00:00.{fraction}") == number, fraction
        else:
            with pytest.raises(PointNotFoundError):
                _asked(f"2026-11-22T12:00:00.{fraction}")


def test_the_time_that_a_refusal_names_is_answered() -> None:
    """V1: the second in which the log is known up to a part; nothing of the next one."""
    for complete_to_ns, named in ((0, "2026-11-22 12:00:01"), (5_300 * 10**6, "2026-11-22 12:00:05")):
        with pytest.raises(BeyondCompleteError, match=named) as caught:
            _asked("2026-11-22T12:00:06", complete_to_ns)
        assert caught.value.mend is not None and "the time named here" in caught.value.mend
        assert _asked(named, complete_to_ns) == 3
        with pytest.raises(BeyondCompleteError):
            _asked(f"{named}.7", complete_to_ns)
    with pytest.raises(PointNotFoundError, match="the oldest is @1 of 2026-11-22 12:00:00 UTC"):
        _asked("2026-11-22T11:59:59")
