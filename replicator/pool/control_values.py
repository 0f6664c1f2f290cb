"""What the control socket's calls say: arguments and results of each method of Pool, and of the exporter's own.

Carried by pool/control's frames; made and read by pool/remote and exporter/control. Pure.

    method                  arguments             result
    hello                   HelloAsked            HelloAnswer             pool/control: it never changes
    status                  Nothing               PoolStatus
    transaction_id          Nothing               int                     of the newest durable switch
    facts                   DevIds                [DeviceFacts]
    switch                  SwitchAsked           int
    cut                     CutRequest            CutMade
    lease                   DevIds                [DeviceFacts]           ends with its connection
    release                 Nothing               None
    reserve                 Count                 bytes (u64 each)        given back with its connection
    give_back               Blocks                None
    resize                  ResizeAsked           int
    set_metadata_snapshot   Held                  int
    flush                   Nothing               None
    listen                  ListenAsked           [ExportFacts]           one more NBD listener
    exports                 Nothing               [ExportFacts]
    listeners               Nothing               [ListenAsked]           as asked for: whoever starts it again asks so
    stop                    Nothing               None                    the owner ends after its answer

`view` and `points` aren't here: the client reads the catalogue itself, at the owner's transaction id, so that listing
a thousand points costs the process that serves disks nothing.

Arrays of numbers travel as little-endian u64 in bytes. Fields are only ever added, with a default: unknown ones are
skipped by older programs.

Invariants
  V1  switch_asked and SwitchAsked.value are inverse; what `value` returns has arrays of the right shape and order.
  V2  A Count asks for at most RESERVE_LIMIT blocks.

Failures: FormatError, and UsageError of the values that validate themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from replicator.errors import FormatError, UsageError
from replicator.pdata.block import Words
from replicator.pool.changes import CHANGES_LIMIT, change_of, plain_of
from replicator.pool.control import HelloAnswer, HelloAsked
from replicator.pool.interface import CutMade, CutRequest, DeviceFacts, Filling, PoolStatus, Switch

RESERVE_LIMIT = 1 << 20
"""Blocks reserved by one call: 64 GiB in the smallest blocks, far more than a commit takes."""

_LITTLE = np.dtype("<u8")


class Nothing(msgspec.Struct, frozen=True):
    """No arguments."""


class DevIds(msgspec.Struct, frozen=True):
    """These thin devices."""

    dev_ids: list[int]


class Count(msgspec.Struct, frozen=True):
    """So many data blocks (V2)."""

    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.count <= RESERVE_LIMIT:
            raise UsageError(f"{self.count} blocks can't be reserved at once: {RESERVE_LIMIT} at most")


class Blocks(msgspec.Struct, frozen=True):
    """These data blocks."""

    blocks: bytes


class ResizeAsked(msgspec.Struct, frozen=True):
    """A volume's new size; `volume` is its UUID's 16 bytes."""

    volume: bytes
    size_bytes: int


class Held(msgspec.Struct, frozen=True):
    """Whether there shall be a metadata snapshot."""

    held: bool


class FillingAsked(msgspec.Struct, frozen=True):
    """A Filling with its arrays as bytes."""

    dev_id: int
    virtual_blocks: bytes
    data_blocks: bytes
    unmapped: bytes

    def value(self) -> Filling:
        """The Filling (V1)."""
        unmapped = words_of(self.unmapped)
        if len(unmapped) % 2:
            raise FormatError("a filling", "pairs of begin and end", f"{len(unmapped)} numbers")
        unmapped = unmapped.reshape(-1, 2)
        if (unmapped[:, 0] > unmapped[:, 1]).any():
            raise FormatError("a filling", "ranges that end behind their begin", "one that doesn't")
        virtual_blocks, data_blocks = words_of(self.virtual_blocks), words_of(self.data_blocks)
        if len(virtual_blocks) != len(data_blocks):
            raise FormatError("a filling", f"{len(virtual_blocks)} data blocks", str(len(data_blocks)))
        return Filling(self.dev_id, virtual_blocks, data_blocks, unmapped)


class SwitchAsked(msgspec.Struct, frozen=True):
    """A Switch with its rows in their plain form."""

    changes: list[list[Any]] = []
    create: list[int] = []
    snapshot: list[tuple[int, int]] = []
    fill: list[FillingAsked] = []
    delete: list[int] = []
    expected_id: int | None = None
    grow_data_blocks: int = 0
    grow_metadata_blocks: int = 0

    def value(self) -> Switch:
        """The Switch (V1)."""
        if len(self.changes) > CHANGES_LIMIT:
            raise UsageError(f"{len(self.changes)} changes in one switch, more than {CHANGES_LIMIT}")
        return Switch(
            changes=tuple(map(change_of, self.changes)),
            create=tuple(self.create),
            snapshot=tuple(self.snapshot),
            fill=tuple(each.value() for each in self.fill),
            delete=tuple(self.delete),
            expected_id=self.expected_id,
            grow_data_blocks=self.grow_data_blocks,
            grow_metadata_blocks=self.grow_metadata_blocks,
        )


class ListenAsked(msgspec.Struct, frozen=True):
    """One more NBD listener: ADDRESS as people write it, the names to export (none: all), and its TLS files.

    `patient`: names that nothing has are offered once something has them; else they are refused.
    """

    address: str
    names: list[str] = []
    read_only: bool = False
    tls: dict[str, str] = {}
    patient: bool = False


@dataclass(frozen=True, slots=True)
class ExportFacts:
    """One name that an address serves; `clients` have it open there (None: an older owner, which doesn't say)."""

    name: str
    dev_id: int
    size_bytes: int
    read_only: bool
    address: str
    uri: str = ""
    clients: list[str] | None = None


METHODS: dict[str, tuple[Any, Any]] = {
    "hello": (HelloAsked, HelloAnswer),
    "status": (Nothing, PoolStatus),
    "transaction_id": (Nothing, int),
    "facts": (DevIds, list[DeviceFacts]),
    "switch": (SwitchAsked, int),
    "cut": (CutRequest, CutMade),
    "lease": (DevIds, list[DeviceFacts]),
    "release": (Nothing, None),
    "reserve": (Count, bytes),
    "give_back": (Blocks, None),
    "resize": (ResizeAsked, int),
    "set_metadata_snapshot": (Held, int),
    "flush": (Nothing, None),
    "listen": (ListenAsked, list[ExportFacts]),
    "exports": (Nothing, list[ExportFacts]),
    "listeners": (Nothing, list[ListenAsked]),
    "stop": (Nothing, None),
}
"""Each call's (arguments, result)."""


def switch_asked(switch: Switch) -> SwitchAsked:
    """The Switch as it travels (V1)."""
    return SwitchAsked(
        changes=[plain_of(each) for each in switch.changes],
        create=list(switch.create),
        snapshot=list(switch.snapshot),
        fill=[_filling_asked(each) for each in switch.fill],
        delete=list(switch.delete),
        expected_id=switch.expected_id,
        grow_data_blocks=switch.grow_data_blocks,
        grow_metadata_blocks=switch.grow_metadata_blocks,
    )


def _filling_asked(filling: Filling) -> FillingAsked:
    return FillingAsked(
        filling.dev_id,
        bytes_of(filling.virtual_blocks),
        bytes_of(filling.data_blocks),
        bytes_of(filling.unmapped),
    )


def bytes_of(words: Words) -> bytes:
    """Numbers as they travel."""
    return words.astype(_LITTLE, copy=False).tobytes()


def words_of(packed: bytes) -> Words:
    """The numbers of `packed`, writable; FormatError when the last one is cut short."""
    if len(packed) % 8:
        raise FormatError("packed numbers", "a multiple of 8 bytes", str(len(packed)))
    return np.frombuffer(packed, dtype=_LITTLE).astype(np.uint64)
