"""A power cut by dm-flakey beneath our engine, and the judgement of what it left. Runs in the guest.

    disk ── dm-flakey "flaky" ─┬─ linear "metadata"   what the engine opens, as CutDisk
                               └─ linear "data"

Invariants
  F1  From the instant of the cut on, no write reaches the disk, and every one is answered as done.
  F2  Nothing of the page cache outlives the cut: the engine alone has the devices open, and with the last descriptor
      the kernel writes out (that is, drops) what is left, and forgets it.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from replicator._buffer import Buffer
from replicator.blockdev.file import FileDevice
from replicator.thin import space
from tests.support import guest
from tests.support.engine_workload import BASE, DATA_BLOCKS, SIZE, Workload, reopen
from tests.support.enginerig import BLOCK, Knowledge, formatted, running

STEPS_MAX = 400
STEPS_AFTER = 12
CALLS = (20, 250)  # the cut comes somewhere among so many of the engine's writes and flushes


class Cutter:
    """Counts the writes and flushes of the engine's disks, and cuts before one of them."""

    def __init__(self, left: int, cut: Callable[[], None]) -> None:
        self.left, self._cut, self.place = left, cut, ""

    def before(self, place: str) -> None:
        """A write or a flush is about to be made."""
        self.left -= 1
        if self.left == 0:
            self.place = place
            self._cut()


class CutDisk(FileDevice):
    """A disk that tells the cutter what it is about to do."""

    def __init__(self, path: Path, cutter: Cutter) -> None:
        super().__init__(path)
        self._cutter = cutter

    def pwrite(self, data: Buffer, offset_bytes: int) -> None:
        self._cutter.before(f"{self._path.name} write")
        super().pwrite(data, offset_bytes)

    def pwritev(self, parts: Sequence[Buffer], offset_bytes: int) -> None:
        self._cutter.before(f"{self._path.name} writev")
        super().pwritev(parts, offset_bytes)

    def flush(self) -> None:
        self._cutter.before(f"{self._path.name} flush")
        super().flush()


class Notes:
    """The last that the workload told."""

    last = Knowledge({BASE: (bytes(SIZE),)})

    def mark(self, note: Knowledge) -> None:
        self.last = note


class FlakyDisk:
    """The disk at `below`, honest at first, and on it the places of the engine's metadata and data."""

    def __init__(self, below: Path, metadata_bytes: int) -> None:
        self._table = f"0 {guest.sectors(below)} flakey {below} 0"
        self._metadata_bytes = metadata_bytes
        flaky = guest.create("flaky", f"{self._table} 60 0")
        sectors = metadata_bytes // 512, DATA_BLOCKS * BLOCK // 512
        self.places = [
            guest.create("metadata", f"0 {sectors[0]} linear {flaky} 0"),
            guest.create("data", f"0 {sectors[1]} linear {flaky} {sectors[0]}"),
        ]

    def drop_writes(self) -> None:
        """From now on (F1)."""
        self._become("0 60 1 drop_writes")

    def be_honest(self) -> None:
        """Writes are kept again."""
        self._become("60 0")

    def _become(self, how: str) -> None:
        with guest.suspended("flaky"):
            guest.dmsetup("reload", "flaky", "--table", f"{self._table} {how}")

    def cut_once(self, seed: int, keep: Path | None) -> dict[str, object]:
        """One run with one cut: where it came, and whether anything was lost; `keep` gets the metadata that is left."""
        space.STOCK_BLOCKS = 4  # what was freed too early would be given again at once
        chance, notes, known = random.Random(seed), Notes(), list[Knowledge]()
        guest.write(self.places[0], 0, formatted(self._metadata_bytes, DATA_BLOCKS).content())
        guest.write(self.places[1], 0, chance.randbytes(DATA_BLOCKS * BLOCK))  # old content never shows

        def cut() -> None:
            self.drop_writes()
            known.append(notes.last)

        cutter = Cutter(chance.randrange(*CALLS), cut)
        work(self.places, cutter, notes, seed)
        self.be_honest()
        if keep is not None:
            shutil.copyfile(self.places[0], keep)
        with ExitStack() as held:
            metadata, data = (held.enter_context(FileDevice(place)) for place in self.places)
            found = reopen(known[0], metadata, data, Path(f"/run/after-{seed}"), power_cut=True)
        newest = {dev_id: contents[-1] for dev_id, contents in known[0].versions.items()}
        return {"place": cutter.place, "lost": found != newest}


def work(places: list[Path], cutter: Cutter, notes: Notes, seed: int) -> None:
    """Until the cut, and a little beyond, when nothing that the engine does counts any more."""
    with ExitStack() as held:
        metadata, data = (held.enter_context(CutDisk(place, cutter)) for place in places)
        engine = held.enter_context(running(metadata, data, Path(f"/run/dirty-{seed}")))
        workload, after = Workload(engine, notes, seed), STEPS_AFTER
        for _ in range(STEPS_MAX):
            workload.step()
            after -= cutter.left <= 0
            if not after:
                break
    assert not after, "the cut never came"
