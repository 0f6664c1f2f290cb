"""A front and a catalogue that goes on: sizes that are late, ids that are given again, bases that went."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from replicator.blockdev.interface import BlockDevice
from replicator.errors import NotFoundError
from replicator.exporter.fronts import Front
from replicator.exporter.origins import Origins
from replicator.exporter.process import Exporter, ExporterSettings
from replicator.pool import volumes
from replicator.pool.catalogue_schema import Origin, Snapshot, Volume
from replicator.pool.changes import Put
from replicator.pool.control_values import ListenAsked
from replicator.pool.interface import Switch
from replicator.pool.local import LocalPool
from replicator.pool.opening import OwnedPool, own_pool
from replicator.pool.origins import identify_origin
from replicator.thin.change import Change
from replicator.thin.closing import close_device
from replicator.thin.device import ThinDevice
from replicator.units import KIB, MIB
from tests.support.pool_owner import make_pool

BLOCK = 64 * KIB
SMALL = 4 * BLOCK
WAIT_S = 30.0


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[OwnedPool]:
    """A pool with the volume `disk`, full of `d`."""
    make_pool(tmp_path / "pool")
    with own_pool(tmp_path / "pool") as owned:
        _written(owned, volumes.create_volume(owned, "disk", MIB), b"d" * MIB)
        yield owned


@pytest.fixture
def exporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Exporter]:
    """An exporter of such a pool; its keeper comes when a test says so."""
    monkeypatch.setattr(Exporter, "_keep_step", lambda _: None)
    make_pool(tmp_path / "pool")
    owned = own_pool(tmp_path / "pool")
    _written(owned, volumes.create_volume(owned, "disk", MIB), b"d" * MIB)
    with Exporter(owned, ExporterSettings((ListenAsked(f"unix:{tmp_path / 'nbd'}"),))) as running:
        yield running


def _written(pool: LocalPool, volume: Volume, content: bytes) -> None:
    device = pool.open_live(volume.dev_id, volume.size_bytes, None)
    _write(pool, device, content, 0)
    close_device(pool.engine, device)


def _write(pool: LocalPool, device: ThinDevice, content: bytes, offset_bytes: int) -> None:
    with pool.engine.gate.writing():
        device.pwrite(content, offset_bytes)


def _asked(*names: str, read_only: bool = False) -> ListenAsked:
    return ListenAsked("unix:unused.sock", list(names), read_only)


def _served(front: Front, name: str) -> ThinDevice:
    export = front._exports.lookup(name)
    assert export is not None
    return export.device


class _Door:
    """A lock that lets the thread `late` in when it may `go`, and all others as they come."""

    def __init__(self) -> None:
        self._lock, self.reached, self.go = threading.Lock(), threading.Event(), threading.Event()

    def __enter__(self) -> None:
        if threading.current_thread().name == "late":
            self.reached.set()
            assert self.go.wait(WAIT_S)
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class _Meanwhile(Origins):
    """Between looking a name up and taking what it stands for, `act` happens once."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self._act: Callable[[], object] | None = act

    def get(self, origin: Origin | None) -> BlockDevice | None:
        """What Origins has, and behind `act`."""
        act, self._act = self._act, None
        if act is not None:
            act()
        return super().get(origin)


