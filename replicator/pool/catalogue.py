"""The catalogue beside a pool's metadata: names, points and positions, tied to the superblock's transaction id.

Between rows (the mechanism), catalogue_schema (what stands there) and the pool's commit. SQLite in WAL mode with
synchronous=FULL; one writer (the pool's owner), any number of readers in other processes.

The switch. Rows for id N+1 are staged and synced while the superblock says N; the superblock's one write makes them
true. Each stage, also an empty one, leaves a row in `switches`.

    dies …                                  on disk                                      next opening
    before stage commits                    rows up to N; WAL's tail is dropped          N, as it was
    after it, before the superblock         rows of N+1 too; superblock N                readers filter them out; who
                                                                                         opens for writing discards them
    after the superblock                    rows of N+1, superblock N+1                  N+1
    in discard_beyond, purge                one SQLite transaction: all of it or none    again
    in create, before the link              `catalog.db.new` and no catalogue            a foreign pool; create again
    stage's commit fails (disk)             unknown: rows of N+1 may be there or not     no more staging until reopened

Invariants
  G1  view(N) is the same before, during and after the staging of N+1.
  G2  A superblock at T without a row T in `switches` means that the catalogue is older than the metadata: DamageError.
  G3  Staging N+1 needs the row N, and none beyond: what a failed commit left is discarded first.
  G4  Opening for writing commits: its sync covers what a killed writer had handed to the kernel only.
  G5  No view is given of an id whose ended rows may have been purged: StaleViewError, ask again.

Failures: NotFoundError (no catalogue), ConflictError (busy, is there), DamageError (not SQLite, not ours, damaged,
behind), NoSpaceError, DeviceError, StaleViewError.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID

from replicator.errors import (
    ConflictError,
    DamageError,
    DeviceError,
    FormatError,
    NoSpaceError,
    NotFoundError,
    ReplicatorError,
    UnavailableError,
)
from replicator.pool.catalogue_schema import TABLE_BY_TYPE, TABLES, LoggedGroup, LoggedPoint, PoolIdentity
from replicator.pool.changes import CHANGES_LIMIT, Change, End, Put
from replicator.pool.rows import RowError, Table
from replicator.pool.view import CatalogueView

APPLICATION_ID = 0x52504C43
"""SQLite's application_id of a catalogue: "RPLC"."""

FORMAT_VERSION = 1
"""SQLite's user_version; tables may be added without a new one, meanings may not change."""

_ROW_LIMIT_BYTES = 1 << 20
"""SQLite refuses longer rows, so that a damaged file can't make us allocate one."""

_BUSY_S = 10.0
"""How long a write waits for another connection's: they last milliseconds, so longer is a hung process."""

_CHECKPOINT_PAGES = 4000
"""The WAL's length at which a commit also checkpoints (16 MiB), where nobody called purge."""


class StaleViewError(UnavailableError):
    """The superblock has moved on, and rows of the id asked for may be gone: read its id again, then ask again."""


