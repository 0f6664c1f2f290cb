"""What the disks' blocks are at this instant: the durable mapping trees, under what is being committed, under the rest.

Between thin/device, which asks for stretches of its page table, and thin/engine, which freezes dirty sets and makes
them durable. Nobody who asks here waits for tree work (P4): what is read of the trees is their last durable state.

    layer        what it is                                      whose its blocks are
    committed    the mapping trees that the last commit wrote    the device's own where one reference leads there (Q2)
    frozen       the dirty set that a commit is bringing there   the device's own, unless that commit cuts it: shared
    active       the dirty set since                             the device's own

Invariants
  J1  The three layers belong together: `freeze` and `show` change them under the publish lock, and a stretch is put
      into its page table under it only when `committed` is what it was when the stretch was read.
  J2  Everything that a commit cuts counts as shared until the commit is durable, since no count says so yet (P6).
  J3  After a failed commit nothing is anybody's own any more: no block is overwritten in place (E3 of thin/engine).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import TypeVar

from replicator.errors import ReplicatorError
from replicator.pdata.node import MAPPING
from replicator.pdata.tree import leaf_bound
from replicator.thin.committed import Committed
from replicator.thin.device import ThinDevice
from replicator.thin.dirty import DirtyLog, DirtySet
from replicator.thin.folding import overlay
from replicator.thin.sharing import Mapped
from replicator.thin.table import SHARED, STRETCH_BLOCKS

_Found = TypeVar("_Found")
_TRIES = 3  # to read a stretch while commits end meanwhile; the last one holds them up


class Paging:
    """The layers of one pool's disks.

    `lock` is what the end of a commit holds, `publish_lock` guards page tables, dirty records and the layers.
    """

    def __init__(
        self, committed: Committed, dirty: DirtyLog, lock: threading.RLock, publish_lock: threading.Lock
    ) -> None:
        self.committed = committed
        self.may_own = True
        self._dirty, self._lock, self._publish_lock = dirty, lock, publish_lock
        self._frozen: DirtySet | None = None
        self._cut: frozenset[int] = frozenset()

    def durable(self, look: Callable[[Committed], _Found]) -> _Found:
        """What `look` sees of the last durable state; it may be called again, if a commit ends meanwhile."""
        for _ in range(_TRIES - 1):
            state = self.committed
            try:
                found = look(state)
            except ReplicatorError:
                if state is self.committed:
                    raise
                continue
            if state is self.committed:
                return found
        with self._lock:
            return look(self.committed)

    def leaf_bound(self, dev_id: int, begin: int, end: int, leaves: int) -> int:
        """Where a range of virtual blocks that begins at `begin` has to end, to touch no more leaves than that."""

        def look(state: Committed) -> int:
            return leaf_bound(state.view.store, state.root_of(dev_id), MAPPING, (begin, end), leaves)

        return self.durable(look)

    def load(self, device: ThinDevice, index: int) -> memoryview:
        """A stretch of the device's page table, put into it; NotFoundError when there is no such device (any more)."""
        begin, tries = index * STRETCH_BLOCKS, 0
        while True:
            tries += 1
            with nullcontext() if tries < _TRIES else self._lock:
                state = self.committed
                try:
                    found = state.mapped(device.dev_id, begin, begin + STRETCH_BLOCKS)
                except ReplicatorError:
                    if state is self.committed:
                        raise
                    continue
                view = self._install(device, index, state, found)
                if view is not None:
                    return view

    def _install(self, device: ThinDevice, index: int, state: Committed, found: Mapped) -> memoryview | None:
        begin, dev_id = index * STRETCH_BLOCKS, device.dev_id
        with self._publish_lock:
            device.refuse_closed()
            if state is not self.committed:
                return None
            is_cut = dev_id in self._cut
            entries = device.stretch_of(index, found, may_own=self.may_own and not is_cut)
            if not device.read_only:
                own = device.epoch if self.may_own else SHARED
                if self._frozen is not None:
                    overlay(entries, begin, self._frozen.of_device(dev_id), SHARED if is_cut else own)
                overlay(entries, begin, self._dirty.active().of_device(dev_id), own)
            return device.table.install(index, entries)

    def freeze(self, cut: frozenset[int]) -> DirtySet:
        """A commit begins, which cuts these devices; under the publish lock."""
        self._frozen, self._cut = self._dirty.freeze(), cut
        return self._frozen

    def show(self, committed: Committed, refilled: Iterable[ThinDevice]) -> None:
        """It is durable: this is what is read from now on; `refilled` devices had other blocks before."""
        with self._publish_lock:
            self._dirty.committed()
            self.committed, self._frozen, self._cut = committed, None, frozenset()
            for device in refilled:
                device.table.clear()
