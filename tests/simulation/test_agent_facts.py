"""What an agent says besides transactions, and how it fails: deletions, labels, attestations, receivers, crashes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from uuid import UUID

import pytest

from agent.attest import attested, span_chunks_of
from agent.context import Context
from agent.cut import GroupPublisher
from agent.farewell import gone_volumes
from agent.gather import Gatherer
from agent.publish import VoidedError
from agent.status import document, text
from agent.worker import CrashedError, GroupWorker, Plan
from replicator.errors import DeviceError, NotFoundError, ReplicatorError
from replicator.events.bodies import PointLabelled, VolumeAttested, VolumeDeleted
from replicator.events.chunks import ChunksWritten
from replicator.events.digests import digest128, digest128_parts
from replicator.events.state import Life
from replicator.events.values import StateName
from replicator.log.interface import Registration
from replicator.log.object_log import ObjectLog
from replicator.pool.catalogue_schema import Purpose
from replicator.pool.volumes import create_snapshot, delete_volume
from replicator.repository.logged import read_history
from replicator.units import CHUNK_BYTES, MIB
from tests.support.agent_world import VOLUME, Replica, SourceHost, context_of
from tests.support.faulty_log import FaultyLog
from tests.support.manual_clock import SECOND_NS, ManualClock
from tests.support.memory_objects import MemoryStore
from tests.support.rivals import given_again, rivalled

OTHER = UUID("6f1c0000-0000-4000-8000-00000000beef")
SIZE = 4 * MIB + 512


class Source:
    """A host with two volumes, a log, and a clock; `at_once` does what else would go to a thread."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.host = SourceHost(folder)
        self.host.follow(self.clock)
        self.host.create("disk", SIZE)
        self.host.create("other", MIB, uuid=OTHER, dev_id=2)
        self.log = ObjectLog(MemoryStore(), create=True)
        self.line = FaultyLog(self.log)
        self.told: list[str] = []

    def context(self) -> Context:
        return replace(context_of(self.host, self.line, self.clock), report=self.told.append)

    def worker(self, *members: UUID, name: str = "", attest_s: float | None = None) -> GroupWorker:
        plan = Plan(members or (VOLUME,), name, attest_s=attest_s)
        return GroupWorker(self.context(), plan, chance=lambda: 0.5, background=self._at_once)

    @staticmethod
    def _at_once(act: Callable[[], None]) -> None:
        act()

    def step(self, worker: GroupWorker, seconds: float = 1.0) -> None:
        self.clock.advance(seconds)
        worker.step()

    def bodies(self, volume: UUID = VOLUME) -> list[object]:
        return [event.body for event in self.log.reader(volume, 1).read(1)]

    def status(self, *workers: GroupWorker) -> dict[str, object]:
        facts = Gatherer(str(self.host.path), "").facts(self.host.pool, workers, self.clock.monotonic())
        return document(facts, self.clock.now_ns(), UTC)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    made = Source(tmp_path)
    yield made
    made.host.close()


# -- deletion ----------------------------------------------------------------------------------------------------------


def test_a_volume_that_is_deleted_while_its_agent_runs_is_gone_in_the_log(source: Source) -> None:
    worker = source.worker()
    source.step(worker)
    delete_volume(source.host.pool, VOLUME, while_published=True)
    source.step(worker)
    assert isinstance(source.bodies()[-1], VolumeDeleted)
    assert source.log.reader(VOLUME, 1).tail().life is Life.DELETED
    assert isinstance(worker.over, NotFoundError) and not gone_volumes(source.host.pool.view())
    assert read_history(source.log, VOLUME).points, "its restore points stay"
    worker.close()


def test_one_that_was_deleted_while_no_agent_ran_is_told_by_the_next(source: Source) -> None:
    worker = source.worker()
    source.step(worker)
    worker.close()
    delete_volume(source.host.pool, VOLUME)
    (gone,) = gone_volumes(source.host.pool.view())
    source.line.is_away = True
    late = source.worker(gone.volume)
    source.step(late)
    assert late.over is None and late.failure is not None and "log unreachable" in late.failure.reason
    source.line.is_away = False
    source.step(late, 120)
    assert isinstance(source.bodies()[-1], VolumeDeleted) and late.over is not None
    assert not gone_volumes(source.host.pool.view())
    late.close()


def test_what_another_publisher_goes_on_with_is_not_buried(source: Source, tmp_path: Path) -> None:
    worker = source.worker()
    source.step(worker)
    row = source.host.pool.view()
    delete_volume(source.host.pool, VOLUME, while_published=True)
    (gone,) = gone_volumes(source.host.pool.view())
    assert row.volume(VOLUME).uuid == gone.volume
    (tmp_path / "b").mkdir()
    elsewhere = Source(tmp_path / "b")
    elsewhere.log = source.log
    beyond = replace(gone, number=gone.number - 1, digest=bytes(16))
    from agent.publish import VolumePublisher

    publisher = VolumePublisher(source.context(), VOLUME)
    assert not publisher.bury(beyond)
    assert source.log.reader(VOLUME, 1).tail().life is Life.LIVE
    publisher.close()
    worker.close()
    elsewhere.host.close()


