"""The gate that writers pass, and the grace that readers are given: how a cut and a freed block wait for I/O in flight.

Used by thin/engine (which closes it at a cut, and frees blocks) and by every thread that serves I/O.

A writer's batch stands between `enter` and `leave`. A cut closes the gate, waits until everybody has left, and opens
it again: writes before it are wholly before the cut, the rest wholly after (P3), and the pause is as long as the
writes in flight take (P4).

A freed data block may be given to another volume only when no thread can still be reading or overwriting it. Each
thread's slot shows the generation at which its batch began (0 = idle); blocks freed at generation g are safe when
every slot is idle or later than g.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from replicator.pdata.block import Words

IDLE = 0


class Slot:
    """What one thread shows of itself: the generation at which its batch began, or IDLE."""

    __slots__ = ("generation",)

    def __init__(self) -> None:
        self.generation = IDLE


class Gate:
    """One pool's gate and grace periods."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed = False
        self.generation = 1
        self._slots: list[Slot] = []
        self._own = threading.local()
        self._limbo: list[tuple[int, Words]] = []

    # -- writers and cuts ------------------------------------------------------------------------------------

    def enter(self) -> None:
        """A batch with writes begins; waits while a cut is being made."""
        with self._changed:
            while self._closed:
                self._changed.wait()
            self._inside += 1

    def leave(self) -> None:
        """The batch is over."""
        with self._changed:
            self._inside -= 1
            if self._closed and not self._inside:
                self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """`enter` and `leave` around a block."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    @contextmanager
    def outside(self) -> Iterator[None]:
        """For a writer inside that has to wait for a commit: leaves, and shows no generation, which would keep what
        that commit frees from being reclaimed; what it looked up before is void."""
        slot: Slot | None = getattr(self._own, "slot", None)
        shown = slot.generation if slot is not None else IDLE
        self.leave()
        if slot is not None:
            slot.generation = IDLE
        try:
            yield
        finally:
            self.enter()
            if slot is not None and shown != IDLE:
                slot.generation = self.generation

    @contextmanager
    def closed(self) -> Iterator[None]:
        """No write is in flight inside the block, and none begins."""
        with self._changed:
            while self._closed:
                self._changed.wait()
            self._closed = True
            while self._inside:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._closed = False
                self._changed.notify_all()

    # -- grace -----------------------------------------------------------------------------------------------

    def register(self) -> Slot:
        """The calling thread's slot, if it serves I/O: its generation is the gate's during a batch, IDLE after it."""
        slot = self._own.slot = Slot()
        with self._changed:
            self._slots.append(slot)
        return slot

    def unregister(self, slot: Slot) -> None:
        """The thread ends."""
        with self._changed:
            self._slots.remove(slot)

    def retire(self, blocks: Words) -> None:
        """`blocks` are free on disk; somebody may still be reading them."""
        with self._changed:
            if blocks.size:
                self._limbo.append((self.generation, blocks))
            self.generation += 1

    def reclaim(self) -> Words:
        """The retired blocks that nobody can be reading any more."""
        with self._changed:
            oldest = min((slot.generation for slot in self._slots if slot.generation != IDLE), default=self.generation)
            ready = [blocks for generation, blocks in self._limbo if generation < oldest]
            self._limbo = [(generation, blocks) for generation, blocks in self._limbo if generation >= oldest]
        return np.concatenate(ready) if ready else np.empty(0, dtype=np.uint64)
