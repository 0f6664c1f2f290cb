"""The root of a space map: 32 bytes in the superblock that say where the reference counts of one device are.

Read and written by thin/superblock (twice: data and metadata); followed by pdata/spacemap and thin/check.

    offset   size   field
    0        8      nr_blocks        length of the counted device in its own blocks
    8        8      nr_allocated     how many of them have a count above zero
    16       8      bitmap_root      data map: root of the bitmap index tree; metadata map: its one index block
    24       8      ref_count_root   root of the tree that holds the counts from three on

Little-endian. Source: Linux dm-space-map-common.h, `disk_sm_root`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from replicator._buffer import Buffer

_LAYOUT = struct.Struct("<4Q")
SPACE_MAP_ROOT_BYTES = _LAYOUT.size


@dataclass(frozen=True, slots=True)
class SpaceMapRoot:
    """Where one device's reference counts are, and how many blocks they speak of."""

    nr_blocks: int
    nr_allocated: int
    bitmap_root: int
    ref_count_root: int

    @staticmethod
    def unpack(data: Buffer) -> SpaceMapRoot:
        """The root in the first 32 bytes of `data`."""
        return SpaceMapRoot(*_LAYOUT.unpack_from(data))

    def pack(self) -> bytes:
        """The 32 bytes on disk."""
        return _LAYOUT.pack(self.nr_blocks, self.nr_allocated, self.bitmap_root, self.ref_count_root)


NO_SPACE_MAP = SpaceMapRoot(0, 0, 0, 0)
