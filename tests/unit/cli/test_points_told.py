"""What commands say of the point that they take: its full name, what it is short of, and what mends it."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC
from pathlib import Path

import pytest

from replicator.blockdev.nbd import NbdDevice
from replicator.errors import ConflictError
from replicator.log.object_log import directory_log
from replicator.nbd.uri import NbdUri
from replicator.pool.catalogue_schema import Branch, Setting
from replicator.pool.changes import Put
from replicator.pool.interface import Switch
from replicator.pool.opening import own_pool
from replicator.repository.logged import read_history
from replicator.repository.remembered import LOG_SETTING
from replicator.repository.taken import refuse_taken
from replicator.units import CHUNK_BYTES, KIB
from tests.support.command_line import Command
from tests.support.kept_points import pool_with_point
from tests.support.serve_process import serving
from tests.support.volume_histories import NAME, History

SIZE = 3 * CHUNK_BYTES


@pytest.fixture
def history(tmp_path: Path) -> History:
    """A pool that keeps 2 as a snapshot, and its log of 4 transactions."""
    opened, made = pool_with_point(tmp_path, 1, 64 * KIB, kept=2, transactions=4)
    opened.close()
    return made


def test_a_clone_says_of_what(tmp_path: Path, history: History, command: Command) -> None:
    pool, latest = tmp_path / "pool", f"{NAME}@latest"
    ran = command("volume", "clone", pool, latest, "whole")
    assert f"{latest} is @4 of 2023-11-14" in ran.err and "can be had" not in ran.err
    refused = command("volume", "clone", pool, f"{NAME}@-1s", "late", "--json", code=5)
    assert "--accept-gap" in refused.error["mend"]
    document = command("volume", "clone", pool, f"{NAME}@-1s", "late", "--accept-gap", "--json").document
    assert document["name"] == "late" and document["point"]["number"] == 4 and document["log_problem"] is None
    (tmp_path / "log").rename(tmp_path / "away")
    ran = command("volume", "clone", pool, latest, "old")
    assert "only what the pool holds can be had: there is no log" in ran.err and f"{latest} is @2 of" in ran.err
    document = command("volume", "clone", pool, latest, "older", "--json").document
    assert document["point"]["number"] == 2 and "no log" in document["log_problem"]
    assert "point" not in command("volume", "clone", pool, "old", "copy", "--json").document


@pytest.mark.parametrize(("asked", "number"), [("-1s", 4), ("latest", 2)])
def test_serve_says_what_it_serves(tmp_path: Path, history: History, asked: str, number: int) -> None:
    point, socket = f"{NAME}@{asked}", tmp_path / "nbd"
    if number == 2:
        (tmp_path / "log").rename(tmp_path / "away")
    with (
        serving(tmp_path / "pool", point, "--read-only", "--accept-gap", "--listen", f"unix:{socket}"),
        NbdDevice(NbdUri.parse(f"nbd+unix:///{point}?socket={socket}"), read_only=True) as device,
    ):
        content = history.contents[1, number]
        assert device.pread(len(content), 0) == content
    said = (tmp_path / "pool.log").read_text()
    assert f"{point} is @{number} of 2023-11-14" in said
    assert ("only what the pool holds can be had" in said) == (number == 2)


def test_a_source_without_its_log(tmp_path: Path, command: Command) -> None:
    """It keeps no points itself; that the list is empty for that is said to programs, too."""
    pool, log = tmp_path / "pool", tmp_path / "log"
    command("pool", "create", pool, "--size", "64MiB", "--metadata-size", "4MiB")
    command("volume", "create", pool, "vm1", "--size", "1MiB")
    command("agent", "publish", pool, "--log", log)
    log.rename(tmp_path / "away")
    ran = command("points", "list", pool, "--json")
    assert ran.document == [] and "only what the pool holds is listed: there is no log" in ran.err
    assert "vm1 itself is at @1 of" in ran.err and "volume clone POOL vm1 NEW" in ran.err


@pytest.fixture
def branched(tmp_path: Path) -> History:
    """Four transactions, the last labelled, and another third one behind the second, on timeline 2."""
    made = History(directory_log(tmp_path / "log", create=True), random.Random(5), SIZE)
    for number in range(1, 5):
        made.write(0, random.Random(number).randbytes(5000), *(["fourth"] if number == 4 else []))
    made.fork((1, 2))
    made.write(0, random.Random(9).randbytes(5000))
    made.close()
    return made


def test_every_point_is_listed_by_a_name_that_means_it(tmp_path: Path, branched: History, command: Command) -> None:
    log, to = tmp_path / "log", tmp_path / "out.img"
    rows = [line.split()[1] for line in command("points", "list", log).out.splitlines() if line.startswith(NAME)]
    named = [each for each in rows if each[0].isdigit()]
    assert sorted(named) == ["1:1", "1:2", "1:3", "1:4", "2:3"]
    for name in named:
        timeline, number = map(int, name.split(":"))
        ran = command("restore", log, f"{NAME}@{name}", "--to", to, "--overwrite")
        assert to.read_bytes() == branched.contents[timeline, number] and f"@{name} of" in ran.err
    listed = command("points", "list", log, "--json").document
    assert sorted((each["timeline"], each["number"]) for each in listed) == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 3)]


@pytest.mark.parametrize("wanted", ["4", "fourth"])
def test_what_is_on_a_branch_that_was_left_is_named(
    tmp_path: Path, branched: History, command: Command, wanted: str
) -> None:
    to = tmp_path / "out.img"
    refused = command("restore", tmp_path / "log", f"{NAME}@{wanted}", "--to", to, "--json", code=5).error
    assert "it is @1:4 of" in refused["message"] and refused["mend"].endswith(f"{NAME}@1:4")


def test_a_label_on_a_branch_that_was_left_is_taken(tmp_path: Path, history: History) -> None:
    points = read_history(history.log, history.volume).points
    labelled = [Put(replace(each, labels=("fourth",))) for each in points if each.number == 4]
    with own_pool(tmp_path / "pool") as pool:
        away = Put(Setting(LOG_SETTING, str(tmp_path / "away")))
        pool.switch(Switch(changes=(*labelled, away, Put(Branch(history.volume, 2, 1, 2)))))
    with pytest.raises(ConflictError, match="the label of disk-1 @1:4 already"):
        refuse_taken(tmp_path / "pool", NAME, "fourth", UTC)


def test_a_log_that_was_trimmed(tmp_path: Path, history: History, command: Command) -> None:
    log, to = tmp_path / "log", tmp_path / "out.img"
    third = next(each for each in read_history(history.log, history.volume).points if each.number == 3)
    history.log.trim(history.volume, 1, third.sequence + 1)
    for wanted in ("latest", "4", "-1h"):
        refused = command("restore", log, f"{NAME}@{wanted}", "--to", to, "--json", code=5).error
        assert "was trimmed" in refused["message"] and "replica's pool" in refused["mend"]
    ran = command("points", "list", log, "--json")
    assert ran.document == [] and "was trimmed" in ran.err
    command("restore", tmp_path / "pool", f"{NAME}@2", "--to", to)
