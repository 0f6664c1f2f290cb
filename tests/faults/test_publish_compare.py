"""Where no snapshot of the log's last transaction is left, the next one is found by comparing hashes.

Whatever happened to base, log or pool: afterwards the stream folds to the source's content at each cut, and only what
differs was sent.
"""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from agent.append import LogAwayError
from agent.cut import GroupPublisher
from agent.relief import relieve
from replicator.errors import UnavailableError
from replicator.events.bodies import (
    PublisherOpened,
    TransactionAborted,
)
from replicator.events.chain import ChainChecker
from replicator.events.values import DeltaKind
from replicator.pool.catalogue_schema import Purpose
from replicator.units import CHUNK_BYTES, MIB
from tests.support.agent_world import VOLUME, Replica
from tests.support.compared_world import SIZE, World, change, leave_open
from tests.support.faulty_log import FaultyLog, KilledError, LogFault


def test_without_a_base_the_next_transaction_holds_what_differs_and_no_more(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.host.write(0, random.Random(0).randbytes(SIZE))
    world.publish(1, 2)
    world.let_go()
    before = world.host.content()
    world.publish(3)
    after = world.host.content()
    changed = sum(before[at : at + CHUNK_BYTES] != after[at : at + CHUNK_BYTES] for at in range(0, SIZE, CHUNK_BYTES))
    last = world.began()[-1]
    assert (last.kind, last.chunk_bound, last.base is not None) == (DeltaKind.REBASE, changed, True)
    assert 0 < changed < 30
    world.publish(4)
    assert world.began()[-1].kind is DeltaKind.DELTA, "from then on there is a base again"
    world.check()


def test_a_comparison_that_finds_nothing_is_an_empty_transaction(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(1, 2)
    world.let_go()
    publisher = GroupPublisher(world.context, [VOLUME])
    assert publisher.round().made
    world.expected[3] = world.host.content()
    assert world.began()[-1].chunk_bound == 0
    assert not publisher.round().made
    world.check()


@pytest.mark.parametrize("size_bytes", [MIB + 512, SIZE - 1024, 7 * MIB])
def test_a_resize_between_is_compared_too(tmp_path: Path, size_bytes: int) -> None:
    world = World(tmp_path)
    world.publish(1, 2)
    world.let_go()
    world.host.pool.resize(VOLUME, size_bytes)
    world.publish(3, 4)
    world.check()


def test_over_an_external_origin(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    origin.write_bytes(random.Random(7).randbytes(3 * MIB + 4097))
    world = World(tmp_path, origin)
    world.publish(1, 2)
    world.let_go()
    world.publish(3, 4)
    world.check()


def test_of_a_trimmed_log_what_is_not_known_is_sent_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(1, 2, 3)
    sequence = next(e.header.sequence for e in world.log.reader(VOLUME, 1).read(1) if e.header.number == 3)
    start = Replica.of(world.log).points[2]
    assert world.log.trim(VOLUME, 1, sequence) > 1
    world.let_go()
    world.publish(4)
    replica = Replica(ChainChecker(world.log.reader(VOLUME, 1).start()), bytearray(start))
    for event in world.log.reader(VOLUME, 1).read(world.log.reader(VOLUME, 1).start().sequence + 1):
        replica.checker.accept(event)
        replica.apply(event)
    assert replica.content == world.host.content()


@pytest.mark.parametrize("fault", [LogFault.UNKNOWN_AFTER, LogFault.KILLED_AFTER], ids=lambda fault: fault.name)
def test_whatever_fails_while_it_compares_the_stream_is_exact(tmp_path: Path, fault: LogFault) -> None:
    at, met = 0, True
    while met:
        at += 1
        (tmp_path / str(at)).mkdir()
        world = World(tmp_path / str(at))
        world.publish(1, 2)
        world.let_go()
        faulty = FaultyLog(world.log, at, fault)
        for _ in range(8):
            with suppress(UnavailableError, KilledError):
                world.publish(3, context=replace(world.context, log=faulty))
                break
        met = faulty.met
        world.expected |= dict.fromkeys(
            Replica.of(world.log).points.keys() - world.expected.keys(), world.host.content()
        )
        world.check()
        world.host.close()
    assert at > 8


def test_a_log_that_lost_its_end_is_sent_what_it_lacks(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(1, 2)
    older = dict(world.store.objects)
    world.publish(3, 4, 5)
    world.store.objects = dict(older)
    world.expected = {number: content for number, content in world.expected.items() if number < 3}
    told: list[str] = []
    world.publish(6, context=replace(world.context, report=told.append))
    assert world.expected.keys() == {1, 2, 3}
    assert "lost its end" in told[0] and "comparing hashes" in told[0]
    world.check()


def test_a_log_that_is_swapped_for_an_older_one_is_noticed_before_the_next_transaction(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(1)
    older = dict(world.store.objects)
    publisher = GroupPublisher(world.context, [VOLUME])
    for seed in (2, 3):
        change(world.host, seed)
        publisher.round()
    world.store.objects = dict(older)  # under the writing publisher's hands
    change(world.host, 4)
    publisher.round()
    world.expected[2] = world.host.content()
    world.check()


def test_a_log_without_any_transaction_begins_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    GroupPublisher(world.context, [VOLUME]).settle_down()
    created = dict(world.store.objects)
    world.publish(1, 2)
    world.store.objects = dict(created)
    world.expected = {}
    world.publish(3)
    assert world.began()[-1].kind is DeltaKind.FULL
    world.check()


def test_a_base_that_was_let_go_of_in_the_middle_of_a_transaction(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(1)
    leave_open(world)
    world.let_go()
    assert [each.number for each in world.host.pool.view().prepared] == [2], "what is open in the log is still known"
    world.publish(3)
    assert world.began()[-1].kind is DeltaKind.REBASE
    aborted = [e.body for e in world.log.reader(VOLUME, 1).read(1) if isinstance(e.body, TransactionAborted)]
    assert len(aborted) == 1 and "is gone" in aborted[0].reason
    world.check()


def test_a_device_number_that_was_given_again_is_not_taken_for_the_target(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(1)
    leave_open(world)
    (waiting,) = world.host.pool.view().prepared
    world.let_go()
    for number in range(10, 16):
        world.host.pool._next_dev_id = waiting.target_dev_id
        if world.host.snapshot(number=number) == waiting.target_dev_id:
            break
    else:
        pytest.fail("the number wasn't given again")
    world.publish(3)
    assert world.began()[-1].kind is DeltaKind.REBASE
    assert Replica.of(world.log).content == world.host.content()
    assert world.host.pool.view().snapshot(waiting.target_dev_id).purpose is Purpose.USER, "nor deleted as one"


def test_what_was_committed_just_before_the_base_went_counts(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(1)
    change(world.host, 2)
    world.expected[2] = world.host.content()
    publisher = GroupPublisher(replace(world.context, log=FaultyLog(world.log, 7, LogFault.AWAY_AFTER)), [VOLUME])
    for _ in range(3):
        with suppress(LogAwayError):
            publisher.round()
        if world.log.reader(VOLUME, 1).tail().committed is None:
            continue
        if world.host.pool.view().prepared:
            break
    world.let_go()
    world.publish(3)
    world.check()


def test_relief_frees_nothing_where_there_is_room(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(1, 2)
    assert not relieve(world.host.pool, [VOLUME])
    assert world.host.pool.view().snapshots
    opened = [e.body for e in world.log.reader(VOLUME, 1).read(1) if isinstance(e.body, PublisherOpened)]
    assert len(opened) == 1
