"""The bandwidth limit: a token bucket of bytes, on a clock that is passed in, shared by all publishers of an agent.

Stands between extract and append. A bucket holds a quarter of a second's bytes at most, and may go into debt by what is
sent at once, so that more than a bucket passes and is paid for afterwards.

Invariants
  B1  Over any span of t seconds at most rate * (t + BURST_S) bytes pass, and what was sent at once.
  B2  Without a rate nothing waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

BURST_S = 0.25
"""What an idle line saves up: little, so that the limit holds over seconds already."""


class TokenBucket:
    """Bytes that may pass, whichever thread sends them."""

    def __init__(self, rate_bytes_per_s: int | None, monotonic: Callable[[], float]) -> None:
        self._rate = rate_bytes_per_s
        self._monotonic = monotonic
        self._tokens = BURST_S * (rate_bytes_per_s or 0)
        self._filled_at = monotonic()
        self._lock = threading.Lock()

    def delay_s(self, count_bytes: int) -> float:
        """Take `count_bytes`; how long to wait before they may pass."""
        if self._rate is None:
            return 0.0
        with self._lock:
            now = self._monotonic()
            self._tokens = min(BURST_S * self._rate, self._tokens + (now - self._filled_at) * self._rate)
            self._filled_at = now
            self._tokens -= count_bytes
            return max(0.0, -self._tokens / self._rate)
