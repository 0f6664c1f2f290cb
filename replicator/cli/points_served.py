"""Serving restore points and snapshots read-only, at once and with nothing copied: the half of `serve` that only reads.

Beside a pool's owner this process reads on leases; where nobody has the pool it becomes the owner first, so that
whoever comes next finds it by its control socket, and reads through that. Between cli/serve and repository/source.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from replicator.cli.show import local_zone
from replicator.errors import UsageError
from replicator.exporter.address import Address, UnixAddress, parse_address
from replicator.exporter.fronts import security_of, uri_of
from replicator.exporter.listener import ServerSettings
from replicator.exporter.process import SWITCH_INTERVAL_S, Exporter, ExporterSettings
from replicator.exporter.signals import stopped_by_signals
from replicator.exporter.still import StillDisk, still_server
from replicator.pool.control_values import ExportFacts, ListenAsked
from replicator.pool.locks import OwnedElsewhereError
from replicator.pool.opening import own_pool
from replicator.repository.source import Source, open_source

Ready = Callable[[Sequence[ExportFacts]], None]


def wants_points(path: Path, asked: Sequence[ListenAsked]) -> bool:
    """Whether what is asked for is only read: points (NAME has an `@`), or a log."""
    return any("@" in name for each in asked for name in each.names) or not (path / "metadata").exists()


def serve_points(path: Path, asked: Sequence[ListenAsked], ready: Ready, started_by: str, group: str | None) -> None:
    """Serve the points and snapshots that `asked` names until SIGTERM or SIGINT."""
    if not all(each.read_only for each in asked):
        mend = "add --read-only; to write, make a clone: replicator volume clone POOL VOLUME@POINT NAME"
        raise UsageError("a restore point can only be read", mend=mend)
    if any(not each.names for each in asked):
        raise UsageError("name the points to serve", mend=f"replicator points list {path}")
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    stopping = threading.Event()
    with stopped_by_signals(stopping.set), ExitStack() as held:
        if (path / "metadata").exists():
            _own_if_nobody_does(path, started_by, group, held)
        source = held.enter_context(open_source(str(path)))
        ready([facts for each in asked for facts in _serve_one(source, each, held)])
        stopping.wait()


def _own_if_nobody_does(path: Path, started_by: str, group: str | None, held: ExitStack) -> None:
    try:
        pool = own_pool(path)
    except OwnedElsewhereError:
        return
    held.enter_context(Exporter(pool, ExporterSettings((), started_by, group)))


def _serve_one(source: Source, asked: ListenAsked, held: ExitStack) -> list[ExportFacts]:
    disks = {name: _opened(source, name, held) for name in asked.names}
    server = still_server(disks, ServerSettings(security=security_of(asked.tls)))
    held.callback(server.stop)
    address = server.listen(parse_address(asked.address))
    return [_facts(name, disk, address) for name, disk in disks.items()]


def _opened(source: Source, name: str, held: ExitStack) -> StillDisk:
    if "@" not in name:
        return held.enter_context(source.open_snapshot(name))
    return held.enter_context(source.open_point(name, now_ns=time.time_ns(), zone=local_zone()).disk)


def _facts(name: str, disk: StillDisk, address: Address) -> ExportFacts:
    shown = str(address.path) if isinstance(address, UnixAddress) else str(address)
    return ExportFacts(name, 0, disk.size_bytes, True, shown, uri_of(address, name))
