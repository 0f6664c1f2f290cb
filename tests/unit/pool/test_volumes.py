"""U1 to U3 and U5 of pool/volumes, E1 of pool/origins; and two clients that race."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from replicator.blockdev.file import FileDevice
from replicator.errors import ConflictError, NotFoundError, UsageError
from replicator.pool import applying, devices, volumes
from replicator.pool.catalogue_schema import (
    DEV_ID_LIMIT,
    VOLUME_BYTES_LIMIT,
    OriginKind,
    Prepared,
    Purpose,
    Setting,
    Snapshot,
)
from replicator.pool.changes import Put
from replicator.pool.interface import CutRequest, Pool, Switch
from replicator.pool.opening import OwnedPool, own_pool
from replicator.pool.origins import identify_origin, open_origin
from replicator.pool.remote import RemotePool
from replicator.thin.metadata import PoolMetadata
from replicator.units import MIB
from tests.support.pool_owner import make_pool, served
from tests.support.rivals import given_again, rivalled


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[OwnedPool]:
    """A served pool with the volume `disk` (16 MiB)."""
    make_pool(tmp_path / "pool")
    with served(tmp_path / "pool") as owned:
        volumes.create_volume(owned, "disk", 16 * MIB)
        yield owned


def _names(pool: Pool) -> list[str]:
    view = pool.view()
    return sorted([each.name for each in view.volumes] + [each.name for each in view.snapshots if not each.hidden])


def test_a_volume_is_listed_as_it_was_created(pool: OwnedPool) -> None:
    volumes.create_snapshot(pool, "disk", "before")
    (found,) = volumes.list_volumes(pool.view(), pool.facts(()))
    assert (found.name, found.size_bytes, found.mapped_blocks, found.origin) == ("disk", 16 * MIB, 0, None)
    assert (found.dev_id, found.snapshots) == (1, ("before",))


def test_a_name_is_given_once(pool: OwnedPool) -> None:
    """U1: to volumes and users' snapshots alike; nothing is changed by what is refused."""
    volumes.create_snapshot(pool, "disk", "snap")
    at_id = pool.view().at_id
    for name in ("disk", "snap"):
        with pytest.raises(ConflictError, match=f"{name}' already"):
            volumes.create_volume(pool, name, MIB)
        with pytest.raises(ConflictError):
            volumes.clone(pool, "disk", name)
        with pytest.raises(ConflictError):
            volumes.create_snapshot(pool, "disk", name)
    with pytest.raises(ConflictError):
        volumes.rename(pool, "disk", "snap")
    with pytest.raises(UsageError):
        volumes.create_volume(pool, "a/b", MIB)
    with pytest.raises(NotFoundError, match="disk"):
        volumes.create_snapshot(pool, "none", "x")
    with pytest.raises(NotFoundError, match="disk"):
        volumes.clone(pool, "none", "x")
    assert pool.view().at_id == at_id


@pytest.mark.parametrize("remote", [False, True], ids=["owner", "client"])
def test_an_id_that_was_deleted_comes_back_late(pool: OwnedPool, remote: bool) -> None:
    """U6: who still means the deleted device by it finds none."""
    with RemotePool(pool.path) if remote else contextlib.nullcontext(pool) as asked:
        given = [1]
        for number in range(3):
            given.append(volumes.create_snapshot(asked, "disk", f"snap{number}").dev_id)
            volumes.delete_snapshot(asked, f"snap{number}")
            given.append(volumes.clone(asked, "disk", "clone").dev_id)
            volumes.delete_volume(asked, "clone")
            cut = CutRequest(uuid4(), (asked.view().volume("disk").uuid,), Purpose.BASE)
            given.extend(asked.cut(cut).dev_ids)
            volumes.delete_snapshot(asked, given[-1])
    assert given == list(range(1, len(given) + 1))


def test_behind_the_last_id_the_lowest_free_one_is_given(pool: OwnedPool) -> None:
    last = DEV_ID_LIMIT - 1
    row = Snapshot(last, pool.view().volume("disk").uuid, Purpose.USER, 1, MIB, name="last")
    pool.switch(Switch(create=(last - 1,)))
    pool.used_dev_id(last - 1)
    pool.switch(Switch(create=(last,), changes=(Put(row),)))
    assert [volumes.create_snapshot(pool, "disk", name).dev_id for name in "ab"] == [2, 3]
    pool.used_dev_id(1)  # one that was looked up before others came: it doesn't lead back
    assert volumes.create_snapshot(pool, "disk", "c").dev_id == 4


