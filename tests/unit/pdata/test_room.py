"""The bound of a commit's cost, as arithmetic; that it holds is tested in tests/properties/test_pool_metadata."""

from __future__ import annotations

import pytest

from replicator.pdata.room import PoolShape


def shape(**changed: int) -> PoolShape:
    fields = {
        "free_blocks": 4000,
        "data_blocks": 160_000,
        "data_sections": 10,
        "data_overflow_leaves": 5,
        "metadata_allocated": 900,
        "metadata_sections": 1,
        "metadata_overflow_leaves": 1,
        "mapped_blocks": 100_000,
        "trees": 2,
    }
    return PoolShape(**{**fields, **changed})


@pytest.mark.parametrize("leaves", [1, 400])
def test_more_costs_more_and_two_at_once_no_more_than_two(leaves: int) -> None:
    pool = shape(data_overflow_leaves=leaves)
    costs = [pool.worst_case(weight) for weight in range(0, 6000, 7)]
    assert costs == sorted(costs)
    for a in (0, 1, 50, 999, 40_000):
        for b in (0, 3, 700, 65_536):
            assert pool.worst_case(a + b) <= pool.worst_case(a) + pool.worst_case(b), (a, b)


def test_an_overflow_tree_may_be_written_whole() -> None:
    assert shape(data_overflow_leaves=1000).worst_case(0) >= 1000


def test_a_new_pool_of_the_smallest_size_takes_changes() -> None:
    assert shape(data_overflow_leaves=1, mapped_blocks=0, data_sections=1, metadata_allocated=10).worst_case(1) < 60


@pytest.mark.parametrize("blocks", [0, 20, 100, 1000, 10_000])
def test_the_largest_weight_is_the_largest(blocks: int) -> None:
    pool = shape()
    weight = pool.largest_weight(blocks, 5000)
    assert weight == -1 or pool.worst_case(weight) <= blocks
    assert weight == 5000 or pool.worst_case(weight + 1) > blocks
