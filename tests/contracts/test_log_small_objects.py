"""What stands beside the streams may be damaged, on every log: neither publishing nor finding volumes depends on it.

Any key that may publish may write a catalogue entry and a registration, of any volume.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from receiver.registering import forget_receiver
from replicator.errors import FormatError
from replicator.events.state import StreamState
from replicator.log.interface import Appended, Log, Registration, VolumeEntry
from replicator.log.records import encode_entry, encode_registration
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


OTHERS = encode_registration(replace(REGISTRATION, receiver=UUID(int=8), name="other"))


@pytest.mark.parametrize("data", [b"damaged", b"", OTHERS], ids=["damaged", "empty", "another's"])
def test_a_damaged_registration_is_told_and_holds_trimming_back(place: Place, data: bytes) -> None:
    """Until it is renewed, or struck off by the UUID that the error names."""
    log = place.open()
    published(log, Script())
    place.write_registration(VOLUME, REGISTRATION.receiver, data)
    for ask in (lambda: log.registrations(VOLUME), lambda: log.trim(VOLUME, 1, 1 << 40)):
        with pytest.raises(FormatError) as caught:
            ask()
        assert caught.value.mend and f"receiver forget LOG VOLUME {REGISTRATION.receiver}" in caught.value.mend
    log.register(REGISTRATION)
    assert log.registrations(VOLUME) == [REGISTRATION]
    place.write_registration(VOLUME, REGISTRATION.receiver, data)
    with pytest.raises(FormatError):
        forget_receiver(log, "disk-1", "replica")
    assert forget_receiver(log, "disk-1", str(REGISTRATION.receiver)).said is None
    assert log.registrations(VOLUME) == []
