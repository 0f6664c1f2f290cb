"""G1 to G5 of pool/catalogue: the switch, its crashes, readers beside the writer, purging, and damaged files."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from replicator.errors import ConflictError, DamageError, NotFoundError
from replicator.history.points import Consistency
from replicator.pool.catalogue import Catalogue, StaleViewError
from replicator.pool.catalogue_schema import (
    Branch,
    Cut,
    LoggedPoint,
    Origin,
    OriginKind,
    PoolIdentity,
    Position,
    Prepared,
    Purpose,
    Role,
    Setting,
    Snapshot,
    Volume,
)
from replicator.pool.changes import Change, End, EndBelow, Put

POOL = PoolIdentity(UUID(int=7), 1_000)
V1, V2, CUT = UUID(int=1), UUID(int=2), UUID(int=3)
VOLUME = Volume(V1, "vm-disk", 1, 8 << 30, 5, Origin(OriginKind.FILE, "/images/base.raw", 4 << 30, "ab"))
SNAPSHOT = Snapshot(
    2,
    V1,
    Purpose.POINT,
    10,
    8 << 30,
    1,
    4,
    Consistency.FILESYSTEM,
    ("before upgrade", "x"),
    b"d" * 16,
    "nightly",
    False,
    True,
)
POSITION = Position(V1, Role.APPLIED, 1, 4, b"d" * 16, 99, 2, 10, b"\0\xff state")
EVERYTHING: list[Change] = [
    Put(VOLUME),
    Put(SNAPSHOT),
    Put(LoggedPoint(V1, 1, 4, 10, 8 << 30, 99, Consistency.CLEAN, ("x",), b"d" * 16)),
    Put(Branch(V1, 2, 1, 4, b"d" * 16)),
    Put(POSITION),
    Put(Prepared(V1, 1, 5, UUID(int=8), None, 3, 11, 8 << 30)),
    Put(Cut(CUT, (2, 3), 10)),
    Put(Setting("retention", "{}")),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the catalogue of the test is, or will be."""
    return tmp_path / "catalog.db"


@pytest.fixture
def catalogue(path: Path) -> Iterator[Catalogue]:
    """A new catalogue that stands at transaction 5."""
    with Catalogue.create(path, POOL, 5) as made:
        yield made


def _point(number: int) -> LoggedPoint:
    return LoggedPoint(V1, 1, number, number, 1 << 20, number)


def test_what_is_staged_is_read_back_as_it_was(catalogue: Catalogue, path: Path) -> None:
    """Every table, every type of field; by another connection too."""
    catalogue.stage(6, EVERYTHING)
    for reader in (catalogue, Catalogue(path, read_only=True)):
        view = reader.view(6)
        assert view.pool == POOL and view.volumes == [VOLUME] and view.snapshots == [SNAPSHOT]
        assert view.volume("vm-disk") == view.volume(V1) == view.volume(str(V1)) == VOLUME
        assert view.position(V1, Role.APPLIED) == POSITION and view.position(V1, Role.PUBLISHED) is None
        prepared = view.prepared_of(V1)
        assert prepared is not None and prepared.base_dev_id is None and view.prepared == [prepared]
        assert view.cut(CUT) == Cut(CUT, (2, 3), 10) and view.cuts == [Cut(CUT, (2, 3), 10)]
        assert view.setting("retention") == "{}" and view.setting("none", "else") == "else"
        assert view.lineage(V1).current == 2 and view.lineage(V2).current == 1
        assert view.snapshot_named("nightly") == view.snapshot(2) == SNAPSHOT and view.snapshot_named("no") is None
        assert [each.sequence for each in reader.points(6, V1, 10)] == [99]
        reader.check()
    with pytest.raises(NotFoundError, match="there are vm-disk"):
        view.volume("vm-disc")
    with pytest.raises(NotFoundError):
        view.snapshot(3)


def test_a_crash_before_the_superblock_leaves_the_past(catalogue: Catalogue, path: Path) -> None:
    """G1, G3: stage N+1, die; N reads as before; opening discards N+1, which can then be staged anew."""
    catalogue.stage(6, EVERYTHING)
    before = catalogue.view(6)
    catalogue.stage(7, [Put(replace(VOLUME, name="renamed")), End(Snapshot, (2,)), Put(replace(SNAPSHOT, dev_id=9))])
    assert catalogue.view(6) == before and catalogue.view(7).volume(V1).name == "renamed"
    with pytest.raises(ConflictError, match="stands at 7"):
        catalogue.stage(7, [])
    catalogue.close()
    with Catalogue(path) as reopened:
        assert reopened.view(6) == before
        assert reopened.discard_beyond(6) > 0
        assert reopened.view(6) == before
        with pytest.raises(DamageError):
            reopened.view(7)
        reopened.stage(7, [End(Volume, (V1,))])
        assert reopened.view(7).volumes == [] and reopened.view(6) == before
        assert reopened.discard_beyond(7) == 0


