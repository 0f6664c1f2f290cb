"""`replicator demo`: the whole way on this machine, with real data, in about a minute; it needs disk space only.

    image → pool → exporter ← writer        source host    (agent run)
                     └ cut every second → diff → events → directory log
                                                            └ receiver run → replica pool → restore points
    killed in the middle, once each: receiver, publisher, exporter; then three points are restored and proven

Everything lives in one temporary folder, removed at the end (`--keep` leaves it), and every process is ended by its id.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from replicator.errors import ReplicatorError

_VOLUME_BYTES = 128 << 20
_DATABASE_BYTES = 24 << 20
_PAGE = 4096
_MARK = b"REPLICATOR-DEMO-PAGE-"
_SETTLE_S = 60.0
_POLL_S = 0.1


@click.command()
@click.option("--seconds", default=20.0, show_default=True, help="How long the writer writes.")
@click.option("--keep", is_flag=True, help="Leave the folder with pools, log and images.")
@click.option("--folder", type=click.Path(path_type=Path), help="Work in this new folder instead of a temporary one.")
def demo(seconds: float, keep: bool, folder: Path | None) -> int:
    """Show the whole way on this machine: replicate a live volume, kill everything once, restore, prove.

    \b
    replicator demo
    replicator demo --seconds 60 --keep
    """
    with _folder(folder, keep) as here, ExitStack() as processes:
        return 0 if Demo(here, processes).run(seconds) else 1


@contextmanager
def _folder(folder: Path | None, keep: bool) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True)
    here = folder or Path(tempfile.mkdtemp(prefix="replicator-demo-"))
    try:
        yield here
    finally:
        if keep:
            click.echo(f"kept: {here}")
        else:
            shutil.rmtree(here, ignore_errors=True)


class Demo:
    """One run in the folder `here`; `processes` ends what it starts."""

    def __init__(self, here: Path, processes: ExitStack) -> None:
        self.here = here
        self._processes = processes
        self.source, self.replica, self.log = here / "source", here / "replica", here / "log"
        self.image = here / "before.img"
        self.socket = here / "nbd.sock"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._began = time.monotonic()
        self._environment = {**os.environ, "REPLICATOR_RUNTIME_DIR": str(here / "run")}
        (here / "run").mkdir()

    def say(self, text: str) -> None:
        """One line of the story, with the time since it began."""
        click.echo(f"{time.monotonic() - self._began:5.1f} s  {text}")

    def run(self, seconds: float) -> bool:
        """The story; True when every point was proven."""
        from replicator.cli.demo_writer import Writer

        region = self._make_image()
        self._make_pools()
        self._start_agent()
        self._start_receiver()
        writer = Writer(f"nbd+unix:///vm1?socket={self.socket}", region, self.image)
        writer.start()
        self.say(f"a client writes into the file's blocks over NBD, for {seconds:.0f} s, {len(region)} pages of them")
        self._kill_each(seconds)
        writer.stop()
        self.say("the client has stopped; the last cut goes over the log")
        self._cli("agent", "snapshot", str(self.source), "--label", "end", "--json")
        self._await("the receiver to have everything", lambda: self._has_label("end"))
        points = self._points()
        proven = self._restore_three(points, writer)
        self._tell_figures(writer.figures, points)
        self._stop_all()
        return proven

    # -- before ------------------------------------------------------------------------------------------------

    def _make_image(self) -> list[int]:
        """An image with a file system and a `database` in it (or a patterned one); the database's pages."""
        pages = _DATABASE_BYTES // _PAGE
        database = self.here / "files" / "database"
        database.parent.mkdir()
        with database.open("wb") as file:
            for number in range(pages):
                file.write((_MARK + f"{number:010}".encode()).ljust(_PAGE, b"."))
        for name in ("replicator", "agent", "receiver"):
            package = Path(__file__).parents[1].parent / name
            if package.is_dir():
                shutil.copytree(package, database.parent / name, ignore=shutil.ignore_patterns("__pycache__"))
        make = shutil.which("mkfs.ext4") or shutil.which("mkfs.ext4", path="/usr/sbin:/sbin")
        with self.image.open("wb") as file:
            file.truncate(_VOLUME_BYTES)
        if make:
            argv = [make, "-q", "-F", "-b", str(_PAGE), "-d", str(database.parent), str(self.image)]
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            self.say(f"made an ext4 image of {_VOLUME_BYTES >> 20} MiB with real files in it")
        else:
            with self.image.open("r+b") as file:
                file.seek(1 << 20)
                file.write(database.read_bytes())
            self.say(f"made a patterned image of {_VOLUME_BYTES >> 20} MiB (there is no mkfs.ext4 here)")
        shutil.rmtree(database.parent)
        return self._find_pages()

    def _find_pages(self) -> list[int]:
        found = []
        with self.image.open("rb") as file:
            for number in range(_VOLUME_BYTES // _PAGE):
                if file.read(_PAGE).startswith(_MARK):
                    found.append(number)
        if len(found) < _DATABASE_BYTES // _PAGE // 2:
            raise ReplicatorError("the file's blocks weren't found in the image")
        return found

    def _make_pools(self) -> None:
        self._cli("pool", "create", str(self.source), "--size", "1GiB")
        self._cli("volume", "import", str(self.source), "vm1", str(self.image))
        self._cli("pool", "create", str(self.replica), "--size", "1GiB")
        self.say("made two thin pools, and imported the image into one of them as the volume vm1")

    # -- processes ---------------------------------------------------------------------------------------------

    def _argv(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "replicator.cli.main", *arguments]

    def _cli(self, *arguments: str) -> str:
        done = subprocess.run(
            self._argv(*arguments), check=False, capture_output=True, text=True, env=self._environment
        )
        if done.returncode:
            said = done.stderr.strip() or done.stdout.strip()
            raise ReplicatorError(f"replicator {' '.join(arguments)} ended with {done.returncode}: {said}")
        return done.stdout

    def _spawn(self, name: str, *arguments: str) -> None:
        with (self.here / f"{name}.log").open("ab") as log:
            daemon = subprocess.Popen(self._argv(*arguments), stdout=log, stderr=log, env=self._environment)
        self._daemons[name] = daemon
        self._processes.callback(_end, daemon)

    def _start_agent(self) -> None:
        address = f"unix:{self.socket}"
        self._spawn("agent", "agent", "run", str(self.source), "--log", str(self.log), "--listen", address)
        self._await("the agent", lambda: self.socket.exists() and self._status("agent", self.source) is not None)
        status = self._status("agent", self.source) or {}
        self._processes.callback(_end_pid, status.get("exporter_pid"))
        self.say(f"agent: pid {status.get('pid')}, its exporter {status.get('exporter_pid')} serves the disk")

    def _start_receiver(self) -> None:
        self._spawn("receiver", "receiver", "run", str(self.replica), "--log", str(self.log))
        self._await("the receiver", lambda: self._status("receiver", self.replica) is not None)
        status = self._status("receiver", self.replica) or {}
        self._processes.callback(_end_pid, status.get("exporter_pid"))
        self.say(f"receiver: pid {status.get('pid')} follows the log {self.log.name}/")

    def _status(self, kind: str, pool: Path) -> dict[str, Any] | None:
        argv = self._argv(kind, "status", str(pool), "--json")
        done = subprocess.run(argv, check=False, capture_output=True, text=True, env=self._environment)
        try:
            found = json.loads(done.stdout)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def _await(self, what: str, there: Callable[[], bool]) -> None:
        until = time.monotonic() + _SETTLE_S
        while not there():
            if time.monotonic() > until:
                raise ReplicatorError(f"waited {_SETTLE_S:.0f} s for {what}; see the logs in {self.here} (--keep)")
            time.sleep(_POLL_S)

    # -- in the middle -----------------------------------------------------------------------------------------

    def _kill_each(self, seconds: float) -> None:
        pause = seconds / 4
        for name, act in (
            ("receiver", self._kill_receiver),
            ("publisher", self._kill_publisher),
            ("exporter", self._kill_exporter),
        ):
            time.sleep(pause)
            self._tell_status()
            self.say(f"kill -9: the {name}")
            act()
        time.sleep(pause)
        self._tell_status()

    def _tell_status(self) -> None:
        for kind, pool in (("agent", self.source), ("receiver", self.replica)):
            status = self._status(kind, pool) or {}
            self.say(f"  {kind} status: {status.get('headline', 'no answer')}")

    def _kill_receiver(self) -> None:
        self._kill("receiver")
        self._start_receiver()

    def _kill_publisher(self) -> None:
        self._kill("agent")
        self._start_agent()

    def _kill_exporter(self) -> None:
        before = (self._status("agent", self.source) or {}).get("exporter_pid")
        if not isinstance(before, int):
            raise ReplicatorError("the agent doesn't know its exporter")
        os.kill(before, signal.SIGKILL)
        self._await(
            "the agent to start another exporter",
            lambda: (self._status("agent", self.source) or {}).get("exporter_pid") not in (before, None, 0),
        )
        status = self._status("agent", self.source) or {}
        self._processes.callback(_end_pid, status.get("exporter_pid"))
        self.say(f"  the agent started another exporter, {status.get('exporter_pid')}; the client reconnected")

    def _kill(self, name: str) -> None:
        self._daemons[name].kill()
        self._daemons[name].wait()

    # -- afterwards --------------------------------------------------------------------------------------------

    def _points(self) -> list[dict[str, Any]]:
        found = json.loads(self._cli("points", "list", str(self.replica), "vm1", "--json", "--all"))
        return sorted(found, key=lambda point: point["number"])

    def _has_label(self, label: str) -> bool:
        return any(label in point["labels"] for point in self._points())

    def _restore_three(self, points: list[dict[str, Any]], writer: Any) -> bool:
        chosen = [points[len(points) // 3], points[2 * len(points) // 3], points[-1]]
        proven = True
        for place, point in enumerate(chosen):
            source = self.log if place == 1 else self.replica
            target = self.here / f"restored-{point['number']}.img"
            self._cli("restore", str(source), f"vm1@{point['number']}", "--to", str(target))
            proof = writer.prove(target)
            how = "from the log alone" if source is self.log else _how(point)
            verdict = "is exactly what the writer knew" if proof.ok else f"IS WRONG: {proof.why}"
            self.say(
                f"restored vm1@{point['number']} {how}: sha256 {proof.sha256[:16]}…, round {proof.round_}, {verdict}"
            )
            proven = proven and proof.ok
            self._check_files(target)
            target.unlink()
        return proven

    def _check_files(self, image: Path) -> None:
        fsck = shutil.which("e2fsck") or shutil.which("e2fsck", path="/usr/sbin:/sbin")
        if fsck and shutil.which("mkfs.ext4", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin"):
            done = subprocess.run([fsck, "-fn", str(image)], check=False, capture_output=True, text=True)
            self.say(f"  e2fsck -fn: {'clean' if done.returncode == 0 else 'exit ' + str(done.returncode)}")

    def _tell_figures(self, figures: Any, points: list[dict[str, Any]]) -> None:
        changed = figures.answered * _PAGE
        stored = sum(file.stat().st_size for file in self.log.rglob("*") if file.is_file())
        waits = sorted(figures.waits_s)
        agent = self._status("agent", self.source) or {}
        click.echo("")
        click.echo(f"writes answered        {figures.answered} ({changed / 2**20:.1f} MiB), none lost, none sent twice")
        click.echo(
            f"connection lost        {figures.reconnected} times, with {figures.in_flight_at_loss} writes in flight"
        )
        click.echo(f"restore points         {len(points)}, {sum(bool(p['materialised']) for p in points)} as snapshots")
        click.echo(
            f"over the log           {stored / 2**20:.1f} MiB, the image's own {_VOLUME_BYTES >> 20} MiB included"
        )
        click.echo(
            f"a round of writes      median {waits[len(waits) // 2] * 1000:.1f} ms, p99 "
            f"{waits[len(waits) * 99 // 100] * 1000:.1f} ms, longest {waits[-1] * 1000:.0f} ms (a kill)"
        )
        for name, value in agent.get("figures", {}).items():
            click.echo(f"{name:22} {value}")

    def _stop_all(self) -> None:
        self._cli("agent", "stop", str(self.source))
        self._cli("receiver", "stop", str(self.replica))
        for daemon in self._daemons.values():
            daemon.wait(_SETTLE_S)
        self.say("stopped everything")


def _how(point: dict[str, Any]) -> str:
    return "from its snapshot" if point["materialised"] else "from an earlier snapshot and the log"


def _end(daemon: subprocess.Popen[bytes]) -> None:
    if daemon.poll() is None:
        daemon.kill()
        daemon.wait()


def _end_pid(pid: object) -> None:
    """End an exporter that its starter left behind; by then most have ended, and a pid that is gone is no error."""
    if isinstance(pid, int) and pid > 1 and _is_ours(pid):
        os.kill(pid, signal.SIGKILL)


def _is_ours(pid: int) -> bool:
    try:
        return b"replicator.cli.main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
