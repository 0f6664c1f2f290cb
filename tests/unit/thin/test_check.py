"""The check finds each damage, calls it by its name, and finds nothing in a sound pool."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.blockdev.file import FileDevice
from replicator.blockdev.memory import MemoryDevice
from replicator.thin.check import check
from replicator.thin.report import FINDINGS_PER_KIND, CheckReport, FindingKind, Severity
from tests.support.damage import HARMLESS, ROWS, Damage, Hand
from tests.support.golden import KernelPool
from tests.support.thinpools import BASE, Patient, make_pool


def check_file(path: Path, data_device_blocks: int | None = None) -> CheckReport:
    with FileDevice(path, read_only=True) as device:
        return check(device, data_device_blocks=data_device_blocks)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pool") / "metadata"
    make_pool(path)
    return path


@pytest.fixture
def pool(sound: Path, tmp_path: Path) -> Iterator[Patient]:
    path = tmp_path / "metadata"
    shutil.copy(sound, path)
    yield Patient(path)
    path.unlink()


@pytest.mark.parametrize("seed", range(3))
def test_a_sound_pool_is_clean(tmp_path: Path, seed: int) -> None:
    superblock = make_pool(tmp_path / "metadata", seed, held=bool(seed % 2))
    report = check_file(tmp_path / "metadata", superblock.data_space_map.nr_blocks)
    assert report.findings == () and report.clean and report.counts_compared
    assert report.metadata_blocks_used == superblock.metadata_space_map.nr_allocated
    assert report.data_blocks_used == superblock.data_space_map.nr_allocated
    assert (report.device_count, report.held_device_count) == (7, 2 * (seed % 2))


def test_the_kernels_pool_is_clean(kernel_pool_a: KernelPool) -> None:
    assert check_file(kernel_pool_a.metadata).findings == ()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_damage_is_found(pool: Patient, row: Damage) -> None:
    row.hand(pool)
    report = check_file(pool.path)
    found = {(finding.severity, finding.kind) for finding in report.findings}
    assert (row.severity, row.kind) in found, report.findings
    assert report.clean == (row.severity is Severity.WARNING)


@pytest.mark.parametrize(("name", "hand"), HARMLESS, ids=[name for name, _ in HARMLESS])
def test_what_is_legal_is_no_finding(pool: Patient, name: str, hand: Hand) -> None:
    hand(pool)
    assert check_file(pool.path).findings == ()


def test_a_data_device_that_is_too_short(pool: Patient) -> None:
    wanted = pool.superblock.data_space_map.nr_blocks
    report = check_file(pool.path, wanted - 1)
    assert report.totals == {(Severity.DAMAGE, FindingKind.SUPERBLOCK): 1}


def test_findings_are_bounded_and_counted(pool: Patient) -> None:
    branch = pool.child(pool.root_of(BASE), 0)
    ruined = 2 * FINDINGS_PER_KIND
    for slot in range(1, 1 + ruined):
        block = pool.child(branch, slot)
        data = pool.read(block)
        data[100] ^= 0xFF
        pool.write(block, data)
    report = check_file(pool.path)
    assert report.totals[Severity.DAMAGE, FindingKind.NODE] == ruined
    assert sum(each.kind is FindingKind.NODE for each in report.findings) == FINDINGS_PER_KIND
    assert not report.counts_compared


@pytest.mark.parametrize("content", [bytes(4096), bytes(8192), b"\xa5" * 8192, b"short"])
def test_what_is_no_pool_is_a_finding(content: bytes) -> None:
    report = check(MemoryDevice(content=content))
    assert report.totals == {(Severity.DAMAGE, FindingKind.SUPERBLOCK): 1}
    assert "superblock" in str(report.findings[0])
