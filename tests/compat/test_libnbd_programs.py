"""libnbd's own C programs against `replicator serve`: those of its tests that load a server, and its examples.

Those that write for a while do so while snapshots are made over the control socket.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from replicator.pool import volumes
from replicator.pool.creation import PoolPlan, create_pool
from replicator.pool.importing import import_file
from replicator.pool.opening import own_pool
from replicator.pool.remote import RemotePool
from replicator.units import MIB
from tests.support.judges import assert_clean, libnbd_program, require
from tests.support.serve_process import serving

SIZE = 64 * MIB  # what aio-parallel and aio-parallel-load demand
LIMIT_S = 60.0
CUTS = 4
CUT_EVERY_S = 0.3


@dataclass(frozen=True, slots=True)
class Served:
    """A pool with one volume, `disk`, full of nbdkit's pattern, and the socket where it is the only export."""

    pool: Path
    socket: Path

    @property
    def uri(self) -> str:
        return f"nbd+unix:///disk?socket={self.socket}"

    def run(self, name: str, place: str | Path) -> str:
        """A program's output, pointed at a URI or a socket."""
        return libnbd_program(name).run(place, timeout_s=LIMIT_S).stdout

    def run_while_cut(self, name: str, place: str | Path) -> str:
        """The same, while snapshots are made until it ends; at least one is."""
        with ThreadPoolExecutor(1) as beside, RemotePool(self.pool) as owner:
            running = beside.submit(self.run, name, place)
            for number in range(CUTS):
                volumes.create_snapshot(owner, "disk", f"cut-{number}")
                if _ended(running.exception, CUT_EVERY_S):
                    break
            return running.result()


def _ended(wait: Callable[[float], object], limit_s: float) -> bool:
    try:
        wait(limit_s)
    except TimeoutError:
        return False
    return True


@contextmanager
def served(folder: Path, size_bytes: int = SIZE, *, holes: bool = False) -> Iterator[Served]:
    """Serve it, and find the pool clean when it is closed; with `holes`, every second MiB of it is left out."""
    pattern, pool = folder / "pattern", folder / "pool"
    numbers = np.arange(0, size_bytes, 8, dtype=">u8")
    if holes:
        numbers[numbers // MIB % 2 == 1] = 0
    pattern.write_bytes(numbers.tobytes())
    create_pool(pool, PoolPlan(size_bytes=512 * MIB))
    with own_pool(pool) as owned:
        import_file(owned, "disk", pattern)
    pattern.unlink()
    with serving(pool, "--listen", f"unix:{folder / 'nbd'}"):
        yield Served(pool, folder / "nbd")
    assert_clean(pool / "metadata")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Served]:
    require("libnbd-programs", "thin-cpp", "thin-rust")
    with served(tmp_path) as found:
        yield found


def figure(output: str, name: str) -> int:
    """The number that a program printed behind a name that begins a line."""
    found = re.search(rf"^ ?{re.escape(name)}\b[^\d\n]*(\d+)", output, re.MULTILINE)
    assert found is not None, output
    return int(found[1])


def test_server_flags_and_aio_connect_read(disk: Served) -> None:
    flags = dict(re.findall(r"nbd_(\w+) = (true|false)", disk.run("server-flags", disk.socket)))
    assert {name for name, value in flags.items() if value == "false"} == {"is_read_only", "is_rotational"}
    assert len(flags) == 10
    dumped = disk.run("aio-connect-read", disk.socket)
    found = re.findall(r"^([0-9a-f]{8})  ((?:[0-9a-f]{2} +){16})", dumped, re.MULTILINE)
    rows = {bytes.fromhex(row) for _, row in found}
    assert rows == {np.arange(at, at + 16, 8, dtype=">u8").tobytes() for at in range(0, 32 * 512, 16)}


def test_examples_that_read_and_write(disk: Served) -> None:
    disk.run("reads-and-writes", disk.socket)
    assert "finished OK" in disk.run("batched-read-write", disk.uri)
    threaded = disk.run_while_cut("threaded-reads-and-writes", disk.uri)
    assert threaded.count("finished OK") == 8
    assert figure(threaded, "most requests seen in flight") == 64


def test_strict_structured_reads_over_data_and_holes(tmp_path: Path) -> None:
    require("libnbd-programs", "thin-cpp", "thin-rust")
    with served(tmp_path, holes=True) as disk:
        output = disk.run("strict-structured-reads", disk.uri)
    assert figure(output, "compliant") == figure(output, "reads") == 400
    assert min(figure(output, name) for name in ("data chunks", "df reads")) > 0
    assert figure(output, "data bytes") + figure(output, "hole bytes") == figure(output, "bytes read") == 800 * MIB


@pytest.mark.parametrize("by_uri", [True, False])
def test_aio_parallel_load(disk: Served, by_uri: bool) -> None:
    output = disk.run_while_cut("aio-parallel-load", disk.uri if by_uri else disk.socket)
    assert output.count("finished OK") == 8
    assert figure(output, "max requests in flight") == 64


def test_aio_parallel_finds_what_it_wrote(disk: Served) -> None:
    output = disk.run_while_cut("aio-parallel", disk.socket)
    assert output.count("finished OK") == 8


def test_synch_parallel_finds_what_it_wrote(tmp_path: Path) -> None:
    require("libnbd-programs", "thin-cpp", "thin-rust")
    with served(tmp_path, 8 * MIB) as disk:
        assert disk.run_while_cut("synch-parallel", disk.socket).count("finished OK") == 8
