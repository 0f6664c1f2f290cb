"""A random workload on one engine that says what is known after each step, and the judgement of what a crash left.

Used wherever an engine's machine or process dies: over recorded disks (tests/faults), and over a real kernel's
dm-log-writes and dm-flakey (tests/compat).
"""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from replicator.blockdev.interface import BlockDevice
from replicator.errors import NoSpaceError
from replicator.thin.change import Change
from replicator.thin.device import ThinDevice
from replicator.thin.engine import Engine
from replicator.thin.held import release_metadata_snap, reserve_metadata_snap
from replicator.thin.metadata import PoolMetadata
from tests.support.enginerig import BLOCK, Knowledge, assert_sound, cut, delete, running, write

VIRTUAL_BLOCKS = 5
SIZE = VIRTUAL_BLOCKS * BLOCK - 8192
DATA_BLOCKS = 24
BASE = 1


class Marks(Protocol):
    """Where a workload tells what is known."""

    def mark(self, note: Knowledge) -> None: ...


class Workload:
    """Writes, trims, flushes, cuts and deletes on one engine, telling the journal what is known after each.

    `during_commit`, where its disks call it before they are flushed, goes on while a commit is under way: between the
    fold and the flush of the data.
    """

    def __init__(self, engine: Engine, journal: Marks, seed: int) -> None:
        self.engine, self.journal, self.chance = engine, journal, random.Random(seed)
        self.devices = {BASE: engine.open_device(BASE, SIZE, read_only=False)}
        self.next_id = BASE + 1
        self.knows(Knowledge({BASE: (bytes(SIZE),)}))

    def knows(self, knowledge: Knowledge) -> None:
        self.knowledge = knowledge
        self.journal.mark(knowledge)

    def step(self) -> None:
        """One operation, chosen by chance."""
        kind = self.chance.choices("wzdufcxh", (50, 6, 6, 6, 14, 10, 6, 8))[0]
        if kind in "wzd":
            self.change_content(kind)
        elif kind == "u":
            self.chance.choice(list(self.devices.values())).table.clear()
        elif kind == "f":
            marks = self.knowledge.marks()
            self.engine.commit()
            self.knows(self.knowledge.flushed(marks))
        elif kind == "c":
            self.cut()
        elif kind == "h":
            self.toggle_metadata_snapshot()
        elif len(self.devices) > 1:
            self.delete(self.chance.choice([dev_id for dev_id in self.devices if dev_id != BASE]))

    def during_commit(self, device: str) -> None:
        """What other clients do meanwhile, as far as it needn't wait for the commit."""
        if device == "data":
            for _ in range(self.chance.randrange(3)):
                room = self.engine.admission.write_limit - self.engine.dirty.weight
                if min(room, self.engine.space.free_count) >= 2 * VIRTUAL_BLOCKS:
                    self.chance.choice(list(self.devices.values())).table.clear()
                    self.change_content(self.chance.choice("wwwz"))

    def change_content(self, kind: str) -> None:
        dev_id = self.chance.choice(list(self.devices))
        device, content = self.devices[dev_id], bytearray(self.knowledge.versions[dev_id][-1])
        begin = self.chance.randrange(SIZE // 512) * 512
        length = min(self.chance.choice((512, 4096, BLOCK, 3 * BLOCK)), SIZE - begin)
        if self.chance.random() < 0.4:
            begin = begin // BLOCK * BLOCK
            length = min(BLOCK, SIZE - begin)
        data = self.chance.randbytes(64) * (length // 64) if kind == "w" else bytes(length)
        low, high = begin, begin + length
        if kind == "d":  # only whole blocks are trimmed: the rest keeps its content
            low = -(-begin // BLOCK) * BLOCK
            high = SIZE if high == SIZE else high // BLOCK * BLOCK
        if low < high:
            content[low:high] = data[: high - low]
        self.knows(self.knowledge.writing(dev_id, bytes(content)))
        try:
            self.send(kind, device, data, begin)
        except NoSpaceError:  # some of its blocks may be written
            partly = device.pread(SIZE, 0)
            self.knowledge = self.knowledge.written().writing(dev_id, partly)
        self.knows(self.knowledge.written())

    def send(self, kind: str, device: ThinDevice, data: bytes, begin: int) -> None:
        with self.engine.gate.writing():
            if kind == "w":
                device.pwrite(data, begin)
            elif kind == "d":
                device.discard(begin, len(data))
            else:
                device.write_zeroes(begin, len(data))

    def cut(self) -> None:
        """A snapshot of a device, which is then written too: a clone."""
        if len(self.devices) > 3:
            return
        origin, snapshot = self.chance.choice(list(self.devices)), self.next_id
        self.next_id += 1
        marks = self.knowledge.marks()
        versions = {**self.knowledge.versions, snapshot: self.knowledge.versions[origin][-1:]}
        self.knows(Knowledge(versions, frozenset({snapshot})))
        cut(self.engine, origin, snapshot)
        self.knows(self.knowledge.flushed(marks))
        self.devices[snapshot] = self.engine.open_device(snapshot, SIZE, read_only=False)

    def delete(self, dev_id: int) -> None:
        """A snapshot goes."""
        del self.devices[dev_id]
        self.engine.devices.pop(dev_id)
        marks = self.knowledge.marks()
        self.knows(replace(self.knowledge, maybe=frozenset({dev_id})))
        delete(self.engine, dev_id)
        self.knows(self.knowledge.flushed(marks).without(dev_id))

    def toggle_metadata_snapshot(self) -> None:
        """Reserve or release the held root."""

        def toggle(metadata: PoolMetadata) -> None:
            if metadata.superblock.held_root:
                release_metadata_snap(metadata)
            else:
                reserve_metadata_snap(metadata)

        self.engine.change(Change(toggle, deletes=True))


def reopen(
    note: Knowledge | None, metadata: BlockDevice, data: BlockDevice, dirty: Path, *, power_cut: bool
) -> dict[int, bytes]:
    """The pool is sound, opens, holds what was known at the crash, and goes on working; returns what it held."""
    assert_sound(metadata)
    note = note or Knowledge({BASE: (bytes(SIZE),)})
    with running(metadata, data, dirty) as engine:
        found = {dev: engine.open_device(dev, SIZE).pread(SIZE, 0) for dev in engine.metadata.dev_ids()}
        note.explain(found, power_cut=power_cut)
        engine.devices.clear()
        with suppress(NoSpaceError):  # it may have been full
            write(engine, engine.open_device(BASE, SIZE, read_only=False), b"\7" * 4096, 3 * BLOCK)
        engine.commit()
        for dev_id in found.keys() - {BASE}:
            assert engine.open_device(dev_id, SIZE).pread(SIZE, 0) == found[dev_id]
    assert_sound(metadata)
    return found