def test_rename_keeps_everything_but_the_name(pool: OwnedPool) -> None:
    before = pool.view().volume("disk")
    volumes.create_snapshot(pool, "disk", "snap")
    volumes.rename(pool, "disk", "other")
    volumes.rename(pool, "snap", "disk")
    volumes.rename(pool, str(before.uuid), "other")
    after = pool.view().volume("other")
    assert (after.uuid, after.dev_id) == (before.uuid, before.dev_id) and _names(pool) == ["disk", "other"]


def test_a_clone_and_a_rollback_have_what_their_source_had(pool: OwnedPool) -> None:
    live = pool.engine.open_device(1, 16 * MIB, read_only=False)
    with pool.engine.gate.writing():
        live.pwrite(b"old!", 0)
    volumes.create_snapshot(pool, "disk", "snap")
    with pool.engine.gate.writing():
        live.pwrite(b"new!", 0)
    pool.flush()
    for source, name in (("disk", "of-disk"), ("snap", "of-snap"), (2, "of-2")):
        made = volumes.clone(pool, source, name)
        content = pool.engine.open_device(made.dev_id, made.size_bytes).pread(4, 0)
        assert content == (b"new!" if source == "disk" else b"old!")
    with pytest.raises(ConflictError, match="open for writing"):
        volumes.rollback(pool, "disk", "snap")
    clone = pool.view().volume("of-disk")
    with pytest.raises(ConflictError, match="isn't a snapshot of"):
        volumes.rollback(pool, clone.name, "snap")


def test_rollback_takes_content_and_size_back(pool: OwnedPool) -> None:
    snapshot = volumes.create_snapshot(pool, "disk", "snap")
    volumes.resize(pool, "disk", 32 * MIB)
    before = pool.view().volume("disk")
    after = volumes.rollback(pool, "disk", "snap")
    assert after == pool.view().volume("disk") and after.size_bytes == snapshot.size_bytes
    assert after.uuid == before.uuid and not pool.facts((before.dev_id,)) and pool.facts((after.dev_id,))


def test_a_deleted_volume_takes_what_is_said_with_it(pool: OwnedPool) -> None:
    """U3; a leased snapshot goes once nobody reads it."""
    snapshot = volumes.create_snapshot(pool, "disk", "snap")
    with pytest.raises(ConflictError, match="1 snapshots and points: snap"):
        volumes.delete_volume(pool, "disk")
    row = pool.view().volume("disk")
    prepared = Prepared(row.uuid, 1, 1, uuid4(), None, snapshot.dev_id, 5, MIB)
    pool.switch(Switch(changes=(Put(prepared),)))
    with pytest.raises(ConflictError, match="published"):
        volumes.delete_volume(pool, "disk", with_snapshots=True)
    with pool.lease((snapshot.dev_id,)):
        volumes.delete_volume(pool, "disk", with_snapshots=True, while_published=True)
        assert _names(pool) == [] and pool.facts((snapshot.dev_id,))
        assert not pool.view().prepared
        with pytest.raises(NotFoundError):
            volumes.delete_snapshot(pool, "snap")
    assert volumes.sweep_hidden(pool) == 1
    assert not pool.facts(()) and not pool.view().snapshots


def test_what_a_dead_client_left_hidden_is_swept_at_the_next_opening(tmp_path: Path) -> None:
    make_pool(tmp_path / "pool")
    with own_pool(tmp_path / "pool") as pool:
        row = volumes.create_volume(pool, "disk", MIB)
        hidden = Snapshot(9, row.uuid, Purpose.USER, 5, MIB, hidden=True)
        pool.switch(Switch(snapshot=((9, row.dev_id),), changes=(Put(hidden),)))
    with own_pool(tmp_path / "pool") as pool:
        assert not pool.view().snapshots and not pool.facts((9,))


def test_a_volume_in_use_is_not_deleted(pool: OwnedPool) -> None:
    pool.engine.open_device(1, 16 * MIB, read_only=False)
    with pytest.raises(ConflictError, match="open for writing"):
        volumes.delete_volume(pool, "disk")
    assert _names(pool) == ["disk"]


def test_a_held_snapshot_is_not_deleted(pool: OwnedPool) -> None:
    row = pool.view().volume("disk")
    held = Snapshot(9, row.uuid, Purpose.POINT, 5, MIB, number=3, held=True)
    pool.switch(Switch(snapshot=((9, row.dev_id),), changes=(Put(held),)))
    with pytest.raises(ConflictError, match="held"):
        volumes.delete_snapshot(pool, 9)
    with pytest.raises(ConflictError, match="held"):
        volumes.delete_volume(pool, "disk", with_snapshots=True)
    with pytest.raises(NotFoundError):
        volumes.delete_snapshot(pool, 8)


