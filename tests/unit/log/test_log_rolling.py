"""Where segments end: at commits, folder boundaries, 64 MiB, and too many chunks; and how names are found again."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from replicator.errors import NoSpaceError, UnavailableError
from replicator.events.bodies import VolumeRenamed
from replicator.events.frames import Compressor, written_events
from replicator.events.pages import whole_masks
from replicator.log import names
from replicator.log.directory import DirectoryStore
from replicator.log.errors import PutUnknownError
from replicator.log.interface import Appended
from replicator.log.object_log import ObjectLog
from replicator.log.segment import ROLL_BYTES, ROLL_CHUNKS, SEGMENT_BYTES_MAX
from replicator.units import CHUNK_BYTES, MIB
from tests.support.chunk_places import index_at
from tests.support.event_streams import VOLUME, Script, chunk_of, written
from tests.support.faulty_files import Fault, FaultyFiles
from tests.support.memory_objects import MemoryStore


def firsts(store: MemoryStore) -> list[int]:
    """The segments' first numbers."""
    return sorted(int(name.rpartition("/")[2]) for name in store.objects if name.startswith(f"{VOLUME}/"))


def publish(store: MemoryStore, script: Script, *, at_once: bool = True) -> None:
    """All that the script has, in one append or in one for each event."""
    with ObjectLog(store, create=True).writer(VOLUME, 1) as writer:
        events = script.take()
        for batch in [events] if at_once else [[event] for event in events]:
            assert isinstance(writer.append(writer.state.link, batch), Appended)


def test_a_segment_ends_with_its_transaction() -> None:
    store = MemoryStore()
    publish(store, Script().create().transaction().transaction().begin())
    assert firsts(store) == [1, 8], "an open transaction waits for its sync"


def test_events_between_transactions_stand_at_once() -> None:
    store = MemoryStore()
    publish(store, Script().create().transaction(), at_once=False)
    assert firsts(store) == [1, 2, 3]


def test_no_segment_crosses_a_folder() -> None:
    store, script = MemoryStore(), Script().create()
    for i in range(2 * names.FOLDER_NUMBERS):
        script.put(VolumeRenamed(f"disk-{i}", i))
    events = list(script.events)
    publish(store, script)
    assert firsts(store) == [1, 4096, 8192]
    reader = ObjectLog(store).reader(VOLUME, 1)
    assert [event.link for event in reader.read(1)] == [event.link for event in events]
    assert next(reader.read(5000)).header.sequence == 5000
    assert reader.tail() == script.state
    log = ObjectLog(store)
    assert log.trim(VOLUME, 1, 5000) == 4096 and firsts_kept(store) == [4096, 8192]
    assert log.trim(VOLUME, 1, 9000) == 8192 and firsts_kept(store) == [8192]


def firsts_kept(store: MemoryStore) -> list[int]:
    """The first numbers, after a trim wrote `start`."""
    store_without = MemoryStore()
    store_without.objects = {name: data for name, data in store.objects.items() if not name.endswith("/start")}
    return firsts(store_without)


def test_a_segment_rolls_at_64_mebibytes() -> None:
    store, script = MemoryStore(), Script().create().begin(bound=2000)
    count = 70 * MIB // CHUNK_BYTES
    block = b"".join(chunk_of(seed, compressible=False) for seed in range(64))
    compressor = Compressor()
    frames = [
        frame
        for first in range(0, count, 64)
        for frame in compressor.pack(np.arange(first, min(first + 64, count), dtype=np.uint64),
                                     whole_masks(min(64, count - first)), block[: (count - first) * CHUNK_BYTES])
    ]  # fmt: skip
    for body in written_events(frames):
        script.put(body)
    publish(store, script.commit())
    sizes = [len(store.objects[names.segment_name(VOLUME, 1, first)]) for first in firsts(store)]
    assert len(sizes) == 2 and ROLL_BYTES <= sizes[0] <= ROLL_BYTES + 2 * MIB < SEGMENT_BYTES_MAX


def test_a_segment_rolls_when_its_index_is_full() -> None:
    script = Script().create().begin(bound=1 << 20)
    store = MemoryStore()
    one = written(0)
    count = 4096
    table = np.repeat(one.frame_rows, count)
    body_tables = {
        "masks": one.masks * count, "hashes": one.hashes * count, "frame_table": table.tobytes(),
        "frames": tuple(one.frames) * count,
    }  # fmt: skip
    size = script.state.open
    assert size is not None and size.size_bytes // CHUNK_BYTES == 16384
    for first in range(0, 16384, count):
        indices = np.arange(first, first + count, dtype="<u8").tobytes()
        script.put(type(one)(indices=indices, **body_tables))  # type: ignore[arg-type]  # a table of parts
    publish(store, script.commit())
    assert ROLL_CHUNKS == 1 << 18
    assert len(index_at(ObjectLog(store).reader(VOLUME, 1), 4)[1].chunks) == 16384


def test_of_racing_writers_exactly_one_gets_a_name(tmp_path: Path) -> None:
    rounds, store = 40, DirectoryStore(tmp_path)
    gate = threading.Barrier(4)

    def race(who: int) -> list[bool]:
        won = []
        for i in range(rounds):
            gate.wait()
            won.append(store.put_if_absent(f"a/b/{i}", bytes([who]) * 100))
        return won

    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(race, range(4)))
    for i in range(rounds):
        winners = [who for who in range(4) if won[who][i]]
        assert len(winners) == 1 and store.get(f"a/b/{i}", 1000) == bytes(winners) * 100


@pytest.mark.parametrize("fault", [Fault.FULL, Fault.ERROR_BEFORE])
def test_errors_of_the_file_system_are_typed(tmp_path: Path, fault: Fault) -> None:
    expected = NoSpaceError if fault is Fault.FULL else UnavailableError
    calls = 0
    for n in range(1, 50):
        store = DirectoryStore(tmp_path, files := FaultyFiles(n, fault))
        try:
            assert store.put_if_absent(f"a{n}/b", b"data")
        except PutUnknownError:
            calls += 1
        except (NoSpaceError, UnavailableError) as error:
            assert isinstance(error, expected) and str(tmp_path) in str(error)
            calls += 1
        files.end(power_cut=False)
        if not files.met:
            break
    assert calls >= 10


def test_an_object_is_written_in_many_parts(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    sink = store.create("a/b")
    parts = [bytes([i % 256]) * (i % 7) for i in range(3000)]
    sink.write(list(parts))
    assert store.size("a/b") is None and sink.commit()
    assert store.get("a/b", 1 << 20) == b"".join(parts)
    assert store.get_range("a/b", 5, 10) == b"".join(parts)[5:15]
    assert store.get_range("a/b", 1 << 20, 10) == b""
    store.delete("a/b")
    store.delete("a/b")
    store.drop_folder("a")
    assert store.children("") == ["temporary"] and store.children("a/b/c") == []
