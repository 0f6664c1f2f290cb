"""The real kernel's NBD client, in a guest, against `replicator serve` outside, over TCP: ext4 lives on it, and is cut.

    guest    nbd-client → /dev/nbd0 → mkfs, mount, files, fstrim, files, sync, umount, e2fsck
    here     replicator serve, snapshots over its control socket meanwhile, then the same bytes by our own readers
"""

from __future__ import annotations

import hashlib
import json
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from replicator.pool import volumes
from replicator.pool.creation import PoolPlan, create_pool
from replicator.pool.exporting import export_device
from replicator.pool.opening import own_pool
from replicator.pool.remote import RemotePool
from replicator.units import MIB
from tests.support import kernel
from tests.support.judges import assert_clean, nbd_tool
from tests.support.serve_process import serving

SIZE = 96 * MIB
CUTS_MAX = 40
CUT_EVERY_S = 0.25
SCRIPT = """
import hashlib, json, os, random
from pathlib import Path
from tests.support import guest

disk = guest.nbd_connect("10.0.2.2", {port}, export="disk")
guest.run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", disk)
rng, hashes = random.Random(5), {{}}

def write(folder, names):
    for name in names:
        content = rng.randbytes(rng.choice((1, 5000, 70_000, 700_000)))
        (folder / name).write_bytes(content)
        hashes[name] = hashlib.sha256(content).hexdigest()

with guest.mounted(disk) as folder:
    write(folder, [f"first-{{n}}" for n in range(40)])
    (folder / "big").write_bytes(rng.randbytes(20 << 20))
    os.sync()
    Path({ready!r}).touch()
with guest.mounted(disk) as folder:
    (folder / "big").unlink()
    for name in [f"first-{{n}}" for n in range(0, 40, 2)]:
        (folder / name).unlink()
        del hashes[name]
    os.sync()
    trimmed = guest.run("fstrim", "-v", folder)
    write(folder, [f"second-{{n}}" for n in range(30)])
    os.sync()
with guest.mounted(disk, options="ro") as folder:
    found = {{path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}}
assert found == hashes
guest.run("e2fsck", "-fn", disk)
whole = guest.sha256(disk)
guest.nbd_disconnect(disk)
print(json.dumps({{"files": hashes, "whole": whole, "trimmed": trimmed}}))
"""


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def cut_until_done(pool: Path, running: Future[kernel.GuestResult]) -> list[str]:
    """Snapshots over the control socket, while the guest is at work."""
    names = []
    with RemotePool(pool) as owner:
        for number in range(CUTS_MAX):
            names.append(volumes.create_snapshot(owner, "disk", f"cut-{number}").name)
            try:
                running.exception(CUT_EVERY_S)
                break
            except TimeoutError:
                continue
    return names


@pytest.mark.usefixtures("nbd_judges", "thin_judges")
def test_ext4_on_the_kernels_client_while_it_is_cut(guest: kernel.Kernel, tmp_path: Path) -> None:
    pool, port = tmp_path / "pool", free_port()
    create_pool(pool, PoolPlan(size_bytes=256 * MIB))
    with own_pool(pool) as owned:
        volumes.create_volume(owned, "disk", SIZE)
    script = SCRIPT.format(port=port, ready=str(tmp_path / "ready"))
    with serving(pool, "disk", "--listen", f"tcp:127.0.0.1:{port}"), ThreadPoolExecutor(1) as beside:
        running = beside.submit(lambda: guest.boot(script, network=True))
        names = cut_until_done(pool, running)
        result = running.result()
        print(result.elapsed_s, len(names), result.output)
        told = json.loads(result.output)
        export_device(pool, "disk", tmp_path / "beside")
    export_device(pool, "disk", tmp_path / "after")
    for copy in (tmp_path / "beside", tmp_path / "after"):
        assert hashlib.sha256(copy.read_bytes()).hexdigest() == told["whole"]
    assert_clean(pool / "metadata")
    assert 0
