"""An object store at the other end of two pipes: what ObjectLog stands on when the log is reached by ssh.

Asked by ObjectLog; speaks stdio_protocol with `replicator log serve --stdio`. One connection, shared by all threads,
one request at a time. A connection that fell is made anew by the next request. What is known by then makes a
difference: a disk that isn't mounted any more leaves a folder behind that looks like one where a log may begin.

    the log's marker            a new connection where the far end has no log
    wasn't seen yet             makes one, if it was to be made; else NotFoundError: the first opening isn't over
    was read here, or put       UnavailableError: the log went away, and may come back

    the connection falls while       what stands                 what is told
    a request that may be repeated   the same either way         asked again on a new one; then UnavailableError
    create, write                    nothing                     UnavailableError; the sink is lost
    commit, put_if_absent            perhaps the object          PutUnknownError: the tail tells
    put                              old or new                  asked again; then UnavailableError

Invariants
  C1  A sink belongs to one connection: after that it takes nothing, and its commit isn't sent anywhere.
  C2  Memory: a frame for each sink, the object that is read, a listing of LISTING_BYTES_MAX.
  C3  Once the marker was read or put, no connection makes a log, and none is asked anything before it saw the marker.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from replicator._buffer import Buffer
from replicator.errors import FormatError, NotFoundError, ReplicatorError, UnavailableError
from replicator.log import names
from replicator.log.errors import PutUnknownError
from replicator.log.stdio_connection import Connection, FellError
from replicator.log.stdio_protocol import DATA_BYTES, LISTING_BYTES_MAX, NOT_MOUNTED, NUMBERS, Kind, encode_body

_TRIES = 2  # of a request that may be repeated, each on a connection of its own
Value = TypeVar("Value")


class RemoteStore:
    """An ObjectStore over connections that `connect` makes; for any thread.

    `connect(is_known)`: where the log is known to have stood, it must not be made.
    """

    poll_s = 0.1  # a look is one round trip

    def __init__(self, name: str, connect: Callable[[bool], Connection]) -> None:
        self._name = name
        self._connect = connect
        self._is_known = False  # the marker stood
        self._connection: Connection | None = None
        self._lock = threading.RLock()
        self._sinks = 0

    @property
    def name(self) -> str:
        """How messages name it."""
        return self._name

    def connected(self) -> Connection:
        """The connection, made anew where it fell."""
        with self._lock:
            if self._connection is None or not self._connection.is_open:
                self._connection = self._reconnected() if self._is_known else self._connect(False)
            return self._connection

    def _reconnected(self) -> Connection:
        """C3."""
        try:
            connection = self._connect(True)
        except NotFoundError as error:
            raise self._gone(error.message) from error
        try:
            body = encode_body(Kind.SIZE, names.MARKER)
            if connection.ask(Kind.SIZE, [body], connection.done_or_absent) is None:
                raise self._gone(f"{self._name} has no {names.MARKER}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _gone(self, found: str) -> UnavailableError:
        return UnavailableError(f"the log isn't there any more: {found}", mend=NOT_MOUNTED)

    def close(self) -> None:
        """End the connection."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def create(self, name: str) -> RemoteSink:
        """A sink for the object `name`."""
        with self._lock:
            connection = self.connected()
            self._sinks = (self._sinks + 1) % NUMBERS
            connection.tell(Kind.CREATE, [encode_body(Kind.CREATE, self._sinks, name)])
            return RemoteSink(connection, self._lock, self._sinks, f"{self._name}/{name}")

    def put(self, name: str, data: Buffer) -> None:
        """Write or replace a small object."""
        self._repeated(Kind.PUT, Connection.done, name, bytes(data))

    def put_if_absent(self, name: str, data: Buffer) -> bool:
        """A small object under a free name."""
        with self._lock:
            connection = self.connected()
            body = encode_body(Kind.PUT_IF_ABSENT, name, bytes(data))
            is_new = bool(settled(f"{self._name}/{name}", connection, Kind.PUT_IF_ABSENT, body))
            self._is_known |= name == names.MARKER  # it stands now, whoever put it
            return is_new

    def get(self, name: str, limit_bytes: int) -> bytes | None:
        """The whole object, bounded."""

        def read(connection: Connection) -> bytes | None:
            size = connection.done_or_absent()
            if size is None:
                return None
            data = connection.data(max(limit_bytes, 0))
            whole = self._whole(name, data, size, limit_bytes)
            self._is_known |= name == names.MARKER
            return whole

        return self._repeated(Kind.GET, read, name, limit_bytes)

    def get_range(self, name: str, offset_bytes: int, length_bytes: int) -> bytes | None:
        """A part of the object, shorter at its end."""
        length_bytes = max(0, length_bytes)

        def read(connection: Connection) -> bytes | None:
            size = connection.done_or_absent()
            return None if size is None else self._whole(name, connection.data(length_bytes), size, length_bytes)

        return self._repeated(Kind.GET_RANGE, read, name, offset_bytes, length_bytes)

    def _whole(self, name: str, data: bytes, size: int, limit_bytes: int) -> bytes:
        if size > limit_bytes:
            raise FormatError(f"{self._name}/{name}", f"at most {limit_bytes} bytes", f"{size} bytes")
        if len(data) != size:
            raise FellError(f"{self._name}/{name} went away while it was read")
        return data

    def size(self, name: str) -> int | None:
        """The object's length, or None."""
        return self._repeated(Kind.SIZE, Connection.done_or_absent, name)

    def children(self, prefix: str) -> list[str]:
        """The names right below `prefix`."""

        def read(connection: Connection) -> list[str]:
            count = connection.done()
            found = connection.data(LISTING_BYTES_MAX).decode("utf-8", "surrogateescape").split("\n")[:-1]
            if len(found) != count:
                raise FormatError(f"{self._name}/{prefix}", f"{count} names", f"{len(found)}")
            return found

        return self._repeated(Kind.CHILDREN, read, prefix)

    def delete(self, name: str) -> None:
        """Remove the object, if it is there."""
        self._repeated(Kind.DELETE, Connection.done, name)

    def drop_folder(self, prefix: str) -> None:
        """Remove the folder if it is empty."""
        self._repeated(Kind.DROP_FOLDER, Connection.done, prefix)

    def settle(self, name: str) -> None:
        """Make durable what is visible."""
        self._repeated(Kind.SETTLE, Connection.done, name)

    def sweep(self, prefix: str) -> None:
        """Remove what dead writers left."""
        self._repeated(Kind.SWEEP, Connection.done, prefix)

    def _repeated(self, kind: Kind, read: Callable[[Connection], Value], *values: Any) -> Value:
        """The answer to a request that may be asked again where the connection fell."""
        body = encode_body(kind, *values)
        with self._lock:
            for tries_left in reversed(range(_TRIES)):
                connection = self.connected()
                try:
                    return connection.ask(kind, [body], partial(read, connection))
                except FellError:
                    if not tries_left:
                        raise
        raise AssertionError("the last try returns or raises")


