"""What ties a pool's parts together: its UUID in each, the data device's own id; and what else it was made with.

Written by pool/creation, checked by pool/opening and pool/reading before anything is believed.

    part          knows the pool by
    superblock    its uuid field
    catalogue     its one PoolIdentity
    data file     the extended attribute user.replicator.pool, where the file system has them
    data device   nothing: its own id (WWN, serial number, dm UUID) and size stand in the catalogue

A file also knows when it was last opened for writing, by a number that grows with each opening, and a data file how far
the pool was then; so do copies that keep extended attributes (cp -a, rsync -X, most backups).

    mixed                                           seen by
    parts of two pools                              UUIDs
    an older catalogue                              no row of the superblock's transaction in it
    older metadata                                  the catalogue is two switches ahead; or one, and `dirty`, used in
                                                    this boot, names another superblock
    older metadata and catalogue                    the data file was opened at a later transaction
    older data                                      the metadata file was opened more often
    two copies of mirrored metadata                 pool/mirror_choice, before all this
    older data without attributes, or on a device   nothing
    metadata of the same transaction, older         nothing

Invariants
  I1  Two parts that name two pools are never used together: DamageError with both ids.
  I2  A catalogue that is behind its superblock is damage (pool/catalogue, G2), and so are parts of different times.
  I3  Marks are written data first, synced, then metadata, and metadata's only if data has it: a crash, or a file system
      without room for attributes, leaves the data's number ahead, never behind.

Failures: DamageError, UsageError, DeviceError.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from replicator.blockdev.file import FileDevice
from replicator.blockdev.interface import BlockDevice
from replicator.errors import DamageError, DeviceError, ReplicatorError, UsageError
from replicator.pool.catalogue import Catalogue
from replicator.pool.metadata_device import OPENED, attribute_number, files_of, open_metadata
from replicator.pool.view import CatalogueView
from replicator.thin.superblock import Superblock, read_superblock
from replicator.units import parse_size

DATA_DEVICE_SETTING = "data-device"
LOW_WATER_SETTING = "low-water"
TIME_CAPPED_SETTING = "time-capped"
"""Stands while `time` has come to its cap by our own hand, and nobody else has written since (thin/metadata, D3)."""

_ATTRIBUTE = "user.replicator.pool"
_REACHED = "user.replicator.transaction"
_MEND = "put the pool's own files of one time together again"
_BLOCK_IDS = ("dm/uuid", "wwid", "device/wwid", "md/uuid", "serial", "device/serial")


def is_ours(path: Path) -> bool:
    """Whether one of our pools is in that directory, by a first look: a catalogue, and a superblock of dm-thin's."""
    if not (path / "catalog.db").exists():
        return False
    try:
        with open_metadata(path) as metadata:
            read_superblock(metadata)
    except ReplicatorError:
        return False
    return True


def check_identity(view: CatalogueView, superblock: Superblock, metadata: BlockDevice, data: FileDevice) -> None:
    """DamageError unless superblock, catalogue and data are one pool's (I1)."""
    ours, found = view.pool.uuid, UUID(bytes=superblock.uuid)
    mend = "put the pool's own files together again"
    if ours != found:
        raise DamageError(f"the catalogue is that of pool {ours}, but {metadata.name} is that of {found}", mend=mend)
    marked = marked_pool(data)
    if marked is not None and marked != ours:
        raise DamageError(f"the catalogue is that of pool {ours}, but {data.name} is that of {marked}", mend=mend)
    known = _known_device(view)
    if known and data.is_block_device and (now := _block_id(data)) and now != known:
        raise DamageError(f"the pool's data device is {known}, but {data.name} is {now}", mend=mend)


def check_age(newest_id: int, superblock: Superblock, metadata: BlockDevice, data: FileDevice, ours: bool) -> None:
    """DamageError where metadata, catalogue (at `newest_id`) and data are of different times (I2).

    `ours`: nothing says that the superblock isn't the last one that this boot's owner wrote.
    """
    marked, now = marked_pool(data), superblock.transaction_id
    if marked is not None and marked.bytes != superblock.uuid:
        known = UUID(bytes=superblock.uuid)
        raise DamageError(f"{metadata.name} is that of pool {known}, but {data.name} is that of {marked}", mend=_MEND)
    if newest_id > now + 1 or (newest_id == now + 1 and not ours):
        raise DamageError(f"the catalogue knows transaction {newest_id}, but {metadata.name} is at {now}", mend=_MEND)
    reached = attribute_number(data, _REACHED)
    if reached > now:
        raise DamageError(
            f"{data.name} was in use at transaction {reached}, but {metadata.name} is at {now}", mend=_MEND
        )
    opened, expected = attribute_number(data, OPENED), _most_opened(metadata)
    if 0 < opened < expected:
        raise DamageError(
            f"{data.name} is an older copy: it was opened {opened} times, and {metadata.name} {expected} times",
            mend=f"{_MEND}; or, if nothing else is left: setfattr -x {OPENED} {data.name}",
        )


