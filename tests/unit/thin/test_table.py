"""The page table: stretches come and go, entries change where they are loaded."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from replicator.pdata.block import Words
from replicator.thin.table import STRETCH_BLOCKS, MappingTable


def stretch(value: int) -> Words:
    return np.full(STRETCH_BLOCKS, value, dtype=np.uint64)


def entry(table: MappingTable, block: int) -> int | None:
    loaded = table.stretches[block // STRETCH_BLOCKS]
    return None if loaded is None else int(loaded[block % STRETCH_BLOCKS])


@pytest.mark.parametrize(
    ("blocks", "count"), [(0, 0), (1, 1), (STRETCH_BLOCKS, 1), (STRETCH_BLOCKS + 1, 2), (10 * STRETCH_BLOCKS, 10)]
)
def test_it_covers_its_device(blocks: int, count: int) -> None:
    assert MappingTable(blocks).stretches == [None] * count


def test_the_oldest_stretch_goes_first() -> None:
    table = MappingTable(5 * STRETCH_BLOCKS, limit=2)
    for index in (3, 1, 3, 0):  # loading one again makes it no younger, and takes no room
        table.install(index, stretch(index + 1))
    assert [each is not None for each in table.stretches] == [True, True, False, False, False]
    table.clear()
    assert not any(table.stretches)
    table.install(4, stretch(1))
    assert entry(table, 4 * STRETCH_BLOCKS) == 1


def test_entries_change_only_where_they_are_loaded() -> None:
    table = MappingTable(3 * STRETCH_BLOCKS)
    table.install(1, stretch(9))
    table.set_entry(5, 7)
    table.set_entry(STRETCH_BLOCKS + 5, 7)
    assert entry(table, 5) is None and entry(table, STRETCH_BLOCKS + 5) == 7
    assert entry(table, STRETCH_BLOCKS + 6) == 9


def test_a_run_is_cleared_across_stretches() -> None:
    table = MappingTable(4 * STRETCH_BLOCKS)
    for index in (0, 1, 3):
        table.install(index, stretch(9))
    table.clear_run(STRETCH_BLOCKS - 2, 3 * STRETCH_BLOCKS + 1)
    expected = {STRETCH_BLOCKS - 3: 9, STRETCH_BLOCKS - 2: 0, STRETCH_BLOCKS: 0, 3 * STRETCH_BLOCKS: 0}
    assert {block: entry(table, block) for block in expected} == expected
    assert entry(table, 3 * STRETCH_BLOCKS + 1) == 9
    table.clear_run(3, 3)
    assert entry(table, 3) == 9


def test_shrinking_forgets_and_growing_keeps() -> None:
    table = MappingTable(2 * STRETCH_BLOCKS)
    table.install(0, stretch(9))
    table.resize(4 * STRETCH_BLOCKS)
    assert entry(table, 0) == 9 and len(table.stretches) == 4
    table.resize(STRETCH_BLOCKS)
    assert table.stretches == [None]


def test_a_table_takes_memory_for_what_is_loaded_however_long_it_is() -> None:
    """P5: a foreign pool's device may be of any length."""
    tracemalloc.start()
    try:
        table = MappingTable(1 << 36, limit=2)
        for index in (0, (1 << 24) - 1, 5, 1 << 20):
            table.install(index, stretch(index + 1))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [entry(table, index * STRETCH_BLOCKS) for index in (0, (1 << 24) - 1, 5, 1 << 20)] == [
        None,
        None,
        6,
        (1 << 20) + 1,
    ]
    table.clear_run(0, 10 * STRETCH_BLOCKS)
    assert entry(table, 5 * STRETCH_BLOCKS) == 0
    table.resize(1 << 35)
    assert len(table.stretches) == 0 and peak < 1 << 20
