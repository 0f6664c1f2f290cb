"""A small pool in memory under a running engine, with a model of what each device must read as.

Tests of the engine write through it; after a crash they ask `explain` whether what is there may be there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from replicator.blockdev.interface import BlockDevice
from replicator.blockdev.memory import MemoryDevice
from replicator.thin.change import Change
from replicator.thin.check import check
from replicator.thin.device import ThinDevice
from replicator.thin.engine import Engine
from replicator.thin.metadata import PoolMetadata
from replicator.thin.opening import open_engine
from replicator.units import SECTOR_BYTES

BLOCK = 65536
UUID = b"engine-rig-uuid!"
_T = TypeVar("_T")


def formatted(metadata_bytes: int, data_blocks: int, dev_ids: tuple[int, ...] = (1,)) -> MemoryDevice:
    """A metadata device that holds an empty pool with these devices."""
    device = MemoryDevice(metadata_bytes)
    pool = PoolMetadata.format(device, BLOCK, data_blocks, UUID)
    for dev_id in dev_ids:
        pool.create_thin(dev_id)
    pool.commit(lambda: None)
    return device


@contextmanager
def running(
    metadata: BlockDevice, data: BlockDevice, dirty: Path, *, capacity: int = 64, time_is_capped: bool = False
) -> Iterator[Engine]:
    """The engine over two devices, closed at the end."""
    engine, _ = open_engine(metadata, data, dirty, dirty_capacity=capacity, time_is_capped=time_is_capped)
    try:
        yield engine
    finally:
        engine.close()


def assert_sound(metadata: BlockDevice) -> None:
    """Our own check finds nothing, not even something odd."""
    report = check(metadata)
    assert report.findings == () and report.counts_compared, [str(finding) for finding in report.findings]


def within(seconds: float, work: Callable[[], _T]) -> _T:
    """What `work` returns, in a thread of its own; an AssertionError if it takes longer (a deadlock)."""
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"still at work after {seconds} s"
    if errors:
        raise errors[0]
    return results[0]


def cut(engine: Engine, origin: int, snapshot: int) -> None:
    """A snapshot of a live device, durable."""
    engine.change(Change(lambda metadata: metadata.create_snap(snapshot, origin), cut_devices=[origin]))


def delete(engine: Engine, dev_id: int) -> None:
    """A device is deleted, durably."""
    engine.change(Change(lambda metadata: metadata.delete(dev_id), deletes=True))
    engine.devices.pop(dev_id, None)


def write(engine: Engine, device: ThinDevice, data: bytes, offset_bytes: int) -> None:
    """A write, inside the gate."""
    with engine.gate.writing():
        device.pwrite(data, offset_bytes)


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What was answered so far: each device's contents since its last flush, oldest first, and what is under way.

    `versions` ends with what reads must give now; a change under way adds what it would make. `maybe` are devices
    that are being made or deleted: they may be there or not.
    """

    versions: dict[int, tuple[bytes, ...]]
    maybe: frozenset[int] = frozenset()
    under_way: dict[int, bytes] = field(default_factory=dict)

    def marks(self) -> dict[int, int]:
        """How many versions of each device there are: to be given to `flushed`."""
        return {dev_id: len(contents) for dev_id, contents in self.versions.items()}

    def flushed(self, marks: dict[int, int]) -> Knowledge:
        """A flush that began at `marks` is answered: what was older then no longer counts, and nothing is `maybe`."""
        return replace(
            self,
            versions={dev_id: contents[marks.get(dev_id, 1) - 1 :] for dev_id, contents in self.versions.items()},
            maybe=frozenset(),
        )

    def without(self, dev_id: int) -> Knowledge:
        """The device is gone."""
        return replace(self, versions={other: each for other, each in self.versions.items() if other != dev_id})

    def writing(self, dev_id: int, content: bytes) -> Knowledge:
        """A write that isn't answered yet."""
        return replace(self, under_way={dev_id: content})

    def written(self) -> Knowledge:
        """It is answered."""
        versions = dict(self.versions)
        for dev_id, content in self.under_way.items():
            versions[dev_id] = (*versions[dev_id], content)
        return Knowledge(versions, self.maybe)

    def explain(self, found: dict[int, bytes], *, power_cut: bool) -> None:
        """AssertionError unless `found` is what a crash may leave: P1b of a dead process, P1 and P2 of a power cut."""
        must = self.versions.keys() - self.maybe
        assert must <= found.keys() <= self.versions.keys(), (sorted(found), sorted(must))
        for dev_id, content in found.items():
            allowed = list(self.versions[dev_id]) if power_cut else [self.versions[dev_id][-1]]
            allowed += [self.under_way[dev_id]] if dev_id in self.under_way else []
            wrong = np.flatnonzero(~_equal_sectors(content, allowed))
            assert not wrong.size, f"device {dev_id}, sectors {wrong[:8].tolist()} of {len(content) // SECTOR_BYTES}"


def _equal_sectors(content: bytes, allowed: list[bytes]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    have = np.frombuffer(content, dtype=np.uint64).reshape(-1, SECTOR_BYTES // 8)
    same = np.zeros(len(have), dtype=bool)
    for each in allowed:
        same |= (np.frombuffer(each, dtype=np.uint64).reshape(have.shape) == have).all(axis=1)
    return same