def mark_opening(superblock: Superblock, metadata: BlockDevice, data: FileDevice) -> None:
    """Note on all files that the pool is opened for writing, where there is room for it (I3)."""
    number = max(_most_opened(metadata), attribute_number(data, OPENED)) + 1
    _put_number(data, OPENED, number)
    mark_reached(superblock.transaction_id, data)
    try:
        os.fsync(data.fileno())  # a flush of the content alone may leave attributes behind
    except OSError as error:
        raise DeviceError(data.name, 0, error.errno or errno.EIO, error.strerror or str(error)) from error
    if attribute_number(data, OPENED) not in (0, number):
        return  # it found no room, and would look like an older copy beside metadata that knows of this opening
    for each in files_of(metadata):
        _put_number(each, OPENED, number)


def mark_reached(transaction_id: int, data: FileDevice) -> None:
    """Note on the data file how far the pool has come."""
    _put_number(data, _REACHED, max(transaction_id, attribute_number(data, _REACHED)))


def _most_opened(metadata: BlockDevice) -> int:
    return max(attribute_number(each, OPENED) for each in files_of(metadata))


def _put_number(device: FileDevice, name: str, number: int) -> None:
    if not device.is_block_device:
        with contextlib.suppress(OSError):
            os.setxattr(device.fileno(), name, str(number).encode())


def mark_file(data: FileDevice, pool: UUID) -> None:
    """Write the pool's UUID beside the data file's content, where the file system has room for it."""
    if not data.is_block_device:
        with contextlib.suppress(OSError):
            os.setxattr(data.fileno(), _ATTRIBUTE, str(pool).encode())


def marked_pool(data: FileDevice) -> UUID | None:
    """The UUID that the data file carries; None where it has none."""
    try:
        return UUID(os.getxattr(data.fileno(), _ATTRIBUTE).decode("ascii", "replace"))
    except (OSError, ValueError):
        return None


def unmark_file(path: Path, pool: UUID) -> None:
    """Take the mark of a pool that didn't come to be off the data file."""
    with contextlib.suppress(OSError):
        if os.getxattr(path, _ATTRIBUTE).decode("ascii", "replace") == str(pool):
            os.removexattr(path, _ATTRIBUTE)


def describe_device(data: FileDevice) -> str:
    """What a raw data device is known by, as the setting's text; "" for a file."""
    if not data.is_block_device:
        return ""
    return json.dumps({"id": _block_id(data), "size_bytes": data.size_bytes})


def _known_device(view: CatalogueView) -> str:
    try:
        return str(json.loads(view.setting(DATA_DEVICE_SETTING, "{}"))["id"])
    except (ValueError, KeyError, TypeError):
        return ""


def _block_id(device: FileDevice) -> str:
    """The first name that the kernel has for the device and that no other one has; "" where it has none."""
    found = os.fstat(device.fileno())
    assert stat.S_ISBLK(found.st_mode)
    folder = Path(f"/sys/dev/block/{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}").resolve()
    partition = _text(folder / "partition")
    if partition:
        folder, partition = folder.parent, f" partition {partition}"
    for name in _BLOCK_IDS:
        if text := _text(folder / name):
            return text + partition
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def low_water_blocks(text: str, data_blocks: int, block_bytes: int) -> int:
    """Free data blocks below which the pool warns: `text` is a part ("10%") or a size ("50GiB")."""
    if text.endswith("%"):
        try:
            part = float(text[:-1])
        except ValueError:
            part = -1.0
        if not 0 <= part <= 100:
            raise UsageError(f"{text!r} is no part of a pool", mend="write it like 10%, or as a size like 50GiB")
        return int(data_blocks * part / 100)
    return -(-parse_size(text) // block_bytes)


def open_catalogue(path: Path, superblock: Superblock, check: Callable[[int], None]) -> tuple[Catalogue, CatalogueView]:
    """The catalogue for writing, as of the superblock's transaction: what a dead owner staged beyond is removed.

    Not before `check` has looked at the newest id that it holds.
    """
    catalogue = Catalogue(path)
    try:
        check(catalogue.newest_id())
        catalogue.discard_beyond(superblock.transaction_id)
        return catalogue, catalogue.view(superblock.transaction_id)
    except BaseException:
        catalogue.close()
        raise
