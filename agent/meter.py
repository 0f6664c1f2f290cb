"""What goes over the wire and how fast, and how long the room in the pool lasts: small windows of samples. Pure.

Fed by the worker (bytes sent) and the daemon (room left), read by status. Times are a monotonic clock's seconds.
"""

from __future__ import annotations

from collections import deque

WINDOW_S = 60.0
"""Rates are means over the last minute: steady enough to read, quick enough to see a change."""

ROOM_S_MIN = 30.0
"""Over less than this a burst would look like the end."""

SAMPLES_MAX = 600
"""A sample a second for ten minutes; more come only from a clock that stands."""


class SentMeter:
    """Bytes sent: the total, and the mean rate of the last minute."""

    def __init__(self) -> None:
        self.total_bytes = 0
        self._samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES_MAX)

    def add(self, now_s: float, count_bytes: int) -> None:
        """So many bytes went out now."""
        self.total_bytes += count_bytes
        if self._samples and now_s - self._samples[-1][0] < WINDOW_S / SAMPLES_MAX:
            count_bytes += self._samples.pop()[1]
        self._samples.append((now_s, count_bytes))

    def rate_bytes_s(self, now_s: float) -> float:
        """The mean over the last minute."""
        return sum(count for at, count in list(self._samples) if now_s - at <= WINDOW_S) / WINDOW_S


class RoomMeter:
    """How fast the free room shrinks, over the last samples."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES_MAX // 10)

    def add(self, now_s: float, free_bytes: int) -> None:
        """So much was free now."""
        self._samples.append((now_s, free_bytes))

    def lasts_s(self) -> float | None:
        """How long the newest sample's room lasts at the mean rate; None where it doesn't shrink, or nobody knows."""
        samples = list(self._samples)
        if len(samples) < 2:
            return None
        (first_s, first), (last_s, last) = samples[0], samples[-1]
        if last >= first or last_s - first_s < ROOM_S_MIN:
            return None
        return last * (last_s - first_s) / (first - last)
