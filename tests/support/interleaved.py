"""Clients of one engine, at work at once under the scheduler, and the judgement of all that they saw.

Every write has a tag of its own, which fills each eighth byte of what it writes, so that a sector tells whose it is.
An operation lies between the scheduler's step at which it began and the one at which it was answered; operations whose
spans overlap may have happened in either order.

    a read        each sector is of a write that began before the read's end, and wasn't overwritten for good before
                  the read began
    a cut         the same; no sector of a write that began after it; every write that was answered before it; a write
                  is in all of its sectors or in none, also across the volumes of a group; and when one is in it, so is
                  every write that was answered before that one began (P3)
    the end       each sector as a read after everything, live and once more after closing and opening the pool
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from replicator.thin.change import Change
from replicator.thin.engine import Engine
from replicator.thin.metadata import PoolMetadata
from replicator.units import SECTOR_BYTES
from tests.support.enginerig import BLOCK
from tests.support.scheduler import Scheduler

VIRTUAL_BLOCKS = 3
SIZE = VIRTUAL_BLOCKS * BLOCK
_WORDS = SECTOR_BYTES // 8
Tags = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Written:
    """A write, or a discard (tag 0), of the sectors [begin, end) of a volume; `answered` is its last step."""

    tag: int
    volume: int
    begin: int
    end: int
    began: int
    answered: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What a read saw from the sector `begin` on."""

    volume: int
    begin: int
    tags: Tags
    began: int
    answered: int


@dataclass(slots=True)
class Cut:
    """Snapshots of several volumes at one instant: {volume: its snapshot's dev_id}, and later what they hold."""

    snapshots: dict[int, int]
    began: int
    answered: int
    content: dict[int, Tags] = field(default_factory=dict)


def tags_of(data: bytes) -> Tags:
    """The tag of each sector; AssertionError for a sector that is of several writes."""
    words = np.frombuffer(data, dtype=np.uint64).reshape(-1, _WORDS)
    assert (words == words[:, :1]).all(), "a sector is torn"
    return words[:, 0]


