"""What stands beside the streams may be damaged, on every log: neither publishing nor finding volumes depends on it.

Any key that may publish may write a catalogue entry and a registration, of any volume.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

import pytest

from replicator.errors import FormatError
from replicator.events.state import StreamState
from replicator.log.interface import Appended, Log, Registration, VolumeEntry
from replicator.log.records import encode_entry
from tests.support.event_streams import OTHER_VOLUME, SIZE_BYTES, VOLUME, Script
from tests.support.far_logs import FarServers
from tests.support.log_places import KINDS, Place

ENTRY = VolumeEntry(VOLUME, 1, "disk-1", "alpha", SIZE_BYTES, False)
REGISTRATION = Registration(VOLUME, UUID(int=7), "replica", 1, 1, 5, 99)
FLIPPED = encode_entry(ENTRY)[:-5] + b"\xff" + encode_entry(ENTRY)[-4:]
WRONG = {
    "flipped": FLIPPED,
    "empty": b"",
    "another's": encode_entry(VolumeEntry(OTHER_VOLUME, 1, "b", "x", 512, False)),
}


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path, far_servers: FarServers) -> Iterator[Place]:
    with ExitStack() as opened:
        yield Place(request.param, tmp_path, far_servers, opened)


def published(log: Log, script: Script) -> Script:
    """A stream with a transaction."""
    with log.writer(script.state.volume, 1) as writer:
        assert isinstance(writer.append(writer.state.link, script.create().transaction(1).take()), Appended)
    return script


@pytest.mark.parametrize("how", WRONG)
def test_a_damaged_entry_is_passed_over_and_written_again(place: Place, how: str) -> None:
    log = place.open()
    script, _ = published(log, Script()), published(log, Script(StreamState.start(OTHER_VOLUME), "beta"))
    place.write_entry(VOLUME, WRONG[how])
    place.write_entry(UUID(int=5), WRONG[how])
    found = place.open().volumes()
    assert [(each.name, each.volume, each.host) for each in found] == [
        ("disk-1", OTHER_VOLUME, "beta"),
        ("disk-1", VOLUME, ""),
    ], "what the entry doesn't say, the stream does; who has no stream is no volume"
    with log.writer(VOLUME, 1) as writer:
        assert isinstance(writer.append(writer.state.link, script.open().transaction(2).take()), Appended)
    assert ENTRY in place.open().volumes()


def test_a_damaged_registration_is_told_and_holds_trimming_back(place: Place) -> None:
    log = place.open()
    published(log, Script())
    place.write_registration(VOLUME, REGISTRATION.receiver, b"damaged")
    with pytest.raises(FormatError):
        log.registrations(VOLUME)
    with pytest.raises(FormatError):
        log.trim(VOLUME, 1, 1 << 40)
    log.register(REGISTRATION)
    assert log.registrations(VOLUME) == [REGISTRATION]