class Catalogue:
    """An open catalogue; threads may share it. Owners open it for writing, everybody else `read_only`."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open what is there; for writing it is synced, and tables that it lacks are made (G4)."""
        if not path.is_file():
            raise NotFoundError(f"there is no catalogue {path}")
        self._path = path
        self._read_only = read_only
        self._turn = threading.Lock()
        self._failed: ReplicatorError | None = None
        with self._translated():
            self._database = _connect(path, read_only)
        try:
            with self._translated():
                self._check_ours()
                if not read_only:
                    self._make_trusted()
                self._tables = _tables_there(self._database)
        except BaseException:
            self._database.close()
            raise

    @classmethod
    def create(cls, path: Path, identity: PoolIdentity, at_id: int) -> Catalogue:
        """A new catalogue of a pool whose superblock has `at_id`; it is there wholly or not at all."""
        temporary = path.with_name(f"{path.name}.new")
        try:
            _remove(temporary)
            _fill_new(temporary, identity, at_id)
            os.link(temporary, path)
        except FileExistsError:
            raise ConflictError(f"{path} is there already") from None
        except (OSError, sqlite3.Error) as error:
            _refuse(path, error)
        finally:
            _remove(temporary)
        _sync(path.parent)
        return cls(path)

    @property
    def path(self) -> Path:
        return self._path

    def view(self, at_id: int) -> CatalogueView:
        """All that is valid at `at_id`, the superblock's transaction id (G1, G2, G5); logged points apart."""
        with self._reading(at_id) as database:
            rows = {table.value_type: self._by_key(table, database, at_id) for table in self._tables if table.whole}
        pools = len(rows.get(PoolIdentity, {}))
        if pools != 1:
            raise self._damage(f"it names {pools} pools at transaction {at_id}")
        return CatalogueView(at_id, rows)

    def points(self, at_id: int, volume: UUID, limit: int, timeline: int | None = None) -> list[LoggedPoint]:
        """The newest `limit` points of a volume (of one timeline, or all) that the log has, oldest first."""
        prefix = (volume,) if timeline is None else (volume, timeline)
        with self._reading(at_id) as database:
            found = list(TABLE_BY_TYPE[LoggedPoint].rows(database, at_id, prefix, limit, newest=True))
        return found[::-1]

    def groups(self, at_id: int) -> list[LoggedGroup]:
        """The cuts of groups that the log has; none in a catalogue from before there were any."""
        table: Table[LoggedGroup] = TABLE_BY_TYPE[LoggedGroup]
        with self._reading(at_id) as database:
            return list(table.rows(database, at_id)) if table in self._tables else []

    def point(self, at_id: int, volume: UUID, timeline: int, number: int) -> LoggedPoint | None:
        """One point that the log has."""
        with self._reading(at_id) as database:
            found: LoggedPoint | None = TABLE_BY_TYPE[LoggedPoint].find(database, (volume, timeline, number), at_id)
        return found

    def stage(self, next_id: int, changes: Sequence[Change]) -> None:
        """Write and sync the rows of `next_id`, which the superblock's switch to it then makes true.

        When it returns they are durable. A NotFoundError, ConflictError or NoSpaceError leaves nothing behind; any
        other error may have, and bars further staging until the catalogue is opened again.
        """
        assert len(changes) <= CHANGES_LIMIT, f"{len(changes)} changes in one commit"
        with self._writing() as database:
            newest = _newest_switch(database)
            if newest != next_id - 1:
                raise ConflictError(f"transaction {next_id} can't be staged: {self._path} stands at {newest}")
            for change in changes:
                if isinstance(change, Put):
                    change.table.put(database, change.value, next_id)
                elif isinstance(change, End):
                    change.table.end(database, change.key, next_id)
                else:
                    change.table.end_below(database, change.prefix, change.limit, next_id)
            database.execute("INSERT INTO switches (id) VALUES (?)", (next_id,))

    def discard_beyond(self, at_id: int) -> int:
        """Undo what was staged beyond `at_id`, the superblock's id; how many rows that touched.

        Called on every opening for writing, and after a commit that failed before its superblock.
        """
        with self._writing() as database:
            try:
                self._check_switch(database, at_id)
            except StaleViewError as error:
                raise self._damage(f"the pool's superblock is at {at_id}, older than all that it holds") from error
            touched = sum(table.discard_beyond(database, at_id) for table in TABLES)
            return touched + database.execute("DELETE FROM switches WHERE id > ?", (at_id,)).rowcount

    def purge(self, oldest_reader_id: int) -> int:
        """Drop rows that ended at or before the oldest id that anybody reads; how many. Also shortens the WAL."""
        with self._writing() as database:
            self._check_switch(database, oldest_reader_id)
            gone = sum(table.purge(database, oldest_reader_id) for table in TABLES)
            database.execute("DELETE FROM switches WHERE id < ?", (oldest_reader_id,))
        with self._turn, self._translated():
            self._database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        return gone

    def newest_id(self) -> int:
        """The id of the last switch that was staged, true or not; for those whose superblock is lost."""
        with self._turn, self._translated():
            return _newest_switch(self._database)

    def check(self) -> None:
        """Read everything, and let SQLite check its structure; DamageError with what it found."""
        with self._turn, self._translated():
            found = [row[0] for row in self._database.execute("PRAGMA integrity_check(10)")]
            if found != ["ok"]:
                raise self._damage("; ".join(map(str, found)))
            newest = _newest_switch(self._database)
            for table in self._tables:
                for _ in table.rows(self._database, newest):
                    pass

    def close(self) -> None:
        """Close it; what was staged stays."""
        with self._turn:
            self._database.close()

    def __enter__(self) -> Catalogue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _by_key(self, table: Table[Any], database: sqlite3.Connection, at_id: int) -> dict[tuple[Any, ...], Any]:
        """The table's valid rows; two of one key are damage, since a Put ends the one before."""
        found = list(table.rows(database, at_id))
        by_key = {table.key_of(value): value for value in found}
        if len(by_key) != len(found):
            raise self._damage(f"the table {table.name} has a key twice at transaction {at_id}")
        return by_key

    @contextmanager
    def _reading(self, at_id: int) -> Iterator[sqlite3.Connection]:
        """One read transaction, after checking that `at_id` can be answered in it."""
        with self._turn, self._translated():
            self._database.execute("BEGIN")
            try:
                self._check_switch(self._database, at_id)
                yield self._database
            finally:
                _end(self._database, "ROLLBACK")

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One write transaction, committed and synced at the end, or rolled back."""
        with self._turn:
            if self._failed is not None:
                raise ReplicatorError(f"{self._path} failed before: {self._failed}", mend="open the pool again")
            try:
                with self._translated():
                    self._database.execute("BEGIN IMMEDIATE")
                    try:
                        yield self._database
                        self._database.execute("COMMIT")
                    except BaseException:
                        _end(self._database, "ROLLBACK")
                        raise
            except (DeviceError, DamageError) as error:
                self._failed = error
                raise

    def _check_switch(self, database: sqlite3.Connection, at_id: int) -> None:
        oldest, newest = database.execute("SELECT min(id), max(id) FROM switches").fetchone()
        if newest is None or at_id > newest:
            raise self._damage(f"it ends at transaction {newest}, but the pool's superblock is at {at_id}")
        if at_id < oldest:
            raise StaleViewError(f"{self._path} no longer has transaction {at_id}: it begins at {oldest}")

    def _check_ours(self) -> None:
        (application_id,) = self._database.execute("PRAGMA application_id").fetchone()
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if application_id != APPLICATION_ID:
            raise FormatError(str(self._path), f"application id {APPLICATION_ID:#x}", f"{application_id:#x}")
        if version != FORMAT_VERSION:
            mend = "use the newer Replicator that wrote it" if version > FORMAT_VERSION else None
            raise FormatError(str(self._path), f"catalogue version {FORMAT_VERSION}", str(version), mend=mend)

    def _make_trusted(self) -> None:
        found = [row[0] for row in self._database.execute("PRAGMA quick_check(1)")]
        if found != ["ok"]:
            raise self._damage(str(found[0]))
        self._database.execute("BEGIN IMMEDIATE")
        for table in TABLES:
            table.create(self._database)
        self._database.execute("UPDATE openings SET count = count + 1")
        self._database.execute("COMMIT")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except RowError as error:
            raise self._damage(error.message) from error
        except UnicodeDecodeError as error:  # SQLite's message quotes a damaged schema
            raise self._damage("its text isn't UTF-8") from error
        except sqlite3.Error as error:
            _refuse(self._path, error)

    def _damage(self, what: str) -> DamageError:
        return DamageError(f"the catalogue {self._path} is damaged: {what}", mend=_mend(self._path))


def _connect(path: Path, read_only: bool) -> sqlite3.Connection:
    """A connection with our settings; a catalogue on a read-only file system opens as an unchanging file."""
    unchanging = read_only and not os.access(path.parent, os.W_OK) and not path.with_name(path.name + "-wal").exists()
    mode = "mode=ro&immutable=1" if unchanging else "mode=ro" if read_only else "mode=rw"
    database = sqlite3.connect(
        f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
    )
    try:
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _ROW_LIMIT_BYTES)
        database.execute("PRAGMA trusted_schema=OFF")
        database.execute("PRAGMA synchronous=FULL")
        database.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
    except BaseException:
        database.close()
        raise
    return database


def _fill_new(path: Path, identity: PoolIdentity, at_id: int) -> None:
    path.touch(mode=0o600, exist_ok=False)
    database = _connect(path, read_only=False)
    try:
        database.execute("PRAGMA journal_mode=WAL").fetchall()
        database.execute("BEGIN IMMEDIATE")
        database.execute("CREATE TABLE switches (id INTEGER PRIMARY KEY)")
        database.execute("CREATE TABLE openings (count INTEGER NOT NULL)")
        database.execute("INSERT INTO openings VALUES (0)")
        for table in TABLES:
            table.create(database)
        TABLE_BY_TYPE[PoolIdentity].put(database, identity, at_id)
        database.execute("INSERT INTO switches (id) VALUES (?)", (at_id,))
        database.execute(f"PRAGMA application_id={APPLICATION_ID}")
        database.execute(f"PRAGMA user_version={FORMAT_VERSION}")
        database.execute("COMMIT")
    finally:
        database.close()
    _sync(path)


def _tables_there(database: sqlite3.Connection) -> tuple[Table[Any], ...]:
    """The tables that the file has: a reader may be newer than whoever opened it for writing last."""
    names = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    return tuple(table for table in TABLES if table.name in names)


def _remove(path: Path) -> None:
    """Take away a database with what SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _newest_switch(database: sqlite3.Connection) -> int:
    (newest,) = database.execute("SELECT max(id) FROM switches").fetchone()
    return -1 if newest is None else int(newest)


