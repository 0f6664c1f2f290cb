"""Our NBD client against nbdkit and qemu-nbd; and our handshake, replies and extents against their clients."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.blockdev.nbd import NbdDevice
from replicator.blockdev.nbd_connection import connect, list_exports
from replicator.blockdev.nbd_pipeline import NbdPipeline
from replicator.errors import DeviceError, NotFoundError, ReplicatorError
from replicator.nbd import protocol as p
from replicator.nbd.export import Export
from replicator.nbd.failures import NbdRefusedError
from replicator.nbd.uri import NbdUri
from tests.support import servers
from tests.support.certificates import make_certificates
from tests.support.judges import nbd_tool, nbdkit_part
from tests.support.nbd_server import MemoryExports, serving_memory

SIZE = 8 << 20
HOLE = p.STATE_HOLE | p.STATE_ZERO

pytestmark = pytest.mark.usefixtures("nbd_judges")


def at(path: Path, export: str = "") -> NbdUri:
    return NbdUri(export, socket_path=str(path))


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[NbdUri]:
    """nbdkit's sparse memory disk."""
    path = tmp_path / "memory"
    with servers.nbdkit("memory", [f"size={SIZE}"], servers.unix_socket(path), tmp_path / "log"):
        yield at(path)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A file with 64 KiB of data at 1 MiB, else a hole."""
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(SIZE)
        file.seek(1 << 20)
        file.write(os.urandom(65536))
        os.fsync(file.fileno())
    return path


def test_random_writes_and_reads(memory: NbdUri) -> None:
    """Against a bytearray: unaligned, up to a megabyte, over four connections."""
    chance, model = random.Random(1), bytearray(SIZE)
    with NbdDevice(memory) as device:
        for _ in range(200):
            begin = chance.randrange(SIZE)
            length = min(chance.choice([1, 511, 4096, 65537, 1 << 20]), SIZE - begin)
            if chance.random() < 0.5:
                data = chance.randbytes(length)
                device.pwrite(data, begin)
            else:
                data = bytes(length)
                device.write_zeroes(begin, length)
            model[begin : begin + length] = data
        device.flush()
        assert device.pread(SIZE, 0) == model


def test_extents_of_a_sparse_file(disk: Path, tmp_path: Path) -> None:
    path = tmp_path / "file"
    listener = servers.unix_socket(path)
    with servers.nbdkit("file", [str(disk)], listener, tmp_path / "log"), NbdDevice(at(path)) as device:
        assert device.block_status(0, SIZE) == [(1 << 20, HOLE), (65536, 0), (SIZE - (1 << 20) - 65536, HOLE)]
        assert device.block_status((1 << 20) - 1, 10) == [(1, HOLE), (9, 0)]
        device.pwrite(b"\xee" * 65536, 0)
        device.discard(1 << 20, 65536)
        device.flush()
    assert disk.read_bytes() == b"\xee" * 65536 + bytes(SIZE - 65536)


@pytest.mark.parametrize("structured", [True, False])
def test_a_deep_pipeline(memory: NbdUri, structured: bool) -> None:
    """A hundred and twenty-eight at once, answered in any order, simply or in chunks."""
    with NbdPipeline(connect(memory, structured=structured), depth=128) as pipe:
        assert pipe.session.structured == structured and bool(pipe.session.contexts) == structured
        for block in range(0, 2048, 128):
            for index in range(block, block + 128):
                pipe.write(index * 4096, index.to_bytes(4, "big") * 1024)
            assert not any(reply.error for reply in pipe.collect(128))
        for block in range(0, 2048, 128):
            for index in range(block, block + 128):
                pipe.read(index * 4096, 4096)
            for reply in pipe.collect(128):
                index = reply.request.offset_bytes // 4096
                assert bytes(reply.data) == index.to_bytes(4, "big") * 1024
        pipe.flush()
        pipe.cache(0, 4096)
        pipe.write(0, b"x", flags=p.CMD_FLAG_FUA)
        pipe.write_zeroes(1, 1, flags=p.CMD_FLAG_NO_HOLE)
        pipe.trim(4096, 4096)
        assert [reply.error for reply in pipe.collect(5)] == [0] * 5


def test_errors_of_a_server(tmp_path: Path) -> None:
    """A bad disk's errors arrive as DeviceErrors with errno and place, and the connection goes on."""
    path, filters = tmp_path / "bad", ["error"]
    parameters = [f"size={SIZE}", "error-pread=ENOSPC", "error-pread-rate=100%"]
    with (
        servers.nbdkit("memory", parameters, servers.unix_socket(path), tmp_path / "log", filters=filters),
        NbdDevice(at(path)) as device,
    ):
        for _ in range(2):
            with pytest.raises(DeviceError) as caught:
                device.pread(10, 4096)
            assert (caught.value.errno, caught.value.offset_bytes) == (errno.ENOSPC, 4096)
        device.pwrite(b"x", 0)


def test_a_minimum_block_of_a_server(tmp_path: Path) -> None:
    path, filters = tmp_path / "blocks", ["blocksize-policy"]
    parameters = [f"size={SIZE}", "blocksize-minimum=4096", "blocksize-preferred=65536", "blocksize-maximum=128K"]
    parameters.append("blocksize-error-policy=error")
    with (
        servers.nbdkit("memory", parameters, servers.unix_socket(path), tmp_path / "log", filters=filters),
        NbdDevice(at(path)) as device,
    ):
        device.pwrite(b"ab" * 524288, 4096)
        assert device.pread(1000, 5000) == b"ab" * 500
        assert device.pread(1 << 20, 4096) == b"ab" * 524288
        assert sum(length for length, _ in device.block_status(5000, 100)) == 100
        with pytest.raises(DeviceError, match="multiples of 4096"):
            device.pwrite(b"x", 4096)


