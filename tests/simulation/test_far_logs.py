"""The main job over logs that lie elsewhere, as processes, by the command line: agent, receiver, list, verify, restore.

A volume is published to a bucket, or over ssh to a folder, while a writer writes; each labelled point must come out of
the replica, and of the log alone, as the content that the cut had: the counters that the writer leaves in its pages
are an exact prefix of its writes (demo_writer).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from replicator.blockdev.nbd import NbdDevice
from replicator.cli.demo_hosts import Hosts
from replicator.cli.demo_writer import Writer, counter
from replicator.nbd.uri import NbdUri
from replicator.units import MIB, PAGE_BYTES
from tests.support.far_logs import FarServers

VOLUME_BYTES = 4 * MIB + 3 * PAGE_BYTES
LABELS = ("first", "second", "third")

PLACES: dict[str, Callable[[FarServers, Path], str]] = {
    "s3": lambda servers, _: servers.s3_url(f"job/{uuid4().hex}"),
    "ssh": lambda servers, path: servers.ssh_url(path / "far"),
}


@pytest.fixture(params=sorted(PLACES))
def hosts(request: pytest.FixtureRequest, tmp_path: Path, far_servers: FarServers) -> Iterator[Hosts]:
    """Both hosts and their log; whatever still runs at the end is ended."""
    url = PLACES[request.param](far_servers, tmp_path)
    with ExitStack() as processes:
        yield Hosts(tmp_path, processes, url)


def written_while(hosts: Hosts, image: Path) -> Writer:
    """A writer that wrote all the time while the labelled points were made; it has ended."""
    writer = Writer(f"nbd+unix:///vm1?socket={hosts.socket}", list(range(VOLUME_BYTES // PAGE_BYTES)), image)
    writer.start()
    for label in LABELS:
        hosts.publish_label(label)
    writer.stop()
    return writer


def served(hosts: Hosts, point: str) -> bytes:
    """The content of a point, read over NBD from `serve LOG`."""
    receiving, sending = os.pipe()
    socket = hosts.here / "old.sock"
    argv = [sys.executable, "-m", "replicator.cli.main", "serve", hosts.log_url, point, "--read-only"]
    argv += ["--listen", f"unix:{socket}", "--ready-fd", str(sending)]
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=[sending])
    os.close(sending)
    try:
        assert os.read(receiving, 4096) == b"READY\n"
        with NbdDevice(NbdUri(point, socket_path=str(socket)), read_only=True) as device:
            return bytes(device.pread(VOLUME_BYTES, 0))
    finally:
        os.close(receiving)
        child.terminate()
        child.wait()


@pytest.mark.timeout(900)
def test_the_main_job_over_a_log_elsewhere(hosts: Hosts, tmp_path: Path) -> None:
    image = tmp_path / "before.img"
    image.write_bytes(counter(0) + os.urandom(VOLUME_BYTES - len(counter(0))))
    hosts.make_pools(image, "64MiB")
    assert hosts.start_agent()["log"] == hosts.log_url
    hosts.start_receiver()
    writer = written_while(hosts, image)
    hosts.publish_label("last")
    for point in (*LABELS, "last"):
        target = tmp_path / f"{point}.img"
        hosts.command("restore", hosts.log_url, f"vm1@{point}", "--to", str(target))
        proof = writer.prove(target)
        assert proof.ok, f"{point} is no prefix of what was written: {proof.why}"
    hosts.command("restore", str(hosts.replica), "vm1@last", "--to", str(tmp_path / "replica.img"))
    assert (tmp_path / "replica.img").read_bytes() == target.read_bytes(), "replica and log differ"
    assert served(hosts, "vm1@last") == target.read_bytes(), "served at once from the log, it differs"
    (listed,) = json.loads(hosts.command("log", "list", hosts.log_url, "--json"))
    assert listed["volume"] == "vm1" and listed["number"] >= len(LABELS) + 1
    assert json.loads(hosts.command("log", "verify", hosts.log_url, "--json"))["damaged"] == 0
    assert '"equal": true' in hosts.command("receiver", "verify", str(hosts.replica), "--log", hosts.log_url, "--json")
    points = json.loads(hosts.command("points", "list", hosts.log_url, "vm1", "--json", "--all"))
    assert {label for point in points for label in point["labels"]} == {*LABELS, "last"}
    assert proof.round_ == writer.figures.rounds, "the last point isn't the source"
    print(f"{listed['number']} transactions, {listed['sequence']} events, {len(points)} points")
    hosts.stop()
