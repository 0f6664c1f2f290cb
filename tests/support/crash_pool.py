"""A tiny pool on simulated disks: its catalogue a model, its `dirty` a file in memory whose every store is seen.

Used by the crash workloads and their oracle. The code under test is the real one: pool/local, pool/volumes, thin/ and
pdata/. Of SQLite only the promise is modelled, that a commit is wholly there once it has returned, and not at all
before (`MemoryCatalogue`); tests/properties/test_catalogue holds the real one against the same interface.

    base pool     metadata 64 blocks, data 20 blocks of 64 KiB, filled with old content that must never show
      a (dev 1)   3.9 blocks, open for writing; 0, 1, 2 written; snapshot a1 (dev 4); 0 written again: its own
      b (dev 2)   2 blocks, open for writing; 0 written
      c (dev 3)   3 blocks, open nowhere; 0, 1 applied; snapshot c1 (dev 5); 1 applied again
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import numpy as np
import pytest

from replicator.blockdev.interface import BlockDevice
from replicator.pdata.room import PoolShape
from replicator.pool import volumes
from replicator.pool.catalogue import Catalogue
from replicator.pool.catalogue_schema import LoggedPoint, PoolIdentity, Position, Role
from replicator.pool.changes import Change, Put
from replicator.pool.deleting import being_deleted
from replicator.pool.interface import Filling, Switch
from replicator.pool.local import LocalPool
from replicator.pool.view import CatalogueView
from replicator.thin import admission, opening, space
from replicator.thin.dirty import DirtyLog
from replicator.thin.engine import Engine
from replicator.thin.metadata import PoolMetadata
from replicator.units import METADATA_BLOCK_BYTES
from tests.support.crash_disk import DATA, METADATA, CrashDisk, CrashJournal, Image

BLOCK = 65536
METADATA_BLOCKS = 64
ROOMY_BLOCKS = 192  # with fewer, what admission keeps for a commit's worst case lets nobody write beside a commit
DATA_BLOCKS = 20
RECORDS = 64
COMMIT_BLOCKS, CHANGE_BLOCKS = 8, 3  # that a commit writes where each tree is one leaf, mapping trees apart; a change
UUID_BYTES = b"crash-pool-uuid!"
A, B, C, A1, C1 = 1, 2, 3, 4, 5
A_BYTES, B_BYTES, C_BYTES = 4 * BLOCK - 8192, 2 * BLOCK, 3 * BLOCK
LIVE = (A, B)


class MemoryCatalogue:
    """The catalogue's promise in memory: `views` by transaction id; `journal` hears of each commit."""

    def __init__(self, views: dict[int, CatalogueView], at_id: int, journal: CrashJournal | None = None) -> None:
        self.views = {number: view for number, view in views.items() if number <= at_id}
        self._journal = journal

    def view(self, at_id: int) -> CatalogueView:
        """All that is valid at `at_id`."""
        assert at_id in self.views, f"the catalogue ends at {max(self.views)}, but the superblock is at {at_id}"
        return self.views[at_id]

    def stage(self, next_id: int, changes: Sequence[Change]) -> None:
        """The rows of `next_id`, synced when it returns."""
        staged = self.view(next_id - 1).after(changes, next_id)
        if self._journal is not None:
            self._journal.staged(next_id)
        self.views[next_id] = staged

    def points(self, _at_id: int, _volume: UUID, _limit: int, _timeline: int | None = None) -> list[LoggedPoint]:
        """None: the workloads log nothing."""
        return []

    def purge(self, _oldest_reader_id: int) -> int:
        """Nothing: workloads are short."""
        return 0


class DirtyTap:
    """`opening.DirtyLog` for engines whose stores into `dirty` the journal is to see one by one."""

    def __init__(self, journal: CrashJournal) -> None:
        self._journal = journal

    def open(self, path: Path, pool_uuid: bytes, capacity: int) -> DirtyLog:
        """The real one, its words watched."""
        log = DirtyLog.open(path, pool_uuid, capacity)
        whole = log._map
        self._journal.watch_dirty(lambda: bytes(whole) if not whole.closed else self._journal.last_dirty)
        log._words = cast("memoryview[int]", _WatchedWords(log._words, self._journal))
        return log


