"""A replica's volume itself is a point to be had: without its log, with a damaged one, with one that lost its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import cast

import pytest

from receiver.apply import Applier, ApplySettings
from receiver.dev_ids import DevIds
from receiver.disks import open_disks
from replicator.errors import UnavailableError
from replicator.events.chain import ChainChecker, Verdict
from replicator.events.codec import Event
from replicator.history.plan import SnapshotBase
from replicator.history.resolve import PointNotFoundError
from replicator.history.retention import RetentionPolicy
from replicator.log.object_log import directory_log
from replicator.pool.catalogue_schema import Purpose, Role
from replicator.pool.interface import Lease
from replicator.pool.opening import OwnedPool, own_pool
from replicator.pool.reading import read_beside
from replicator.repository.catalogued import CataloguedPool, ReadPool
from replicator.repository.cloning import clone_named
from replicator.repository.source import OpenedPoint, Source, open_source
from replicator.units import CHUNK_BYTES, GIB
from tests.support.command_line import Command
from tests.support.replica_streams import SourceVolume

SIZE = 6 * CHUNK_BYTES + 1024
NAME = "disk-1"
LAST = 5
SELDOM = RetentionPolicy(materialise_every_s=3600)


@dataclass(frozen=True, slots=True)
class Ground:
    """A replica that is at the fifth transaction, and keeps the first alone as a snapshot."""

    pool: Path
    log: Path
    source: SourceVolume
    to: Path

    def segments(self) -> list[Path]:
        return sorted(
            each for each in self.log.rglob("*") if each.is_file() and each.name.isdigit() and each.stat().st_size
        )


@pytest.fixture
def ground(tmp_path: Path, command: Command) -> Ground:
    source = SourceVolume(3, SIZE, step_s=1)
    made = Ground(tmp_path / "replica", tmp_path / "log", source, tmp_path / "out.img")
    command("pool", "create", made.pool, "--size", "64MiB", "--metadata-size", "4MiB")
    with closing(directory_log(made.log, create=True)) as log:
        for _ in range(LAST):
            source.transaction(source.scribble())
            source.publish(log)
    command("receiver", "run", made.pool, "--log", made.log, "--once", "--no-register")
    command("points", "label", made.pool, f"{NAME}@{LAST}", "fifth")
    with own_pool(made.pool) as pool:
        kept = pool.view().snapshots_of(source.uuid, Purpose.POINT)
        assert [each.number for each in kept] == [1], "or the tests show nothing"
    return made


def restored(ground: Ground, command: Command, point: str, *more: str) -> bytes:
    command("restore", ground.pool, f"{NAME}@{point}", "--to", ground.to, "--overwrite", *more)
    return ground.to.read_bytes()


@pytest.mark.parametrize("point", ["latest", "5", "1:5", "fifth"])
def test_without_its_log(ground: Ground, command: Command, point: str) -> None:
    ground.log.rename(ground.log.with_name("away"))
    assert restored(ground, command, point) == ground.source.images[LAST]
    command("restore", ground.pool, f"{NAME}@3", "--to", ground.to, "--overwrite", code=5)


def test_a_time_of_which_only_the_log_knows_more_is_not_answered_with_an_older_point(
    ground: Ground, command: Command
) -> None:
    """The first is a snapshot, the fifth the volume; the catalogue knows when those between were."""
    listed = command("points", "list", ground.pool, NAME, "--json").document
    times = {each["number"]: each["timestamp"] for each in listed}
    ground.log.rename(ground.log.with_name("away"))
    refused = command(
        "restore", ground.pool, f"{NAME}@{times[4]}", "--to", ground.to, "--overwrite", "--json", code=5
    ).error
    assert "only its log has" in refused["message"] and "--accept-gap" in refused["mend"]
    refused = command("points", "label", ground.pool, f"{NAME}@{times[4]}", "x", "--json", code=5).error
    assert "only its log has" in refused["message"] and "--accept-gap" not in refused["mend"]
    assert restored(ground, command, times[4], "--accept-gap") == ground.source.images[1]
    assert restored(ground, command, times[1]) == ground.source.images[1]
    assert restored(ground, command, times[LAST]) == ground.source.images[LAST]


def test_what_is_listed_and_said_without_it(ground: Ground, command: Command) -> None:
    ground.log.rename(ground.log.with_name("away"))
    listed = command("points", "list", ground.pool)
    rows = [line.split() for line in listed.out.splitlines()[1:]]
    assert [(row[1], "volume" in row, "snapshot" in row) for row in rows] == [("1", False, True), ("5", True, False)]
    assert "only what the pool holds is listed" in listed.err
    document = command("points", "list", ground.pool, "--json")
    assert [each["number"] for each in document.document] == [1, 5] and "only what the pool holds" in document.err
    shown = command("points", "show", ground.pool, f"{NAME}@latest", "--json").document
    assert (shown["number"], shown["transactions"], shown["unkept"]) == (5, 0, None) and shown["log_problem"]
    assert shown["labels"] == ["fifth"] and shown["size_bytes"] == len(ground.source.images[LAST])
    assert "the volume itself" in command("points", "show", ground.pool, f"{NAME}@5").out


def test_with_a_damaged_segment(ground: Ground, command: Command) -> None:
    """What is known to be the log's last transaction isn't hidden by damage before it."""
    middle = ground.segments()[3]
    middle.chmod(0o600)
    data = middle.read_bytes()
    middle.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    for point in ("latest", "5", "fifth"):
        assert restored(ground, command, point) == ground.source.images[LAST]
    command("restore", ground.pool, f"{NAME}@4", "--to", ground.to, "--overwrite", code=3)
    ground.segments()[-1].unlink()
    refused = command("restore", ground.pool, f"{NAME}@latest", "--to", ground.to, "--overwrite", "--json", code=3)
    assert "--accept-gap" in refused.error["mend"], "the log may go on behind what can be read"
    assert restored(ground, command, "latest", "--accept-gap") == ground.source.images[LAST]


def test_with_a_log_that_lost_its_end(ground: Ground, command: Command) -> None:
    ground.segments()[-1].unlink()
    for point in ("5", "fifth"):
        assert restored(ground, command, point) == ground.source.images[LAST]
    assert restored(ground, command, "latest", "--from-pool") == ground.source.images[LAST]
    command("restore", ground.pool, f"{NAME}@latest", "--to", ground.to, "--overwrite", code=4)


def test_a_log_that_is_ahead_goes_on_from_the_volume(ground: Ground, command: Command) -> None:
    source = ground.source
    source.transaction(source.scribble())
    with closing(directory_log(ground.log)) as log:
        source.publish(log)
    plan = command("restore", ground.pool, f"{NAME}@6", "--to", ground.to, "--dry-run", "--json").document
    assert plan["transactions"] == 1 and plan["base"].startswith("the volume itself, @1:5")
    assert restored(ground, command, "latest") == source.images[6]


def test_who_accepts_no_gap_names_none(ground: Ground, command: Command) -> None:
    point = f"{NAME}@2100-01-01"
    for line in (
        ("receiver", "verify", ground.pool, "--log", ground.log, point),
        ("points", "label", ground.pool, point, "x"),
    ):
        refused = command(*line, "--json", code=5).error
        assert (
            "complete" in refused["message"]
            and "by its number" in refused["mend"]
            and "--accept" not in refused["mend"]
        )


def test_a_clone_shares_all_of_it(ground: Ground) -> None:
    ground.log.rename(ground.log.with_name("away"))
    with own_pool(ground.pool) as pool:
        free = pool.status().data_free_blocks
        made = clone_named(pool, f"{NAME}@latest", "copy", UTC)
        assert pool.status().data_free_blocks == free
        with read_beside(pool) as reader, reader.disk(made.dev_id, made.size_bytes) as disk:
            assert disk.pread(made.size_bytes, 0) == ground.source.images[LAST]


class Receiver:
    """What follows the source in this process, beside readers of the pool."""

    def __init__(self, pool: OwnedPool, source: SourceVolume) -> None:
        self._pool, self._source = pool, source

    def take(self, events: Sequence[Event], step_bytes: int = GIB) -> None:
        """Apply them, and be gone: what isn't committed by then stands where the last step left it."""
        with open_disks(self._pool.path) as disks:
            applier = Applier(
                self._pool, disks, self._source.uuid, DevIds(self._pool), ApplySettings(step_bytes, SELDOM)
            )
            checker = ChainChecker(applier.state)
            for event in events:
                assert checker.accept(event) is Verdict.APPLY
                applier.apply(event, checker.state)
            applier.close()

    def go_on(self) -> None:
        """One more transaction, which every block is of."""
        self._source.data[:] = self._source.random.randbytes(len(self._source.data))
        self._source.transaction()
        self.take(self._source.take())


