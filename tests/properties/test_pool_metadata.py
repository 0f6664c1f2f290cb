"""A pool's metadata against dicts: any sequence of changes, commits and reopenings, and the judges after it.

Devices, snapshots, mappings and the metadata snapshot; after each commit our own check, at the end of the bounded runs
of tests/compat both thin_checks. What a commit took of the metadata is held against what it was said to need (P8).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from replicator.blockdev.memory import MemoryDevice
from replicator.pdata.block import Words
from replicator.pdata.room import CHANGE_BLOCKS, UNMAP_WEIGHT, PoolShape
from replicator.thin.held import release_metadata_snap, reserve_metadata_snap
from replicator.thin.metadata import PoolMetadata
from replicator.thin.view import PoolView
from tests.support.enginerig import BLOCK, UUID, assert_sound

DATA_BLOCKS = 20_000
MOST_DEVICES = 9


def words(numbers: set[int] | range) -> Words:
    """Sorted distinct numbers as an array."""
    return np.array(sorted(numbers), dtype=np.uint64)


def as_dict(pieces: Iterable[tuple[Words, Words]]) -> dict[int, int]:
    """Virtual block -> data block."""
    pairs = [
        pair for keys, values in pieces for pair in zip(keys.tolist(), (values >> np.uint64(24)).tolist(), strict=True)
    ]
    return dict(pairs)


@dataclass
class Ledger:
    """What the running transaction did, for the bound of its cost."""

    shape: PoolShape
    weight: int = 0
    changes: int = 0
    trees: set[int] = field(default_factory=set)
    least_free: int = 1 << 60


class PoolMachine(RuleBasedStateMachine):
    """One pool in memory and the same as dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.device = MemoryDevice(8 << 20)
        self.pool = PoolMetadata.format(self.device, BLOCK, DATA_BLOCKS, UUID)
        self.pool.commit(lambda: None)
        self.model: dict[int, dict[int, int]] = {}
        self.held: dict[int, dict[int, int]] | None = None
        self.begin()

    def begin(self) -> None:
        self.ledger = Ledger(self.pool.transaction.shape())
        counts = self.pool.transaction.metadata.counts
        take = type(counts).take

        def watched(count: int) -> Words:
            taken = take(counts, count)
            self.ledger.least_free = min(self.ledger.least_free, counts.free_count)
            return taken

        counts.take = watched  # type: ignore[method-assign]  # a meter on the one place where blocks are taken

    def pick(self, choice: int) -> int:
        return sorted(self.model)[choice % len(self.model)]

    @rule(dev_id=st.integers(0, 40))
    def create_thin(self, dev_id: int) -> None:
        if dev_id not in self.model and len(self.model) < MOST_DEVICES:
            self.pool.create_thin(dev_id)
            self.model[dev_id] = {}
            self.ledger.changes += 1

    @precondition(lambda self: self.model)
    @rule(choice=st.integers(0, 100), dev_id=st.integers(0, 40))
    def create_snap(self, choice: int, dev_id: int) -> None:
        origin = self.pick(choice)
        if dev_id not in self.model and len(self.model) < MOST_DEVICES:
            self.pool.create_snap(dev_id, origin)
            self.model[dev_id] = dict(self.model[origin])
            self.ledger.changes += 1

    @precondition(lambda self: self.model)
    @rule(choice=st.integers(0, 100))
    def delete(self, choice: int) -> None:
        dev_id = self.pick(choice)
        self.pool.delete(dev_id)
        del self.model[dev_id]
        self.ledger.changes += 1

    @precondition(lambda self: self.model)
    @rule(
        choice=st.integers(0, 100),
        begin=st.integers(0, 4000),
        length=st.sampled_from((1, 3, 84, 253, 1500)),
        step=st.sampled_from((1, 1, 2, 7)),
    )
    def map(self, choice: int, begin: int, length: int, step: int) -> None:
        dev_id = self.pick(choice)
        counts = self.pool.transaction.data.counts
        if counts.free_count < length:
            return
        virtual, data = words(range(begin, begin + length * step, step)), counts.take(length)
        self.pool.map(dev_id, virtual, data)
        self.model[dev_id].update(zip(virtual.tolist(), data.tolist(), strict=True))
        self.ledger.weight += length
        self.ledger.trees.add(dev_id)

    @precondition(lambda self: self.model)
    @rule(
        choice=st.integers(0, 100),
        begin=st.integers(0, 4000),
        length=st.sampled_from((1, 60, 400, 20_000)),
        sieve=st.sampled_from((1, 1, 2, 10)),
    )
    def unmap(self, choice: int, begin: int, length: int, sieve: int) -> None:
        dev_id = self.pick(choice)
        gone = {block for block in self.model[dev_id] if begin <= block < begin + length and block % sieve == 0}
        self.pool.unmap(dev_id, words(gone | ({begin} - self.model[dev_id].keys())))  # absent ones, too
        for block in gone:
            del self.model[dev_id][block]
        self.ledger.weight += UNMAP_WEIGHT * (1 if sieve == 1 else len(gone) + 1)
        self.ledger.trees.add(dev_id)

    @rule()
    def toggle_metadata_snapshot(self) -> None:
        if self.held is None:
            reserve_metadata_snap(self.pool)
            self.held = {dev_id: dict(mappings) for dev_id, mappings in self.model.items()}
        else:
            release_metadata_snap(self.pool)
            self.held = None
        self.ledger.changes += 1

    @rule(reopen=st.booleans(), unload=st.booleans())
    def commit(self, reopen: bool, unload: bool) -> None:
        transaction = self.pool.transaction
        block0 = self.pool.seal()
        self.assert_bounded()
        self.pool.write(block0, lambda: None)
        transaction.data.counts.settle(self.pool.finish())
        assert_sound(self.device)
        self.assert_held()
        if reopen:
            self.pool = PoolMetadata.open(self.device)
        if unload:
            self.pool.transaction.data.counts.unload(0)
            self.pool.transaction.metadata.counts.unload(0)
        self.begin()

    def assert_bounded(self) -> None:
        """P8: the commit took no more than its worst case."""
        ledger = self.ledger
        mapped = sum(map(len, self.model.values())) + DATA_BLOCKS
        trees = max(1, len(ledger.trees))
        bound = (
            replace(ledger.shape, trees=trees, mapped_blocks=mapped).worst_case(ledger.weight)
            + CHANGE_BLOCKS * ledger.changes
        )
        took = ledger.shape.free_blocks - ledger.least_free
        assert took <= bound, f"{took} blocks taken, {bound} foreseen for {ledger}"

    def assert_held(self) -> None:
        """The held copy maps what it did when it was made."""
        if self.held is None:
            return
        view = PoolView.held(self.device)
        assert {entry.dev_id for entry in view.devices()} == self.held.keys()
        for entry in view.devices():
            assert as_dict(view.mappings(entry.root)) == self.held[entry.dev_id]

    @invariant()
    def maps_what_it_should(self) -> None:
        assert self.pool.dev_ids() == sorted(self.model)
        for dev_id, expected in self.model.items():
            assert as_dict(self.pool.mapped(dev_id, 0, 1 << 40)) == expected
            assert self.pool.device(dev_id).mapped_blocks == len(expected)

    def teardown(self) -> None:
        self.commit(reopen=False, unload=False)


QUIET = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)


def test_a_pool_is_what_was_done_to_it() -> None:
    run_state_machine_as_test(
        PoolMachine,
        settings=settings(max_examples=12, stateful_step_count=30, deadline=None, suppress_health_check=QUIET),
    )


@pytest.mark.soak
def test_a_pool_is_what_was_done_to_it_for_long() -> None:
    run_state_machine_as_test(
        PoolMachine,
        settings=settings(max_examples=300, stateful_step_count=60, deadline=None, suppress_health_check=QUIET),
    )
