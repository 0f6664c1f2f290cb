"""The pool's last durable state, read beside the transaction that changes it, without waiting for it (P4).

Asked by thin/engine for page tables, and by pool/ for what is durable. The trees are persistent: nothing that the
committed superblock reaches is overwritten before the next commit is durable (X1, X2 and X4 of pdata/transaction). So
whoever reads here looks afterwards whether the state is the engine's last one still: if not, what was read is void,
whatever it was, an error included.

Invariants
  Q1  Nothing of the running transaction is seen: a store of its own, without what is pending, and roots of the
      superblock that it was made of.
  Q2  An entry's block is told to be its device's own only when one reference leads to it, and to each node on the
      path, in the committed state, and the running one has added none (C4 of pdata/counts).
"""

from __future__ import annotations

from replicator.errors import NotFoundError
from replicator.pdata.node import TOP_LEVEL
from replicator.pdata.transaction import Transaction
from replicator.pdata.tree import lookup_one
from replicator.thin.sharing import Mapped, mapped_entries
from replicator.thin.superblock import Superblock
from replicator.thin.view import DeviceEntry, PoolView


class Committed:
    """One durable state; `transaction` lends its device and the counts' memory of what is SOLE."""

    def __init__(self, superblock: Superblock, transaction: Transaction) -> None:
        self.view = PoolView(transaction.store.device, superblock)
        self._transaction = transaction
        self._roots: dict[int, int] = {}

    @property
    def superblock(self) -> Superblock:
        return self.view.superblock

    def root_of(self, dev_id: int) -> int:
        """The root of the device's mapping tree; NotFoundError if there is no such device."""
        root = self._roots.get(dev_id)
        if root is None:
            found = lookup_one(self.view.store, self.superblock.data_mapping_root, dev_id, TOP_LEVEL)
            if found is None:
                raise NotFoundError(f"the pool has no thin device {dev_id}")
            root = self._roots[dev_id] = int(found)
        return root

    def find(self, dev_id: int) -> DeviceEntry | None:
        """The device, or None."""
        return self.view.find(dev_id)

    def mapped(self, dev_id: int, begin: int, end: int) -> Mapped:
        """What the device maps in [begin, end), and what of it is its own (Q2)."""
        metadata, data = self._transaction.metadata.counts, self._transaction.data.counts
        return mapped_entries(self.view.store, self.root_of(dev_id), (begin, end), metadata, data)
