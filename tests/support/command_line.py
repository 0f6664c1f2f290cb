"""The command `replicator`, run in this process: its exit code, and what it printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from replicator.cli.main import run

Command = Callable[..., "Ran"]


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Its JSON document, from stdout."""
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """Its error's document, from stderr."""
        found: dict[str, Any] = json.loads(self.err)["error"]
        return found


def runner(capture: pytest.CaptureFixture[str]) -> Command:
    """A function that runs one command line."""

    def command(*arguments: object, code: int | None = 0) -> Ran:
        capture.readouterr()
        ended = run([str(each) for each in arguments])
        out, err = capture.readouterr()
        assert "Traceback" not in err and "a bug of ours" not in err, err
        assert code is None or ended == code, f"{arguments} ended with {ended}: {out}{err}"
        return Ran(ended, out, err)

    return command


def tree_of(folder: Path) -> dict[str, bytes | None]:
    """Every file's content below `folder` (None: it isn't a regular one), to hold against a later one."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if not path.name.endswith(("-shm", "-wal"))
    }
