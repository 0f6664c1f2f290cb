"""What a commit changes in the catalogue, as values: put a row, end a row, end a stretch of rows.

Made by whoever cuts, publishes or applies; taken by Catalogue.stage, or sent to the pool's owner over the control
socket in their plain form (lists of numbers, text and bytes, as msgpack and SQLite know them).

    change                         plain form
    Put(value)                     ["put", table, column, …]
    End(Type, key)                 ["end", table, key field, …]
    EndBelow(Type, prefix, n)      ["below", table, n, key field, …]     all of the prefix whose next key field is < n

Invariants
  C1  plain_of and change_of are inverse; change_of lets nothing through that couldn't be staged.

Failures: FormatError, for a plain form that is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from replicator.errors import FormatError
from replicator.history.points import NUMBER_LIMIT
from replicator.pool.catalogue_schema import TABLE_BY_NAME, TABLE_BY_TYPE, Row
from replicator.pool.rows import RowError, Stored, Table

CHANGES_LIMIT = 100_000
"""Changes of one commit: a first transaction's, or a great retirement's; beyond, somebody is flooding the owner."""


@dataclass(frozen=True, slots=True)
class Put:
    """From the next id on, `value` is what its key has."""

    value: Row

    @property
    def table(self) -> Table[Any]:
        return TABLE_BY_TYPE[type(self.value)]


@dataclass(frozen=True, slots=True)
class End:
    """From the next id on, the row of this key is no more; NotFoundError at staging where there is none."""

    value_type: type[Row]
    key: tuple[Any, ...]

    def __post_init__(self) -> None:
        assert len(self.key) == len(self.table.key), f"{self.table.name} has the key {self.table.key}"

    @property
    def table(self) -> Table[Any]:
        return TABLE_BY_TYPE[self.value_type]


@dataclass(frozen=True, slots=True)
class EndBelow:
    """From the next id on, no row is left whose key begins with `prefix` and whose next key field is below `limit`."""

    value_type: type[Row]
    prefix: tuple[Any, ...]
    limit: int

    def __post_init__(self) -> None:
        assert len(self.prefix) < len(self.table.key), f"{self.table.name} has the key {self.table.key}"

    @property
    def table(self) -> Table[Any]:
        return TABLE_BY_TYPE[self.value_type]


Change: TypeAlias = Put | End | EndBelow


def plain_of(change: Change) -> list[Stored]:
    """The change as a list of numbers, text and bytes."""
    table = change.table
    if isinstance(change, Put):
        return ["put", table.name, *table.encode(change.value)]
    if isinstance(change, End):
        return ["end", table.name, *table.encode_key(change.key)]
    return ["below", table.name, change.limit, *table.encode_key(change.prefix)]


def change_of(plain: Sequence[Any]) -> Change:
    """The change whose plain form this is (C1)."""
    rest: list[Any]
    verb, name, *rest = plain if len(plain) >= 3 else ("", "", None)
    table = TABLE_BY_NAME.get(name) if isinstance(name, str) else None
    try:
        if table is not None and verb == "put" and len(rest) == len(table.columns):
            return Put(table.decode(rest))
        if table is not None and verb == "end" and len(rest) == len(table.key):
            return End(table.value_type, table.decode_key(rest))
        if table is not None and verb == "below" and len(rest) <= len(table.key) and _is_limit(rest[0]):
            return EndBelow(table.value_type, table.decode_key(rest[1:]), rest[0])
    except RowError as error:
        raise FormatError("a catalogue change", "a row of that table", error.message) from error
    raise FormatError("a catalogue change", "put, end or below, a table and its fields", repr(plain)[:200])


def _is_limit(stored: Any) -> bool:
    return type(stored) is int and 0 <= stored < NUMBER_LIMIT
