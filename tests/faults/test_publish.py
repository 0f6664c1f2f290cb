"""Whatever happens at the n-th operation of the log, or of the pool: the stream is exact, and the pool agrees with it.

The publisher is retried, or killed and built anew from pool and log, as its daemon does. Afterwards: the stream folds
to the source's content at every cut, without a hole or a doubled event; one base is left, no prepared row, no cut, no
target; and a further round finds nothing changed.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

import agent.append
from agent.append import LogAwayError
from agent.context import Context
from agent.cut import GroupPublisher
from agent.decide import FencedError, PoolOlderError
from agent.delta import PoolFiles
from agent.publish import VoidedError
from agent.transmit import StoppedError
from replicator._buffer import Buffer
from replicator.blockdev.file import FileDevice
from replicator.errors import DeviceError, UnavailableError
from replicator.events.bodies import TransactionAborted, TransactionBegan
from replicator.log.interface import Log
from replicator.log.object_log import ObjectLog
from replicator.pool.catalogue_schema import Purpose, Role, Snapshot
from replicator.pool.changes import End, Put
from replicator.pool.interface import Pool, Switch
from replicator.units import CHUNK_BYTES, MIB
from tests.support.agent_world import VOLUME, Replica, SourceHost, context_of
from tests.support.faulty_log import FaultyLog, KilledError, LogFault
from tests.support.manual_clock import ManualClock
from tests.support.memory_objects import MemoryStore


def change(host: SourceHost, round_number: int) -> None:
    """Discards, zeroes and writes in every round."""
    rng = random.Random(round_number)
    for _ in range(6):
        host.write(rng.randrange(4 * MIB), rng.randbytes(rng.randrange(1, 60_000)))
    host.write(CHUNK_BYTES * rng.randrange(60), bytes(CHUNK_BYTES))
    host.discard(CHUNK_BYTES * rng.randrange(60), 2 * CHUNK_BYTES)


def assert_settled(host: SourceHost, log: ObjectLog, expected: dict[int, bytes]) -> None:
    """Stream and pool agree, and nothing is left over."""
    replica = Replica.of(log)
    assert replica.points.keys() == expected.keys()
    assert all(replica.points[number] == content for number, content in expected.items())
    view = host.pool.view()
    position, (base,) = view.position(VOLUME, Role.PUBLISHED), view.snapshots_of(VOLUME)
    committed = replica.checker.state.committed
    assert position is not None and committed is not None
    assert (position.number, position.digest) == (committed.number, committed.digest)
    assert position.sequence == replica.checker.state.committed_sequence
    assert (base.purpose, base.number, base.digest) == (Purpose.BASE, committed.number, committed.digest)
    assert not view.prepared and not view.cuts
    assert set(host.pool.facts(())) == {1, base.dev_id}


def run(host: SourceHost, log: Log, rounds: int = 2, pool: Pool | None = None) -> dict[int, bytes]:
    """Rounds until each is in the log, however often it takes; the content at each N."""
    expected: dict[int, bytes] = {}
    context = context_of(host, log, ManualClock())
    if pool is not None:
        context = replace(context, pool=lambda: pool)
    publisher = GroupPublisher(context, [VOLUME])
    for number in range(1, rounds + 1):
        change(host, number)
        expected[number] = host.content()
        for _ in range(10):
            try:
                publisher.round()
                break
            except UnavailableError:
                publisher.look_again()
            except KilledError:
                publisher = GroupPublisher(context, [VOLUME])
        else:
            pytest.fail("it doesn't come to an end")
    for _ in range(2):
        with suppress(UnavailableError, KilledError):
            assert not publisher.round().made
    publisher.close()
    return expected


@pytest.mark.parametrize("fault", list(LogFault), ids=lambda fault: fault.name)
@pytest.mark.parametrize("gathered", [1, 4 * MIB], ids=["event by event", "gathered"])
def test_every_operation_of_the_log_fails_once(
    tmp_path: Path, fault: LogFault, gathered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent.append, "GATHERED_BYTES_MAX", gathered)
    at = 0
    while True:
        at += 1
        folder = tmp_path / str(at)
        folder.mkdir()
        host, real = SourceHost(folder, size_bytes=16 * MIB), ObjectLog(MemoryStore(), create=True)
        host.create("disk", 5 * MIB + 512)
        log = FaultyLog(real, at, fault)
        expected = run(host, log)
        assert_settled(host, real, expected)
        host.close()
        if not log.met:
            break
    assert at > 5


class FaultyPool:
    """A Pool whose `at`-th call meets UnavailableError, before or after it was done, or kills the caller."""

    def __init__(self, host: SourceHost, at: int, fault: LogFault) -> None:
        self._host, self._at, self._fault = host, at, fault
        self.operations = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._host.pool, name)
        return found if name in ("path", "block_bytes") else lambda *arguments: self._call(found, *arguments)

    def _call(self, do: Callable[..., Any], *arguments: Any) -> Any:
        self.operations += 1
        if self.operations != self._at:
            return do(*arguments)
        if self._fault in (LogFault.AWAY_AFTER, LogFault.KILLED_AFTER):
            do(*arguments)
        if self._fault in (LogFault.KILLED_BEFORE, LogFault.KILLED_AFTER):
            raise KilledError
        raise UnavailableError("injected")


POOL_FAULTS = (LogFault.AWAY_BEFORE, LogFault.AWAY_AFTER, LogFault.KILLED_AFTER)


@pytest.mark.parametrize("fault", POOL_FAULTS, ids=lambda fault: fault.name)
def test_every_call_of_the_pool_fails_once(tmp_path: Path, fault: LogFault) -> None:
    at = 0
    while True:
        at += 1
        folder = tmp_path / str(at)
        folder.mkdir()
        host, log = SourceHost(folder, size_bytes=16 * MIB), ObjectLog(MemoryStore(), create=True)
        host.create("disk", 5 * MIB + 512)
        pool = FaultyPool(host, at, fault)
        assert_settled(host, log, run(host, log, pool=cast("Pool", pool)))
        host.close()
        if pool.operations < at:
            break
    assert at > 20


def world(tmp_path: Path) -> tuple[SourceHost, ObjectLog, Context]:
    """A host with one volume, whose first transaction is in the log."""
    host, log = SourceHost(tmp_path, size_bytes=16 * MIB), ObjectLog(MemoryStore(), create=True)
    host.create("disk", 5 * MIB)
    change(host, 1)
    context = context_of(host, log, ManualClock())
    publisher = GroupPublisher(context, [VOLUME])
    publisher.round()
    publisher.close()
    return host, log, context


class BadSpot(FileDevice):
    """A data device that can't be read beyond its first reads."""

    good_reads = 3

    def pread_into(self, target: Buffer, offset_bytes: int) -> None:
        self.good_reads -= 1
        if self.good_reads < 0:
            raise DeviceError("bad spot", offset_bytes, 5, "Input/output error")
        super().pread_into(target, offset_bytes)


