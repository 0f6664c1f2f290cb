"""`replicator connect`: the exact lines that connect a client to a volume, to paste.

Asks the process that has the pool open what it serves, and where; prints for qemu, libvirt, nbd-client or fstab.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from replicator.cli.places import POOL
from replicator.cli.show import json_option, print_json
from replicator.errors import NotFoundError

if TYPE_CHECKING:
    from replicator.exporter.address import Address
    from replicator.pool.control_values import ExportFacts

_CLIENTS = ("qemu", "libvirt", "nbd-client", "fstab")
_WILDCARDS = ("0.0.0.0", "::", "*")


@click.command()
@click.argument("path", metavar="POOL", type=POOL)
@click.argument("name", metavar="NAME")
@click.option("--for", "client", type=click.Choice(_CLIENTS), required=True, help="What is to be connected.")
@json_option
def connect(path: Path, name: str, client: str, as_json: bool) -> None:
    """Print the lines that connect a client to the volume or snapshot NAME, which is being served.

    \b
    replicator connect /srv/pool vm1 --for qemu
    replicator connect /srv/pool vm1 --for nbd-client
    """
    from replicator.exporter.address import parse_address

    found = _served(path, name)
    address = parse_address(found.address)
    lines = _LINES[client](found, address)
    if as_json:
        print_json({"name": found.name, "address": found.address, "uri": _uri(found, address), "lines": lines})
    else:
        click.echo("\n".join(lines))


def _served(path: Path, name: str) -> ExportFacts:
    """The export of that name; a Unix socket before a port, since a client here is meant first."""
    from replicator.pool.devices import find
    from replicator.pool.inspection import settled
    from replicator.pool.reading import read_pool

    with settled(path) as owner:
        exports = [] if owner is None else owner.exports()
    named = sorted((each for each in exports if each.name == name), key=lambda each: each.address.startswith("tcp:"))
    if named:
        return named[0]
    with read_pool(path) as reader:
        known = find(reader, name)
    same = [each for each in exports if each.dev_id == known.dev_id]
    if same:
        return same[0]
    raise NotFoundError(
        f"nobody serves {name} over NBD now", mend=f"replicator serve {path} {name} --listen unix:{path}/nbd.sock"
    )


def _host(address: Address) -> str:
    """The host to connect to; who listens everywhere is reached by this host's name."""
    import socket

    from replicator.exporter.address import TcpAddress

    assert isinstance(address, TcpAddress)
    return socket.gethostname() if address.host in _WILDCARDS else address.host


def _uri(found: ExportFacts, address: Address) -> str:
    from replicator.exporter.address import UnixAddress
    from replicator.nbd.uri import NbdUri

    tls = found.uri.startswith("nbds")
    if isinstance(address, UnixAddress):
        return str(NbdUri(found.name, socket_path=str(address.path), tls=tls))
    return str(NbdUri(found.name, host=_host(address), port=address.port, tls=tls))


def _qemu(found: ExportFacts, address: Address) -> list[str]:
    """A comma in an option's value is written twice."""
    read_only = ",readonly=on" if found.read_only else ""
    options = f"file={_uri(found, address).replace(',', ',,')},format=raw,if=virtio,cache=none,discard=unmap{read_only}"
    return [f"-drive {shlex.quote(options)}"]


def _libvirt(found: ExportFacts, address: Address) -> list[str]:
    from xml.sax.saxutils import quoteattr

    from replicator.exporter.address import UnixAddress

    if isinstance(address, UnixAddress):
        host = f"<host transport='unix' socket={quoteattr(str(address.path))}/>"
    else:
        host = f"<host name={quoteattr(_host(address))} port='{address.port}'/>"
    return [
        "<disk type='network' device='disk'>",
        "  <driver name='qemu' type='raw' cache='none' discard='unmap'/>",
        f"  <source protocol='nbd' name={quoteattr(found.name)}>",
        f"    {host}",
        "  </source>",
        "  <target dev='vdb' bus='virtio'/>",
        *(["  <readonly/>"] if found.read_only else []),
        "</disk>",
    ]


def _nbd_client(found: ExportFacts, address: Address) -> list[str]:
    from replicator.exporter.address import UnixAddress

    where = ["-unix", str(address.path)] if isinstance(address, UnixAddress) else [_host(address), str(address.port)]
    options = ["-N", found.name, "-b", str(_block_bytes(found)), "-persist", *(["-R"] if found.read_only else [])]
    return ["modprobe nbd", shlex.join(["nbd-client", *where, "/dev/nbd0", *options])]


def _fstab(found: ExportFacts, address: Address) -> list[str]:
    """nbd-client's systemd unit connects by its own table; fstab mounts what it connected."""
    from replicator.exporter.address import UnixAddress

    unix = isinstance(address, UnixAddress)
    where = str(address.path) if isinstance(address, UnixAddress) else _host(address)
    options = [f"bs={_block_bytes(found)}", "persist", "unix" if unix else f"port={getattr(address, 'port', 0)}"]
    mount = f"/mnt/{found.name}".replace(" ", "\\040")
    flags = ",".join([*(["ro"] if found.read_only else []), "_netdev", "x-systemd.requires=nbd@nbd0.service"])
    return [
        "# in /etc/nbdtab",
        f"nbd0 {where} {found.name} {','.join(options)}",
        "# in /etc/fstab",
        f"/dev/nbd0 {mount} ext4 {flags} 0 2",
    ]


def _block_bytes(found: ExportFacts) -> int:
    """The kernel cuts a device down to whole blocks of this size."""
    return 4096 if found.size_bytes % 4096 == 0 else 512


_LINES = {"qemu": _qemu, "libvirt": _libvirt, "nbd-client": _nbd_client, "fstab": _fstab}
