"""Fuzzing targets that are a pool's files: its metadata as edits of a small image, `dirty`, and the catalogue.

Below tests/support/fuzz_targets, which lists them.
"""

from __future__ import annotations

import contextlib
import functools
import random
import struct
import tempfile
from pathlib import Path
from uuid import UUID

import numpy as np

from replicator.blockdev.memory import MemoryDevice
from replicator.errors import NoSpaceError, ReplicatorError
from replicator.pdata.block import BlockKind, checksum, seal
from replicator.pool.catalogue import Catalogue
from replicator.pool.catalogue_schema import PoolIdentity, Setting
from replicator.pool.changes import Put
from replicator.thin.check import check
from replicator.thin.diff import diff
from replicator.thin.dirty import DirtyLog
from replicator.thin.dump import dump
from replicator.thin.repair import examine, write
from replicator.thin.repair_roots import Hints
from replicator.thin.view import PoolView
from tests.support.thinimage import Thin, ThinImage

BLOCK = 4096
_IMAGE_BLOCKS = 80
_EDIT = struct.Struct("<BHBQ")
_EDITS_MAX = 12


@functools.cache
def image() -> bytes:
    """A pool of 80 blocks with three devices, two of which share, and a held copy."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metadata"
        made = ThinImage(path, 4000, metadata_nr_blocks=_IMAGE_BLOCKS)
        keys = np.arange(0, 1200, 2, dtype=np.uint64)
        base = made.mapping_tree(keys, keys << np.uint64(24), fill=86)
        values = (keys << np.uint64(24)).copy()
        values[100:130] += np.uint64(2001 << 24) + np.uint64(1)
        other = made.mapping_tree(keys, values, like=base)
        lone = made.mapping_tree(keys[:40], (keys[:40] + np.uint64(3000)) << np.uint64(24))
        thins = {1: Thin(base, 0, 0, 2), 2: Thin(other, 1, 1, 2), 9: Thin(lone, 2, 2, 2)}
        made.finish(thins, time=2, transaction_id=3, held={1: Thin(base, 0, 0, 1)})
        return path.read_bytes()


def edited(data: bytes) -> bytes:
    """The image with edits of 12 bytes each: block, offset, width and whether to seal, value."""
    result, whole = bytearray(image()), image()
    used = [n for n in range(_IMAGE_BLOCKS) if any(whole[n * BLOCK : n * BLOCK + 16])]
    for at in range(0, min(len(data) - _EDIT.size + 1, _EDITS_MAX * _EDIT.size), _EDIT.size):
        which, offset, how, value = _EDIT.unpack_from(data, at)
        number, width = used[which % len(used)], 1 << (how & 3)
        block = bytearray(result[number * BLOCK : (number + 1) * BLOCK])
        kind = next(
            (each for each in BlockKind if checksum(bytes(block), each) == int.from_bytes(block[:4], "little")), None
        )
        offset %= BLOCK - 8
        block[offset : offset + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
        if kind is not None and not how & 4:
            seal(block, kind, number)
        result[number * BLOCK : (number + 1) * BLOCK] = block
    return bytes(result)


def read_metadata(data: bytes) -> None:
    """Everything that is done with a pool that others wrote: check, devices, diff, dump, repair."""
    device = MemoryDevice(content=edited(data))
    assert len(check(device).findings) <= 600
    for open_view in (PoolView.live, PoolView.held):
        with contextlib.suppress(ReplicatorError):
            view = open_view(device)
            for piece in dump(view):
                assert piece.endswith("\n") or not piece
        with contextlib.suppress(ReplicatorError):
            view = open_view(device)
            devices = view.devices()
            for entry, other in zip(devices, devices[1:] + devices[:1], strict=True):
                with contextlib.suppress(ReplicatorError):
                    for part in diff(view.store, entry.root, other.root):
                        assert len(part)
                with contextlib.suppress(ReplicatorError):
                    view.highest_mapped(entry.root)
    with contextlib.suppress(NoSpaceError):
        write(examine(device, Hints(block_bytes=64 << 10, data_bytes=4000 << 16)), MemoryDevice(256 * BLOCK))


def edits() -> tuple[bytes, ...]:
    """Seeds of one to eight edits, mostly of headers, keys and first values, with numbers that hurt."""
    chance = random.Random(1)
    offsets = (4, 8, 16, 20, 24, 32, 40, 56, 64, 72, 80, 200, 320, 328, 1040, 1376, 2048, 2056, 2064, 2720)
    values = (0, 1, 2, 3, 60, 84, 252, 253, 1 << 20, 1 << 24, 1 << 32, 1 << 40, (1 << 64) - 1)

    def edit() -> bytes:
        near = chance.randrange(_IMAGE_BLOCKS)
        value = chance.choice((*values, near, near << 24, chance.getrandbits(64)))
        return _EDIT.pack(chance.randrange(256), chance.choice(offsets), chance.choice((0, 2, 3, 3, 7)), value)

    return (b"", *(b"".join(edit() for _ in range(chance.randrange(1, 9))) for _ in range(60)))


def read_dirty(data: bytes) -> None:
    """As an owner opens it."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        path = Path(file.name)
        path.write_bytes(data)
        log = DirtyLog.open(path, b"u" * 16, 64)
        try:
            assert sum(map(len, log.to_replay(7))) <= 2 * log.capacity
            assert log.given_up >= 0
        finally:
            log.close()


@functools.cache
def dirty_file() -> bytes:
    """One that a dead owner left, with a frozen and an active half."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "dirty"
        log = DirtyLog.open(path, b"u" * 16, 64)
        log.restart(7)
        log.append_mapped(1, 2, 3)
        log.freeze()
        log.append_unmapped(1, 2, 300)
        log.close()
        return path.read_bytes()


def read_catalogue(data: bytes) -> None:
    """A reader, and then an owner."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "catalog.db"
        path.write_bytes(data)
        with contextlib.suppress(ReplicatorError), Catalogue(path, read_only=True) as found:
            found.newest_id()
            found.points(5, UUID(int=1), 10)
            found.check()
        with Catalogue(path) as found:
            found.view(found.newest_id())
            found.discard_beyond(5)
            found.stage(6, [Put(Setting("x", "y"))])


@functools.cache
def catalogue_file() -> bytes:
    """A small one, checkpointed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "catalog.db"
        with Catalogue.create(path, PoolIdentity(UUID(int=7), 1), 0) as made:
            for number in range(1, 6):
                made.stage(number, [Put(Setting(f"s{number}", "v" * 100))])
            made.purge(5)
        return path.read_bytes()