@dataclass(slots=True)
class Moving:
    """A pool that is read, whose receiver goes on `times` times just before or behind a lease."""

    pool: CataloguedPool
    receiver: Receiver
    when: str
    times: int

    @contextmanager
    def lease(self, dev_ids: Sequence[int]) -> Iterator[Lease]:
        if self.when == "before":
            self._move()
        with self.pool.lease(dev_ids) as lease:
            if self.when == "behind":
                self._move()
            yield lease

    def _move(self) -> None:
        if self.times:
            self.times -= 1
            self.receiver.go_on()

    def __getattr__(self, name: str) -> object:
        return getattr(self.pool, name)


@contextmanager
def moving(ground: Ground, when: str, times: int) -> Iterator[tuple[Source, Receiver, OwnedPool]]:
    """A source over the replica, which goes on while a device is leased."""
    with own_pool(ground.pool) as pool, open_source(str(ground.pool), beside=pool) as source:
        receiver = Receiver(pool, ground.source)
        assert isinstance(source.pool, CataloguedPool)
        source.pool = cast("ReadPool", Moving(source.pool, receiver, when, times))
        yield source, receiver, pool


def content(opened: OpenedPoint) -> bytes:
    return opened.disk.pread(opened.disk.size_bytes, 0)


def test_it_stays_what_it_was_while_the_replica_goes_on(ground: Ground) -> None:
    with moving(ground, "never", 0) as (source, receiver, pool):
        opened = source.open_point(f"{NAME}@latest", now_ns=ground.source.now_ns)
        assert isinstance(opened.plan.base, SnapshotBase) and opened.plan.base.is_head
        with opened.disk:
            for _ in range(3):
                receiver.go_on()
                assert content(opened) == ground.source.images[LAST]
        position = pool.view().position(ground.source.uuid, Role.APPLIED)
        assert position is not None and position.number == LAST + 3
        with open_source(str(ground.pool), beside=pool, alone=True) as later:
            opened = later.open_point(f"{NAME}@latest", now_ns=ground.source.now_ns)
            with opened.disk:
                assert opened.point.number == LAST + 3 and content(opened) == ground.source.images[LAST + 3]


