"""L11 on every log: nothing is put behind an end that went away under an open writer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from replicator.events.bodies import PointLabelled, VolumeRenamed
from replicator.events.state import StreamState
from replicator.log.interface import AppendConflict, Appended, StreamWriter
from tests.support.event_streams import VOLUME, Script
from tests.support.far_logs import FarServers
from tests.support.log_places import KINDS, Place


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path, far_servers: FarServers) -> Iterator[Place]:
    with ExitStack() as opened:
        yield Place(request.param, tmp_path, far_servers, opened)


def append(writer: StreamWriter, script: Script) -> None:
    """All that the script has, in one append that must succeed."""
    assert isinstance(writer.append(writer.state.link, script.take()), Appended)


def goes_on(place: Place, writer: StreamWriter, kept: StreamState) -> None:
    """The writer finds what is left, and everybody can read what it says from there."""
    assert writer.settle() == kept
    again = Script(kept).open().transaction(9)
    append(writer, again)
    assert list(place.open().reader(VOLUME, 1).read(1))[-1].link == again.state.link


@pytest.mark.parametrize("body", ["label", "rename"])
def test_what_is_said_between_transactions_takes_no_place_behind_a_hole(place: Place, body: str) -> None:
    script = Script().create()
    with place.open().writer(VOLUME, 1) as writer:
        append(writer, script.transaction(1))
        kept = script.state
        append(writer, script.transaction(2))
        append(writer, script.transaction(3))
        place.lose_behind(VOLUME, kept.sequence)
        name = script.state.committed
        assert name is not None
        script.put(PointLabelled(name, "friday", 7) if body == "label" else VolumeRenamed("disk-9", 1))
        before = script.events
        assert isinstance(writer.append(writer.state.link, before), AppendConflict)
        goes_on(place, writer, kept)


def test_the_rest_of_a_transaction_takes_no_place_behind_a_hole(place: Place) -> None:
    script = Script().create()
    with place.open().writer(VOLUME, 1) as writer:
        append(writer, script.transaction(1))
        kept = script.state
        append(writer, script.begin())
        assert isinstance(writer.sync(), Appended)
        place.lose_behind(VOLUME, kept.sequence)
        assert isinstance(writer.append(writer.state.link, script.commit().take()), AppendConflict)
        goes_on(place, writer, kept)


def test_a_writer_that_opened_before_the_loss_finds_it_too(place: Place) -> None:
    script = Script().create()
    with place.open().writer(VOLUME, 1) as writer:
        append(writer, script.transaction(1))
        kept = script.state
        append(writer, script.transaction(2))
    with place.open().writer(VOLUME, 1) as writer:
        place.lose_behind(VOLUME, kept.sequence)
        assert isinstance(writer.append(writer.state.link, script.transaction(3).take()), AppendConflict)
        goes_on(place, writer, kept)