def test_sweep_leaves_what_is_being_filled(pool: OwnedPool) -> None:
    row = pool.view().volume("disk")
    staging = Snapshot(9, row.uuid, Purpose.STAGING, 5, MIB, hidden=True)
    pool.switch(Switch(snapshot=((9, row.dev_id),), changes=(Put(staging),)))
    assert volumes.sweep_hidden(pool) == 0 and pool.facts((9,))


def _hidden_one(pool: OwnedPool) -> Snapshot:
    """A snapshot that was deleted, and whose space somebody has yet to give back."""
    row = volumes.create_snapshot(pool, "disk", "old")
    pool.switch(Switch(changes=(Put(replace(row, name="", hidden=True)),)))
    return row


def test_a_sweep_doesnt_delete_what_was_given_its_id_meanwhile(pool: OwnedPool) -> None:
    """U5."""
    row = _hidden_one(pool)
    rival = rivalled(pool, "switch", lambda: given_again(pool, row, "disk", "before-upgrade"))
    assert volumes.sweep_hidden(rival) == 0
    assert _names(pool) == ["before-upgrade", "disk"] and pool.facts((row.dev_id,))


@pytest.mark.parametrize("act", [volumes.delete_snapshot, lambda pool, row: volumes.clone(pool, row, "copy")])
def test_what_was_looked_at_is_what_is_acted_on(pool: OwnedPool, act: Callable[[Pool, Snapshot], object]) -> None:
    """U5: who looked at a snapshot, and thought about it, doesn't delete or copy the one that has its id now."""
    row = _hidden_one(pool)
    given_again(pool, row, "disk", "before-upgrade")
    with pytest.raises(NotFoundError, match="meanwhile"):
        act(pool, row)
    assert _names(pool) == ["before-upgrade", "disk"]


