"""A request that waits for room while its volume gets another size: nothing of it comes to stand beyond the end.

The writer leaves the gate to wait, and just there, in its own thread, the volume is resized. What it would publish
behind that is beyond every bound that a cut, a diff or a restore goes by, and would show when the volume grows again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from replicator.errors import UsageError
from replicator.exporter.exports import Export
from replicator.exporter.plain import Found, Plain
from replicator.pool import volumes
from replicator.pool.opening import OwnedPool, own_pool
from replicator.thin.device import ThinDevice
from replicator.units import KIB, MIB
from tests.support.pool_owner import make_pool

BLOCK = 64 * KIB
LARGE, SMALL = 512 * MIB, 4 * MIB  # in two stretches of the page table, and in one
NEAR, FAR = 2000, 5000  # blocks beyond the new end, in the first stretch and in the second


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[OwnedPool]:
    """A pool with the volume `disk`, far larger than the pool."""
    make_pool(tmp_path / "pool")
    with own_pool(tmp_path / "pool") as owned:
        volumes.create_volume(owned, "disk", LARGE)
        yield owned


def _device(pool: OwnedPool) -> ThinDevice:
    """The volume, open, with something dirty in it."""
    volume = pool.view().volume("disk")
    device = pool.open_live(volume.dev_id, volume.size_bytes, None)
    with pool.engine.gate.writing():
        device.pwrite(b"d" * BLOCK, 0)
    return device


def _resized_while_it_waits(pool: OwnedPool, size_bytes: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The next request finds no room and waits; meanwhile the volume gets that size, and what it waits for comes."""
    resized: list[int] = []
    takes, uuid = pool.engine._takes, pool.view().volume("disk").uuid

    def wait() -> None:
        with pool.engine.gate.outside():
            resized.append(pool.resize(uuid, size_bytes))

    def has_taken(count: int, *, trims: bool = False) -> bool:
        return bool(resized) and takes(count, trims=trims)

    monkeypatch.setattr(pool.engine, "wait_outside", wait)
    monkeypatch.setattr(pool.engine, "_takes", has_taken)
    return resized


