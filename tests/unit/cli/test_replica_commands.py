"""What a replica refuses, since it follows its log: a change here, that the next transaction wouldn't fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import Command


@pytest.fixture
def replica(command: Command, tmp_path: Path) -> Path:
    """A pool with the replica `vm1` at point 1, and its snapshot `mine`."""
    log, there = tmp_path / "log", tmp_path / "replica"
    for pool in (tmp_path / "source", there):
        command("pool", "create", pool, "--size", "64MiB", "--metadata-size", "4MiB")
    command("volume", "create", tmp_path / "source", "vm1", "--size", "1MiB")
    command("agent", "publish", tmp_path / "source", "--log", log)
    command("receiver", "run", there, "--log", log, "--once", "--no-register")
    command("volume", "snapshot", there, "vm1", "mine")
    return there


def test_a_replica_is_changed_at_its_source_only(command: Command, replica: Path, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(4096))
    listed = command("volume", "list", replica, "--json").document
    uuid = listed[0]["uuid"]
    for line in (
        ("rename", replica, "vm1", "web1"),
        ("rename", replica, uuid, "web1"),
        ("rollback", replica, "vm1", "mine", "--yes"),
        ("resize", replica, "vm1", "--size", "2MiB"),
        ("import", replica, "vm1", tmp_path / "image", "--yes"),
    ):
        error = command("volume", *line, "--json", code=4).error
        assert "is a replica" in error["message"] and "at its source" in error["mend"], line
    assert command("volume", "list", replica, "--json").document == listed
    error = command("points", "create", replica, "vm1", "--label", "here", "--json", code=4).error
    assert "is a replica" in error["message"]


def test_a_new_name_comes_from_the_source(command: Command, replica: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command("volume", "rename", tmp_path / "source", "vm1", "web1")
    command("agent", "publish", tmp_path / "source", "--log", log)
    command("receiver", "run", replica, "--log", log, "--once", "--no-register")
    assert [each["name"] for each in command("volume", "list", replica, "--json").document] == ["web1"]


def test_what_is_this_pools_own_may_be_changed(command: Command, replica: Path) -> None:
    command("volume", "rename", replica, "mine", "kept")
    command("volume", "clone", replica, "vm1@1", "copy")
    command("volume", "rename", replica, "copy", "work")
    command("volume", "delete", replica, "vm1", "--with-snapshots", "--yes")
    assert [each["name"] for each in command("volume", "list", replica, "--json").document] == ["work"]
