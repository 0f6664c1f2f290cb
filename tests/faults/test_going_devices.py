"""Between a deletion's tree work and its commit's last flush: who opens or leases the device then, and what they get.

The commit is held there, in `Engine._to_disk`, as a slow disk would hold it. What was opened then would be written in
place in blocks that are somebody else's a moment later (P2, P6).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from replicator.errors import NotFoundError
from replicator.exporter.process import Exporter, ExporterSettings
from replicator.pool import deleting, volumes
from replicator.pool.catalogue_schema import Volume
from replicator.pool.control_values import ListenAsked
from replicator.pool.local import LocalPool
from replicator.pool.opening import own_pool
from replicator.thin.closing import close_device
from replicator.units import MIB
from tests.support.pool_owner import make_pool

WAIT_S = 30.0


@contextmanager
def _held(
    pool: LocalPool, act: Callable[[Callable[[], None]], object], monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """`act` has done its tree work, and its commit is on the way to the disk while the block lasts.

    It is given what it calls right before: from then on commits are held.
    """
    armed, reached, go_on = threading.Event(), threading.Event(), threading.Event()
    flush = pool.engine._to_disk

    def slow(write: Callable[[], None]) -> None:
        if armed.is_set():
            reached.set()
            assert go_on.wait(WAIT_S)
        flush(write)

    thread = threading.Thread(target=act, args=(armed.set,))
    with monkeypatch.context() as patched:
        patched.setattr(pool.engine, "_to_disk", slow)
        thread.start()
        assert reached.wait(WAIT_S)
        try:
            yield
        finally:
            go_on.set()
            thread.join()


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[LocalPool]:
    make_pool(tmp_path / "pool")
    with own_pool(tmp_path / "pool") as owned:
        yield owned


def _written(pool: LocalPool, name: str) -> Volume:
    volume = volumes.create_volume(pool, name, MIB)
    device = pool.open_live(volume.dev_id, volume.size_bytes, None)
    with pool.engine.gate.writing():
        device.pwrite(b"a" * MIB, 0)
    close_device(pool.engine, device)
    return volume


@pytest.mark.parametrize("slice_cost", [deleting.SLICE_COST, 1], ids=["deleted at once", "marked"])
def test_a_device_that_is_being_deleted_is_neither_opened_nor_leased(
    pool: LocalPool, slice_cost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deleting, "SLICE_COST", slice_cost)
    volume = _written(pool, "disk")

    def delete(held: Callable[[], None]) -> None:
        held()
        volumes.delete_volume(pool, "disk")

    with _held(pool, delete, monkeypatch):
        with pytest.raises(NotFoundError, match="any more"):
            pool.open_live(volume.dev_id, volume.size_bytes, None)
        with pytest.raises(NotFoundError, match="any more"):
            pool.take_lease([volume.dev_id])
    assert not pool.view().volumes


def test_a_listener_that_is_asked_for_meanwhile_offers_what_is_there_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Exporter, "_keep_step", lambda _: None)  # nobody else puts the fronts in step
    make_pool(tmp_path / "pool")
    owned = own_pool(tmp_path / "pool")
    before = _written(owned, "disk")
    volumes.create_snapshot(owned, "disk", "old")
    first, second = (ListenAsked(f"unix:{tmp_path / name}") for name in ("a", "b"))
    with Exporter(owned, ExporterSettings((first,))) as exporter:

        def roll_back(held: Callable[[], None]) -> None:
            with exporter.let_go([before.dev_id]):
                held()
                volumes.rollback(owned, "disk", "old")

        with _held(owned, roll_back, monkeypatch):
            assert exporter.listen(second) == []
        found = {each.name for each in exporter.listen(second)}
        assert found == {"disk"} and owned.view().volume("disk").dev_id != before.dev_id
