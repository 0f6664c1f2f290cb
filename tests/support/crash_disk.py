"""A simulated disk: it keeps a journal of all that reaches it, and makes each image that a power cut could have left.

Several disks share one journal, so that what they were told stands in one order: `metadata`, `data`, the stores into
`dirty`, and the instants at which the catalogue had a transaction synced.

    journal = CrashJournal()
    metadata, data = journal.disk("metadata", content), journal.disk("data", content)
    …                                              # a workload, with journal.mark(note) where something was answered
    for instant in journal.instants():             # before each event, and after the last one
        instant.dead_process()                     # the process died: every write is there, `dirty` as it was
        for cut in instant.power_cuts(chance, …):  # the machine died: what was flushed, and a choice of the rest

The fault model of a power cut. What a flush covered is there. Writes after it count by units (4 KiB of a metadata
write, a whole data write), and any of them may be there, whatever became of the others:

    kind       which units are there
    none       those of no write
    prefix     the first n, of both disks in their one order
    dropped    all but one
    alone      one, and none before it: reordered between two flushes
    subset     any: all of them where there are few, else by chance
    torn       a prefix whose last unit holds its first bytes only, or any of its sectors, in steps of 512 or of 32

Invariants
  T1  Block 0 of the metadata is one sector's worth, and a sector is written whole or not at all (what NVMe and SCSI
      promise, and what dm-thin builds on): it is torn at 512, never at 32.
  T2  A unit is a write of one call, so a unit that was written twice between flushes is two units, in order.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple, cast

from replicator._buffer import Buffer
from replicator.blockdev.memory import MemoryDevice
from replicator.units import METADATA_BLOCK_BYTES, SECTOR_BYTES

METADATA, DATA, DIRTY, CATALOGUE = "metadata", "data", "dirty", "catalogue"
MIRROR = "mirror"  # a second copy of the metadata, where there is one (tests.support.mirror_crashes)
SMALLEST_TEAR_BYTES = 32
FEW_UNITS = 3  # so many units: all their subsets are made


class Write(NamedTuple):
    """Bytes on their way to a disk; `grown` is the length that the disk has from then on (0: as before)."""

    device: str
    offset_bytes: int
    data: bytes
    grown: int = 0


class Event(NamedTuple):
    """One thing in the journal: a write, a flush (data None) or a catalogue's commit; with what was known before it."""

    device: str
    write: Write | None
    note: Any


class Image(NamedTuple):
    """What a crash leaves: both disks, `dirty`, and the newest transaction that the catalogue holds.

    `tear_bytes`: the smallest piece that is wholly old or wholly new. `volatile`: what isn't on the platters yet,
    though the next opening reads it (the process alone died): (disk, content on the platters, writes since).
    """

    metadata: bytes
    data: bytes
    dirty: bytes
    catalogue_id: int
    kind: str
    tear_bytes: int = SECTOR_BYTES
    durable: tuple[bytes, bytes] | None = None
    volatile: tuple[Write, ...] = ()


@dataclass(slots=True)
class Instant:
    """The instant before an event: what is on each platter, and what was written since."""

    number: int
    note: Any
    durable: dict[str, bytes]
    volatile: list[Write]
    dirty: bytes
    catalogue_id: int

    def dead_process(self) -> Image:
        """The process died: the page cache outlives it."""
        disks = self._disks((write, None) for write in self.volatile)
        durable = self.durable[METADATA], self.durable[DATA]
        return Image(*disks, self.dirty, self.catalogue_id, "dead", SECTOR_BYTES, durable, tuple(self.volatile))

    def power_cuts(self, chance: random.Random, *, thorough: bool) -> Iterator[Image]:
        """The machine died; `dirty` has what chance wrote back."""
        units = list(_units(self.volatile))
        for kind, tear_bytes, fates in _choices(units, chance, thorough=thorough):
            metadata, data = self._disks(zip(units, fates, strict=True))
            yield Image(metadata, data, self.dirty, self.catalogue_id, kind, tear_bytes)

    def all_disks(self, chance: random.Random) -> Iterator[tuple[str, int, dict[str, bytes]]]:
        """(kind, smallest piece, every disk by its name): after the process died, and after power cuts."""
        units = list(_units(self.volatile))
        dead: list[Kept] = [None] * len(units)
        for kind, tear_bytes, fates in [("dead", SECTOR_BYTES, dead), *_choices(units, chance, thorough=False)]:
            there = [(unit, kept) for unit, kept in zip(units, fates, strict=True) if kept is None or kept]
            yield kind, tear_bytes, {name: _written(it, name, there) for name, it in self.durable.items()}

    def _disks(self, fates: Any) -> tuple[bytes, bytes]:
        """Both disks after these (write, mask) pairs: None keeps the write whole, an empty list loses it."""
        there = [(write, kept) for write, kept in fates if kept is None or kept]
        metadata, data = (_written(self.durable[name], name, there) for name in (METADATA, DATA))
        return metadata, data


