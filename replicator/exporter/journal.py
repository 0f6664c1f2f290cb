"""What a daemon tells its surroundings: structured log lines on stderr, and systemd's notifications.

    {"time": "2026-11-22T13:00:00.000+00:00", "level": "warning", "event": "stopped", "reason": …}

One JSON object a line. No secret ever comes here: URLs are shown without their passwords by whoever opens them.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

NS_PER_S = 1_000_000_000


class Journal:
    """Lines on a stream, from any thread."""

    def __init__(self, stream: TextIO, now_ns: Callable[[], int]) -> None:
        self._stream, self._now_ns = stream, now_ns
        self._turn = threading.Lock()

    def info(self, event: str, **facts: object) -> None:
        """Something that an operator may want to know."""
        self._line("info", event, facts)

    def warning(self, event: str, **facts: object) -> None:
        """Something that an operator should look at."""
        self._line("warning", event, facts)

    def _line(self, level: str, event: str, facts: dict[str, object]) -> None:
        moment = datetime.fromtimestamp(self._now_ns() / NS_PER_S, UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": moment, "level": level, "event": event, **facts}, default=str)
        with self._turn, contextlib.suppress(OSError, ValueError):  # a closed stderr must not end the daemon
            self._stream.write(line + "\n")
            self._stream.flush()


def notify_systemd(*assignments: str) -> None:
    """sd_notify: READY=1, STATUS=…, WATCHDOG=1, STOPPING=1; nothing where no NOTIFY_SOCKET is."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    target = "\0" + address[1:] if address[0] == "@" else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.sendto("\n".join(assignments).encode(), target)
