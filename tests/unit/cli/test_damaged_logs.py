"""A log with a damaged part: what stands before it can be had, what it may hide isn't answered with what is left."""

from __future__ import annotations

import random
from pathlib import Path
from uuid import UUID

import pytest

from replicator.log import names
from replicator.log.interface import Registration
from replicator.log.object_log import directory_log
from replicator.units import CHUNK_BYTES
from tests.support.command_line import Command
from tests.support.event_streams import OTHER_VOLUME
from tests.support.volume_histories import NAME, History

SIZE = 4 * CHUNK_BYTES


@pytest.fixture
def history(tmp_path: Path) -> History:
    """Five transactions, a segment each at least, and another volume beside them."""
    log = directory_log(tmp_path / "log", create=True)
    made = History(log, random.Random(8), SIZE)
    for number in range(1, 6):
        made.write(CHUNK_BYTES * (number % 4), random.Random(number).randbytes(5000), f"label-{number}")
    made.close()
    other = History(log, random.Random(9), SIZE, OTHER_VOLUME)
    other.write(0, b"other")
    other.close()
    return made


def damage(log: Path, history: History, how: str) -> int:
    """Spoil the segment of the fourth transaction, or the last one; the newest transaction that stands."""
    files = [each for each in log.rglob("*") if each.is_file() and each.name.isdigit()]
    segments = sorted(each for each in files if str(history.volume) in str(each))
    path = segments[-2] if "middle" in how else segments[-1]
    data = path.read_bytes()
    path.chmod(0o600)
    if how.startswith("gone"):
        path.unlink()
    else:
        path.write_bytes(data[:-40] if how.startswith("cut") else data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    return 3 if "middle" in how else 4


@pytest.mark.parametrize("how", ["cut", "flipped", "cut middle", "flipped middle", "gone middle"])
def test_what_stands_before_the_damage(history: History, command: Command, tmp_path: Path, how: str) -> None:
    log, to = tmp_path / "log", tmp_path / "out.img"
    last = damage(log, history, how)
    ran = command("points", "list", log, "--json", code=3)
    assert sorted(each["number"] for each in ran.document) == sorted([1, *range(1, last + 1)]), "of both volumes"
    assert str(history.volume) in ran.error["message"]
    assert "VOLUME" in command("points", "list", log, code=3).out
    command("points", "list", log, str(OTHER_VOLUME))
    for number in range(1, last + 1):
        wanted = f"{history.volume}@{f'label-{number}' if number % 2 else number}"
        ran = command("restore", log, wanted, "--to", to, "--overwrite")
        assert to.read_bytes() == history.contents[1, number] and "damaged" in ran.err
    ran = command("restore", log, f"{history.volume}@1", "--to", to, "--overwrite", "--json")
    assert str(history.volume) in ran.document["damage"] and not ran.err
    for point in ("latest", "-1s", last + 1, f"label-{last + 1}"):
        ran = command("restore", log, f"{history.volume}@{point}", "--to", to, "--overwrite", "--json", code=3)
        assert "--accept-gap" in ran.error["mend"]
    command("restore", log, f"{history.volume}@latest", "--to", to, "--overwrite", "--accept-gap")
    assert to.read_bytes() == history.contents[1, last]


@pytest.mark.parametrize("how", ["cut", "cut middle", "gone middle"])
def test_verify_says_it_once(history: History, command: Command, tmp_path: Path, how: str) -> None:
    damage(tmp_path / "log", history, how)
    document = command("log", "verify", tmp_path / "log", "--json", code=3).document
    found = [each["message"] for volume in document["volumes"] for each in volume["findings"]]
    assert document["damaged"] == len(found) == len(set(found)) == 1, found


def test_the_other_volume_is_as_it_was(history: History, command: Command, tmp_path: Path) -> None:
    damage(tmp_path / "log", history, "cut")
    to = tmp_path / "out.img"
    ran = command("restore", tmp_path / "log", f"{OTHER_VOLUME}@latest", "--to", to, "--json")
    assert to.read_bytes()[:5] == b"other" and ran.document["damage"] is None
    command("restore", tmp_path / "log", f"{NAME}@latest", "--to", to, "--json", code=4)  # both have that name


@pytest.mark.parametrize("what", ["nothing", "a file", "a folder"])
def test_serve_of_what_is_no_pool(command: Command, tmp_path: Path, what: str) -> None:
    place = tmp_path / "there"
    if what == "a file":
        place.write_bytes(b"x")
    elif what == "a folder":
        place.mkdir()
    for more in ([], ["--read-only"]):
        ran = command("serve", place, "--listen", f"unix:{tmp_path}/q", *more, code=5)
        assert "neither a pool nor a log" in ran.err


def test_a_damaged_registration_hides_no_volume_and_is_struck_off(
    history: History, command: Command, tmp_path: Path
) -> None:
    log = directory_log(tmp_path / "log")
    gone = UUID(int=7)
    log.register(Registration(history.volume, gone, "site-b", 1, 2, 5, 99))
    path = tmp_path / "log" / names.registration_name(history.volume, gone)
    path.write_bytes(path.read_bytes()[:-6])
    listed = command("log", "list", tmp_path / "log", "--json")
    receivers = {each["uuid"]: each["receivers"] for each in listed.document}
    assert receivers == {str(history.volume): None, str(OTHER_VOLUME): []}
    assert f"receiver forget LOG VOLUME {gone}" in listed.err
    by_name = command("receiver", "forget", tmp_path / "log", history.volume, "site-b", "--json", code=3).error
    assert str(gone) in by_name["mend"]
    assert "damaged" in command("receiver", "forget", tmp_path / "log", history.volume, gone).out
    assert not path.exists() and command("log", "list", tmp_path / "log").err == ""
