"""How fast the object log publishes, against what lies below it: a plain file, obstore's puts, `cat` through ssh.

    python benchmarks/object_stores.py [--segments 3] [--rounds 5] [--folder DIR]

One volume's transactions of 61 MiB that don't compress, a segment each, sealed beforehand. Published by a log's writer,
checked and indexed as always, and paired in turn with the same bytes in the plainest way:

    directory   a file for each segment: written in the same pieces, fsync, link, fsync of the folder
    s3          obstore's put of each segment, one after another, to the same server (versitygw on the loopback)
    ssh         `cat > FILE` through the same ssh, once as it is, once with `sync FILE` behind it, as a log must

Printed: MiB/s of each, and the median of the rounds' ratios, ours through theirs. Connections stand before the clock
runs. Then the way back: reading a segment's events, every byte checked, against `cat FILE` through the same ssh.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import obstore

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from replicator.events.codec import Event
from replicator.log.interface import Appended, Log
from replicator.log.object_log import directory_log
from replicator.log.opening import open_log
from replicator.log.s3_opening import open_bucket
from replicator.log.s3_url import parse_object_url
from replicator.units import CHUNK_BYTES, MIB
from tests.support.event_streams import VOLUME, Script, written
from tests.support.judges import why_missing
from tests.support.s3_server import S3Server, running_s3
from tests.support.sshd import REPLICATOR, Sshd, running_sshd

EVENTS = 61
CHUNKS = MIB // CHUNK_BYTES
AT_ONCE = 4  # events in one append, as a publisher hands them over


class Load:
    """What is published: the events, and the same as one run of bytes for each segment."""

    def __init__(self, segments: int) -> None:
        script = Script()
        self.opening = script.create().take()
        self.transactions: list[list[Event]] = []
        for i in range(segments):
            script.begin()
            for j in range(EVENTS):
                first = j * CHUNKS
                script.put(written(*range(first, first + CHUNKS), compressible=False))
            script.commit(f"point-{i}")
            self.transactions.append(script.take())
        self.bodies = [b"".join(event.encoded for event in events) for events in self.transactions]
        self.length_mib = sum(map(len, self.bodies)) / MIB

    def publish(self, log: Log) -> Callable[[], None]:
        """Ready to publish; the returned function does it."""
        writer = log.writer(VOLUME, 1)
        assert isinstance(writer.append(writer.state.link, self.opening), Appended)

        def work() -> None:
            for events in self.transactions:
                for at in range(0, len(events), AT_ONCE):
                    outcome = writer.append(writer.state.link, events[at : at + AT_ONCE])
                    assert isinstance(outcome, Appended)
            writer.close()

        return work


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def plain_files(load: Load, folder: Path) -> None:
    """A file for each segment, with the same flushes."""
    folder.mkdir()
    directory = os.open(folder, os.O_RDONLY)
    for i, events in enumerate(load.transactions):
        beside, final = folder / f"{i}.new", folder / f"{i}"
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT)
        for event in events:
            os.writev(descriptor, list(event.parts))
        os.fsync(descriptor)
        os.close(descriptor)
        final.hardlink_to(beside)
        os.fsync(directory)
        beside.unlink()
    os.close(directory)


class Cat:
    """`cat` at the far end, waiting for what comes."""

    def __init__(self, server: Sshd, path: Path, *, synced: bool) -> None:
        sync = f" && sync {shlex.quote(str(path))}" if synced else ""
        line = f"echo ready; cat > {shlex.quote(str(path))}{sync}; echo done"
        argv = [*shlex.split(server.command), "-T", "-p", str(server.port), f"{server.user}@127.0.0.1", line]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._answer("ready")

    def _answer(self, expected: str) -> None:
        assert self._process.stdout is not None
        found = b""
        while not found.endswith(b"\n"):
            found += self._process.stdout.read(100) or b"ended\n"
        assert found.decode().strip() == expected, found

    def send(self, bodies: list[bytes]) -> None:
        """All of it, until the far end has it."""
        assert self._process.stdin is not None
        for body in bodies:
            view = memoryview(body)
            while len(view):
                view = view[os.write(self._process.stdin.fileno(), view[:MIB]) :]
        self._process.stdin.close()
        self._answer("done")
        self._process.wait()


def compare(name: str, load: Load, rounds: int, pair: Callable[[int], tuple[Callable[[], object], ...]]) -> None:
    """Run the pairs in turn, and print them; `pair` gives (theirs, ours) for a round."""
    theirs_s: list[float] = []
    ours_s: list[float] = []
    for i in range(rounds):
        theirs, ours = pair(i)
        order = [(theirs, theirs_s), (ours, ours_s)]
        for work, into in order if i % 2 else reversed(order):
            into.append(seconds(work))
    ratios = [theirs / ours for theirs, ours in zip(theirs_s, ours_s, strict=True)]
    their_rate, our_rate = (load.length_mib / statistics.median(each) for each in (theirs_s, ours_s))
    print(
        f"{name:<34}{their_rate:8.0f}{our_rate:8.0f}"
        f"{statistics.median(ratios):8.2f}   {min(ratios):.2f} to {max(ratios):.2f}",
        flush=True,
    )


def of_directory(load: Load, rounds: int, folder: Path) -> None:
    """Against plain files."""

    def pair(i: int) -> tuple[Callable[[], object], ...]:
        for name in ("files", "log"):
            shutil.rmtree(folder / name, ignore_errors=True)
        os.sync()
        publish = load.publish(directory_log(folder / "log", create=True))
        return lambda: plain_files(load, folder / "files"), publish

    compare("directory: plain files", load, rounds, pair)


def of_s3(load: Load, rounds: int, server: S3Server) -> None:
    """Against obstore's puts."""

    def pair(i: int) -> tuple[Callable[[], object], ...]:
        bucket = open_bucket(parse_object_url(server.url(f"plain{i}")))._bulk
        publish = load.publish(open_log(server.url(f"log{i}"), create=True))

        def puts() -> None:
            for j, body in enumerate(load.bodies):
                obstore.put(bucket, f"segment{j}", body, mode="create", use_multipart=False)

        return puts, publish

    compare("s3: obstore's puts", load, rounds, pair)