def settled(name: str, connection: Connection, kind: Kind, body: bytes) -> int:
    """The answer to a request that gives a name; PutUnknownError where it didn't come."""
    try:
        return connection.ask(kind, [body], connection.done)
    except FellError as error:
        raise PutUnknownError(f"{name} may stand: {error.message}", mend=error.mend) from error


class RemoteSink:
    """An object on its way to its name, over one connection (C1)."""

    def __init__(self, connection: Connection, lock: threading.RLock, number: int, name: str) -> None:
        self._connection, self._lock = connection, lock
        self._number, self._name = number, name
        self._waiting: list[Buffer] = []
        self._waiting_bytes = 0
        self._is_spent = False

    def write(self, parts: list[Buffer]) -> None:
        """Add `parts`; they go as whole frames, and aren't waited for."""
        assert not self._is_spent, "the sink is spent"
        for part in parts:
            for at in range(0, len(part), DATA_BYTES):
                self._add(part if len(part) <= DATA_BYTES else memoryview(part)[at : at + DATA_BYTES])

    def _add(self, part: Buffer) -> None:
        """Keep what can't change until a frame is full; what can is copied."""
        if self._waiting_bytes + len(part) > DATA_BYTES:
            self._send()
        self._waiting.append(part if isinstance(part, bytes) else bytes(part))
        self._waiting_bytes += len(part)

    def _send(self) -> None:
        parts, self._waiting, self._waiting_bytes = self._waiting, [], 0
        with self._lock:
            self._require_open()
            self._connection.tell(Kind.WRITE, [self._number.to_bytes(4, "little"), *parts])

    def commit(self) -> bool:
        """Give it its name."""
        assert not self._is_spent, "the sink is spent"
        with self._lock:
            if self._waiting:
                self._send()
            self._require_open()
            self._is_spent = True
            body = encode_body(Kind.COMMIT, self._number)
            return bool(settled(self._name, self._connection, Kind.COMMIT, body))

    def abort(self) -> None:
        """Drop it; a connection that fell dropped it already."""
        if self._is_spent:
            return
        self._is_spent = True
        self._waiting = []
        with self._lock:
            if self._connection.is_open:
                try:
                    self._connection.tell(Kind.ABORT, [encode_body(Kind.ABORT, self._number)])
                except ReplicatorError:
                    return

    def _require_open(self) -> None:
        if not self._connection.is_open:
            raise FellError(f"{self._name}: the connection on which it was begun has fallen")
