"""Exporters that start at once: forked from a process that has imported all they need, so that many can be killed.

    python -m tests.support.forked_exporters POOL ADDRESS

reads orders, a line each, and answers each with a line. What it forks runs replicator/exporter/process.serve.

    start    fork an exporter of POOL at ADDRESS           "ready PID" once it serves, or "failed …"
    reap     wait until the exporter is dead               "dead SIGNAL" (0: it ended by itself)

At the end of its input it ends the exporter, if there is one, by its id.

Invariant X1: at most one exporter; the child of `exporters` has ended, and so has its own, when the block is left.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replicator.exporter.process import ExporterSettings, serve
from replicator.pool.control_values import ListenAsked

ROOT = Path(__file__).resolve().parents[2]
END_S = 60.0


class Exporters:
    """The far end of the orders."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self) -> int:
        """Another exporter; its pid."""
        word, _, rest = self._order("start").partition(" ")
        assert word == "ready", rest
        return int(rest)

    def kill(self, pid: int) -> None:
        """SIGKILL, and wait until it is gone."""
        os.kill(pid, signal.SIGKILL)
        self.reap(signal.SIGKILL)

    def stop(self, pid: int) -> None:
        """A clean end."""
        os.kill(pid, signal.SIGTERM)
        self.reap(0)

    def reap(self, expected: int) -> None:
        """Wait until it is dead, of this signal."""
        answer = self._order("reap")
        assert answer == f"dead {int(expected)}", answer

    def _order(self, order: str) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()


@contextmanager
def exporters(pool: Path, address: str) -> Iterator[Exporters]:
    """Exporters of `pool` at `address`, started by order; what they log is in POOL.log (X1)."""
    argv = [sys.executable, "-m", "tests.support.forked_exporters", str(pool), address]
    with pool.with_name(f"{pool.name}.log").open("ab") as log:
        process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    with process:
        yield Exporters(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(END_S) == 0, pool.with_name(f"{pool.name}.log").read_text()


def _serve_forked(pool: Path, address: str) -> int:
    """Fork; in the child serve, telling the parent when it does. Returns the child's pid."""
    receiving, sending = os.pipe()
    pid = os.fork()
    if pid:
        os.close(sending)
        with os.fdopen(receiving) as said:
            print(said.readline().strip() or "failed: it ended", flush=True)
        return pid
    os.close(receiving)
    status = 1
    try:
        settings = ExporterSettings((ListenAsked(address),))
        serve(pool, settings, lambda _: _tell(sending, f"ready {os.getpid()}"))
        status = 0
    except BaseException as error:  # noqa: BLE001 - told to the test, which fails with it
        _tell(sending, f"failed: {type(error).__name__}: {error}")
    os._exit(status)


def _tell(descriptor: int, text: str) -> None:
    os.write(descriptor, f"{text}\n".encode())
    os.close(descriptor)


def _main(pool: Path, address: str) -> None:
    pid = 0
    for line in sys.stdin:
        if line == "start\n":
            pid = _serve_forked(pool, address)
        else:
            _, status = os.waitpid(pid, 0)
            pid = 0
            print(f"dead {status & 0x7F}", flush=True)
    if pid:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2])
