"""The pool's superblock: block 0 of the metadata device, and the held copy that a metadata snapshot leaves.

Where every reader begins (thin/view, thin/check) and every commit ends (thin/device, through pdata/transaction).
Source: Linux drivers/md/dm-thin-metadata.c, `thin_disk_superblock`.

    offset   size   field
    0        4      csum (pdata/block)
    4        4      flags: bit 0 = NEEDS_CHECK
    8        8      blocknr: 0, or the held copy's own block
    16       16     uuid: ours; the kernel writes zeros and ignores it
    32       8      magic 27022010
    40       4      version 1 or 2 (the same layout; 2 announces NEEDS_CHECK); written as 2
    44       4      time: snapshot counter
    48       8      transaction_id: counter of the user space
    56       8      held_root: block of the metadata snapshot's copy, 0 = none
    64       128    data space map root in the first 32 bytes (pdata/smroot), zeros behind
    192      128    metadata space map root, likewise
    320      8      data_mapping_root
    328      8      device_details_root
    336      4      data_block_sectors
    340      4      metadata_block_sectors: 8
    344      8      metadata_nr_blocks: as formatted; the space map's nr_blocks is the truth
    352      4      compat_flags
    356      4      compat_ro_flags
    360      4      incompat_flags

Little-endian; 364 bytes, all in the first sector, so that writing it is atomic. In a held copy held_root and both
space map roots are zeros.

Invariants
  B1  What unpack returns was checksummed, stands where it says, and has a magic, version, block sizes and feature
      flags that we know; anything else is a FormatError that names the field.
  B2  pack and unpack are inverse on every superblock that unpack accepts, but for bytes behind the fields.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import islice

from replicator.blockdev.interface import BlockDevice
from replicator.errors import FormatError
from replicator.pdata.block import BlockKind, seal, verify
from replicator.pdata.smroot import NO_SPACE_MAP, SPACE_MAP_ROOT_BYTES, SpaceMapRoot
from replicator.thin.geometry import DATA_BLOCK_LIMIT, MAX_METADATA_BLOCKS, is_block_sectors
from replicator.units import METADATA_BLOCK_BYTES, SECTOR_BYTES

SUPERBLOCK_LOCATION = 0
MAGIC = 27022010
VERSIONS = (1, 2)
VERSION = 2
NEEDS_CHECK = 1
METADATA_BLOCK_SECTORS = METADATA_BLOCK_BYTES // SECTOR_BYTES
_LAYOUT = struct.Struct("<4xIQ16sQIIQQ32s96x32s96xQQIIQIII")
_ZERO_BLOCK = bytes(METADATA_BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class Superblock:
    """One state of the pool; a changed one is made with dataclasses.replace."""

    flags: int
    uuid: bytes
    version: int
    time: int
    transaction_id: int
    held_root: int
    data_space_map: SpaceMapRoot
    metadata_space_map: SpaceMapRoot
    data_mapping_root: int
    device_details_root: int
    data_block_sectors: int
    metadata_block_sectors: int = METADATA_BLOCK_SECTORS
    metadata_nr_blocks: int = 0
    compat_flags: int = 0
    compat_ro_flags: int = 0
    incompat_flags: int = 0
    block: int = SUPERBLOCK_LOCATION

    @property
    def data_block_bytes(self) -> int:
        return self.data_block_sectors * SECTOR_BYTES

    @property
    def needs_check(self) -> bool:
        return bool(self.flags & NEEDS_CHECK)

    @property
    def is_held(self) -> bool:
        """Whether this is a metadata snapshot's copy, which has no space maps."""
        return self.block != SUPERBLOCK_LOCATION

    @staticmethod
    def unpack(data: bytes, block: int, where: str) -> Superblock:
        """The superblock in `data` (4,096 bytes) that was read from `block` of the device `where`; else FormatError."""
        if data == _ZERO_BLOCK:
            raise FormatError(f"{where}, metadata block {block}", "a superblock", "zeros: this device isn't formatted")
        verify(data, BlockKind.SUPERBLOCK, block, where)
        fields = iter(_LAYOUT.unpack_from(data))
        flags, number, uuid, magic, version, time = islice(fields, 6)
        _expect(where, "magic", (MAGIC,), magic)
        transaction_id, held_root, data_map, metadata_map, mapping_root, details_root = islice(fields, 6)
        block_sectors, metadata_sectors, metadata_nr_blocks, compat, compat_ro, incompat = fields
        found = Superblock(
            flags=flags,
            uuid=uuid,
            version=version,
            time=time,
            transaction_id=transaction_id,
            held_root=held_root,
            data_space_map=SpaceMapRoot.unpack(data_map),
            metadata_space_map=SpaceMapRoot.unpack(metadata_map),
            data_mapping_root=mapping_root,
            device_details_root=details_root,
            data_block_sectors=block_sectors,
            metadata_block_sectors=metadata_sectors,
            metadata_nr_blocks=metadata_nr_blocks,
            compat_flags=compat,
            compat_ro_flags=compat_ro,
            incompat_flags=incompat,
            block=number,
        )
        found._refuse_unknown(where)
        return found

    def _refuse_unknown(self, where: str) -> None:
        _expect(where, "version", VERSIONS, self.version)
        if not is_block_sectors(self.data_block_sectors):
            expected = "data_block_size of 128 to 2097152 sectors, a multiple of 128"
            raise FormatError(f"{where}, superblock", expected, str(self.data_block_sectors))
        _expect(where, "metadata_block_size", (METADATA_BLOCK_SECTORS,), self.metadata_block_sectors)
        _expect(where, "incompat_flags", (0,), self.incompat_flags)
        _expect(where, "compat_ro_flags", (0,), self.compat_ro_flags)
        if self.is_held:
            return
        if not 0 < self.metadata_space_map.nr_blocks <= MAX_METADATA_BLOCKS:
            expected = f"a metadata space map of 1 to {MAX_METADATA_BLOCKS} blocks"
            raise FormatError(f"{where}, superblock", expected, str(self.metadata_space_map.nr_blocks))
        if self.data_space_map.nr_blocks >= DATA_BLOCK_LIMIT:
            expected = f"a data space map of less than {DATA_BLOCK_LIMIT} blocks"
            raise FormatError(f"{where}, superblock", expected, str(self.data_space_map.nr_blocks))

    def pack(self) -> bytes:
        """The sealed block (4,096 bytes) as it is written to `self.block`."""
        data = bytearray(METADATA_BLOCK_BYTES)
        _LAYOUT.pack_into(
            data,
            0,
            self.flags,
            self.block,
            self.uuid,
            MAGIC,
            self.version,
            self.time,
            self.transaction_id,
            self.held_root,
            self.data_space_map.pack(),
            self.metadata_space_map.pack(),
            self.data_mapping_root,
            self.device_details_root,
            self.data_block_sectors,
            self.metadata_block_sectors,
            self.metadata_nr_blocks,
            self.compat_flags,
            self.compat_ro_flags,
            self.incompat_flags,
        )
        seal(data, BlockKind.SUPERBLOCK, self.block)
        return bytes(data)


