"""What the benchmarks stand on: CPU seconds of programs, a terabyte that is mapped without its data, percentiles.

A mapped volume. Its metadata is laid out in one go (tests/support/thinimage); its data file is sparse, so that each
mapped block reads as zeros. A volume that was published empty before it was mapped is published still: base and
volume share one tree, and what the log has of it is zeros too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from replicator.blockdev.file import FileDevice
from replicator.pool.creation import PoolPlan, create_pool
from replicator.pool.opening import own_pool
from replicator.pool.volumes import create_volume
from replicator.thin.mapping import pack_many
from replicator.thin.superblock import read_superblock
from replicator.units import CHUNK_BYTES, GIB, METADATA_BLOCK_BYTES
from tests.support.thinimage import Thin, ThinImage

ROOT = Path(__file__).resolve().parents[1]
VOLUME = "vm1"
SLIM = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""numpy's idle threads would be counted as nobody's work."""
DAEMON = {**SLIM, "MALLOC_ARENA_MAX": "2"}
"""As the daemons are started."""


def keep_bytecode(folder: Path) -> None:
    """Let the programs that are started from now on keep their bytecode, as installed ones do, in `folder`."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder)


def replicator(*arguments: str | Path) -> list[str]:
    """The command line of our command, in this environment."""
    return [sys.executable, "-m", "replicator.cli.main", *map(str, arguments)]


def cpu_of(argv: Sequence[str | Path], env: Mapping[str, str] | None = None) -> float:
    """CPU seconds, user and system, of one program that must succeed, and of the children that it waited for."""
    whole = {**os.environ, "PYTHONPATH": str(ROOT), **SLIM, **(env or {})}
    process = subprocess.Popen(list(map(str, argv)), env=whole, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{argv[0]} ended with {process.returncode}: {said.decode(errors='replace')[-2000:]}")
    return usage.ru_utime + usage.ru_stime


def cpu_seconds(pid: int) -> float:
    """User and system time that a running process has burnt."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def percentiles_ms(nanoseconds: npt.NDArray[np.int64]) -> str:
    """p50, p99 and the largest, in milliseconds; dashes for none."""
    if not len(nanoseconds):
        return f"{'-':>8}{'-':>8}{'-':>8}"
    p50, p99 = np.percentile(nanoseconds, [50, 99])
    return f"{p50 / 1e6:8.2f}{p99 / 1e6:8.2f}{nanoseconds.max() / 1e6:8.1f}"


def make_pool(path: Path, size_bytes: int, room_bytes: int) -> None:
    """A pool with one empty volume of `size_bytes`, and room for `room_bytes` beyond it."""
    create_pool(path, PoolPlan(size_bytes=size_bytes + room_bytes, low_water="0%"))
    with own_pool(path) as pool:
        create_volume(pool, VOLUME, size_bytes)


def map_whole(path: Path) -> None:
    """Map every block of the pool's volume, and of its snapshots alike; nobody has the pool open."""
    with own_pool(path) as pool:
        view = pool.view()
        ids = [view.volume(VOLUME).dev_id, *(each.dev_id for each in view.snapshots)]
        blocks = view.volume(VOLUME).size_bytes // CHUNK_BYTES
    with FileDevice(path / "metadata", read_only=True) as device:
        before = read_superblock(device)
    nr_blocks = before.metadata_space_map.nr_blocks
    image = ThinImage(path / "metadata", before.data_space_map.nr_blocks, metadata_nr_blocks=nr_blocks)
    keys = np.arange(blocks, dtype=np.uint64)
    tree = image.mapping_tree(keys, pack_many(keys, 0))
    made = image.finish({i: Thin(tree, snapshotted_time=1) for i in ids}, time=1, transaction_id=before.transaction_id)
    with FileDevice(path / "metadata") as device:
        device.pwrite(replace(made, uuid=before.uuid).pack(), 0)
        device.preallocate(0, nr_blocks * METADATA_BLOCK_BYTES)
    (path / "dirty").unlink()


def mapped_pool(path: Path, size_bytes: int, room_bytes: int = 64 * GIB) -> None:
    """A pool with one wholly mapped volume."""
    make_pool(path, size_bytes, room_bytes)
    map_whole(path)


@contextmanager
def load(
    socket: Path, size_bytes: int, seconds: float, rate: float, depth: int, out: Path, seed: int = 1
) -> Iterator[None]:
    """Random 4 KiB writes in a process of its own, from now on; at the end of the block they are over, and in `out`.

    Where a second load is to meet what the first did, it takes another `seed`: other places.
    """
    program = Path(__file__).with_name("_writer.py")
    arguments = map(str, (socket, size_bytes, seconds, rate, depth, out, seed))
    with subprocess.Popen([sys.executable, program, *arguments], env={**os.environ, **SLIM}) as writer:
        yield
        if writer.wait():
            raise SystemExit("the writer failed")


def read_load(out: Path) -> npt.NDArray[np.int64]:
    """(n, 2): when each write was due, and when it was answered, in nanoseconds of the wall clock."""
    found: npt.NDArray[np.int64] = np.load(out)
    return found
