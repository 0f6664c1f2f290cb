"""`agent rebase`: older copies of a pool, forked histories, emptied logs; one history goes on, or both do."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from agent.context import Context
from agent.cut import GroupPublisher
from agent.decide import FencedError, LostEndError, PoolOlderError, TimelineOverError
from agent.rebase import rebase_from_log, rebase_to_new_timeline
from replicator.errors import ConflictError, NotFoundError, UnavailableError
from replicator.events.beacon import Beacon
from replicator.events.bodies import (
    TimelineEnded,
    TimelineStarted,
)
from replicator.events.chain import ChainChecker
from replicator.events.state import Life, StreamState
from replicator.events.values import DeltaKind
from replicator.log.object_log import ObjectLog
from replicator.pool.catalogue_schema import Role
from replicator.units import MIB
from tests.support.agent_world import VOLUME, Replica, SourceHost, context_of
from tests.support.compared_world import World, change, leave_open
from tests.support.faulty_log import FaultyLog, KilledError, LogFault
from tests.support.manual_clock import ManualClock
from tests.support.memory_objects import MemoryStore


def older_copy(world: World, tmp_path: Path) -> SourceHost:
    """The pool as it was before the log's newest transactions."""
    world.host.close()
    shutil.copytree(world.host.path, tmp_path / "copy" / "pool")
    world.host.reopen_closed()
    world.publish(2, 3)
    world.host.close()
    return SourceHost.at(tmp_path / "copy" / "pool")


