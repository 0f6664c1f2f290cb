"""A disk that fails under a served volume: the request says so, the connection goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.blockdev.faulty import Fault, FaultyDevice, OperationKind
from replicator.blockdev.memory import MemoryDevice
from replicator.errors import ConflictError, DeviceError, NoSpaceError, ReplicatorError
from replicator.exporter.execution import NotFastError, error_value
from replicator.nbd import protocol as p
from tests.support.nbd_ground import BLOCK, BLOCKS, SIZE, Client, made_ground, serving_ground


@pytest.mark.parametrize(
    ("error", "value"),
    [
        (NoSpaceError("full"), p.ENOSPC),
        (DeviceError("disk", 0, 28, "full"), p.ENOSPC),
        (DeviceError("disk", 0, 5, "broken"), p.EIO),
        (DeviceError("disk", 0, 22, "beyond"), p.EIO),
        (ConflictError("read-only"), p.EPERM),
        (NotFastError("slow"), p.ENOTSUP),
        (ReplicatorError("?"), p.EIO),
        (ValueError("a fault of ours"), p.EIO),
    ],
)
def test_errors_of_the_pool_have_words_in_nbd(error: Exception, value: int) -> None:
    assert error_value(error) == value


@contextlib.contextmanager
def client_over(folder: Path, *faults: Fault) -> Iterator[Client]:
    """A client of a volume on a disk with these faults."""
    disk = FaultyDevice(MemoryDevice(BLOCKS * BLOCK), faults)
    with made_ground(folder, disk) as ground, serving_ground(ground, folder / "s") as serving:
        with serving.client() as client:
            yield client
        assert len(disk.met) == len(faults)


def test_a_read_error_is_told_and_forgotten(tmp_path: Path) -> None:
    faults = [Fault(nth, kinds=frozenset({OperationKind.READ})) for nth in (1, 3, 5)]
    with client_over(tmp_path, *faults) as client:
        assert client.write(0, b"x" * SIZE) == 0
        for length in (512, 2 * BLOCK, SIZE):
            client.send(p.CMD_READ, 0, length)
            assert client.reply(length)[1] == p.EIO
            assert client.read(0, length) == b"x" * length


def test_a_write_error_is_told_and_the_old_content_stays(tmp_path: Path) -> None:
    with client_over(tmp_path, Fault(1, kinds=frozenset({OperationKind.WRITE}))) as client:
        assert client.write(0, b"x" * 512) == p.EIO
        assert client.read(0, 512) == bytes(512)
        assert client.write(0, b"x" * 512) == 0
        assert client.read(0, 512) == b"x" * 512


def test_after_a_failed_flush_nothing_is_acknowledged(tmp_path: Path) -> None:
    opening_flushes = 1
    with client_over(tmp_path, Fault(opening_flushes + 1, kinds=frozenset({OperationKind.FLUSH}))) as client:
        assert client.write(0, b"x" * BLOCK) == 0
        for _ in range(2):
            client.send(p.CMD_FLUSH)
            assert client.reply()[1] == p.EIO
            for offset in (0, 5 * BLOCK):
                assert client.write(offset, b"y" * 4096) == p.EIO
        assert client.read(0, BLOCK) == b"x" * BLOCK
