"""One entry of a thin device's mapping tree: which data block, and when it was mapped.

Read by thin/view, thin/diff and thin/check, written by thin/device; the value of the bottom-level B-tree.

    bits 63..24   data block   number on the data device
    bits 23..0    time         the pool's snapshot counter when it was mapped

Little-endian on disk, eight bytes.

Invariants
  I1  0 <= data_block < 2**40 and 0 <= time < 2**24; anything else can't be packed.
  I2  pack and unpack are inverse on every 64-bit value.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from replicator.errors import FormatError
from replicator.thin.geometry import DATA_BLOCK_LIMIT

TIME_BITS = 24
TIME_LIMIT = 1 << TIME_BITS  # the kernel ORs the time into the value without a mask: it must stay below
DEV_ID_LIMIT = 1 << 24  # the kernel accepts 0 to 2**24 - 1
_TIME_MASK = TIME_LIMIT - 1
_SHIFT = np.uint64(TIME_BITS)
_MASK = np.uint64(_TIME_MASK)

Packed = npt.NDArray[np.uint64]


def pack(data_block: int, time: int) -> int:
    """The mapping value of `data_block` mapped at `time`."""
    if not 0 <= data_block < DATA_BLOCK_LIMIT:
        raise FormatError("mapping", f"a data block below {DATA_BLOCK_LIMIT}", str(data_block))
    if not 0 <= time < TIME_LIMIT:
        raise FormatError("mapping", f"a time below {TIME_LIMIT}", str(time))
    return data_block << TIME_BITS | time


def unpack(value: int) -> tuple[int, int]:
    """(data block, time) of a mapping value."""
    return int(value) >> TIME_BITS, int(value) & _TIME_MASK


def pack_many(data_blocks: Packed, time: int | Packed) -> Packed:
    """Mapping values of u64 `data_blocks`, all of one `time` or of one each."""
    times = np.asarray(time, dtype=np.uint64)
    for what, largest, limit in (("data block", data_blocks, DATA_BLOCK_LIMIT), ("time", times, TIME_LIMIT)):
        if largest.size and int(largest.max()) >= limit:
            raise FormatError("mapping", f"a {what} below {limit}", str(int(largest.max())))
    return np.asarray(data_blocks << _SHIFT | times, dtype=np.uint64)


def data_blocks(values: Packed) -> Packed:
    """The data blocks of mapping values."""
    return values >> _SHIFT


def times(values: Packed) -> Packed:
    """The times of mapping values."""
    return values & _MASK
