"""A log that was replaced by an older copy and published to again: nothing old is given as what is current."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from replicator.log.object_log import directory_log
from replicator.pool.catalogue_schema import Position, Purpose, Role, Setting
from replicator.pool.changes import Put
from replicator.pool.creation import PoolPlan, create_pool
from replicator.pool.interface import CutRequest, Switch
from replicator.pool.opening import OwnedPool, own_pool
from replicator.pool.volumes import create_volume
from replicator.repository.logged import read_history
from replicator.repository.remembered import LOG_SETTING, remember_log, remembered_log
from replicator.units import CHUNK_BYTES, MIB
from tests.support.command_line import Command
from tests.support.volume_histories import NAME, History

SIZE = 4 * CHUNK_BYTES
BOTH = 2  # transactions that both histories have


def told(folder: Path, own: str, numbers: int) -> History:
    """A log of the two common transactions, and then others; `own` tells them apart, the fourth is labelled."""
    history = History(directory_log(folder, create=True), random.Random(8), SIZE)
    for number in range(1, numbers + 1):
        data = random.Random(f"{number if number <= BOTH else own + str(number)}").randbytes(CHUNK_BYTES)
        history.write((number % 4) * CHUNK_BYTES, data, *([f"{own}-keep"] if number == 4 else []))
    history.close()
    return history


@dataclass(frozen=True, slots=True)
class Ground:
    """A replica of the first history, which is at 5 and keeps 1 and 4, and a log that has the second one."""

    folder: Path
    pool: Path
    log: Path
    ours: History
    logs: History

    def replace_log(self, numbers: int) -> Ground:
        """The same with a log of so many transactions."""
        folder = self.folder / f"log-of-{numbers}-{uuid4()}"
        logs = told(folder, "log", numbers)
        with own_pool(self.pool) as pool:
            pool.switch(Switch(changes=(Put(Setting(LOG_SETTING, str(folder))),)))
        return replace(self, log=folder, logs=logs)


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    ours = told(tmp_path / "lost", "pool", 5)
    create_pool(tmp_path / "pool", PoolPlan(size_bytes=64 * MIB, metadata_bytes=4 * MIB))
    points = {each.number: each for each in read_history(ours.log, ours.volume).points}
    with own_pool(tmp_path / "pool") as pool:
        volume = create_volume(pool, NAME, SIZE, uuid=ours.volume)
        for number in (1, 4):
            keep(pool, volume.dev_id, ours, number)
        write(pool, volume.dev_id, ours, 5)
        last = points[5]
        position = Position(ours.volume, Role.APPLIED, 1, 5, last.digest, last.sequence, 1, last.timestamp_ns)
        pool.switch(Switch(changes=(Put(position), *(Put(each) for each in points.values()))))
    yield Ground(tmp_path, tmp_path / "pool", tmp_path, ours, ours).replace_log(3)


def write(pool: OwnedPool, dev_id: int, history: History, number: int) -> None:
    """Have the volume itself be transaction `number`."""
    device = pool.engine.open_device(dev_id, SIZE, read_only=False)
    with pool.engine.gate.writing():
        device.pwrite(history.contents[1, number], 0)
    pool.flush()


def keep(pool: OwnedPool, dev_id: int, history: History, number: int) -> None:
    """Have transaction `number` as a snapshot."""
    write(pool, dev_id, history, number)
    made = pool.cut(CutRequest(uuid4(), (history.volume,), Purpose.POINT))
    row = pool.view().snapshot(made.dev_ids[0])
    point = {each.number: each for each in read_history(history.log, history.volume).points}[number]
    same = replace(row, number=number, digest=point.digest, timestamp_ns=point.timestamp_ns, labels=point.labels)
    pool.switch(Switch(changes=(Put(same),)))


def restored(ground: Ground, command: Command, source: Path, point: str, *more: str) -> bytes:
    to = ground.folder / "out.img"
    command("restore", source, f"{NAME}@{point}", "--to", to, "--overwrite", *more)
    return to.read_bytes()


@pytest.mark.parametrize("numbers", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("point", ["latest", "-1s", "2100-01-01"])
def test_what_either_history_would_answer_is_refused(
    ground: Ground, command: Command, numbers: int, point: str
) -> None:
    ground = ground.replace_log(numbers)
    to = ground.folder / "out.img"
    for more in ([], ["--accept-gap"]):
        ran = command("restore", ground.pool, f"{NAME}@{point}", "--to", to, "--json", *more, code=4)
        assert ran.error["kind"] == "two-histories" and "--from-pool" in ran.error["mend"]
        assert "ends with @5" in ran.error["message"] and f"ends with @{numbers}" in ran.error["message"]
        assert "part after @2" in ran.error["message"] and str(ground.log) in ran.error["mend"]
    assert not to.exists()


def test_what_only_one_history_can_mean_is_given(ground: Ground, command: Command) -> None:
    for point in ("1", "2"):
        assert restored(ground, command, ground.pool, point) == ground.logs.contents[1, int(point)]
    for point in ("4", "1:4", "pool-keep"):
        assert restored(ground, command, ground.pool, point) == ground.ours.contents[1, 4]
    assert restored(ground, command, ground.pool, "5") == ground.ours.contents[1, 5], "the replica is at it"
    two = ground.replace_log(2)
    assert "known to the pool" in command("restore", two.pool, f"{NAME}@3", "--to", "-", code=5).err
    six = ground.replace_log(6)
    assert restored(six, command, six.pool, "log-keep") == six.logs.contents[1, 4]
    assert restored(six, command, six.pool, "pool-keep") == six.ours.contents[1, 4]
    assert restored(six, command, six.pool, "6") == six.logs.contents[1, 6], "not over the pool's fourth"


@pytest.mark.parametrize("point", ["3", "1:3", "4", "5"])
def test_a_number_of_both_is_ambiguous(ground: Ground, command: Command, point: str) -> None:
    ground = ground.replace_log(6)
    command("restore", ground.pool, f"{NAME}@{point}", "--to", "-", "--dry-run", code=4)
    assert restored(ground, command, ground.log, point) == ground.logs.contents[1, int(point[-1])]


def test_either_history_can_be_chosen(ground: Ground, command: Command) -> None:
    ground = ground.replace_log(6)
    assert restored(ground, command, ground.log, "latest") == ground.logs.contents[1, 6]
    assert restored(ground, command, ground.pool, "latest", "--from-pool") == ground.ours.contents[1, 5]
    plan = command("restore", ground.pool, f"{NAME}@latest", "--from-pool", "--to", "-", "--dry-run")
    assert "the volume itself, @1:5" in plan.out and not plan.err
    command("restore", ground.log, f"{NAME}@latest", "--from-pool", "--to", "-", "--dry-run", code=2)


def test_the_list_says_the_same(ground: Ground, command: Command) -> None:
    ran = command("points", "list", ground.pool, "--json", code=4)
    listed = {(each["number"], each["history"], each["materialised"]) for each in ran.document}
    assert listed == {(1, "both", True), (2, "both", False), (3, "log", False), (4, "pool", True), (5, "pool", False)}
    assert ran.error["kind"] == "two-histories"
    alone = command("points", "list", ground.pool, "--from-pool", "--json").document
    assert [(each["number"], each["history"]) for each in alone] == [(1, None), (4, None), (5, None)]
    shown = command("points", "show", ground.pool, f"{NAME}@4", "--json").document
    assert shown["history"] == "pool" and shown["complete_to"] is None and "two histories" in shown["two_histories"]


def test_a_log_that_has_nothing_of_the_volume_is_another_history(ground: Ground, command: Command) -> None:
    """A log that was emptied, or a new one of the same name: its `latest` isn't the newest snapshot, said quietly."""
    directory_log(ground.folder / "other", create=True).close()
    with own_pool(ground.pool) as pool:
        remember_log(pool, Role.APPLIED, str(ground.folder / "other"))
    command("points", "list", ground.pool, "--json", code=4)
    for line in (("restore", ground.pool, f"{NAME}@latest", "--to", ground.folder / "out.img"),):
        assert command(*line, "--json", code=4).error["kind"] == "two-histories"
    alone = command("points", "list", ground.pool, "--from-pool", "--json").document
    assert [each["number"] for each in alone] == [1, 4, 5]


