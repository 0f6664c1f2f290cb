"""What one NBD listener of a pool shows: its volumes and snapshots by name, kept in step with the catalogue.

Between exporter/process (which has the pool and tells when its catalogue changed) and exporter/listener (which serves
clients). A front is a set of exports with the listeners they are offered at.

    name                     stands for                                      may be written
    a volume                 its live thin device                            unless a replica, or asked not to
    a named snapshot         that thin device                                no
    VOLUME@N                 the restore point, where it is materialised     no

Invariants
  F1  A read-only export holds a lease on its device: nothing deletes it while it is offered (but for F5).
  F2  A volume that a receiver fills is offered for reading only.
  F3  What can't be offered (its origin is away) keeps nothing else from being offered, and is tried again.
  F4  A device that nobody offers any more is closed: what was written is durable, and it may be deleted.
  F5  A volume that no client has open is let go of for those who delete it or roll it back, and offered again behind
      them, as what it then is; one that a client has open is not.
  F6  What is offered is what the name stood for when its device was held, and what it is compared with, the snapshot
      of when it was offered: dev_ids are given again, so each is looked up once more under the lease.
  F7  Sizes come from pool/sizes: the view that a front goes by may be late.
"""

from __future__ import annotations

import ssl
import threading
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from replicator.blockdev.interface import BlockDevice
from replicator.errors import ConflictError, NotFoundError, UsageError
from replicator.exporter.address import Address, UnixAddress, check_tls, parse_address
from replicator.exporter.connection import Security
from replicator.exporter.exports import ChangedRuns, Export, Exports
from replicator.exporter.listener import NbdServer, ServerSettings
from replicator.exporter.origins import Origins
from replicator.nbd.handshake import Tls
from replicator.nbd.uri import NbdUri
from replicator.pdata.block import Words
from replicator.pdata.transaction import BrokenPoolError
from replicator.pool.catalogue_schema import Origin, Role, Snapshot, Volume
from replicator.pool.clients import GOING_S
from replicator.pool.control_values import ExportFacts, ListenAsked
from replicator.pool.leasing import leased_rows
from replicator.pool.local import LocalLease, LocalPool
from replicator.pool.view import CatalogueView
from replicator.thin.closing import close_device
from replicator.thin.device import ThinDevice
from replicator.thin.diff import diff


@dataclass(frozen=True, slots=True)
class Offered:
    """What a name should stand for; two that are equal need no change.

    `row` is the volume or snapshot that was meant, `bases` what a snapshot can be compared with.
    """

    dev_id: int
    size_bytes: int
    read_only: bool
    origin: Origin | None
    row: Volume | Snapshot = field(compare=False)  # its name and labels may change
    bases: tuple[Snapshot, ...] = ()


def wanted(view: CatalogueView, asked: ListenAsked) -> dict[str, Offered]:
    """What a front of `asked` offers by this catalogue; NotFoundError for a name that nothing has. Pure."""
    if not asked.names:
        return {volume.name: _volume(view, volume, asked.read_only) for volume in view.volumes}
    return {name: _named(view, name, asked.read_only) for name in asked.names}


def _volume(view: CatalogueView, volume: Volume, read_only: bool) -> Offered:
    is_replica = view.position(volume.uuid, Role.APPLIED) is not None
    return Offered(volume.dev_id, volume.size_bytes, read_only or is_replica, volume.origin, volume)


def _named(view: CatalogueView, name: str, read_only: bool) -> Offered:
    snapshot = view.snapshot_named(name)
    if snapshot is None and "@" in name:
        snapshot = _point(view, name)
    if snapshot is None:
        return _volume(view, view.volume(name), read_only)
    origin = next((each.origin for each in view.volumes if each.uuid == snapshot.volume), None)
    bases = tuple(each for each in view.snapshots_of(snapshot.volume) if each.name and each is not snapshot)
    return Offered(snapshot.dev_id, snapshot.size_bytes, True, origin, snapshot, bases)


