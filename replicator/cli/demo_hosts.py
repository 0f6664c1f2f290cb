"""Source and replica host of `replicator demo`, as processes on this machine: started, asked, killed and ended by id.

Used by the demo, and by the test that runs the main job for a minute. Everything lies in one folder; the daemons
register there as well, so that they are in nobody's way. What a killed agent or receiver leaves running (its exporter)
is ended with the `processes` stack.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from replicator.errors import ReplicatorError

SETTLE_S = 90.0
_POLL_S = 0.1


class Hosts:
    """Pools, log and daemons in the folder `here`; `log` names a log that lies elsewhere."""

    def __init__(self, here: Path, processes: ExitStack, log: str = "") -> None:
        self.here = here
        self.source, self.replica, self.log = here / "source", here / "replica", here / "log"
        self.log_url = log or str(self.log)
        self.socket = here / "nbd.sock"
        self._processes = processes
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._environment = {**os.environ, "REPLICATOR_RUNTIME_DIR": str(here / "run")}
        (here / "run").mkdir()

    def make_pools(self, image: Path, size: str) -> None:
        """Two pools of `size`; `image` becomes the volume vm1 of the source."""
        self.command("pool", "create", str(self.source), "--size", size)
        self.command("volume", "import", str(self.source), "vm1", str(image))
        self.command("pool", "create", str(self.replica), "--size", size)

    def _argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "replicator.cli.main", *arguments]

    def command(self, *arguments: str) -> str:
        """What `replicator ARGUMENTS` prints; ReplicatorError with what it says when it fails."""
        argv = self._argv(*arguments)
        done = subprocess.run(argv, check=False, capture_output=True, text=True, env=self._environment)
        if done.returncode:
            said = done.stderr.strip() or done.stdout.strip()
            raise ReplicatorError(f"replicator {' '.join(arguments)} ended with {done.returncode}: {said}")
        return done.stdout

    def _spawn(self, name: str, *arguments: str) -> None:
        with (self.here / f"{name}.log").open("ab") as log:
            daemon = subprocess.Popen(self._argv(*arguments), stdout=log, stderr=log, env=self._environment)
        self._daemons[name] = daemon
        self._processes.callback(_end, daemon)

    def start_agent(self) -> dict[str, Any]:
        """Run it, and return its status once it answers."""
        address = f"unix:{self.socket}"
        self._spawn("agent", "agent", "run", str(self.source), "--log", self.log_url, "--listen", address)
        return self._until_answering("agent")

    def start_receiver(self) -> dict[str, Any]:
        """Run it, and return its status once it answers."""
        self._spawn("receiver", "receiver", "run", str(self.replica), "--log", self.log_url)
        return self._until_answering("receiver")

    def _until_answering(self, kind: str) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def answers() -> bool:
            if self._daemons[kind].poll() is not None:
                raise ReplicatorError(f"the {kind} ended; see {self.here / kind}.log")
            found.update(self.status(kind) or {})
            return bool(found.get("exporter_pid")) and (kind != "agent" or self.socket.exists())

        self.wait_for(f"the {kind}", answers)
        self._processes.callback(_end_pid, found["exporter_pid"])
        return found

    def status(self, kind: str) -> dict[str, Any] | None:
        """The daemon's own report, or None when it doesn't answer."""
        pool = self.source if kind == "agent" else self.replica
        argv = self._argv(kind, "status", str(pool), "--json")
        done = subprocess.run(argv, check=False, capture_output=True, text=True, env=self._environment)
        try:
            found = json.loads(done.stdout)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def wait_for(self, what: str, there: Callable[[], bool]) -> None:
        """Until `there()`; ReplicatorError after a while."""
        until = time.monotonic() + SETTLE_S
        while not there():
            if time.monotonic() > until:
                raise ReplicatorError(f"waited {SETTLE_S:.0f} s for {what}; see the logs in {self.here} (--keep)")
            time.sleep(_POLL_S)

    def points(self) -> list[dict[str, Any]]:
        """The replica's restore points, oldest first."""
        found = json.loads(self.command("points", "list", str(self.replica), "--json", "--all"))
        return sorted(found, key=lambda point: int(point["number"]))

    def publish_label(self, label: str) -> None:
        """A cut now, with this label, and wait until the receiver has it."""
        self.command("agent", "snapshot", str(self.source), "--label", label, "--json")
        self.wait_for("the receiver to have everything", lambda: any(label in p["labels"] for p in self.points()))

    # -- killing and stopping ----------------------------------------------------------------------------------

    def kill(self, name: str) -> None:
        """SIGKILL to the agent's (the publisher's) or the receiver's own process; its exporter stays."""
        self._daemons[name].kill()
        self._daemons[name].wait()

    def exporter_pid(self, kind: str) -> int:
        """The process that has the daemon's pool open."""
        pid = (self.status(kind) or {}).get("exporter_pid")
        if not isinstance(pid, int) or pid <= 1:
            raise ReplicatorError(f"the {kind} doesn't know its exporter")
        return pid

    def kill_exporter(self, kind: str, pid: int) -> None:
        """SIGKILL to the process that has the pool open."""
        os.kill(pid, signal.SIGKILL)

    def await_new_exporter(self, kind: str, before: int) -> int:
        """The pid of the exporter that the daemon started after `before` died."""
        found = [0]

        def there() -> bool:
            pid = (self.status(kind) or {}).get("exporter_pid")
            found[0] = pid if isinstance(pid, int) and pid not in (before, 0) else 0
            return bool(found[0])

        self.wait_for(f"the {kind} to start another exporter", there)
        self._processes.callback(_end_pid, found[0])
        return found[0]

    def stop(self) -> None:
        """End both daemons as a user would; they end the exporters that they started."""
        self.command("agent", "stop", str(self.source))
        self.command("receiver", "stop", str(self.replica))
        for daemon in self._daemons.values():
            daemon.wait(SETTLE_S)


def _end(daemon: subprocess.Popen[bytes]) -> None:
    if daemon.poll() is None:
        daemon.kill()
        daemon.wait()


def _end_pid(pid: int) -> None:
    """End an exporter that its starter left behind; most have ended by then, and a pid that is gone is no error."""
    try:
        if b"replicator.cli.main" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    except OSError:
        return
