"""Sixteen clients disconnect, stall, flood and lie; a seventeenth gets every answer right, and nothing is left behind.

Its speed beside them is a figure of benchmarks/hostile, since a test's machine is busy with other tests.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from replicator.exporter.address import connect_unix
from tests.support.exporting import Child, Setup, exporting
from tests.support.hostile import DEEDS
from tests.support.nbd_ground import Client

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 6.0
BLOCKS, BLOCK = 512, 4096
MEMORY_KIB = 300 << 10
"""Of the whole exporter, its program with numpy (60 MiB) included: the budget of large writes, send buffers and arenas
of 17 connections (12 MiB each) fit, and nothing that grows with what is sent."""
SETTLED_S = 20.0


def held(pid: int) -> tuple[int, int]:
    """Threads and descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - pathlib would make a Path of every thread


def highest_kib(pid: int) -> int:
    """The most memory that the process ever had, since its program began."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def work(path: Path, seconds: float, seed: int) -> int:
    """Write and read at random, and compare; how many requests were answered."""
    chance, done = random.Random(seed), 0
    with connect_unix(path) as sock:
        sock.settimeout(30)
        client = Client(sock)
        client.open("mine")
        content = [client.read(block * BLOCK, BLOCK) for block in range(BLOCKS)]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            block = chance.randrange(BLOCKS)
            if chance.random() < 0.5:
                content[block] = chance.randbytes(BLOCK)
                assert client.write(block * BLOCK, content[block]) == 0
            else:
                assert client.read(block * BLOCK, BLOCK) == content[block]
            done += 1
    return done


def settled(child: Child, before: tuple[int, int]) -> tuple[int, int]:
    """Threads and descriptors once the last connection is over, or when that takes too long."""
    end = time.monotonic() + SETTLED_S
    while time.monotonic() < end:
        if child.order("facts")["connections"] == 0 and held(child.pid) <= before:
            break
    return held(child.pid)


@pytest.mark.timeout(300)
def test_a_seventeenth_client_is_served_right_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "s"
    setup = Setup((f"unix:{path}",), volumes={"vol": 32 << 20, "mine": 32 << 20})
    with exporting(tmp_path / "pool", setup) as child:
        assert work(path, 0.5, 0) > 0
        before, quiet_kib = held(child.pid), highest_kib(child.pid)
        argv = [sys.executable, "-m", "tests.support.hostile", str(path), str(SECONDS), *DEEDS]
        with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as hostile:
            assert hostile.stdout is not None and hostile.stdout.readline() == "ready\n"
            done = work(path, SECONDS, 1)
            did = json.loads(hostile.stdout.readline())
        after = settled(child, before)
        largest_kib = highest_kib(child.pid)
        print(f"\n{done} requests answered right beside {did}; memory {quiet_kib >> 10} -> {largest_kib >> 10} MiB")
        assert set(did) == set(DEEDS) and min(did.values()) >= 4
        assert done > 50
        assert after <= before, f"threads and descriptors: {before} before, {after} after"
        assert largest_kib < MEMORY_KIB
        assert work(path, 0.3, 2) > 0
