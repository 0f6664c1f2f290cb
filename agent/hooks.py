"""Freeze and thaw around a cut: commands of the operator's that quiet a file system or a database for an instant.

    path                              freeze    cut      thaw     the cut is
    all goes well                     runs      made     runs     as consistent as configured
    freeze fails, or takes too long   runs      made     runs     crash-consistent, and the failure is reported
    the cut fails                     runs      fails    runs     none
    thaw fails, or takes too long     runs      made     fails    as configured; the failure is reported

Invariants
  H1  Where freeze was started, thaw is run, on every path, also when we are told to stop.
  H2  Neither command outlives its time limit: its whole process group is killed, and waited for.

A machine that dies between freeze and thaw has thawed by dying; an agent that is killed there leaves the volume frozen
until its successor's first round thaws it: thaw is also run once at the start.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from replicator.history.points import Consistency

OUTPUT_BYTES_MAX = 4096
"""Of what a failing command printed, for the message."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """The commands, each an argument vector (empty: none), and how long each may take."""

    freeze: tuple[str, ...] = ()
    thaw: tuple[str, ...] = ()
    limit_s: float = 10.0
    consistency: Consistency = Consistency.FILESYSTEM

    @contextmanager
    def frozen(self, report: Callable[[str], None]) -> Iterator[Consistency]:
        """Frozen while the block lasts; gives what the cut is worth, and tells `report` what failed (H1)."""
        if not self.freeze:
            yield Consistency.CRASH
            return
        try:
            failed = run_limited(self.freeze, self.limit_s)
            if failed:
                report(f"freeze: {failed}; the cut is crash-consistent")
            yield Consistency.CRASH if failed else self.consistency
        finally:
            self.thaw_now(report)

    def thaw_now(self, report: Callable[[str], None]) -> None:
        """Run thaw, if there is one."""
        failed = run_limited(self.thaw, self.limit_s) if self.thaw else None
        if failed:
            report(f"thaw: {failed}")


def run_limited(command: Sequence[str], limit_s: float) -> str | None:
    """Run `command`, at most so long (H2); what went wrong, or None."""
    import subprocess

    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return f"{command[0]}: {error.strerror or error}"
    with process:
        try:
            output, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            _kill_group(process.pid)
            process.wait()
            return f"{command[0]} took longer than {limit_s:g} s"
        except BaseException:
            _kill_group(process.pid)
            raise
    if process.returncode == 0:
        return None
    said = output[-OUTPUT_BYTES_MAX:].decode(errors="replace").strip()
    return f"{command[0]} ended with {process.returncode}" + (f": {said}" if said else "")


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
