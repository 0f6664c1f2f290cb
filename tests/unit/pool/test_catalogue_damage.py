"""W2 and the fail-stop of pool/catalogue: files that are none, rows that can't be, flipped bytes, a failing disk."""

from __future__ import annotations

import resource
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from replicator.errors import DamageError, DeviceError, FormatError, ReplicatorError
from replicator.pool.catalogue import Catalogue
from replicator.pool.catalogue_schema import (
    LoggedPoint,
    Origin,
    OriginKind,
    PoolIdentity,
    Purpose,
    Setting,
    Snapshot,
    Volume,
)
from replicator.pool.changes import Change, Put

V1 = UUID(int=1)
VOLUME = Volume(V1, "vm-disk", 1, 8 << 30, 5, Origin(OriginKind.FILE, "/images/base.raw", 4 << 30, "ab"))
SNAPSHOT = Snapshot(2, V1, Purpose.POINT, 10, 8 << 30, 1, 4, labels=("before upgrade", "x"), digest=b"d" * 16)
EVERYTHING: list[Change] = [
    Put(VOLUME),
    Put(SNAPSHOT),
    Put(LoggedPoint(V1, 1, 4, 10, 8 << 30, 99)),
    Put(Setting("retention", "{}")),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the catalogue of the test is, or will be."""
    return tmp_path / "catalog.db"


@pytest.fixture
def catalogue(path: Path) -> Iterator[Catalogue]:
    """A new catalogue that stands at transaction 5."""
    with Catalogue.create(path, PoolIdentity(UUID(int=7), 1_000), 5) as made:
        yield made


@pytest.mark.parametrize("content", [b"", b"not a database" * 1000, bytes(8192), b"SQLite format 3\0" + b"\xff" * 4096])
def test_files_that_are_no_catalogue(path: Path, content: bytes) -> None:
    """Exit 3, naming the file; read-only or not, and the file as it was."""
    path.write_bytes(content)
    for read_only in (True, False):
        with pytest.raises(DamageError, match=r"catalog\.db"):
            Catalogue(path, read_only=read_only)
    assert path.read_bytes() == content


def test_catalogues_of_others_and_of_the_future(catalogue: Catalogue, path: Path) -> None:
    """Another program's SQLite file, and a version that we don't know: FormatError with what was expected."""
    catalogue.close()
    for pragma in ("user_version=2", "application_id=1"):
        with sqlite3.connect(path) as database:
            database.execute(f"PRAGMA {pragma}")
        with pytest.raises(FormatError):
            Catalogue(path)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE volumes SET name = 'a/b'",
        "UPDATE volumes SET uuid = x'00'",
        "UPDATE volumes SET dev_id = 1 << 24",
        "UPDATE volumes SET dev_id = 'many'",
        'UPDATE volumes SET origin = \'{"kind": "tape"}\'',
        "UPDATE snapshots SET labels = '[1, 2]'",
        "UPDATE snapshots SET purpose = 'fun'",
        "UPDATE pool SET ends = 6",
        "INSERT INTO settings VALUES ('retention', 'other', 5, NULL)",
        "DROP TABLE volumes",
        "DROP TABLE switches",
        "DELETE FROM switches",
    ],
)
def test_rows_that_can_not_be_are_damage(catalogue: Catalogue, path: Path, statement: str) -> None:
    """W2: whatever the file says, only DamageError comes out, or the rows aren't there."""
    catalogue.stage(6, EVERYTHING)
    with sqlite3.connect(path) as database:
        database.execute(statement)
    if statement == "DROP TABLE volumes":
        with Catalogue(path, read_only=True) as newer:
            assert newer.view(6).volumes == []
        return
    with Catalogue(path, read_only=True) as reader, pytest.raises(DamageError, match=r"catalog\.db"):
        reader.view(6)


def test_flipped_bytes_give_damage_or_nothing(catalogue: Catalogue, path: Path) -> None:
    """Every 97th byte of the file, inverted: the view, DamageError, or another typed error; never anything else."""
    catalogue.stage(6, EVERYTHING)
    catalogue.close()
    whole = path.read_bytes()
    refused = 0
    for offset in range(0, len(whole), 97):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0xFF]) + whole[offset + 1 :])
        try:
            with Catalogue(path) as opened:
                opened.view(6)
                opened.points(6, V1, 5)
        except ReplicatorError:
            refused += 1
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    assert refused > 0


def test_a_disk_error_bars_further_staging(catalogue: Catalogue, path: Path) -> None:
    """After a commit that the disk failed (here: the file size limit) none is taken until it is opened again."""
    catalogue.stage(6, EVERYTHING)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.with_name("catalog.db-wal").stat().st_size, hard))
    try:
        with pytest.raises(DeviceError):
            catalogue.stage(7, [Put(replace(SNAPSHOT, dev_id=number)) for number in range(100, 300)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(ReplicatorError, match="failed before"):
        catalogue.stage(7, [])
    assert catalogue.view(6).volumes == [VOLUME]
    catalogue.close()
    with Catalogue(path) as reopened:
        reopened.discard_beyond(6)
        reopened.stage(7, [])
        assert reopened.view(7).snapshots == [SNAPSHOT]
