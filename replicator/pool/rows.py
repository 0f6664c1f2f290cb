"""Versioned rows: frozen values in SQLite, each with the transaction ids at which it begins and ends.

The mechanism beneath catalogue; what is stored there stands in catalogue_schema. A table is declared by a frozen
dataclass and the names of its key fields; columns follow from the fields' types, so a new table is one declaration.

    field type                       column
    int                              INTEGER        (63 bits)
    bool                             INTEGER        0 or 1
    str, StrEnum                     TEXT
    bytes                            BLOB
    UUID                             BLOB           16 bytes
    tuple[...], frozen dataclass     TEXT           JSON
    any of them `| None`             the same, NULL for None
    (every table)                    begins INTEGER NOT NULL, ends INTEGER; primary key (key fields, begins)

    valid at T                       begins <= T and (ends is NULL or ends > T)

Invariants
  W1  Of one key at most one row is valid at any id: a Put ends the row that was valid when it begins.
  W2  What is decoded was validated by its own class; anything else is RowError, naming the table.
  W3  A row that begins at the id being staged is replaced or removed outright, never ended: its life would be empty.

Failures: NotFoundError (ending what isn't there), RowError (a row or key that its class refuses).
"""

from __future__ import annotations

import sqlite3
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Generic, TypeVar, get_args, get_origin
from uuid import UUID

import msgspec

from replicator.errors import DamageError, NotFoundError, ReplicatorError, UsageError

Value = TypeVar("Value")
Stored = int | str | bytes | None
"""What SQLite holds."""

_INTEGER_LIMIT = 1 << 63
"""SQLite's integers have 64 bits, one for the sign."""

_READ_AT_ONCE = 512
"""Rows fetched per step of a long listing: few calls, small memory."""


class RowError(DamageError):
    """A stored row, or one that was sent, is none of its table."""


@dataclass(frozen=True, slots=True)
class Column:
    """How one field is stored: its SQL type, and both directions."""

    name: str
    sql_type: str
    optional: bool
    encode: Callable[[Any], Stored]
    decode: Callable[[Any], Any]


@dataclass(frozen=True)
class Table(Generic[Value]):
    """The rows of one value class; see the module's table. `whole` tables are read into every view."""

    name: str
    value_type: type[Value]
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    whole: bool

    def key_of(self, value: Value) -> tuple[Any, ...]:
        """The value's key fields, in their order."""
        return tuple(getattr(value, name) for name in self.key)

    def create(self, database: sqlite3.Connection) -> None:
        """Make the table and its indexes where they aren't there."""
        columns = ", ".join(f"{c.name} {c.sql_type}{'' if c.optional else ' NOT NULL'}" for c in self.columns)
        database.execute(
            f"CREATE TABLE IF NOT EXISTS {self.name} ({columns}, begins INTEGER NOT NULL, ends INTEGER,"
            f" PRIMARY KEY ({', '.join(self.key)}, begins)) WITHOUT ROWID"
        )
        database.execute(f"CREATE INDEX IF NOT EXISTS {self.name}_ended ON {self.name} (ends) WHERE ends IS NOT NULL")

    def put(self, database: sqlite3.Connection, value: Value, begins: int) -> None:
        """Store `value` from `begins` on, ending the row of its key that is valid now (W1, W3)."""
        key = self.encode_key(self.key_of(value))
        self._end(database, key, begins)
        names = ", ".join([*(column.name for column in self.columns), "begins"])
        marks = ", ".join("?" * (len(self.columns) + 1))
        database.execute(f"INSERT INTO {self.name} ({names}) VALUES ({marks})", (*self.encode(value), begins))

    def end(self, database: sqlite3.Connection, key: tuple[Any, ...], ends: int) -> None:
        """End the valid row of `key`; NotFoundError where there is none."""
        if not self._end(database, self.encode_key(key), ends):
            raise NotFoundError(f"there is no row {key!r} in {self.name} to end")

    def end_below(self, database: sqlite3.Connection, prefix: tuple[Any, ...], limit: int, ends: int) -> None:
        """End all valid rows whose key begins with `prefix`, and whose next key field is below `limit`."""
        where = "".join(f"{name} = ? AND " for name in self.key[: len(prefix)])
        where = f"{where}{self.key[len(prefix)]} < ? AND ends IS NULL"
        bound = (*self.encode_key(prefix), limit)
        database.execute(f"DELETE FROM {self.name} WHERE {where} AND begins = ?", (*bound, ends))
        database.execute(f"UPDATE {self.name} SET ends = ? WHERE {where}", (ends, *bound))

    def find(self, database: sqlite3.Connection, key: tuple[Any, ...], at_id: int) -> Value | None:
        """The value of `key` that is valid at `at_id`."""
        return next(self._select(database, self.key, self.encode_key(key), at_id, ""), None)

    def rows(
        self,
        database: sqlite3.Connection,
        at_id: int,
        prefix: tuple[Any, ...] = (),
        limit: int = -1,
        newest: bool = False,
    ) -> Iterator[Value]:
        """The values valid at `at_id` whose key begins with `prefix`, by key (`newest`: from the end)."""
        order = ", ".join(f"{name} DESC" if newest else name for name in self.key)
        return self._select(
            database, self.key[: len(prefix)], self.encode_key(prefix), at_id, f" ORDER BY {order} LIMIT {limit}"
        )

    def discard_beyond(self, database: sqlite3.Connection, at_id: int) -> int:
        """Remove rows that begin beyond `at_id`, reopen those that ended there; how many rows that touched."""
        removed = database.execute(f"DELETE FROM {self.name} WHERE begins > ?", (at_id,)).rowcount
        return removed + database.execute(f"UPDATE {self.name} SET ends = NULL WHERE ends > ?", (at_id,)).rowcount

    def purge(self, database: sqlite3.Connection, oldest_id: int) -> int:
        """Remove rows that no view at `oldest_id` or later sees; how many."""
        return database.execute(f"DELETE FROM {self.name} WHERE ends <= ?", (oldest_id,)).rowcount

    def encode(self, value: Value) -> tuple[Stored, ...]:
        """The columns of `value`."""
        return tuple(column.encode(getattr(value, column.name)) for column in self.columns)

    def encode_key(self, key: tuple[Any, ...]) -> tuple[Stored, ...]:
        """The stored form of the leading key fields."""
        by_name = {column.name: column for column in self.columns}
        return tuple(by_name[name].encode(part) for name, part in zip(self.key, key, strict=False))

    def decode(self, stored: Iterable[Any]) -> Value:
        """The value of a row's columns; RowError for what its class refuses (W2)."""
        try:
            decoded = {c.name: c.decode(each) for c, each in zip(self.columns, stored, strict=True)}
            return self.value_type(**decoded)
        except (UsageError, ValueError, TypeError, OverflowError) as error:
            raise RowError(f"a row of the table {self.name} can't be read: {error}") from error

    def decode_key(self, stored: Iterable[Any]) -> tuple[Any, ...]:
        """The key whose stored form this is; RowError for what is none."""
        by_name = {column.name: column for column in self.columns}
        try:
            return tuple(by_name[name].decode(part) for name, part in zip(self.key, stored, strict=False))
        except (ValueError, TypeError) as error:
            raise RowError(f"a key of the table {self.name} can't be read: {error}") from error

    def _end(self, database: sqlite3.Connection, key: tuple[Stored, ...], ends: int) -> bool:
        where = " AND ".join(f"{name} = ?" for name in self.key)
        removed = database.execute(f"DELETE FROM {self.name} WHERE {where} AND begins = ?", (*key, ends)).rowcount
        ended = database.execute(
            f"UPDATE {self.name} SET ends = ? WHERE {where} AND ends IS NULL", (ends, *key)
        ).rowcount
        return removed + ended > 0

    def _select(
        self, database: sqlite3.Connection, names: tuple[str, ...], key: tuple[Stored, ...], at_id: int, tail: str
    ) -> Iterator[Value]:
        columns = ", ".join(column.name for column in self.columns)
        where = "".join(f" AND {name} = ?" for name in names)
        cursor = database.execute(
            f"SELECT {columns} FROM {self.name} WHERE begins <= ? AND (ends IS NULL OR ends > ?){where}{tail}",
            (at_id, at_id, *key),
        )
        while found := cursor.fetchmany(_READ_AT_ONCE):
            yield from map(self.decode, found)