def _point(view: CatalogueView, name: str) -> Snapshot:
    volume_name, _, number = name.partition("@")
    volume = view.volume(volume_name)
    found = [s for s in view.snapshots_of(volume.uuid) if s.number and str(s.number) == number]
    if not found:
        raise NotFoundError(
            f"{name} isn't a snapshot in this pool",
            mend=f"replicator serve POOL {name} --read-only replays it from the log",
        )
    return found[-1]


class Front:
    """One NBD server of `pool` with what it offers; `sync` after each change of the catalogue."""

    def __init__(self, pool: LocalPool, asked: ListenAsked, origins: Origins, away: Counter[int]) -> None:
        self.pool, self.asked, self._away = pool, asked, away
        self._origins = origins
        self._exports = Exports()
        self._offered: dict[str, Offered] = {}
        self._leases: dict[str, LocalLease] = {}
        self._lock = threading.Lock()
        self._server = NbdServer(pool.engine.gate, self._exports, ServerSettings(security=security_of(asked.tls)))
        try:
            self.failures = self.sync()
            for failure in self.failures:
                if not self._offered or (asked.names and isinstance(failure, ConflictError)):
                    raise failure
        except BaseException:
            self.close()
            raise

    def listen(self) -> Address:
        """Take clients at the address that was asked for."""
        return self._server.listen(parse_address(self.asked.address))

    def sync(self) -> list[Exception]:
        """Offer what the catalogue has now; what can't be offered is told, and the rest is (F3)."""
        failures: list[Exception] = []
        with self._lock:
            view = self.pool.view()  # not before: another may have been here with a newer one
            try:
                now = wanted(view, self.asked)
            except NotFoundError:
                if not self._offered and not self.asked.patient:
                    raise
                there = {name: offered for name in self.asked.names if (offered := _try(view, name, self.asked))}
                now = there
            now = {n: each for n, each in now.items() if n in self._offered or not self._away[each.dev_id]}
            for name in self._offered.keys() - now.keys():
                self._withdraw(name)
            for name, offered in now.items():
                if self._offered.get(name) != offered:
                    try:
                        self._offer(name, offered)
                    except Exception as error:  # noqa: BLE001 - a fault of ours, too, is that one name's (F3)
                        failures.append(error)
        return failures

    def offers(self, dev_ids: Collection[int]) -> bool:
        """Whether one of these devices is offered."""
        return any(each.dev_id in dev_ids for each in list(self._offered.values()))

    def let_go(self, dev_id: int) -> list[str]:
        """Offer the device no more while it is away (F5); or, with nothing changed for them, the clients that stay."""
        with self._lock:
            for name in [name for name, each in self._offered.items() if each.dev_id == dev_id]:
                export = self._exports.lookup(name)
                if clients := self._exports.remove_unused(name, GOING_S):
                    return clients
                self._withdraw(name, export)
        return []

    def _withdraw(self, name: str, export: Export | None = None) -> None:
        export = export or self._exports.lookup(name)
        self._exports.remove(name)
        del self._offered[name]
        if export is not None:
            with suppress(BrokenPoolError):  # every client was told; nobody can delete the volume until it is mended
                close_device(self.pool.engine, export.device)
        lease = self._leases.pop(name, None)
        if lease is not None:
            lease.release()

    def _offer(self, name: str, offered: Offered) -> None:
        before = self._offered.get(name)
        if before is not None and replace(before, size_bytes=offered.size_bytes, bases=offered.bases) == offered:
            export = self._exports.lookup(name)
            if export is not None:
                self.pool.sizes.fit(export.device)
            if export is not None and before.bases != offered.bases:
                self._exports.put(name, replace(export, changed_since=self._bases(offered)))
            self._offered[name] = offered
            return
        if before is not None:
            self._withdraw(name)
        origin = self._origins.get(offered.origin)
        if offered.read_only or isinstance(offered.row, Snapshot):
            device = self._open_leased(name, offered, origin)
        else:
            device = self.pool.open_live(offered.dev_id, offered.size_bytes, origin, volume=offered.row.uuid)
        self._exports.put(name, Export(device, offered.read_only, changed_since=self._bases(offered)))
        self._offered[name] = offered

    def _open_leased(self, name: str, offered: Offered, origin: BlockDevice | None) -> ThinDevice:
        """The device for reading, under a lease; NotFoundError where another has its id by now (F6)."""
        lease = self.pool.take_lease([offered.dev_id])
        try:
            _require_same(self.pool.view(), offered.row)
            device = self.pool.engine.open_device(offered.dev_id, offered.size_bytes, origin=origin)
        except BaseException:
            lease.release()
            raise
        self.pool.sizes.fit(device)
        self._leases[name] = lease
        return device

    def _bases(self, offered: Offered) -> dict[str, ChangedRuns]:
        row = offered.row
        if not isinstance(row, Snapshot):
            return {}
        covered = 0 if offered.origin is None else min(offered.origin.size_bytes, row.size_bytes)
        return {base.name: partial(self._changed_since, base, row, covered) for base in offered.bases}

    def _changed_since(self, base: Snapshot, row: Snapshot, covered_bytes: int, begin: int, end: int) -> Words:
        """Runs of virtual blocks that differ between two snapshots, within [begin, end); NotFoundError if one went.

        `covered_bytes` is how far an external origin lies behind the later one: what it shows beyond the base's end is
        a change, too.
        """
        with leased_rows(self.pool, [base, row]) as lease:
            roots = [lease.devices[each.dev_id].root for each in (base, row)]
            pieces = [
                _within(np.stack((runs.begin, runs.end), axis=1), begin, end)
                for runs in diff(self.pool.engine.metadata.store, *roots)
            ]
        found: Words = np.concatenate([np.empty((0, 2), dtype=np.uint64), *pieces])
        size = self.pool.block_bytes
        first, last = base.size_bytes // size, -(-covered_bytes // size)
        if first >= last:
            return found
        shown = _within(np.array([[first, last]], dtype=np.uint64), begin, end)
        return np.concatenate([_within(found, 0, first), shown, _within(found, last, end)])

    def facts(self) -> list[ExportFacts]:
        """What is offered, and where."""
        addresses = self._server.addresses()
        return [
            ExportFacts(
                name,
                each.dev_id,
                each.size_bytes,
                each.read_only,
                str(address),
                uri_of(address, name),
                self._exports.users(name),
            )
            for address in addresses
            for name, each in list(self._offered.items())
        ]

    @property
    def client_count(self) -> int:
        """NBD clients that are connected."""
        return self._server.connection_count

    def close(self) -> None:
        """Answer what is in flight, and let go."""
        self._server.stop()
        with self._lock:
            for name in list(self._offered):
                self._withdraw(name)