@contextmanager
def bad_files(pool: Pool) -> Iterator[PoolFiles]:
    with FileDevice(pool.path / "metadata", read_only=True) as metadata, BadSpot(pool.path / "data") as data:
        yield PoolFiles(metadata, data, pool.block_bytes)


def test_a_block_that_cannot_be_read_aborts_and_the_number_is_used_again(tmp_path: Path) -> None:
    host, log, context = world(tmp_path)
    change(host, 2)
    publisher = GroupPublisher(replace(context, files=bad_files), [VOLUME])
    with pytest.raises(VoidedError, match="bad spot"):
        publisher.round()
    assert not host.pool.view().prepared
    publisher.close()
    change(host, 3)
    publisher = GroupPublisher(context, [VOLUME])
    publisher.round()
    replica = Replica.of(log)
    assert replica.points[2] == host.content()
    events = [event.body for event in log.reader(VOLUME, 1).read(1)]
    aborted = [body for body in events if isinstance(body, TransactionAborted)]
    assert [(body.number, "bad spot" in body.reason) for body in aborted] == [(2, True)]
    assert_settled(host, log, replica.points)
    publisher.close()
    host.close()


def leave_in_the_middle(host: SourceHost, log: ObjectLog, context: Context) -> None:
    """A publisher that was stopped after the first events of transaction 2, which are in the log."""
    clock = ManualClock()
    stopping = replace(context, clock=clock, tell=clock.stop)
    publisher = GroupPublisher(stopping, [VOLUME])
    with pytest.raises(StoppedError):
        publisher.round()
    publisher.sync()
    publisher.close()
    assert log.reader(VOLUME, 1).tail().open is not None


def test_a_stopped_transaction_is_gone_on_with(tmp_path: Path) -> None:
    host, log, context = world(tmp_path)
    change(host, 2)
    expected = host.content()
    leave_in_the_middle(host, log, context)
    change(host, 3)
    publisher = GroupPublisher(context, [VOLUME])
    publisher.settle_down()
    bodies = [event.body for event in log.reader(VOLUME, 1).read(1)]
    assert sum(isinstance(body, TransactionBegan) for body in bodies) == 2, "nothing was sent again from the start"
    assert Replica.of(log).points[2] == expected
    publisher.round()
    assert_settled(host, log, {**Replica.of(log).points, 3: host.content()})
    publisher.close()
    host.close()


