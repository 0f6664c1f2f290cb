"""The main job for a minute, as processes, with `kill -9` of publisher, exporter and receiver in turn (P1b, P3).

A writer writes all the time and never flushes; it never repeats what was answered. Afterwards every restore point,
materialised or replayed, from the replica or from the log alone, is an exact prefix of its writes, and the latest is
the source. How many requests were in flight at each kill is printed: a kill with none proves nothing, and fails.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from replicator.cli.demo_hosts import Hosts
from replicator.cli.demo_writer import Writer, counter
from replicator.repository.source import Source, open_source
from replicator.units import MIB, PAGE_BYTES
from tests.support.judges import assert_clean

VOLUME_BYTES = 16 * MIB + 5 * PAGE_BYTES  # not a multiple of a block, nor of a chunk
SECONDS = 60.0
READ_BYTES = 4 * MIB


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Both hosts in a folder; whatever still runs at the end is ended."""
    with ExitStack() as processes:
        yield Hosts(tmp_path, processes)


def kill_in_flight(writer: Writer, hosts: Hosts, name: str) -> int:
    """Kill -9 `name` at a moment when requests are in flight; how many were."""
    pid = hosts.exporter_pid("agent") if name == "exporter" else 0
    for _ in range(1_000_000):
        in_flight = writer.in_flight
        if in_flight:
            break
    if pid:
        hosts.kill_exporter("agent", pid)
        hosts.await_new_exporter("agent", pid)
    elif name == "publisher":
        hosts.kill("agent")
        hosts.start_agent()
    else:
        hosts.kill("receiver")
        hosts.start_receiver()
    return in_flight


def read_point(source: Source, point: str, target: Path) -> None:
    """The whole content of a restore point, without the guards of a restore."""
    with target.open("wb") as file, source.open_point(point, now_ns=time.time_ns()).disk as disk:
        for offset in range(0, disk.size_bytes, READ_BYTES):
            file.write(disk.pread(min(READ_BYTES, disk.size_bytes - offset), offset))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_point_is_an_exact_prefix_through_every_kill(hosts: Hosts, tmp_path: Path) -> None:
    """P1b, P3, and exactly once: nothing lost, nothing repeated, nothing between two writes."""
    image = tmp_path / "before.img"
    image.write_bytes(os.urandom(VOLUME_BYTES))
    region = list(range(0, VOLUME_BYTES // PAGE_BYTES))
    with image.open("r+b") as file:
        file.write(counter(0))
    hosts.make_pools(image, "256MiB")
    hosts.start_agent()
    hosts.start_receiver()
    writer = Writer(f"nbd+unix:///vm1?socket={hosts.socket}", region, image)
    writer.start()
    kills: list[tuple[str, int]] = []
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        for name in ("publisher", "exporter", "receiver"):
            before = writer.figures.reconnected
            kills.append((name, kill_in_flight(writer, hosts, name)))
            if name != "exporter":
                assert writer.figures.reconnected == before, f"a client noticed the death of the {name}"
    writer.stop()
    hosts.publish_label("end")
    print(f"\nkilled, with requests in flight: {kills}; {writer.figures.answered} writes answered")
    assert all(in_flight for _, in_flight in kills), "a kill with nothing in flight proves nothing"
    points = hosts.points()
    hosts.stop()
    check_points(hosts, points, writer, tmp_path)
    assert_clean(hosts.source / "metadata", hosts.replica / "metadata")


def check_points(hosts: Hosts, points: list[dict[str, object]], writer: Writer, folder: Path) -> None:
    """Each point from the replica, and every third from the log alone; the last is what the writer wrote."""
    target = folder / "point.img"
    rounds: list[int] = []
    for source, chosen in ((hosts.replica, points), (hosts.log, [*points[::8], points[-1]])):
        rounds.clear()
        with open_source(str(source)) as opened:
            for point in chosen:
                read_point(opened, f"vm1@{point['number']}", target)
                proof = writer.prove(target)
                assert proof.ok, f"vm1@{point['number']} from {source.name}: {proof.why}"
                rounds.append(proof.round_)
        assert rounds == sorted(rounds), "a later point holds an earlier state"
        assert rounds[-1] == writer.figures.rounds, "the latest point isn't the source"
    print(f"{len(points)} points proven, {sum(bool(p['materialised']) for p in points)} of them snapshots")
    assert [point["number"] for point in points] == list(range(1, len(points) + 1)), (
        "a transaction was lost or repeated"
    )
