"""`replicator connect`: the exact lines that connect a client to a volume, to paste.

Asks the process that has the pool open where it listens; prints for qemu, libvirt, nbd-client or fstab.
"""

from __future__ import annotations

from pathlib import Path

import click

from replicator.cli.show import json_option, print_json
from replicator.errors import NotFoundError

_LINES = {
    "qemu": "-drive file={uri},format=raw,if=virtio,cache=none,discard=unmap",
    "nbd-client": "nbd-client {client} -N {name} /dev/nbd0 -b 4096 -persist",
    "fstab": "/dev/nbd0  /mnt/{name}  ext4  _netdev,noauto,x-systemd.requires=nbd@nbd0.service  0 2",
}
_LIBVIRT = """<disk type='network' device='disk'>
  <driver name='qemu' type='raw' cache='none' discard='unmap'/>
  <source protocol='nbd' name='{name}'>
    {host}
  </source>
  <target dev='vdb' bus='virtio'/>
</disk>"""


@click.command()
@click.argument("pool", type=click.Path(path_type=Path))
@click.argument("name")
@click.option("--for", "client", type=click.Choice(["qemu", "libvirt", "nbd-client", "fstab"]), required=True)
@json_option
def connect(pool: Path, name: str, client: str, as_json: bool) -> None:
    """Print the lines that connect CLIENT to the volume NAME of POOL.

    \b
    replicator connect /srv/pool vm1 --for qemu
    replicator connect /srv/pool vm1 --for nbd-client
    """
    from replicator.exporter.address import UnixAddress, parse_address
    from replicator.pool.opening import read_pool
    from replicator.pool.remote import listening_at

    with read_pool(pool) as reader:
        reader.view().volume(name)
    addresses = [parse_address(text) for text in listening_at(pool)]
    if not addresses:
        mend = f"replicator serve {pool} --listen unix:{pool}/nbd"
        raise NotFoundError(f"nobody serves {pool} over NBD now", mend=mend)
    address = addresses[0]
    if isinstance(address, UnixAddress):
        uri, target = f"nbd+unix:///{name}?socket={address.path}", f"-unix {address.path}"
        host = f"<host transport='unix' socket='{address.path}'/>"
    else:
        uri, target = f"nbd://{address.host}:{address.port}/{name}", f"{address.host} {address.port}"
        host = f"<host name='{address.host}' port='{address.port}'/>"
    template = _LIBVIRT if client == "libvirt" else _LINES[client]
    lines = template.format(uri=uri, client=target, name=name, host=host)
    if as_json:
        print_json({"uri": uri, "lines": lines.splitlines()})
    else:
        click.echo(lines)