def test_a_target_that_was_lost_aborts_and_a_new_cut_spans_it(tmp_path: Path) -> None:
    host, log, context = world(tmp_path)
    change(host, 2)
    leave_in_the_middle(host, log, context)
    (waiting,) = host.pool.view().prepared
    host.pool.switch(Switch(delete=(waiting.target_dev_id,), changes=(End(Snapshot, (waiting.target_dev_id,)),)))
    publisher = GroupPublisher(context, [VOLUME])
    publisher.round()
    assert_settled(host, log, {**Replica.of(log).points, 2: host.content()})
    publisher.close()
    host.close()


def test_a_base_that_somebody_reads_is_hidden_and_deleted_later(tmp_path: Path) -> None:
    host, log, context = world(tmp_path)
    publisher = GroupPublisher(context, [VOLUME])
    (base,) = host.pool.view().snapshots_of(VOLUME)
    with host.pool.lease([base.dev_id]):
        change(host, 2)
        assert publisher.round().made
        assert host.pool.view().snapshot(base.dev_id).hidden
    change(host, 3)
    publisher.round()
    assert_settled(host, log, Replica.of(log).points)
    publisher.close()
    host.close()


def test_of_two_publishers_the_later_one_fences_the_earlier(tmp_path: Path) -> None:
    host, log, context = world(tmp_path)
    earlier, later = GroupPublisher(context, [VOLUME]), GroupPublisher(context, [VOLUME])
    earlier.settle_down()
    later.settle_down()
    change(host, 2)
    with pytest.raises(FencedError) as refused:
        earlier.round()
    assert refused.value.exit_code == 4
    later.round()
    assert_settled(host, log, {**Replica.of(log).points, 2: host.content()})
    earlier.close()
    later.close()
    host.close()


def test_a_stale_copy_of_the_pool_appends_nothing_and_fences_nobody(tmp_path: Path) -> None:
    host, log, context = world(tmp_path)
    host.close()
    shutil.copytree(host.path, tmp_path / "copy" / "pool")
    host.reopen_closed()
    publisher = GroupPublisher(context, [VOLUME])
    change(host, 2)
    publisher.round()
    tail = log.reader(VOLUME, 1).tail()
    stale = SourceHost.at(tmp_path / "copy" / "pool")
    change(stale, 9)
    with pytest.raises(PoolOlderError, match="older copy") as refused:
        GroupPublisher(context_of(stale, log, ManualClock()), [VOLUME]).round()
    assert "agent rebase" in str(refused.value.mend)
    assert log.reader(VOLUME, 1).tail() == tail
    change(host, 3)
    publisher.round()
    assert_settled(host, log, Replica.of(log).points)
    stale.close()
    publisher.close()
    host.close()


def test_a_log_that_lost_its_end_is_sent_it_again_while_the_base_is_there(tmp_path: Path) -> None:
    host, log, context = world(tmp_path)
    store = cast("MemoryStore", log._store)
    old_end = dict(store.objects)
    publisher = GroupPublisher(context, [VOLUME])
    (base,) = host.pool.view().snapshots_of(VOLUME)
    with host.pool.lease([base.dev_id]):
        change(host, 2)
        publisher.round()
    host.pool.switch(Switch(changes=(Put(replace(host.pool.view().snapshot(base.dev_id), hidden=False)),)))
    publisher.close()
    store.objects = dict(old_end)
    publisher = GroupPublisher(context, [VOLUME])
    publisher.round()
    assert_settled(host, log, {**Replica.of(log).points, 2: host.content()})
    publisher.close()
    host.close()


def test_a_log_that_is_wholly_empty_is_away_and_not_begun_anew(tmp_path: Path) -> None:
    host, log, context = world(tmp_path)
    store = cast("MemoryStore", log._store)
    mounted, store.objects = store.objects, {}
    publisher = GroupPublisher(context, [VOLUME])
    change(host, 2)
    with pytest.raises(LogAwayError, match="holds nothing") as away:
        publisher.round()
    assert "mount" in str(away.value.mend) and not store.objects
    publisher.look_again()
    store.objects = mounted
    publisher.round()
    assert_settled(host, log, {**Replica.of(log).points, 2: host.content()})
    publisher.close()
    host.close()