def test_a_crash_inside_stage_leaves_nothing(catalogue: Catalogue, path: Path, tmp_path: Path) -> None:
    """Each length to which the WAL may have reached the disk gives N or N+1, never a part, and both open."""
    catalogue.stage(6, EVERYTHING)
    wal = path.with_name("catalog.db-wal")
    begin = wal.stat().st_size
    catalogue.stage(7, [Put(replace(SNAPSHOT, dev_id=number)) for number in range(100, 200)])
    outcomes = set()
    whole = wal.stat().st_size
    for length in (*range(begin, whole, 1024), whole):
        crashed = tmp_path / f"crash{length}" / "catalog.db"
        crashed.parent.mkdir()
        shutil.copy(path, crashed)
        crashed.with_name("catalog.db-wal").write_bytes(wal.read_bytes()[:length])
        with Catalogue(crashed) as opened:
            assert len(opened.view(6).snapshots) == 1
            outcomes.add(opened.discard_beyond(6))
            opened.check()
    assert outcomes == {0, 101}


def test_a_catalogue_behind_its_superblock_is_damage(catalogue: Catalogue) -> None:
    """G2: an older copy put back beside newer metadata shows, with exit 3 and a mend."""
    for call in (lambda: catalogue.view(6), lambda: catalogue.points(6, V1, 1), lambda: catalogue.discard_beyond(6)):
        with pytest.raises(DamageError, match="superblock is at 6") as caught:
            call()
        assert caught.value.exit_code == 3 and caught.value.mend is not None


def test_every_switch_leaves_a_row(catalogue: Catalogue) -> None:
    """G2 also for a transaction that changes nothing here."""
    catalogue.stage(6, [])
    assert catalogue.view(6).volumes == []


def test_ending_what_is_not_there_stages_nothing(catalogue: Catalogue) -> None:
    """One refusal undoes the whole stage, and the next one works."""
    with pytest.raises(NotFoundError):
        catalogue.stage(6, [Put(VOLUME), End(Snapshot, (2,))])
    catalogue.stage(6, [Put(SNAPSHOT)])
    assert catalogue.view(6).volumes == []


def test_a_key_changed_twice_in_one_stage(catalogue: Catalogue) -> None:
    """W1, W3: the last word counts; put and ended again is as if it had never been."""
    catalogue.stage(6, [Put(VOLUME)])
    catalogue.stage(
        7, [Put(replace(VOLUME, name="a")), Put(replace(VOLUME, name="b")), Put(SNAPSHOT), End(Snapshot, (2,))]
    )
    assert catalogue.view(7).volume(V1).name == "b" and catalogue.view(7).snapshots == []
    catalogue.stage(8, [End(Volume, (V1,)), Put(replace(VOLUME, name="c"))])
    assert [catalogue.view(at).volume(V1).name for at in (6, 7, 8)] == ["vm-disk", "b", "c"]
    catalogue.discard_beyond(6)
    assert catalogue.view(6).volume(V1) == VOLUME


def test_purge_drops_what_nobody_reads(catalogue: Catalogue, path: Path) -> None:
    """G5: from the oldest reader's id on nothing changes; below it a view is refused, not given with holes."""
    for at in range(6, 30):
        catalogue.stage(at, [Put(replace(SNAPSHOT, timestamp_ns=at)), Put(_point(at))])
    kept = [catalogue.view(at) for at in range(20, 30)]
    assert catalogue.purge(20) == 14
    assert [catalogue.view(at) for at in range(20, 30)] == kept
    with pytest.raises(StaleViewError):
        catalogue.view(19)
    assert catalogue.purge(20) == 0
    with pytest.raises(DamageError, match="superblock is at 19"):
        catalogue.discard_beyond(19)
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT count(*) FROM snapshots").fetchone() == (10,)
        assert database.execute("SELECT min(id) FROM switches").fetchone() == (20,)


def test_logged_points_are_read_by_stretches(catalogue: Catalogue) -> None:
    """The newest ones, oldest first; trimming below a number ends them all at once, and no view carries them."""
    catalogue.stage(6, [Put(_point(number)) for number in range(1, 2001)] + [Put(replace(_point(7), volume=V2))])
    assert [each.number for each in catalogue.points(6, V1, 3)] == [1998, 1999, 2000]
    catalogue.stage(7, [EndBelow(LoggedPoint, (V1, 1), 1999), Put(replace(_point(2001), timeline=2))])
    assert [each.number for each in catalogue.points(7, V1, 10)] == [1999, 2000, 2001]
    assert [each.number for each in catalogue.points(7, V1, 10, timeline=1)] == [1999, 2000]
    assert catalogue.point(7, V1, 1, 1998) is None and catalogue.point(6, V1, 1, 1998) == _point(1998)
    assert len(catalogue.points(7, V2, 10)) == 1
    assert LoggedPoint not in catalogue.view(7).rows


def test_views_evolve_as_they_are_staged(catalogue: Catalogue) -> None:
    """M1: the owner's own view, evolved, is what is read back."""
    view = catalogue.view(5)
    steps: list[list[Change]] = [
        EVERYTHING,
        [End(Cut, (CUT,)), Put(replace(VOLUME, name="other")), EndBelow(Branch, (V1,), 3)],
        [Put(replace(SNAPSHOT, dev_id=number)) for number in range(5, 10)],
        [EndBelow(Snapshot, (), 7), End(Prepared, (V1,))],
    ]
    for step in steps:
        before = view
        view = view.after(step, view.at_id + 1)
        catalogue.stage(view.at_id, step)
        assert view == catalogue.view(view.at_id) and before == catalogue.view(before.at_id)
    with pytest.raises(NotFoundError):
        view.after([End(Cut, (CUT,))], view.at_id + 1)


