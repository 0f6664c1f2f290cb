"""The n-th system call on a pool's files fails, for every n, opening to closing: EIO, ENOSPC, short transfers (E3).

Below blockdev/file, so that what stands above is the real thing: pool/opening, the catalogue, the engine, `dirty`. What
failed is told to its asker; what was flushed, or switched, is there afterwards, to the sector or newer; the next
opening is clean. SQLite does its own system calls: its failures come with the limits of file size and of a small disk.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from replicator.blockdev import file
from replicator.errors import ReplicatorError
from replicator.pool import volumes
from replicator.pool.creation import PoolPlan, create_pool
from replicator.pool.interface import Filling, Switch
from replicator.pool.opening import OwnedPool, own_pool
from replicator.thin.check import check
from replicator.units import KIB, MIB
from tests.support.crash_knowledge import differing
from tests.support.file_limits import files_end_at

BLOCK = 64 * KIB
SIZE = 5 * BLOCK - 4096
READS, WRITES = ("pread", "preadv"), ("pwrite", "pwritev")
ROOM = ("posix_fallocate", "ftruncate")
SYNC = ("fdatasync",)


class FailingCalls:
    """The module os for blockdev/file, whose `nth` call among `names` fails with `number`; 0: it transfers half."""

    def __init__(self, names: Sequence[str], nth: int, number: int, *, always: bool = False) -> None:
        self._names, self._nth, self._errno, self._always = names, nth, number, always
        self.calls = 0

    @property
    def met(self) -> bool:
        """Whether it failed."""
        return self.calls >= self._nth

    def __getattr__(self, name: str) -> Any:
        call = getattr(os, name)
        return self._counted(call, name) if name in self._names else call

    def _counted(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls != self._nth and not (self._always and self.met):
                return call(*arguments)
            if self._errno:
                raise OSError(self._errno, os.strerror(self._errno))
            return self._half(call, name, *arguments)

        return counted

    @staticmethod
    def _half(call: Callable[..., Any], name: str, descriptor: int, data: Any, offset: int) -> Any:
        if name == "pread":
            return call(descriptor, max(1, data // 2), offset)
        if name == "pwrite":
            view = memoryview(data).cast("B")
            return call(descriptor, view[: max(1, len(view) // 2)], offset)
        first = memoryview(data[0]).cast("B")
        return call(descriptor, [first[: max(1, len(first) // 2)]], offset)


@dataclass(slots=True)
class Told:
    """What the volumes v and c, and the snapshot s of v, may read as."""

    v: list[bytes]
    c: list[bytes]
    s: list[bytes] = field(default_factory=list)
    s_may_be: bool = False
    done: bool = False


def make(path: Path) -> Told:
    """A pool with both volumes written, closed."""
    create_pool(path, PoolPlan(size_bytes=2 * MIB, metadata_bytes=2 * MIB))
    with own_pool(path) as pool:
        rows = [volumes.create_volume(pool, name, SIZE) for name in "vc"]
        contents = [bytes([number + 1]) * (2 * BLOCK) for number in range(2)]
        for row, content in zip(rows, contents, strict=True):
            device = pool.open_live(row.dev_id, SIZE, None)
            with pool.engine.gate.writing():
                device.pwrite(content, 0)
    first, second = ([content.ljust(SIZE, b"\0")] for content in contents)
    return Told(first, second)


def play(pool: OwnedPool, told: Told) -> None:
    """Open for writing, write, flush, cut, write, trim, apply, delete, flush."""
    row = pool.view().volume("v")
    device = pool.open_live(row.dev_id, SIZE, None)

    def write(data: bytes, offset: int, *, trim: bool = False) -> None:
        now = told.v[-1]
        told.v.append(now[:offset] + data + now[offset + len(data) :])
        with pool.engine.gate.writing():
            if trim:
                device.discard(offset, len(data))
            else:
                device.pwrite(data, offset)

    def flushed() -> None:
        told.v = told.v[-1:]

    write(b"\x11" * 4096, 512)
    write(b"\x12" * 9000, 3 * BLOCK - 4096)
    pool.flush()
    flushed()
    told.s, told.s_may_be = [told.v[-1]], True
    volumes.create_snapshot(pool, "v", "s")
    told.s_may_be = False
    flushed()
    write(b"\x13" * BLOCK, BLOCK)
    write(b"\x14" * 512, 512)
    write(bytes(BLOCK), 0, trim=True)
    blocks = pool.reserve(1)
    pool.engine.data.pwrite(b"\x15" * BLOCK, int(blocks[0]) * BLOCK)
    target = pool.view().volume("c").dev_id
    before = told.c[-1]
    told.c.append(before[:BLOCK] + b"\x15" * BLOCK + before[2 * BLOCK :])
    pool.switch(Switch(fill=(Filling(target, np.array([1], dtype=np.uint64), blocks),)))
    told.c, told.v = told.c[-1:], told.v[-1:]
    told.s_may_be = True
    volumes.delete_snapshot(pool, "s")
    told.s = []
    write(b"\x16" * 4096, 4 * BLOCK)
    pool.flush()
    flushed()
    told.done = True


def run(path: Path, told: Told) -> bool:
    """Open, play, close; whether an error was told."""
    try:
        pool = own_pool(path)
    except ReplicatorError:
        return True
    failed = False
    try:
        play(pool, told)
    except ReplicatorError:
        failed = True
    try:
        pool.close()
    except ReplicatorError:
        failed = True
    return failed or pool.engine.failed is not None


def verify(path: Path, told: Told) -> None:
    """The next opening is clean, and has what was durable, or what came later."""
    with own_pool(path) as pool:
        view = pool.view()
        for name, allowed in (("v", told.v), ("c", told.c)):
            found = content(pool, view.volume(name).dev_id)
            assert not differing(found, allowed, 512), f"{name}: sectors {differing(found, allowed, 512)[:8]}"
        snapshot = view.snapshot_named("s")
        assert (snapshot is not None) == bool(told.s) or told.s_may_be
        if snapshot is not None:
            assert content(pool, snapshot.dev_id) == told.s[-1]
        volumes.create_snapshot(pool, "v", "afterwards")
        report = check(pool.engine.metadata.store.device)
    assert report.findings == (), [str(each) for each in report.findings]


def content(pool: OwnedPool, dev_id: int) -> bytes:
    return pool.engine.open_device(dev_id, SIZE).pread(SIZE, 0)


@pytest.mark.parametrize(
    ("names", "number"),
    [(READS, errno.EIO), (WRITES, errno.EIO), (WRITES, errno.ENOSPC), (SYNC, errno.EIO), (ROOM, errno.ENOSPC)],
    ids=["read-eio", "write-eio", "write-enospc", "sync-eio", "room-enospc"],
)
def test_the_nth_call_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: Sequence[str], number: int) -> None:
    first, nth = make(tmp_path / "first"), 0
    while True:
        nth += 1
        path, told = tmp_path / "pool", Told(list(first.v), list(first.c))
        shutil.copytree(tmp_path / "first", path)
        calls = FailingCalls(names, nth, number)
        with monkeypatch.context() as patched:
            patched.setattr(file, "os", calls)
            failed = run(path, told)
        assert calls.met or not failed
        verify(path, told)
        shutil.rmtree(path)
        if not calls.met:
            break
    print(f"\n{nth - 1} calls failed, each in a run of its own")
    assert told.done and nth > 1


@pytest.mark.parametrize("names", [READS, WRITES], ids=["reads", "writes"])
def test_short_transfers_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: Sequence[str]) -> None:
    told, calls = make(tmp_path / "pool"), FailingCalls(names, 1, 0, always=True)
    with monkeypatch.context() as patched:
        patched.setattr(file, "os", calls)
        assert not run(tmp_path / "pool", told)
    print(f"\n{calls.calls} calls, all of them short")
    verify(tmp_path / "pool", told)
    assert told.done and len(told.v) == 1


@pytest.mark.parametrize("limit_kib", [0, 4, 24, 40, 64, 96, 160, 256, 400, 1024])
def test_a_limit_on_the_length_of_files(tmp_path: Path, limit_kib: int) -> None:
    told = make(tmp_path / "pool")
    with files_end_at(limit_kib * KIB), suppress(ReplicatorError):
        failed = run(tmp_path / "pool", told)
        assert failed != told.done
    verify(tmp_path / "pool", told)
