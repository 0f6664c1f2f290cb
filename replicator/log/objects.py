"""The seam to what holds objects: a directory, a bucket (s3), a directory behind ssh (stdio_client).

Contract (tests/contracts/test_log.py runs on every store):

  T1  `commit` of a sink gives the object its name only if the name was free: True, or False with nothing changed.
      When it returns True the object is durable, whole, and every folder above it too.
  T2  Nobody sees a part of an object: neither before `commit`, nor after a crash, nor while `put` replaces it.
  T3  PutUnknownError from `commit`: the object may stand under its name. Any other error: it doesn't.
  T4  `settle` makes durable what is visible under a name, whoever put it.
  T5  `sweep` removes what dead writers left of objects that begin with a prefix; only their owner may call it.
      A living writer whose leftovers it takes gets an error from `commit`, and its object doesn't stand.

Errors: NoSpaceError, UnavailableError (trying again may help), PutUnknownError.
"""

from __future__ import annotations

from typing import Protocol

from replicator._buffer import Buffer


class ObjectSink(Protocol):
    """An object that is being written, and has no name yet."""

    def write(self, parts: list[Buffer]) -> None:
        """Add `parts` to its end."""

    def commit(self) -> bool:
        """Give it its name, durably (T1, T3). The sink is spent."""

    def abort(self) -> None:
        """Drop it; does nothing when it is spent."""


class ObjectStore(Protocol):
    """Named, immutable objects (but for `put`), and folders that come and go with them."""

    @property
    def name(self) -> str:
        """How messages name it."""

    @property
    def poll_s(self) -> float:
        """How long a follower waits between two looks for the next object."""

    def create(self, name: str) -> ObjectSink:
        """A sink for the object `name`."""

    def put(self, name: str, data: Buffer) -> None:
        """Write or replace a small object, as a whole and durably (T2)."""

    def put_if_absent(self, name: str, data: Buffer) -> bool:
        """A small object under a free name (T1)."""

    def get(self, name: str, limit_bytes: int) -> bytes | None:
        """The object, or None; FormatError if it is longer than `limit_bytes`."""

    def get_range(self, name: str, offset_bytes: int, length_bytes: int) -> bytes | None:
        """A part of it, shorter where it ends; None if it isn't there."""

    def size(self, name: str) -> int | None:
        """Its length, or None if it isn't there."""

    def children(self, prefix: str) -> list[str]:
        """The names right below `prefix`, objects and folders, in no order; empty if there are none."""

    def delete(self, name: str) -> None:
        """Remove it, if it is there."""

    def drop_folder(self, prefix: str) -> None:
        """Remove the folder if it is empty and folders are things of their own here."""

    def settle(self, name: str) -> None:
        """T4."""

    def sweep(self, prefix: str) -> None:
        """T5."""
