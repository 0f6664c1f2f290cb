"""NbdDevice and NbdPipeline over a server of this process: a device's contract, TLS, lost connections, refusals."""

from __future__ import annotations

import contextlib
import errno
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replicator.blockdev.nbd import NbdDevice
from replicator.blockdev.nbd_connection import client_tls, connect, list_exports
from replicator.blockdev.nbd_pipeline import NbdPipeline
from replicator.errors import DeviceError, NotFoundError, ReplicatorError, UnavailableError, UsageError
from replicator.nbd import protocol as p
from replicator.nbd.export import Export
from replicator.nbd.failures import NbdRefusedError
from replicator.nbd.handshake import Tls
from replicator.nbd.uri import NbdUri
from tests.support.certificates import make_certificates
from tests.support.nbd_server import MemoryExports, serving_memory
from tests.support.servers import tcp_socket, unix_socket

SIZE = 1 << 20


@pytest.fixture
def exports() -> MemoryExports:
    """A writable disk, which is the default one, and a read-only one."""
    return MemoryExports([Export("disk", SIZE, snapshots=("monday",)), Export("fixed", SIZE, read_only=True)])


@pytest.fixture
def uri(exports: MemoryExports, tmp_path: Path) -> Iterator[NbdUri]:
    """The default export, served on a Unix socket."""
    path = tmp_path / "nbd"
    with serving_memory(unix_socket(path), exports):
        yield NbdUri(socket_path=str(path))


@pytest.fixture
def device(uri: NbdUri) -> Iterator[NbdDevice]:
    """It, opened."""
    with NbdDevice(uri) as opened:
        yield opened


def test_what_is_written_is_read(device: NbdDevice, exports: MemoryExports) -> None:
    """B1, B2: of any alignment, longer than one request."""
    data = os.urandom(SIZE - 12)
    device.pwritev([data[:5], b"", data[5:]], 7)
    device.flush()
    assert exports.disk("disk").content() == bytes(7) + data + bytes(5)
    assert device.pread(SIZE, 0) == exports.disk("disk").content()
    target = memoryview(bytearray(64)).cast("Q")
    device.pread_into(target, 100)
    assert target.tobytes() == data[93:157]
    assert device.pread(0, SIZE) == b""


def test_large_transfers_go_in_pieces(tmp_path: Path) -> None:
    exports = MemoryExports([Export("", 10 << 20)])
    data = os.urandom((9 << 20) + 1)
    with (
        serving_memory(unix_socket(tmp_path / "nbd"), exports),
        NbdDevice(NbdUri(socket_path=str(tmp_path / "nbd"))) as device,
    ):
        device.pwrite(data, 11)
        assert device.pread(len(data), 11) == data


def test_ranges_beyond_the_end(device: NbdDevice) -> None:
    """B1: EINVAL, and nothing is sent."""
    calls: list[Callable[[int, int], object]] = [
        lambda offset, length: device.pread(length, offset),
        lambda offset, length: device.pwrite(bytes(length), offset),
        device.discard,
        device.write_zeroes,
        device.block_status,
    ]
    for call in calls:
        for offset, length in ((SIZE, 1), (SIZE - 1, 2), (-1, 1)):
            with pytest.raises(DeviceError) as caught:
                call(offset, length)
            assert caught.value.errno == errno.EINVAL


def test_discards_and_zeros(device: NbdDevice, exports: MemoryExports) -> None:
    device.pwrite(b"\xaa" * SIZE, 0)
    device.discard(4096, 5000)
    device.discard(0, 0)
    device.write_zeroes(100_000, 1)
    assert not device.discard_zeroes
    content = exports.disk("disk").content()
    assert content.count(b"\0") == 5001 and content[100_000] == 0 and content[4096:9096] == bytes(5000)


