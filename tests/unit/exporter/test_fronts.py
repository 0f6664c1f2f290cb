"""Fronts in step with the catalogue: what can't be offered harms nothing else, and readers stay while others come."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from replicator.errors import ConflictError, NotFoundError, ReplicatorError
from replicator.exporter.fronts import Front
from replicator.exporter.origins import Origins
from replicator.exporter.process import Exporter, ExporterSettings
from replicator.pool import volumes
from replicator.pool.catalogue_schema import Origin, OriginKind
from replicator.pool.control_values import ListenAsked
from replicator.pool.opening import OwnedPool, own_pool
from replicator.pool.origins import identify_origin
from replicator.thin.device import ThinDevice
from replicator.thin.engine import Engine
from replicator.units import MIB
from tests.support.pool_owner import make_pool


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[OwnedPool]:
    """A pool with the volume `disk` and its snapshot `old`."""
    make_pool(tmp_path / "pool")
    with own_pool(tmp_path / "pool") as owned:
        volumes.create_volume(owned, "disk", MIB)
        volumes.create_snapshot(owned, "disk", "old")
        yield owned


class _Reader:
    stopped = False
    peer = "process 1"

    def stop(self) -> None:
        self.stopped = True


def _asked(*names: str, read_only: bool = False) -> ListenAsked:
    return ListenAsked("unix:unused.sock", list(names), read_only, {})


def test_a_new_snapshot_disconnects_no_reader_of_another(pool: OwnedPool) -> None:
    front, reader = Front(pool, _asked("old"), Origins(), Counter()), _Reader()
    front._exports.enter("old", reader)
    volumes.create_snapshot(pool, "disk", "new")
    front.sync()
    export = front._exports.lookup("old")
    assert export is not None and set(export.changed_since) == {"new"} and not reader.stopped
    front.close()


def test_an_origin_that_is_away_keeps_only_its_own_volume_from_being_offered(pool: OwnedPool) -> None:
    front = Front(pool, _asked(), Origins(), Counter())
    away = Origin(OriginKind.NBD, "nbd+unix:///x?socket=/nonexistent", MIB)
    volumes.create_volume(pool, "away", MIB, away)
    volumes.create_volume(pool, "zebra", MIB)
    failures = front.sync()
    assert len(failures) == 1 and {"disk", "zebra"} == set(front._offered)
    front.close()
    started = Front(pool, _asked(), Origins(), Counter())
    assert len(started.failures) == 1 and {"disk", "zebra"} == set(started._offered), "an exporter starts without it"
    started.close()
    with pytest.raises(ReplicatorError):
        Front(pool, _asked("away"), Origins(), Counter())


def test_an_origin_that_is_back_is_offered(pool: OwnedPool, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"x" * MIB)
    volumes.create_volume(pool, "over", MIB, identify_origin(str(image)))
    image.rename(tmp_path / "elsewhere")
    front = Front(pool, _asked(), Origins(), Counter())
    assert set(front._offered) == {"disk"}
    (tmp_path / "elsewhere").rename(image)
    assert not front.sync() and set(front._offered) == {"disk", "over"}
    front.close()
    image.write_bytes(b"y" * MIB)
    front = Front(pool, _asked(), Origins(), Counter())
    assert isinstance(front.failures[0], ConflictError), "an image that was written since never shines through"
    front.close()


def test_a_listener_is_adopted_as_it_is_or_not_at_all(tmp_path: Path) -> None:
    make_pool(tmp_path / "pool")
    asked = ListenAsked(f"unix:{tmp_path / 'nbd.sock'}", [], False, {})
    with own_pool(tmp_path / "pool") as owned:
        volumes.create_volume(owned, "disk", MIB)
    with Exporter(own_pool(tmp_path / "pool"), ExporterSettings((asked,))) as exporter:
        assert exporter.listen(asked) == exporter.exports()
        for other in (ListenAsked(asked.address, [], True, {}), ListenAsked(asked.address, ["disk"])):
            with pytest.raises(ConflictError, match="other settings"):
                exporter.listen(other)


def test_a_patient_listener_offers_a_volume_once_it_is_there(pool: OwnedPool) -> None:
    """As the agent's does: a volume of its configuration that was deleted keeps nothing from being served."""
    asked = ListenAsked("unix:unused.sock", ["later", "disk"], patient=True)
    with pytest.raises(NotFoundError, match="later"):
        Front(pool, _asked("later", "disk"), Origins(), Counter())
    with closing(Front(pool, asked, Origins(), Counter())) as front:
        assert front._exports.lookup("disk") and not front._exports.lookup("later")
        volumes.create_volume(pool, "later", MIB)
        assert not front.sync()
        assert front._exports.lookup("disk") and front._exports.lookup("later")


