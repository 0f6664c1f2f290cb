"""`restore`, `points` and `log` from the command line: documents, exit codes, and nothing written by what failed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import pytest

from replicator.blockdev.nbd import NbdDevice
from replicator.events.beacon import Beacon
from replicator.exporter.address import UnixAddress
from replicator.exporter.still import still_server
from replicator.log.object_log import directory_log
from replicator.nbd.protocol import STATE_HOLE, STATE_ZERO
from replicator.nbd.uri import NbdUri
from replicator.pool.catalogue_schema import Purpose, Setting, Snapshot
from replicator.pool.changes import Put
from replicator.pool.creation import PoolPlan, create_pool
from replicator.pool.daemons import DaemonSocket
from replicator.pool.interface import CutRequest, Switch
from replicator.pool.opening import OwnedPool, own_pool
from replicator.pool.volumes import create_snapshot, create_volume
from replicator.repository.logged import read_history
from replicator.repository.remembered import LOG_SETTING
from replicator.repository.source import open_source
from replicator.units import CHUNK_BYTES, MIB
from tests.support.command_line import Command, tree_of
from tests.support.replica_streams import SourceVolume
from tests.support.volume_histories import BEGAN_NS, NAME, SECOND_NS, History

SIZE = 20 * CHUNK_BYTES + 2048


@dataclass(frozen=True, slots=True)
class Ground:
    """A log of five transactions, and a replica's pool that keeps the second; `contents` by number."""

    folder: Path
    log: Path
    pool: Path
    history: History

    @property
    def contents(self) -> dict[int, bytes]:
        return {number: data for (_, number), data in self.history.contents.items()}


def put(pool: OwnedPool, volume_dev_id: int, data: bytes) -> None:
    """Make the live volume read as `data`."""
    device = pool.engine.open_device(volume_dev_id, len(data), read_only=False)
    with pool.engine.gate.writing():
        for at in range(0, len(data), CHUNK_BYTES):
            if any(part := data[at : at + CHUNK_BYTES]):
                device.pwrite(part, at)
    pool.flush()


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    rng = random.Random(7)
    log = tmp_path / "log"
    history = History(directory_log(log, create=True), random.Random(8), SIZE)
    history.write(0, rng.randbytes(6 * CHUNK_BYTES))
    history.write(CHUNK_BYTES, rng.randbytes(5000), "friday")
    history.write(15 * CHUNK_BYTES + 7, rng.randbytes(CHUNK_BYTES))
    history.write(2 * CHUNK_BYTES, bytes(CHUNK_BYTES), "wiped")
    history.write(SIZE - 600, rng.randbytes(600))
    history.close()
    path = tmp_path / "pool"
    create_pool(path, PoolPlan(size_bytes=64 * MIB, metadata_bytes=4 * MIB))
    logged = {each.number: each for each in read_history(history.log, history.volume).points}
    with own_pool(path) as pool:
        volume = create_volume(pool, NAME, SIZE, uuid=history.volume)
        put(pool, volume.dev_id, history.contents[1, 2])
        made = pool.cut(CutRequest(uuid4(), (volume.uuid,), Purpose.POINT))
        row = pool.view().snapshot(made.dev_ids[0])
        point = logged[2]
        kept = replace(row, number=2, digest=point.digest, timestamp_ns=point.timestamp_ns, labels=point.labels)
        remembered = [Put(each) for each in logged.values()]
        pool.switch(Switch(changes=(Put(kept), *remembered, Put(Setting(LOG_SETTING, str(log))))))
        create_snapshot(pool, NAME, "mine")
    yield Ground(tmp_path, log, path, history)


def tail_of(ground: Ground) -> Path:
    """The last segment."""
    return max(each for each in ground.log.rglob("*") if each.is_file() and each.name.isdigit())