def test_snapshots_of_a_volume(catalogue: Catalogue) -> None:
    """By purpose, by transaction; hidden ones only for who asks."""
    catalogue.stage(
        6,
        [
            Put(replace(SNAPSHOT, dev_id=9, number=1)),
            Put(SNAPSHOT),
            Put(replace(SNAPSHOT, dev_id=3, purpose=Purpose.BASE)),
            Put(replace(SNAPSHOT, dev_id=4, hidden=True)),
            Put(replace(SNAPSHOT, dev_id=5, volume=V2)),
        ],
    )
    view = catalogue.view(6)
    assert [each.dev_id for each in view.snapshots_of(V1)] == [9, 2, 3]
    assert [each.dev_id for each in view.snapshots_of(V1, Purpose.POINT)] == [9, 2]
    assert [each.dev_id for each in view.snapshots_of(V1, Purpose.POINT, hidden=True)] == [9, 2, 4]
    point = view.snapshot(2).restore_point(leased=True)
    assert (point.number, point.dev_id, point.held, point.leased) == (4, 2, True, True)
    with pytest.raises(ConflictError):
        view.snapshot_named("nightly")


_READER = """
import pathlib, sys
from replicator.errors import ReplicatorError
from replicator.pool.catalogue import Catalogue
with Catalogue(pathlib.Path(sys.argv[1]), read_only=True) as reader:
    print(reader.view(6).volumes[0].name)
    try:
        reader.stage(7, [])
    except ReplicatorError as error:
        print(type(error).__name__)
"""


def test_readers_of_other_processes(catalogue: Catalogue, path: Path) -> None:
    """Any number beside the one writer; they can't write."""
    catalogue.stage(6, [Put(VOLUME)])
    root = Path(__file__).parents[3]
    reader = subprocess.run(
        [sys.executable, "-c", _READER, str(path)], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    assert reader.stdout.split() == ["vm-disk", "DeviceError"]
    catalogue.stage(7, [])


_WRITER = """
import pathlib, sys
from replicator.pool.catalogue import Catalogue
from replicator.pool.catalogue_schema import Setting
from replicator.pool.changes import Put
catalogue = Catalogue(pathlib.Path(sys.argv[1]))
for at in range(6, 1_000_000):
    catalogue.stage(at, [Put(Setting("a", str(at))), Put(Setting("b", str(at)))])
    print(at, flush=True)
"""


@pytest.mark.parametrize("answers", [1, 7, 60])
def test_a_killed_writer(path: Path, answers: int) -> None:
    """What stage returned for is there; at most one more; both halves of each transaction, or none."""
    Catalogue.create(path, POOL, 5).close()
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path)], cwd=root, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        last = [int(writer.stdout.readline()) for _ in range(answers)][-1]
        writer.kill()
        last = max([last, *map(int, writer.stdout.read().split())])
    with Catalogue(path) as opened:
        opened.check()
        assert opened.view(last).setting("a") == opened.view(last).setting("b") == str(last)
        assert opened.discard_beyond(last) in (0, 5)
        opened.stage(last + 1, [])


def test_readers_beside_a_writer_see_whole_transactions(catalogue: Catalogue, path: Path) -> None:
    """Two rows that always change together are never seen apart, while 200 transactions pass."""
    catalogue.stage(6, [Put(Setting("a", "6")), Put(Setting("b", "6"))])
    done = threading.Event()

    def write() -> None:
        for at in range(7, 207):
            catalogue.stage(at, [Put(Setting("a", str(at))), Put(Setting("b", str(at)))])
            if at % 50 == 0:
                catalogue.purge(6)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    with Catalogue(path, read_only=True) as reader:
        at = 6
        while not done.is_set():
            view = reader.view(at)
            assert view.setting("a") == view.setting("b") == str(at)
        assert reader.view(206).setting("a") == "206"
    writer.join()


def test_create_is_all_or_nothing(path: Path) -> None:
    """A second one is refused; leftovers of one that died are no catalogue and in nobody's way; it is private."""
    path.with_name("catalog.db.new").write_bytes(b"half")
    path.with_name("catalog.db.new-wal").write_bytes(b"half")
    with pytest.raises(NotFoundError):
        Catalogue(path)
    Catalogue.create(path, POOL, 0).close()
    assert [each.name for each in path.parent.iterdir()] == ["catalog.db"]
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConflictError):
        Catalogue.create(path, POOL, 0)
    assert [each.name for each in path.parent.iterdir()] == ["catalog.db"]


def test_a_commit_is_synced(catalogue: Catalogue) -> None:
    """The settings that the switch leans on: WAL, and a sync in each commit."""
    database = catalogue._database
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert database.execute("PRAGMA synchronous").fetchone() == (2,)
