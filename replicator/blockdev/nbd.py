"""An export of an NBD server as a BlockDevice: the external origin that lives on another host.

Over a read-only export, or one that promises a shared cache (CAN_MULTI_CONN), `connections` connections are opened,
or as many of them as the server grants; else one. Threads take turns on them.

    call           goes as
    pread          READs of at most the server's maximum, several in flight
    pwrite(v)      WRITEs, likewise
    flush          FLUSH; nothing where the server has no such command: it says that it doesn't cache
    discard        TRIM of the whole minimum blocks inside; nothing where the server doesn't take it
    write_zeroes   WRITE_ZEROES, else WRITEs of zeros
    block_status   BLOCK_STATUS of base:allocation, else "all data"

A server with a minimum block above 1 gets reads widened to it; writes that don't fit it are refused (EINVAL), since
to read, change and write back isn't safe beside other writers.

Invariants (B1 to B5 stand in blockdev/interface)
  N1  After a failed flush no flush succeeds (B3), on any connection.
  N2  After a lost connection, or bytes that aren't the protocol, every call fails with ENOTCONN: what was not flushed
      may be lost, so that going on over a new connection is the decision of whoever wrote.

Deliberately absent: reconnecting; growing (the server's business).
Failures: as nbd_connection's when opening, DeviceError afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence

from replicator._buffer import Buffer
from replicator.blockdev.nbd_connection import TIMEOUT_S, NbdConnection, connect
from replicator.blockdev.nbd_pipeline import ANSWER_TIMEOUT_S, NbdPipeline
from replicator.errors import DeviceError, ReplicatorError, UnavailableError, UsageError
from replicator.nbd import protocol as p
from replicator.nbd.extents import Extents, merge_extents
from replicator.nbd.failures import NbdRefusedError, errno_of_error, reason_of_error
from replicator.nbd.reply_stream import Reply
from replicator.nbd.uri import NbdUri
from replicator.units import GIB, MIB

CONNECTIONS = 4
"""Enough to hide a network's round trips from a handful of threads; each costs the server a thread."""

_DEPTH = 16
_LARGEST_DATA_BYTES = 4 * MIB  # of one READ or WRITE: what is lost of a pipeline's evenness above gains nothing
_LARGEST_RANGE_BYTES = GIB  # of a TRIM, WRITE_ZEROES or BLOCK_STATUS: lengths have 32 bits
_MAX_EXTENTS = 1 << 18  # of one reply: what its 2 MiB hold
_Submit = Callable[[NbdPipeline], int]


