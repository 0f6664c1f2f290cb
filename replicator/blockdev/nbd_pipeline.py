"""NbdPipeline: many requests on their way at once over one NBD connection, their replies in any order.

    submit side     read, write, … pack a request and queue it; nothing is sent yet        -> its cookie
    collect side    sends what is queued and takes what has come; waits if it must         -> replies

Sending and receiving go together, so that a server which stops reading until somebody takes its replies, and a
client with much to write, never wait for each other.

Invariants
  L1  At most `depth` requests are submitted and not collected.
  L2  A reply is given out once; a request without a reply stays in `pending`, also after the connection broke:
      whether the server carried it out is not known.
  L3  After a failure every call raises that failure.

One thread at a time. Buffers given to write and read belong to the pipeline until the reply is collected. Whether
a request makes sense is the server's to say: its error is in the reply. Reconnecting is the caller's business.

Failures: UnavailableError when the server hangs up or is silent for `timeout_s`; NbdFormatError for bytes that
aren't the protocol.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import ssl
from collections import deque
from types import TracebackType

from replicator._buffer import Buffer
from replicator.blockdev.nbd_connection import NbdConnection
from replicator.errors import ReplicatorError, UnavailableError
from replicator.nbd import protocol as p
from replicator.nbd.client import ClientSession
from replicator.nbd.reply_stream import Reply, ReplyStream
from replicator.nbd.request import Request
from replicator.units import KIB

ANSWER_TIMEOUT_S = 60.0
"""Without a byte from the server while something is in flight; a write may wait for a full pool to be grown."""

_RECEIVE_BYTES = 256 * KIB
_PARTS_AT_ONCE = 128
_GOODBYE_S = 1.0
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class NbdPipeline:
    """The transmission phase of one connection, `depth` requests deep."""

    def __init__(self, connection: NbdConnection, *, depth: int = 32, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self.session: ClientSession = connection.session
        self.name = str(connection.uri)
        self._depth = depth
        self._timeout_s = timeout_s
        self._socket = connection.socket
        self._socket.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._socket)
        context_ids = frozenset(context.context_id for context in self.session.contexts)
        self._replies = ReplyStream(self.session.structured, context_ids)
        self._cookies = itertools.count(1)
        self._queue: deque[memoryview] = deque()
        self._arrived = memoryview(bytearray(_RECEIVE_BYTES))
        self._failure: ReplicatorError | None = None

    def __enter__(self) -> NbdPipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def in_flight(self) -> int:
        """Requests submitted and not collected."""
        return len(self._replies)

    @property
    def room(self) -> int:
        """How many more may be submitted now."""
        return self._depth - len(self._replies)

    @property
    def pending(self) -> tuple[Request, ...]:
        """The requests without a reply (L2)."""
        return self._replies.pending

    def read(self, offset: int, length: int, target: Buffer | None = None, *, flags: int = 0) -> int:
        """Submit a READ, into `target` or a buffer of its own (the reply's `data`)."""
        target = bytearray(length) if target is None else target
        return self._submit(p.CMD_READ, offset, length, flags, target=target)

    def write(self, offset: int, data: Buffer, *, flags: int = 0) -> int:
        """Submit a WRITE of `data`."""
        view = memoryview(data).cast("B")
        return self._submit(p.CMD_WRITE, offset, len(view), flags, data=view)

    def flush(self) -> int:
        """Submit a FLUSH: it covers what was answered before, not what is still in flight."""
        return self._submit(p.CMD_FLUSH, 0, 0, 0)

    def trim(self, offset: int, length: int, *, flags: int = 0) -> int:
        """Submit a TRIM."""
        return self._submit(p.CMD_TRIM, offset, length, flags)

    def write_zeroes(self, offset: int, length: int, *, flags: int = 0) -> int:
        """Submit a WRITE_ZEROES."""
        return self._submit(p.CMD_WRITE_ZEROES, offset, length, flags)

    def cache(self, offset: int, length: int) -> int:
        """Submit a CACHE."""
        return self._submit(p.CMD_CACHE, offset, length, 0)

    def block_status(self, offset: int, length: int, *, flags: int = 0) -> int:
        """Submit a BLOCK_STATUS; the reply's `extents` are by context id."""
        return self._submit(p.CMD_BLOCK_STATUS, offset, length, flags)

    def collect(self, minimum: int = 1) -> list[Reply]:
        """At least `minimum` replies, or as many as are in flight; 0 takes what has come, without waiting."""
        self._raise_failure()
        wanted = min(minimum, self.in_flight)
        replies: list[Reply] = []
        try:
            self._send()
            while True:
                self._receive(replies)
                if len(replies) >= wanted:
                    return replies
                self._wait()
                self._send()
        except OSError as error:
            self._failure = UnavailableError(f"{self.name}: {error.strerror or error}")
        except ReplicatorError as error:
            self._failure = error
        if replies:
            return replies  # L2: they were answered; the next call raises what came behind them
        raise self._failure

    def close(self) -> None:
        """Say goodbye, if the connection stands, and close it; what is in flight stays `pending`."""
        if self._socket.fileno() >= 0 and self._failure is None:
            self._queue.append(memoryview(Request(p.CMD_DISC, 0).pack()))
            with contextlib.suppress(OSError, ReplicatorError):
                self._timeout_s = min(self._timeout_s, _GOODBYE_S)
                self._send()
                while self._queue:
                    self._wait()
                    self._send()
        self._failure = self._failure or UnavailableError(f"{self.name}: the connection was closed here")
        self._socket.close()

    def _submit(
        self, command: int, offset: int, length: int, flags: int, *, data: Buffer = b"", target: Buffer = b""
    ) -> int:
        self._raise_failure()
        assert self.room > 0, "L1: collect before submitting more"
        cookie = next(self._cookies)
        request = Request(command, cookie, offset, length, flags)
        self._replies.expect(request, target)
        self._queue.append(memoryview(request.pack()))
        if data:
            self._queue.append(memoryview(data))
        return cookie

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure  # L3

    def _send(self) -> None:
        """Send as much of the queue as goes now."""
        while self._queue:
            try:
                if isinstance(self._socket, ssl.SSLSocket):
                    sent = self._socket.send(self._queue[0])
                else:
                    sent = self._socket.sendmsg(itertools.islice(self._queue, _PARTS_AT_ONCE))
            except _NOT_NOW:
                return
            while self._queue and sent >= len(self._queue[0]):
                sent -= len(self._queue.popleft())
            if sent:
                self._queue[0] = self._queue[0][sent:]

    def _receive(self, replies: list[Reply]) -> None:
        """Append the replies that are whole with what has come; TLS may hold back bytes that poll doesn't see."""
        while True:
            try:
                count = self._socket.recv_into(self._arrived)
            except _NOT_NOW:
                return
            if count == 0:
                raise UnavailableError(f"{self.name}: the server closed the connection")
            self._replies.receive(self._arrived[:count], replies)
            if not isinstance(self._socket, ssl.SSLSocket):
                return

    def _wait(self) -> None:
        """Until something can be received, or sent if anything is queued."""
        self._poll.modify(self._socket, select.POLLIN | (select.POLLOUT if self._queue else 0))
        if not self._poll.poll(self._timeout_s * 1000):
            raise UnavailableError(f"{self.name}: no answer for {self._timeout_s:.0f} s")
