"""The two checksums of everything that travels: crc32c tells damage, xxh3-128 names content and chains events.

crc32c (Castagnoli) is what disks and Kafka use; it stands in headers and is checked before a byte is
trusted. xxh3-128 is a digest for identity, not against forgers: whoever may write to a log could make
a history that collides; authentication is the encryption's part.
"""

from __future__ import annotations

from collections.abc import Sequence

import google_crc32c
import numpy as np
import xxhash

from replicator._buffer import Buffer

DIGEST_BYTES = 16
NO_DIGEST = bytes(DIGEST_BYTES)


def crc32c(data: Buffer, before: int = 0) -> int:
    """The crc32c of `data`, going on from `before`."""
    whole = data if isinstance(data, bytes) else np.frombuffer(data, dtype=np.uint8)
    return int(google_crc32c.extend(before, whole))


def digest128(data: Buffer) -> bytes:
    """The xxh3-128 of `data`, 16 bytes in canonical (big-endian) order."""
    return xxhash.xxh3_128_digest(data)


def digest128_parts(parts: Sequence[Buffer]) -> bytes:
    """The xxh3-128 of `parts` as if they were one buffer."""
    state = xxhash.xxh3_128()
    for part in parts:
        state.update(part)
    return state.digest()
