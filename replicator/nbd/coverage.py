"""Which bytes of a read have arrived: chunks of a structured reply may come in any order, each byte once.

Invariants
  V1  Pieces are disjoint, sorted, inside the read, and neighbours are one piece.
  V2  At most MAX_PIECES pieces stand apart: a server that scatters a reply into more is cut off.
"""

from __future__ import annotations

from bisect import bisect

from replicator.nbd.failures import NbdFormatError

MAX_PIECES = 4096  # apart at once: 32 MiB in chunks of 4 KiB, every other one missing


class Coverage:
    """The covered pieces of [begin, end)."""

    __slots__ = ("_begin", "_end", "_pieces")

    def __init__(self, begin: int, length: int) -> None:
        self._begin = begin
        self._end = begin + length
        self._pieces: list[tuple[int, int]] = []

    @property
    def complete(self) -> bool:
        """Whether all has arrived."""
        return self._pieces == [(self._begin, self._end)]

    def add(self, offset: int, length: int) -> None:
        """Take note of a chunk; NbdFormatError if it lies outside, is empty, or comes again."""
        begin, end = offset, offset + length
        index = bisect(self._pieces, (begin, end))
        before = self._pieces[index - 1] if index else None
        after = self._pieces[index] if index < len(self._pieces) else None
        outside = length == 0 or begin < self._begin or end > self._end
        if outside or (before is not None and before[1] > begin) or (after is not None and after[0] < end):
            where = f"bytes of [{self._begin}, {self._end}) that didn't come yet"
            raise NbdFormatError("NBD structured reply", where, f"[{begin}, {end})")
        first, last = index, index
        if before is not None and before[1] == begin:
            first, begin = index - 1, before[0]
        if after is not None and after[0] == end:
            last, end = index + 1, after[1]
        self._pieces[first:last] = [(begin, end)]
        if len(self._pieces) > MAX_PIECES:
            raise NbdFormatError("NBD structured reply", f"at most {MAX_PIECES} pieces apart", "one more")
