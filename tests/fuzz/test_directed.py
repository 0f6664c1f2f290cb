"""Inputs that were made to hurt: bombs, names that are paths, cycles, trees that share themselves without end."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import zstandard

from replicator.blockdev.memory import MemoryDevice
from replicator.errors import FormatError, ReplicatorError, UsageError
from replicator.events.bodies import VolumeCreated, VolumeRenamed
from replicator.events.chunks import FRAME, ChunksWritten
from replicator.events.digests import crc32c
from replicator.events.frames import Decompressor
from replicator.history.names import check_name
from replicator.log.grammar import is_object, is_prefix
from replicator.pdata.block import BlockKind, seal
from replicator.thin.check import check
from replicator.thin.diff import diff
from replicator.thin.dump import dump
from replicator.thin.repair import examine, write
from replicator.thin.repair_roots import Hints
from replicator.thin.view import PoolView
from tests.support.event_streams import every_body, written
from tests.support.fuzz_pools import BLOCK, image
from tests.support.fuzzing import INPUT_S, MEMORY_BYTES

PATHS = ("../../etc/passwd", "/etc/passwd", "a/b", "..", "a\0b", "a\nb", "", "a@b", "a:b", "-rf", "x" * 5000)


def bounded(act: Callable[[], object]) -> None:
    """Within a second of this thread's time, and 64 MiB."""
    tracemalloc.start()
    began = time.thread_time()
    try:
        act()
    finally:
        took, peak = time.thread_time() - began, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert took < 4 * INPUT_S and peak < MEMORY_BYTES, (took, peak)


def bomb(content_bytes: int, *, declared: bool) -> bytes:
    """So many zeros in some hundred bytes."""
    return zstandard.ZstdCompressor(write_content_size=declared).compress(bytes(content_bytes))


def event_with(stored: bytes) -> ChunksWritten:
    """An event of one chunk whose frame is `stored`, its checksum and lengths right."""
    body = written(1)
    row = body.frame_rows.copy()
    row["codec"], row["stored_bytes"], row["crc32c"] = 1, len(stored), crc32c(stored)
    return replace(body, frame_table=np.ascontiguousarray(row).tobytes(), frames=(stored,))


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("content_bytes", [65537, 256 << 10, 16 << 20, 200 << 20])
def test_decompression_bombs(content_bytes: int, declared: bool) -> None:
    stored = bomb(content_bytes, declared=declared)

    def consume() -> None:
        with pytest.raises(FormatError):
            list(Decompressor().iter_chunks(event_with(stored)))

    bounded(consume)


def test_a_bomb_that_lies_about_its_size() -> None:
    """The frame's header says what the table says; what comes out is more."""
    stored = bytearray(bomb(65536, declared=True))
    longer = bomb(100 << 20, declared=True)
    stored = bytearray(stored[:9] + longer[9:])

    def consume() -> None:
        with pytest.raises(FormatError):
            list(Decompressor().iter_chunks(event_with(bytes(stored))))

    bounded(consume)


def test_a_frame_table_of_huge_lengths() -> None:
    body = written(1)
    for field in ("raw_bytes", "stored_bytes"):
        row = body.frame_rows.copy()
        row[field] = (1 << 32) - 1
        with pytest.raises(FormatError):
            replace(body, frame_table=np.ascontiguousarray(row).tobytes())
    assert FRAME.itemsize == 16


@pytest.mark.parametrize("name", PATHS)
def test_names_never_become_paths(name: str) -> None:
    """From the wire they are refused where they are decoded, from people where they are given."""
    created = next(each for each in every_body() if isinstance(each, VolumeCreated))
    renamed = next(each for each in every_body() if isinstance(each, VolumeRenamed))
    with pytest.raises((UsageError, FormatError)):
        check_name(name)
    if any(each in name for each in "@/:\0\n") or not name:
        for act in (lambda: replace(created, name=name), lambda: replace(renamed, name=name)):
            with pytest.raises(FormatError):
                act()


@pytest.mark.parametrize("name", ["../x", "/x", "a/../b", "a//b", "./a", "a\0", "a/", "a\n", "~/x", "a" * 5000])
def test_objects_never_lie_outside_their_log(name: str) -> None:
    assert not is_object(name)
    assert not is_prefix(name) or name == "a/"


def edit(data: bytearray, block: int, change: Callable[[bytearray], None]) -> None:
    """Change a node, and seal it."""
    part = data[block * BLOCK : (block + 1) * BLOCK]
    change(part)
    seal(part, BlockKind.NODE, block)
    data[block * BLOCK : (block + 1) * BLOCK] = part


def branch_of(block: int, child: int, keys: int) -> Callable[[bytearray], None]:
    """Make the node a branch all of whose entries lead to `child`."""

    def change(part: bytearray) -> None:
        part[4:8] = (1).to_bytes(4, "little")
        part[16:28] = keys.to_bytes(4, "little") + (252).to_bytes(4, "little") + (8).to_bytes(4, "little")
        part[32 : 32 + 8 * 252] = np.arange(252, dtype="<u8").tobytes()
        part[2048 : 2048 + 8 * 252] = np.full(252, child, dtype="<u8").tobytes()

    assert block >= 0
    return change


def read_everything(data: bytes) -> None:
    """As those do who are given a foreign pool."""
    device = MemoryDevice(content=data)
    assert not check(device).clean
    view = PoolView.live(device)
    roots = [entry.root for entry in view.devices()]
    for act in (
        lambda: list(dump(view)),
        lambda: [list(diff(view.store, a, b)) for a in roots for b in roots],
        lambda: write(examine(device, Hints()), MemoryDevice(256 * BLOCK)),
    ):
        try:
            act()
        except ReplicatorError as error:
            assert error.message


def device_root(data: bytearray) -> int:
    return PoolView.live(MemoryDevice(content=bytes(data))).devices()[0].root


def test_a_node_that_is_its_own_child() -> None:
    data = bytearray(image())
    root = device_root(data)
    edit(data, root, branch_of(root, root, 252))
    bounded(lambda: read_everything(bytes(data)))


def test_two_nodes_that_are_each_others_children() -> None:
    data = bytearray(image())
    root = device_root(data)
    other = int.from_bytes(data[root * BLOCK + 2048 :][:8], "little")
    edit(data, root, branch_of(root, other, 252))
    edit(data, other, branch_of(other, root, 252))
    bounded(lambda: read_everything(bytes(data)))


def test_a_tower_in_which_each_branch_names_the_next_one_252_times() -> None:
    """15 levels and 252**14 paths to one leaf: whoever follows paths instead of nodes never ends."""
    data = bytearray(image())
    root = device_root(data)
    free = [block for block in range(len(data) // BLOCK) if not any(data[block * BLOCK : block * BLOCK + 16])]
    assert len(free) >= 15
    chain = [root, *free[:14]]
    leaf = int.from_bytes(data[root * BLOCK + 2048 :][:8], "little")
    for block, child in zip(chain, [*chain[1:], leaf], strict=True):
        edit(data, block, branch_of(block, child, 252))
    bounded(lambda: read_everything(bytes(data)))