def test_an_older_copy_goes_on_from_the_log(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(1)
    world.host = older_copy(world, tmp_path)
    context = world.context = context_of(world.host, world.log, ManualClock())
    with pytest.raises(PoolOlderError, match="older copy") as refused:
        GroupPublisher(context, [VOLUME]).round()
    assert refused.value.exit_code == 4 and "--new-timeline|--from-log" in str(refused.value.mend)
    assert "log's transaction 3" in rebase_from_log(context, VOLUME)
    world.publish(4)
    assert world.began()[-1].kind is DeltaKind.REBASE and world.expected.keys() == {1, 2, 3, 4}
    world.check()


def test_a_rebase_from_the_log_takes_no_epoch_that_the_log_has_lost(tmp_path: Path) -> None:
    """Who had it, or read its events, would take ours for that one: the beacon still tells of it."""
    world = World(tmp_path)
    world.publish(1)
    world.host = older_copy(world, tmp_path)
    context = world.context = context_of(world.host, world.log, ManualClock())
    tail = world.log.reader(VOLUME, 1).tail()
    assert tail.committed is not None
    world.log.write_beacon(Beacon(VOLUME, 1, tail.epoch + 3, tail.sequence, tail.committed.number, tail.digest, 8, 9))
    rebase_from_log(context, VOLUME)
    assert world.log.reader(VOLUME, 1).tail().epoch == tail.epoch + 4


def test_a_rebase_of_a_volume_that_left_the_group_meanwhile_fails_by_name(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(1)
    group = GroupPublisher(world.context, [VOLUME])
    group.only({VOLUME})

    def fail(of: Context) -> str:
        raise NotFoundError(f"{of.host} has no such volume")

    with pytest.raises(NotFoundError):
        group.rebase(VOLUME, fail)
    world.host.close()


def test_a_rebase_from_the_log_aborts_what_is_open_and_fences_whoever_had_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(1)
    world.host.close()
    shutil.copytree(world.host.path, tmp_path / "copy" / "pool")
    world.host.reopen_closed()
    publisher = GroupPublisher(world.context, [VOLUME])
    publisher.settle_down()
    leave_open(world)
    copy = SourceHost.at(tmp_path / "copy" / "pool")
    context = context_of(copy, world.log, ManualClock())
    with pytest.raises(PoolOlderError, match="never prepared"):
        GroupPublisher(context, [VOLUME]).round()
    rebase_from_log(context, VOLUME)
    publisher.look_again()
    with pytest.raises((FencedError, PoolOlderError)):
        publisher.round()
    change(copy, 8)
    GroupPublisher(context, [VOLUME]).round()
    assert Replica.of(world.log).content == copy.content()
    copy.close()


def test_an_older_copy_goes_on_on_a_timeline_of_its_own(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(1)
    copy = older_copy(world, tmp_path)
    context = context_of(copy, world.log, ManualClock())
    said = rebase_to_new_timeline(context, VOLUME)
    assert "timeline 2 behind 1:1, from its base" in said
    old = ChainChecker(StreamState.start(VOLUME))
    change(copy, 9)
    GroupPublisher(context, [VOLUME]).round()
    for event in world.log.reader(VOLUME, 1).read(1):
        old.accept(event)
    assert old.state.life is Life.ENDED and isinstance(event.body, TimelineEnded) and event.body.successor == 2
    assert [each.kind for each in world.began(2)] == [DeltaKind.DELTA]
    assert folded_at(world, 1, 2, world.expected[1]) == copy.content()
    world.host.reopen_closed()
    with pytest.raises(TimelineOverError, match="timeline 2 took over") as over:
        GroupPublisher(world.context, [VOLUME]).round()
    assert over.value.exit_code == 4
    copy.close()


@pytest.mark.parametrize("is_older", [True, False])
def test_from_the_log_right_after_a_new_timeline(tmp_path: Path, is_older: bool) -> None:
    """Nothing is on the new timeline yet: it forks from the log's last transaction, and publishing goes on at once."""
    world = World(tmp_path)
    world.publish(1)
    copy = older_copy(world, tmp_path)
    if not is_older:
        copy.close()
        world.host.reopen_closed()
        copy = world.host
    context = context_of(copy, world.log, ManualClock())
    rebase_to_new_timeline(context, VOLUME)
    how = "by its hashes" if is_older else "from its base"
    for _ in range(2):
        said = rebase_from_log(context, VOLUME)
        assert "log's transaction 1:3, from which timeline 2 goes on" in said and said.endswith(how)
    change(copy, 9)
    GroupPublisher(context, [VOLUME]).round()
    assert [each.kind for each in world.began(2)] == [DeltaKind.REBASE if is_older else DeltaKind.DELTA]
    assert folded_at(world, 3, 2, world.expected[3]) == copy.content()
    copy.close()


def test_from_the_log_on_an_empty_timeline_that_another_one_overtook(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(1)
    rebase_to_new_timeline(world.context, VOLUME)
    assert world.log.claim_timeline(VOLUME, 3, "elsewhere")
    with pytest.raises(TimelineOverError, match="timeline 3 took over"):
        rebase_from_log(world.context, VOLUME)


def folded_at(world: World, forked_at: int, timeline: int, content: bytes) -> bytes:
    """A later timeline's content, on its parent's."""
    events = list(world.log.reader(VOLUME, timeline).read(1))
    started = events[0].body
    assert isinstance(started, TimelineStarted) and started.parent.number == forked_at
    replica = Replica(ChainChecker(StreamState.start(VOLUME, timeline)), bytearray(content))
    for event in events:
        replica.checker.accept(event)
        replica.apply(event)
    return bytes(replica.content)


def test_two_histories_of_one_number_go_two_ways(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(1)
    world.host.close()
    shutil.copytree(world.host.path, tmp_path / "copy" / "pool")
    forked = ObjectLog(MemoryStore(), create=True)
    cast("MemoryStore", forked._store).objects = dict(world.store.objects)
    copy = SourceHost.at(tmp_path / "copy" / "pool")
    elsewhere = GroupPublisher(context_of(copy, forked, ManualClock()), [VOLUME])
    change(copy, 5)
    elsewhere.round()
    world.host.reopen_closed()
    world.publish(2)
    context = context_of(copy, world.log, ManualClock())
    with pytest.raises(PoolOlderError, match="two histories"):
        GroupPublisher(context, [VOLUME]).round()
    assert "timeline 2 behind 1:2, by comparing hashes" in rebase_to_new_timeline(context, VOLUME)
    GroupPublisher(context, [VOLUME]).round()
    assert [each.kind for each in world.began(2)] == [DeltaKind.REBASE]
    assert folded_at(world, 2, 2, world.expected[2]) == copy.content()
    change(copy, 6)
    GroupPublisher(context, [VOLUME]).round()
    assert folded_at(world, 2, 2, world.expected[2]) == copy.content()
    copy.close()


@pytest.mark.parametrize("fault", [LogFault.KILLED_AFTER, LogFault.AWAY_BEFORE], ids=lambda fault: fault.name)
def test_a_rebase_may_die_at_every_operation(tmp_path: Path, fault: LogFault) -> None:
    at, met = 0, True
    while met:
        at += 1
        folder = tmp_path / str(at)
        folder.mkdir()
        world = World(folder)
        world.publish(1)
        copy = older_copy(world, folder)
        faulty = FaultyLog(world.log, at, fault)
        context = replace(context_of(copy, world.log, ManualClock()), log=faulty)
        for _ in range(8):
            with suppress(UnavailableError, KilledError):
                position = copy.pool.view().position(VOLUME, Role.PUBLISHED)
                if position is not None and position.timeline == 1:
                    rebase_to_new_timeline(context, VOLUME)
                change(copy, 9)
                GroupPublisher(context, [VOLUME]).round()
                break
        met = faulty.met
        timeline = max(world.log.timelines(VOLUME))
        assert folded_at(world, 1, timeline, world.expected[1]) == copy.content()
        assert world.log.reader(VOLUME, 1).tail().life is Life.ENDED
        copy.close()
    assert at > 8


def test_a_log_that_has_other_volumes_only_takes_a_rebase(tmp_path: Path) -> None:
    world = World(tmp_path)
    other = world.host.create("other", MIB, uuid=type(VOLUME)(int=9), dev_id=9)
    GroupPublisher(world.context, [other]).round()
    others = dict(world.store.objects)
    world.publish(1, 2)
    world.store.objects = others
    with pytest.raises(LostEndError, match="another log") as refused:
        GroupPublisher(world.context, [VOLUME]).round()
    assert "--from-log" in str(refused.value.mend)
    with pytest.raises(ConflictError, match="no transaction to fork from"):
        rebase_to_new_timeline(world.context, VOLUME)
    assert "from its beginning" in rebase_from_log(world.context, VOLUME)
    world.expected = {}
    world.publish(3)
    world.check()
