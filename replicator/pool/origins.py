"""External origins: read-only files, devices and NBD exports behind a volume's unmapped blocks; known again by content.

What a volume was created over stands in its catalogue row (pool/catalogue_schema, Origin), and snapshots and clones of
it have the same one. The origin must not change while anything reads through it: its identity is checked whenever it
is opened.

    digest    xxh3-HASH              device, NBD: over the size and 256 pages spread over it
              xxh3-HASH@MTIME_NS     file: its modification time too, which tells also what the pages miss

Invariants
  E1  An origin that isn't what it was is never opened: other data would shine through at every unmapped block.
  E2  Origins are opened for reading only.

Failures: ConflictError (changed), NotFoundError, UsageError, UnavailableError and DeviceError of what it lies on.
"""

from __future__ import annotations

import os
from pathlib import Path

import xxhash

from replicator.blockdev.file import FileDevice
from replicator.blockdev.interface import BlockDevice
from replicator.errors import ConflictError
from replicator.pool.catalogue_schema import Origin, OriginKind
from replicator.units import PAGE_BYTES

_SAMPLES = 256  # 1 MiB read: a tenth of a second over a network, and any other image differs in one of them
_NBD_SCHEMES = ("nbd://", "nbds://", "nbd+unix://", "nbds+unix://")


def identify_origin(text: str) -> Origin:
    """What `text` (a path or an NBD URI) names now, as it is recorded in a volume's row."""
    kind, location = _place_of(text)
    device = _open(kind, location)
    try:
        if kind is OriginKind.FILE and isinstance(device, FileDevice) and device.is_block_device:
            kind = OriginKind.DEVICE
        return Origin(kind, location, device.size_bytes, _digest(kind, device))
    finally:
        device.close()


def open_origin(origin: Origin) -> BlockDevice:
    """The origin, open for reading; ConflictError if it isn't what it was (E1)."""
    device = _open(origin.kind, origin.location)
    try:
        _require_same(origin, device)
    except BaseException:
        device.close()
        raise
    return device


def _require_same(origin: Origin, device: BlockDevice) -> None:
    if device.size_bytes != origin.size_bytes:
        raise ConflictError(
            f"the external origin {origin.location} has {device.size_bytes} bytes, and had {origin.size_bytes}",
            mend="put the image back that the volume was created over",
        )
    expected, _, expected_time = origin.digest.partition("@")
    found, _, found_time = _digest(origin.kind, device).partition("@")
    if expected and found != expected:
        raise ConflictError(
            f"the external origin {origin.location} has other content than when the volume was created over it",
            mend="put the image back that the volume was created over",
        )
    if expected_time and found_time != expected_time:
        seconds, fraction = divmod(int(expected_time), 10**9)
        raise ConflictError(
            f"the external origin {origin.location} was written since the volume was created over it",
            mend=f"if its content is what it was: touch -m -d @{seconds}.{fraction:09d} {origin.location}",
        )


def _place_of(text: str) -> tuple[OriginKind, str]:
    if text.startswith(_NBD_SCHEMES):
        from replicator.nbd.uri import NbdUri

        return OriginKind.NBD, str(NbdUri.parse(text))
    return OriginKind.FILE, str(Path(text).absolute())


def _open(kind: OriginKind, location: str) -> BlockDevice:
    if kind is OriginKind.NBD:
        from replicator.blockdev.nbd import NbdDevice  # with TLS and sockets, for the few origins that are exports
        from replicator.nbd.uri import NbdUri

        return NbdDevice(NbdUri.parse(location), read_only=True)
    return FileDevice(Path(location), read_only=True)


def _digest(kind: OriginKind, device: BlockDevice) -> str:
    size = device.size_bytes
    hasher = xxhash.xxh3_128(size.to_bytes(8, "little"))
    last = max(0, size - PAGE_BYTES)
    for offset in sorted({last * number // (_SAMPLES - 1) // PAGE_BYTES * PAGE_BYTES for number in range(_SAMPLES)}):
        hasher.update(device.pread(min(PAGE_BYTES, size - offset), offset))
    hasher.update(device.pread(min(PAGE_BYTES, size), last))
    written = f"@{os.fstat(device.fileno()).st_mtime_ns}" if kind is OriginKind.FILE else ""
    return f"xxh3-{hasher.hexdigest()}{written}"
