"""How large a pool's parts may be: block sizes, and how much metadata a data device needs.

Pure arithmetic, asked by `pool create`, `pool size-hint` and by everyone who reads a superblock. The rules are the
kernel's (Documentation/admin-guide/device-mapper/thin-provisioning.rst), the multiples those it enforces.

    data block       64 KiB to 1 GiB, a multiple of 64 KiB, the same for the pool's whole life
    data blocks      fewer than 2**40 (a mapping has 40 bits for the number)
    metadata         48 bytes x data size / block size, rounded up to 2 MiB; at least 2 MiB, at most 16 GiB
    usable of it     255 bitmaps x 16,320 blocks = 4,161,600 blocks = 15.875 GiB
"""

from __future__ import annotations

from dataclasses import dataclass

from replicator.errors import UsageError
from replicator.pdata.bitmap import LARGEST_METADATA_BLOCKS
from replicator.units import GIB, KIB, METADATA_BLOCK_BYTES, MIB, SECTOR_BYTES, format_size

MIN_BLOCK_BYTES = 64 * KIB
MAX_BLOCK_BYTES = GIB
DATA_BLOCK_LIMIT = 1 << 40
MAX_METADATA_BLOCKS = LARGEST_METADATA_BLOCKS
USABLE_METADATA_BYTES = MAX_METADATA_BLOCKS * METADATA_BLOCK_BYTES
LARGEST_METADATA_BYTES = 16 * GIB
SMALLEST_METADATA_BYTES = 2 * MIB
_METADATA_STEP_BYTES = 2 * MIB
_METADATA_BYTES_PER_BLOCK = 48  # the kernel's guide: half-full nodes (32.5), bitmaps, and room for a few snapshots

PRESETS: dict[str, int] = {
    "snapshots": 64 * KIB,  # "if you'll be making lots of snapshots": the least is copied when sharing breaks
    "provisioning": 512 * KIB,  # "a good compromise" where thin provisioning is the aim
    "throughput": 125 * MIB,  # 256,000 sectors, "128 MB" in the guide, for large devices without zeroing
}


@dataclass(frozen=True, slots=True)
class MetadataSize:
    """How large the metadata device should be, and what to tell people about it (None: nothing)."""

    size_bytes: int
    warning: str | None


def is_block_sectors(sectors: int) -> bool:
    """Whether the kernel takes `sectors` as a data block size."""
    return is_block_bytes(sectors * SECTOR_BYTES)


def is_block_bytes(block_bytes: int) -> bool:
    """Whether `block_bytes` can be a data block size."""
    return MIN_BLOCK_BYTES <= block_bytes <= MAX_BLOCK_BYTES and block_bytes % MIN_BLOCK_BYTES == 0


def require_block_bytes(block_bytes: int) -> None:
    """UsageError unless `block_bytes` can be a data block size."""
    if not is_block_bytes(block_bytes):
        raise UsageError(
            f"{format_size(block_bytes)} can't be a block size",
            mend="take a multiple of 64KiB, from 64KiB to 1GiB",
        )


def metadata_size(data_bytes: int, block_bytes: int) -> MetadataSize:
    """The advised metadata size for a data device of `data_bytes`; UsageError for a block size that can't be."""
    require_block_bytes(block_bytes)
    if data_bytes <= 0:
        raise UsageError("the data device must have a size above zero")
    wanted = -(-_METADATA_BYTES_PER_BLOCK * data_bytes // block_bytes)
    size = max(SMALLEST_METADATA_BYTES, -(-wanted // _METADATA_STEP_BYTES) * _METADATA_STEP_BYTES)
    if size <= LARGEST_METADATA_BYTES:
        return MetadataSize(size, metadata_warning(size))
    warning = (
        f"{format_size(data_bytes)} in blocks of {format_size(block_bytes)} would want {format_size(size)} of "
        f"metadata, and a pool uses no more than {USABLE_METADATA_BYTES / GIB:.3f} GiB: take larger blocks"
    )
    return MetadataSize(LARGEST_METADATA_BYTES, warning)


def metadata_warning(metadata_bytes: int) -> str | None:
    """What is odd about a metadata device of this size, or None."""
    if metadata_bytes > USABLE_METADATA_BYTES:
        usable = f"{USABLE_METADATA_BYTES / GIB:.3f} GiB"
        return f"of {format_size(metadata_bytes)} of metadata only {usable} can be used; the rest stays idle"
    if metadata_bytes < SMALLEST_METADATA_BYTES:
        return f"metadata below {format_size(SMALLEST_METADATA_BYTES)} leaves no room for snapshots"
    return None
