"""A reader beside the owner of a mirrored pool (D3): whatever it meets when a copy is lost, it never reads that one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from replicator.blockdev.interface import BlockDevice
from replicator.errors import DamageError, DeviceError, FormatError
from replicator.pdata.block import BlockKind, seal
from replicator.pdata.mirror import MirrorState, Side
from replicator.pool import metadata_device
from replicator.pool.metadata_device import MIRROR, MetadataDevice, open_metadata
from replicator.pool.mirror_state import STATE, save_state
from replicator.thin.superblock import Superblock, read_superblock
from replicator.units import METADATA_BLOCK_BYTES
from tests.support.mirrored_pool import make_mirrored

FIRST_IS_LOST = MirrorState(Side.FIRST, 1, "gone")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make_mirrored(tmp_path / "pool", tmp_path / "second")
    return tmp_path / "pool"


@pytest.fixture
def reader(path: Path) -> Iterator[MetadataDevice]:
    """Open while both copies were good."""
    with closing(open_metadata(path)) as device:
        yield device


def block_1(device: MetadataDevice) -> bytes:
    return device.pread(METADATA_BLOCK_BYTES, METADATA_BLOCK_BYTES)


def lose_the_first(path: Path) -> None:
    """Put another block into it, good by itself: only mirror.json can tell. Then say that it's lost."""
    stale = bytearray(random.Random(1).randbytes(METADATA_BLOCK_BYTES))
    seal(stale, BlockKind.NODE, 1)
    with (path / "metadata").open("r+b") as file:
        file.seek(METADATA_BLOCK_BYTES)
        file.write(stale)
    save_state(path, FIRST_IS_LOST)


def tear_once(monkeypatch: pytest.MonkeyPatch, copies: int) -> None:
    """The next look at each of so many copies comes while its block 0 is being written."""
    left = [None] * copies

    def torn(device: BlockDevice) -> Superblock:
        if left:
            left.pop()
            raise FormatError(device.name, "a superblock", "half of one")
        return read_superblock(device)

    monkeypatch.setattr(metadata_device, "read_superblock", torn)


def test_a_copy_that_is_away_for_a_moment_does_not_bring_the_lost_one_back(path: Path, reader: MetadataDevice) -> None:
    expected = block_1(reader)
    lose_the_first(path)
    (path / MIRROR).rename(path / "away")
    for _ in range(2):
        with pytest.raises(DamageError):
            block_1(reader)
    (path / "away").rename(path / MIRROR)
    assert block_1(reader) == expected


def test_a_superblock_that_is_being_written_is_looked_at_again(
    path: Path, reader: MetadataDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = block_1(reader)
    tear_once(monkeypatch, 2)
    with closing(open_metadata(path)) as both:
        assert block_1(both) == expected
    lose_the_first(path)
    tear_once(monkeypatch, 1)
    assert block_1(reader) == expected
    tear_once(monkeypatch, 1)
    with closing(open_metadata(path)) as one:
        assert block_1(one) == expected


def test_a_state_that_cannot_be_looked_at_is_an_error_of_the_read(path: Path, reader: MetadataDevice) -> None:
    expected = block_1(reader)
    (path / STATE).unlink()
    (path / STATE).symlink_to(STATE)
    with pytest.raises(DeviceError, match=STATE):
        block_1(reader)
    save_state(path, FIRST_IS_LOST)
    assert block_1(reader) == expected
