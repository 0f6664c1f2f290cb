"""Serves a directory's objects over two pipes: what `replicator log serve PATH --stdio` runs, at the far end of ssh.

One client, one request at a time, in their order. Sinks that a client left open when it went are dropped, so nothing
is left but what was given a name. A server outlives its connection by at most the requests that had come in whole: a
commit among them may give its name after the client has connected anew, which then finds that name taken.

What the client may write is its key's affair (rights).

Invariants
  V1  Only names of the log's grammar are touched (grammar), below the folder that was named on the command line.
  V2  Memory: one frame. Sinks are at most SINKS_MAX, each at most SEGMENT_BYTES_MAX long, and RECORD_BYTES_MAX where
      its name isn't a segment's: an object that no reader takes would stop the readers of the whole log.
  V3  Bytes that aren't the protocol end the connection with FormatError; what was done by then stays done.
  V4  A source's key never says what was trimmed, nor for a receiver: stolen, it deletes no event, and leads no trim
      to delete one.
  V5  Where the log's marker doesn't stand, nothing but the marker is written, or said to be absent: the folder may be
      one whose disk isn't mounted (any more), and this server too young to know it by what it wrote before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from replicator._buffer import Buffer
from replicator.errors import (
    ConflictError,
    FormatError,
    NotFoundError,
    ReplicatorError,
    UnavailableError,
    UsageError,
)
from replicator.events.record import RECORD_BYTES_MAX
from replicator.log import grammar, names
from replicator.log.directory import DirectorySink, DirectoryStore
from replicator.log.rights import Rights
from replicator.log.segment import SEGMENT_BYTES_MAX
from replicator.log.stdio_protocol import (
    DATA_BYTES,
    NOT_MOUNTED,
    PROTOCOL,
    Kind,
    decode_body,
    encode_body,
    encode_failure,
    encode_head,
    read_frame,
    sendable,
)

SINKS_MAX = 512  # a volume each; below what a process may open


class Pipes(Protocol):
    """The two pipes."""

    def read(self, length_bytes: int) -> Buffer:
        """So many bytes; fewer at the end. Valid until the next call."""

    def write(self, parts: list[Buffer]) -> None:
        """All of these."""


class _Sink:
    """A client's sink; after a failure it takes what comes and does nothing, until commit tells."""

    def __init__(self, limit_bytes: int, open_sink: Callable[[], DirectorySink]) -> None:
        self._limit_bytes = limit_bytes
        self._failure: ReplicatorError | None = None
        self._sink: DirectorySink | None = None
        self._length_bytes = 0
        self._try(lambda: setattr(self, "_sink", open_sink()))

    def write(self, data: Buffer) -> None:
        self._length_bytes += len(data)
        if self._length_bytes > self._limit_bytes:
            raise FormatError("write", f"at most {self._limit_bytes} bytes of such an object", f"{self._length_bytes}")
        if self._sink is not None and self._failure is None:
            sink = self._sink
            self._try(lambda: sink.write([data]))

    def commit(self) -> bool:
        if self._failure is not None:
            raise self._failure
        assert self._sink is not None, "opened, or failed"
        return self._sink.commit()

    def abort(self) -> None:
        if self._sink is not None:
            self._sink.abort()

    def _try(self, do: Callable[[], None]) -> None:
        try:
            do()
        except ReplicatorError as error:
            self._failure = error
            self.abort()


