"""A group's restore points: there once every member's transaction is, shown with them, and had by its label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from replicator.errors import UnavailableError
from replicator.events.bodies import GroupCut
from replicator.log.interface import Log, Registration
from replicator.log.object_log import directory_log
from replicator.pool.creation import PoolPlan, create_pool
from replicator.pool.daemons import DaemonSocket
from replicator.repository.receipts import LOOK_S, await_receivers, lacking
from replicator.units import CHUNK_BYTES, MIB
from tests.support.command_line import Command
from tests.support.manual_waiter import ManualWaiter
from tests.support.receivers import memory_log
from tests.support.replica_streams import SourceVolume

GROUP = UUID(int=0xA, version=4)
SIZE = 6 * CHUNK_BYTES


@dataclass(slots=True)
class Database:
    """Volumes `data` and `wal`, cut together; a log, and a replica's pool."""

    folder: Path
    log: Log
    data: SourceVolume
    wal: SourceVolume

    def cut(self, changed: Sequence[SourceVolume], labels: Sequence[str] = (), published: int = 2) -> None:
        """One cut: those that changed publish, the first `published` of them at once."""
        for each in changed:
            each.scribble()
            each.begin()
            each.put_changes(set())
        instant = max(each.now_ns for each in (self.data, self.wal))
        members = sorted(
            ((each.uuid, each.state.number) for each in (self.data, self.wal)), key=lambda member: member[0].int
        )
        for each in changed:
            each.commit(labels, GroupCut(GROUP, instant, tuple(members)))
        for each in changed[:published]:
            each.publish(self.log)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    log = directory_log(tmp_path / "log", create=True)
    create_pool(tmp_path / "replica", PoolPlan(size_bytes=64 * MIB, metadata_bytes=4 * MIB))
    made = Database(tmp_path, log, *(SourceVolume(seed, SIZE, name=name) for seed, name in ((3, "data"), (4, "wal"))))
    made.cut([made.data, made.wal])
    made.cut([made.data, made.wal], ["friday"])
    made.cut([made.data], ["late"])
    return made


def points(command: Command, source: Path, *more: str) -> dict[tuple[str, int], dict[str, object]]:
    listed = command("points", "list", source, *more, "--json").document
    return {(each["volume"], each["number"]): each["group"] for each in listed}


@pytest.mark.parametrize("place", ["log", "replica"])
def test_a_groups_points_have_their_members(database: Database, command: Command, place: str) -> None:
    folder, source = database.folder, database.folder / place
    command("receiver", "run", folder / "replica", "--log", folder / "log", "--once")
    for found in (points(command, source), points(command, source, "data")):
        group = found["data", 2]
        told = command("restore", source, "data@2", "--to", "-", "--dry-run", "--json").document
        assert told["point"]["group"] == group, "restore tells it as the list does"
        assert group["whole"] and group["labels"] == ["friday"]
        assert {(each["volume"], each["number"], each["there"]) for each in group["members"]} == {  # type: ignore[attr-defined]  # what a JSON document holds has no type
            ("data", 2, True),
            ("wal", 2, True),
        }
        assert found["data", 3]["whole"] and found["data", 3]["number"] != group["number"]
    people = command("points", "list", source).out
    assert people.count("GROUP") == 1, "one table"
    assert "data@3" in people and "wal@2" in command("points", "show", source, "data@3").out


@pytest.mark.parametrize("place", ["log", "replica"])
def test_a_member_that_had_not_changed_is_had_by_the_groups_label(
    database: Database, command: Command, place: str
) -> None:
    folder = database.folder
    command("receiver", "run", folder / "replica", "--log", folder / "log", "--once")
    for volume, label, number in (("data", "late", 3), ("wal", "late", 2), ("wal", "friday", 2), ("data", "friday", 2)):
        to = folder / f"{volume}-{label}.img"
        command("restore", folder / place, f"{volume}@{label}", "--to", to)
        source = database.data if volume == "data" else database.wal
        assert to.read_bytes() == source.images[number], f"{volume}@{label}"


@pytest.mark.parametrize("place", ["log", "replica"])
def test_a_cut_that_is_there_in_part(database: Database, command: Command, place: str) -> None:
    """The member's own point can be had; the group's isn't there until the other one is."""
    folder, source = database.folder, database.folder / place
    database.cut([database.data, database.wal], ["monday"], published=1)
    command("receiver", "run", folder / "replica", "--log", folder / "log", "--once")
    group = points(command, source)["data", 4]
    assert not group["whole"]
    assert "not here: wal@3" in command("points", "show", source, "data@monday").out
    command("points", "show", source, "wal@monday", code=5)
    database.wal.publish(database.log)
    assert points(command, source)["data", 4]["whole"]
    assert command("points", "show", source, "wal@monday", "--json").document["number"] == 3


