"""Freeze and thaw around a cut: commands of the operator's that quiet a file system or a database for an instant.

    path                              freeze    cut      thaw     the cut is
    all goes well                     runs      made     runs     as consistent as configured
    freeze fails, or takes too long   runs      made     runs     crash-consistent, and the failure is reported
    the cut fails                     runs      fails    runs     none
    thaw fails, or takes too long     runs      made     fails    as configured; the failure is reported
    freeze or thaw of an earlier      no        made     runs     crash-consistent, and the failure is reported
    round is there still (H3)

Invariants
  H1  Where freeze was started, thaw is run, on every path, also when we are told to stop.
  H2  No command is waited for beyond its time limit: its whole process group is killed, and waited for, but not for
      ever. What is stuck in the kernel (a file system whose disk doesn't answer) is told, and left.
  H3  While a command is stuck it isn't begun again, and nothing is frozen: there is at most one of each. Thaw is run
      each round all the same, so that a freeze which takes hold after all doesn't last.

A machine that dies between freeze and thaw has thawed by dying; an agent that is killed there leaves the volume frozen
until its successor's first round thaws it: thaw is also run once at the start.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replicator.history.points import Consistency

if TYPE_CHECKING:
    from subprocess import Popen

OUTPUT_BYTES_MAX = 4096
"""Of what a failing command printed, for the message."""

KILLED_LIMIT_S = 5.0
"""How long what was killed may take to end: it takes milliseconds, or as long as the kernel waits for a disk."""

_stuck: dict[tuple[str, ...], Popen[bytes]] = {}
"""What was killed and is there still: one a command (H3), and reaped when somebody looks."""


def kill_group(pid: int) -> None:
    """Kill the process group of that session leader, if it is there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a command that took too long is ended, and how long that may take."""

    kill: Callable[[int], None] = kill_group
    limit_s: float = KILLED_LIMIT_S


@dataclass(frozen=True, slots=True)
class Hooks:
    """The commands, each an argument vector (empty: none), and how long each may take."""

    freeze: tuple[str, ...] = ()
    thaw: tuple[str, ...] = ()
    limit_s: float = 10.0
    consistency: Consistency = Consistency.FILESYSTEM
    ending: Ending = Ending()

    @contextmanager
    def frozen(self, report: Callable[[str], None]) -> Iterator[Consistency]:
        """Frozen while the block lasts; gives what the cut is worth, and tells `report` what failed (H1)."""
        if not self.freeze:
            yield Consistency.CRASH
            return
        try:
            failed = stuck_reason(self.thaw) or run_limited(self.freeze, self.limit_s, self.ending)
            if failed:
                report(f"freeze: {failed}; the cut is crash-consistent")
            yield Consistency.CRASH if failed else self.consistency
        finally:
            self.thaw_now(report)

    def thaw_now(self, report: Callable[[str], None]) -> None:
        """Run thaw, if there is one."""
        failed = run_limited(self.thaw, self.limit_s, self.ending) if self.thaw else None
        if failed:
            report(f"thaw: {failed}")


def run_limited(command: tuple[str, ...], limit_s: float, ending: Ending | None = None) -> str | None:
    """Run `command`, at most so long (H2), unless it is stuck (H3); what went wrong, or None."""
    import subprocess

    if (reason := stuck_reason(command)) is not None:
        return reason
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
    try:
        output, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        ended = _ended(process, command, ending or Ending())
        return f"{command[0]} took longer than {limit_s:g} s" + (
            "" if ended else f", and can't be ended {_id(process)}"
        )
    except BaseException:
        _ended(process, command, ending or Ending())
        raise
    if process.returncode == 0:
        return None
    said = output[-OUTPUT_BYTES_MAX:].decode(errors="replace").strip()
    return f"{command[0]} ended with {process.returncode}" + (f": {said}" if said else "")


def stuck_reason(command: tuple[str, ...]) -> str | None:
    """Why `command` isn't to be begun: it was killed, and is there still (H3)."""
    process = _stuck.get(command)
    if process is None:
        return None
    if process.poll() is None:
        return f"{command[0]} is still there {_id(process)}, and isn't begun again"
    _stuck.pop(command, None)
    return None


def _ended(process: Popen[bytes], command: tuple[str, ...], ending: Ending) -> bool:
    """Kill it; whether it ended (H2)."""
    from subprocess import TimeoutExpired

    ending.kill(process.pid)
    if process.stdout is not None:
        process.stdout.close()
    try:
        process.wait(ending.limit_s)
    except TimeoutExpired:
        _stuck[command] = process
        return False
    return True


def _id(process: Popen[bytes]) -> str:
    return f"(process {process.pid})"