def _mapped_beyond(pool: OwnedPool, size_bytes: int) -> list[list[int]]:
    pool.flush()
    metadata, dev_id = pool.engine.metadata, pool.view().volume("disk").dev_id
    return [keys.tolist() for keys, _ in metadata.mapped(dev_id, size_bytes // BLOCK, 1 << 40)]


Asked = Callable[[ThinDevice, int], None]


def _write(device: ThinDevice, block: int, count: int, inside: int = 0) -> None:
    device.pwrite(b"W" * (count * BLOCK - inside), block * BLOCK + inside)


def _write_zeroes(device: ThinDevice, block: int) -> None:
    device.write_zeroes(block * BLOCK, BLOCK, may_unmap=False)


@pytest.mark.parametrize("block", [NEAR, FAR])
@pytest.mark.parametrize(
    "ask",
    [partial(_write, count=1), partial(_write, count=1, inside=512), partial(_write, count=3), _write_zeroes],
    ids=["a block", "part of a block", "several blocks", "zeros"],
)
def test_a_write_that_waits_while_its_volume_is_made_smaller_is_refused(
    pool: OwnedPool, monkeypatch: pytest.MonkeyPatch, ask: Asked, block: int
) -> None:
    device = _device(pool)
    with monkeypatch.context() as patched:
        resized = _resized_while_it_waits(pool, SMALL, patched)
        with pool.engine.gate.writing(), pytest.raises(UsageError, match="inside its 4194304"):
            ask(device, block)
    assert resized and _mapped_beyond(pool, SMALL) == []
    pool.resize(pool.view().volume("disk").uuid, LARGE)
    assert device.pread(BLOCK, block * BLOCK) == bytes(BLOCK) and device.pread(BLOCK, 0) == b"d" * BLOCK


@pytest.mark.parametrize("block", [NEAR, FAR])
def test_a_trim_that_waits_while_its_volume_is_made_smaller_ends_where_the_volume_does(
    pool: OwnedPool, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    device = _device(pool)
    with monkeypatch.context() as patched:
        resized = _resized_while_it_waits(pool, SMALL, patched)
        with pool.engine.gate.writing():
            device.discard(block * BLOCK, BLOCK)
            device.discard(0, BLOCK)
    assert resized and device.pread(BLOCK, 0) == bytes(BLOCK)


@pytest.mark.parametrize("zeroes", [False, True], ids=["trim", "zeros"])
def test_a_trim_of_the_short_last_block_leaves_what_was_written_behind_it_once_the_volume_grew(
    pool: OwnedPool, monkeypatch: pytest.MonkeyPatch, zeroes: bool
) -> None:
    """That block counts as whole for as long as the volume ends in it."""
    volume = volumes.create_volume(pool, "short", BLOCK + 4096)
    device = pool.open_live(volume.dev_id, volume.size_bytes, None)
    with pool.engine.gate.writing():
        device.pwrite(b"d" * volume.size_bytes, 0)
    resized: list[int] = []
    takes = pool.engine._takes

    def wait() -> None:
        with pool.engine.gate.outside():
            resized.append(pool.resize(volume.uuid, 2 * BLOCK))
            with pool.engine.gate.writing():
                device.pwrite(b"N" * 4096, BLOCK + 4096)

    with monkeypatch.context() as patched:
        patched.setattr(pool.engine, "wait_outside", wait)
        patched.setattr(
            pool.engine, "_takes", lambda count, *, trims=False: bool(resized) and takes(count, trims=trims)
        )
        with pool.engine.gate.writing():
            (device.write_zeroes if zeroes else device.discard)(0, volume.size_bytes)
    assert device.pread(BLOCK, 0) == bytes(BLOCK) and device.pread(4096, BLOCK + 4096) == b"N" * 4096
    assert not zeroes or device.pread(4096, BLOCK) == bytes(4096)


def test_a_write_within_the_new_end_is_carried_out(pool: OwnedPool, monkeypatch: pytest.MonkeyPatch) -> None:
    device = _device(pool)
    with monkeypatch.context() as patched:
        resized = _resized_while_it_waits(pool, SMALL, patched)
        with pool.engine.gate.writing():
            device.pwrite(b"W" * BLOCK, SMALL - BLOCK)
    assert resized and device.pread(BLOCK, SMALL - BLOCK) == b"W" * BLOCK


@pytest.mark.parametrize("block", [NEAR, FAR])
def test_what_was_looked_at_before_the_volume_was_made_smaller_isnt_answered_by_the_connection(
    pool: OwnedPool, block: int
) -> None:
    """Between a request's check and its turn the page table may get shorter: others answer it then, with an error."""
    device = _device(pool)
    plain = Plain(Export(device))
    with pool.engine.gate.writing():
        device.pwrite(b"d" * BLOCK, block * BLOCK)
    pool.resize(pool.view().volume("disk").uuid, SMALL)
    at, whole, part = block * BLOCK, memoryview(bytearray(BLOCK)), memoryview(bytearray(8))
    with pool.engine.gate.writing():
        for data in (whole, part):
            assert not plain.overwrite(data, at) and not plain.write(data, at)
    assert plain.read(whole, at) is Found.LATER
    calls: list[Callable[[], object]] = [
        partial(device.entry, FAR),
        partial(device.pread, 8, at),
        partial(list, device.runs(FAR * BLOCK, 8)),
    ]
    for call in calls:
        with pytest.raises(UsageError):
            call()
    assert _mapped_beyond(pool, SMALL) == []


def test_while_it_is_being_made_smaller_nothing_beyond_is_overwritten_in_place(pool: OwnedPool) -> None:
    """The page table still has what the commit is about to unmap; the size is the new one already."""
    device = _device(pool)
    plain = Plain(Export(device))
    with pool.engine.gate.writing():
        device.pwrite(b"d" * BLOCK, NEAR * BLOCK)
        assert plain.overwrite(memoryview(b"e" * BLOCK), NEAR * BLOCK)
        device.size_bytes = SMALL
        assert not plain.overwrite(memoryview(b"f" * BLOCK), NEAR * BLOCK)
        assert not plain.write(memoryview(b"f" * BLOCK), NEAR * BLOCK)
        device.size_bytes = LARGE
    assert device.pread(BLOCK, NEAR * BLOCK) == b"e" * BLOCK