def test_a_front_that_comes_late_undoes_no_shrinking(exporter: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two look after it; while one waits, the volume is made smaller, and the other tells the front so."""
    pool, front, door = exporter._pool, exporter._fronts[0], _Door()
    monkeypatch.setattr(front, "_lock", door)
    late = threading.Thread(target=exporter._sync, args=(front,), name="late")
    late.start()
    assert door.reached.wait(WAIT_S)
    pool.resize(pool.view().volume("disk").uuid, SMALL)
    exporter._sync(front)
    door.go.set()
    late.join(WAIT_S)
    assert _served(front, "disk").size_bytes == SMALL
    assert [each.size_bytes for each in front.facts()] == [SMALL]


def test_a_volume_that_is_being_made_smaller_gets_no_longer_by_a_front(exporter: Exporter) -> None:
    """It was made larger before, and the front comes only while the switch to the smaller size is under way."""
    pool, front = exporter._pool, exporter._fronts[0]
    volume, device, commit = pool.view().volume("disk"), _served(front, "disk"), pool.engine._commit
    pool.resize(volume.uuid, 2 * MIB)
    seen: list[int] = []

    def keeper_comes(change: Change | None) -> None:
        exporter._sync(front)
        seen.append(device.size_bytes)
        commit(change)

    pool.engine._commit = keeper_comes  # type: ignore[method-assign] # as the commit begins, the limit standing
    pool.resize(volume.uuid, SMALL)
    pool.engine._commit = commit  # type: ignore[method-assign] # as it was
    exporter._sync(front)
    assert seen == [SMALL] and device.size_bytes == SMALL
    pool.resize(volume.uuid, MIB)
    assert device.pread(MIB - SMALL, SMALL) == bytes(MIB - SMALL)


def _give_again(pool: LocalPool, gone: Snapshot, name: str) -> Snapshot:
    """Delete a snapshot, and make one of another volume that has its id."""
    other = volumes.create_volume(pool, "other", MIB)
    _written(pool, other, b"o" * MIB)
    volumes.delete_snapshot(pool, gone.dev_id)
    made = replace(gone, volume=other.uuid, timestamp_ns=gone.timestamp_ns + 1, name=name)
    pool.switch(Switch(snapshot=((made.dev_id, other.dev_id),), changes=(Put(made),)))
    return made


def test_a_snapshot_that_went_before_its_lease_isnt_offered_as_the_one_that_got_its_id(pool: OwnedPool) -> None:
    snap = volumes.create_snapshot(pool, "disk", "snap")
    origins = _Meanwhile(lambda: _give_again(pool, snap, "theirs"))
    with pytest.raises(NotFoundError):
        Front(pool, _asked("snap"), origins, Counter())
    assert pool.view().snapshot_named("theirs") and not pool.is_leased(snap.dev_id) and not pool.engine.devices


@pytest.mark.parametrize("read_only", [False, True])
def test_a_volume_that_went_before_it_was_opened_isnt_offered_as_the_one_that_got_its_id(
    pool: OwnedPool, read_only: bool
) -> None:
    disk = pool.view().volume("disk")

    def give_again() -> None:
        volumes.delete_volume(pool, "disk")
        theirs = Volume(uuid4(), "theirs", disk.dev_id, 2 * MIB, 1)
        pool.switch(Switch(create=(disk.dev_id,), changes=(Put(theirs),)))

    with pytest.raises(NotFoundError):
        Front(pool, _asked("disk", read_only=read_only), _Meanwhile(give_again), Counter())
    assert not pool.is_leased(disk.dev_id) and not pool.engine.devices
    volumes.delete_volume(pool, "theirs")


def test_what_changed_since_a_base_that_went_isnt_told_of_the_one_that_got_its_id(pool: OwnedPool) -> None:
    base = volumes.create_snapshot(pool, "disk", "base")
    disk = pool.view().volume("disk")
    device = pool.open_live(disk.dev_id, MIB, None)
    _write(pool, device, b"x" * BLOCK, 3 * BLOCK)
    close_device(pool.engine, device)
    volumes.create_snapshot(pool, "disk", "now")
    front = Front(pool, _asked("now"), Origins(), Counter())
    export = front._exports.lookup("now")
    assert export is not None
    changed = export.changed_since["base"]
    assert changed(0, 16).tolist() == [[3, 4]]
    volumes.rename(pool, "base", "based")
    assert changed(0, 16).tolist() == [[3, 4]], "it is the same snapshot under any name"
    volumes.delete_snapshot(pool, "based")
    later = replace(base, timestamp_ns=base.timestamp_ns + 1, name="later")
    pool.switch(Switch(snapshot=((later.dev_id, disk.dev_id),), changes=(Put(later),)))
    with pytest.raises(NotFoundError):
        changed(0, 16)
    front.close()


@pytest.mark.parametrize(
    ("base_bytes", "size_bytes", "expected"),
    [
        (2 * BLOCK, 4 * BLOCK, [[0, 1], [2, 4]]),
        (2 * BLOCK + 5, 6 * BLOCK, [[0, 1], [2, 4], [5, 6]]),
        (4 * BLOCK, 6 * BLOCK, [[0, 1], [5, 6]]),
    ],
)
def test_what_the_origin_shows_beyond_a_shorter_base_counts_as_changed(
    pool: OwnedPool, tmp_path: Path, base_bytes: int, size_bytes: int, expected: list[list[int]]
) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"i" * (4 * BLOCK))
    origin = identify_origin(str(image))
    volume = volumes.create_volume(pool, "over", base_bytes, origin)
    volumes.create_snapshot(pool, "over", "base")
    volumes.resize(pool, "over", size_bytes)
    device = pool.open_live(volume.dev_id, size_bytes, None)
    for at in (0, size_bytes - BLOCK):
        _write(pool, device, b"w" * BLOCK, at)
    close_device(pool.engine, device)
    volumes.create_snapshot(pool, "over", "now")
    front = Front(pool, _asked("now"), Origins(), Counter())
    export = front._exports.lookup("now")
    assert export is not None
    changed, blocks = export.changed_since["base"], size_bytes // BLOCK
    assert changed(0, blocks).tolist() == expected
    each = [changed(at, at + 1).tolist() for at in range(blocks)]
    assert [at for at in range(blocks) if each[at]] == [at for low, high in expected for at in range(low, high)]
    front.close()
