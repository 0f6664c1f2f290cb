"""Serving restore points and snapshots read-only, at once and with nothing copied: the half of `serve` that only reads.

Beside a pool's owner this process reads on leases, and takes new ones when the owner was killed and another one came
(repository/lasting); where nobody has the pool it becomes the owner first, so that whoever comes next finds it by its
control socket, and reads through that. Between cli/serve and repository/source.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from replicator.cli.point_notes import tell_taken
from replicator.cli.show import local_zone
from replicator.errors import UnavailableError, UsageError
from replicator.exporter.address import Address, UnixAddress, parse_address
from replicator.exporter.fronts import security_of, uri_of
from replicator.exporter.listener import ServerSettings
from replicator.exporter.process import SWITCH_INTERVAL_S, Exporter, ExporterSettings
from replicator.exporter.signals import stopped_by_signals
from replicator.exporter.still import StillDisk, still_server
from replicator.pool.catalogue_schema import Snapshot
from replicator.pool.control_values import ExportFacts, ListenAsked
from replicator.pool.locks import OwnedElsewhereError
from replicator.pool.metadata_device import has_metadata
from replicator.pool.opening import own_pool
from replicator.pool.remote import RemotePool
from replicator.repository.lasting import LastingDisk, ReadDisk
from replicator.repository.source import OpenedPoint, Source, open_source, require_source

Ready = Callable[[Sequence[ExportFacts]], None]


def wants_points(place: str, asked: Sequence[ListenAsked]) -> bool:
    """Whether what is asked for is only read: points (NAME has an `@`), or a log."""
    return any("@" in name for each in asked for name in each.names) or not has_metadata(Path(place))


def serve_points(
    place: str,
    asked: Sequence[ListenAsked],
    ready: Ready,
    started_by: str,
    group: str | None,
    *,
    accept_gap: bool = False,
) -> None:
    """Serve the points and snapshots that `asked` names until SIGTERM or SIGINT."""
    require_source(place)
    if not all(each.read_only for each in asked):
        mend = "add --read-only; to write, make a clone: replicator volume clone POOL VOLUME@POINT NAME"
        raise UsageError("a restore point can only be read", mend=mend)
    if any(not each.names for each in asked):
        raise UsageError("name the points to serve", mend=f"replicator points list {place}")
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    stopping = threading.Event()
    with stopped_by_signals(stopping.set), ExitStack() as held:
        if has_metadata(Path(place)):
            _own_if_nobody_does(Path(place), started_by, group, held)
        source = held.enter_context(open_source(place))
        ready([facts for each in asked for facts in _serve_one(source, each, accept_gap, held)])
        stopping.wait()


def _own_if_nobody_does(path: Path, started_by: str, group: str | None, held: ExitStack) -> None:
    try:
        pool = own_pool(path)
    except OwnedElsewhereError:
        return
    held.enter_context(Exporter(pool, ExporterSettings((), started_by, group)))


def _serve_one(source: Source, asked: ListenAsked, accept_gap: bool, held: ExitStack) -> list[ExportFacts]:
    disks = {name: _opened(source, name, accept_gap, held) for name in asked.names}
    server = still_server(disks, ServerSettings(security=security_of(asked.tls)))
    held.callback(server.stop)
    address = server.listen(parse_address(asked.address))
    return [_facts(name, disk, address) for name, disk in disks.items()]


def _opened(source: Source, name: str, accept_gap: bool, held: ExitStack) -> StillDisk:
    place = source.name
    if "@" not in name:
        snapshot = source.open_snapshot(name)
        row = None if source.pool is None else source.pool.view().snapshot_named(name)
        return held.enter_context(LastingDisk(snapshot, lambda: _snapshot_again(place, name, row)))
    zone = local_zone()
    opened = source.open_point(name, now_ns=time.time_ns(), accept_gap=accept_gap, zone=zone)
    tell_taken(source, opened, name, zone)
    return held.enter_context(LastingDisk(opened.disk, lambda: _point_again(place, opened)))


@contextmanager
def _beside_owner(place: str) -> Iterator[Source]:
    """The source once more: beside the pool's owner, and only there, so that no owner is kept from opening it."""
    with ExitStack() as held:
        if not has_metadata(Path(place)):
            yield held.enter_context(open_source(place))
            return
        beside = held.enter_context(closing(RemotePool(Path(place), role="serve")))
        yield held.enter_context(open_source(place, beside=beside))


def _snapshot_again(place: str, name: str, row: Snapshot | None) -> ReadDisk:
    """The same snapshot under a new lease; closing it closes all that it stands on."""
    with ExitStack() as held:
        source = held.enter_context(_beside_owner(place))
        assert source.pool is not None, "a log has no snapshots"
        if source.pool.view().snapshot_named(name) != row:
            raise UnavailableError(f"the snapshot {name} isn't the one that was served")
        disk = source.open_snapshot(name)
        held.callback(disk.close)
        return _Held(disk, held.pop_all())


def _point_again(place: str, before: OpenedPoint) -> ReadDisk:
    """The same point likewise, whatever `latest` or a label means now."""
    with ExitStack() as held:
        source = held.enter_context(_beside_owner(place))
        opened = source.reopen(before)
        held.callback(opened.disk.close)
        return _Held(opened.disk, held.pop_all())


class _Held:
    """A disk, and what has to be closed with it."""

    def __init__(self, disk: ReadDisk, held: ExitStack) -> None:
        self.name, self.size_bytes = disk.name, disk.size_bytes
        self.pread_into, self.runs, self.close = disk.pread_into, disk.runs, held.close


def _facts(name: str, disk: StillDisk, address: Address) -> ExportFacts:
    shown = str(address.path) if isinstance(address, UnixAddress) else str(address)
    return ExportFacts(name, 0, disk.size_bytes, True, shown, uri_of(address, name))
