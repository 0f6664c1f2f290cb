"""The end of a device's use: what it has dirty made durable, its page table given back, the engine free to delete it.

Asked by whoever opened a device and is done with it (exporter/fronts). The engine opens a device once for all its users
(`Engine.open_device`), so that only the going of the last one ends it.

    last user goes      no write is in flight (the gate), and no entry is to be had any more: who still has the device
                        finds it closed, wherever he was; it counts as open for writing yet
    commit              what was written to it is in its mapping tree
    forgotten           it may be deleted, filled, leased

Invariants
  Z1  Two of one device are never in use at once: one that is opened anew meanwhile begins with an empty page table,
      loaded from the layers of thin/paging when nobody changes blocks by the old one any more.
  Z2  A device with changes in no tree is never forgotten: where the commit fails, it stays open for writing.
"""

from __future__ import annotations

from replicator.thin.device import ThinDevice
from replicator.thin.engine import Engine


def close_device(engine: Engine, device: ThinDevice) -> None:
    """One user of `device` has gone; behind the last one it is forgotten. BrokenPoolError: after a failed commit."""
    with engine.gate.closed(), engine.publish_lock:
        device.users -= 1
        if device.users > 0 or device.closed:
            return
        device.closed = True
        device.table.clear()
    if not device.read_only:
        engine.commit()
    with engine.publish_lock:
        if engine.devices.get(device.dev_id) is device:
            del engine.devices[device.dev_id]
