"""External origins of an exporter: shared while they are open, and there again when their server is."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from replicator.blockdev.interface import BlockDevice
from replicator.errors import DeviceError
from replicator.exporter import origins
from replicator.exporter.origins import LastingOrigin, Origins
from replicator.nbd.export import Export
from replicator.pool.catalogue_schema import Origin
from replicator.pool.origins import identify_origin, open_origin
from replicator.units import KIB
from tests.support.manual_clock import ManualClock
from tests.support.nbd_server import MemoryExports, serving_memory

SIZE = 256 * KIB


@contextlib.contextmanager
def _server(path: Path, content: bytes) -> Iterator[None]:
    """An NBD server at that socket, with one read-only export."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    exports = MemoryExports([Export("image", SIZE, read_only=True)])
    exports.disk("image").pwrite(content * SIZE, 0)
    with serving_memory(listener, exports):
        yield


def _identified(path: Path) -> Origin:
    return identify_origin(f"nbd+unix:///image?socket={path}")


def _opened_again(device: BlockDevice) -> None:
    """A read finds the server away, and the opening that it has begun comes to its end."""
    assert isinstance(device, LastingOrigin)
    with pytest.raises(DeviceError):
        device.pread(4, 8)
    if device._opening is not None:
        device._opening.join()


def test_an_origin_whose_server_comes_back_is_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origins, "AGAIN_S", 0.0)
    shared, path = Origins(), tmp_path / "nbd"
    with _server(path, b"a"):
        origin = _identified(path)
        device = shared.get(origin)
        assert device is not None and device is shared.get(origin) and device.pread(4, 8) == b"aaaa"
    _opened_again(device)
    with _server(path, b"a"):
        _opened_again(device)
        assert device.pread(4, 8) == b"aaaa" and shared.get(origin) is device
        shared.close()
        with pytest.raises(DeviceError):
            device.pread(4, 8)


def test_an_origin_that_came_back_as_another_is_read_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R1: until the right one is there again."""
    monkeypatch.setattr(origins, "AGAIN_S", 0.0)
    path = tmp_path / "nbd"
    with _server(path, b"a"):
        device = LastingOrigin(_identified(path))
    with _server(path, b"b"):
        _opened_again(device)
    with pytest.raises(DeviceError, match="other content"):
        device.pread(4, 8)
    with _server(path, b"a"):
        _opened_again(device)
        assert device.pread(4, 8) == b"aaaa"
        device.close()


def test_a_server_that_is_away_is_not_asked_by_every_read(tmp_path: Path) -> None:
    """R2."""
    clock, path = ManualClock(), tmp_path / "nbd"
    with _server(path, b"a"):
        device = LastingOrigin(_identified(path), clock.monotonic)
    _opened_again(device)
    with _server(path, b"a"):
        _opened_again(device)
        _opened_again(device)
        clock.advance(origins.AGAIN_S)
        _opened_again(device)
        assert device.pread(4, 8) == b"aaaa"
        device.close()


def test_no_read_waits_for_a_server_that_doesnt_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R2: it may stand in the gate, and all writers behind it; what is opened after the end is closed again."""
    path, answers, go_on = tmp_path / "nbd", threading.Event(), threading.Event()
    with _server(path, b"a"):
        device = LastingOrigin(_identified(path))
        real = open_origin

        def slow(origin: Origin) -> BlockDevice:
            answers.set()
            assert go_on.wait(30)
            return real(origin)

        monkeypatch.setattr("replicator.exporter.origins.open_origin", slow)
        device._device.close()
        for _ in range(2):
            with pytest.raises(DeviceError):
                device.pread(4, 8)
        assert answers.wait(30)
        opening = device._opening
        assert opening is not None
        device.close()
        go_on.set()
        opening.join()
        with pytest.raises(DeviceError):
            device.pread(4, 8)


def test_an_origin_is_never_written(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"i" * SIZE)
    with contextlib.closing(LastingOrigin(identify_origin(str(image)))) as device:
        assert device.read_only and device.name and device.size_bytes == SIZE and device.fileno() == -1
        device.flush()
        for refused in (
            partial(device.pwrite, b"x", 0),
            partial(device.pwritev, [b"x"], 0),
            partial(device.discard, 0, SIZE),
            partial(device.grow, 2 * SIZE),
        ):
            with pytest.raises(DeviceError, match="reading only"):
                refused()
        with pytest.raises(DeviceError):
            device.pread(1, SIZE)
    assert image.read_bytes() == b"i" * SIZE