@dataclass(slots=True)
class History:
    """All that happened to the volumes."""

    writes: list[Written] = field(default_factory=list)
    reads: list[Seen] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)

    def judge(self) -> None:
        """AssertionError where anything that was seen can't have been."""
        for seen in self.reads:
            self._judge_sectors(seen)
        for cut in self.cuts:
            for volume, tags in cut.content.items():
                self._judge_sectors(Seen(volume, 0, tags, cut.began, cut.answered))
            self._judge_cut(cut)

    def _judge_sectors(self, seen: Seen) -> None:
        empty = Written(0, seen.volume, 0, SIZE // SECTOR_BYTES, -1, -1)
        known = [empty, *(write for write in self.writes if write.volume == seen.volume)]
        for place, tag in enumerate(seen.tags.tolist(), seen.begin):
            here = [write for write in known if write.begin <= place < write.end and write.began < seen.answered]
            able = [write for write in here if not any(_hides(other, write, seen.began) for other in here)]
            assert any(write.tag == tag for write in able), (
                f"volume {seen.volume}, sector {place}: {tag}, read in {seen.began}..{seen.answered}; possible: {able}"
            )

    def _judge_cut(self, cut: Cut) -> None:
        inside = [write for write in self.writes if write.tag and self._shows(cut, write)]
        for write in self.writes:
            if not write.tag or write.volume not in cut.snapshots:
                continue
            before_one_inside = any(write.answered < other.began for other in inside)
            if write in inside or write.answered < cut.began or before_one_inside:
                self._require_whole(cut, write)

    def _shows(self, cut: Cut, write: Written) -> bool:
        return write.volume in cut.content and bool(
            (cut.content[write.volume][write.begin : write.end] == write.tag).any()
        )

    def _require_whole(self, cut: Cut, write: Written) -> None:
        """Each of its sectors shows it, or one that may have come after it."""
        later = {other.tag for other in self.writes if other.volume == write.volume and other.answered > write.began}
        found = cut.content[write.volume][write.begin : write.end]
        wrong = np.flatnonzero(~np.isin(found, np.array(sorted(later), dtype=np.uint64)))
        assert not wrong.size, (
            f"{write} isn't wholly in the cut {cut.began}..{cut.answered}: sectors {wrong[:4].tolist()}"
        )


def _hides(other: Written, write: Written, before: int) -> bool:
    """Whether `other` was answered before that step, and began after `write` was answered."""
    return other is not write and other.began > write.answered and other.answered < before


class Client:
    """One client, with its slot in the gate, as a connection of the exporter has one."""

    def __init__(self, engine: Engine, scheduler: Scheduler, history: History, volumes: Sequence[int]) -> None:
        self.engine, self._scheduler, self._history = engine, scheduler, history
        self.devices = {volume: engine.open_device(volume, SIZE, read_only=False) for volume in volumes}

    def working(self, steps: Sequence[Callable[[Client], None]]) -> Callable[[], None]:
        """These steps, one after the other, as a task's work."""

        def work() -> None:
            slot = self.engine.gate.register()
            for step in steps:
                slot.generation = self.engine.gate.generation
                step(self)
                slot.generation = 0
            self.engine.gate.unregister(slot)

        return work

    def _now(self) -> int:
        """A step number that nobody else gets."""
        self._scheduler.steps += 1
        return self._scheduler.steps

    def write(self, volume: int, begin: int, end: int, tag: int) -> None:
        """Fill the sectors with `tag`."""
        began = self._now()
        data = np.full((end - begin) * _WORDS, tag, dtype=np.uint64).tobytes()
        with self.engine.gate.writing():
            self.devices[volume].pwrite(data, begin * SECTOR_BYTES)
        self._history.writes.append(Written(tag, volume, begin, end, began, self._now()))

    def discard(self, volume: int, block: int) -> None:
        """Unmap one block."""
        began, sectors = self._now(), BLOCK // SECTOR_BYTES
        with self.engine.gate.writing():
            self.devices[volume].discard(block * BLOCK, BLOCK)
        self._history.writes.append(Written(0, volume, block * sectors, (block + 1) * sectors, began, self._now()))

    def read(self, volume: int, begin: int, end: int) -> None:
        """Look at some sectors."""
        began = self._now()
        data = self.devices[volume].pread((end - begin) * SECTOR_BYTES, begin * SECTOR_BYTES)
        self._history.reads.append(Seen(volume, begin, tags_of(data), began, self._now()))

    def cut(self, snapshots: dict[int, int]) -> None:
        """Snapshots of volumes, at one instant; each is read again while others go on."""
        began = self._now()

        def create(metadata: PoolMetadata) -> None:
            for origin, snapshot in snapshots.items():
                metadata.create_snap(snapshot, origin)

        self.engine.change(Change(create, cut_devices=list(snapshots)))
        cut = Cut(snapshots, began, self._now())
        self._history.cuts.append(cut)
        self.look_at(cut)

    def look_at(self, cut: Cut) -> None:
        """A cut's content; it never changes."""
        for volume, snapshot in cut.snapshots.items():
            tags = tags_of(self.engine.open_device(snapshot, SIZE).pread(SIZE, 0))
            before = cut.content.setdefault(volume, tags)
            assert (before == tags).all(), f"snapshot {snapshot} changed"

    def delete_last_cut(self) -> None:
        """Its snapshots go, and their blocks may be given again."""
        if self._history.cuts and self._history.cuts[-1].content:
            cut = self._history.cuts[-1]
            gone = [dev_id for dev_id in cut.snapshots.values() if self.engine.devices.pop(dev_id, None)]

            def delete(metadata: PoolMetadata) -> None:
                for dev_id in gone:
                    metadata.delete(dev_id)

            if gone:
                self.engine.change(Change(delete, deletes=True))

    def commit(self) -> None:
        """A flush."""
        self.engine.commit()