class NbdDevice:
    """One export, opened; a context manager, since connections must be given back."""

    def __init__(
        self,
        uri: NbdUri,
        *,
        read_only: bool = False,
        tls: ssl.SSLContext | None = None,
        connections: int = CONNECTIONS,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        self._uri = uri
        self._tls = tls
        self._timeout_s = timeout_s
        first = self._connect()
        self._session = first.session
        self._read_only = read_only or self._session.read_only
        shared = self._read_only or self._session.offers(p.TRANSMIT_CAN_MULTI_CONN)
        opened = [first, *self._connect_more(connections - 1 if shared else 0)]
        self._idle = [NbdPipeline(connection, depth=_DEPTH, timeout_s=timeout_s) for connection in opened]
        self._turns = threading.Semaphore(len(opened))
        self._lock = threading.Lock()
        self._failure: str | None = None
        self._flush_failed = False

    def __enter__(self) -> NbdDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        return str(self._uri)

    @property
    def size_bytes(self) -> int:
        return self._session.size_bytes

    @property
    def read_only(self) -> bool:
        return self._read_only

    @property
    def discard_zeroes(self) -> bool:
        return False

    def fileno(self) -> int:
        return -1

    def pread(self, length_bytes: int, offset_bytes: int) -> bytes:
        self._check_range("read", length_bytes, offset_bytes)
        target = bytearray(length_bytes)
        self.pread_into(target, offset_bytes)
        return bytes(target)

    def pread_into(self, target: Buffer, offset_bytes: int) -> None:
        view = memoryview(target).cast("B")
        self._check_range("read", len(view), offset_bytes)
        begin, end = self._widened(offset_bytes, len(view))
        if (begin, end) == (offset_bytes, offset_bytes + len(view)):
            self._read(view, offset_bytes)
        else:
            wide = memoryview(bytearray(end - begin))
            self._read(wide, begin)
            view[:] = wide[offset_bytes - begin :][: len(view)]

    def pwrite(self, data: Buffer, offset_bytes: int) -> None:
        view = memoryview(data).cast("B")
        self._check_writable("write", offset_bytes)
        self._check_range("write", len(view), offset_bytes)
        self._check_alignment("write", len(view), offset_bytes)

        def piece(begin: int, end: int) -> _Submit:
            return lambda pipe: pipe.write(begin, view[begin - offset_bytes : end - offset_bytes])

        self._run("write", offset_bytes, len(view), self._largest_data(), piece)

    def pwritev(self, parts: Sequence[Buffer], offset_bytes: int) -> None:
        self.pwrite(b"".join(parts), offset_bytes)

    def discard(self, offset_bytes: int, length_bytes: int) -> None:
        self._check_writable("discard", offset_bytes)
        self._check_range("discard", length_bytes, offset_bytes)
        minimum = self._session.block_size.minimum_bytes
        begin = -(-offset_bytes // minimum) * minimum
        end = (offset_bytes + length_bytes) // minimum * minimum
        if self._session.offers(p.TRANSMIT_SEND_TRIM) and begin < end:
            self._run("discard", begin, end - begin, _LARGEST_RANGE_BYTES, _submit_trim)

    def write_zeroes(self, offset_bytes: int, length_bytes: int) -> None:
        """Make the range read as zeros; the server may free its room."""
        self._check_writable("write of zeros", offset_bytes)
        self._check_range("write of zeros", length_bytes, offset_bytes)
        self._check_alignment("write of zeros", length_bytes, offset_bytes)
        if self._session.offers(p.TRANSMIT_SEND_WRITE_ZEROES):
            self._run("write of zeros", offset_bytes, length_bytes, _LARGEST_RANGE_BYTES, _submit_zeroes)
            return
        step = self._largest_data()
        for begin in range(offset_bytes, offset_bytes + length_bytes, step):
            self.pwrite(bytes(min(step, offset_bytes + length_bytes - begin)), begin)

    def flush(self) -> None:
        with self._lock:
            if self._flush_failed:  # N1
                raise DeviceError(f"flush of {self.name}", 0, errno.EIO, "an earlier flush failed")
        if self._read_only or not self._session.offers(p.TRANSMIT_SEND_FLUSH):
            return
        try:
            self._carry_out("flush", 0, [lambda pipe: pipe.flush()])
        except DeviceError:
            with self._lock:
                self._flush_failed = True
            raise

    def block_status(self, offset_bytes: int, length_bytes: int) -> Extents:
        """(length, STATE_* flags) of consecutive extents from `offset_bytes` on; flags 0 where nothing is known.

        They cover at least the beginning of the range: as much as one reply says. Ask again from their end.
        """
        self._check_range("block status", length_bytes, offset_bytes)
        context_id = next((c.context_id for c in self._session.contexts if c.name == p.BASE_ALLOCATION), None)
        if context_id is None or length_bytes == 0:
            return [(length_bytes, 0)] if length_bytes else []
        length_bytes = min(length_bytes, _LARGEST_RANGE_BYTES)
        begin, end = self._widened(offset_bytes, length_bytes)
        (reply,) = self._carry_out("block status", begin, [lambda pipe: pipe.block_status(begin, end - begin)])
        assert reply.extents is not None
        extents = _behind(reply.extents[context_id], offset_bytes - begin)
        return merge_extents(extents, length_bytes, _MAX_EXTENTS) or [(length_bytes, 0)]

    def grow(self, size_bytes: int) -> None:
        raise UsageError(f"{self.name} can't become {size_bytes} bytes here", mend="grow it on its server")

    def close(self) -> None:
        with self._lock:
            self._failure = self._failure or "it was closed here"
            idle, self._idle = self._idle, []
        for pipe in idle:
            pipe.close()

    def _connect(self) -> NbdConnection:
        return connect(self._uri, tls=self._tls, timeout_s=min(self._timeout_s, TIMEOUT_S))

    def _connect_more(self, count: int) -> Iterator[NbdConnection]:
        """Up to `count` further connections: fewer where the server has enough of them, or has another disk by now."""
        for _ in range(count):
            try:
                connection = self._connect()
            except (UnavailableError, NbdRefusedError):
                return
            if connection.session != self._session:
                connection.socket.close()
                return
            yield connection

    def _largest_data(self) -> int:
        sizes = self._session.block_size
        return max(min(sizes.maximum_bytes, _LARGEST_DATA_BYTES), sizes.minimum_bytes)

    def _read(self, view: memoryview, offset_bytes: int) -> None:
        def piece(begin: int, end: int) -> _Submit:
            part = view[begin - offset_bytes : end - offset_bytes]
            return lambda pipe: pipe.read(begin, end - begin, part)

        self._run("read", offset_bytes, len(view), self._largest_data(), piece)

    def _run(self, what: str, offset: int, length: int, step: int, piece: Callable[[int, int], _Submit]) -> None:
        """Carry out `piece` for each step of the range; all are answered when this returns."""
        ends = [min(begin + step, offset + length) for begin in range(offset, offset + length, step)]
        begins = range(offset, offset + length, step)
        self._carry_out(what, offset, [piece(begin, end) for begin, end in zip(begins, ends, strict=True)])

    def _carry_out(self, what: str, offset: int, submissions: list[_Submit]) -> list[Reply]:
        """Submit all, wait for all; DeviceError for the first one refused, or for a connection lost (N2)."""
        replies: list[Reply] = []
        try:
            with self._borrowed(what, offset) as pipe:
                for submit in submissions:
                    if pipe.room == 0:
                        replies += pipe.collect()
                    submit(pipe)
                while pipe.in_flight:
                    replies += pipe.collect(pipe.in_flight)
        except DeviceError:
            raise
        except ReplicatorError as error:
            raise DeviceError(f"{what} of {self.name}", offset, errno.ENOTCONN, error.message) from error
        for reply in replies:
            if reply.error:
                reason = reason_of_error(reply.error, reply.message)
                at = reply.request.offset_bytes
                raise DeviceError(f"{what} of {self.name}", at, errno_of_error(reply.error), reason)
        return replies

    @contextlib.contextmanager
    def _borrowed(self, what: str, offset: int) -> Iterator[NbdPipeline]:
        """A connection for one call; given back unless it failed, and then the device has failed."""
        with self._turns:
            with self._lock:
                if self._failure is not None:
                    raise DeviceError(f"{what} of {self.name}", offset, errno.ENOTCONN, self._failure)
                pipe = self._idle.pop()
            try:
                yield pipe
            except BaseException as error:
                with self._lock:
                    self._failure = self._failure or str(error) or type(error).__name__  # N2
                pipe.close()
                raise
            self._give_back(pipe)

    def _give_back(self, pipe: NbdPipeline) -> None:
        with self._lock:
            if self._failure is None:
                self._idle.append(pipe)
                return
        pipe.close()

    def _widened(self, offset: int, length: int) -> tuple[int, int]:
        """[begin, end) that a server with its minimum block takes, around a range within the export."""
        minimum = self._session.block_size.minimum_bytes
        if length == 0:
            return offset, offset
        return offset // minimum * minimum, min(-(-(offset + length) // minimum) * minimum, self.size_bytes)

    def _check_range(self, what: str, length: int, offset: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            reason = f"{length} bytes don't lie within its {self.size_bytes}"
            raise DeviceError(f"{what} of {self.name}", offset, errno.EINVAL, reason)

    def _check_alignment(self, what: str, length: int, offset: int) -> None:
        minimum = self._session.block_size.minimum_bytes
        if offset % minimum or length % minimum:
            reason = f"the server takes multiples of {minimum} bytes only"
            raise DeviceError(f"{what} of {self.name}", offset, errno.EINVAL, reason)

    def _check_writable(self, what: str, offset: int) -> None:
        if self._read_only:
            raise DeviceError(f"{what} of {self.name}", offset, errno.EROFS, "it is open for reading only")


def _submit_trim(begin: int, end: int) -> _Submit:
    return lambda pipe: pipe.trim(begin, end - begin)


def _submit_zeroes(begin: int, end: int) -> _Submit:
    return lambda pipe: pipe.write_zeroes(begin, end - begin)


def _behind(extents: Extents, skip: int) -> Iterator[tuple[int, int]]:
    """The extents without their first `skip` bytes."""
    for length, flags in extents:
        dropped = min(skip, length)
        skip -= dropped
        yield length - dropped, flags
