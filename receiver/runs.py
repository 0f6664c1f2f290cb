"""Ranges of blocks as sorted, disjoint rows (begin, end): what a step unmaps.

Used by draft; kept packed, since a discard of a scattered volume has a row for each hole.

Invariants
  R1  `rows` ascend, and neither touch nor overlap.
"""

from __future__ import annotations

import numpy as np

from replicator.pdata.block import Words


class BlockRuns:
    """A set of blocks that only grows, by ranges; merged when somebody looks."""

    def __init__(self) -> None:
        self._rows: Words = np.empty((0, 2), dtype=np.uint64)
        self._added: list[Words] = []
        self._added_count = 0

    def __len__(self) -> int:
        """How many rows it has at most; merging may make them fewer."""
        return len(self._rows) + self._added_count

    def add(self, rows: Words) -> None:
        """Add ranges (n, 2), none of them empty."""
        if len(rows):
            self._added.append(rows.astype(np.uint64))
            self._added_count += len(rows)

    @property
    def rows(self) -> Words:
        """All ranges (R1)."""
        if self._added:
            self._rows = _merged(np.concatenate([self._rows, *self._added]))
            self._added, self._added_count = [], 0
        return self._rows

    def holds(self, blocks: Words) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which of `blocks` are in it."""
        rows = self.rows
        if not len(rows):
            return np.zeros(len(blocks), dtype=bool)
        at = np.searchsorted(rows[:, 0], blocks, side="right")
        inside = blocks < rows[np.maximum(at, 1) - 1, 1]
        return np.asarray((at > 0) & inside, dtype=bool)


def _merged(rows: Words) -> Words:
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    reach = np.maximum.accumulate(rows[:, 1])
    starts = np.flatnonzero(np.concatenate(([True], rows[1:, 0] > reach[:-1])))
    ends = reach[np.append(starts[1:] - 1, len(rows) - 1)]
    return np.stack([rows[starts, 0], ends], axis=1)
