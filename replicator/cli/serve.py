"""`replicator serve`: exports volumes, snapshots or restore points over NBD.

A pool that nobody has open is owned by this process from then on, and its volumes may be written; beside its owner a
writable `serve` asks it for another listener and ends, a read-only one serves in a process of its own, on a lease.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from replicator.cli.point_notes import accept_gap_option
from replicator.errors import ReplicatorError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from replicator.pool.control_values import ExportFacts, ListenAsked

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before numpy is imported: its threads would cost memory, and do nothing here


@click.command()
@click.argument("pool", metavar="POOL|LOG")
@click.argument("names", nargs=-1)
@click.option(
    "--listen", "addresses", multiple=True, metavar="ADDRESS", help="unix:PATH or tcp:HOST:PORT; may come again."
)
@click.option("--read-only", is_flag=True, help="Let nobody write.")
@accept_gap_option
@click.option("--tls-certificate", metavar="FILE", help="PEM file; offers TLS.")
@click.option("--tls-key", metavar="FILE", help="PEM file of its private key.")
@click.option("--tls-ca", metavar="FILE", help="PEM file; clients must show a certificate of it.")
@click.option("--tls-required", is_flag=True, help="Serve nobody in the clear.")
@click.option("--group", metavar="GROUP", help="Group that may connect to the sockets beside the pool.")
@click.option("--started-by", default="own", hidden=True)
@click.option("--ready-fd", type=int, hidden=True)
def serve(
    pool: str,
    names: tuple[str, ...],
    addresses: tuple[str, ...],
    read_only: bool,
    accept_gap: bool,
    tls_certificate: str | None,
    tls_key: str | None,
    tls_ca: str | None,
    tls_required: bool,
    group: str | None,
    started_by: str,
    ready_fd: int | None,
) -> None:
    """Export volumes (all, or NAMES), snapshots or restore points of POOL, or points of a LOG, over NBD.

    It serves until it is ended. Where another process has the pool open, that one takes the listener, and this
    command returns at once.

    \b
    replicator serve /srv/pool --listen unix:/run/vm1.sock
    replicator serve /srv/pool vm1 --listen tcp:127.0.0.1:10809
    replicator serve /srv/replica vm1@-5m --read-only --listen unix:/run/old.sock
    replicator serve ssh://backup@host/srv/log vm1@latest --read-only --listen unix:/run/old.sock
    """
    from replicator.exporter.address import check_tls
    from replicator.pool.control_values import ListenAsked

    files = {"certificate": tls_certificate, "key": tls_key, "ca": tls_ca, "required": "yes" if tls_required else None}
    tls = {name: value for name, value in files.items() if value}
    check_tls(tls)
    listeners = tuple(ListenAsked(address, list(names), read_only, tls) for address in addresses)
    try:
        _serve(pool, listeners, group, started_by, ready_fd, accept_gap)
    except ReplicatorError as error:
        if ready_fd is not None:
            os.write(ready_fd, error.message.encode()[:4096])
        raise


def _serve(
    place: str,
    listeners: Sequence[ListenAsked],
    group: str | None,
    started_by: str,
    ready_fd: int | None,
    accept_gap: bool,
) -> None:
    from replicator.cli.points_served import serve_points, wants_points
    from replicator.exporter.journal import notify_systemd
    from replicator.exporter.process import ExporterSettings
    from replicator.exporter.process import serve as serve_pool
    from replicator.pool.locks import OwnedElsewhereError
    from replicator.pool.remote import RemotePool

    def ready(served: Sequence[ExportFacts], asked: Sequence[ListenAsked] = listeners) -> None:
        if asked or started_by == "own":  # the journal of a daemon needs no word of its exporter's own socket
            for line in _served_lines(place, asked, served):
                click.echo(line, err=True)
        if ready_fd is not None:
            os.write(ready_fd, b"READY\n")
            os.close(ready_fd)
        if started_by == "own":
            notify_systemd("READY=1")  # a unit of its own; what an agent started is no affair of systemd's

    if wants_points(place, listeners):
        serve_points(place, listeners, ready, started_by, group, accept_gap=accept_gap)
        return
    path = Path(place)
    try:
        serve_pool(path, ExporterSettings(tuple(listeners), started_by, group), ready)
    except OwnedElsewhereError:
        if not listeners or ready_fd is not None:
            raise
        with RemotePool(path) as owner:
            for asked in listeners:
                ready(owner.listen(asked), [asked])


def _served_lines(place: str, listeners: Sequence[ListenAsked], served: Sequence[ExportFacts]) -> list[str]:
    """Where clients find what is served; without any, where this process listens."""
    if served:
        return [f"serving {each.name} at {each.uri}{' (read-only)' if each.read_only else ''}" for each in served]
    from replicator.pool.control_connection import SOCKET_NAME

    if listeners:
        return [f"listening at {each.address}; there is nothing to serve yet" for each in listeners]
    return [f"listening at {Path(place) / SOCKET_NAME} for commands and agents; no NBD: add --listen ADDRESS"]