def _written(content: bytes, name: str, there: Sequence[tuple[Write, Kept]]) -> bytes:
    """`content` with what is there of the writes to that disk; the very same object when that is nothing."""
    mine = [(write, kept) for write, kept in there if write.device == name]
    if not mine:
        return content
    disk = bytearray(content)
    for write, kept in mine:
        if kept is None and write.grown > len(disk):
            disk.extend(bytes(write.grown - len(disk)))
        for begin, until in [(0, len(write.data))] if kept is None else kept:
            end = min(until, len(disk) - write.offset_bytes)
            if begin < end:
                disk[write.offset_bytes + begin : write.offset_bytes + end] = write.data[begin:end]
    return bytes(disk)


Kept = list[tuple[int, int]] | None
"""What is left of a unit: None all of it, else these stretches of its bytes."""


def _units(writes: Sequence[Write]) -> Iterator[Write]:
    for write in writes:
        if write.device not in (METADATA, MIRROR) or len(write.data) <= METADATA_BLOCK_BYTES:
            yield write
            continue
        for at in range(0, len(write.data), METADATA_BLOCK_BYTES):
            yield Write(write.device, write.offset_bytes + at, write.data[at : at + METADATA_BLOCK_BYTES])


def _choices(units: list[Write], chance: random.Random, *, thorough: bool) -> Iterator[tuple[str, int, Sequence[Kept]]]:
    """(kind, smallest piece, the fate of each unit)."""
    count = len(units)
    whole: list[Kept] = [None] * count
    if count <= FEW_UNITS:
        whole_or_lost: tuple[Kept, Kept] = (None, [])
        for there in product(whole_or_lost, repeat=count):
            yield "subset", SECTOR_BYTES, there
    else:
        yield "none", SECTOR_BYTES, [[] for _ in units]
        yield "prefix", SECTOR_BYTES, whole
        picked = range(count) if thorough else sorted({chance.randrange(count) for _ in range(2)})
        for place in picked:
            yield "prefix", SECTOR_BYTES, [*whole[:place], *([] for _ in units[place:])]
            yield "dropped", SECTOR_BYTES, [*whole[:place], [], *whole[place + 1 :]]
            yield "alone", SECTOR_BYTES, [None if at == place else [] for at in range(count)]
        for _ in range(16 if thorough else 1):
            yield "subset", SECTOR_BYTES, [chance.choice((None, [])) for _ in units]
    for place in range(count) if thorough else ([chance.randrange(count)] if count else []):
        for tear_bytes in (SECTOR_BYTES, SMALLEST_TEAR_BYTES) * (3 if thorough else 1):
            if tear_bytes == SECTOR_BYTES or not _is_block0(units[place]):
                torn = _torn(len(units[place].data), tear_bytes, chance)
                yield f"torn at {tear_bytes}", tear_bytes, [*whole[:place], torn, *([] for _ in units[place + 1 :])]


def _is_block0(unit: Write) -> bool:
    return unit.device in (METADATA, MIRROR) and unit.offset_bytes == 0


