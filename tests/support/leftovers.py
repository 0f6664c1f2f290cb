"""What a test left running: children of this process, and daemons that have left it.

children    asked after each test, from /proc: running, or ended and never waited for
strays      asked once a session: whatever process was started with this session's mark in its environment, even if it
            made a session of its own since; it is named by the test that started it (pytest's PYTEST_CURRENT_TEST),
            and ended by its id
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

MARK = "REPLICATOR_TEST_SESSION"
KEPT_BY_PYTHON = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


@dataclass(frozen=True, slots=True)
class Process:
    """A process that outlived its test."""

    pid: int
    command: str
    test: str

    def __str__(self) -> str:
        return f"{self.pid} ({self.command[:200] or 'ended, not waited for'}) {self.test}".strip()


def children() -> set[int]:
    """The ids of this process's children, those of Python's own service processes left out."""
    pids: set[int] = set()
    for task in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            pids.update(map(int, task.read_text().split()))
    return {pid for pid in pids if not any(name in _command(pid) for name in KEPT_BY_PYTHON)}


def describe(pid: int) -> Process:
    """A process by its id, with the test that started it where its environment tells."""
    return Process(pid, _command(pid), _environment(pid).get("PYTEST_CURRENT_TEST", ""))


def strays(mark: str, name: str = MARK) -> list[Process]:
    """Processes other than this one whose environment holds the session's mark (or another one, of that name)."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    found = [pid for pid in pids if pid != os.getpid() and _environment(pid).get(name) == mark]
    return [describe(pid) for pid in found]


def end(processes: list[Process]) -> None:
    """End them, each by its id."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def _command(pid: int) -> str:
    return _read(pid, "cmdline").replace("\0", " ").strip()


def _environment(pid: int) -> dict[str, str]:
    entries = (entry.partition("=") for entry in _read(pid, "environ").split("\0"))
    return {key: value for key, _, value in entries}


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""
