"""A connection that is cut: a channel to a process which dies after so many bytes, wherever that is.

What was sent up to that byte has arrived, what was to be received after it is lost. The cut kills ssh, so the far end
sees its input end, as when a line falls. Since commits are few bytes among many, a span may also say AT_COMMIT: the
connection lives until a commit was sent, and dies before its answer; or WITHIN_COMMIT: half of it was sent.
"""

from __future__ import annotations

import os
import signal
import threading

from replicator._buffer import Buffer
from replicator.errors import UnavailableError
from replicator.log.ssh_channel import ProcessChannel
from replicator.log.stdio_protocol import Kind

AT_COMMIT, WITHIN_COMMIT = -1, -2


class Cuts:
    """How many bytes each connection lives, from `spans`, and how many were cut; for any thread."""

    def __init__(self, spans: list[int]) -> None:
        self._spans = spans
        self._lock = threading.Lock()
        self.done = 0

    def next_span(self) -> int | None:
        """Bytes that the next connection lives; None: as long as it likes."""
        with self._lock:
            return self._spans.pop(0) if self._spans else None

    def count(self) -> None:
        """One was cut."""
        with self._lock:
            self.done += 1


class CuttingChannel:
    """A Channel over `argv` that lives for the next span of `cuts`."""

    def __init__(self, argv: list[str], cuts: Cuts) -> None:
        self._channel = ProcessChannel(argv, "the far end")
        self._cuts = cuts
        self._left = cuts.next_span()

    def send(self, parts: list[Buffer]) -> None:
        """As much as the connection lives."""
        data = b"".join(bytes(part) for part in parts)
        if self._left in (AT_COMMIT, WITHIN_COMMIT):
            self._send_until_commit(data)
            return
        if self._left is None or len(data) < self._left:
            self._channel.send([data])
            self._spend(len(data))
            return
        self._channel.send([data[: self._left]])
        self._cut()

    def _send_until_commit(self, data: bytes) -> None:
        is_commit = data[5] == Kind.COMMIT
        self._channel.send([data[: len(data) // 2] if is_commit and self._left == WITHIN_COMMIT else data])
        if is_commit:
            self._cut()

    def receive(self, length_bytes: int) -> Buffer:
        """As much as the connection lives."""
        if self._left is not None and 0 <= self._left <= length_bytes:
            self._cut()
        data = self._channel.receive(length_bytes)
        self._spend(len(data))
        return data

    def _spend(self, length_bytes: int) -> None:
        if self._left is not None and self._left > 0:
            self._left -= length_bytes

    def _cut(self) -> None:
        self._cuts.count()
        self._left = None
        os.kill(self._channel.pid, signal.SIGKILL)
        self._channel.close()
        raise OSError("cut")

    def ended(self, seen: bytes) -> UnavailableError:
        """It was cut."""
        return UnavailableError("the line was cut")

    def close(self) -> None:
        """Let go of it."""
        self._channel.close()
