"""External origins of an exporter: shared while they are open, and there again when their server is."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from replicator.errors import DeviceError
from replicator.exporter import origins
from replicator.exporter.origins import LastingOrigin, Origins
from replicator.nbd.export import Export
from replicator.pool.catalogue_schema import Origin
from replicator.pool.origins import identify_origin
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


def test_an_origin_whose_server_comes_back_is_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origins, "AGAIN_S", 0.0)
    shared, path = Origins(), tmp_path / "nbd"
    with _server(path, b"a"):
        origin = _identified(path)
        device = shared.get(origin)
        assert device is not None and device is shared.get(origin) and device.pread(4, 8) == b"aaaa"
    with pytest.raises(DeviceError):
        device.pread(4, 8)
    with _server(path, b"a"):
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
    with _server(path, b"b"), pytest.raises(DeviceError, match="other content"):
        device.pread(4, 8)
    with _server(path, b"a"):
        assert device.pread(4, 8) == b"aaaa"
        device.close()


def test_a_server_that_is_away_is_not_asked_by_every_read(tmp_path: Path) -> None:
    """R2."""
    clock, path = ManualClock(), tmp_path / "nbd"
    with _server(path, b"a"):
        device = LastingOrigin(_identified(path), clock.monotonic)
    with pytest.raises(DeviceError):
        device.pread(4, 8)
    with _server(path, b"a"):
        with pytest.raises(DeviceError):
            device.pread(4, 8)
        clock.advance(origins.AGAIN_S)
        assert device.pread(4, 8) == b"aaaa"
        device.close()


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
