"""`replicator connect`: lines to paste, from what the pool's owner serves."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from xml.etree import ElementTree

import pytest

from replicator.cli.connect import _LINES, _uri
from replicator.exporter.address import parse_address
from replicator.nbd.uri import NbdUri
from replicator.pool.control_values import ExportFacts, ListenAsked
from tests.support.command_line import Command
from tests.support.pool_owner import served

NAMES = ["vm1", "a b", "comma,name", "ümlaut", "quote'd", "<&>"]


class Serving:
    """An exporter's hooks that serve these exports."""

    def __init__(self, *exports: ExportFacts) -> None:
        self._exports = list(exports)

    def listen(self, asked: ListenAsked) -> list[ExportFacts]:
        return self._exports

    def exports(self) -> list[ExportFacts]:
        return self._exports

    def listeners(self) -> list[ListenAsked]:
        return []

    def let_go(self, dev_ids: Collection[int]) -> AbstractContextManager[None]:
        return nullcontext()

    def stop(self) -> None:
        self._exports = []


def facts(name: str, address: str, *, size_bytes: int = 1 << 20, read_only: bool = False) -> ExportFacts:
    return ExportFacts(name, 1, size_bytes, read_only, address)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("address", ["unix:/run/my pool/nbd.sock", "tcp:localhost:10810", "tcp:[::1]:10809"])
def test_the_uri_names_export_and_place(name: str, address: str) -> None:
    found = NbdUri.parse(_uri(facts(name, address), parse_address(address)))
    assert found.export == name
    assert (found.socket_path, found.host) in (("/run/my pool/nbd.sock", None), (None, "localhost"), (None, "::1"))


@pytest.mark.parametrize("name", NAMES)
def test_libvirts_lines_are_xml_that_says_the_same(name: str) -> None:
    address = "unix:/run/<x>/nbd.sock"
    disk = ElementTree.fromstring(
        "\n".join(_LINES["libvirt"](facts(name, address, read_only=True), parse_address(address)))
    )
    source, host = disk.find("source"), disk.find("source/host")
    assert source is not None and host is not None
    assert source.get("name") == name and host.get("socket") == "/run/<x>/nbd.sock"
    assert disk.find("readonly") is not None


def test_qemu_doubles_commas_and_says_read_only() -> None:
    address = parse_address("unix:/run/a,b")
    (line,) = _LINES["qemu"](facts("v", "unix:/run/a,b", read_only=True), address)
    assert (
        line
        == "-drive 'file=nbd+unix:///v?socket=/run/a%2Cb,format=raw,if=virtio,cache=none,discard=unmap,readonly=on'"
    )


def test_nbd_client_gets_the_largest_block_that_divides_the_size() -> None:
    address = parse_address("tcp:10.0.0.1:10810")
    lines = _LINES["nbd-client"](facts("a b", "tcp:10.0.0.1:10810", size_bytes=4096 + 512), address)
    assert lines == ["modprobe nbd", "nbd-client 10.0.0.1 10810 /dev/nbd0 -N 'a b' -b 512 -persist"]
    lines = _LINES["fstab"](facts("v", "unix:/run/v"), parse_address("unix:/run/v"))
    assert lines[1] == "nbd0 /run/v v bs=4096,persist,unix"
    assert lines[3].split() == ["/dev/nbd0", "/mnt/v", "ext4", "_netdev,x-systemd.requires=nbd@nbd0.service", "0", "2"]


def test_the_owner_is_asked_and_a_socket_comes_before_a_port(command: Command, pool: Path) -> None:
    command("volume", "create", pool, "v", "--size", "1MiB")
    hooks = Serving(facts("v", "tcp:localhost:10809"), facts("v", "unix:/run/v.sock"))
    with served(pool, hooks):
        found = command("connect", pool, "v", "--for", "nbd-client", "--json").document
        assert found["address"] == "unix:/run/v.sock" and found["uri"] == "nbd+unix:///v?socket=/run/v.sock"
        assert "nbd-client -unix /run/v.sock /dev/nbd0" in command("connect", pool, "v", "--for", "nbd-client").out
        uuid = str(command("volume", "list", pool, "--json").document[0]["uuid"])
        assert command("connect", pool, uuid, "--for", "qemu", "--json").document["name"] == "v"


def test_what_nobody_serves_is_told_how_to_serve(command: Command, pool: Path) -> None:
    command("volume", "create", pool, "v", "--size", "1MiB")
    assert "replicator serve" in command("connect", pool, "v", "--for", "qemu", "--json", code=5).error["mend"]
