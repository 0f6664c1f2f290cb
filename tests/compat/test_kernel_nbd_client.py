"""The real kernel's NBD client, in a guest, against `replicator serve` outside, over TCP: ext4 lives on it, and is cut.

guest    nbd-client → /dev/nbd0 → mkfs, mount, files, fstrim, files, fstrim, umount, e2fsck
here     replicator serve, snapshots over its control socket meanwhile, then the same bytes by our own readers, and
         each snapshot as an ext4 after a power cut

Each side waits for the other by marks, files in a folder that both see: `made` and `first` are the guest's,
`enough-made` and `enough-first` are ours, once so many cuts fell behind the mark. The guest goes on writing until it
sees them, so that however fast either side is, the cuts meet a file system at work.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from replicator.pool import volumes
from replicator.pool.creation import PoolPlan, create_pool
from replicator.pool.exporting import export_device
from replicator.pool.opening import own_pool
from replicator.pool.remote import RemotePool
from replicator.units import KIB, MIB
from tests.support import kernel
from tests.support.judges import assert_clean, nbd_tool
from tests.support.serve_process import serving

SIZE = 96 * MIB
BLOCK = 64 * KIB
WITHOUT_BIG = 32 * MIB  # what the file system needs at the end, generously; with the 20 MiB that were trimmed, more
ENOUGH = {"made": 2, "first": 6}
"""Cuts behind each mark that the guest waits for, at work."""
CUT_EVERY_S = 0.2
CUT_LATER_S = 2.0  # once there are enough
CHECKED = 8  # of the cuts, about
SCRIPT = """
import hashlib, json, os, random
from pathlib import Path
from tests.support import guest

disk = guest.nbd_connect("10.0.2.2", {port}, export="disk")
guest.run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", disk)
rng, hashes, marks = random.Random(5), {{}}, Path({marks!r})
(marks / "made").touch()

def write(folder, names):
    for name in names:
        content = rng.randbytes(rng.choice((1, 5000, 70_000, 700_000)))
        (folder / name).write_bytes(content)
        hashes[name] = hashlib.sha256(content).hexdigest()

def work_until(folder, mark):
    for n in range(2000):
        if (marks / mark).exists():
            return
        write(folder, [f"churn-{{n % 5}}"])
        os.sync()
    raise TimeoutError(mark)

with guest.mounted(disk) as folder:
    write(folder, [f"first-{{n}}" for n in range(40)])
    (folder / "big").write_bytes(rng.randbytes(20 << 20))
    os.sync()
    work_until(folder, "enough-made")
(marks / "first").touch()
with guest.mounted(disk) as folder:
    (folder / "big").unlink()
    for name in [f"first-{{n}}" for n in range(0, 40, 2)]:
        (folder / name).unlink()
        del hashes[name]
    os.sync()
    trimmed = guest.run("fstrim", "-v", folder)
    write(folder, [f"second-{{n}}" for n in range(30)])
    os.sync()
    work_until(folder, "enough-first")
    guest.run("fstrim", folder)  # what was written over and over meanwhile is elsewhere each time
    os.sync()
with guest.mounted(disk, options="ro") as folder:
    found = {{path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}}
assert found == hashes
guest.run("e2fsck", "-fn", disk)
whole = guest.sha256(disk)
guest.nbd_disconnect(disk)
print(json.dumps({{"files": hashes, "whole": whole, "trimmed": trimmed}}))
"""


@dataclass(frozen=True, slots=True)
class Cut:
    """A snapshot, and how far the guest surely was before it: the marks that it had made."""

    name: str
    marks: frozenset[str]


def cut_until_done(owner: RemotePool, marks: Path, running: Future[kernel.GuestResult]) -> list[Cut]:
    """Snapshots over the control socket, while the guest is at work."""
    cuts: list[Cut] = []
    while True:
        marked = frozenset(path.name for path in marks.iterdir())
        if "made" in marked:
            cuts.append(Cut(volumes.create_snapshot(owner, "disk", f"cut-{len(cuts)}").name, marked))
        enough = [mark for mark, least in ENOUGH.items() if sum(mark in cut.marks for cut in cuts) >= least]
        for mark in enough:
            (marks / f"enough-{mark}").touch()
        wait_s = CUT_LATER_S if len(enough) == len(ENOUGH) else CUT_EVERY_S
        try:
            running.exception(wait_s)
        except TimeoutError:
            continue
        return cuts


def read_files(image: Path, into: Path) -> dict[str, str]:
    """The hashes of the files at the top of an ext4 image."""
    into.mkdir()
    nbd_tool("debugfs").run("-R", f"rdump / {into}", image)
    return {path.name: sha256(path) for path in into.iterdir() if path.is_file()}


def assert_recovers(pool: Path, cut: Cut, lasting: dict[str, str], folder: Path) -> None:
    """A cut is what a power cut would leave: its journal mends it, and what was synced before is there."""
    image = folder / f"{cut.name}.img"
    export_device(pool, cut.name, image)
    done = nbd_tool("e2fsck").run("-f", "-p", image, check=False)
    assert done.returncode in (0, 1), f"{cut}: {done.stdout}"
    if "first" in cut.marks:
        found = read_files(image, folder / cut.name)
        assert {name: found.get(name) for name in lasting} == lasting, cut
    image.unlink()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.usefixtures("nbd_judges", "thin_judges")
def test_ext4_on_the_kernels_client_while_it_is_cut(guest: kernel.Kernel, tmp_path: Path) -> None:
    pool, marks = tmp_path / "pool", tmp_path / "marks"
    marks.mkdir()
    create_pool(pool, PoolPlan(size_bytes=512 * MIB))
    with own_pool(pool) as owned:
        volumes.create_volume(owned, "disk", SIZE)
    with (
        serving(pool, "disk", "--listen", "tcp:127.0.0.1:0"),
        RemotePool(pool) as owner,
        ThreadPoolExecutor(1) as beside,
    ):
        port = int(owner.exports()[0].address.rpartition(":")[2])
        script = SCRIPT.format(port=port, marks=str(marks))
        running = beside.submit(lambda: guest.boot(script, network=True))
        cuts = cut_until_done(owner, marks, running)
        told = json.loads(running.result().output)
        export_device(pool, "disk", tmp_path / "beside")
    export_device(pool, "disk", tmp_path / "after")
    assert [sha256(tmp_path / name) for name in ("beside", "after")] == [told["whole"]] * 2
    assert_clean(pool / "metadata")
    with own_pool(pool) as owned:
        (disk,) = volumes.list_volumes(owned.view(), owned.facts(()))
    assert disk.mapped_blocks * BLOCK < WITHOUT_BIG
    made, first = ([cut for cut in cuts if mark in cut.marks] for mark in ("made", "first"))
    assert len(made) > len(first) >= ENOUGH["first"]
    print(
        f"{len(made)} cuts at work, {len(first)} of them behind the first sync; {disk.mapped_blocks} blocks at the end;"
        f" trimmed first: {told['trimmed'].strip()}"
    )
    lasting = {name: digest for name, digest in told["files"].items() if name.startswith("first")}
    for cut in {*made[:: max(1, len(made) // CHECKED)], first[0], first[-1]}:
        assert_recovers(pool, cut, lasting, tmp_path)
    assert read_files(tmp_path / "after", tmp_path / "files") == told["files"]
