"""Disks that keep a journal of all that reaches them, in one order for several, and every state that a crash can leave.

    journal = Journal()
    metadata, data = journal.device("metadata", content), journal.device("data", content)
    …                                        # a workload, with journal.mark(note) where something was answered
    for crash in journal.crashes():          # before each operation, and at the end
        crash.dead_process("metadata")       # the process died: every write is there
        crash.power_cut("metadata", chance)  # the machine died: what was flushed, and a choice of the rest

The fault model of a power cut: what a flush covered is there; each later write is lost, whole, or torn behind one of
its 512-byte sectors, whatever became of the others.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from replicator._buffer import Buffer
from replicator.blockdev.memory import MemoryDevice
from replicator.units import SECTOR_BYTES


@dataclass(frozen=True, slots=True)
class Step:
    """One operation that reached a disk, with what the workload had noted before it and what `watch` saw then."""

    device: str
    offset_bytes: int
    data: bytes | None  # None: a flush
    note: Any
    seen: Any


@dataclass(slots=True)
class Crash:
    """The instant before a step: each disk's content, and its writes since its last flush."""

    number: int
    note: Any
    seen: Any
    durable: dict[str, bytearray]
    volatile: dict[str, list[tuple[int, bytes]]]

    def dead_process(self, device: str) -> MemoryDevice:
        """The disk when only the process died."""
        image = bytearray(self.durable[device])
        for offset, data in self.volatile[device]:
            image[offset : offset + len(data)] = data
        return MemoryDevice(content=image, name=device)

    def power_cut(self, device: str, chance: random.Random) -> MemoryDevice:
        """The disk when the machine died."""
        image = bytearray(self.durable[device])
        for offset, data in self.volatile[device]:
            fate = chance.random()
            kept = 0 if fate < 0.4 else len(data)
            if fate > 0.7:
                kept = chance.randrange(len(data) // SECTOR_BYTES + 1) * SECTOR_BYTES
            image[offset : offset + kept] = data[:kept]
        return MemoryDevice(content=image, name=device)


@dataclass(slots=True)
class Journal:
    """What reached the disks so far; `watch` is called before each step, and its answer kept with it.

    Reads are steps that change nothing: crashes come before them, too. `at_flush` is called, in the flushing thread,
    before a device of that name is flushed: a workload may go on there, while a commit is under way.
    """

    watch: Callable[[], Any] = lambda: None
    at_flush: Callable[[str], None] = lambda _: None
    steps: list[Step] = field(default_factory=list)
    note: Any = None
    _initial: dict[str, bytes] = field(default_factory=dict)
    _writing: threading.Lock = field(default_factory=threading.Lock)

    def device(self, name: str, content: Buffer) -> RecordingDevice:
        """A disk that begins with `content`, all of it durable."""
        self._initial[name] = bytes(content)
        return RecordingDevice(self, name, content)

    def mark(self, note: Any) -> None:
        """From here on, this is what the workload knows."""
        with self._writing:
            self.note = note

    def record(self, device: str, offset_bytes: int, data: bytes | None) -> None:
        """One operation, before it is carried out."""
        with self._writing:
            self.steps.append(Step(device, offset_bytes, data, self.note, self.watch()))

    def crashes(self) -> Iterator[Crash]:
        """The instant before each step, and after the last one; valid until the next is asked for."""
        durable = {name: bytearray(content) for name, content in self._initial.items()}
        volatile: dict[str, list[tuple[int, bytes]]] = {name: [] for name in self._initial}
        for number, step in enumerate(self.steps):
            yield Crash(number, step.note, step.seen, durable, volatile)
            if step.data is not None:
                volatile[step.device].append((step.offset_bytes, step.data))
                continue
            for offset, data in volatile[step.device]:
                durable[step.device][offset : offset + len(data)] = data
            volatile[step.device] = []
        yield Crash(len(self.steps), self.note, self.watch(), durable, volatile)


class RecordingDevice(MemoryDevice):
    """A disk in memory that tells its journal first."""

    def __init__(self, journal: Journal, name: str, content: Buffer) -> None:
        super().__init__(content=content, name=name)
        self._journal = journal

    def pwrite(self, data: Buffer, offset_bytes: int) -> None:
        self._journal.record(self.name, offset_bytes, bytes(data))
        super().pwrite(data, offset_bytes)

    def pwritev(self, parts: Sequence[Buffer], offset_bytes: int) -> None:
        self.pwrite(b"".join(parts), offset_bytes)

    def pread_into(self, target: Buffer, offset_bytes: int) -> None:
        self._journal.record(self.name, offset_bytes, b"")
        super().pread_into(target, offset_bytes)

    def flush(self) -> None:
        self._journal.at_flush(self.name)
        self._journal.record(self.name, 0, None)
        super().flush()
