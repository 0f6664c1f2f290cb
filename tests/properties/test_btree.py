"""A batch writer of B-trees against a dict: sorted batches of puts and deletes on every kind of tree, and its shape.

The shape after each batch, walked by plain recursion: fill of every node but the root, equal depth, keys under their
parents', and reference counts of nodes and data blocks worked out from what is there.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from replicator.blockdev.memory import MemoryDevice
from replicator.pdata.block import Words
from replicator.pdata.node import INTERNAL_MAX, MAPPING, REF_COUNTS, TreeKind
from replicator.pdata.transaction import Transaction
from replicator.pdata.tree import leaf_count, lookup, walk
from replicator.pdata.update import split_evenly
from replicator.thin.metadata import PoolMetadata
from tests.support.enginerig import BLOCK, UUID

SPAN = 60_000


def words(numbers: Any) -> Words:
    return np.array(sorted(numbers), dtype=np.uint64)


class Shape:
    """Walks trees node by node: counts who refers to whom, and complains of what mustn't be."""

    def __init__(self, transaction: Transaction, kind: TreeKind) -> None:
        self.transaction, self.kind = transaction, kind
        self.references: Counter[int] = Counter()
        self.data: Counter[int] = Counter()
        self.leaves = 0

    def tree(self, root: int) -> int:
        """The tree's depth."""
        self.references[root] += 1
        return self.node(root, None, None, is_root=True) if self.references[root] == 1 else 0

    def node(self, block: int, low: int | None, high: int | None, *, is_root: bool = False) -> int:
        nodes = self.transaction.store.read_nodes(np.array([block], dtype=np.uint64), self.kind)
        keys, values = nodes.flat()
        limit = self.kind.leaf_max if nodes.leaf else INTERNAL_MAX
        assert len(keys) <= limit and (is_root or len(keys) >= limit // 3), (block, len(keys))
        assert (low is None or int(keys[0]) >= low) and (high is None or int(keys[-1]) < high)
        if nodes.leaf:
            self.leaves += 1
            if self.kind is MAPPING:
                self.data.update((values >> np.uint64(24)).tolist())
            return 1
        assert not is_root or len(keys) > 1
        bounds = [*keys.tolist(), high]
        depths = set()
        for slot, child in enumerate(values.tolist()):
            self.references[child] += 1
            if self.references[child] == 1:
                depths.add(self.node(child, bounds[slot], bounds[slot + 1]))
        assert len(depths) <= 1, "leaves at several depths"
        return 1 + max(depths, default=0)


class TreeMachine(RuleBasedStateMachine):
    """One tree and its snapshots, of one kind; values of mappings are data blocks that nobody else has."""

    kind = MAPPING

    def __init__(self) -> None:
        super().__init__()
        pool = PoolMetadata.format(MemoryDevice(16 << 20), BLOCK, 500_000, UUID)
        self.transaction = pool.transaction
        self.trees = [self.transaction.empty_tree(self.kind)]
        self.models: list[dict[int, int]] = [{}]
        self.next_value = 3

    @rule(
        which=st.integers(0, 9),
        begin=st.integers(0, SPAN),
        count=st.sampled_from((1, 2, 90, 300, 5000, 20_000)),
        step=st.sampled_from((1, 1, 3, 50)),
        delete=st.sampled_from((0.0, 0.0, 0.5, 1.0)),
        seed=st.integers(0, 1 << 16),
    )
    def update(self, which: int, begin: int, count: int, step: int, delete: float, seed: int) -> None:
        which %= len(self.trees)
        model = self.models[which]
        keys = words(range(begin, begin + count * step, step))
        gone = np.random.default_rng(seed).random(len(keys)) < delete
        fresh = np.arange(self.next_value, self.next_value + len(keys), dtype=np.uint64)
        fresh %= np.uint64(499_000)  # a value may come again only when nobody has it
        if self.kind is MAPPING and (self.transaction.data.counts.get(fresh) > 0).any():
            return
        self.next_value += len(keys)
        values = (fresh << np.uint64(24)) if self.kind is MAPPING else fresh.astype(self.kind.dtype)
        done = self.transaction.update(self.trees[which], self.kind, keys, values, gone)
        here = [key in model for key in keys.tolist()]
        assert done.inserted == sum(not had and not off for had, off in zip(here, gone.tolist(), strict=True))
        assert done.removed == sum(had and off for had, off in zip(here, gone.tolist(), strict=True))
        for key, value, off in zip(keys.tolist(), values.tolist(), gone.tolist(), strict=True):
            if off:
                model.pop(key, None)
            else:
                model[key] = value
        self.trees[which] = done.root
        self.agree(which)

    @precondition(lambda self: self.kind is MAPPING and len(self.trees) < 5)
    @rule(which=st.integers(0, 9))
    def snapshot(self, which: int) -> None:
        which %= len(self.trees)
        self.transaction.share_root(self.trees[which])
        self.trees.append(self.trees[which])
        self.models.append(dict(self.models[which]))

    @precondition(lambda self: len(self.trees) > 1)
    @rule(which=st.integers(0, 9))
    def drop(self, which: int) -> None:
        which %= len(self.trees)
        self.transaction.drop_tree(self.trees.pop(which), self.kind)
        self.models.pop(which)
        self.agree(0)

    def agree(self, which: int) -> None:
        store, root, model = self.transaction.store, self.trees[which], self.models[which]
        pieces = list(walk(store, root, self.kind))
        found = {k: v for keys, values in pieces for k, v in zip(keys.tolist(), values.tolist(), strict=True)}
        assert found == model
        asked = words({*list(model)[:50], 0, 7, SPAN})
        hit, values = lookup(store, root, asked, self.kind)
        assert [model.get(key) for key in asked.tolist()] == [
            value if there else None for there, value in zip(hit.tolist(), values.tolist(), strict=True)
        ]
        shape = Shape(self.transaction, self.kind)
        for tree in self.trees:
            shape.tree(tree)
        blocks = words(shape.references)
        expected = [shape.references[block] for block in blocks.tolist()]
        assert self.transaction.metadata.counts.get(blocks).tolist() == expected
        if self.kind is MAPPING:
            data = words(shape.data)
            assert self.transaction.data.counts.get(data).tolist() == [shape.data[block] for block in data.tolist()]
            assert self.transaction.data.counts.nr_allocated == len(data)
        alone = Shape(self.transaction, self.kind)
        alone.tree(root)
        assert leaf_count(store, root, self.kind) == alone.leaves


class CountTreeMachine(TreeMachine):
    """The same with 336 entries of four bytes a leaf, and no snapshots."""

    kind = REF_COUNTS


QUIET = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)


@pytest.mark.parametrize("machine", [TreeMachine, CountTreeMachine])
def test_a_tree_is_what_was_put_into_it(machine: type[TreeMachine]) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=8, stateful_step_count=20, deadline=None, suppress_health_check=QUIET)
    )


@pytest.mark.soak
@pytest.mark.parametrize("machine", [TreeMachine, CountTreeMachine])
def test_a_tree_is_what_was_put_into_it_for_long(machine: type[TreeMachine]) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=QUIET)
    )


@pytest.mark.parametrize("high", [126, 168, 252, 336])
def test_splits_are_even(high: int) -> None:
    for length in [*range(1, 3 * high), 10 * high + 1]:
        sizes = split_evenly(length, high)
        assert sum(sizes) == length and max(sizes) <= high and max(sizes) - min(sizes) <= 1
        assert len(sizes) == 1 or min(sizes) >= high // 2
