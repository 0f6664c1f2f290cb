"""`replicator demo`: the whole way on this machine, with real data, in about a minute; it needs disk space only.

    image → pool → exporter ← writer        source host    (agent run)
                     └ cut every second → diff → events → directory log
                                                            └ receiver run → replica pool → restore points
    killed in the middle, once each: receiver, publisher, exporter; then three points are restored and proven

Everything lives in one temporary folder, removed at the end (`--keep` leaves it), and every process is ended by its id.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from replicator.cli.demo_hosts import Hosts
from replicator.errors import ReplicatorError

if TYPE_CHECKING:
    from replicator.cli.demo_writer import Figures, Writer

_VOLUME_BYTES = 128 << 20
_DATABASE_BYTES = 24 << 20
_PAGE = 4096
_MARK = b"REPLICATOR-DEMO-PAGE-"


@click.command()
@click.option("--seconds", default=20.0, metavar="SECONDS", show_default=True, help="How long the writer writes.")
@click.option("--keep", is_flag=True, help="Leave the folder with pools, log and images.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    metavar="DIRECTORY",
    help="Work in this new folder instead of a temporary one.",
)
def demo(seconds: float, keep: bool, folder: Path | None) -> int:
    """Show the whole way on this machine: replicate a live volume, kill everything once, restore, prove.

    \b
    replicator demo
    replicator demo --seconds 60 --keep
    """
    with _folder(folder, keep) as here, ExitStack() as processes:
        return 0 if Demo(here, Hosts(here, processes)).run(seconds) else 1


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
    """One run in the folder `here`."""

    def __init__(self, here: Path, hosts: Hosts) -> None:
        self.here, self.hosts = here, hosts
        self.image = here / "before.img"
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """One line of the story, with the time since it began."""
        click.echo(f"{time.monotonic() - self._began:5.1f} s  {text}")

    def run(self, seconds: float) -> bool:
        """The story; True when every point was proven."""
        from replicator.cli.demo_writer import Writer

        hosts = self.hosts
        region = self._make_image()
        hosts.make_pools(self.image, "1GiB")
        self.say("made two thin pools, and imported the image into one of them as the volume vm1")
        self._start_agent()
        self._start_receiver()
        writer = Writer(f"nbd+unix:///vm1?socket={hosts.socket}", region, self.image)
        writer.start()
        self.say(f"a client writes into the database's {len(region)} pages over NBD, for {seconds:.0f} s")
        self._kill_each(seconds)
        writer.stop()
        self.say("the client has stopped; the last cut goes over the log")
        hosts.publish_label("end")
        points = hosts.points()
        proven = self._restore_three(points, writer)
        self._tell_figures(writer.figures, points)
        hosts.stop()
        self.say("stopped everything")
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
        make = _tool("mkfs.ext4")
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

    # -- in the middle -----------------------------------------------------------------------------------------

    def _start_agent(self) -> None:
        status = self.hosts.start_agent()
        self.say(f"agent: pid {status['pid']}; its exporter, {status['exporter_pid']}, serves the disk")

    def _start_receiver(self) -> None:
        status = self.hosts.start_receiver()
        self.say(f"receiver: pid {status['pid']}; it follows the log into the replica pool")

    def _kill_each(self, seconds: float) -> None:
        pause = seconds / 4
        time.sleep(pause)
        self._tell_status()
        self.say("kill -9: the receiver")
        self.hosts.kill("receiver")
        self._start_receiver()
        time.sleep(pause)
        self._tell_status()
        self.say("kill -9: the publisher; the disk stays up")
        self.hosts.kill("agent")
        self._start_agent()
        time.sleep(pause)
        self._tell_status()
        self.say("kill -9: the exporter, with writes in flight")
        before = self.hosts.exporter_pid("agent")
        self.hosts.kill_exporter("agent", before)
        after = self.hosts.await_new_exporter("agent", before)
        self.say(f"  the agent started another one, {after}; the client reconnected")
        time.sleep(pause)
        self._tell_status()

    def _tell_status(self) -> None:
        for kind in ("agent", "receiver"):
            status = self.hosts.status(kind) or {}
            self.say(f"  {kind} status: {status.get('headline', 'no answer')}")

    # -- afterwards --------------------------------------------------------------------------------------------

    def _restore_three(self, points: list[dict[str, Any]], writer: Writer) -> bool:
        hosts, proven = self.hosts, True
        chosen = [points[len(points) // 3], points[2 * len(points) // 3], points[-1]]
        for place, point in enumerate(chosen):
            source = hosts.log if place == 1 else hosts.replica
            target = self.here / f"restored-{point['number']}.img"
            hosts.command("restore", str(source), f"vm1@{point['number']}", "--to", str(target))
            proof = writer.prove(target)
            how = "from the log alone" if place == 1 else _how(point)
            verdict = "exactly what the writer knew" if proof.ok else f"WRONG: {proof.why}"
            self.say(f"restored vm1@{point['number']} {how}: sha256 {proof.sha256[:16]}…, {verdict}")
            proven = proven and proof.ok and self._is_clean(target)
            target.unlink()
        return proven

    def _is_clean(self, image: Path) -> bool:
        fsck, make = _tool("e2fsck"), _tool("mkfs.ext4")
        if not fsck or not make:
            return True
        done = subprocess.run([fsck, "-fn", str(image)], check=False, capture_output=True)
        self.say(f"  e2fsck -fn: {'clean' if done.returncode == 0 else f'exit {done.returncode}'}")
        return done.returncode == 0

    def _tell_figures(self, figures: Figures, points: list[dict[str, Any]]) -> None:
        changed = figures.answered * _PAGE
        files = (file.stat().st_size for file in self.hosts.log.rglob("*") if file.is_file())
        waits = [wait * 1000 for wait in sorted(figures.waits_s)]
        agent = self.hosts.status("agent") or {}
        click.echo("")
        click.echo(f"writes answered   {figures.answered} ({changed / 2**20:.1f} MiB): none lost, none sent twice")
        click.echo(f"connection lost   {figures.reconnected} times, with {figures.in_flight_at_loss} writes in flight")
        click.echo(f"restore points    {len(points)}, {sum(bool(p['materialised']) for p in points)} of them snapshots")
        click.echo(f"over the log      {sum(files) / 2**20:.1f} MiB, the image's first transaction included")
        at = (len(waits) // 2, len(waits) * 99 // 100, -1)
        median, p99, longest = (waits[place] for place in at)
        click.echo(f"round of writes   median {median:.1f} ms, p99 {p99:.1f} ms, longest {longest:.0f} ms (the kill)")
        for name, value in agent.get("figures", {}).items():
            click.echo(f"{name:17} {value}")


def _how(point: dict[str, Any]) -> str:
    return "from its snapshot" if point["materialised"] else "from what the pool holds and the log"


def _tool(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