def of_ssh(load: Load, rounds: int, server: Sshd, folder: Path) -> None:
    """Against cat through the same ssh."""

    def url(i: int) -> str:
        return f"{server.url(folder / f'log{i}')}?command={quote(REPLICATOR)}&ssh={quote(server.command)}"

    for synced in (False, True):

        def pair(i: int, synced: bool = synced) -> tuple[Callable[[], object], ...]:
            shutil.rmtree(folder / f"log{i}", ignore_errors=True)
            os.sync()
            cat = Cat(server, folder / "cat", synced=synced)
            publish = load.publish(open_log(url(i), create=True))
            return lambda: cat.send(load.bodies), publish

        compare(f"ssh: cat > FILE{' && sync FILE' if synced else ''}", load, rounds, pair)

    def back(i: int) -> tuple[Callable[[], object], ...]:
        argv = [
            *shlex.split(server.command),
            "-p",
            str(server.port),
            f"{server.user}@127.0.0.1",
            f"cat {folder / 'cat'}",
        ]
        log = open_log(url(0))
        reader = log.reader(VOLUME, 1)

        def read() -> None:
            with closing(log):
                assert sum(1 for _ in reader.read(1)) > EVENTS

        return lambda: subprocess.run(argv, stdout=subprocess.DEVNULL, check=True), read

    compare("ssh: cat FILE, reading back", load, rounds, back)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    random.seed(1)
    load = Load(chosen.segments)
    print(f"{chosen.segments} segments of {load.length_mib / chosen.segments:.0f} MiB")
    print(f"{'':<34}{'theirs':>8}{'ours':>8}{'ratio':>8}   (MiB/s; median of {chosen.rounds}, range)")
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        of_directory(load, chosen.rounds, folder)
        if why_missing("versitygw") is None:
            with running_s3(folder / "s3") as s3:
                of_s3(load, chosen.rounds, s3)
        if why_missing("ssh") is None:
            with running_sshd(folder / "sshd") as sshd:
                of_ssh(load, chosen.rounds, sshd, folder)


if __name__ == "__main__":
    main()
