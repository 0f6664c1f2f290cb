"""Looking at a pool's metadata whole: what `pool status`, `check` and `dump` stand on, beside an owner too.

Where nobody has the pool open, a shared lock keeps it so, and the live metadata is read. A running owner rewrites its
metadata, so it is asked for a metadata snapshot, which is frozen; that one is released on every path, unless it was
there before.

    dies …                          there is                                          who mends it
    between reserve and release     a metadata snapshot that nobody reads             pool release-metadata-snap; status
                                                                                      and check name its block

Invariants
  I1  Nothing is written to the pool, but the reservation that is taken back.
  I2  What was read beside an owner counts only if it was still there at the end; else UnavailableError.

Failures: NotFoundError (no pool), FormatError and DamageError, DeviceError, ConflictError, UnavailableError.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from replicator.blockdev.file import FileDevice
from replicator.blockdev.interface import BlockDevice
from replicator.errors import DamageError, FormatError, NotFoundError, UnavailableError
from replicator.pool.catalogue import Catalogue
from replicator.pool.identity import check_age, check_identity, is_ours
from replicator.pool.locks import PoolLock, owned_elsewhere
from replicator.pool.metadata_device import MetadataDevice, has_metadata, open_metadata
from replicator.pool.mirror_check import compare_reads, note_reads
from replicator.pool.opening import OWNER_S
from replicator.pool.remote import RemotePool
from replicator.thin.check import check
from replicator.thin.report import CheckReport, FindingKind, Findings, Severity
from replicator.thin.view import PoolView

_STEP_S = 0.05


@dataclass(frozen=True, slots=True)
class Inspected:
    """A pool's metadata that stays as it is: `view` of it, and who has the pool open (None: nobody)."""

    path: Path
    device: MetadataDevice
    view: PoolView
    owner: RemotePool | None

    @property
    def is_held(self) -> bool:
        """Whether this is the metadata snapshot."""
        return self.view.superblock.is_held


@dataclass(frozen=True, slots=True)
class PoolCheck:
    """What a check found; `whole` is False beside an owner, where reference counts aren't compared."""

    report: CheckReport
    whole: bool
    held_root: int


def is_foreign(path: Path) -> bool:
    """Whether another program wrote the pool at `path`: it has no catalogue."""
    return not (path / "catalog.db").exists()


def require_metadata(path: Path) -> None:
    """NotFoundError unless `path` is a directory with a pool's metadata in it, ours or foreign."""
    if not path.is_dir():
        raise NotFoundError(
            f"there is no pool {path}: it isn't a directory", mend="replicator pool create POOL --size …"
        )
    if not has_metadata(path):
        raise NotFoundError(f"{path} isn't a pool: it has no metadata", mend=f"replicator pool create {path} --size …")


@contextmanager
def settled(path: Path, owner_s: float = OWNER_S) -> Iterator[RemotePool | None]:
    """Keep the pool without an owner while the block lasts (gives None), or give the one that it has."""
    require_metadata(path)
    held = _lock_or_owner(path, owner_s)
    with held:
        if isinstance(held, PoolLock):
            yield None
            return
        yield held
        if not held.stands:
            raise UnavailableError(f"{path}: its owner ended meanwhile, so what was read is void", mend="ask again")


def _lock_or_owner(path: Path, owner_s: float) -> PoolLock | RemotePool:
    """One of the two; ConflictError when a command that has the pool doesn't end."""
    end = time.monotonic() + owner_s
    while True:
        lock = PoolLock.read(path, make=is_ours(path))
        if lock is not None:
            return lock
        try:
            return RemotePool(path)
        except UnavailableError:
            if time.monotonic() >= end:
                raise owned_elsewhere(path) from None
        time.sleep(_STEP_S)


@contextmanager
def inspected(path: Path, *, held: bool = False) -> Iterator[Inspected]:
    """The pool's metadata, unchanging: live, or its metadata snapshot (`held`, and always beside an owner)."""
    with settled(path) as owner, open_metadata(path, settled=owner is None) as device, _snapshot(owner):
        view = PoolView.held(device) if held or owner is not None else PoolView.live(device)
        yield Inspected(path, device, view, owner)


