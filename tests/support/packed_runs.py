"""Runs of chunks as they travel, written by hand."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def pack_runs(runs: Iterable[tuple[int, int]]) -> bytes:
    """`runs` of (begin, end): rows of two little-endian u64."""
    return np.array(list(runs), dtype="<u8").tobytes()
