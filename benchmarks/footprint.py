"""What runs takes: memory of exporter and publisher with 1 TiB wholly mapped, and the start-up of the command.

    python benchmarks/footprint.py [--seconds 15] [--folder DIR]

A volume of 1 TiB is published empty, then mapped whole (its data file is sparse, so that it reads as before), and then
an agent with an exporter serves and publishes it, while a client writes 4 KiB at random, 500 a second. Memory is PSS
(each shared page is shared out) of both processes, asked twice a second: the largest. Start-up is the median of
`--starts` runs of `replicator --help`, beside an interpreter that does nothing, in turn.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._ground import keep_bytecode, load, make_pool, map_whole, percentiles_ms, read_load, replicator
from replicator.cli.demo_hosts import Hosts
from replicator.units import GIB, MIB, TIB

DEPTH = 16
RATE = 500.0
ROOM_BYTES = 64 * GIB


def pss_bytes(pid: int) -> int:
    """A process's proportional share of memory."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def measure_memory(folder: Path, seconds: float) -> None:
    """Exporter and publisher at work on a terabyte."""
    with ExitStack() as processes:
        hosts = Hosts(folder, processes)
        make_pool(hosts.source, TIB, ROOM_BYTES)
        hosts.command("agent", "publish", str(hosts.source), "--log", str(hosts.log))
        map_whole(hosts.source)
        status = hosts.start_agent()
        pids = {"publisher": status["pid"], "exporter": status["exporter_pid"]}
        idle = {name: pss_bytes(pid) for name, pid in pids.items()}
        most = dict(idle)
        out = folder / "writes.npy"
        with load(hosts.socket, TIB, seconds, RATE, DEPTH, out):
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                time.sleep(0.5)
                most = {name: max(most[name], pss_bytes(pid)) for name, pid in pids.items()}
        writes = read_load(out)
        for what, found in (("idle", idle), ("at work, the most", most)):
            parts = ", ".join(f"{name} {size / MIB:.0f} MiB" for name, size in found.items())
            print(f"memory (PSS), 1 TiB mapped, {what}: {sum(found.values()) / MIB:.0f} MiB ({parts})")
        print(f"writes at {RATE:.0f}/s meanwhile, ms, p50 p99 max: {percentiles_ms(writes[:, 1] - writes[:, 0])}")
        hosts.command("agent", "stop", str(hosts.source))


def measure_start_up(starts: int) -> None:
    """Seconds from the start of `replicator --help` to its end."""
    taken: dict[str, list[float]] = {"python -c pass": [], "replicator --help": []}
    script = Path(sys.executable).with_name("replicator")
    ours = [str(script), "--help"] if script.exists() else replicator("--help")
    commands = dict(zip(taken, ([sys.executable, "-c", "pass"], ours), strict=True))
    for _ in range(starts):
        for name, argv in commands.items():
            began = time.perf_counter()
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
            taken[name].append(time.perf_counter() - began)
    for name, seconds in taken.items():
        print(f"start-up of {name}: median {statistics.median(seconds):.3f} s, best {min(seconds):.3f} s")


def main() -> None:
    """Both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        keep_bytecode(Path(name) / "bytecode")
        measure_start_up(given.starts)
        measure_memory(Path(name), given.seconds)


if __name__ == "__main__":
    main()