def test_a_front_that_cant_be_leaves_nothing_behind(pool: OwnedPool) -> None:
    threads = set(threading.enumerate())
    with pytest.raises(NotFoundError):
        Front(pool, _asked("old", "nothing"), Origins(), Counter())
    kept = Front(pool, _asked("disk"), Origins(), Counter())
    with pytest.raises(ConflictError):
        Front(pool, _asked("old", "disk", read_only=True), Origins(), Counter())
    kept.close()
    assert set(threading.enumerate()) <= threads
    volumes.delete_snapshot(pool, "old")
    assert not pool.view().snapshots


def test_a_volume_that_a_front_offers_for_reading_isnt_written_through_another(pool: OwnedPool) -> None:
    front = Front(pool, _asked("disk", read_only=True), Origins(), Counter())
    with pytest.raises(ConflictError, match="is being read"):
        Front(pool, _asked("disk"), Origins(), Counter())
    front.close()
    Front(pool, _asked("disk"), Origins(), Counter()).close()


def test_a_volume_that_no_front_offers_any_more_can_be_deleted(pool: OwnedPool) -> None:
    """F4: behind the last of its fronts; what clients wrote is durable then."""
    fronts = [Front(pool, _asked("disk"), Origins(), Counter()) for _ in range(2)]
    exports = [front._exports.lookup("disk") for front in fronts]
    assert exports[0] is not None and exports[1] is not None and exports[0].device is exports[1].device
    device = exports[0].device
    for front in fronts:
        with pytest.raises(ConflictError, match="open for writing"):
            volumes.rollback(pool, "disk", "old")
        with pool.engine.gate.writing():
            device.pwrite(b"x", 7)
        front.close()
    assert not pool.engine.dirty.count and not pool.engine.devices
    with pool.lease([pool.view().volume("disk").dev_id]) as lease:
        assert [each.mapped_blocks for each in lease.devices.values()] == [1]
    again = Front(pool, _asked("disk"), Origins(), Counter())
    export = again._exports.lookup("disk")
    assert export is not None and export.device.pread(9, 0) == bytes(7) + b"x\0"
    again.close()
    volumes.rollback(pool, "disk", "old")
    volumes.delete_volume(pool, "disk", with_snapshots=True)
    assert not pool.facts()


def test_a_front_that_is_closed_keeps_no_page_table(pool: OwnedPool) -> None:
    Front(pool, _asked("old"), Origins(), Counter()).close()
    Front(pool, _asked("disk", read_only=True), Origins(), Counter()).close()
    assert not pool.engine.devices


def test_a_volume_that_meets_a_fault_of_ours_keeps_no_other_one_from_being_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """F3, and the keeper of exporter/process lives through whatever it meets."""
    make_pool(tmp_path / "pool")
    really, in_step, offered = Engine.open_device, Front.sync, threading.Event()

    def open_device(self: Engine, dev_id: int, size_bytes: int, **others: Any) -> ThinDevice:
        if size_bytes == 3 * MIB:
            raise MemoryError
        return really(self, dev_id, size_bytes, **others)

    def sync(self: Front) -> list[Exception]:
        failures = in_step(self)
        if self._exports.lookup("well"):
            offered.set()
        return failures

    monkeypatch.setattr(Engine, "open_device", open_device)
    monkeypatch.setattr(Front, "sync", sync)
    asked = (ListenAsked(f"unix:{tmp_path / 'nbd.sock'}"),)
    owned = own_pool(tmp_path / "pool")
    with Exporter(owned, ExporterSettings(asked)) as exporter:
        for name, size_bytes in (("sick", 3 * MIB), ("well", MIB)):
            volumes.create_volume(owned, name, size_bytes)
        assert offered.wait(20)
        assert [each.name for each in exporter.exports()] == ["well"]
    assert "MemoryError" in caplog.text
