"""What runs inside the guest of tests.support.kernel: dm-thin by dmsetup, NBD and file systems, on a real kernel.

Standard library only.

A guest script imports it by the same name as outside. All sizes are sectors of 512 bytes, as dmsetup has them.

    ubda, ubdb …   the guest's names of the files that Kernel.boot was given, in order: device(0), device(1) …

Invariants
  G1  Node names are made by dmsetup itself (no udev in the guest), so that a device can be used when its call returns.
  G2  `teardown` removes every mapped device, so that the pool's last commit is in the file when the guest ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

SECTOR = 512
READ_BYTES = 1 << 20


class GuestError(Exception):
    """A command inside the guest failed; holds what it said."""


def run(*argv: str | Path | int, check: bool = True) -> str:
    """A command's output, both streams."""
    done = subprocess.run(
        [str(word) for word in argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if check and done.returncode:
        raise GuestError(f"{' '.join(map(str, argv))}: {done.stdout.strip()}")
    return done.stdout


def device(index: int) -> Path:
    """The block device of the index-th file that the guest was given."""
    return Path(f"/dev/ubd{'abcdefghijklmnop'[index]}")


def sectors(path: Path) -> int:
    """A block device's size."""
    return int(run("blockdev", "--getsz", path))


def dmsetup(*words: str | int, check: bool = True) -> str:
    """One dmsetup command."""
    return run("dmsetup", *words, check=check)


def create(name: str, table: str, *, read_only: bool = False) -> Path:
    """A mapped device by its table, ready for use."""
    options = ["--readonly"] if read_only else []
    dmsetup("create", name, *options, "--table", table)
    dmsetup("mknodes", name)
    return Path("/dev/mapper") / name


def create_pool(
    name: str,
    metadata: Path,
    data: Path,
    *,
    block_sectors: int = 128,
    low_water_blocks: int = 0,
    features: tuple[str, ...] = (),
    read_only: bool = False,
) -> Path:
    """A thin pool over two devices; zeroed metadata makes a new one. All of the data device is used."""
    size = sectors(data) // block_sectors * block_sectors
    options = f" {len(features)} {' '.join(features)}" if features else ""
    table = f"0 {size} thin-pool {metadata} {data} {block_sectors} {low_water_blocks}{options}"
    return create(name, table, read_only=read_only)


def message(pool: str, *words: str | int) -> None:
    """A message to a pool: create_thin 0, create_snap 1 0, delete 0, set_transaction_id 0 1, reserve_metadata_snap …"""
    dmsetup("message", pool, 0, " ".join(map(str, words)))


def create_thin(pool: str, name: str, dev_id: int, size_sectors: int) -> Path:
    """A new thin device, active."""
    message(pool, "create_thin", dev_id)
    return activate_thin(pool, name, dev_id, size_sectors)


def create_snap(pool: str, origin: str, origin_id: int, name: str, dev_id: int, size_sectors: int) -> Path:
    """A snapshot of an active thin device, active; the origin is suspended meanwhile, as the kernel demands."""
    with suspended(origin):
        message(pool, "create_snap", dev_id, origin_id)
    return activate_thin(pool, name, dev_id, size_sectors)


@contextlib.contextmanager
def suspended(name: str) -> Iterator[None]:
    """A device that stands still for the block's time."""
    dmsetup("suspend", name)
    try:
        yield
    finally:
        dmsetup("resume", name)


def activate_thin(pool: str, name: str, dev_id: int, size_sectors: int, external_origin: Path | None = None) -> Path:
    """A thin device that the pool has already."""
    origin = f" {external_origin}" if external_origin else ""
    return create(name, f"0 {size_sectors} thin /dev/mapper/{pool} {dev_id}{origin}")


def status(name: str) -> str:
    """A device's status line; a pool's is that of committed metadata."""
    return dmsetup("status", name).strip()


def remove(name: str) -> None:
    """Deactivate a mapped device."""
    dmsetup("remove", "--retry", name)


def teardown() -> None:
    """Deactivate all mapped devices, those that stand on others first (G2)."""
    for _ in range(8):
        dmsetup("remove_all", check=False)
        if "No devices found" in dmsetup("ls"):
            return
    raise GuestError(f"still active: {dmsetup('ls')}")


def write(path: Path, offset_bytes: int, content: bytes) -> None:
    """Write through to the device, and flush it."""
    with path.open("r+b", buffering=0) as file:
        view = memoryview(content)
        file.seek(offset_bytes)
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())


def read(path: Path, offset_bytes: int, length_bytes: int) -> bytes:
    """Read a stretch of a device."""
    with path.open("rb") as file:
        file.seek(offset_bytes)
        return file.read(length_bytes)


def discard(path: Path, offset_bytes: int, length_bytes: int) -> None:
    """Discard a stretch of a device."""
    run("blkdiscard", "--offset", offset_bytes, "--length", length_bytes, path)


def sha256(path: Path) -> str:
    """The hash of a device's whole content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(READ_BYTES):
            digest.update(part)
    return digest.hexdigest()


def nbd_connect(host: str, port: int, *, export: str = "", connections: int = 4, index: int = 0) -> Path:
    """The kernel's own NBD client, on a server that the guest reaches."""
    disk = Path(f"/dev/nbd{index}")
    run("nbd-client", host, port, disk, "-N", export, "-b", 4096, "-C", connections)
    return disk


def nbd_disconnect(disk: Path) -> None:
    """Let go of a server."""
    run("nbd-client", "-d", disk)


@contextlib.contextmanager
def mounted(disk: Path, kind: str = "ext4", options: str = "rw") -> Iterator[Path]:
    """A file system, mounted below /run for the block's time."""
    folder = Path("/run/mounted") / disk.name
    folder.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", kind, "-o", options, disk, folder)
    try:
        yield folder
    finally:
        run("umount", folder)
