"""Crashes of a pool with a mirrored metadata: what each leaves of both copies, one of them destroyed, and opened again.

The workloads, disks and promises are those of tests.support.crash_runs; the engine works over a MirroredDevice of two
simulated disks with one journal, so that a power cut takes of each copy's unflushed writes what it likes. What a crash
left is put into real files, and opened by the real code (pool/metadata_device); the oracle gets what that reads.

    destroyed     what becomes of the copy
    nothing       as the crash left it
    gone          there is no such file
    short         it has no bytes
    garbage       other bytes everywhere
    holes         each block zeroed, or not

mirror.json is modelled by its promise, old or new: what is written of it unflushed is there whole or not at all.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

from replicator.blockdev.faulty import Fault, FaultyDevice
from replicator.blockdev.interface import BlockDevice
from replicator.errors import DamageError
from replicator.pdata.mirror import MirroredDevice, MirrorState, Side
from replicator.pool.metadata_device import NAMES, open_metadata, settle_metadata
from replicator.pool.mirror_check import compare_reads, note_reads
from replicator.pool.mirror_state import STATE, VERSION
from replicator.pool.view import CatalogueView
from replicator.thin.check import check
from replicator.thin.report import Findings
from replicator.thin.superblock import read_superblock
from replicator.units import METADATA_BLOCK_BYTES
from tests.support.crash_disk import DATA, METADATA, MIRROR, CrashDisk, CrashJournal, Image, Instant
from tests.support.crash_knowledge import Note
from tests.support.crash_oracle import OTHER_BOOT, Explorer
from tests.support.crash_pool import LIVE, Base, base_pool, opened
from tests.support.crash_runs import first_note
from tests.support.crash_workloads import Player

Views = dict[int, CatalogueView]
JSON_BYTES = 4096
DESTROYED = ("gone", "short", "garbage", "holes")
_DISKS = {Side.FIRST: METADATA, Side.SECOND: MIRROR}


@dataclass(frozen=True, slots=True)
class Wreck:
    """What a crash left: both copies (None: no such file), mirror.json, and the rest of the pool."""

    copies: dict[Side, bytes | None]
    state: bytes
    data: bytes
    dirty: bytes
    catalogue_id: int
    kind: str
    tear_bytes: int

    @property
    def lost(self) -> Side | None:
        """The copy that mirror.json calls lost."""
        name = json.loads(self.state)["lost"] if self.state else None
        return None if name is None else Side(name)


@dataclass(slots=True)
class Sweep:
    """Opens wrecks in `folder` and asks `explorer`; counts what it opened, by what was destroyed."""

    folder: Path
    explorer: Explorer
    chance: random.Random
    of_dead: int = 8  # ways to destroy a copy that are tried where the process died; one where the machine did
    opened: Counter[str] = field(default_factory=Counter)
    refused: int = 0

    def crash(self, word: str, faults: Iterable[Fault] = (), failing: Side = Side.FIRST) -> bool:
        """Every crash during the last operation of `word`; whether a fault was met, of the copy `failing`."""
        base, journal = base_pool(), CrashJournal()
        faulty: list[FaultyDevice] = []
        with opened(
            base.image, base.views, journal=journal, live=LIVE, over=_over(journal, base, faults, failing, faulty)
        ) as crash:
            player = Player(crash, base, self.explorer.seed)
            for letter in word[:-1]:
                player.play(letter)
            first = 0 if faulty[0].met else len(journal.events)
            player.play(word[-1])
            journal.look_at_dirty()
        views = crash.catalogue.views
        for instant in journal.instants(first):
            note = instant.note or first_note(base)
            for wreck in self._wrecks(instant):
                self._look(wreck, note, views, f"{word!r} at {instant.number}")
        return bool(faulty[0].met)

    def resync(self, lost: Side) -> None:
        """Every crash while a copy that lacks a cut is brought up to date."""
        base, journal = base_pool(), CrashJournal()
        with opened(base.image, base.views, live=LIVE) as crash:
            Player(crash, base, self.explorer.seed).play("c")
        newer = crash.metadata.content()
        journal.disk(DATA, b"")
        was = {lost: base.image.metadata, lost.other: newer}
        copies: dict[Side, BlockDevice] = {side: journal.disk(_DISKS[side], was[side]) for side in Side}
        state = MirrorState(lost, 1, "gone")
        with closing(MirroredDevice("metadata", copies, state, _saving(journal, state))) as device:
            device.settle(lambda _: True)
        for instant in journal.instants():
            for wreck, destroyed in self._wrecks(instant):
                told = f"{lost} at {instant.number}, {wreck.kind}, destroyed: {destroyed}, lost: {wreck.lost}"
                good_one_is_gone = wreck.lost is not None and destroyed.split()[0] == wreck.lost.other
                try:
                    found = self._open(wreck, destroyed)
                except DamageError as error:
                    assert good_one_is_gone, f"{told}: {error}"
                    self.refused += 1
                    continue
                assert found == newer or (good_one_is_gone and destroyed.endswith("holes")), told
                self.opened[destroyed] += 1

    def _wrecks(self, instant: Instant) -> Iterator[tuple[Wreck, str]]:
        for kind, tear_bytes, disks in instant.all_disks(self.chance):
            boot = instant.dirty[16:32] if kind == "dead" else OTHER_BOOT
            dirty = instant.dirty[:16] + boot + instant.dirty[32:] if instant.dirty else b""
            whole = {write.data for write in instant.volatile if write.device == "state"}
            state = (disks["state"] if disks["state"] in whole else instant.durable["state"]).rstrip(b"\0")
            copies: dict[Side, bytes | None] = {side: disks[name] for side, name in _DISKS.items()}
            wreck = Wreck(copies, state, disks[DATA], dirty, instant.catalogue_id, kind, tear_bytes)
            yield wreck, "nothing"
            every = [(side, how) for side in Side for how in DESTROYED]
            for side, how in self.chance.sample(every, self.of_dead if kind == "dead" else 1):
                yield self._destroyed(wreck, side, how), f"{side} {how}"

    def _destroyed(self, wreck: Wreck, side: Side, how: str) -> Wreck:
        was = wreck.copies[side]
        assert was is not None
        blocks = range(0, len(was), METADATA_BLOCK_BYTES)
        holes = (
            bytes(METADATA_BLOCK_BYTES) if self.chance.random() < 0.5 else was[at : at + METADATA_BLOCK_BYTES]
            for at in blocks
        )
        left = {"gone": None, "short": b"", "garbage": self.chance.randbytes(len(was)), "holes": b"".join(holes)}[how]
        return Wreck(
            {**wreck.copies, side: left},
            wreck.state,
            wreck.data,
            wreck.dirty,
            wreck.catalogue_id,
            wreck.kind,
            wreck.tear_bytes,
        )

    def _look(self, found: tuple[Wreck, str], note: Note, views: Views, where: str) -> None:
        wreck, destroyed = found
        told = f"{where}, {wreck.kind}, destroyed: {destroyed}, lost: {wreck.lost}"
        good_one_is_gone = wreck.lost is not None and destroyed.split()[0] == wreck.lost.other
        try:
            metadata = self._open(wreck, destroyed)
        except DamageError as error:
            assert good_one_is_gone, f"{told}: {error}"
            self.refused += 1
            return
        except AssertionError as error:
            raise AssertionError(f"{told}: {error}") from error
        if good_one_is_gone and destroyed.endswith("holes"):
            return  # nobody has the blocks that are left of neither
        assert not good_one_is_gone, f"{told}: opened from a lost copy"
        self.opened[destroyed] += 1
        image = Image(metadata, wreck.data, wreck.dirty, wreck.catalogue_id, wreck.kind, wreck.tear_bytes)
        try:
            self.explorer.look(image, note, views, power_cut=wreck.kind != "dead")
        except AssertionError as error:
            raise AssertionError(f"{told}: {error}") from error

    def _open(self, wreck: Wreck, destroyed: str) -> bytes:
        """The metadata that the real code reads; both copies agree afterwards, or one is durably lost."""
        self._put(wreck)
        with closing(open_metadata(self.folder, read_only=False)) as device:
            assert isinstance(device, MirroredDevice)
            settle_metadata(device, read_superblock(device))
            content = device.pread(device.size_bytes, 0)
            device.flush()
            unused = device.unused
        kept = json.loads((self.folder / STATE).read_bytes())
        gone = {side for side in Side if wreck.copies[side] is None}
        assert gone == ({unused[0]} if unused else set()), f"not in use: {unused}"
        assert kept["lost"] == (unused[0] if unused else None), f"mirror.json says {kept}"
        if not gone and destroyed != f"{Side.SECOND} holes":
            self._require_equal()
        return content

    def _put(self, wreck: Wreck) -> None:
        for name, content in (
            *((NAMES[side], wreck.copies[side]) for side in Side),
            (STATE, wreck.state or None),
            ("dirty", wreck.dirty or None),
        ):
            if content is None:
                (self.folder / name).unlink(missing_ok=True)
            else:
                (self.folder / name).write_bytes(content)

    def _require_equal(self) -> None:
        first, second = ((self.folder / name).read_bytes() for name in NAMES.values())
        if first == second:
            return
        findings = Findings()
        with closing(open_metadata(self.folder, settled=True)) as device:
            note_reads(device)
            check(device)
            compare_reads(device, findings)
        assert not findings.kept, [str(each) for each in findings.kept]


def _over(
    journal: CrashJournal, base: Base, faults: Iterable[Fault], failing: Side, faulty: list[FaultyDevice]
) -> Callable[[CrashDisk], BlockDevice]:
    """What the engine works over: both copies, one of them with faults, which is put into `faulty`."""

    def over(first: CrashDisk) -> BlockDevice:
        copies: dict[Side, BlockDevice] = {Side.FIRST: first, Side.SECOND: journal.disk(MIRROR, base.image.metadata)}
        save = _saving(journal, MirrorState())
        faulty.append(FaultyDevice(copies[failing], faults))
        copies[failing] = faulty[0]
        return MirroredDevice("metadata", copies, MirrorState(), save, clock_ns=lambda: 1)

    return over


def _saving(journal: CrashJournal, state: MirrorState) -> Callable[[MirrorState], None]:
    """What keeps the state, on a disk of the journal that has `state` on it."""
    disk = journal.disk("state", _packed(state))

    def save(now: MirrorState) -> None:
        disk.pwrite(_packed(now), 0)
        disk.flush()

    return save


def _packed(state: MirrorState) -> bytes:
    return json.dumps({"version": VERSION, **asdict(state)}).encode().ljust(JSON_BYTES, b"\0")
