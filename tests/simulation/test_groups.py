"""A group of volumes from end to end, by the command line: agent.toml, a real agent and receiver, a directory log.

Both members have a counter; whoever writes adds one to A's, and then to B's. So at any instant 0 <= A - B <= 1, and
each point of the group must say so when both members are restored at it, from the replica and from the log alone.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from replicator.blockdev.nbd import NbdDevice
from replicator.cli.demo_hosts import Hosts
from replicator.nbd.uri import NbdUri
from replicator.units import PAGE_BYTES

MEMBERS = ("data", "wal")
LABELS = ("first",)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    with ExitStack() as processes:
        yield Hosts(tmp_path, processes)


def start_group(hosts: Hosts) -> None:
    """Two pools, the members, and both daemons; the agent by its file."""
    hosts.command("pool", "create", str(hosts.source), "--size", "64MiB")
    hosts.command("pool", "create", str(hosts.replica), "--size", "64MiB")
    for name in MEMBERS:
        hosts.command("volume", "create", str(hosts.source), name, "--size", "1MiB")
    config = hosts.here / "agent.toml"
    config.write_text(
        f'pool = "{hosts.source}"\nlog = "{hosts.log}"\nlisten = ["unix:{hosts.socket}"]\n'
        f'[[group]]\nname = "db"\nvolumes = ["data", "wal"]\ninterval = "200ms"\n'
    )
    hosts._spawn("agent", "agent", "run", "--config", str(config))
    hosts._until_answering("agent")
    hosts.start_receiver()


class Counting:
    """Adds one to A, then to B, over NBD, as fast as the answers come."""

    def __init__(self, socket: Path) -> None:
        self._disks = [NbdDevice(NbdUri(name, socket_path=str(socket))) for name in MEMBERS]
        self._stopping = threading.Event()
        self.count = 0
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.count += 1
            for disk in self._disks:
                disk.pwrite(self.count.to_bytes(8, "little").ljust(PAGE_BYTES, b"\0"), 0)

    def __enter__(self) -> Counting:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        for disk in self._disks:
            with closing(disk):
                disk.flush()


def points(hosts: Hosts, place: str, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(hosts.command("points", "list", place, name, "--json", "--all"))
    return found


def counter_at(hosts: Hosts, place: str, point: str) -> int:
    target = hosts.here / "restored.img"
    hosts.command("restore", place, point, "--to", str(target), "--overwrite")
    return int.from_bytes(target.read_bytes()[:8], "little")


@pytest.mark.timeout(600)
def test_a_groups_points_are_one_instant_of_all_members(hosts: Hosts) -> None:
    start_group(hosts)
    with Counting(hosts.socket) as counting:
        for label in LABELS:
            hosts.command("agent", "snapshot", str(hosts.source), "--label", label)
    hosts.command("agent", "snapshot", str(hosts.source), "--label", "last")
    places = (str(hosts.replica), str(hosts.log))

    def has_all() -> bool:
        found = [each for name in MEMBERS for each in points(hosts, places[0], name)]
        return sum("last" in each["labels"] for each in found) == len(MEMBERS)

    hosts.wait_for("the receiver to have everything", has_all)
    seen: dict[str, list[int]] = {}
    for place in places:
        groups = {each["group"]["number"]: each["group"] for each in points(hosts, place, "data") if each["group"]}
        assert groups and all(each["whole"] for each in groups.values()), groups
        labelled = [each for each in groups.values() if each["labels"]]
        assert [label for each in labelled for label in each["labels"]] == [*LABELS, "last"]
        assert "data@" in hosts.command("points", "list", place, "data"), "the group is shown"
        for group in labelled:
            numbers = {each["volume"]: each["number"] for each in group["members"]}
            a, b = (counter_at(hosts, place, f"{name}@{numbers[name]}") for name in MEMBERS)
            assert 0 <= a - b <= 1, f"{group}: {a} and {b}"
            seen.setdefault(group["labels"][0], []).append(a)
    assert seen["last"] == [counting.count] * 2 and seen["first"][0] == seen["first"][1] < counting.count
    print(f"{len(groups)} points of the group; counters at the labelled ones: {seen}")
    hosts.stop()
