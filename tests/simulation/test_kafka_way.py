"""The main job through a real broker, as processes and by the command line; and two agents on copies of one pool."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from replicator.cli.demo_hosts import Hosts
from replicator.cli.demo_writer import Writer, counter
from replicator.errors import ReplicatorError
from replicator.units import MIB, PAGE_BYTES
from tests.support import judges, kafka_broker

VOLUME_BYTES = 4 * MIB + 3 * PAGE_BYTES
LABELS = ("first", "second", "third")


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Both hosts and their topics; whatever still runs at the end is ended."""
    judges.require("kafka")
    with ExitStack() as processes:
        yield Hosts(tmp_path, processes, kafka_broker.shared().url(f"way-{uuid4().hex}"))


def written_image(tmp_path: Path) -> Path:
    image = tmp_path / "before.img"
    image.write_bytes(counter(0) + os.urandom(VOLUME_BYTES - len(counter(0))))
    return image


@pytest.mark.timeout(900)
def test_publisher_and_follower_are_killed_on_the_way(hosts: Hosts, tmp_path: Path) -> None:
    image = written_image(tmp_path)
    hosts.make_pools(image, "64MiB")
    assert hosts.start_agent()["log"] == hosts.log_url
    hosts.start_receiver()
    writer = Writer(f"nbd+unix:///vm1?socket={hosts.socket}", list(range(VOLUME_BYTES // PAGE_BYTES)), image)
    writer.start()
    for label, (victim, again) in zip(
        LABELS, (("agent", hosts.start_agent), ("receiver", hosts.start_receiver), ("", None)), strict=True
    ):
        hosts.publish_label(label)
        if again is not None:
            hosts.kill(victim)
            again()
    writer.stop()
    hosts.publish_label("last")
    for point in (*LABELS, "last"):
        read: list[bytes] = []
        for place in (str(hosts.replica), hosts.log_url):
            target = tmp_path / f"{point}-{len(read)}.img"
            hosts.command("restore", place, f"vm1@{point}", "--to", str(target))
            read.append(target.read_bytes())
        assert read[0] == read[1], f"{point}: replica and log differ"
        proof = writer.prove(target)
        assert proof.ok, f"{point} is no prefix of what was written: {proof.why}"
    assert proof.round_ == writer.figures.rounds, "the last point isn't the source"
    (listed,) = json.loads(hosts.command("log", "list", hosts.log_url, "--json"))
    assert json.loads(hosts.command("log", "verify", hosts.log_url, "--json"))["damaged"] == 0
    assert '"equal": true' in hosts.command("receiver", "verify", str(hosts.replica), "--log", hosts.log_url, "--json")
    print(f"{listed['number']} transactions, {listed['sequence']} events; each of {len(LABELS) + 1} points exact")
    hosts.stop()


@pytest.mark.timeout(900)
def test_of_two_agents_on_copies_of_one_pool_one_wins(hosts: Hosts, tmp_path: Path) -> None:
    """A copy that is older may not publish, and fences nobody; one that isn't takes over, and the first exits 4."""
    hosts.make_pools(written_image(tmp_path), "64MiB")
    hosts.command("agent", "publish", str(hosts.source), "--log", hosts.log_url)
    older = copied(hosts, tmp_path / "older")
    hosts.start_agent()
    hosts.command("agent", "snapshot", str(hosts.source), "--label", "first", "--json")
    with pytest.raises(ReplicatorError, match=r"ended with 4.*(older copy|never prepared)"):
        hosts.command("agent", "publish", older, "--log", hosts.log_url)
    hosts.command("agent", "snapshot", str(hosts.source), "--label", "still-the-first", "--json")
    assert labels_in_the_log(hosts) == {"first", "still-the-first"}
    hosts.command("agent", "stop", str(hosts.source))
    equal = copied(hosts, tmp_path / "equal")
    hosts.start_agent()
    hosts.command("agent", "publish", equal, "--log", hosts.log_url)
    with pytest.raises(ReplicatorError, match=r"took it over|ended with"):
        hosts.command("agent", "snapshot", str(hosts.source), "--label", "too-late", "--json")
    assert hosts._daemons["agent"].wait(60) == 4
    assert labels_in_the_log(hosts) == {"first", "still-the-first"}


@pytest.mark.timeout(900)
def test_the_agent_notices_a_broker_from_an_older_copy(tmp_path: Path) -> None:
    """What was acknowledged is gone: the agent finds out before it publishes, and publishes again what is missing."""
    judges.require("kafka")
    with ExitStack() as processes:
        broker = processes.enter_context(kafka_broker.Broker(tmp_path / "broker"))
        hosts = Hosts(tmp_path, processes, broker.url("older"))
        hosts.make_pools(written_image(tmp_path), "64MiB")
        hosts.command("agent", "publish", str(hosts.source), "--log", hosts.log_url)
        broker.kill()
        broker.save_disk("older")
        broker.start()
        for seed in (b"2",):
            (tmp_path / "more.img").write_bytes(seed * VOLUME_BYTES)
            hosts.command("volume", "import", str(hosts.source), "vm1", str(tmp_path / "more.img"), "--yes")
            hosts.command("agent", "publish", str(hosts.source), "--log", hosts.log_url)
        broker.kill()
        broker.restore_disk("older")
        broker.start()
        (listed,) = json.loads(hosts.command("log", "list", hosts.log_url, "--json"))
        assert listed["number"] == 1, "the broker lost two transactions"
        print(hosts.command("agent", "publish", str(hosts.source), "--log", hosts.log_url))
        assert json.loads(hosts.command("log", "verify", hosts.log_url, "--json"))["damaged"] == 0
        hosts.command("restore", hosts.log_url, "vm1@latest", "--to", str(tmp_path / "latest.img"))
        assert (tmp_path / "latest.img").read_bytes() == b"2" * VOLUME_BYTES


def copied(hosts: Hosts, to: Path) -> str:
    """A copy of the source's pool, which nobody has open."""
    shutil.copytree(hosts.source, to, symlinks=True, ignore=_sockets)
    return str(to)


def labels_in_the_log(hosts: Hosts) -> set[str]:
    """The labels of all points in the log."""
    points = json.loads(hosts.command("points", "list", hosts.log_url, "vm1", "--json", "--all"))
    return {label for point in points for label in point["labels"]}


def _sockets(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(folder) / name).is_socket()]
