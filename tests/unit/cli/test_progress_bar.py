"""The progress bar on a real terminal: names and labels may hold what rich would take for its own."""

from __future__ import annotations

import os
import pty

import pytest

from replicator.cli.show import progress


def shown(monkeypatch: pytest.MonkeyPatch, what: str) -> str:
    """What a terminal is shown of a bar that begins and ends."""
    for name, value in (("TERM", "xterm"), ("COLUMNS", "200"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    terminal, written = pty.openpty()
    found = b""
    try:
        with os.fdopen(written, "w") as stderr, monkeypatch.context() as patched:
            patched.setattr("sys.stderr", stderr)
            with progress(what, 100) as done:
                done(50)
        while True:
            found += os.read(terminal, 65536)
    except OSError:  # EIO: the other end is closed, and all was read
        return found.decode()
    finally:
        os.close(terminal)


@pytest.mark.parametrize(
    "name", ["vm{1}", "mon{day}", "{", "}{", "{0!x}", "[bold]", "a[/]b", "[/red]", ":smile:", "%s"]
)
def test_names_stand_in_it_as_they_are(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    what = f"{name} @1 [{name}]"
    assert what in shown(monkeypatch, what)
