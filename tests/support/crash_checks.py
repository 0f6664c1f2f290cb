"""Our own check of one metadata image after another, at the price of those that differ in what a check looks at.

Most images that a crash leaves differ in blocks that no tree reaches. A check is a function of the bytes that it reads
and of the disk's size, and what it reads next depends on nothing else: an image that agrees with a checked one in all
the blocks that its check read has the same report, whatever is in the others. So the blocks that each check read are
kept with a digest of their content, and found again by block 0.

What a check read is all that is reachable, so it is also what other people's checks are given: `reachable` has the
image with all other blocks zeroed.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import xxhash

from replicator._buffer import Buffer
from replicator.blockdev.memory import MemoryDevice
from replicator.pdata.block import Words
from replicator.thin.check import check
from replicator.units import METADATA_BLOCK_BYTES


class _Watched(MemoryDevice):
    """Notes which blocks are read."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content=content, name="metadata")
        self.blocks = np.zeros(len(content) // METADATA_BLOCK_BYTES, dtype=np.bool_)

    def _note(self, offset_bytes: int, length_bytes: int) -> None:
        end = -(-(offset_bytes + length_bytes) // METADATA_BLOCK_BYTES)
        self.blocks[offset_bytes // METADATA_BLOCK_BYTES : end] = True

    def pread(self, length_bytes: int, offset_bytes: int) -> bytes:
        self._note(offset_bytes, length_bytes)
        return super().pread(length_bytes, offset_bytes)

    def pread_into(self, target: Buffer, offset_bytes: int) -> None:
        self._note(offset_bytes, memoryview(target).nbytes)
        super().pread_into(target, offset_bytes)


@dataclass(slots=True)
class Checks:
    """Images that were checked and found clean; `reachable` by digest, for other people's checks."""

    asked: int = 0
    made: int = 0
    reachable: dict[int, bytes] = field(repr=False, default_factory=dict)
    _clean: defaultdict[bytes, dict[bytes, set[int]]] = field(repr=False, default_factory=lambda: defaultdict(dict))

    def require_clean(self, metadata: bytes) -> None:
        """AssertionError unless the check finds nothing at all, and compared every count."""
        self.asked += 1
        rows = np.frombuffer(metadata, dtype=np.uint64).reshape(-1, METADATA_BLOCK_BYTES // 8)
        looked_at = self._clean[rows[0].tobytes()]
        for packed, digests in looked_at.items():
            read = np.frombuffer(packed, dtype=np.bool_)
            if len(read) == len(rows) and _digest(rows, read) in digests:
                return
        self.made += 1
        device = _Watched(metadata)
        report = check(device)
        assert report.findings == () and report.counts_compared, [str(each) for each in report.findings]
        digest = _digest(rows, device.blocks)
        looked_at.setdefault(device.blocks.tobytes(), set()).add(digest)
        self.reachable[digest] = np.where(device.blocks[:, None], rows, np.uint64(0)).tobytes()


def _digest(rows: Words, read: np.typing.NDArray[np.bool_]) -> int:
    return xxhash.xxh3_64_intdigest(rows[read].tobytes(), seed=len(rows))
