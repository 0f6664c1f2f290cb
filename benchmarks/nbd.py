"""NBD: our exporter beside nbdkit's file plugin, qemu-nbd on a raw file, and qemu-nbd on qcow2 with a backing file.

    python benchmarks/nbd.py [--rounds 3] [--seconds 2] [--size-mib 512] [--folder DIR] [--cuts] [JOB ...]

Every server has a disk of its own of the same size, filled through NBD in 64 KiB pieces, all warm, and a Unix socket.
The client is benchmarks/_nbd_load.py, the same for all; servers take turns within a round, and the order changes with
the round. Printed for each job: our operations a second and our CPU microseconds an operation (/proc/PID/stat); then,
for each other server, the median of the rounds' ratios, ours ÷ theirs (above 1 we are faster), and its CPU. `first
touch` and `cow break` begin each round with a fresh volume or overlay, and write 4 KiB of every second 64 KiB block,
in random order; before each run the page cache takes and gives back more memory than it needs, since a virtual machine
gets new memory slowly.

With --cuts ours is the exporter of an agent that cuts each second and publishes to a log in a directory, while another
client writes 500 times a second, 4 KiB each, to the same volume: so every job goes on beside cuts, COW breaks and the
publisher's work on the same cores. The others serve as before, with nothing beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import _ground
from replicator.cli.demo_hosts import Hosts
from tests.support import servers
from tests.support.exporting import Child, Setup, exporting
from tests.support.judges import nbd_tool

MIB = 1 << 20
LOAD = Path(__file__).with_name("_nbd_load.py")
TICKS = os.sysconf("SC_CLK_TCK")
BESIDE_RATE, BESIDE_DEPTH = 500, 16
OURS, NBDKIT, RAW, QCOW2 = "replicator", "nbdkit file", "qemu-nbd raw", "qcow2 + backing"


@dataclass(frozen=True, slots=True)
class Job:
    """One pattern; `fresh` says what each round begins with."""

    name: str
    command: str
    block: int
    depth: int
    pattern: str = "random"
    flush_every: int = 0
    fresh: str = ""


JOBS = (
    Job("random read 4k, depth 32", "read", 4096, 32),
    Job("random write 4k, depth 32", "write", 4096, 32),
    Job("random read 64k, depth 32", "read", 65536, 32),
    Job("random write 64k, depth 32", "write", 65536, 32),
    Job("random read 4k, depth 1", "read", 4096, 1),
    Job("random write 4k, depth 1", "write", 4096, 1),
    Job("random read 64k, depth 1", "read", 65536, 1),
    Job("random write 64k, depth 1", "write", 65536, 1),
    Job("sequential read 256k, depth 8", "read", 262144, 8, "sequential"),
    Job("sequential write 256k, depth 8", "write", 262144, 8, "sequential"),
    Job("random write 4k, depth 32, flush every 32", "write", 4096, 32, flush_every=32),
    Job("first touch 4k, depth 32", "write", 4096, 32, fresh="empty"),
    Job("cow break 4k, depth 32", "write", 4096, 32, fresh="snapshot"),
)


@dataclass(slots=True)
class Run:
    """What one server did in one run."""

    operations_a_second: float
    cpu_us: float


@dataclass(slots=True)
class Target:
    """A server that runs: where its disk is, and which process burns the CPU."""

    socket: Path
    export: str
    pid: int

    @property
    def uri(self) -> str:
        """For other people's clients."""
        return f"nbd+unix:///{self.export}?socket={self.socket}"


@dataclass(frozen=True, slots=True)
class Agent:
    """Ours with --cuts: an agent's hosts, and the process that serves its disks."""

    hosts: Hosts
    exporter_pid: int

    @property
    def target(self) -> Target:
        """The volume that it replicates."""
        return Target(self.hosts.socket, _ground.VOLUME, self.exporter_pid)

    def beside_writes(self, size: int, seconds: float) -> contextlib.AbstractContextManager[None]:
        """Another client of the same volume."""
        return _ground.load(self.hosts.socket, size, seconds, BESIDE_RATE, BESIDE_DEPTH, self.hosts.here / "beside.npy")


