"""From a write's answer to its restore point at the receiver, over a log in a directory, or one that is given.

    python benchmarks/lag.py [--seconds 15] [--size-mib 256] [--folder DIR] [--log LOG | --log kafka]

Agent and receiver run as they do for users, with their exporters, interval 1 s. A client writes 4 KiB at random with 16
in flight: 500 a second, then as fast as they are answered. A write that was answered before a cut's instant is in its
point (promise P3); the point is there when the replica pool's switch with it is durable (asked every 10 ms). Printed in
ms, p50 p99 max: the lag, and the writes' latency meanwhile; what was written and what went over the log; CPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._ground import VOLUME, cpu_seconds, keep_bytecode, load, percentiles_ms, read_load
from replicator.cli.demo_hosts import Hosts
from replicator.pool.remote import RemotePool
from replicator.units import MIB, PAGE_BYTES
from tests.support.kafka_broker import Broker

DEPTH = 16
ASK_S = 0.01
POINTS_AT_ONCE = 16


class Watch:
    """Notes when each restore point was there: its cut's instant, and now."""

    def __init__(self, replica: Path) -> None:
        self._pool = RemotePool(replica)
        self._ended = threading.Event()
        self.seen: dict[int, int] = {}
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._pool.close()

    def _run(self) -> None:
        at_id = -1
        while not self._ended.wait(ASK_S):
            now, found = time.time_ns(), self._pool.status().transaction_id
            if found != at_id:
                at_id = found
                for point in self._pool.points(self._pool.view().volume(VOLUME).uuid, POINTS_AT_ONCE):
                    self.seen.setdefault(point.timestamp_ns, now)

    def await_point_after(self, instant_ns: int) -> None:
        """Until a point of a cut behind that instant is there."""
        until = time.monotonic() + 60
        while max(self.seen, default=0) < instant_ns:
            if time.monotonic() > until:
                raise SystemExit("no restore point came for a minute")
            time.sleep(ASK_S)


def measure(hosts: Hosts, watch: Watch, pids: dict[str, int], size: int, seconds: float, rate: float) -> None:
    """One rate."""
    out = hosts.here / "writes.npy"
    before, burnt, began = stored_bytes(hosts.log), {each: cpu_seconds(pid) for each, pid in pids.items()}, time.time()
    with load(hosts.socket, size, seconds, rate, DEPTH, out):
        pass
    writes = read_load(out)
    watch.await_point_after(int(writes[:, 1].max()))
    passed = time.time() - began
    shares = ", ".join(f"{each} {(cpu_seconds(pid) - burnt[each]) / passed:.0%}" for each, pid in pids.items())
    cuts = np.array(sorted(watch.seen), dtype=np.int64)
    there = np.array([watch.seen[cut] for cut in cuts.tolist()], dtype=np.int64)
    there = np.minimum.accumulate(there[::-1])[::-1]  # a later point that was seen first holds the earlier one's writes
    lag = there[np.searchsorted(cuts, writes[:, 1])] - writes[:, 1]
    here = cuts[cuts > writes[0, 1]]
    apart, late = np.median(np.diff(here)) / 1e6, np.median(np.array([watch.seen[c] - c for c in here.tolist()])) / 1e6
    took = (writes[:, 1].max() - writes[:, 0].min()) / 1e9
    print(
        f"{f'{rate:.0f}/s' if rate else 'full speed':>10} {len(writes) / took:7.0f}/s | lag{percentiles_ms(lag)} |"
        f" latency{percentiles_ms(writes[:, 1] - writes[:, 0])} |"
        f" {len(writes) * PAGE_BYTES / MIB:.0f} MiB written, {(stored_bytes(hosts.log) - before) / MIB:.0f} logged\n"
        f"{'':>10} cuts {apart:.0f} ms apart, each there after {late:.0f} ms (medians); CPU of one core: {shares}",
        flush=True,
    )


def stored_bytes(log: Path) -> int:
    """What a log in a directory holds."""
    return sum(path.stat().st_size for path in log.rglob("*") if path.is_file())


def main() -> None:
    """Both rates over one pair of hosts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--size-mib", type=int, default=256)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--log", default="", help="where; `kafka` starts a broker for it")
    given = parser.parse_args()
    size = given.size_mib * MIB
    with tempfile.TemporaryDirectory(dir=given.folder) as name, ExitStack() as processes:
        keep_bytecode(Path(name) / "bytecode")
        broker = processes.enter_context(Broker(Path(name) / "broker")) if given.log == "kafka" else None
        hosts = Hosts(Path(name), processes, broker.url("lag") if broker else given.log)
        if broker is not None:
            hosts.log = broker.folder / "data"
        for pool in (hosts.source, hosts.replica):
            hosts.command("pool", "create", str(pool), "--size", "16GiB", "--metadata-size", "128MiB")
        hosts.command("volume", "create", str(hosts.source), VOLUME, "--size", f"{given.size_mib}MiB")
        status = {"agent": hosts.start_agent(), "receiver": hosts.start_receiver()}
        pids = {f"{each}'s exporter": found["exporter_pid"] for each, found in status.items()}
        pids |= {each: found["pid"] for each, found in status.items()}
        hosts.wait_for("the first point", lambda: bool(hosts.points()))
        with Watch(hosts.replica) as watch:
            for rate in (500.0, 0.0):
                measure(hosts, watch, pids, size, given.seconds, rate)
        hosts.stop()


if __name__ == "__main__":
    main()
