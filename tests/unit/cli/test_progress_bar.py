"""The progress bar on a real terminal: names and labels may hold what rich would take for its own."""

from __future__ import annotations

import pytest

from replicator.cli.show import progress
from tests.support.terminals import shown_on_terminal


@pytest.mark.parametrize(
    "name", ["vm{1}", "mon{day}", "{", "}{", "{0!x}", "[bold]", "a[/]b", "[/red]", ":smile:", "%s"]
)
def test_names_stand_in_it_as_they_are(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    what = f"{name} @1 [{name}]"

    def half() -> None:
        with progress(what, 100) as done:
            done(50)

    assert what in shown_on_terminal(monkeypatch, half)
