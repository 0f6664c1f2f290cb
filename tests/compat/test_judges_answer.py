"""The NBD judges answer: each is asked about a server that is not ours, so that a later failure is ours."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.support import judges, kernel, servers

SIZE = 8 << 20
EXT4_OVER_NBD = """
from tests.support import guest

disk = guest.nbd_connect("10.0.2.2", {port})
guest.run("mkfs.ext4", "-q", "-O", "^metadata_csum", disk)
with guest.mounted(disk) as folder:
    (folder / "file").write_bytes(b"by the kernel" * 10000)
guest.run("e2fsck", "-fn", disk)
with guest.mounted(disk) as folder:
    assert (folder / "file").read_bytes() == b"by the kernel" * 10000
guest.nbd_disconnect(disk)
print("done")
"""


@pytest.fixture
def server(nbd_judges: None, tmp_path: Path) -> Iterator[str]:
    """The URI of nbdkit's memory plugin on a Unix socket."""
    path = tmp_path / "nbdkit"
    with servers.nbdkit("memory", [f"size={SIZE}"], servers.unix_socket(path), tmp_path / "nbdkit.log"):
        yield f"nbd+unix:///?socket={path}"


def test_libnbds_programs_and_qemus_agree_about_a_size(server: str) -> None:
    assert int(judges.nbd_tool("nbdinfo").run("--size", server).stdout) == SIZE
    assert f'"virtual-size": {SIZE}' in judges.nbd_tool("qemu-img").run("info", "--output=json", server).stdout


def test_nbdcopy_and_qemu_io_carry_bytes_both_ways(server: str, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(bytes(range(256)) * (SIZE // 256))
    judges.nbd_tool("nbdcopy").run(source, server)
    judges.nbd_tool("qemu-io").run("-f", "raw", "-c", "write -P 0x5a 4096 4096", server)
    judges.nbd_tool("nbdcopy").run(server, back)
    expected = bytearray(source.read_bytes())
    expected[4096:8192] = b"\x5a" * 4096
    assert back.read_bytes() == expected


def test_fio_verifies_what_it_wrote(server: str, tmp_path: Path) -> None:
    options = [
        "--ioengine=nbd",
        f"--uri={server}",
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=16",
        "--size=1M",
        "--verify=crc32c",
    ]
    done = judges.nbd_tool("fio").run("--name=verified", f"--aux-path={tmp_path}", "--verify_state_save=0", *options)
    assert re.search(r"err= 0", done.stdout)


def test_libnbds_module_reads_what_it_wrote(server: str, libnbd: ModuleType) -> None:
    handle = libnbd.NBD()
    handle.connect_uri(server)
    handle.pwrite(b"spoken through libnbd", 1000)
    assert handle.pread(21, 1000) == b"spoken through libnbd"
    handle.shutdown()


@pytest.mark.usefixtures("nbd_judges")
def test_a_kernels_ext4_lives_on_a_server_outside(guest: kernel.Kernel, tmp_path: Path) -> None:
    listener = servers.tcp_socket()
    script = EXT4_OVER_NBD.format(port=listener.getsockname()[1])
    with servers.nbdkit("memory", ["size=64M"], listener, tmp_path / "nbdkit.log"):
        assert guest.boot(script, network=True).output.endswith("done\n")


@pytest.mark.parametrize("name", ["nbdkit", "qemu-nbd", "debugfs"])
@pytest.mark.usefixtures("nbd_judges")
def test_the_other_programs_start(name: str) -> None:
    done = subprocess.run(
        judges.nbd_tool(name).argv("-V"), env=judges.nbd_tool(name).env(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