def test_block_status(device: NbdDevice) -> None:
    """A half of data, a half of hole; never more than was asked for."""
    assert device.block_status(0, SIZE) == [(SIZE // 2, 0), (SIZE // 2, p.STATE_HOLE | p.STATE_ZERO)]
    assert device.block_status(SIZE // 2 - 1, 3) == [(1, 0), (2, p.STATE_HOLE | p.STATE_ZERO)]
    assert device.block_status(5, 0) == []


def test_what_a_device_says_of_itself(device: NbdDevice, uri: NbdUri) -> None:
    assert (device.name, device.size_bytes, device.read_only, device.fileno()) == (str(uri), SIZE, False, -1)
    with pytest.raises(UsageError):
        device.grow(2 * SIZE)


@pytest.mark.parametrize(("export", "read_only"), [("fixed", False), ("disk", True)])
def test_read_only(uri: NbdUri, export: str, read_only: bool) -> None:
    with NbdDevice(NbdUri(export, socket_path=uri.socket_path), read_only=read_only) as device:
        calls: list[Callable[[], None]] = [
            lambda: device.pwrite(b"x", 0),
            lambda: device.discard(0, 1),
            lambda: device.write_zeroes(0, 1),
        ]
        for call in calls:
            with pytest.raises(DeviceError) as caught:
                call()
            assert caught.value.errno == errno.EROFS
        device.flush()
        assert device.read_only and device.pread(1, 0) == b"\0"


def test_many_threads(device: NbdDevice, exports: MemoryExports) -> None:
    """B5: more threads than connections."""
    stripe = SIZE // 8
    failures: list[BaseException] = []

    def work(index: int) -> None:
        try:
            for step in range(20):
                device.pwrite(bytes([index + 1]) * 512, index * stripe + step * 512)
                assert device.pread(512, index * stripe + step * 512) == bytes([index + 1]) * 512
                device.flush()
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert all(exports.disk("disk").pread(1, index * stripe) == bytes([index + 1]) for index in range(8))


def test_a_closed_device_says_so(device: NbdDevice) -> None:
    device.close()
    with pytest.raises(DeviceError) as caught:
        device.pread(1, 0)
    assert caught.value.errno == errno.ENOTCONN


# ---- opening -----------------------------------------------------------------------------------------------------


def test_exports_are_listed(uri: NbdUri) -> None:
    assert list_exports(uri) == (("disk", ""), ("fixed", ""))


def test_an_unknown_export(uri: NbdUri) -> None:
    with pytest.raises(NotFoundError, match="elsewhere"):
        NbdDevice(NbdUri("elsewhere", socket_path=uri.socket_path))


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError):
        connect(NbdUri(socket_path=str(tmp_path / "nobody")))
    listener = tcp_socket()
    port = listener.getsockname()[1]
    listener.close()
    with pytest.raises(UnavailableError):
        connect(NbdUri(host="127.0.0.1", port=port))


def test_a_server_that_hangs_up_or_is_silent(tmp_path: Path) -> None:
    with unix_socket(tmp_path / "nbd") as listener:
        uri = NbdUri(socket_path=str(tmp_path / "nbd"))
        with pytest.raises(UnavailableError, match="timed out"):
            connect(uri, timeout_s=0.05)

        def hang_up() -> None:
            for _ in range(2):
                listener.accept()[0].close()

        hanging_up = threading.Thread(target=hang_up)
        hanging_up.start()
        with pytest.raises(UnavailableError):
            connect(uri)
        hanging_up.join()


def test_a_socket_path_longer_than_an_address(
    exports: MemoryExports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.chdir(folder)
    with serving_memory(unix_socket(Path("nbd")), exports):
        assert len(list_exports(NbdUri(socket_path=str(folder / "nbd")))) == 2


# ---- TLS ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A folder with an authority, a server and a client."""
    make_certificates(tmp_path / "tls")
    return tmp_path / "tls"


@contextlib.contextmanager
def serving_tls(exports: MemoryExports, certificates: Path) -> Iterator[int]:
    """A server that requires TLS and a client's certificate; its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server-cert.pem", certificates / "server-key.pem")
    context.load_verify_locations(certificates / "ca-cert.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    listener = tcp_socket()
    with serving_memory(listener, exports, tls=Tls.REQUIRED, context=context):
        yield listener.getsockname()[1]


def test_a_disk_inside_tls(exports: MemoryExports, certificates: Path) -> None:
    """Both sides' certificates; transfers larger than a record, many at once."""
    data = os.urandom(500_000)
    with serving_tls(exports, certificates) as port:
        uri = NbdUri("disk", "127.0.0.1", port, None, True, str(certificates), "localhost")
        with NbdDevice(uri) as device:
            device.pwrite(data, 3)
            assert device.pread(len(data), 3) == data
        with NbdPipeline(connect(uri)) as pipe:
            for block in range(32):
                pipe.read(block * 4096, 4096)
            replies = pipe.collect(32)
        assert {bytes(reply.data) for reply in replies} == {
            exports.disk("disk").pread(4096, reply.request.offset_bytes) for reply in replies
        }


def test_tls_that_doesnt_come_about(exports: MemoryExports, uri: NbdUri, certificates: Path, tmp_path: Path) -> None:
    """In the clear to a server that requires it, to one that hasn't it, with others' certificates, with none."""
    make_certificates(tmp_path / "others")
    with pytest.raises(NbdRefusedError):
        connect(NbdUri(socket_path=uri.socket_path, tls=True))
    with pytest.raises(UsageError, match="no certificates"):
        client_tls(tmp_path / "nowhere")
    with serving_tls(exports, certificates) as port:
        with pytest.raises(NbdRefusedError) as refused:
            connect(NbdUri(host="127.0.0.1", port=port))
        assert refused.value.mend == "use an nbds:// URI"
        for folder, hostname in ((tmp_path / "others", "localhost"), (certificates, "elsewhere")):
            with pytest.raises(ReplicatorError, match="TLS with"):
                connect(NbdUri("", "127.0.0.1", port, None, True, str(folder), hostname))


# ---- the pipeline ----------------------------------------------------------------------------------------------------


def test_a_pipeline_of_everything(uri: NbdUri) -> None:
    """Replies by cookie; errors are told, not raised; contexts by the ids that the session names."""
    contexts = (p.BASE_ALLOCATION, "replicator:changed:monday")
    with NbdPipeline(connect(uri, contexts=contexts), depth=16) as pipe:
        pipe.write(0, b"x" * 4096, flags=p.CMD_FLAG_FUA)
        assert pipe.in_flight == 1 and pipe.room == 15 and pipe.pending[0].length_bytes == 4096
        pipe.collect()
        target = bytearray(10)
        wanted = [pipe.read(4090, 10, target), pipe.read(4090, 10, flags=p.CMD_FLAG_DF), pipe.flush()]
        wanted += [pipe.trim(8192, 1), pipe.write_zeroes(0, 1), pipe.cache(0, 1), pipe.block_status(0, SIZE)]
        refused = [pipe.read(SIZE, 1), pipe.write(SIZE, b"x"), pipe.trim(0, 0), pipe.read(0, 1, flags=1 << 9)]
        replies = {reply.request.cookie: reply for reply in pipe.collect(11)}
        assert all(not replies[cookie].error for cookie in wanted)
        assert target == bytes(replies[wanted[1]].data) == b"x" * 6 + bytes(4)
        assert replies[wanted[-1]].extents == {1: [(SIZE // 2, 0), (SIZE // 2, 3)], 2: [(65536, 1), (SIZE - 65536, 0)]}
        errors = [replies[cookie].error for cookie in refused]
        assert errors == [p.EINVAL, p.ENOSPC, p.EINVAL, p.EINVAL] and replies[refused[0]].message == "not so"
        assert pipe.collect() == [] and pipe.pending == ()


def test_simple_replies(uri: NbdUri) -> None:
    with NbdPipeline(connect(uri, structured=False)) as pipe:
        pipe.read(0, 3)
        pipe.read(SIZE, 3)
        first, second = pipe.collect(2)
        assert bytes(first.data) == bytes(3) and (second.error, second.message) == (p.EINVAL, "")
