"""ext4 on the real kernel's NBD client, in a guest, while the exporter outside is killed again and again.

guest    the kernel's client by its netlink interface (tests.support.kernel_nbd) → ext4; three threads write and fsync
here     kill -9 of `replicator serve`, and another on the same port: the next opening replays `dirty` (P1b)

The file system notices nothing: no I/O error in the kernel's log, every file as it was written, e2fsck finds it clean.
The kernel's own log counts what was in flight at each death ("Connection timed out, retrying").
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from replicator.pool import volumes
from replicator.pool.creation import PoolPlan, create_pool
from replicator.pool.exporting import export_device
from replicator.pool.opening import own_pool
from replicator.units import MIB
from tests.support import kernel
from tests.support.judges import ROOT, assert_clean, nbd_tool
from tests.support.kafka_broker import free_ports

SIZE = 96 * MIB
KILLS = 6
BETWEEN_S = 3.0
LIMIT_S = 60.0
SCRIPT = """
import hashlib, json, os, random, threading
from pathlib import Path
from tests.support import guest
from tests.support.kernel_nbd import lasting_disk

marks, hashes, errors = Path({marks!r}), {{}}, []

def write(folder, writer):
    rng, number = random.Random(writer), 0
    try:
        while not (marks / "enough").exists():
            content, name = rng.randbytes(rng.choice((1, 5000, 70_000, 300_000))), f"{{writer}}-{{number % 40}}"
            with (folder / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            hashes[name], number = hashlib.sha256(content).hexdigest(), number + 1
    except OSError as error:
        errors.append(str(error))
    (marks / f"written-{{writer}}").write_text(str(number))

with lasting_disk("nbd://10.0.2.2:{port}/disk") as disk:
    guest.run("mkfs.ext4", "-q", disk)
    with guest.mounted(disk) as folder:
        (marks / "made").touch()
        threads = [threading.Thread(target=write, args=(folder, writer)) for writer in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors, errors
    with guest.mounted(disk, options="ro") as folder:
        paths = [path for path in folder.iterdir() if path.is_file()]
        assert {{path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}} == hashes
    guest.run("e2fsck", "-fn", disk)
    whole = guest.sha256(disk)
print(json.dumps({{"files": len(hashes), "whole": whole, "kernel": guest.run("dmesg")}}))
"""


class Exporter:
    """`replicator serve` on one port: started, killed, started again; ended by its id."""

    def __init__(self, pool: Path) -> None:
        (self.port,) = free_ports(1)  # none that another test's connection could be given between two exporters
        self._argv: list[str | Path] = [sys.executable, "-m", "replicator.cli.main", "serve", pool, "disk"]
        self._argv += ["--listen", f"tcp:127.0.0.1:{self.port}"]
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(self._argv, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert "serving disk" in process.stderr.readline()
        return process

    def kill_and_start_again(self) -> None:
        """SIGKILL in the middle of everything."""
        self.end(signal.SIGKILL)
        self.process = self._start()

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, and wait for that."""
        os.kill(self.process.pid, how)
        self.process.communicate(timeout=LIMIT_S)


def is_over(running: Future[kernel.GuestResult], wait_s: float) -> bool:
    """Whether the guest ended within that time."""
    try:
        running.exception(wait_s)
    except TimeoutError:
        return False
    return True


@pytest.mark.usefixtures("nbd_judges", "thin_judges")
def test_a_file_system_notices_nothing_of_exporters_that_are_killed(guest: kernel.Kernel, tmp_path: Path) -> None:
    pool, marks = tmp_path / "pool", tmp_path / "marks"
    marks.mkdir()
    create_pool(pool, PoolPlan(size_bytes=192 * MIB))
    with own_pool(pool) as owned:
        volumes.create_volume(owned, "disk", SIZE)
    exporter = Exporter(pool)
    try:
        with ThreadPoolExecutor(1) as beside:
            script = SCRIPT.format(port=exporter.port, marks=str(marks))
            running = beside.submit(lambda: guest.boot(script, network=True))
            while not (marks / "made").exists() and not is_over(running, 0.1):
                pass
            for _ in range(KILLS):
                if not is_over(running, BETWEEN_S):
                    exporter.kill_and_start_again()
            is_over(running, BETWEEN_S)
            (marks / "enough").touch()
            told = json.loads(running.result().output)
    finally:
        exporter.end()
    log = told["kernel"]
    assert log.count("reconnected socket") == KILLS and "I/O error" not in log, log[-3000:]
    in_flight = log.count("Connection timed out, retrying")
    assert in_flight, "the kernel sent no request again: no kill met one"
    export_device(pool, "disk", tmp_path / "image")
    nbd_tool("e2fsck").run("-fn", tmp_path / "image")
    assert_clean(pool / "metadata")
    written = sum(int(path.read_text()) for path in marks.glob("written-*"))
    print(
        f"{KILLS} kills, {in_flight} requests in flight, {written} files written and synced, {told['files']} compared"
    )