def _torn(length_bytes: int, tear_bytes: int, chance: random.Random) -> Kept:
    """The first bytes of a unit, or any of its pieces."""
    pieces = max(1, -(-length_bytes // tear_bytes))
    if chance.random() < 0.5:
        return [(0, chance.randrange(pieces) * tear_bytes)]
    kept = [at for at in range(pieces) if chance.random() < 0.5]
    return [(at * tear_bytes, min((at + 1) * tear_bytes, length_bytes)) for at in kept]


@dataclass(slots=True)
class CrashJournal:
    """What reached the disks, in order. `at_flush(name)` is called in the flushing thread before a disk is flushed."""

    at_flush: Callable[[str], None] = lambda _: None
    recording: bool = True
    events: list[Event] = field(default_factory=list)
    note: Any = None
    _disks: dict[str, bytes] = field(default_factory=dict)
    _before: list[Write] = field(default_factory=list)
    _catalogue_id: int = 0
    _dirty: Callable[[], bytes] | None = None
    _dirty_seen: bytes = b""
    _dirty_first: bytes = b""
    _writing: threading.RLock = field(default_factory=threading.RLock)

    def disk(self, name: str, content: bytes, *, durable: bytes | None = None) -> CrashDisk:
        """A disk that begins with `content`, of which `durable` is on the platter (default: all of it)."""
        self._disks[name] = content if durable is None else durable
        return CrashDisk(self, name, content)

    def begin(self, dirty: bytes, catalogue_id: int, volatile: Sequence[Write] = ()) -> None:
        """What there was before: `dirty`, the catalogue's newest id, and writes that were never flushed."""
        self._dirty_first = self._dirty_seen = dirty
        self._catalogue_id = catalogue_id
        self._before = list(volatile)

    @property
    def last_dirty(self) -> bytes:
        """What `dirty` held when it was looked at last."""
        return self._dirty_seen

    def watch_dirty(self, content: Callable[[], bytes]) -> None:
        """From now on this is what `dirty` holds; looked at before and after each event."""
        self._dirty = content

    def mark(self, note: Any) -> None:
        """From here on, this is what the workload knows."""
        with self._writing:
            self.look_at_dirty()
            self.note = note

    def look_at_dirty(self) -> None:
        """Note a store into `dirty` that came since."""
        with self._writing:
            now = self._dirty_seen if self._dirty is None else self._dirty()
            if now != self._dirty_seen and self.recording:
                self._dirty_seen = now
                self.events.append(Event(DIRTY, Write(DIRTY, 0, now), self.note))

    def record(self, write: Write) -> None:
        """A write, before it is carried out."""
        with self._writing:
            if self.recording:
                self.look_at_dirty()
                self.events.append(Event(write.device, write, self.note))

    def flushing(self, device: str) -> None:
        """A flush, before it is carried out."""
        with self._writing:
            if self.recording:
                self.look_at_dirty()
                self.events.append(Event(device, None, self.note))

    def staged(self, transaction_id: int) -> None:
        """The catalogue has synced the rows of this id."""
        self.record(Write(CATALOGUE, transaction_id, b""))

    def instants(self, first: int = 0) -> Iterator[Instant]:
        """The instant before each event from number `first` on, and after the last; valid until the next is asked."""
        now = Instant(0, None, dict(self._disks), list(self._before), self._dirty_first, self._catalogue_id)
        for number, event in enumerate(self.events):
            if number >= first:
                now.number, now.note = number, event.note
                yield now
            _carry_out(now, event)
        now.number, now.note = len(self.events), self.note
        yield now


def _carry_out(now: Instant, event: Event) -> None:
    if event.write is None:
        settled: list[tuple[Write, Kept]] = [(write, None) for write in now.volatile if write.device == event.device]
        now.volatile = [write for write in now.volatile if write.device != event.device]
        now.durable[event.device] = _written(now.durable[event.device], event.device, settled)
    elif event.device == DIRTY:
        now.dirty = event.write.data
    elif event.device == CATALOGUE:
        now.catalogue_id = event.write.offset_bytes
    else:
        now.volatile.append(event.write)


class CrashDisk(MemoryDevice):
    """A disk in memory that tells its journal first; what it began with is copied when it is first written."""

    def __init__(self, journal: CrashJournal, name: str, content: bytes) -> None:
        super().__init__(name=name)
        self._bytes = cast("bytearray", content)
        self._journal = journal

    def content(self) -> bytes:
        """Everything in it: what it began with, the very same object, until something is written."""
        return bytes(self._bytes)

    def pwrite(self, data: Buffer, offset_bytes: int) -> None:
        self._journal.record(Write(self.name, offset_bytes, bytes(data)))
        with self._writing:
            if not isinstance(self._bytes, bytearray):
                self._bytes = bytearray(self._bytes)
        super().pwrite(data, offset_bytes)

    def pwritev(self, parts: Sequence[Buffer], offset_bytes: int) -> None:
        self.pwrite(b"".join(parts), offset_bytes)

    def flush(self) -> None:
        self._journal.at_flush(self.name)
        self._journal.flushing(self.name)

    def grow(self, size_bytes: int) -> None:
        self._journal.record(Write(self.name, self.size_bytes, b"", grown=size_bytes))
        super().grow(size_bytes)
