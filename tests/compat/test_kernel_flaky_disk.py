"""Another power cut by the real kernel: our engine on a dm-flakey disk that from one instant on drops every write.

guest    ubda, below dm-flakey; on it linear devices for metadata and data; our engine writes there. In the middle of
         any write or flush of its own the disk begins to drop writes and to say that all is well. The engine goes on
         believing, and is closed. What was only in the page cache, or came later, is lost

Then the disk is honest again, and the pool is opened as after another boot, without its `dirty`: it is sound, and each
sector holds what was flushed at that instant, or a later write.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from replicator.units import MIB
from tests.support import kernel
from tests.support.engine_workload import DATA_BLOCKS
from tests.support.enginerig import BLOCK
from tests.support.judges import assert_clean

METADATA_BYTES = 2 * MIB
DATA_BYTES = DATA_BLOCKS * BLOCK
CUTS = 12
JUDGED = 4
SEED = 40  # with the next eleven: cuts before each kind of call, and a commit that flushes the data last is found
SCRIPT = """
import json
from pathlib import Path

from tests.support import guest
from tests.support.flaky_power import FlakyDisk

disk, told = FlakyDisk(guest.device(0), {metadata_bytes}), []
for number in range({cuts}):
    kept = Path({folder!r}) / f"metadata-{{number}}" if number < {judged} else None
    told.append(disk.cut_once({seed} + number, kept))
guest.teardown()
print(json.dumps(told))
"""


@pytest.mark.usefixtures("thin_judges")
def test_what_was_flushed_before_the_disk_dropped_everything_is_there(guest: kernel.Kernel, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(METADATA_BYTES + DATA_BYTES)
    words = {"seed": SEED, "cuts": CUTS, "judged": JUDGED, "metadata_bytes": METADATA_BYTES, "folder": str(tmp_path)}
    result = guest.boot(SCRIPT.format(**words), [disk], faults=True)
    told = json.loads(result.output)
    assert_clean(*(tmp_path / f"metadata-{number}" for number in range(JUDGED)))
    lost = sum(each["lost"] for each in told)
    places = [each["place"] for each in told]
    assert lost > CUTS // 4 and len(set(places)) >= 4, told
    count = {place: places.count(place) for place in sorted(set(places))}
    print(f"{CUTS} cuts before {count}; {lost} lost something unflushed; {JUDGED} judged; {result.elapsed_s:.0f} s")