@pytest.mark.parametrize("number", range(1, 6))
@pytest.mark.parametrize("place", ["pool", "log"])
def test_restore_each_point(ground: Ground, command: Command, place: str, number: int) -> None:
    to = ground.folder / "out.img"
    source = ground.pool if place == "pool" else ground.log
    ran = command("restore", source, f"{NAME}@{number}", "--to", to, "--json")
    assert to.read_bytes() == ground.contents[number]
    document = ran.document
    assert document["schema_version"] == 1 and document["verified"] and document["point"]["number"] == number
    held = place == "pool" and number >= 2
    assert document["base"].startswith("snapshot") == held
    assert document["transactions"] == (number - 2 if held else number)


@pytest.mark.parametrize("point", ["friday", "latest", "1:2", "2023-11-14T22:13:22Z"])
def test_points_as_people_write_them(ground: Ground, command: Command, point: str) -> None:
    to = ground.folder / "out.img"
    command("restore", ground.pool, f"{NAME}@{point}", "--to", to)
    assert to.read_bytes() == ground.contents[5 if point == "latest" else 2]
    to.unlink()
    command("restore", ground.pool, f"{ground.history.volume}@{point}", "--to", to)


def test_a_source_whose_clock_was_ahead(tmp_path: Path, command: Command) -> None:
    """Two points of this morning, two of tomorrow: nobody knows which of them were there five minutes ago."""
    log, source = tmp_path / "log", SourceVolume(3, SIZE)
    for hours in (-10, -9, 24, 25):
        source.now_ns = time.time_ns() + hours * 3600 * SECOND_NS
        source.transaction(source.scribble())
    source.publish(directory_log(log, create=True))
    to = tmp_path / "disk.img"
    refused = command("restore", log, "disk-1@-5m", "--to", to, "--json", code=5).error
    assert "@2 of" in refused["message"] and "@3 of" in refused["message"] and "--accept-gap" in refused["mend"]
    assert not to.exists()
    listed = command("points", "list", log).out
    assert "disk-1: @4 is stamped 1 d" in listed and "ahead of this host's clock" in listed
    command("restore", log, "disk-1@-5m", "--to", to, "--accept-gap")
    assert to.read_bytes() == source.images[2]


def test_a_time_beyond_complete_to(ground: Ground, command: Command) -> None:
    to = ground.folder / "out.img"
    ran = command("restore", ground.pool, f"{NAME}@-1s", "--to", to, "--json", code=5)
    assert "complete" in ran.error["message"] and "--accept-gap" in ran.error["mend"]
    assert not to.exists()
    command("restore", ground.pool, f"{NAME}@-1s", "--to", to, "--accept-gap")
    assert to.read_bytes() == ground.contents[5]
    until = BEGAN_NS + 60 * SECOND_NS
    ground.history.log.write_beacon(Beacon.of(ground.history.state, until, until))
    command("restore", ground.pool, f"{NAME}@2023-11-14T22:14:00Z", "--to", to, "--overwrite")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nobody@latest"], 5, NAME),
        ([f"{NAME}@99"], 5, "no point @99"),
        ([f"{NAME}@never-made"], 5, "friday"),
        ([NAME], 2, "names no point"),
        ([f"{NAME}@-5x"], 2, "not a time before now"),
        ([f"{NAME}@1999-01-01"], 5, "oldest"),
        ([f"{NAME}@2:3"], 5, "no point"),
    ],
)
def test_what_is_not_there(ground: Ground, command: Command, arguments: list[str], code: int, words: str) -> None:
    to = ground.folder / "out.img"
    for source in (ground.pool, ground.log):
        ran = command("restore", source, *arguments, "--to", to, "--json", code=code)
        assert words in ran.error["message"] and not to.exists()


def test_sources_that_are_none(ground: Ground, command: Command) -> None:
    to = ground.folder / "out.img"
    (ground.folder / "empty").mkdir()
    for source, code in ((ground.folder / "empty", 5), (ground.folder / "nowhere", 5), ("ftp://bucket/x", 2)):
        command("restore", source, f"{NAME}@1", "--to", to, code=code)
    ran = command("log", "list", "gopher://h:1/p", "--json", code=2)
    assert "gopher" in ran.error["message"] and "directory" in ran.error["mend"]
    command("log", "list", f"file://{ground.log}")
    command("log", "list", ground.pool, code=5)


