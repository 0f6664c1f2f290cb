"""A label names one point of a volume: a second cut under it is refused, before anything is cut."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

from agent.cut import base_of
from replicator.pool.catalogue_schema import Prepared
from replicator.pool.interface import CutRequest
from replicator.pool.opening import own_pool
from tests.support.command_line import Command


def test_a_label_that_a_point_has_already(command: Command, tmp_path: Path) -> None:
    pool, log = tmp_path / "pool", tmp_path / "log"
    command("pool", "create", pool, "--size", "64MiB", "--metadata-size", "4MiB")
    for name in ("v1", "v2"):
        command("volume", "create", pool, name, "--size", "1MiB")
    command("points", "create", pool, "v1", "--label", "one")
    command("agent", "publish", pool, "v1", "--log", log)
    ran = command("points", "create", pool, "v1", "--label", "one", "--json", code=4)
    assert "'one' is the label of v1 @1" in ran.error["message"] and "another label" in ran.error["mend"]
    command("agent", "publish", pool, "--log", log)
    listed = command("points", "list", pool, "v1", "--json").document
    assert [each["number"] for each in listed if "one" in each["labels"]] == [1]
    command("restore", pool, "v1@one", "--to", tmp_path / "out.img")
    command("points", "create", pool, "v2", "--label", "one")
    command("points", "create", pool, "v1", "--label", "two")
    command("points", "create", pool, "v3", "--label", "two", code=5)


def test_a_published_cut_takes_no_label_that_is_taken_either(command: Command, tmp_path: Path) -> None:
    pool, log = tmp_path / "pool", tmp_path / "log"
    command("pool", "create", pool, "--size", "64MiB", "--metadata-size", "4MiB")
    for name in ("v1", "v2"):
        command("volume", "create", pool, name, "--size", "1MiB")
    publish = ("agent", "publish", pool, "--log", log)
    command(*publish, "v1", "--label", "one", "--label", "one")
    command(*publish, "v3", "--label", "one", code=5)
    command(*publish, "v2", "--label", "one")
    command("points", "create", pool, "v1", "--label", "waits")
    error = command("points", "create", pool, "v1", "--label", "waits", "--json", code=4).error
    assert "isn't published yet" in error["message"] and "agent publish" in error["mend"]
    command("points", "create", log, "v1", "--label", "two", code=5)
    listed = command("points", "list", log, "--json").document
    assert [(each["volume"], each["number"], each["labels"]) for each in listed] == [
        ("v1", 1, ["one"]),
        ("v2", 1, ["one"]),
    ]


def test_a_job_that_was_killed_is_finished_by_the_same_command(command: Command, tmp_path: Path) -> None:
    """Of the two volumes of its cut one is in the log already, and the other waits; a third one wasn't there yet."""
    pool, log = tmp_path / "pool", tmp_path / "log"
    command("pool", "create", pool, "--size", "64MiB", "--metadata-size", "4MiB")
    for name in ("v1", "v2"):
        command("volume", "create", pool, name, "--size", "1MiB")
    command("agent", "publish", pool, "--log", log)
    with own_pool(pool) as owned:
        view = owned.view()
        uuids = tuple(each.uuid for each in view.volumes)
        prepared = tuple(Prepared(each, 1, 2, uuid4(), base_of(view, each), 0, 0, 0) for each in uuids)
        owned.cut(CutRequest(uuid4(), uuids, labels=("nightly",), prepared=prepared))
    command("agent", "publish", pool, "v1", "--log", log)
    command("volume", "create", pool, "v3", "--size", "1MiB")
    again = command("agent", "publish", pool, "--log", log, "--label", "nightly", "--json").document
    assert sorted(each["volume"] for each in again) == ["v1", "v2", "v3"]
    listed = command("points", "list", log, "--json").document
    labelled = [(each["volume"], each["number"]) for each in listed if "nightly" in each["labels"]]
    assert sorted(labelled) == [("v1", 2), ("v2", 2), ("v3", 1)], "one point of each"
