"""pdata/mirror with two threads at once (M6): what one of them says of a copy isn't undone by the other."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Callable
from types import TracebackType

import pytest

from replicator._buffer import Buffer
from replicator.blockdev.memory import MemoryDevice
from replicator.errors import DeviceError
from replicator.pdata.block import BlockKind, seal
from replicator.pdata.mirror import Copies, MirroredDevice, MirrorState, Side
from replicator.units import METADATA_BLOCK_BYTES as BLOCK

BLOCKS = 8
PATIENCE_SECONDS = 60  # until a wait is a failure


def content(seed: int) -> bytes:
    """Good blocks."""
    blocks = [bytearray(random.Random(seed * BLOCKS + number).randbytes(BLOCK)) for number in range(BLOCKS)]
    for number, block in enumerate(blocks):
        seal(block, BlockKind.NODE, number)
    return b"".join(blocks)


class Dying(MemoryDevice):
    """One block of it can't be written any more."""

    def pwrite(self, data: Buffer, offset_bytes: int) -> None:
        if offset_bytes == 2 * BLOCK:
            raise DeviceError("write of A", offset_bytes, errno.EIO, "worn out")
        super().pwrite(data, offset_bytes)


class Turn:
    """A lock that tells when somebody comes and has to wait."""

    def __init__(self, waited_for: threading.Event) -> None:
        self._lock, self._waited_for = threading.RLock(), waited_for

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self._waited_for.set()
            self._lock.acquire()

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._lock.release()


@pytest.mark.parametrize("last", [MirroredDevice.flush, MirroredDevice.close])
def test_keeping_the_count_of_healed_blocks_does_not_bring_a_lost_copy_back(
    last: Callable[[MirroredDevice], None],
) -> None:
    """One reader healed a block; while a flush saves that, another finds that the first copy can't be healed."""
    whole, saved, came = content(1), [MirrorState()], threading.Event()
    damaged = bytearray(whole)
    damaged[BLOCK : 3 * BLOCK] = bytes(2 * BLOCK)

    def save(state: MirrorState) -> None:
        if state.lost is None and not reader.ident:
            reader.start()
            assert came.wait(PATIENCE_SECONDS)
        saved.append(state)
        if state.lost is not None:
            came.set()

    copies = {Side.FIRST: Dying(content=damaged, name="A"), Side.SECOND: MemoryDevice(content=whole, name="B")}
    device = MirroredDevice("metadata", copies, MirrorState(), save)
    device._turn = Turn(came)  # type: ignore[assignment]  # a lock as it is used here
    reader = threading.Thread(target=lambda: device.pread(BLOCK, 2 * BLOCK))
    assert device.pread(BLOCK, BLOCK) == whole[BLOCK : 2 * BLOCK]
    last(device)
    reader.join(PATIENCE_SECONDS)
    assert list(device.copies) == [Side.SECOND]
    assert (device.state.lost, device.state.healed_blocks) == (Side.FIRST, 1)
    assert saved[-1] == device.state, "what is on disk calls the lost copy good"


def test_no_reader_takes_the_old_copies_once_another_one_is_taking_the_new_ones() -> None:
    old, new, came = content(1), content(2), threading.Event()
    changed: list[Copies] = [{Side.SECOND: MemoryDevice(content=new)}]
    found: list[bytes] = []

    def read() -> None:
        found.append(device.pread(BLOCK, BLOCK))
        came.set()

    def look() -> Copies | None:
        if not changed:
            return None
        copies = changed.pop()
        other.start()
        assert came.wait(PATIENCE_SECONDS)
        return copies

    device = MirroredDevice(
        "metadata",
        {Side.FIRST: MemoryDevice(content=old)},
        MirrorState(),
        lambda _: None,
        read_only=True,
        look=look,
    )
    device._turn = Turn(came)  # type: ignore[assignment]  # a lock as it is used here
    other = threading.Thread(target=read)
    read()
    other.join(PATIENCE_SECONDS)
    assert found == [new[BLOCK : 2 * BLOCK]] * 2