def test_targets_that_are_refused_are_not_touched(ground: Ground, command: Command) -> None:
    full = ground.folder / "full"
    full.write_bytes(b"precious")
    small = ground.folder / "small"
    small.write_bytes(bytes(100))
    before = tree_of(ground.folder)
    for target in (full, small, ground.pool / "data", ground.log / "new"):
        ran = command("restore", ground.pool, f"{NAME}@1", "--to", target, "--json", code=4)
        assert ran.error["kind"] == "conflict" and ran.error["mend"]
        plan = command("restore", ground.pool, f"{NAME}@1", "--to", target, "--json", "--dry-run", code=4)
        assert plan.document["refused"]
    command("restore", ground.pool, f"{NAME}@1", "--to", ground.folder, code=2)
    command("restore", ground.pool, f"{NAME}@1", "--to", ground.folder / "no" / "out", code=5)
    assert tree_of(ground.folder) == before


def test_dry_run_writes_nothing(ground: Ground, command: Command) -> None:
    before = tree_of(ground.folder)
    to = ground.folder / "out.img"
    plan = command("restore", ground.pool, f"{NAME}@4", "--to", to, "--dry-run", "--json").document
    assert plan["transactions"] == 2 and plan["log_bytes"] > 60_000 and plan["size_bytes"] == SIZE
    assert plan["target_kind"] == "absent" and plan["refused"] == []
    people = command("restore", ground.pool, f"{NAME}@4", "--to", to, "--dry-run").out
    assert "2 transactions" in people and "wiped" in people
    assert tree_of(ground.folder) == before


