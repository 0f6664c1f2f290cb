"""What a person sees on a terminal, as bytes: a pseudo-terminal in the place of stderr."""

from __future__ import annotations

import os
import pty
from collections.abc import Callable

import pytest


def shown_on_terminal(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> str:
    """All that `act` shows on one of 200 columns, without colours."""
    for name, value in (("TERM", "xterm"), ("COLUMNS", "200"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    terminal, written = pty.openpty()
    found = b""
    try:
        with os.fdopen(written, "w") as stderr, monkeypatch.context() as patched:
            patched.setattr("sys.stderr", stderr)
            act()
        while True:
            found += os.read(terminal, 65536)
    except OSError:  # EIO: the other end is closed, and all was read
        return found.decode()
    finally:
        os.close(terminal)
