"""How long volumes are for those who have them open here, while they are made larger and smaller.

Beside pool/local. A volume's size stands in its row; a device that is open has one too, which is what its clients can
reach. Both change by a resize only, in this order:

    made smaller       clients reach    the row has      dies then: on disk
    limited            the new size     the old size     the old size, and all of its content
    committed          the new size     the new size     the new size, and nothing beyond it
    made larger
    committed          the old size     the new size     the new size
    behind that        the new size     the new size

Invariants
  N1  From before the commit that makes a volume smaller, nobody reaches beyond its new end: what is in flight there is
      over (the gate), and who opens it, or follows the catalogue, gets the new size. What came later would be beyond
      the end, mapped, when the volume grows again.
  N2  The size of a device that is open for writing changes while the gate is closed (W5 of thin/device).
  N3  Sizes of open devices are set here only, from the row of the last durable switch: whoever looked at the catalogue
      before may be late.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np

from replicator.pdata.room import UNMAP_WEIGHT
from replicator.pool.applying import ResizeChange
from replicator.pool.catalogue_schema import Volume
from replicator.pool.outcome import Outcome
from replicator.thin.change import Change
from replicator.thin.device import ThinDevice

if TYPE_CHECKING:
    from replicator.pool.local import LocalPool


class Sizes:
    """The sizes of one pool's volumes; `lock` is held by whoever opens one, or sets what it has."""

    def __init__(self, pool: LocalPool) -> None:
        self.lock = threading.Lock()
        self._pool = pool
        self._resizing = threading.Lock()
        self._limits: dict[int, int] = {}  # of volumes that are being made smaller

    def of(self, dev_id: int, otherwise: int) -> int:
        """What the device is long for its users now; `otherwise` where no volume is that device. Under `lock`."""
        rows = self._pool.view().volumes
        size_bytes = next((each.size_bytes for each in rows if each.dev_id == dev_id), otherwise)
        return min(size_bytes, self._limits.get(dev_id, size_bytes))

    def fit(self, device: ThinDevice) -> None:
        """Give an open device the size that it has now (N3)."""
        with nullcontext() if device.read_only else self._pool.engine.gate.closed(), self.lock:
            size_bytes = self.of(device.dev_id, device.size_bytes)
            if device.size_bytes != size_bytes:
                device.resize(size_bytes)

    def resize(self, volume: UUID, size_bytes: int) -> int:
        """Make a volume larger or smaller, live or not; the transaction id.

        One commit holds the new size, the unmapping of what lies beyond, and zeros in the rest of the last block.
        """
        with self._resizing:
            return self._resize(self._pool.view().volume(volume), size_bytes)

    def _resize(self, row: Volume, size_bytes: int) -> int:
        pool, spare, after = self._pool, None, replace(row, size_bytes=size_bytes)  # UsageError before anything is done
        shrinks = size_bytes < row.size_bytes
        if shrinks:
            pool.refuse_leased(row.dev_id, "made smaller")
            if size_bytes % pool.block_bytes:
                spare = np.array([pool.engine.space.take_one()], dtype=np.uint64)
            self._limit(row.dev_id, size_bytes)
        work = ResizeChange(row, size_bytes, pool, spare)
        change = Change(work.apply, work.prepare, deletes=True, weight=UNMAP_WEIGHT + 1)
        if shrinks:
            change.cut_devices = change.fills = (row.dev_id,)
        reached = row.size_bytes
        try:
            outcome: Outcome = pool.engine.change(change)
            reached = after.size_bytes
            return outcome.transaction_id
        finally:
            with pool.engine.gate.closed(), self.lock:
                self._limits.pop(row.dev_id, None)
                if live := self._live(row.dev_id):
                    live.resize(reached)
            if spare is not None and (work.spare is not None or reached != size_bytes):
                pool.give_back(spare)

    def _limit(self, dev_id: int, size_bytes: int) -> None:
        """No client reaches beyond that from now on, nor one who opens the volume before it has the new size (N1)."""
        with self._pool.engine.gate.closed(), self.lock:
            self._limits[dev_id] = size_bytes
            if live := self._live(dev_id):
                live.size_bytes = size_bytes

    def _live(self, dev_id: int) -> ThinDevice | None:
        device = self._pool.engine.devices.get(dev_id)
        return device if device is not None and not device.read_only else None
