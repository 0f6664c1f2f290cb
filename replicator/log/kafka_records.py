"""One record of a topic, as it is read and as it is sent."""

from __future__ import annotations

from dataclasses import dataclass

from replicator._buffer import Buffer


@dataclass(frozen=True, slots=True)
class Record:
    """One record; `state` is its header of that name."""

    offset: int
    key: bytes | None
    value: bytes | None
    state: bytes | None


@dataclass(frozen=True, slots=True)
class Message:
    """One record to send."""

    key: bytes
    value: Buffer
    state: bytes
