"""An independent power cut: our engine in a guest, on the real kernel's dm-log-writes, and every state that it noted.

guest    ubda = the disk, below log-writes; on it linear devices for metadata and data; our engine works there, and
         marks in the log what is known at each moment
here     the disk as of a prefix of the log, as a power cut there would have left it: sound by our check and (a sample)
         by both thin_checks; each sector holds what was flushed, or a later write
"""

from __future__ import annotations

import hashlib
import pickle
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.blockdev.memory import MemoryDevice
from replicator.thin import space
from replicator.units import MIB
from tests.support import kernel
from tests.support.engine_workload import DATA_BLOCKS, reopen
from tests.support.enginerig import BLOCK, Knowledge, formatted
from tests.support.judges import assert_clean
from tests.support.logged_disk import FLUSH, FUA, read_log

METADATA_BYTES = 4 * MIB
DATA_BYTES = DATA_BLOCKS * BLOCK
STEPS = 100
STATES_MAX = 160
JUDGED = 12
SCRIPT = """
import pickle
from pathlib import Path

from replicator.blockdev.file import FileDevice
from replicator.thin import space
from tests.support import guest
from tests.support.engine_workload import Workload
from tests.support.enginerig import running

space.STOCK_BLOCKS = 4
disk, log = guest.device(0), guest.device(1)
guest.create("logged", f"0 {{guest.sectors(disk)}} log-writes {{disk}} {{log}}")
sectors = {metadata_bytes} // 512, {data_bytes} // 512
places = [
    guest.create("metadata", f"0 {{sectors[0]}} linear /dev/mapper/logged 0"),
    guest.create("data", f"0 {{sectors[1]}} linear /dev/mapper/logged {{sectors[0]}}"),
]


class Log:
    def __init__(self):
        self.notes = []

    def mark(self, note):
        guest.message("logged", "mark", len(self.notes))
        self.notes.append(note)


log = Log()
metadata, data = map(FileDevice, places)
with running(metadata, data, Path("/run/dirty")) as engine:
    workload = Workload(engine, log, {seed})
    for _ in range({steps}):
        workload.step()
for device in (metadata, data):
    device.close()
guest.teardown()
Path({notes!r}).write_bytes(pickle.dumps(log.notes))
print(len(log.notes))
"""


@pytest.fixture(autouse=True)
def small_stock(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the guest: what was freed too early would be given again at once."""
    monkeypatch.setattr(space, "STOCK_BLOCKS", 4)


def states(log: Path, image: bytearray, notes: list[Knowledge]) -> Iterator[tuple[int, Knowledge | None]]:
    """(number of entries, what was known) of each prefix that differs from the one before; `image` follows."""
    note: Knowledge | None = None
    for number, entry in enumerate(read_log(log), 1):
        if entry.mark.isdigit():
            note = notes[int(entry.mark)]
        elif entry.data or entry.flags & (FLUSH | FUA):
            entry.apply(image)
            yield number, note


@pytest.mark.long
@pytest.mark.usefixtures("thin_judges")
def test_every_prefix_of_what_reached_the_disk_is_a_sound_pool(guest: kernel.Kernel, tmp_path: Path) -> None:
    disk, log, notes_file = tmp_path / "disk", tmp_path / "log", tmp_path / "notes"
    chance = random.Random(7)
    before = formatted(METADATA_BYTES, DATA_BLOCKS).content() + chance.randbytes(DATA_BYTES)  # old content never shows
    disk.write_bytes(before)
    with log.open("wb") as file:
        file.truncate(512 * MIB)
    words = {"metadata_bytes": METADATA_BYTES, "data_bytes": DATA_BYTES, "steps": STEPS}
    guest.boot(SCRIPT.format(seed=11, notes=str(notes_file), **words), [disk, log], faults=True)
    notes = pickle.loads(notes_file.read_bytes())
    prefixes = list(states(log, bytearray(before), notes))
    chosen = set(chance.sample(range(len(prefixes)), min(STATES_MAX, len(prefixes))))
    judged = set(chance.sample(sorted(chosen), JUDGED))
    seen: set[bytes] = set()
    image = bytearray(before)
    for place, (number, note) in enumerate(states(log, image, notes)):
        if place not in chosen:
            continue
        seen.add(hashlib.sha256(image).digest())
        metadata, data = bytes(image[:METADATA_BYTES]), bytes(image[METADATA_BYTES:])
        if place in judged:
            (tmp_path / "judged").write_bytes(metadata)
            assert_clean(tmp_path / "judged")
        dirty = tmp_path / f"dirty-{number}"
        reopen(note, MemoryDevice(content=metadata), MemoryDevice(content=data), dirty, power_cut=True)
        dirty.unlink()
    assert bytes(image) == disk.read_bytes(), "the whole log makes the disk as the kernel left it"
    assert len(notes) > STEPS and len(seen) > STATES_MAX // 2
    print(f"{len(prefixes)} prefixes of the kernel's log, {len(seen)} distinct states opened, {JUDGED} judged")
