"""`receiver verify` on the command line: its words, its exit codes, what it remembers, and which point a time means."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from receiver.remember import verified_of
from replicator.log.opening import open_log
from replicator.pool.catalogue_schema import Role
from replicator.pool.reading import read_pool
from tests.support.command_line import Command


@pytest.fixture
def replica(command: Command, tmp_path: Path) -> Path:
    """A pool with the replica `vm1` at point 2; the second transaction writes one chunk of sixteen."""
    log, there, image = tmp_path / "log", tmp_path / "replica", tmp_path / "image"
    for pool in (tmp_path / "source", there):
        command("pool", "create", pool, "--size", "64MiB", "--metadata-size", "4MiB")
    for first in (b"\5", b"\6"):
        image.write_bytes(first + b"\5" * ((1 << 20) - 1))
        command("volume", "import", tmp_path / "source", "vm1", image, "--yes")
        command("agent", "publish", tmp_path / "source", "--log", log)
    command("receiver", "run", there, "--log", log, "--once", "--no-register")
    return there


def verified(pool: Path) -> list[int]:
    """The numbers that the pool remembers as verified."""
    with read_pool(pool) as reader:
        return [number for number, _ in verified_of(reader.view()).values()]


def test_what_was_compared_in_full_is_equal(command: Command, replica: Path, tmp_path: Path) -> None:
    asked = ("receiver", "verify", replica, "--log", tmp_path / "log")
    assert command(*asked).out == "vm1@2: equal, 16 chunks compared\n"
    assert command(*asked, "--json").document["points"][0]["equal"] is True
    assert verified(replica) == [2]


def test_a_replica_that_stands_at_a_fork_is_the_transaction_before_it(
    command: Command, replica: Path, tmp_path: Path
) -> None:
    """Its timeline has none of its own yet, so that the log holds nothing under that name."""
    command("agent", "rebase", tmp_path / "source", "vm1", "--new-timeline", "--log", tmp_path / "log", "--yes")
    command("agent", "publish", tmp_path / "source", "--log", tmp_path / "log")
    command("receiver", "run", replica, "--log", tmp_path / "log", "--once", "--no-register")
    with read_pool(replica) as reader:
        position = reader.view().position(reader.view().volume("vm1").uuid, Role.APPLIED)
    assert position is not None and (position.timeline, position.number) == (2, 2), "or the test shows nothing"
    found = command("receiver", "verify", replica, "--log", tmp_path / "log", "--json").document["points"][0]
    assert (found["timeline"], found["number"], found["equal"]) == (1, 2, True)


def test_what_a_trimmed_log_says_nothing_of_is_not(command: Command, replica: Path, tmp_path: Path) -> None:
    """One chunk compared isn't sixteen: exit 1, null in the document, and nothing is remembered."""
    with closing(open_log(str(tmp_path / "log"))) as log:
        (volume,) = log.volumes()
        log.trim(volume.volume, 1, log.reader(volume.volume, 1).tail().sequence)
        assert log.reader(volume.volume, 1).start().sequence, "something was trimmed"
    asked = ("receiver", "verify", replica, "--log", tmp_path / "log")
    ran = command(*asked, code=1)
    assert "vm1@2: NOT COMPARABLE IN FULL, 1 chunks compared, 15 unknown (trimmed)" in ran.out
    assert "equal," not in ran.out and "1 of 16 chunks were compared, none differs" in ran.err
    ran = command(*asked, "--json", code=1)
    assert ran.document["points"][0]["equal"] is None and ran.error["kind"] == "not-comparable"
    assert "log archive" in ran.error["mend"] and verified(replica) == []


@pytest.mark.parametrize("text", ["2026-10-25T02:30", "2026-03-29T02:30"])
def test_a_local_time_is_one_with_the_changes_of_clock(
    command: Command, replica: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """As of every other command: refused where clocks showed it twice, or never."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    error = command("receiver", "verify", replica, "--log", tmp_path / "log", f"vm1@{text}", "--json", code=2).error
    assert "shown" in error["message"] and "+02:00" in error["mend"]
    assert verified(replica) == []
