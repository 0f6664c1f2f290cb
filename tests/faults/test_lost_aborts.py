"""The log loses just the abort of a transaction: who gave it up puts that right, however much came between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

import agent.append
import replicator.log.segment
from agent.append import LogAwayError
from agent.context import Context, open_files
from agent.cut import GroupPublisher
from agent.delta import PoolFiles
from agent.publish import REMEMBERED_MAX, VoidedError
from replicator._buffer import Buffer
from replicator.blockdev.file import FileDevice
from replicator.errors import DeviceError, UnavailableError
from replicator.events.bodies import TransactionAborted
from replicator.log.object_log import ObjectLog
from replicator.pool.interface import Pool
from replicator.units import MIB
from tests.support.agent_world import VOLUME, Replica, SourceHost, context_of
from tests.support.manual_clock import ManualClock
from tests.support.memory_objects import MemoryStore


class Store(MemoryStore):
    """Objects, unless their disk is full."""

    is_full = False
    refused = 0

    def put_if_absent(self, name: str, data: Buffer) -> bool:
        self.refused += self.is_full
        if self.is_full:
            raise UnavailableError("the log's disk is full")
        return super().put_if_absent(name, data)

    def lose_last(self) -> None:
        """The newest segment of the stream."""
        del self.objects[max(name for name in self.objects if name.startswith(f"{VOLUME}/{1:010d}/"))]


@dataclass(slots=True)
class Disk:
    """The pool's data: whether it can be read, and whether the log's disk is full once it can't."""

    store: Store
    is_bad: bool = False
    fills: bool = False
    host: SourceHost = field(init=False)

    def files(self, pool: Pool) -> AbstractContextManager[PoolFiles]:
        """As the publisher opens them."""
        return self._bad(pool) if self.is_bad else open_files(pool)

    @contextmanager
    def _bad(self, pool: Pool) -> Iterator[PoolFiles]:
        with FileDevice(pool.path / "metadata", read_only=True) as metadata, Bad(pool.path / "data", self) as data:
            yield PoolFiles(metadata, data, pool.block_bytes)


class Bad(FileDevice):
    """Data that can't be read."""

    def __init__(self, path: Path, disk: Disk) -> None:
        super().__init__(path)
        self._disk = disk

    def pread_into(self, target: Buffer, offset_bytes: int) -> None:
        self._disk.store.is_full = self._disk.fills
        raise DeviceError("bad spot", offset_bytes, 5, "Input/output error")


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """Whose log has a segment for each event."""
    monkeypatch.setattr(agent.append, "GATHERED_BYTES_MAX", 1)
    monkeypatch.setattr(replicator.log.segment, "ROLL_BYTES", 1)
    made = Disk(Store())
    made.host = SourceHost(tmp_path, size_bytes=16 * MIB)
    made.host.create("disk", 5 * MIB)
    made.host.write(0, b"first" * 1000)
    yield made
    made.host.close()


@pytest.fixture
def publisher(disk: Disk) -> Iterator[GroupPublisher]:
    """One whose transaction 1 is in the log, and whose transaction 2 was given up."""
    log = ObjectLog(disk.store, create=True)
    made = GroupPublisher(replace(context_of(disk.host, log, ManualClock()), files=disk.files), [VOLUME])
    made.round()
    disk.host.write(MIB, b"second" * 1000)
    disk.is_bad = True
    with pytest.raises(VoidedError):
        made.round()
    yield made
    made.close()


def require_whole(disk: Disk, publisher: GroupPublisher) -> None:
    """The next round puts it right: the given-up transaction is aborted again, and its number comes again."""
    disk.is_bad = disk.store.is_full = False
    publisher.look_again()
    assert publisher.round().made
    replica = Replica.of(ObjectLog(disk.store))
    assert replica.points[2] == disk.host.content() and len(replica.points) == 2
    bodies = [event.body for event in ObjectLog(disk.store).reader(VOLUME, 1).read(1)]
    assert len([body for body in bodies if isinstance(body, TransactionAborted)]) == 1


def test_it_is_known_by_who_gave_it_up(disk: Disk, publisher: GroupPublisher) -> None:
    disk.store.lose_last()
    require_whole(disk, publisher)


def test_it_is_known_behind_a_rebase_that_failed(disk: Disk, publisher: GroupPublisher) -> None:
    def fail(of: Context) -> str:
        raise UnavailableError(f"{of.host} doesn't reach its pool")

    with pytest.raises(UnavailableError):
        publisher.rebase(VOLUME, fail)
    disk.store.lose_last()
    require_whole(disk, publisher)


def test_it_is_known_though_the_abort_of_another_was_tried_for_days(disk: Disk, publisher: GroupPublisher) -> None:
    disk.fills = True
    for _ in range(REMEMBERED_MAX + 2):
        with suppress(LogAwayError):
            publisher.round()
    assert disk.store.refused > REMEMBERED_MAX, "tries of the second one's abort"
    disk.store.lose_last()  # the second one's beginning
    disk.store.lose_last()  # the first one's abort
    disk.fills = disk.store.is_full = False
    publisher.look_again()
    with pytest.raises(VoidedError):
        publisher.round()  # the first one is aborted again; the second one, which can't be read, is told
    require_whole(disk, publisher)