def test_nothing_of_a_transaction_that_is_applied_in_part(ground: Ground) -> None:
    ground.source.data[:] = ground.source.random.randbytes(len(ground.source.data))
    ground.source.transaction()
    events = ground.source.take()
    with moving(ground, "never", 0) as (source, receiver, pool):
        receiver.take(events[:-1], step_bytes=1)
        assert pool.view().snapshots_of(ground.source.uuid, Purpose.STAGING, hidden=True), "or it shows nothing"
        opened = source.open_point(f"{NAME}@latest", now_ns=ground.source.now_ns)
        with opened.disk:
            assert opened.point.number == LAST and content(opened) == ground.source.images[LAST]
            receiver.take(events[-1:], step_bytes=1)
            assert content(opened) == ground.source.images[LAST]


@pytest.mark.parametrize("wanted", ["5", "latest"])
def test_it_went_on_behind_the_lease(ground: Ground, wanted: str) -> None:
    """Its device was left by then, and is the same transaction still."""
    ground.log.rename(ground.log.with_name("away"))
    with moving(ground, "behind", 1) as (source, _, _pool):
        opened = source.open_point(f"{NAME}@{wanted}", now_ns=ground.source.now_ns)
        with opened.disk:
            assert opened.point.number == LAST and content(opened) == ground.source.images[LAST]


def test_it_went_on_before_the_lease(ground: Ground) -> None:
    """Its device is another transaction's: the point comes from the log then, or isn't had."""
    with moving(ground, "before", 1) as (source, _, _pool):
        opened = source.open_point(f"{NAME}@5", now_ns=ground.source.now_ns)
        assert isinstance(opened.plan.base, SnapshotBase) and not opened.plan.base.is_head
        with opened.disk:
            assert content(opened) == ground.source.images[LAST]
    ground.log.rename(ground.log.with_name("away"))
    with moving(ground, "before", 1) as (source, _, _pool):
        opened = source.open_point(f"{NAME}@latest", now_ns=ground.source.now_ns)
        with opened.disk:
            assert content(opened) == ground.source.images[opened.point.number]
    with moving(ground, "before", 1) as (source, _, _pool), pytest.raises(PointNotFoundError):
        source.open_point(f"{NAME}@{max(ground.source.images)}", now_ns=ground.source.now_ns)
    with moving(ground, "before", 99) as (source, _, _pool), pytest.raises(UnavailableError, match="meanwhile"):
        source.open_point(f"{NAME}@latest", now_ns=ground.source.now_ns)


def test_it_went_on_since_it_was_offered(ground: Ground) -> None:
    with moving(ground, "never", 0) as (source, receiver, _pool):
        source.offer(source.volume(NAME))
        receiver.go_on()
        opened = source.open_point(f"{NAME}@5", now_ns=ground.source.now_ns)
        with opened.disk:
            assert content(opened) == ground.source.images[LAST]
