"""The superblock: bytes of the format's annotated example and of a real kernel, and each refusal."""

from __future__ import annotations

from dataclasses import replace

import pytest

from replicator.blockdev.memory import MemoryDevice
from replicator.errors import FormatError
from replicator.pdata.block import BlockKind, seal
from replicator.pdata.smroot import NO_SPACE_MAP, SpaceMapRoot
from replicator.thin.superblock import Superblock, is_unformatted, read_superblock
from replicator.units import METADATA_BLOCK_BYTES
from tests.support.golden import KernelPool

EXAMPLE = Superblock(
    flags=0,
    uuid=bytes(16),
    version=2,
    time=1,
    transaction_id=3,
    held_root=0,
    data_space_map=SpaceMapRoot(100, 6, 4, 5),
    metadata_space_map=SpaceMapRoot(1024, 12, 1, 2),
    data_mapping_root=7,
    device_details_root=6,
    data_block_sectors=128,
    metadata_nr_blocks=1024,
)
EXAMPLE_CSUM = bytes.fromhex("8f3790df")  # as thin_restore 0.9.0 wrote it


def test_the_annotated_example_is_written_byte_for_byte() -> None:
    data = EXAMPLE.pack()
    assert len(data) == METADATA_BLOCK_BYTES
    assert data[:4] == EXAMPLE_CSUM
    assert data[0x20:0x30] == bytes.fromhex("ba529c0100000000 02000000 01000000")
    assert data[0x150:0x15C] == bytes.fromhex("80000000 08000000 00040000")
    assert not any(data[364:])
    assert Superblock.unpack(data, 0, "m") == EXAMPLE


def test_the_kernels_superblocks_are_read_and_written_alike(kernel_pool_a: KernelPool) -> None:
    raw = kernel_pool_a.metadata.read_bytes()
    live = Superblock.unpack(raw[:METADATA_BLOCK_BYTES], 0, "m")
    facts = kernel_pool_a.facts["superblock"]
    found = (live.time, live.transaction_id, live.held_root, live.data_mapping_root, live.device_details_root)
    names = ("time", "transaction_id", "held_root", "data_mapping_root", "device_details_root")
    assert found == tuple(facts[name] for name in names)
    start = live.held_root * METADATA_BLOCK_BYTES
    copy = raw[start : start + METADATA_BLOCK_BYTES]
    held = Superblock.unpack(copy, live.held_root, "m")
    assert held.is_held and held.data_space_map == NO_SPACE_MAP
    assert (live.pack(), held.pack()) == (raw[:METADATA_BLOCK_BYTES], copy)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"version": 0}, "version"),
        ({"version": 3}, "version"),
        ({"data_block_sectors": 0}, "data_block_size"),
        ({"data_block_sectors": 64}, "data_block_size"),
        ({"data_block_sectors": 192}, "data_block_size"),
        ({"data_block_sectors": 2_097_280}, "data_block_size"),
        ({"metadata_block_sectors": 16}, "metadata_block_size"),
        ({"incompat_flags": 1}, "incompat_flags"),
        ({"compat_ro_flags": 1}, "compat_ro_flags"),
        ({"metadata_space_map": NO_SPACE_MAP}, "metadata space map"),
        ({"metadata_space_map": SpaceMapRoot(4_161_601, 1, 1, 1)}, "metadata space map"),
        ({"data_space_map": SpaceMapRoot(1 << 40, 1, 1, 1)}, "data space map"),
    ],
)
def test_what_isnt_ours_is_refused_by_name(changed: dict[str, object], expected: str) -> None:
    data = replace(EXAMPLE, **changed).pack()  # type: ignore[arg-type]  # a table of fields of several types
    with pytest.raises(FormatError, match=expected):
        Superblock.unpack(data, 0, "m")


@pytest.mark.parametrize("sectors", [128, 2_097_152])
@pytest.mark.parametrize("version", [1, 2])
def test_what_the_kernel_takes_is_taken(sectors: int, version: int) -> None:
    block = replace(
        EXAMPLE, data_block_sectors=sectors, version=version, flags=1, compat_flags=7, uuid=bytes(range(16))
    )
    again = Superblock.unpack(block.pack(), 0, "m")
    assert again == block and again.needs_check and again.data_block_bytes == sectors * 512


def test_magic_checksum_place_and_kind() -> None:
    data = bytearray(EXAMPLE.pack())
    data[32] ^= 1
    with pytest.raises(FormatError, match="a superblock block"):
        Superblock.unpack(bytes(data), 0, "m")
    seal(data, BlockKind.SUPERBLOCK, 0)
    with pytest.raises(FormatError, match="magic 27022010"):
        Superblock.unpack(bytes(data), 0, "m")
    with pytest.raises(FormatError, match="its own number 5"):
        Superblock.unpack(EXAMPLE.pack(), 5, "m")
    node = bytearray(EXAMPLE.pack())
    seal(node, BlockKind.NODE, 0)
    with pytest.raises(FormatError, match="a valid node block"):
        Superblock.unpack(bytes(node), 0, "m")


def test_an_unformatted_device_is_told_from_a_foreign_one() -> None:
    assert is_unformatted(bytes(METADATA_BLOCK_BYTES)) and not is_unformatted(EXAMPLE.pack())
    with pytest.raises(FormatError, match="isn't formatted"):
        Superblock.unpack(bytes(METADATA_BLOCK_BYTES), 0, "m")


def test_a_device_shorter_than_its_space_map_is_refused() -> None:
    device = MemoryDevice(content=EXAMPLE.pack() + bytes(1022 * METADATA_BLOCK_BYTES), name="short")
    with pytest.raises(FormatError, match="1024 blocks"):
        read_superblock(device)
    with pytest.raises(FormatError, match="a superblock in metadata block 2000"):
        read_superblock(device, 2000)