def _end(database: sqlite3.Connection, verb: str) -> None:
    """End a transaction that may have ended by itself (SQLite rolls back on some errors)."""
    if database.in_transaction:
        database.execute(verb)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _mend(path: Path) -> str:
    return (
        f"a replica is made again from its log; else move {path.name}, {path.name}-wal and {path.name}-shm away:"
        " the pool then opens as a foreign one, its devices named thin-ID"
    )


def _refuse(path: Path, error: OSError | sqlite3.Error) -> NoReturn:
    """The typed error for what SQLite or the kernel said of `path`."""
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(f"no room for {path}") from error
        raise DeviceError(f"creating {path}", 0, error.errno or errno.EIO, error.strerror or str(error)) from error
    if isinstance(error, sqlite3.ProgrammingError):
        raise AssertionError(f"{path} was used after it was closed") from error
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        raise ConflictError(f"{path} is being written by another process: {error}") from error
    if code == sqlite3.SQLITE_FULL:
        raise NoSpaceError(f"no room for {path}", mend="make room in its file system") from error
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        raise DeviceError(f"using {path}", 0, errno.EIO, str(error)) from error
    if isinstance(error, sqlite3.DatabaseError):
        raise DamageError(f"the catalogue {path} is damaged: {error}", mend=_mend(path)) from error
    raise ReplicatorError(f"using {path}: {error}") from error