@dataclass(slots=True)
class Bench:
    """Folders, sizes, and our own server: a child that does nothing else, or an agent's exporter."""

    folder: Path
    size: int
    seconds: float
    child: Child | None = None
    agent: Agent | None = None
    next_device: int = 2
    results: dict[str, dict[str, list[Run]]] = field(default_factory=dict)

    def load(self, target: Target, job: Job) -> Run:
        """One run of the client against one server."""
        argv = [sys.executable, LOAD, target.socket, target.export, job.command, job.block, job.depth]
        argv += [self.size, self.seconds, "once" if job.fresh else job.pattern, job.flush_every]
        before = cpu_seconds(target.pid)
        beside = self.agent and target == self.agent.target and self.agent.beside_writes(self.size, self.seconds)
        with beside or contextlib.nullcontext():
            out = subprocess.run([str(word) for word in argv], check=True, capture_output=True, text=True).stdout
        burnt = cpu_seconds(target.pid) - before
        report = json.loads(out)
        return Run(report["operations"] / report["seconds"], burnt / report["operations"] * 1e6)

    def fill(self, target: Target) -> None:
        """Write all of a disk in 64 KiB pieces."""
        nbd_tool("fio").run(
            "--name=f", "--ioengine=nbd", f"--uri={target.uri}", "--rw=write", "--bs=64k", "--iodepth=8",
            f"--size={self.size}", "--end_fsync=1",
        )  # fmt: skip

    def touch_memory(self) -> None:
        """Have the page cache hold, and give back, twice what a run of small writes to fresh blocks fills."""
        path = self.folder / "passing"
        with path.open("wb") as file:
            for _ in range(self.size // MIB * 2):
                file.write(bytes(MIB))
        path.unlink()

    @contextlib.contextmanager
    def serving(self, name: str, job: Job) -> Iterator[Target]:
        """One of the four with the disk that the job wants."""
        if name == OURS and self.agent:
            yield self.agent.target
            return
        if name == OURS:
            assert self.child
            yield Target(self.folder / "ours.sock", self._ours(job.fresh), self.child.pid)
            return
        socket_path = self.folder / "other.sock"
        socket_path.unlink(missing_ok=True)
        listener = servers.unix_socket(socket_path)
        with self._other(name, job.fresh, listener) as pid:
            yield Target(socket_path, "", pid)

    def _ours(self, fresh: str) -> str:
        export = "vol"
        assert self.child
        if fresh == "empty":
            export = f"fresh{self.next_device}"
            self.child.order("put", name=export, device=self.next_device, size=self.size)
        elif fresh:
            self.child.order("cut", device=1, into=self.next_device, name="")
        self.next_device += bool(fresh)
        return export

    @contextlib.contextmanager
    def _other(self, name: str, fresh: str, listener: socket.socket) -> Iterator[int]:
        log = self.folder / "other.log"
        if name == NBDKIT:
            with servers.nbdkit("file", [str(self.folder / "nbdkit.raw")], listener, log) as process:
                yield process.pid
            return
        image = self.folder / ("qemu.raw" if name == RAW else self._overlay(fresh))
        arguments = ["-f", "raw" if name == RAW else "qcow2", "-t", "-e", "8", str(image)]
        with servers.serving(nbd_tool("qemu-nbd"), arguments, listener, log) as process:
            yield process.pid

    def _overlay(self, fresh: str) -> str:
        """The filled overlay; or a new one over nothing, or over data."""
        if not fresh:
            return "filled.qcow2"
        backing = "empty.raw" if fresh == "empty" else "qemu.raw"
        (self.folder / "fresh.qcow2").unlink(missing_ok=True)
        overlay(self.folder / "fresh.qcow2", self.folder / backing)
        return "fresh.qcow2"


def overlay(path: Path, backing: Path) -> None:
    """A qcow2 image over a raw one."""
    nbd_tool("qemu-img").run("create", "-q", "-f", "qcow2", "-b", backing, "-F", "raw", path)


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has burnt."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def prepare(bench: Bench) -> None:
    """Make and fill every disk."""
    for name in ("nbdkit.raw", "qemu.raw", "empty.raw"):
        with (bench.folder / name).open("wb") as file:
            file.truncate(bench.size)
    overlay(bench.folder / "filled.qcow2", bench.folder / "empty.raw")
    steady = Job("fill", "write", 65536, 8)
    for name in (OURS, NBDKIT, RAW, QCOW2):
        with bench.serving(name, steady) as target:
            bench.fill(target)


def rivals(job: Job) -> Sequence[str]:
    """Whom a job compares: only qcow2 has something to break or to touch first."""
    return (OURS, QCOW2) if job.fresh else (OURS, NBDKIT, RAW, QCOW2)


def measure(bench: Bench, job: Job, rounds: int) -> None:
    """All rounds of one job, and its line."""
    runs: dict[str, list[Run]] = {name: [] for name in rivals(job)}
    for number in range(rounds):
        names = list(runs)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if job.fresh:
                bench.touch_memory()
            with bench.serving(name, job) as target:
                runs[name].append(bench.load(target, job))
    ours = runs[OURS]
    cells = [f"{statistics.median(run.operations_a_second for run in ours):>9.0f}"]
    cells.append(f"{statistics.median(run.cpu_us for run in ours):>7.1f}")
    for name in (NBDKIT, RAW, QCOW2):
        if name not in runs:
            cells.append(f"{'-':>16}")
            continue
        pairs = zip(ours, runs[name], strict=True)
        ratio = statistics.median(mine.operations_a_second / other.operations_a_second for mine, other in pairs)
        cells.append(f"{ratio:>7.2f} ({statistics.median(run.cpu_us for run in runs[name]):>5.1f} µs)")
    print(f"{job.name:<42}", *cells, flush=True)


def start_child(folder: Path, size: int, rounds: int, processes: contextlib.ExitStack) -> Child:
    """Our exporter alone, with room for each round's fresh volumes."""
    setup = Setup(
        listen=(f"unix:{folder / 'ours.sock'}",),
        volumes={"vol": size},
        data_bytes=size * (3 + 2 * rounds),
        metadata_bytes=64 * MIB,
    )
    return processes.enter_context(exporting(folder / "pool", setup))


def start_agent(folder: Path, size: int, processes: contextlib.ExitStack) -> Agent:
    """An agent at work, interval 1 s, over a log in a directory."""
    hosts = Hosts(folder, processes)
    _ground.make_pool(hosts.source, size, 2 * size)
    found = hosts.start_agent()
    return Agent(hosts, found["exporter_pid"])


def main() -> None:
    """Measure the jobs named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", help="parts of names of jobs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--size-mib", type=int, default=512)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--cuts", action="store_true", help="ours beside a cut each second and the publisher at work")
    given = parser.parse_args()
    chosen = [job for job in JOBS if not given.jobs or any(part in job.name for part in given.jobs)]
    size = given.size_mib * MIB
    with tempfile.TemporaryDirectory(dir=given.folder) as name, contextlib.ExitStack() as processes:
        bench = Bench(Path(name), size, given.seconds)
        if given.cuts:
            chosen = [job for job in chosen if not job.fresh]
            bench.agent = start_agent(bench.folder, size, processes)
        else:
            bench.child = start_child(bench.folder, size, given.rounds, processes)
        prepare(bench)
        print(f"{'':<42} {'ours/s':>9} {'µs CPU':>7} {'÷ nbdkit':>16} {'÷ qemu raw':>16} {'÷ qcow2':>16}")
        for job in chosen:
            measure(bench, job, given.rounds)


if __name__ == "__main__":
    main()
