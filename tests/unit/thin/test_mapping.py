"""Mapping values: forty bits of block, twenty-four of time; and runs of them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.errors import FormatError
from replicator.thin.mapping import TIME_LIMIT, data_blocks, pack, pack_many, times, unpack
from replicator.thin.runs import join_runs


@pytest.mark.parametrize(
    ("block", "time", "value"), [(0, 0, 0), (9, 1, 0x9000001), ((1 << 40) - 1, 0xFFFFFF, (1 << 64) - 1)]
)
def test_pack_and_unpack(block: int, time: int, value: int) -> None:
    assert pack(block, time) == value and unpack(value) == (block, time)
    packed = pack_many(np.array([block], dtype=np.uint64), time)
    assert packed.tolist() == [value]
    assert (data_blocks(packed).tolist(), times(packed).tolist()) == ([block], [time])


@pytest.mark.parametrize(("block", "time"), [(1 << 40, 0), (-1, 0), (0, TIME_LIMIT), (0, -1)])
def test_what_has_no_room_is_refused(block: int, time: int) -> None:
    with pytest.raises(FormatError):
        pack(block, time)
    if block >= 0 and time >= 0:
        with pytest.raises(FormatError):
            pack_many(np.array([block], dtype=np.uint64), time)


@given(st.sets(st.integers(0, 60)), st.lists(st.integers(0, 60)))
def test_runs_are_maximal_and_whole_however_the_pieces_are_cut(keys: set[int], cuts: list[int]) -> None:
    entries = [(key, (key // 3 + key, key % 5 == 0)) for key in sorted(keys)]
    blocks = np.array([block for _, (block, _) in entries], dtype=np.uint64)
    ages = np.array([age for _, (_, age) in entries], dtype=np.uint64)
    virtual = np.array(sorted(keys), dtype=np.uint64)
    edges = sorted({0, len(keys), *(cut for cut in cuts if cut < len(keys))})
    packed = pack_many(blocks, ages)
    pieces = [(virtual[a:b], packed[a:b]) for a, b in pairwise(edges)]
    runs = [
        row
        for part in join_runs(pieces)
        for row in zip(part.virtual_begin, part.data_begin, part.length_blocks, part.time, strict=True)
    ]
    rebuilt = [(int(v) + i, (int(d) + i, bool(t))) for v, d, length, t in runs for i in range(int(length))]
    assert rebuilt == entries
    assert all(not (v + n == w and d + n == e and t == u) for (v, d, n, t), (w, e, _, u) in pairwise(runs))