@contextmanager
def _snapshot(owner: RemotePool | None) -> Iterator[None]:
    """A metadata snapshot of the owner's for as long as the block lasts; one that is there already is used."""
    if owner is None or owner.status().held_root:
        yield
        return
    owner.set_metadata_snapshot(True)
    try:
        yield
    finally:
        with suppress(UnavailableError):  # it ended: I2 says so, and the table what is left
            owner.set_metadata_snapshot(False)


def check_pool(path: Path) -> PoolCheck:
    """Check the metadata, and that catalogue and devices agree; damage is in the report, not raised."""
    with settled(path) as owner, open_metadata(path, settled=owner is None) as device:
        note_reads(device)
        if owner is not None:
            with _snapshot(owner):
                return _check_held(device)
        with FileDevice(path / "data", read_only=True) as data:
            report, findings = check(device, data_device_blocks=_data_blocks(device, data)), Findings()
            compare_reads(device, findings)
            if report.of(Severity.DAMAGE):
                return PoolCheck(_joined(report, findings), True, 0)
            view = PoolView.live(device)
            if not is_foreign(path):
                _check_catalogue(path, view, device, data, findings)
            return PoolCheck(_joined(report, findings), True, view.superblock.held_root)


def _data_blocks(device: BlockDevice, data: FileDevice) -> int | None:
    with suppress(FormatError):
        return data.size_bytes // PoolView.live(device).superblock.data_block_bytes
    return None


def _check_held(device: BlockDevice) -> PoolCheck:
    """What can be said of a pool that is being written: every node under the held root, and each device's count."""
    findings = Findings()
    device_count, held_root = 0, 0
    try:
        view = PoolView.held(device)
        held_root = view.superblock.block
        for entry in view.devices():
            device_count += 1
            mapped = sum(len(keys) for keys, _ in view.mappings(entry.root))
            if mapped != entry.details.mapped_blocks:
                where = f"device {entry.dev_id}"
                findings.add(Severity.DAMAGE, FindingKind.MAPPED_BLOCKS, where, entry.details.mapped_blocks, mapped)
    except FormatError as error:
        findings.from_error(FindingKind.HELD_ROOT, error)
    compare_reads(device, findings, beside_owner=True)
    report = CheckReport(tuple(findings.kept), dict(+findings.totals), False, held_device_count=device_count)
    return PoolCheck(report, False, held_root)


def _check_catalogue(path: Path, view: PoolView, device: BlockDevice, data: FileDevice, findings: Findings) -> None:
    """The catalogue belongs to these devices, and names thin devices that there are."""
    file = path / "catalog.db"
    try:
        catalogue = Catalogue(file, read_only=True)
        try:
            check_age(catalogue.newest_id(), view.superblock, device, data, True)
            rows = catalogue.view(view.superblock.transaction_id)
        finally:
            catalogue.close()
        check_identity(rows, view.superblock, device, data)
    except DamageError as error:
        findings.add(Severity.DAMAGE, FindingKind.DEVICE_SETS, str(file), "the pool's own catalogue", error.message)
        return
    there = {entry.dev_id for entry in view.devices()}
    named = {each.dev_id for each in rows.volumes} | {each.dev_id for each in rows.snapshots}
    for dev_id in sorted(named - there):
        findings.add(Severity.DAMAGE, FindingKind.DEVICE_SETS, f"device {dev_id}", "a thin device", "only a name of it")
    for dev_id in sorted(there - named):
        findings.add(Severity.WARNING, FindingKind.DEVICE_SETS, f"device {dev_id}", "a name in the catalogue", "none")


def _joined(report: CheckReport, more: Findings) -> CheckReport:
    totals = Counter(report.totals) + more.totals
    return replace(report, findings=(*report.findings, *more.kept), totals=dict(totals))