def test_qemu_nbd(disk: Path, tmp_path: Path) -> None:
    """Named and described exports, and those there are not."""
    path = tmp_path / "qemu"
    arguments = ["--format=raw", "--persistent", "--shared=8", "--discard=unmap", "--export-name=disk"]
    listener = servers.unix_socket(path)
    with servers.serving(nbd_tool("qemu-nbd"), [*arguments, "--description=a disk", disk], listener, tmp_path / "log"):
        assert list_exports(at(path)) == (("disk", "a disk"),)
        with pytest.raises(NotFoundError):
            connect(at(path, "other"))
        with NbdDevice(at(path, "disk")) as device:
            assert device.block_status(0, SIZE)[1] == (65536, 0)
            device.pwrite(b"through qemu", 12345)
            device.flush()
            assert device.pread(12, 12345) == b"through qemu"
    assert disk.read_bytes()[12345:12357] == b"through qemu"


def test_nbdkit_that_requires_tls(tmp_path: Path) -> None:
    """Both certificates verified; refused in the clear, and where the server goes by another name."""
    certificates, path = tmp_path / "tls", tmp_path / "secret"
    make_certificates(certificates)
    arguments = ["--foreground", "--tls=require", "--tls-verify-peer", f"--tls-certificates={certificates}"]
    arguments += [nbdkit_part("plugin", "memory"), f"size={SIZE}"]
    with servers.serving(nbd_tool("nbdkit"), arguments, servers.unix_socket(path), tmp_path / "log"):
        uri = NbdUri("", socket_path=str(path), tls=True, tls_certificates=str(certificates))
        with NbdDevice(uri) as device:
            device.pwrite(b"secret" * 100_000, 5)
            assert device.pread(600_000, 5) == b"secret" * 100_000
        with pytest.raises(NbdRefusedError):
            connect(at(path))
        with pytest.raises(ReplicatorError, match="TLS with"):
            connect(NbdUri("", None, 10809, str(path), True, str(certificates), "elsewhere"))


# ---- their clients, our server side ------------------------------------------------------------------------------


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Path]:
    """A socket where replicator.nbd answers, with plain reads and writes behind it."""
    path = tmp_path / "ours"
    exports = [
        Export("disk", SIZE, description="a disk", snapshots=("monday",)),
        Export("fixed", SIZE, read_only=True, preferred_bytes=4 << 20),
    ]
    with serving_memory(servers.unix_socket(path), MemoryExports(exports)):
        yield path


def test_nbdinfo_sees_what_we_offer(ours: Path) -> None:
    described = json.loads(nbd_tool("nbdinfo").run("--list", "--json", str(at(ours))).stdout)["exports"]
    by_name = {export["export-name"]: export for export in described}
    disk, fixed = by_name["disk"], by_name["fixed"]
    assert disk["description"] == "a disk" and disk["export-size"] == SIZE
    assert disk["contexts"] == ["base:allocation", "replicator:changed:monday"]
    offered = ("flush", "fua", "trim", "zero", "df", "cache", "fast_zero", "multi_conn")
    assert all(disk[f"can_{what}"] for what in offered) and not disk["is_read_only"]
    assert fixed["is_read_only"] and not fixed["can_trim"] and fixed["can_multi_conn"]
    sizes = (disk["block_size_minimum"], disk["block_size_preferred"], disk["block_size_maximum"])
    assert sizes == (1, 65536, 32 << 20) and fixed["block_size_preferred"] == 4 << 20


def test_nbdinfo_maps_our_extents(ours: Path) -> None:
    """Allocation, and what changed since a snapshot."""
    half = SIZE // 2
    allocation = json.loads(nbd_tool("nbdinfo").run("--map", "--json", str(at(ours, "disk"))).stdout)
    assert [(run["offset"], run["length"], run["type"]) for run in allocation] == [(0, half, 0), (half, half, 3)]
    changed = nbd_tool("nbdinfo").run("--map=replicator:changed:monday", "--json", str(at(ours, "disk"))).stdout
    assert [(run["length"], run["type"]) for run in json.loads(changed)] == [(65536, 1), (SIZE - 65536, 0)]


def test_qemu_writes_and_reads_through_us(ours: Path) -> None:
    commands = ["write -P 0x11 0 1M", "write -z 4096 8192", "write -z -u 64k 64k", "discard 128k 64k", "flush"]
    commands += ["write -f -P 0x22 777 1", "read -P 0x22 777 1", "read -P 0 4096 8192", "read -P 0x11 12k 4k"]
    commands += ["read -P 0 64k 128k", "read -P 0x11 192k 832k", "write 0 32M"]
    arguments = [argument for command in commands for argument in ("-c", command)]
    done = nbd_tool("qemu-io").run("-f", "raw", *arguments[:-2], str(at(ours, "disk")))
    assert "failed" not in done.stdout and "differ" not in done.stdout
    beyond = nbd_tool("qemu-io").run("-f", "raw", *arguments[-2:], str(at(ours, "disk")), check=False)
    assert beyond.returncode != 0
    mapped = json.loads(nbd_tool("qemu-img").run("map", "--output=json", "--format=raw", str(at(ours, "disk"))).stdout)
    assert [(run["length"], run["zero"]) for run in mapped] == [(SIZE // 2, False), (SIZE // 2, True)]


def test_nbdcopy_there_and_back(ours: Path, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(SIZE // 2) + bytes(SIZE // 2))
    nbd_tool("nbdcopy").run(source, str(at(ours, "disk")))
    nbd_tool("nbdcopy").run(str(at(ours, "disk")), back)
    assert back.read_bytes() == source.read_bytes()
    refused = nbd_tool("nbdcopy").run(source, str(at(ours, "fixed")), check=False)
    assert refused.returncode != 0