def test_a_cut_that_was_swept_and_its_id_given_again_is_made_anew(
    pool: OwnedPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """U5: what is held still is a cut of the volume that was named, and what has the id of a lost cut stays."""
    with pool.engine.gate.writing():
        pool.open_live(1, 16 * MIB, None).pwrite(b"disk" * 1024, 0)
    volumes.create_volume(pool, "other", MIB)

    def lost() -> None:
        (cut,) = pool.view().snapshots
        given_again(pool, cut, "other", "precious")

    def opened(path: Path) -> Pool:
        return rivalled(RemotePool(path), "lease", lost)

    monkeypatch.setattr(devices, "open_pool", opened)
    with devices.held_still(pool.path, ["disk"]) as (_, (still,)):
        assert still.root == pool.facts((1,))[1].root
    assert _names(pool) == ["disk", "other", "precious"] and pool.facts((_dev_id(pool, "precious"),))


def test_an_id_that_only_the_metadata_has_is_not_given_again(pool: OwnedPool) -> None:
    pool.switch(Switch(create=(2,)))
    assert volumes.create_volume(pool, "next", MIB).dev_id == 3


def test_two_clients_switch_by_compare_and_swap_and_none_is_lost(pool: OwnedPool) -> None:
    """S3-44: 200 each, over the socket and in the owner's process, all adding to one row."""

    def add(client: Pool) -> None:
        for _ in range(200):
            volumes.switched(
                client,
                lambda view: (Switch(changes=(Put(Setting("sum", str(1 + int(view.setting("sum", "0"))))),)), None),
            )

    before = pool.view().at_id
    with RemotePool(pool.path) as near:
        threads = [threading.Thread(target=add, args=(client,)) for client in (near, pool)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert pool.view().setting("sum") == "400" and pool.view().at_id == before + 400


def test_clients_that_create_at_once_get_their_own_devices(pool: OwnedPool) -> None:
    failed: list[ConflictError] = []

    def work(number: int) -> None:
        with RemotePool(pool.path) as near:
            for turn in range(5):
                volumes.create_volume(near, f"{number}-{turn}", MIB)
            try:
                volumes.create_volume(near, "same", MIB)
            except ConflictError as error:
                failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = pool.view().volumes
    assert len(made) == 22 == len({each.dev_id for each in made}) == len(pool.facts(())) and len(failed) == 3


def test_snapshots_and_clones_have_their_volumes_origin(pool: OwnedPool, tmp_path: Path) -> None:
    """U2, S3-36; through a snapshot of a clone too."""
    (tmp_path / "base").write_bytes(os.urandom(3 * MIB + 100))
    origin = identify_origin(str(tmp_path / "base"))
    assert (origin.kind, origin.size_bytes) == (OriginKind.FILE, 3 * MIB + 100)
    volumes.create_volume(pool, "over", 8 * MIB, origin)
    snapshot = volumes.create_snapshot(pool, "over", "snap")
    clone = volumes.clone(pool, "snap", "clone")
    again = volumes.clone(pool, volumes.create_snapshot(pool, "clone", "snap2").dev_id, "clone2")
    assert clone.origin == again.origin == origin == volumes.origin_of(pool.view(), snapshot)


def test_an_origin_that_changed_is_not_opened(tmp_path: Path) -> None:
    """E1: size, content at a sampled page, and anything else by its time."""
    path = tmp_path / "base"
    path.write_bytes(bytes(3 * MIB))
    origin = identify_origin(str(path))
    device = open_origin(origin)
    assert device.read_only and device.pread(4, 0) == bytes(4)
    device.close()
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(1_000_001)
        file.write(b"x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(ConflictError, match="was written since") as refusal:
        open_origin(origin)
    assert refusal.value.mend is not None and f".{before.st_mtime_ns % 10**9:09d} {path}" in refusal.value.mend
    with path.open("r+b") as file:
        file.write(b"x")
    with pytest.raises(ConflictError, match="other content"):
        open_origin(origin)
    path.write_bytes(bytes(2 * MIB))
    with pytest.raises(ConflictError, match="bytes, and had"):
        open_origin(origin)
    path.unlink()
    with pytest.raises(NotFoundError):
        open_origin(origin)
    (tmp_path / "empty").touch()
    open_origin(identify_origin(str(tmp_path / "empty"))).close()


def test_what_another_engine_deleted_can_be_deleted_and_rolled_back(tmp_path: Path) -> None:
    """U4."""
    make_pool(tmp_path / "pool")
    with own_pool(tmp_path / "pool") as pool:
        lost = [volumes.create_volume(pool, name, MIB).dev_id for name in ("disk", "other")]
        for name in ("kept", "lost"):
            volumes.create_snapshot(pool, "disk", name)
        lost.append(_dev_id(pool, "lost"))
    with FileDevice(tmp_path / "pool" / "metadata") as device:
        metadata = PoolMetadata.open(device)
        for dev_id in lost:
            metadata.delete(dev_id)
        metadata.commit(lambda: None)
    with own_pool(tmp_path / "pool") as pool:
        volumes.delete_snapshot(pool, "lost")
        volumes.rollback(pool, "disk", "kept")
        volumes.delete_volume(pool, "other")
        assert _names(pool) == ["disk", "kept"]
        view = pool.view()
        assert {row.dev_id for row in view.volumes} | {row.dev_id for row in view.snapshots} == pool.facts(()).keys()


def _dev_id(pool: Pool, snapshot: str) -> int:
    found = pool.view().snapshot_named(snapshot)
    assert found is not None
    return found.dev_id


def test_no_volume_is_larger_than_the_tables_of_those_who_serve_it(
    pool: OwnedPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P5; one that is, from another time, is still there, and shrinks."""
    most = volumes.create_volume(pool, "most", VOLUME_BYTES_LIMIT)
    at_id, too_large = pool.view().at_id, replace(most, uuid=uuid4(), name="x", dev_id=9, size_bytes=1 << 62)
    with RemotePool(pool.path) as client:
        for asked in (pool, client):
            with pytest.raises(UsageError, match="1 PiB"):
                volumes.create_volume(asked, "more", VOLUME_BYTES_LIMIT + 1)
            with pytest.raises(UsageError, match="1 PiB"):
                volumes.resize(asked, "disk", 4 << 60)
            with pytest.raises(UsageError, match="1 PiB"):  # an import's, or a receiver's
                asked.switch(Switch(create=(9,), changes=(Put(too_large),)))
    assert pool.view().at_id == at_id and pool.facts().keys() == {1, most.dev_id}
    monkeypatch.setattr(applying, "VOLUME_BYTES_LIMIT", 8 * MIB)
    volumes.rename(pool, "disk", "old")
    volumes.create_snapshot(pool, "old", "snap")
    assert volumes.clone(pool, "snap", "copy").size_bytes == 16 * MIB
    volumes.resize(pool, "old", 12 * MIB)
    volumes.rollback(pool, "old", "snap")
    volumes.delete_volume(pool, "most")
    with pytest.raises(UsageError, match="8 MiB"):
        volumes.resize(pool, "old", 17 * MIB)
