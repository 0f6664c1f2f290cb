"""How long to wait before trying again: doubling from a first delay to a longest, with chance taken from outside. Pure.

    attempt   1     2     3     4  …
    delay     1 s   2 s   4 s   8 s  … 60 s, each times a factor in [0.5, 1)

So that a thousand agents whose log comes back don't all knock at once.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays between attempts."""

    first_s: float = 1.0
    longest_s: float = 60.0

    def delay_s(self, attempt: int, chance: float) -> float:
        """Before attempt `attempt` + 1 (counted from 1); `chance` in [0, 1)."""
        doublings = min(max(attempt, 1) - 1, 32)
        return float(min(self.longest_s, self.first_s * 2.0**doublings) * (0.5 + 0.5 * chance))
