"""Block sizes and metadata sizes: the kernel's rules, with its own figures."""

from __future__ import annotations

import pytest

from replicator.errors import UsageError
from replicator.thin import geometry
from replicator.units import GIB, KIB, MIB, TIB


@pytest.mark.parametrize(
    ("data_bytes", "block_bytes", "expected"),
    [
        (10 * GIB, 512 * KIB, 2 * MIB),
        (100 * GIB, 64 * KIB, 76 * MIB),  # 78,643,200 rounded up
        (TIB, 64 * KIB, 768 * MIB),
        (64 * MIB, 64 * KIB, 2 * MIB),
        (1, GIB, 2 * MIB),
    ],
)
def test_the_size_guide(data_bytes: int, block_bytes: int, expected: int) -> None:
    assert geometry.metadata_size(data_bytes, block_bytes) == geometry.MetadataSize(expected, None)


@pytest.mark.parametrize("data_bytes", [32 * TIB, 64 * TIB])
def test_the_largest_size_comes_with_a_warning(data_bytes: int) -> None:
    advised = geometry.metadata_size(data_bytes, 64 * KIB)
    assert advised.size_bytes == 16 * GIB
    assert advised.warning is not None and "15.875 GiB" in advised.warning


def test_usable_metadata() -> None:
    assert geometry.MAX_METADATA_BLOCKS == 4_161_600
    assert f"{geometry.USABLE_METADATA_BYTES / GIB:.3f}" == "15.875"
    assert geometry.metadata_warning(2 * MIB) is None
    assert geometry.metadata_warning(16 * GIB) is not None
    assert geometry.metadata_warning(MIB) is not None


@pytest.mark.parametrize("sectors", [128, 256, 1024, 256_000, 2_097_152])
def test_block_sizes_that_the_kernel_takes(sectors: int) -> None:
    assert geometry.is_block_sectors(sectors)


@pytest.mark.parametrize("sectors", [0, 64, 120, 129, 192, 2_097_280])
def test_block_sizes_that_it_refuses(sectors: int) -> None:
    assert not geometry.is_block_sectors(sectors)
    with pytest.raises(UsageError, match="block size"):
        geometry.metadata_size(GIB, sectors * 512)


def test_presets_are_block_sizes_and_nothing_is_no_device() -> None:
    assert {name: size // 512 for name, size in geometry.PRESETS.items()} == {
        "snapshots": 128,
        "provisioning": 1024,
        "throughput": 256_000,
    }
    assert all(map(geometry.is_block_bytes, geometry.PRESETS.values()))
    with pytest.raises(UsageError, match="above zero"):
        geometry.metadata_size(0, 64 * KIB)