def test_a_replica_comes_from_the_log_that_is_followed(ground: Ground, command: Command) -> None:
    """On the worst day a clone is published to a log of its own; its agent names that in the same catalogue."""
    folder = ground.folder / "more"
    logs = told(folder, "pool", 7)
    with own_pool(ground.pool) as pool:
        remember_log(pool, Role.APPLIED, str(folder))
        remember_log(pool, Role.PUBLISHED, str(ground.folder / "other"))
        assert remembered_log(pool.view(), UUID(int=1)) == str(ground.folder / "other")
    assert restored(ground, command, ground.pool, "latest") == logs.contents[1, 7]
    with own_pool(ground.pool) as pool:
        remember_log(pool, Role.APPLIED, str(ground.folder / "other"))
        remember_log(pool, Role.PUBLISHED, str(folder))
    told_of = command("points", "show", ground.pool, f"{NAME}@latest", "--json").document
    assert told_of["number"] == 5 and "there is no log" in told_of["log_problem"]


def test_one_history_is_one(ground: Ground, command: Command) -> None:
    """The pool's own log, and more of it: what was remembered is borne out by digest, and the rest follows."""
    folder = ground.folder / "more"
    logs = told(folder, "pool", 7)
    with own_pool(ground.pool) as pool:
        pool.switch(Switch(changes=(Put(Setting(LOG_SETTING, str(folder))),)))
    assert restored(ground, command, ground.pool, "latest") == logs.contents[1, 7]
    assert [each["history"] for each in command("points", "list", ground.pool, "--json").document] == [None] * 7
