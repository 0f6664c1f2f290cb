"""Fixtures that every test folder may use: the command line, judges, as gates, and the pool that a real kernel wrote.

Every test is watched: one that leaves a process behind fails.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import zstandard
from hypothesis import settings

from tests.support import judges, kernel, leftovers
from tests.support.command_line import Command, runner
from tests.support.far_logs import FarServers, running_far_servers
from tests.support.golden import KernelPool

GOLDEN = Path(__file__).parent / "golden"
GOING_S = 10.0

# No deadline for an example, since machines are busy; under CI the same examples each time.
settings.register_profile("replicator", deadline=None, derandomize=os.environ.get("CI") == "true")
settings.load_profile("replicator")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests begin first, so that no worker is still at one when the others have nothing left."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session", autouse=True)
def _no_stray_outlives_the_session() -> Iterator[None]:
    """Daemons that have left the test's process are found by the session's mark in their environment."""
    mark = os.environ[leftovers.MARK] = uuid.uuid4().hex
    yield
    until_s = time.monotonic() + GOING_S
    while (found := leftovers.strays(mark)) and time.monotonic() < until_s:
        threading.Event().wait(0.1)  # one that was just told to go
    leftovers.end(found)
    assert not found, "processes outlived their tests: " + "; ".join(map(str, found))


@pytest.fixture(autouse=True)
def _no_child_outlives_its_test() -> Iterator[None]:
    """A child that a test started is ended and waited for by it."""
    before = leftovers.children()
    yield
    left = sorted(leftovers.children() - before)
    assert not left, "children outlived the test: " + "; ".join(str(leftovers.describe(pid)) for pid in left)


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """The command line, run in this process."""
    return runner(capfd)


@pytest.fixture(scope="session")
def far_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarServers]:
    """An S3 server and an sshd, as far as this machine has them, for the whole session."""
    with running_far_servers(tmp_path_factory.mktemp("far")) as servers:
        yield servers


@pytest.fixture
def thin_judges() -> None:
    """Gate: both engines of the thin tools are here (judges.check_both, assert_clean, thin_tool)."""
    judges.require("thin-cpp", "thin-rust")


@pytest.fixture
def nbd_judges() -> None:
    """Gate: nbdkit, qemu's and libnbd's programs, fio and e2fsprogs are here (judges.nbd_tool)."""
    judges.require("nbd")


@pytest.fixture
def libnbd() -> ModuleType:
    """libnbd's Python module."""
    judges.require("libnbd")
    return judges.libnbd_module()


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[kernel.Kernel]:
    """A real kernel, not yet started; whatever was started is ended with the test."""
    judges.require("kernel")
    with kernel.Kernel(tmp_path / "guest") as ready:
        yield ready


@pytest.fixture
def kernel_pool_a(tmp_path: Path) -> KernelPool:
    """A fresh copy of golden/kernel-pool-a: two devices that the test may change, and what the kernel saw."""
    source = GOLDEN / "kernel-pool-a"
    folder = tmp_path / "kernel-pool-a"
    folder.mkdir()
    for name in ("metadata.img", "data.img"):
        packed = (source / f"{name}.zst").read_bytes()
        (folder / name).write_bytes(zstandard.ZstdDecompressor().decompress(packed, max_output_size=1 << 28))
    facts = json.loads((source / "pool.json").read_text())
    return KernelPool(source, folder / "metadata.img", folder / "data.img", facts)