@pytest.mark.parametrize("place", ["log", "replica"])
def test_a_number_that_came_again_is_no_part_of_an_older_cut(database: Database, command: Command, place: str) -> None:
    """The cut's third transaction of wal was let go of; the number's next owner was cut after it."""
    folder, source = database.folder, database.folder / place
    data, wal = database.data, database.wal
    members = tuple(sorted(((data.uuid, 4), (wal.uuid, 3)), key=lambda member: member[0].int))
    data.begin()
    data.commit(["upgrade"], GroupCut(GROUP, data.now_ns, members))
    data.publish(database.log)
    wal.now_ns = data.now_ns
    wal.transaction(wal.scribble())
    wal.publish(database.log)
    command("receiver", "run", folder / "replica", "--log", folder / "log", "--once")
    assert command("points", "show", source, "wal@3", "--json").document["number"] == 3, "a point of its own"
    group = points(command, source)["data", 4]
    assert not group["whole"] and "not here: wal@3" in command("points", "show", source, "data@upgrade").out
    refused = command("restore", source, "wal@upgrade", "--to", folder / "wal.img", code=5)
    assert "wal" in refused.err and not (folder / "wal.img").exists()


def registration(name: str, timeline: int, number: int) -> Registration:
    return Registration(UUID(int=1), UUID(int=ord(name)), name, timeline, number, number, 7)


def test_who_lacks_a_point() -> None:
    known = [registration("a", 1, 4), registration("b", 1, 5), registration("c", 2, 1), registration("d", 1, 0)]
    assert [each.name for each in lacking(known, 1, 5)] == ["a", "d"]
    assert [each.name for each in lacking(known, 2, 1)] == ["a", "b", "d"]


def test_receivers_are_waited_for_until_the_time_is_over() -> None:
    log, volume = memory_log(), UUID(int=1)
    assert await_receivers(log, volume, 1, 5, ManualWaiter(), 10) == [], "none is registered"
    log.register(registration("a", 1, 5))
    log.register(registration("b", 1, 3))
    waiter = ManualWaiter(lambda: None, lambda: log.register(registration("b", 1, 6)))
    assert [each.name for each in await_receivers(log, volume, 1, 5, waiter, 10)] == ["a", "b"]
    assert waiter.now_s == 2 * LOOK_S
    with pytest.raises(UnavailableError, match=r"not yet at a \(at 1:5\)"):
        await_receivers(log, volume, 1, 6, ManualWaiter(), 10)
    forgotten = ManualWaiter(lambda: log.forget(volume, registration("a", 1, 5).receiver))
    assert [each.name for each in await_receivers(log, volume, 1, 6, forgotten, 10)] == ["b"], "struck off meanwhile"


def test_the_commands_of_registration(database: Database, command: Command) -> None:
    """A receiver says by its name how far it is; `points create --wait` waits for it, until it is forgotten."""
    folder, log = database.folder, database.folder / "log"
    command("receiver", "run", folder / "replica", "--log", log, "--once", "--name", "site-b")
    listed = {each["volume"]: each for each in command("log", "list", log, "--json").document}
    assert [(each["name"], each["number"]) for each in listed["data"]["receivers"]] == [("site-b", 3)]

    made = [database.data.state.number]

    def snapshot(_: dict[str, object]) -> dict[str, object]:
        return {"points": [{"volume": "data", "number": made[0], "timeline": 1}]}

    create = ("points", "create", folder / "replica", "data", "--label", "now", "--wait", "--timeout", "10ms")
    with DaemonSocket(folder / "replica", "agent", {"snapshot": snapshot}):
        assert command(*create, "--json").document["receivers"] == ["site-b"]
        made[0] += 1
        assert "site-b (at 1:3)" in command(*create, "--json", code=1).error["message"]
        assert "receiver forget" in str(command(*create, "--json", code=1).error["mend"])
        command("receiver", "forget", folder / "replica", "data", "site-c", code=5)
        gone = command("receiver", "forget", log, "data", "site-b", "--json").document
        assert gone["number"] == 3 and gone["receiver"] == "site-b"
        assert "no receiver is registered" in command(*create).out
    command("receiver", "run", folder / "replica", "--log", log, "--once", "--no-register")
    listed = {each["volume"]: each for each in command("log", "list", log, "--json").document}
    assert listed["data"]["receivers"] == []