def _expect(where: str, field: str, allowed: tuple[int, ...], found: int) -> None:
    if found not in allowed:
        raise FormatError(f"{where}, superblock", f"{field} {' or '.join(map(str, allowed))}", str(found))


def is_unformatted(data: bytes) -> bool:
    """Whether block 0 says "never formatted": the kernel, and we, format a pool only over zeros."""
    return data[:METADATA_BLOCK_BYTES] == _ZERO_BLOCK


def read_superblock(device: BlockDevice, block: int = SUPERBLOCK_LOCATION) -> Superblock:
    """The superblock of a metadata device, or its held copy at `block`; FormatError also for a device cut short."""
    blocks = device.size_bytes // METADATA_BLOCK_BYTES
    if block >= blocks:
        raise FormatError(device.name, f"a superblock in metadata block {block}", f"a device of {blocks} blocks")
    data = bytes(device.pread(METADATA_BLOCK_BYTES, block * METADATA_BLOCK_BYTES))
    found = Superblock.unpack(data, block, device.name)
    if blocks < found.metadata_space_map.nr_blocks:
        expected = f"a metadata device of {found.metadata_space_map.nr_blocks} blocks, as its space map says"
        raise FormatError(device.name, expected, f"{blocks} blocks")
    return found


assert _LAYOUT.size == 364 and SPACE_MAP_ROOT_BYTES == len(NO_SPACE_MAP.pack()) == 32
