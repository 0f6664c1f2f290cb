"""O1 to O3 of pool/opening, R1 and R2 of pool/reading, D1 to D3 of pool/reader."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from replicator.blockdev.file import FileDevice
from replicator.blockdev.memory import MemoryDevice
from replicator.errors import ConflictError, DamageError, FormatError, NotFoundError, UnavailableError, UsageError
from replicator.pool import volumes
from replicator.pool.catalogue import Catalogue
from replicator.pool.creation import PoolPlan, create_pool
from replicator.pool.identity import TIME_CAPPED_SETTING
from replicator.pool.locks import OwnedElsewhereError, PoolLock
from replicator.pool.opening import OwnedPool, open_pool, own_pool
from replicator.pool.reader import PoolReader
from replicator.pool.reading import read_beside, read_pool
from replicator.pool.remote import RemotePool
from replicator.pool.view import CatalogueView
from replicator.thin.metadata import TIME_CAP, PoolMetadata
from replicator.thin.table import STRETCH_BLOCKS
from replicator.units import MIB
from tests.support.golden import KernelPool
from tests.support.pool_owner import make_pool, owned_by_child, served

BLOCK = 65536


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A pool whose volume `disk` (16 MiB and 100 bytes) has content, with the snapshot `snap`."""
    path = tmp_path / "pool"
    make_pool(path)
    with own_pool(path) as pool:
        volumes.create_volume(pool, "disk", 16 * MIB + 100)
        live = pool.engine.open_device(1, 16 * MIB + 100, read_only=False)
        with pool.engine.gate.writing():
            live.pwrite(b"a" * 3 * BLOCK, 5 * BLOCK)
            live.pwrite(b"b" * 100, 16 * MIB)
        volumes.create_snapshot(pool, "disk", "snap")
        with pool.engine.gate.writing():
            live.pwrite(b"c" * 10, 6 * BLOCK)
    return path


def _content() -> bytes:
    return bytes(5 * BLOCK) + b"a" * 3 * BLOCK + bytes(16 * MIB - 8 * BLOCK) + b"b" * 100


def test_what_is_no_pool_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for opening in (open_pool, read_pool):
        with pytest.raises(NotFoundError, match="isn't a directory"):
            opening(tmp_path / "none")
        with pytest.raises(NotFoundError, match="isn't a pool"):
            opening(tmp_path / "empty")
    assert not list((tmp_path / "empty").iterdir())
    (tmp_path / "empty" / "metadata").write_bytes(bytes(65536))
    (tmp_path / "empty" / "data").write_bytes(bytes(65536))
    for opening in (open_pool, read_pool):
        with pytest.raises(FormatError, match="isn't formatted"):
            opening(tmp_path / "empty")


def test_a_failed_opening_lets_go_of_everything(path: Path) -> None:
    """O3: and the file that stood in the way is named."""
    good = (path / "metadata").read_bytes()
    (path / "metadata").write_bytes(b"\xff" * 4096 + good[4096:])
    with pytest.raises(DamageError, match="metadata"):
        own_pool(path)
    with pytest.raises(DamageError, match="metadata"):
        read_pool(path)
    (path / "metadata").write_bytes(good)
    own_pool(path).close()


