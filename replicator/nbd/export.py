"""What a server offers under one name, and what a connection has agreed on: values, without a disk behind them.

    Export    name, size, read-only, description, preferred block size, snapshots to compare with
    Context   one selected metadata context and the id that replies call it by
    Session   the outcome of a handshake, server's side: what the transmission phase goes by

Transmission flags: every export has FLUSH, FUA, CACHE and CAN_MULTI_CONN (one pool stands behind all
connections, so that a flush on one covers all); one that takes writes has TRIM, WRITE_ZEROES and FAST_ZERO
too; DF only with structured replies, as the specification demands.

Block sizes (decided): minimum 1, preferred = the pool's data block, maximum 32 MiB. The minimum is 1 because
every request down to one byte is served: to say 512 would forbid to careful clients (qemu, libnbd in strict
mode) what the rest may do. The preferred size must be a power of two, so a data block that is none (192 KiB)
counts by its largest power-of-two divisor; above 32 MiB it is 32 MiB, since none may be larger than the maximum.

Metadata contexts: `base:allocation` (STATE_HOLE, STATE_ZERO) for all, and `replicator:changed:SNAPSHOT`
(STATE_CHANGED: not the data block that the snapshot has) for each snapshot that the export names.

Invariants
  X1  A name is UTF-8 without NUL, at most 4096 bytes; a size fits 63 bits; anything else can't be built.
  X2  preferred is a power of two from 512 to 32 MiB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from replicator.nbd import protocol as p

MINIMUM_BYTES = 1
MAXIMUM_BYTES = p.MAX_REQUEST_BYTES
_ANY_EXPORT = p.TRANSMIT_HAS_FLAGS | p.TRANSMIT_SEND_FLUSH | p.TRANSMIT_SEND_FUA
_ANY_EXPORT |= p.TRANSMIT_SEND_CACHE | p.TRANSMIT_CAN_MULTI_CONN
_WRITABLE = p.TRANSMIT_SEND_TRIM | p.TRANSMIT_SEND_WRITE_ZEROES | p.TRANSMIT_SEND_FAST_ZERO


def preferred_size(data_block_bytes: int) -> int:
    """The preferred block size to advertise over a pool with such data blocks: a power of two, 512 B to 32 MiB."""
    return min(max(data_block_bytes & -data_block_bytes, 512), MAXIMUM_BYTES)


@dataclass(frozen=True, slots=True)
class Export:
    """One name that a client can open."""

    name: str
    size_bytes: int
    read_only: bool = False
    description: str = ""
    preferred_bytes: int = 65536
    snapshots: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for text in (self.name, self.description, *(p.CHANGED_PREFIX + name for name in self.snapshots)):
            assert "\0" not in text and len(text.encode()) <= p.MAX_STRING_BYTES, "X1"
        assert 0 <= self.size_bytes < 1 << 63, "X1"
        assert self.preferred_bytes == preferred_size(self.preferred_bytes), "X2"

    @property
    def contexts(self) -> tuple[str, ...]:
        """The names of the metadata contexts that a client may select."""
        return (p.BASE_ALLOCATION, *(p.CHANGED_PREFIX + name for name in self.snapshots))

    def transmission_flags(self, structured: bool) -> int:
        """The flags sent with its size; DF only where `structured` replies were agreed on."""
        kind = p.TRANSMIT_READ_ONLY if self.read_only else _WRITABLE
        return _ANY_EXPORT | kind | (p.TRANSMIT_SEND_DF if structured else 0)


class Exports(Protocol):
    """What a handshake asks its server for; the exporter answers from its pool's catalogue."""

    def listed(self) -> Sequence[Export]:
        """All that OPT_LIST shows, in the order to show."""

    def find(self, name: str) -> Export | None:
        """The export of that name ("" is the default one), or None."""


@dataclass(frozen=True, slots=True)
class Context:
    """A metadata context selected in one connection."""

    context_id: int
    name: str

    @property
    def snapshot(self) -> str | None:
        """The snapshot to compare with, or None for base:allocation."""
        return self.name.removeprefix(p.CHANGED_PREFIX) if self.name.startswith(p.CHANGED_PREFIX) else None


@dataclass(frozen=True, slots=True)
class Session:
    """What server and client agreed on; a live resize replaces `export` by one of another size."""

    export: Export
    structured: bool = False
    contexts: tuple[Context, ...] = ()
