"""What the kernel's dm-log-writes noted of a disk: every write, flush and mark, in the order in which they count.

The log's layout (linux, drivers/md/dm-log-writes.c), little endian, in sectors of the size that the super block names:

    sector 0     magic u64, version u64 = 1, entries u64, sector size u32
    an entry     sector u64, sectors u64, flags u64, length of its text u64; behind it in the same sector the text of
                 a mark; then the data, whole sectors, but for discards

The target logs a write when the flush after it is done, so any prefix of the log is a state that a power cut may leave.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry; `data` is None for a discard."""

    offset_bytes: int
    length_bytes: int
    flags: int
    data: bytes | None
    mark: str

    def apply(self, image: bytearray) -> None:
        """Do to `image` what was done to the disk; what was discarded keeps its content, as it may."""
        if self.data:
            image[self.offset_bytes : self.offset_bytes + self.length_bytes] = self.data


def read_log(path: Path) -> Iterator[Entry]:
    """The entries of the log on the device or file `path`."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as log:
        magic, version, count, sector = _SUPER.unpack_from(log, 0)
        assert (magic, version) == (MAGIC, 1), (hex(magic), version)
        at = sector
        for _ in range(count):
            first, sectors, flags, text = _ENTRY.unpack_from(log, at)
            mark = log[at + _ENTRY.size : at + _ENTRY.size + text].decode() if flags & MARK else ""
            at += sector
            data = None if flags & DISCARD else log[at : at + sectors * sector]
            at += len(data or b"")
            yield Entry(first * sector, sectors * sector, flags, data, mark)
