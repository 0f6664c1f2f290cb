"""The 4 KiB metadata block: its checksum, and the salt in it that tells what kind of block it is.

Every structure of the metadata device is made of these; the first room the pool's bytes pass.
Source: Linux drivers/md/persistent-data (dm-block-manager, dm-btree, dm-space-map-common).

    offset   size   field
    0        4      csum: crc32c of bytes 4..4095, not inverted at the end, xor the kind's salt
    8        8      blocknr: the block's own number (every kind has it there)

Little-endian throughout.

Invariants
  B1  A block is trusted only after checksum, kind and own number agree; else FormatError names all three.
  B2  Batches (n, 512) of u64 words are verified whole before any word of them is used.
"""

from __future__ import annotations

from enum import Enum

import google_crc32c
import numpy as np
import numpy.typing as npt

from replicator.errors import FormatError
from replicator.units import METADATA_BLOCK_BYTES

Words = npt.NDArray[np.uint64]
WORDS_PER_BLOCK = METADATA_BLOCK_BYTES // 8
_ALL_ONES = 0xFFFFFFFF


class BlockKind(Enum):
    """The four kinds of metadata block; the value is the salt of its checksum."""

    SUPERBLOCK = 160774
    NODE = 121107
    BITMAP = 240779
    INDEX = 160478


def checksum(block: bytes, kind: BlockKind) -> int:
    """The csum field that `block` (4,096 bytes) must carry as a block of `kind`."""
    return int(google_crc32c.value(block[4:])) ^ _ALL_ONES ^ kind.value


def _name_of_salt(difference: int) -> str:
    for kind in BlockKind:
        if kind.value == difference:
            return f"a valid {kind.name.lower()} block"
    return f"a checksum off by {difference:#010x}"


def verify(block: bytes, kind: BlockKind, number: int, where: str) -> None:
    """Raise FormatError unless `block` is a block of `kind` that stands at `number`; `where` names the device."""
    if len(block) != METADATA_BLOCK_BYTES:
        raise FormatError(f"{where}, metadata block {number}", f"{METADATA_BLOCK_BYTES} bytes", str(len(block)))
    stored = int.from_bytes(block[:4], "little")
    if stored != checksum(block, kind):
        bare = checksum(block, kind) ^ kind.value
        what = _name_of_salt(stored ^ bare)
        raise FormatError(f"{where}, metadata block {number}", f"a {kind.name.lower()} block", what)
    own = int.from_bytes(block[8:16], "little")
    if own != number:
        raise FormatError(f"{where}, metadata block {number}", f"its own number {number}", str(own))


def verify_many(words: Words, kind: BlockKind, numbers: Words, where: str) -> None:
    """Raise FormatError unless each row of `words` (n, 512) is a block of `kind` standing at `numbers[i]`."""
    stored = (words[:, 0] & _ALL_ONES).tolist()
    own_wrong = np.flatnonzero(words[:, 1] != numbers)
    flip = _ALL_ONES ^ kind.value
    crc = google_crc32c.value
    data = np.ascontiguousarray(words).data.cast("B")
    for row, expected in enumerate(stored):
        start = row * METADATA_BLOCK_BYTES
        if crc(bytes(data[start + 4 : start + METADATA_BLOCK_BYTES])) ^ flip != expected:
            verify(bytes(data[start : start + METADATA_BLOCK_BYTES]), kind, int(numbers[row]), where)
    if own_wrong.size:
        row = int(own_wrong[0])
        number = int(numbers[row])
        raise FormatError(f"{where}, metadata block {number}", f"its own number {number}", str(int(words[row, 1])))


def seal_many(words: Words, kind: BlockKind, numbers: Words) -> None:
    """Write own number and checksum into each row of `words` (n, 512), in place."""
    words[:, 1] = numbers
    flip = _ALL_ONES ^ kind.value
    crc = google_crc32c.value
    data = words.data.cast("B")
    sums = [
        crc(bytes(data[start + 4 : start + METADATA_BLOCK_BYTES])) ^ flip
        for start in range(0, len(words) * METADATA_BLOCK_BYTES, METADATA_BLOCK_BYTES)
    ]
    high = words[:, 0] & np.uint64(0xFFFFFFFF00000000)
    words[:, 0] = high | np.array(sums, dtype=np.uint64)


def seal(block: bytearray, kind: BlockKind, number: int) -> None:
    """Write own number and checksum into one block (4,096 bytes), in place."""
    block[8:16] = number.to_bytes(8, "little")
    block[:4] = checksum(bytes(block), kind).to_bytes(4, "little")
