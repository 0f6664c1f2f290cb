"""Archiving and looking into every kind of log through the one interface: exact copies, resumed, either way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from replicator.events.beacon import Beacon
from replicator.events.codec import Event
from replicator.log.opening import open_log
from replicator.units import CHUNK_BYTES
from tests.support import judges, kafka_broker
from tests.support.archiving import archiver
from tests.support.command_line import Command
from tests.support.replica_streams import random_source
from tests.support.s3_server import running_s3

SIZE = 8 * CHUNK_BYTES


def url_of(kind: str, folder: Path, held: ExitStack) -> str:
    """A place for a log of that kind, where nothing is yet; servers end with `held`."""
    if kind == "directory":
        return str(folder / f"log-{uuid4().hex}")
    if kind == "s3":
        judges.require("versitygw")
        return held.enter_context(running_s3(folder / "s3")).url("archive")
    judges.require("kafka")
    return kafka_broker.shared().url(f"archive-{uuid4().hex}")


@pytest.fixture(params=["kafka to directory", "kafka to s3", "s3 to kafka", "directory to directory"])
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    one, _, other = request.param.partition(" to ")
    with ExitStack() as held:
        yield url_of(one, tmp_path, held), url_of(other, tmp_path, held)


def test_the_copy_is_exact_and_goes_on(urls: tuple[str, str]) -> None:
    volume, whole = random_source(4, SIZE, 6), list[Event]()
    with closing(open_log(urls[0], create=True)) as source:
        for cut in (5, len(volume.events)):
            events, whole = volume.events[len(whole) : cut], volume.events[:cut]
            with source.writer(volume.uuid, 1) as writer:
                writer.append(writer.state.link, events)
                writer.sync()
            with (
                closing(open_log(urls[1], create=True)) as target,
                archiver(source, target) as copying,
            ):
                (copied,) = copying.round()
                assert copied.error is None and copied.event_count == len(events)
        source.write_beacon(Beacon.of(volume.state, 8, 9))
        with (
            closing(open_log(urls[1])) as target,
            archiver(source, target) as copying,
        ):
            (copied,) = copying.round()
            assert copied.error is None and copied.event_count == 0
            read = [event.encoded for event in target.reader(volume.uuid, 1).read(1)]
            assert read == [event.encoded for event in whole]
            assert target.reader(volume.uuid, 1).tail() == volume.state
            assert target.read_beacon(volume.uuid) == source.read_beacon(volume.uuid)
        (registration,) = source.registrations(volume.uuid)
        assert registration.sequence == volume.state.sequence


@pytest.fixture(params=["directory", "kafka", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with ExitStack() as held:
        yield url_of(request.param, tmp_path, held)


def test_the_commands_look_into_it(url: str, tmp_path: Path, command: Command) -> None:
    volume = random_source(5, SIZE, 3, resizing=False)
    with closing(open_log(url, create=True)) as log:
        volume.publish(log)
    (entry,) = command("log", "list", url, "--json").document
    assert (entry["sequence"], entry["number"]) == (volume.state.sequence, 3)
    shown = command("log", "show", url, "disk-1", "--json").document
    assert [each["digest"] for each in shown] == [each.digest.hex() for each in _events(url, volume.uuid)]
    assert f"{volume.state.sequence} events" in command("log", "verify", url).out
    assert [each["number"] for each in command("points", "list", url, "--json").document] == [1, 2, 3]
    to = tmp_path / "disk.img"
    command("restore", url, "disk-1@2", "--to", to)
    assert to.read_bytes() == volume.images[2]


def _events(url: str, volume: UUID) -> list[Event]:
    with closing(open_log(url)) as log:
        return list(log.reader(volume, 1).read(1))
