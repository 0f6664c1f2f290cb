"""LVM on a real kernel: a pool of ours on two of its volumes, and a thin pool of its own that our engine writes.

on volumes   vgcreate → lvcreate data, meta → replicator pool create, volume create, our engine writes until the pool is
             full → lvextend → replicator pool grow → the rest → replicator pool check; then the kernel reads it
its own      lvcreate --type thin-pool, thin volumes, a snapshot → lvconvert swaps the metadata out to a plain volume →
             replicator volume export; our engine writes → lvconvert swaps it back, thin_check looks, LVM activates,
             reads, cuts and writes

The guest's programs compare with what must be there, which nobody reads back; the metadata comes out for both
thin_checks.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator.units import MIB
from tests.support import judges, kernel
from tests.support.kernel_turns import assert_sound

DISK_BYTES = 64 * MIB
ON_VOLUMES = """
import random, shutil, sys
from pathlib import Path

from replicator.errors import NoSpaceError
from replicator.pool.opening import own_pool
from tests.support import guest, lvm
from tests.support.thin_hands import PoolHand
from tests.support.thin_sessions import Model, Session, content

MIB, model, pool = 1 << 20, Model(), Path("/run/pool")

def replicator(*words):
    return guest.run(sys.executable, "-m", "replicator.cli.main", *words)

def turn(work):
    with own_pool(pool) as owned:
        hand = PoolHand(owned.engine, model.sizes(), owned)
        work(owned, hand, Session(random.Random(9), model, hand, 65536))
        assert hand.hashes() == model.hashes()

def until_it_is_full(owned, hand, session):
    for size in (5 * MIB + 512, 3 * MIB):
        session.create(size)
    session.steps(40)
    whole = session.create(22 * MIB)
    for offset in range(0, 22 * MIB, MIB):
        new = content(offset, MIB)
        try:
            hand.write(whole, offset, MIB, offset)
            model.devices[whole][offset : offset + MIB] = new
        except NoSpaceError:
            found = hand.device(whole).pread(MIB, offset)
            assert all(found[at : at + 512] in (new[at : at + 512], bytes(512)) for at in range(0, MIB, 512))
            model.devices[whole][offset : offset + MIB] = found
            print(f"full at {{offset // MIB}} MiB of 22")
            return
    raise AssertionError("the pool was to become full")

def in_the_new_room(owned, hand, session):
    assert owned.status().data_blocks * 65536 == 44 * MIB and owned.status().metadata_blocks * 4096 == 6 * MIB
    whole = max(model.devices, key=lambda dev_id: len(model.devices[dev_id]))
    for offset in range(0, 22 * MIB, MIB):
        hand.write(whole, offset, MIB, offset)
        model.devices[whole][offset : offset + MIB] = content(offset, MIB)

