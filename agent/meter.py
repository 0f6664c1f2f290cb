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


CUTS_MAX = 4096
"""An hour and more at a cut a second; who is further behind is told by its transactions."""


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


class Instants:
    """When the last transactions were cut: how far behind in time a receiver is that has applied up to one of them."""

    def __init__(self) -> None:
        self._cuts: deque[tuple[int, int]] = deque(maxlen=CUTS_MAX)

    def add(self, number: int, timestamp_ns: int) -> None:
        """Transaction `number` was cut then."""
        self._cuts.append((number, timestamp_ns))

    def first_behind(self, number: int) -> int | None:
        """When the first transaction behind `number` was cut; None where that isn't remembered."""
        cuts = list(self._cuts)
        if not cuts or cuts[0][0] > number + 1:
            return None
        return next((at for each, at in cuts if each > number), None)


class RoomMeter:
    """How fast the free room shrinks, over the last samples."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES_MAX // 10)

    def add(self, now_s: float, free_bytes: int) -> None:
        """So much was free now."""
        self._samples.append((now_s, free_bytes))

    def lasts_s(self, floor_bytes: int = 0) -> float | None:
        """Until `floor_bytes` are left, at the mean rate; None where the room doesn't shrink, or nobody knows."""
        samples = list(self._samples)
        if len(samples) < 2:
            return None
        (first_s, first), (last_s, last) = samples[0], samples[-1]
        if last >= first or last_s - first_s < ROOM_S_MIN:
            return None
        return max(0, last - floor_bytes) * (last_s - first_s) / (first - last)
