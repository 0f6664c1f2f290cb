"""An archiver that follows: it goes on through everything, and what is wrong beside the streams is tried again."""

from __future__ import annotations

import io
import json
from uuid import UUID

import pytest

from replicator.cli.log_archive import _Told
from replicator.errors import DamageError, FormatError, NotFoundError, ReplicatorError, UnavailableError
from replicator.exporter.journal import Journal
from replicator.log.interface import Log, VolumeEntry
from replicator.log.object_log import ObjectLog
from replicator.repository.archive import Copied
from replicator.repository.archive_registration import RENEW_S
from tests.support.archiving import archiver
from tests.support.faulty_log import FaultyLog, LogFault
from tests.support.manual_waiter import ManualWaiter
from tests.support.memory_objects import MemoryStore
from tests.support.replica_streams import SourceVolume

DAMAGED = FormatError("topic site.catalogue offset 3", "a record whose checksum is right", "another")


class Damaged(FaultyLog):
    """A log that is damaged where the volumes or their timelines are listed, the first `left` times."""

    def __init__(self, log: Log, name: str, left: int) -> None:
        super().__init__(log)
        self._name, self._left = name, left

    def volumes(self) -> list[VolumeEntry]:
        self._meet("volumes")
        return super().volumes()

    def timelines(self, volume: UUID) -> list[int]:
        self._meet("timelines")
        return super().timelines(volume)

    def _meet(self, name: str) -> None:
        if name == self._name and self._left:
            self._left -= 1
            raise DAMAGED


class Told:
    """What a daemon reports: rows, and a trouble of each round or None."""

    def __init__(self) -> None:
        self.rows: list[Copied] = []
        self.troubles: list[ReplicatorError | None] = []

    def __call__(self, copied: list[Copied], trouble: ReplicatorError | None) -> None:
        self.rows.extend(copied)
        self.troubles.append(trouble)


def memory() -> ObjectLog:
    return ObjectLog(MemoryStore(), create=True)


def events(log: Log, volume: UUID) -> list[bytes]:
    return [bytes(event.encoded) for event in log.reader(volume, 1).read(1)]


@pytest.fixture
def volume() -> SourceVolume:
    volume = SourceVolume(3, 12 * 65536)
    volume.transaction(volume.scribble())
    return volume


@pytest.fixture
def source(volume: SourceVolume) -> ObjectLog:
    log = memory()
    volume.publish(log)
    return log


def test_it_goes_on_through_everything(volume: SourceVolume, source: ObjectLog) -> None:
    """The source is away at first; events come while it follows; it ends at a stop with all that stands."""

    def more() -> None:
        volume.transaction(volume.scribble())
        volume.publish(source)

    def half() -> None:
        volume.begin()
        volume.publish(source)

    target, told = memory(), Told()
    waiter = ManualWaiter(lambda: None, more, lambda: None, more, half, stop_after=8)
    with archiver(FaultyLog(source, 1, LogFault.AWAY_BEFORE, 2), target, waiter=waiter) as copying:
        copying.follow(RENEW_S, told)
    assert [type(each) for each in told.troubles if each] == [UnavailableError] * 2, "of the first two rounds"
    assert not [row.error for row in told.rows if row.error]
    assert sum(row.event_count for row in told.rows) >= volume.state.sequence
    assert events(source, volume.uuid) == events(target, volume.uuid)
    assert [each.sequence for each in source.registrations(volume.uuid)] == [volume.state.sequence]


def test_it_ends_where_the_source_is_away(volume: SourceVolume, source: ObjectLog) -> None:
    target, told, faulty = memory(), Told(), FaultyLog(source)
    waiter = ManualWaiter(lambda: setattr(faulty, "is_away", True), stop_after=1)
    with archiver(faulty, target, waiter=waiter) as copying:
        copying.follow(RENEW_S, told)
    assert [type(each) for each in told.troubles] == [type(None), UnavailableError]
    assert events(source, volume.uuid) == events(target, volume.uuid)


@pytest.mark.parametrize("name", ["volumes", "timelines"])
def test_damage_beside_the_streams_is_told_and_tried_again(name: str, volume: SourceVolume, source: ObjectLog) -> None:
    target, told = memory(), Told()
    with archiver(Damaged(source, name, 2), target, waiter=ManualWaiter(stop_after=3)) as copying:
        copying.follow(RENEW_S, told)
    assert told.troubles == [DAMAGED, DAMAGED, None, None]
    assert not [row.error for row in told.rows if row.error]
    assert events(source, volume.uuid) == events(target, volume.uuid)


@pytest.mark.parametrize("name", ["volumes", "timelines"])
def test_it_ends_one_that_is_made_once(name: str, source: ObjectLog) -> None:
    with archiver(Damaged(source, name, 1), memory()) as copying:
        with pytest.raises(DamageError) as caught:
            copying.round()
        assert caught.value.exit_code == 3


def test_a_volume_that_nobody_knows_ends_the_daemon(source: ObjectLog) -> None:
    with archiver(source, memory(), names=["nobody"]) as copying, pytest.raises(NotFoundError):
        copying.follow(RENEW_S, lambda *_: None)


def test_the_journal_tells_damage_from_absence_and_each_once() -> None:
    lines = io.StringIO()
    told = _Told(Journal(lines, lambda: 0))
    for trouble in (DAMAGED, DAMAGED, UnavailableError("away"), None, DAMAGED):
        told([], trouble)
    read = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [line["event"] for line in read] == ["log damaged", "log unreachable", "log damaged"]
    assert read[0]["reason"] == DAMAGED.message