class StoreServer:
    """One client's server."""

    def __init__(self, root: Path, pipes: Pipes, rights: Rights = Rights.ALL) -> None:
        self._root, self._pipes, self._rights = root, pipes, rights
        self._store = DirectoryStore(root)
        self._sinks: dict[int, _Sink] = {}
        self._is_greeted = False

    def run(self) -> None:
        """Until the client goes; FormatError if it doesn't speak the protocol (V3)."""
        number = 0
        try:
            while (frame := read_frame(self._pipes.read)) is not None:
                head, body = frame
                number = head.number
                self._take(head.kind, number, body)
        except FormatError as error:
            self._send(Kind.FAILED, number, encode_failure(error))
            raise
        finally:
            for sink in self._sinks.values():
                sink.abort()

    def _take(self, kind: Kind, number: int, body: Buffer) -> None:
        if not self._is_greeted and kind is not Kind.HELLO:
            raise FormatError("first frame", "hello", kind.name.lower())
        if kind is Kind.WRITE:
            self._sink(int.from_bytes(body[:4], "little")).write(memoryview(body)[4:])
            return
        values = decode_body(kind, body)
        handler = _HANDLERS.get(kind)
        if handler is None:
            raise FormatError("frame", "a request", kind.name.lower())
        try:
            for answer, parts in handler(self, *values):
                self._send(answer, number, *parts)
        except FormatError:
            raise
        except ReplicatorError as error:
            self._send(Kind.FAILED, number, encode_failure(error))

    def _send(self, kind: Kind, number: int, *parts: Buffer) -> None:
        self._pipes.write([encode_head(kind, number, list(parts)), *parts])

    # -- requests: each gives its answer's frames ------------------------------------------------------------------

    def hello(self, protocol: int, create: bool, path: str) -> Answers:
        """Agree on the protocol and the folder."""
        if protocol != PROTOCOL:
            mend = "install the same version of replicator at both ends"
            raise ConflictError(f"this end speaks protocol {PROTOCOL}, the other {protocol}", mend=mend)
        if path and Path(path).absolute() != self._root.absolute():
            mend = f"name that folder, or let the forced command serve {path}"
            raise ConflictError(f"this key reaches the log {self._root}, and {path} was asked for", mend=mend)
        try:
            self._find_root(create)
        except OSError as error:
            mend = "make it by hand at the far end, for the user that ssh logs in as"
            raise UnavailableError(f"log directory {self._root}: {error.strerror or error}", mend=mend) from error
        self._is_greeted = True
        served = sendable(str(self._root))
        yield Kind.WELCOME, [encode_body(Kind.WELCOME, PROTOCOL, self._rights is Rights.APPEND, served)]

    def _find_root(self, create: bool) -> None:
        """The folder has to stand; `create` makes it, not the one above."""
        if self._root.exists() and not self._root.is_dir():
            raise ConflictError(f"{self._root} is no directory", mend="name a folder, or move that file away")
        makes = create and self._rights.publishes
        if makes and self._root.parent.is_dir():
            self._root.mkdir(exist_ok=True)
        if not self._root.is_dir():
            mend = f"mkdir -p {self._root.parent}" if create else "the first agent that publishes there makes it"
            raise NotFoundError(f"there is no log directory {self._root}", mend=mend)
        if makes:
            self._store.settle_root()

    def create(self, number: int, name: str) -> Answers:
        """Begin an object."""
        if number in self._sinks or len(self._sinks) >= SINKS_MAX:
            raise FormatError("create", f"a new sink of at most {SINKS_MAX}", f"sink {number}")
        self._require_object(name)
        limit_bytes = SEGMENT_BYTES_MAX if grammar.is_segment(name) else RECORD_BYTES_MAX
        self._sinks[number] = _Sink(limit_bytes, lambda: self._created(name))
        return iter(())

    def _created(self, name: str) -> DirectorySink:
        self._rights.require_new(name)
        self._require_log(name)
        return self._store.create(name)

    def commit(self, number: int) -> Answers:
        """Give an object its name."""
        sink = self._sink(number)
        del self._sinks[number]
        try:
            yield _done(sink.commit())
        finally:
            sink.abort()

    def abort(self, number: int) -> Answers:
        """Drop an object."""
        self._sink(number).abort()
        del self._sinks[number]
        return iter(())

    def put(self, name: str, data: bytes) -> Answers:
        """Replace a small object."""
        self._require_object(name)
        self._rights.require_replace(name)
        self._require_log(name)
        self._store.put(name, _small(data))
        yield _done(True)

    def put_if_absent(self, name: str, data: bytes) -> Answers:
        """A small object under a free name."""
        self._require_object(name)
        self._rights.require_new(name)
        self._require_log(name)
        yield _done(self._store.put_if_absent(name, _small(data)))

    def get(self, name: str, limit_bytes: int) -> Answers:
        """A whole object."""
        size = self._size(name)
        if size is not None and size < DATA_BYTES:  # one that may be replaced meanwhile: its length comes with it
            data = self._store.get(name, SEGMENT_BYTES_MAX)
            size = None if data is None else len(data)
            if data is not None and size is not None and size <= min(limit_bytes, DATA_BYTES - 1):
                return iter([_done(size), (Kind.DATA, [data])])
        if size is not None and size > limit_bytes:
            return iter([_done(size), (Kind.DATA, [b""])])
        return self._answer_data(name, 0, size)

    def get_range(self, name: str, offset_bytes: int, length_bytes: int) -> Answers:
        """A part of one."""
        size = self._size(name)
        there = None if size is None else max(0, min(size - offset_bytes, length_bytes))
        return self._answer_data(name, offset_bytes, there)

    def _answer_data(self, name: str, offset_bytes: int, length_bytes: int | None) -> Answers:
        if length_bytes is None:
            yield Kind.ABSENT, []
            return
        yield _done(length_bytes)
        left = length_bytes
        while True:
            data = self._store.get_range(name, offset_bytes, min(left, DATA_BYTES)) or b""
            yield Kind.DATA, [data]
            if len(data) < DATA_BYTES:
                return
            left -= len(data)
            offset_bytes += len(data)

    def size(self, name: str) -> Answers:
        """An object's length."""
        size = self._size(name)
        yield (Kind.ABSENT, []) if size is None else _done(size)

    def children(self, prefix: str) -> Answers:
        """The names below a folder."""
        if not grammar.is_prefix(prefix):
            raise FormatError("children", "a folder of a log", repr(prefix[:100]))
        found = [name for name in self._store.children(prefix) if "\n" not in name]
        if prefix and not found:  # the root may be empty: whoever makes a log looks there first
            self._require_log(prefix)
        yield _done(len(found))
        listing = memoryview("".join(f"{name}\n" for name in found).encode("utf-8", "surrogateescape"))
        for at in range(0, len(listing) + 1, DATA_BYTES):
            yield Kind.DATA, [listing[at : at + DATA_BYTES]]

    def delete(self, name: str) -> Answers:
        """Remove an object."""
        self._require_object(name)
        self._rights.require_delete(name)
        self._store.delete(name)
        yield _done(True)

    def drop_folder(self, prefix: str) -> Answers:
        """Remove an empty folder."""
        if not prefix or not grammar.is_prefix(prefix):
            raise FormatError("drop_folder", "a folder of a log", repr(prefix[:100]))
        self._rights.require_folders(prefix)
        self._store.drop_folder(prefix)
        yield _done(True)

    def settle(self, name: str) -> Answers:
        """Make durable what is visible."""
        self._require_object(name)
        self._store.settle(name)
        yield _done(True)

    def sweep(self, prefix: str) -> Answers:
        """Remove what dead writers left."""
        if not grammar.is_owned(prefix):
            raise FormatError("sweep", "what a publisher owns", repr(prefix[:100]))
        self._rights.require_sweep(prefix)
        self._store.sweep(prefix)
        yield _done(True)

    def _sink(self, number: int) -> _Sink:
        sink = self._sinks.get(number)
        if sink is None:
            raise FormatError("frame", "a sink that was created", f"sink {number}")
        return sink

    def _size(self, name: str) -> int | None:
        self._require_object(name)
        size = self._store.size(name)
        if size is None:
            self._require_log(name)
        return size

    def _require_object(self, name: str) -> None:
        """V1."""
        if not grammar.is_object(name):
            raise FormatError("frame", "an object of a log", repr(name[:100]))

    def _require_log(self, name: str) -> None:
        """V5, where `name` is to be written, or wasn't found."""
        if name != names.MARKER and self._store.size(names.MARKER) is None:
            raise UnavailableError(f"the log isn't there: {self._root} has no {names.MARKER}", mend=NOT_MOUNTED)


Answers = Iterator[tuple[Kind, list[Buffer]]]
_HANDLERS: dict[Kind, Callable[..., Answers]] = {
    Kind.HELLO: StoreServer.hello,
    Kind.CREATE: StoreServer.create,
    Kind.COMMIT: StoreServer.commit,
    Kind.ABORT: StoreServer.abort,
    Kind.PUT: StoreServer.put,
    Kind.PUT_IF_ABSENT: StoreServer.put_if_absent,
    Kind.GET: StoreServer.get,
    Kind.GET_RANGE: StoreServer.get_range,
    Kind.SIZE: StoreServer.size,
    Kind.CHILDREN: StoreServer.children,
    Kind.DELETE: StoreServer.delete,
    Kind.DROP_FOLDER: StoreServer.drop_folder,
    Kind.SETTLE: StoreServer.settle,
    Kind.SWEEP: StoreServer.sweep,
}


def _done(value: int) -> tuple[Kind, list[Buffer]]:
    return Kind.DONE, [encode_body(Kind.DONE, int(value))]


def _small(data: bytes) -> bytes:
    if len(data) > RECORD_BYTES_MAX:
        raise UsageError(f"a small object has at most {RECORD_BYTES_MAX} bytes, not {len(data)}")
    return data