def test_an_opening_that_fails_at_its_end_lets_go_of_everything(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """O3: the catalogue can't be read any more when the engine runs already."""
    really, looks = Catalogue.view, list[int]()

    def view(self: Catalogue, at_id: int) -> CatalogueView:
        looks.append(at_id)
        if len(looks) > 1:
            raise DamageError("the disk is gone")
        return really(self, at_id)

    with monkeypatch.context() as patched:
        patched.setattr(Catalogue, "view", view)
        with pytest.raises(DamageError, match="the disk is gone"):
            own_pool(path)
    own_pool(path).close()


def test_open_pool_owns_what_nobody_has_and_joins_what_somebody_has(path: Path) -> None:
    """O2."""
    with open_pool(path) as first:
        assert isinstance(first, OwnedPool)
        first.close()
    with owned_by_child(path) as child, open_pool(path) as second:
        assert isinstance(second, RemotePool) and second.status().owner_pid == child.pid


def test_reading_without_an_owner_keeps_openers_waiting(path: Path) -> None:
    with read_pool(path) as reader:
        assert [each.name for each in reader.view().volumes] == ["disk"]
        with pytest.raises(ConflictError, match="being read"):
            own_pool(path, wait_s=0)
        with read_pool(path) as another:
            assert another.view() == reader.view()
        with pytest.raises(NotFoundError), reader.lease((9,)):
            pass
    own_pool(path).close()


def test_an_owner_without_a_socket_is_named_to_readers(path: Path) -> None:
    with (
        owned_by_child(path, control=False) as child,
        pytest.raises(OwnedElsewhereError, match=f"process {child.pid}"),
    ):
        read_pool(path, owner_s=0)


@pytest.fixture(params=["still", "beside", "here"])
def reader(request: pytest.FixtureRequest, path: Path) -> Iterator[PoolReader]:
    """A reader of the pool: without an owner, beside one, in the owner's own process."""
    if request.param == "still":
        with read_pool(path) as made:
            yield made
    elif request.param == "beside":
        with owned_by_child(path), read_pool(path) as made:
            yield made
    else:
        with own_pool(path) as pool, read_beside(pool) as made:
            yield made


def test_a_snapshot_reads_as_it_was_cut(reader: PoolReader) -> None:
    snapshot = reader.view().snapshot_named("snap")
    assert snapshot is not None
    assert reader.facts((snapshot.dev_id,))[snapshot.dev_id].mapped_blocks == 4
    with reader.disk(snapshot.dev_id, snapshot.size_bytes) as disk:
        assert disk.pread(disk.size_bytes, 0) == _content()
        for offset, length in (
            (0, 0),
            (5 * BLOCK - 1, 2),
            (8 * BLOCK - 7, 14),
            (16 * MIB - 1, 101),
            (7 * BLOCK, BLOCK),
        ):
            assert disk.pread(length, offset) == _content()[offset : offset + length]
        runs = list(disk.runs(0, disk.size_bytes))
        assert next(begin for begin, _, where in runs if where >= 0) == 5 * BLOCK
        assert sum(length for _, length, _ in runs) == disk.size_bytes
        for crooked in ((-1, 5), (disk.size_bytes, 1), (0, disk.size_bytes + 1)):
            with pytest.raises(UsageError):
                disk.pread(crooked[1], crooked[0])


def test_an_origin_shines_through_what_is_unmapped(path: Path) -> None:
    origin = MemoryDevice(BLOCK + 10)
    origin.pwrite(b"o" * (BLOCK + 10), 0)
    with read_pool(path) as reader, reader.disk(2, 16 * MIB, origin) as disk:
        assert disk.pread(20, BLOCK) == b"o" * 10 + bytes(10)
        assert disk.pread(5, 5 * BLOCK) == b"aaaaa"


def test_runs_say_where_each_byte_lies(path: Path) -> None:
    """At borders of blocks and of mapping stretches."""
    with own_pool(path) as pool:
        size = (STRETCH_BLOCKS + 20) * BLOCK
        volumes.create_volume(pool, "wide", size)
        device = pool.view().volume("wide").dev_id
        live = pool.engine.open_device(device, size, read_only=False)
        with pool.engine.gate.writing():
            for block in (0, STRETCH_BLOCKS - 1, STRETCH_BLOCKS, STRETCH_BLOCKS + 19):
                live.pwrite(bytes([block % 251 + 1]) * BLOCK, block * BLOCK)
        snapshot = volumes.create_snapshot(pool, "wide", "w")
        with read_beside(pool) as reader, reader.disk(snapshot.dev_id, size, stretches=1) as disk:
            for begin, length in ((0, size), (BLOCK // 2, 3 * BLOCK), ((STRETCH_BLOCKS - 2) * BLOCK + 5, 4 * BLOCK)):
                at = begin
                for start, part, where in disk.runs(begin, length):
                    assert start == at and part > 0
                    expected = disk.pread(part, start) if part < MIB else None
                    if where >= 0:
                        assert expected == reader.data.pread(part, where)
                    elif expected is not None:
                        assert expected == bytes(part)
                    at += part
                assert at == begin + length


def test_what_was_read_under_a_fallen_lease_is_void(path: Path) -> None:
    """D1: also what was in the cache, also where the read itself went well."""
    with owned_by_child(path) as child, read_pool(path) as reader:
        disk = reader.disk(2, 16 * MIB)
        assert disk.pread(5, 5 * BLOCK) == b"aaaaa" and disk.stands
        child.kill()
        child.wait()
        assert not disk.stands
        with pytest.raises(UnavailableError, match="void"):
            disk.pread(5, 5 * BLOCK)
        with pytest.raises(UnavailableError, match="void"):
            list(disk.runs(0, MIB))
        disk.close()


def test_a_disk_uses_the_lease_that_it_is_given(path: Path) -> None:
    with served(path) as pool, RemotePool(path) as near, read_beside(near) as reader, reader.lease((2,)) as lease:
        with reader.disk(2, MIB, lease=lease) as disk:
            assert disk.pread(1, 0) == b"\0"
        assert lease.stands and pool.is_leased(2)
        with pytest.raises(UsageError, match="leased"):
            reader.disk(1, MIB, lease=lease)


def test_a_mapping_beyond_the_data_is_a_format_error(path: Path) -> None:
    """Hostile or damaged metadata: the data file was cut short."""
    os.truncate(path / "data", BLOCK)
    with read_pool(path) as reader, reader.disk(2, 16 * MIB) as disk, pytest.raises(FormatError, match="data blocks"):
        disk.pread(1, 5 * BLOCK)


def test_a_foreign_pool_is_read_by_thin_ids(kernel_pool_a: KernelPool, tmp_path: Path) -> None:
    """The kernel's own: each device has the digest that the kernel saw, live and held."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    shutil.copy(kernel_pool_a.metadata, folder / "metadata")
    shutil.copy(kernel_pool_a.data, folder / "data")
    with pytest.raises(UsageError, match="no catalogue"):
        open_pool(folder)
    facts = kernel_pool_a.facts
    for held, seen in ((False, facts["checkpoints"]["final"]), (True, facts["held_root_on_final_data"])):
        with read_pool(folder, held=held) as reader:
            volumes_there = reader.view().volumes
            assert [each.name for each in volumes_there] == sorted(f"thin-{each.dev_id}" for each in volumes_there)
            assert reader.facts(()).keys() == {each.dev_id for each in volumes_there}
            for name, device in seen["devices"].items():
                size = int(device["status"].split()[1]) * 512
                with reader.disk(int(name), size) as disk:
                    assert hashlib.sha256(disk.pread(size, 0)).hexdigest() == device["sha256"]
    assert {each.name for each in folder.iterdir()} == {"metadata", "data"}, "nothing was written"


def test_an_own_pool_is_read_through_its_metadata_snapshot_whoever_writes(path: Path) -> None:
    """P9: a reader may open the held root at any time."""
    with own_pool(path) as pool:
        with pytest.raises(NotFoundError, match="metadata snapshot"):
            read_pool(path, held=True)
        pool.set_metadata_snapshot(True)
        volumes.create_volume(pool, "later", MIB)
        with read_pool(path, held=True) as reader:
            assert [each.name for each in reader.view().volumes] == ["thin-1", "thin-2"]
            with reader.disk(2, 16 * MIB) as disk:
                assert disk.pread(5, 5 * BLOCK) == b"aaaaa"


def test_rows_beyond_the_superblock_are_taken_back_at_opening(path: Path) -> None:
    """A dead owner had staged, and its superblock never came."""
    with own_pool(path) as pool:
        at_id = pool.view().at_id
        pool.catalogue.stage(at_id + 1, [])
    with read_pool(path) as reader:
        assert reader.view().at_id == at_id
    with own_pool(path) as pool:
        assert pool.view().at_id == at_id
        volumes.create_volume(pool, "next", MIB)


def test_the_capped_time_is_believed_only_after_our_own_writes(tmp_path: Path) -> None:
    """D3 of thin/metadata: once another program has written, time has to go up again."""
    path = tmp_path / "pool"
    create_pool(path, PoolPlan(size_bytes=32 * MIB))
    with own_pool(path) as pool:
        volumes.create_volume(pool, "disk", 8 * MIB)
        with pool.engine.lock:
            metadata = pool.engine.metadata
            metadata.superblock = replace(metadata.superblock, time=TIME_CAP)
        for name in ("a", "b"):
            volumes.create_snapshot(pool, "disk", name)
        assert pool.view().setting(TIME_CAPPED_SETTING) and pool.engine.metadata.time_is_capped
        time = pool.status().time
    with own_pool(path) as pool:
        assert pool.engine.metadata.time_is_capped
        volumes.create_snapshot(pool, "disk", "c")
        assert pool.status().time == time == TIME_CAP + 1
    with PoolLock.own(path), FileDevice(path / "metadata") as device:
        other = PoolMetadata.open(device)
        other.create_thin(99)
        other.commit(device.flush)
    with own_pool(path) as pool:
        assert not pool.engine.metadata.time_is_capped and not pool.view().setting(TIME_CAPPED_SETTING)
        volumes.create_snapshot(pool, "disk", "d")
        assert pool.status().time == time + 1


def test_threads_share_a_disk(path: Path) -> None:
    """D3: stretches come and go beneath them."""
    with read_pool(path) as reader, reader.disk(2, 16 * MIB + 100, stretches=1) as disk:
        wrong, content = list[int](), _content()

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(100):
                offset = int(rng.integers(0, disk.size_bytes - 1))
                length = min(int(rng.integers(1, 3 * BLOCK)), disk.size_bytes - offset)
                if disk.pread(length, offset) != content[offset : offset + length]:
                    wrong.append(offset)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