lvm.prepare(guest.device(0), guest.device(1))
metadata, data = lvm.create("meta", "4m"), lvm.create("data", "20m")
replicator("pool", "create", pool, "--data", data, "--metadata", metadata)
turn(until_it_is_full)
lvm.lvm("lvextend", "-L", "+24m", data)
lvm.lvm("lvextend", "-L", "+2m", metadata)
print(replicator("pool", "grow", pool, "--data", "+24MiB", "--metadata", "+2MiB").strip())
turn(in_the_new_room)
print(replicator("pool", "check", pool).strip())
guest.create_pool("kernels", metadata, data)
for dev_id, size in model.sizes().items():
    thin = guest.activate_thin("kernels", "thin", dev_id, size // 512)
    assert guest.sha256(thin) == model.hashes()[dev_id]
    guest.remove("thin")
print(guest.status("kernels"))
guest.remove("kernels")
shutil.copyfile(metadata, {out!r})
lvm.lvm("vgchange", "-an", "vg")
print(len(model.devices), "thin devices read by the kernel")
"""
ITS_OWN = """
import contextlib, hashlib, random, shutil
from pathlib import Path

from replicator.blockdev.file import FileDevice
from replicator.cli.main import run
from replicator.thin.opening import open_engine
from replicator.thin.superblock import read_superblock
from tests.support import guest, lvm
from tests.support.thin_hands import EngineHand
from tests.support.thin_sessions import Model, Session, content

MIB, chance, model = 1 << 20, random.Random(10), Model()
names = {{1: "one", 2: "two", 3: "cut"}}

def write(name, dev_id, size, count):
    for _ in range(count):
        length = min(chance.choice((512, 4096, 65536, 300_000)), size) // 512 * 512
        offset, seed = chance.randrange((size - length) // 512) * 512, chance.getrandbits(48)
        guest.write(lvm.node(name), offset, content(seed, length))
        model.devices[dev_id][offset : offset + length] = content(seed, length)

def assert_lvm_reads_the_same():
    for dev_id, name in names.items():
        lvm.lvm("lvchange", "-ay", "-K", f"vg/{{name}}")
        assert guest.sha256(lvm.node(name)) == model.hashes()[dev_id], name

def swap():
    lvm.lvm("lvconvert", "--thinpool", "vg/pool", "--poolmetadata", "vg/plain")

lvm.prepare(guest.device(0), guest.device(1))
lvm.lvm("lvcreate", "--type", "thin-pool", "-L", "40m", "--poolmetadatasize", "4m", "-c", "64k", "-n", "pool", "vg")
for dev_id, size in ((1, 12 * MIB), (2, 3 * MIB)):
    lvm.lvm("lvcreate", "-V", f"{{size}}b", "--thinpool", "pool", "-n", names[dev_id], "vg")
    model.devices[dev_id] = bytearray(size)
    write(names[dev_id], dev_id, size, 25)
lvm.lvm("lvcreate", "-s", "-n", "cut", "vg/one")
model.devices[3] = bytearray(model.devices[1])
write("one", 1, 12 * MIB, 10)
lvm.lvm("vgchange", "-an", "vg")
before = lvm.facts("pool", "transaction_id")
lvm.lvm("lvcreate", "-L", "4m", "-an", "-Zn", "-n", "plain", "vg")
swap()

lvm.lvm("lvchange", "-ay", "vg/plain")
lvm.lvm("lvchange", "-ay", "vg/pool_tdata")  # read-only: so much it tells where the data is
table = guest.dmsetup("table", "vg-pool_tdata").strip()
lvm.lvm("lvchange", "-an", "vg/pool_tdata")
data, metadata, pool = guest.create("ours", table), lvm.node("plain"), Path("/run/foreign")
pool.mkdir()
(pool / "metadata").symlink_to(metadata)
(pool / "data").symlink_to(data)
for dev_id, size in model.sizes().items():
    image = Path(f"/run/{{dev_id}}.img")
    with contextlib.redirect_stdout(None):
        assert run(["volume", "export", str(pool), f"thin-{{dev_id}}", str(image), "--size", str(size)]) == 0
    assert hashlib.sha256(image.read_bytes()).hexdigest() == model.hashes()[dev_id]
    image.unlink()
shutil.copyfile(metadata, {before!r})
with contextlib.ExitStack() as held:
    devices = [held.enter_context(FileDevice(path, exclusive=True)) for path in (metadata, data)]
    engine, _ = open_engine(*devices, Path("/run/dirty"))
    held.callback(engine.close)
    hand = EngineHand(engine, model.sizes())
    assert hand.hashes() == model.hashes()
    session = Session(chance, model, hand, 65536)
    for _ in range(60):
        chance.choice((session.write, session.write, session.write, session.fill, session.discard))()
    assert hand.hashes() == model.hashes()
with FileDevice(metadata, read_only=True) as device:
    assert (str(read_superblock(device).transaction_id),) == before
shutil.copyfile(metadata, {after!r})
guest.remove("ours")
lvm.lvm("lvchange", "-an", "vg/plain")

swap()
assert_lvm_reads_the_same()
print(guest.status("vg-pool-tpool"))
lvm.lvm("lvcreate", "-s", "-n", "again", "vg/one")
names[4], model.devices[4] = "again", bytearray(model.devices[1])
for dev_id in (1, 3):
    write(names[dev_id], dev_id, 12 * MIB, 10)
assert_lvm_reads_the_same()
lvm.lvm("vgchange", "-an", "vg")
lvm.lvm("lvchange", "-ay", "vg/pool_tmeta")
shutil.copyfile(lvm.node("pool_tmeta"), {last!r})
lvm.lvm("vgchange", "-an", "vg")
print("LVM's transaction id", *before, "then", *lvm.facts("pool", "transaction_id"))
"""

pytestmark = pytest.mark.usefixtures("thin_judges")


@pytest.fixture
def disks(tmp_path: Path) -> list[Path]:
    """Two empty disks for a volume group, where LVM is at hand."""
    judges.require("lvm")
    paths = [tmp_path / "one", tmp_path / "two"]
    for path in paths:
        with path.open("wb") as file:
            file.truncate(DISK_BYTES)
    return paths


def test_a_pool_of_ours_on_two_of_its_volumes(guest: kernel.Kernel, tmp_path: Path, disks: list[Path]) -> None:
    """It becomes full, its volumes are extended, it goes on; the kernel reads it there."""
    metadata = tmp_path / "metadata"
    said = guest.boot(ON_VOLUMES.format(out=str(metadata)), disks).output
    assert ": clean, " in said, said
    assert_sound(metadata)
    print(said)


def test_a_thin_pool_of_its_own_that_we_write(guest: kernel.Kernel, tmp_path: Path, disks: list[Path]) -> None:
    """All volumes read as they must on both sides, and LVM, which counts transactions, notices nothing."""
    paths = [tmp_path / name for name in ("before", "after", "last")]
    words = dict(zip(("before", "after", "last"), map(str, paths), strict=True))
    said = guest.boot(ITS_OWN.format(**words), disks).output
    for path in paths:
        assert_sound(path)
    assert paths[0].read_bytes() != paths[1].read_bytes()
    print(said)