class _WatchedWords:
    """The header's words: before and after each store the journal looks."""

    def __init__(self, words: memoryview[int], journal: CrashJournal) -> None:
        self._words, self._journal = words, journal

    def __getitem__(self, index: int) -> int:
        return self._words[index]

    def __setitem__(self, index: int, value: int) -> None:
        self._journal.look_at_dirty()
        self._words[index] = value
        self._journal.look_at_dirty()

    def release(self) -> None:
        self._words.release()


class DirtyFile:
    """A file in memory with a path, so that it can be opened as `dirty` is, and nothing is left behind."""

    def __init__(self, content: bytes = b"") -> None:
        self._fd = os.memfd_create("dirty")
        self.path = Path(f"/proc/self/fd/{self._fd}")
        os.pwrite(self._fd, content, 0)

    def content(self) -> bytes:
        """What is in it."""
        return os.pread(self._fd, os.fstat(self._fd).st_size, 0)

    def close(self) -> None:
        """It is gone."""
        os.close(self._fd)


def make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on METADATA_BLOCKS are enough; and data blocks come by fours, so that what is freed is given again soon.

    The worst case that admission keeps free is that of trees of any height; here each tree is one leaf, so a commit
    writes a block for each of three volumes and COMMIT_BLOCKS. Were that too little, a commit would fail, or an
    operation would raise NoSpaceError, and the test with it (crash_workloads.Player.switch, crash_runs.crash_words).
    """
    monkeypatch.setattr(space, "STOCK_BLOCKS", 4)
    monkeypatch.setattr(PoolShape, "worst_case", lambda _shape, weight: COMMIT_BLOCKS + min(weight, 3))
    monkeypatch.setattr(admission, "CHANGE_BLOCKS", CHANGE_BLOCKS)


@dataclass(slots=True)
class CrashPool:
    """An open pool on simulated disks: at which transaction, and with which deletions to end, it was opened."""

    journal: CrashJournal
    metadata: CrashDisk
    data: CrashDisk
    dirty: DirtyFile
    catalogue: MemoryCatalogue
    pool: LocalPool
    replayed: int
    opened_at: int
    deleting: tuple[int, ...]
    last_dirty: bytes = b""

    @property
    def engine(self) -> Engine:
        """Its engine."""
        return self.pool.engine


@contextmanager
def opened(
    image: Image,
    views: dict[int, CatalogueView],
    *,
    journal: CrashJournal | None = None,
    live: Sequence[int] = (),
    over: Callable[[CrashDisk], BlockDevice] = lambda disk: disk,
) -> Iterator[CrashPool]:
    """Open what a crash left (or a base pool), its volumes `live` for writing; closed, with a commit, at the end.

    What was being deleted is gone before it is handed out. With a `journal` every event from the first on is in it;
    `close` is not. The engine works `over` the metadata's disk.
    """
    told = journal or CrashJournal(recording=False)
    durable = image.durable or (None, None)
    metadata = told.disk(METADATA, image.metadata, durable=durable[0])
    data = told.disk(DATA, image.data, durable=durable[1])
    told.begin(image.dirty, image.catalogue_id, image.volatile)
    dirty = DirtyFile(image.dirty)
    catalogue = MemoryCatalogue(views, image.catalogue_id, told)
    crash: CrashPool | None = None
    try:
        engine, replayed = _open_engine(told, over(metadata), data, dirty)
        try:
            found = catalogue.view(engine.metadata.superblock.transaction_id)
            dying = tuple(being_deleted(found))
            pool = LocalPool(Path("pool"), engine, cast("Catalogue", catalogue), replayed=replayed, clock_ns=lambda: 1)
            for row in [row for row in pool.view().volumes if row.dev_id in live]:
                pool.open_live(row.dev_id, row.size_bytes, None)
            pool._deletions.finish()
            crash = CrashPool(told, metadata, data, dirty, catalogue, pool, replayed, found.at_id, dying)
            yield crash
        finally:
            told.at_flush = lambda _: None
            told.recording = False
            engine.close()
    finally:
        if crash is not None:
            crash.last_dirty = dirty.content()
        dirty.close()


def _open_engine(told: CrashJournal, metadata: BlockDevice, data: CrashDisk, dirty: DirtyFile) -> tuple[Engine, int]:
    with pytest.MonkeyPatch.context() as patched:
        if told.recording:
            patched.setattr(opening, "DirtyLog", DirtyTap(told))
        return opening.open_engine(metadata, data, dirty.path, dirty_capacity=RECORDS)


@dataclass(frozen=True, slots=True)
class Base:
    """A pool to begin workloads with: what is on disk, its catalogue, and what each device reads as."""

    image: Image
    views: dict[int, CatalogueView]
    contents: dict[int, bytes]
    position: Position = field(repr=False)


@cache
def base_pool(metadata_blocks: int = METADATA_BLOCKS) -> Base:
    """The pool of this module's table; with METADATA_BLOCKS only after `make_small`."""
    chance = random.Random(7)
    journal = CrashJournal(recording=False)
    metadata = journal.disk(METADATA, bytes(metadata_blocks * METADATA_BLOCK_BYTES))
    made = PoolMetadata.format(metadata, BLOCK, DATA_BLOCKS, UUID_BYTES)
    made.commit(lambda: None)
    identity = PoolIdentity(UUID(int=1), 0)
    views = {0: CatalogueView(0, {PoolIdentity: {(identity.uuid,): identity}})}
    image = Image(metadata.content(), chance.randbytes(DATA_BLOCKS * BLOCK), b"", 0, "base")
    blocks = [chance.randbytes(BLOCK) for _ in range(8)]
    with opened(image, views) as crash:
        pool = crash.pool
        rows = [volumes.create_volume(pool, name, size) for name, size in (("a", A_BYTES), ("b", B_BYTES))]
        third = volumes.create_volume(pool, "c", C_BYTES)
        devices = {row.dev_id: pool.open_live(row.dev_id, row.size_bytes, None) for row in rows}
        _look_from_the_start(crash)
        for number, (dev_id, block) in enumerate(((A, 0), (A, 1), (A, 2), (B, 0))):
            _write(crash, devices[dev_id], blocks[number], block * BLOCK)
        volumes.create_snapshot(pool, "a", "a1")
        _write(crash, devices[A], blocks[4], 0)
        _look_from_the_start(crash)
        position = Position(third.uuid, Role.APPLIED, 1, 1, b"", 1, 1)
        apply_blocks(crash, C, {0: blocks[5], 1: blocks[6]}, position)
        _look_from_the_start(crash)
        volumes.create_snapshot(pool, "c", "c1")
        apply_blocks(crash, C, {1: blocks[7]}, position)
        _look_from_the_start(crash)
        pool.flush()
        last = pool.view().at_id
        contents = {
            A: (blocks[4] + blocks[1] + blocks[2]).ljust(A_BYTES, b"\0"),
            B: blocks[3].ljust(B_BYTES, b"\0"),
            C: (blocks[5] + blocks[7]).ljust(C_BYTES, b"\0"),
            A1: (blocks[0] + blocks[1] + blocks[2]).ljust(A_BYTES, b"\0"),
            C1: (blocks[5] + blocks[6]).ljust(C_BYTES, b"\0"),
        }
        found = {dev: crash.engine.open_device(dev, len(each)).pread(len(each), 0) for dev, each in contents.items()}
        assert found == contents, "the base pool isn't what was written"
    image = Image(crash.metadata.content(), crash.data.content(), b"", last, "base")
    return Base(image, crash.catalogue.views, contents, position)


def _look_from_the_start(crash: CrashPool) -> None:
    """The next metadata block to be given is the lowest free one, so that what is in use stays together."""
    crash.engine.metadata.transaction.metadata.counts._cursor = 1


def _write(crash: CrashPool, device: Any, data: bytes, offset_bytes: int) -> None:
    with crash.engine.gate.writing():
        device.pwrite(data, offset_bytes)


def apply_blocks(
    crash: CrashPool, dev_id: int, blocks: dict[int, bytes], position: Position, unmapped: tuple[int, int] | None = None
) -> None:
    """What a receiver does: new blocks beside the old ones, then one switch of mappings and position."""
    reserved = crash.pool.reserve(len(blocks))
    for block, data in zip(reserved.tolist(), blocks.values(), strict=True):
        crash.data.pwrite(data, block * BLOCK)
    ranges = np.array([unmapped] if unmapped else [], dtype=np.uint64).reshape(-1, 2)
    filling = Filling(dev_id, np.array(list(blocks), dtype=np.uint64), reserved, ranges)
    crash.pool.switch(Switch(fill=(filling,), changes=(Put(position),)))