# -- labels ------------------------------------------------------------------------------------------------------------


def test_a_label_given_later_is_in_the_log(source: Source) -> None:
    worker = source.worker()
    source.step(worker)
    tail = worker.tails()[VOLUME]
    assert tail is not None and tail.committed is not None
    body = PointLabelled(tail.committed, "golden", source.clock.now_ns())
    ticket = worker.ask(lambda publisher: publisher.say(VOLUME, body))
    source.step(worker)
    assert ticket.done.is_set() and ticket.error is None
    assert [point.labels for point in read_history(source.log, VOLUME).points] == [("golden",)]
    source.host.write(0, b"more")
    source.step(worker)
    assert Replica.of(source.log).content == source.host.content()
    worker.close()


# -- attestation -------------------------------------------------------------------------------------------------------


def test_attestations_hash_what_the_volume_reads_and_come_at_their_interval(source: Source) -> None:
    worker = source.worker(attest_s=3600.0)
    rng = random.Random(3)
    source.host.write(MIB, rng.randbytes(300_000))
    source.host.write(SIZE - 100, b"the end")
    content = source.host.content()
    for _ in range(10):
        source.step(worker)
    found = [body for body in source.bodies() if isinstance(body, VolumeAttested)]
    assert len(found) == 1, "the first one at once"
    padded = content.ljust(-(-SIZE // CHUNK_BYTES) * CHUNK_BYTES, b"\0")
    hashes = [digest128(padded[at : at + CHUNK_BYTES]) for at in range(0, len(padded), CHUNK_BYTES)]
    assert found[0].size_bytes == SIZE and found[0].span_chunks == 256
    assert found[0].hashes == digest128_parts(hashes)
    (point,) = read_history(source.log, VOLUME).points
    assert found[0].point == StateName(point.timeline, point.number, point.digest)
    assert point.labels[0].startswith("attested-2027"), "receivers keep a labelled point until they have compared"
    worker.close()
    again = source.worker(attest_s=3600.0)
    source.step(again, 1800)
    assert sum(isinstance(body, VolumeAttested) for body in source.bodies()) == 1, "a restart doesn't begin anew"
    for _ in range(5):
        source.step(again, 700)
    assert sum(isinstance(body, VolumeAttested) for body in source.bodies()) == 2
    again.close()


def test_a_cut_that_went_before_it_was_read_isnt_attested_by_what_has_its_id(source: Source) -> None:
    """A3 of attest."""
    volume, row = source.host.pool.view().volume(VOLUME), create_snapshot(source.host.pool, "disk", "cut")
    given_again(source.host.pool, row, "other", "precious")
    with pytest.raises(NotFoundError, match="meanwhile"):
        attested(source.context(), volume, row, StateName(1, 1, bytes(16)), lambda: False)


@pytest.mark.parametrize("which", [Purpose.TARGET, Purpose.BASE])
def test_a_delta_is_never_of_what_has_the_id_of_a_lost_snapshot(source: Source, which: Purpose) -> None:
    """T3 of transmit."""
    pool, rng = source.host.pool, random.Random(5)
    fresh = rng.randbytes(300_000)
    source.host.write(100_000, fresh, OTHER)
    source.host.write(0, rng.randbytes(300_000))
    first = GroupPublisher(source.context(), [VOLUME])
    first.round()
    first.close()
    source.host.write(100_000, fresh)

    def lost() -> None:
        given_again(pool, pool.view().snapshots_of(VOLUME, which)[0], "other", "precious")

    rival = rivalled(pool, "lease", lost)
    publisher = GroupPublisher(replace(source.context(), pool=lambda: rival), [VOLUME])
    publisher.round()
    assert Replica.of(source.log).content == source.host.content()
    assert pool.view().snapshot_named("precious")
    publisher.close()


def test_spans_are_as_many_as_an_event_holds() -> None:
    assert span_chunks_of(1) == span_chunks_of(256 * 65536) == 256
    assert span_chunks_of(256 * 65536 + 1) == 257


# -- receivers ---------------------------------------------------------------------------------------------------------


def test_every_receivers_place_is_shown(source: Source) -> None:
    worker = source.worker()
    for text_ in (b"one", b"two", b"three"):
        source.host.write(0, text_)
        source.step(worker, 10)
    now = source.clock.now_ns()
    source.log.register(Registration(VOLUME, UUID(int=1), "berlin", 1, 3, 9, now))
    source.log.register(Registration(VOLUME, UUID(int=2), "oslo", 1, 1, 3, now - 400 * SECOND_NS))
    source.log.register(Registration(VOLUME, UUID(int=3), "lima", 1, 2, 6, now + 90 * SECOND_NS))
    source.step(worker, 30)
    shown = source.status(worker)
    receivers = {each["name"]: each for each in shown["volumes"][0]["receivers"]}  # type: ignore[index]  # plain objects
    assert {name: each["behind"] for name, each in receivers.items()} == {"berlin": 0, "oslo": 2, "lima": 1}
    assert receivers["berlin"]["lag_s"] == 0 and receivers["oslo"]["lag_s"] > receivers["lima"]["lag_s"] > 20
    assert 50 < float(str(shown["clock_ahead_s"])) <= 90
    said = text(shown)
    assert "receiver oslo has 1:1 (2 behind" in said and "silent for 7 m" in said
    assert "a receiver's clock is" in said and "receiver berlin has 1:3" in said
    worker.close()


# -- failures that must be loud ----------------------------------------------------------------------------------------


def test_a_bug_in_a_worker_is_loud(source: Source) -> None:
    worker = source.worker()
    source.step(worker)

    def bug(_: GroupPublisher) -> None:
        raise RuntimeError("boom")

    worker.ask(bug)
    waiting = worker.request()
    with suppress(RuntimeError):
        worker.run()
    assert isinstance(worker.over, CrashedError) and worker.over.exit_code == 1
    assert waiting.error is worker.over and worker.request().error is worker.over
    headline = str(source.status(worker)["headline"])
    assert headline.startswith("NOT PROTECTED since") and "crashed: RuntimeError: boom" in headline
    assert any("Traceback" in line for line in source.told)


def test_a_worker_that_stands_still_is_not_called_protected(source: Source) -> None:
    worker = source.worker()
    source.step(worker)
    source.clock.advance(1200)
    shown = source.status(worker)
    assert shown["severity"] == 2 and "publishing stands still for 20 m" in str(shown["headline"])
    worker.close()
    assert isinstance(worker.request().error, ReplicatorError), "answered at once, after the end"


def test_one_refused_volume_keeps_no_other_from_being_published(source: Source) -> None:
    first = GroupPublisher(source.context(), [VOLUME, OTHER])
    first.round()
    later = GroupPublisher(source.context(), [VOLUME])
    later.settle_down()
    source.host.write(0, b"x", OTHER)
    source.host.write(0, b"x")
    finished, done = first.round_each()
    assert finished is None and done is not None
    assert set(done.failed) == {VOLUME} and done.failed[VOLUME].exit_code == 4
    assert Replica.of(source.log, OTHER).content == source.host.content(OTHER)
    GroupPublisher(source.context(), [VOLUME]).settle_down()
    source.host.write(0, b"y")
    with pytest.raises(ReplicatorError, match="another publisher"):
        later.round_each()  # nobody is left
    first.close()
    later.close()


def test_a_cut_of_which_a_member_is_void_is_no_groups_point(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = source.worker(VOLUME, OTHER, name="both")
    source.host.write(0, b"x" * 9000)
    source.host.write(0, b"y" * 9000, OTHER)
    source.step(worker)
    source.host.write(0, b"z" * 9000)
    source.host.write(0, b"u" * 9000, OTHER)
    first = min((VOLUME, OTHER), key=lambda each: each.int)
    from agent.transmit import Transmission

    real = Transmission._guarded

    def unreadable(self, prepared, bodies):  # type: ignore[no-untyped-def]  # stands in for a bad disk
        if prepared.volume == first and prepared.number == 2 and not hit:
            hit.append(prepared)
            self._void = (prepared.transaction_uuid, str(DeviceError("data", 0, 5, "bad spot")))
            return
        yield from real(self, prepared, bodies)

    hit: list[object] = []
    monkeypatch.setattr(Transmission, "_guarded", unreadable)
    source.step(worker)
    assert hit and isinstance(worker._last, VoidedError)
    source.host.write(0, b"w" * 9000)
    source.host.write(0, b"v" * 9000, OTHER)
    source.step(worker, 120)
    groups = {uuid: [commit.group for commit in Replica.of(source.log, uuid).commits] for uuid in (VOLUME, OTHER)}
    whole = [
        group
        for group in {each for commits in groups.values() for each in commits if each is not None}
        if all(any(each == group for each in groups[uuid]) for uuid, _ in group.members)
    ]
    assert len(whole) == 2, "the cuts before and after, not the void one"
    second = max((VOLUME, OTHER), key=lambda each: each.int)
    assert None in groups[second], "what is committed of a void cut carries no group"
    assert not any(isinstance(body, ChunksWritten) and not body.frames for body in source.bodies())
    worker.close()
