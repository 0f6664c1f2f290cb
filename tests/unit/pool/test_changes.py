"""C1 of pool/changes: what goes over the control socket comes back the same, and nothing else gets through."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
import pytest

from replicator.errors import FormatError, UsageError
from replicator.pool.catalogue_schema import (
    Branch,
    Cut,
    LoggedPoint,
    Origin,
    OriginKind,
    Position,
    Prepared,
    Purpose,
    Role,
    Setting,
    Snapshot,
    Volume,
)
from replicator.pool.changes import Change, End, EndBelow, Put, change_of, plain_of

V1 = UUID(int=1)
CHANGES: list[Change] = [
    Put(Volume(V1, "vm", 1, 4096, 5, Origin(OriginKind.NBD, "nbd://host/export", 4096))),
    Put(Volume(V1, "vm", 1, 4096, 5)),
    Put(Snapshot(2, V1, Purpose.STAGING, 1, 4096, labels=("a", "b"))),
    Put(LoggedPoint(V1, 1, 1, 1, 1, 1)),
    Put(Position(V1, Role.PUBLISHED, 1, 0, b"", 0, 1, 0, b"\xff\0")),
    Put(Prepared(V1, 1, 1, V1, 4, 5, 0, 0)),
    Put(Cut(V1, (1, 2, 3), 9)),
    Put(Setting("a", "ü")),
    Put(Branch(V1, 2, 1, 7)),
    End(Volume, (V1,)),
    End(Position, (V1, Role.APPLIED)),
    End(LoggedPoint, (V1, 1, 7)),
    EndBelow(LoggedPoint, (V1, 1), 100),
    EndBelow(Snapshot, (), 100),
]


@pytest.mark.parametrize("change", CHANGES)
def test_there_and_back(change: Change) -> None:
    """Through msgpack, as the control socket carries it."""
    assert change_of(msgspec.msgpack.decode(msgspec.msgpack.encode(plain_of(change)))) == change


@pytest.mark.parametrize(
    "plain",
    [
        [],
        ["put"],
        ["put", "volumes"],
        ["put", "volumes", b"\0" * 16],
        ["put", "volumes", b"\0" * 15, "vm", 1, 4096, 5, None],
        ["put", "volumes", b"\0" * 16, "a@b", 1, 4096, 5, None],
        ["put", "volumes", b"\0" * 16, "vm", 1 << 70, 4096, 5, None],
        ["put", "volumes", b"\0" * 16, "vm", None, 4096, 5, None],
        ["put", "volumes", b"\0" * 16, "vm", 1, 4096, 5, "{"],
        ["put", "volumes; DROP TABLE volumes", 1],
        ["put", ["volumes"], 1],
        ["end", "snapshots", 1 << 64],
        ["end", "snapshots", 1, 2],
        ["end", "positions", b"\0" * 16, "somewhere"],
        ["below", "snapshots", -1],
        ["below", "snapshots", 1 << 63],
        ["below", "snapshots", 1, 1],
        ["below", "logged_points", 5, "not a uuid"],
        ["below", "logged_points", None],
        ["drop", "volumes", 1],
    ],
)
def test_what_is_no_change(plain: list[Any]) -> None:
    """FormatError and nothing else, before anything is staged."""
    with pytest.raises(FormatError):
        change_of(plain)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Volume(V1, "a:b", 1, 1, 1),
        lambda: Volume(V1, "a", 1 << 24, 1, 1),
        lambda: Snapshot(1, V1, Purpose.POINT, 1, 1, number=-1),
        lambda: Snapshot(1, V1, Purpose.POINT, 1, 1, labels=("latest",)),
        lambda: Snapshot(1, V1, Purpose.POINT, 1, 1, labels=tuple(f"l{n}" for n in range(33))),
        lambda: Snapshot(1, V1, Purpose.POINT, 1, 1).restore_point(),
        lambda: Position(V1, Role.APPLIED, 1, 1, b"", 1, 1, 1, bytes(65537)),
        lambda: Position(V1, Role.APPLIED, 1, 1, bytes(65), 1, 1),
        lambda: Branch(V1, 1, 1, 1),
        lambda: Cut(V1, (1,) * 4097, 1),
        lambda: Cut(V1, (-1,), 1),
        lambda: Setting("a", "x" * 65537),
        lambda: Origin(OriginKind.FILE, "\udcff", 1),
    ],
)
def test_values_beyond_their_limits_can_not_be_built(build: Any) -> None:
    """K1, K2."""
    with pytest.raises(UsageError):
        build()
