"""Writers and cuts exclude each other; retired blocks wait for those who may still read them."""

from __future__ import annotations

import os
import threading

import numpy as np

from replicator.pdata.block import Words
from replicator.thin.gate import IDLE, Gate
from tests.support.enginerig import within


def words(*numbers: int) -> Words:
    return np.array(numbers, dtype=np.uint64)


def test_a_cut_waits_for_writers_inside_and_keeps_others_out() -> None:
    gate, order, entered = Gate(), list[str](), threading.Event()

    def cutter() -> None:
        entered.wait(10)
        with gate.closed():
            order.append("cut")

    def late() -> None:
        gate.enter()
        order.append("late")
        gate.leave()

    threads = [threading.Thread(target=cutter, daemon=True)]
    threads[0].start()
    with gate.writing():
        entered.set()
        while not gate._closed:  # the cutter has closed the gate, and waits for us
            os.sched_yield()
        threads.append(threading.Thread(target=late, daemon=True))
        threads[1].start()
        order.append("writer")
    for thread in threads:
        thread.join(10)
    assert order == ["writer", "cut", "late"]


def test_cuts_take_turns() -> None:
    gate, inside = Gate(), list[int]()

    def cutter() -> None:
        for _ in range(50):
            with gate.closed():
                inside.append(1)
                assert len(inside) == 1
                inside.pop()

    threads = [threading.Thread(target=cutter, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)


def test_a_retired_block_waits_for_older_batches_only() -> None:
    gate = Gate()
    slot, other = gate.register(), within(5, gate.register)
    slot.generation = gate.generation
    gate.retire(words(1, 2))
    assert gate.reclaim().size == 0
    other.generation = gate.generation  # began after they were retired
    gate.retire(words(3))
    slot.generation = IDLE
    assert gate.reclaim().tolist() == [1, 2]
    other.generation = IDLE
    assert gate.reclaim().tolist() == [3] and gate.reclaim().size == 0


def test_a_thread_that_ends_keeps_nothing() -> None:
    gate = Gate()
    slot = gate.register()
    slot.generation = gate.generation
    gate.retire(words(1))
    gate.unregister(slot)
    assert gate.reclaim().tolist() == [1]


def test_who_waits_outside_shows_no_generation_and_a_new_one_after() -> None:
    gate = Gate()
    slot = gate.register()
    slot.generation = gate.generation
    with gate.writing():
        with gate.outside():
            gate.retire(words(1))
            assert slot.generation == IDLE and gate.reclaim().tolist() == [1]
            with gate.closed():
                pass  # nobody is inside
        assert slot.generation == gate.generation == 2
    assert within(5, lambda: gate.closed().__enter__()) is None
