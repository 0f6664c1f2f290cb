"""The kernel judge itself: it boots, makes a thin pool on zeroed metadata, and both thin_checks pass it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import judges, kernel
from tests.support.golden import KernelPool

MIB = 1 << 20
SESSION = """
from tests.support import guest

pool = guest.create_pool("pool", guest.device(0), guest.device(1))
thin = guest.create_thin("pool", "one", 1, 32768)
guest.write(thin, 0, b"first" * 20000)
snapshot = guest.create_snap("pool", "one", 1, "two", 2, 32768)
guest.write(thin, 65536, b"later" * 20000)
guest.discard(thin, 0, 65536)
guest.message("pool", "set_transaction_id", 0, 7)
assert guest.read(snapshot, 0, 10) == b"firstfirst"
print(guest.status("pool"))
print(guest.status("one"))
print(guest.sha256(snapshot))
guest.teardown()
"""


@pytest.fixture
def pool_files(tmp_path: Path) -> list[Path]:
    """Zeroed metadata and data devices."""
    paths = [tmp_path / "metadata", tmp_path / "data"]
    for path, size in zip(paths, (4 * MIB, 64 * MIB), strict=True):
        with path.open("wb") as file:
            file.truncate(size)
    return paths


@pytest.mark.usefixtures("thin_judges")
def test_a_pool_that_the_kernel_made_is_clean(guest: kernel.Kernel, pool_files: list[Path]) -> None:
    result = guest.boot(SESSION, pool_files)
    pool, thin, digest = result.output.splitlines()
    assert pool.startswith("0 131072 thin-pool 7 ")
    assert thin.startswith("0 32768 thin 256 ")
    assert len(digest) == 64
    judges.assert_clean(pool_files[0])


HASHING_SESSION = """
import json
from tests.support import guest

guest.create_pool("pool", guest.device(0), guest.device(1))
hashes = {{}}
for dev_id, size in json.loads({sizes!r}).items():
    hashes[dev_id] = guest.sha256(guest.activate_thin("pool", "thin", int(dev_id), size))
    guest.remove("thin")
guest.teardown()
print(json.dumps(hashes))
"""


def test_the_kernel_reads_the_golden_pool_as_it_did(guest: kernel.Kernel, kernel_pool_a: KernelPool) -> None:
    devices = kernel_pool_a.facts["checkpoints"]["final"]["devices"]
    sizes = json.dumps({dev_id: int(device["status"].split()[1]) for dev_id, device in devices.items()})
    result = guest.boot(HASHING_SESSION.format(sizes=sizes), [kernel_pool_a.metadata, kernel_pool_a.data])
    assert json.loads(result.output) == {dev_id: device["sha256"] for dev_id, device in devices.items()}


FLAKY_SESSION = """
from tests.support import guest

size = guest.sectors(guest.device(1))
table = "0 {size} flakey {device} 0 {up} {down}{feature}"
flaky = guest.create("flaky", table.format(size=size, device=guest.device(1), up=60, down=0, feature=""))
guest.write(flaky, 0, b"kept" * 1024)
guest.dmsetup("suspend", "flaky")
lossy = table.format(size=size, device=guest.device(1), up=0, down=60, feature=" 1 drop_writes")
guest.dmsetup("reload", "flaky", "--table", lossy)
guest.dmsetup("resume", "flaky")
guest.write(flaky, 4096, b"lost" * 1024)
guest.teardown()
"""


def test_a_flaky_device_loses_exactly_what_came_after(guest: kernel.Kernel, pool_files: list[Path]) -> None:
    guest.boot(FLAKY_SESSION, pool_files, faults=True)
    assert pool_files[1].read_bytes()[:8192] == b"kept" * 1024 + bytes(4096)


def test_a_failing_script_is_a_failure_that_shows_why(guest: kernel.Kernel) -> None:
    with pytest.raises(kernel.KernelError, match="No such file"):
        guest.boot("from tests.support import guest; guest.create_pool('p', guest.device(0), guest.device(1))")


def test_a_guest_that_hangs_is_ended_within_its_limit(guest: kernel.Kernel) -> None:
    with pytest.raises(kernel.KernelError, match="did not end within"):
        guest.boot("import threading; print('waiting', flush=True); threading.Event().wait()", limit_s=8)