def table_of(value_type: type[Value], name: str, key: tuple[str, ...], *, whole: bool = True) -> Table[Value]:
    """The table whose rows are `value_type`s (a frozen dataclass), one valid row per `key`."""
    hints = typing.get_type_hints(value_type)
    assert isinstance(value_type, type)
    columns = tuple(_column(each.name, hints[each.name]) for each in fields(value_type))  # type: ignore[arg-type]  # a TypeVar can't say "a dataclass"
    return Table(name, value_type, key, columns, whole)


def _column(name: str, hint: Any) -> Column:
    optional = get_origin(hint) in (types.UnionType, typing.Union)
    if optional:
        (hint,) = (each for each in get_args(hint) if each is not type(None))
    sql_type, encode, decode = _codec(hint)
    if not optional:
        return Column(name, sql_type, False, encode, decode)
    return Column(
        name,
        sql_type,
        True,
        lambda value: None if value is None else encode(value),
        lambda stored: None if stored is None else decode(stored),
    )


def _codec(hint: Any) -> tuple[str, Callable[[Any], Stored], Callable[[Any], Any]]:
    """SQL type, encoder and decoder of a field's type; decoders raise ValueError or TypeError."""
    if hint is bool:
        return "INTEGER", int, lambda stored: bool(_exactly(int, stored))
    if hint is UUID:
        return "BLOB", lambda value: value.bytes, lambda stored: UUID(bytes=_exactly(bytes, stored))
    if hint is int:
        return "INTEGER", lambda value: value, _whole_number
    if hint in (str, bytes):
        sql_type = "TEXT" if hint is str else "BLOB"
        return sql_type, lambda value: value, lambda stored: _exactly(hint, stored)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return "TEXT", str, lambda stored: hint(_exactly(str, stored))
    return "TEXT", lambda value: msgspec.json.encode(value).decode(), lambda stored: _from_json(hint, stored)


def _whole_number(stored: Any) -> int:
    number: int = _exactly(int, stored)
    if not -_INTEGER_LIMIT <= number < _INTEGER_LIMIT:
        raise ValueError(f"{number} has more than 63 bits")
    return number


def _exactly(expected: type, stored: Any) -> Any:
    if type(stored) is not expected:
        raise TypeError(f"{expected.__name__} expected, {type(stored).__name__} found")
    return stored


def _from_json(hint: Any, stored: Any) -> Any:
    try:
        return msgspec.json.decode(_exactly(str, stored), type=hint)
    except ReplicatorError as error:
        raise ValueError(str(error)) from error