def _require_same(view: CatalogueView, row: Volume | Snapshot) -> None:
    """NotFoundError unless a row's device is still what the row says (F6)."""
    if isinstance(row, Snapshot):
        view.still(row)
    elif view.volume(row.uuid).dev_id != row.dev_id:
        raise NotFoundError(f"the volume {row.name} was rolled back meanwhile")


def _within(runs: Words, begin: int, end: int) -> Words:
    """The parts of ascending (n, 2) runs that lie in [begin, end)."""
    clipped: Words = np.stack((np.maximum(runs[:, 0], begin), np.minimum(runs[:, 1], end)), axis=1)
    return clipped[clipped[:, 0] < clipped[:, 1]]


def _try(view: CatalogueView, name: str, asked: ListenAsked) -> Offered | None:
    try:
        return _named(view, name, asked.read_only)
    except NotFoundError:
        return None


def uri_of(address: Address, name: str) -> str:
    """What an NBD client is told to open."""
    if isinstance(address, UnixAddress):
        return str(NbdUri(name, socket_path=str(address.path)))
    return str(NbdUri(name, address.host, address.port))


def security_of(tls: dict[str, str]) -> Security:
    """The TLS stance that a listener was asked for: `certificate`, `key`, optionally `ca` and `required`."""
    if not tls:
        return Security()
    check_tls(tls)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(tls["certificate"], tls["key"])
        if "ca" in tls:
            context.load_verify_locations(tls["ca"])
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"TLS files can't be used: {error}", mend="name PEM files that this user may read") from error
    return Security(Tls.REQUIRED if tls.get("required") == "yes" else Tls.OFFERED, context)