def test_stdout_is_sparse_in_a_file_and_whole_in_a_pipe(ground: Ground) -> None:
    code = "import sys; from replicator.cli.main import run; sys.exit(run(sys.argv[1:]))"
    argv = [sys.executable, "-c", code, "restore", str(ground.pool), f"{NAME}@latest", "--to", "-"]
    piped = subprocess.run(argv, capture_output=True, check=False)
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout == ground.contents[5]
    path = ground.folder / "out.img"
    with path.open("wb") as file:
        assert subprocess.run(argv, stdout=file, stderr=subprocess.PIPE, check=False).returncode == 0
    assert path.read_bytes() == ground.contents[5] and path.stat().st_blocks * 512 < SIZE
    with path.open("ab") as file:
        assert subprocess.run(argv, stdout=file, stderr=subprocess.PIPE, check=False).returncode == 0
    assert path.read_bytes() == ground.contents[5] * 2, "appended"
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(argv, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert ended.returncode == 1 and b"Traceback" not in ended.stderr


def test_points_list(ground: Ground, command: Command) -> None:
    for source, held in ((ground.pool, {2}), (ground.log, set())):
        listed = command("points", "list", source, NAME, "--json").document
        assert [each["number"] for each in listed] == [1, 2, 3, 4, 5]
        assert {each["number"] for each in listed if each["materialised"]} == held
        assert listed[1]["labels"] == ["friday"] and listed[1]["consistency"] == "crash"
        assert listed[0]["timestamp"] == "2023-11-14T22:13:21.000000+00:00" and listed[0]["size_bytes"] == SIZE
    people = command("points", "list", ground.pool).out
    assert "friday" in people and "snapshot" in people
    since = command("points", "list", ground.pool, "--since", "2023-11-14T22:13:24Z", "--json").document
    assert [each["number"] for each in since] == [4, 5]
    command("points", "list", ground.pool, "--since", "friday", code=2)
    assert command("points", "list", ground.pool, "nobody", "--json", code=5).error["kind"] == "not-found"


def test_points_show_and_label(ground: Ground, command: Command) -> None:
    shown = command("points", "show", ground.pool, f"{NAME}@3", "--json").document
    assert (shown["number"], shown["transactions"]) == (3, 1)
    assert "a snapshot" in command("points", "show", ground.pool, f"{NAME}@friday").out
    for number in (2, 3):
        label = f"label-{number}"
        assert label in command("points", "label", ground.pool, f"{NAME}@{number}", label, "--json").document["labels"]
        command("points", "show", ground.pool, f"{NAME}@{label}")
    command("points", "label", ground.pool, f"{NAME}@1", "friday", code=4)
    command("points", "label", ground.pool, f"{NAME}@1", "17", code=2)
    command("points", "label", ground.log, f"{NAME}@1", "monday", code=2)


def test_points_create_without_an_agent(ground: Ground, command: Command) -> None:
    """The cut waits, prepared, for the next agent; a second one has to wait for it."""
    path = ground.folder / "source"
    create_pool(path, PoolPlan(size_bytes=64 * MIB, metadata_bytes=4 * MIB))
    with own_pool(path) as pool:
        volume = create_volume(pool, "vm1", SIZE)
    made = command("points", "create", path, "vm1", "--label", "before-upgrade", "--json").document
    assert made["published"] is False and made["volume"] == "vm1"
    with own_pool(path) as pool:
        prepared = pool.view().prepared_of(volume.uuid)
        assert prepared is not None and prepared.number == 1 and prepared.base_dev_id is None
        assert pool.view().snapshot(prepared.target_dev_id).labels == ("before-upgrade",)
    assert (
        "agent publish" in command("points", "create", path, "vm1", "--label", "again", "--json", code=4).error["mend"]
    )
    command("points", "create", path, "vm1", "--label", "x", "--wait", code=4)
    command("points", "create", path, "vm1", "--label", "latest", code=2)
    command("points", "create", path, "nobody", "--label", "x", code=5)


def test_points_create_asks_the_running_agent(ground: Ground, command: Command) -> None:
    asked = []

    def snapshot(arguments: dict[str, object]) -> dict[str, object]:
        asked.append(arguments)
        return {"points": [{"volume": NAME, "number": 6, "timeline": 1}]}

    with DaemonSocket(ground.pool, "agent", {"snapshot": snapshot}):
        made = command("points", "create", ground.pool, NAME, "--label", "live", "--wait", "--json").document
    assert asked == [{"volumes": [NAME], "labels": ["live"]}]
    assert made["published"] and made["number"] == 6


def test_log_list_and_show(ground: Ground, command: Command) -> None:
    (entry,) = command("log", "list", ground.log, "--json").document
    assert (entry["volume"], entry["number"], entry["size_bytes"]) == (NAME, 5, SIZE)
    assert NAME in command("log", "list", ground.log).out
    events = command("log", "show", ground.log, NAME, "--json").document
    assert [each["sequence"] for each in events] == list(range(1, entry["sequence"] + 1))
    assert {"VolumeCreated", "TransactionBegan", "ChunksWritten", "TransactionCommitted"} <= {e["type"] for e in events}
    people = command("log", "show", ground.log, NAME, "--from", 3).out
    assert "friday" in people and "VolumeCreated" not in people
    command("log", "show", ground.log, "nobody", code=5)


def test_log_verify(ground: Ground, command: Command) -> None:
    clean = command("log", "verify", ground.log, "--json").document
    assert clean["damaged"] == 0 and clean["volumes"][0]["transactions"] == 5
    path = tail_of(ground)
    whole = path.read_bytes()
    for data in (whole[:-7], whole[: len(whole) // 2], b"", flipped(whole, 100), flipped(whole, len(whole) - 90)):
        path.write_bytes(data)
        ran = command("log", "verify", ground.log, code=3)
        assert path.name in ran.out or path.name in ran.err
        damaged = command("log", "verify", ground.log, NAME, "--json", code=3).document
        assert damaged["damaged"] >= 1 and path.name in damaged["volumes"][0]["findings"][0]["message"]
        assert damaged["volumes"][0]["transactions"] >= 4, "all before it was read"
    path.write_bytes(whole)
    command("log", "verify", ground.log)
    first = min(each for each in ground.log.rglob("*") if each.is_file() and each.name.isdigit())
    first.write_bytes(flipped(first.read_bytes(), 60))
    path.unlink()
    found = command("log", "verify", ground.log, "--json", code=3).document["volumes"][0]
    assert found["findings"][0]["sequence"] == 1 and found["transactions"] >= 3, "it goes on behind what is damaged"


def flipped(data: bytes, at: int) -> bytes:
    """`data` with one bit turned."""
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def test_a_damaged_segment_stops_a_restore(ground: Ground, command: Command) -> None:
    path = tail_of(ground)
    (part,) = ground.history.log.reader(ground.history.volume, 1).parts(int(path.name))  # type: ignore[attr-defined]  # an IndexedReader
    path.write_bytes(flipped(path.read_bytes(), int(part.index.frames["offset"][0]) + 9))
    to = ground.folder / "out.img"
    ran = command("restore", ground.log, f"{NAME}@latest", "--to", to, "--json", code=3)
    assert path.name in ran.error["message"] and not to.exists()


def test_a_foreign_pool_has_no_points(ground: Ground, command: Command) -> None:
    for each in ground.pool.glob("catalog.db*"):
        each.unlink()
    command("restore", ground.pool, "thin-1@latest", "--to", ground.folder / "out", code=5)


def test_the_pool_names_a_log_that_is_away(ground: Ground, command: Command) -> None:
    ground.log.rename(ground.folder / "elsewhere")
    listed = command("points", "list", ground.pool, "--json").document
    assert [each["number"] for each in listed] == [2]
    for more in ([], ["--json"]):
        assert "only what the pool holds is listed" in command("points", "list", ground.pool, *more).err
    command("restore", ground.pool, f"{NAME}@friday", "--to", ground.folder / "out.img")
    command("restore", ground.pool, f"{NAME}@3", "--to", ground.folder / "out2.img", code=5)


def test_points_are_served_over_nbd(ground: Ground) -> None:
    """What `serve VOLUME@POINT` stands on: any read-only disk behind the exporter's listener."""
    with open_source(str(ground.pool)) as source:
        disk = source.open_point(f"{NAME}@latest", now_ns=BEGAN_NS + 9 * SECOND_NS).disk
        mine = source.open_snapshot("mine")
        server = still_server({"point": disk, "mine": mine})
        address = server.listen(UnixAddress(ground.folder / "nbd.sock"))
        assert isinstance(address, UnixAddress)
        try:
            uri = NbdUri.parse(f"nbd+unix:///point?socket={address.path}")
            with NbdDevice(uri, read_only=True) as device:
                assert device.size_bytes == SIZE and device.read_only
                assert device.pread(SIZE, 0) == ground.contents[5]
                rng = random.Random(3)
                for _ in range(50):
                    at = rng.randrange(SIZE)
                    length = rng.randrange(1, min(9000, SIZE - at) + 1)
                    assert device.pread(length, at) == ground.contents[5][at : at + length]
                flags = [each for _, each in device.block_status(0, SIZE)]
                assert STATE_HOLE | STATE_ZERO in flags and 0 in flags
            uri = NbdUri.parse(f"nbd+unix:///mine?socket={address.path}")
            with NbdDevice(uri, read_only=True) as device:
                assert device.pread(SIZE, 0) == ground.contents[2]
        finally:
            server.stop()
            disk.close()
            mine.close()


def test_each_help_has_an_example(command: Command) -> None:
    for words in (["restore"], ["points"], ["log"], *(["points", n] for n in ("list", "show", "create", "label")),
                  *(["log", n] for n in ("list", "show", "verify"))):  # fmt: skip
        assert f"replicator {' '.join(words)}" in command(*words, "--help").out


def test_rows_of_the_snapshots_stay(ground: Ground, command: Command) -> None:
    """Reading changes nothing in a pool."""
    with own_pool(ground.pool) as pool:
        before = pool.view().rows[Snapshot]
    command("restore", ground.pool, f"{NAME}@3", "--to", ground.folder / "out.img")
    with own_pool(ground.pool) as pool:
        assert pool.view().rows[Snapshot] == before
