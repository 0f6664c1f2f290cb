"""Waiting until the receivers have a point: by what each registered beside the log (log/interface, Registration).

Asked by `points create --wait`, once the point is in the log. Who isn't registered isn't waited for; a receiver that is
struck off meanwhile (`receiver forget`) isn't either.

    receiver's timeline      has (timeline, number)
    the point's              from `number` on
    a later one              yes: it went on from a fork at or after what it had
    an earlier one           no

Failures: UnavailableError, naming who hasn't got it, when the time is over; those of the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from replicator.errors import UnavailableError
from replicator.log.interface import Log, Registration, Waiter

LOOK_S = 0.5
"""Between two looks at the registrations: receivers renew theirs every few seconds."""


def lacking(registrations: Sequence[Registration], timeline: int, number: int) -> list[Registration]:
    """The receivers that haven't got the point, by the table above."""
    return [each for each in registrations if (each.timeline, each.number) < (timeline, number)]


def await_receivers(
    log: Log, volume: UUID, timeline: int, number: int, waiter: Waiter, timeout_s: float
) -> list[Registration]:
    """Wait until every registered receiver has the point; who they are (nobody, where none is registered)."""
    end_s = waiter.monotonic() + timeout_s
    while True:
        known = log.registrations(volume)
        late = lacking(known, timeline, number)
        if not late:
            return known
        left_s = end_s - waiter.monotonic()
        if left_s <= 0 or waiter.wait(min(LOOK_S, left_s)):
            told = ", ".join(f"{each.name} (at {each.timeline}:{each.number})" for each in late)
            raise UnavailableError(
                f"after {timeout_s:g} s the point {timeline}:{number} is in the log, and not yet at {told}",
                mend="replicator receiver status, there; one that is gone: replicator receiver forget LOG VOLUME NAME",
            )
