"""What a connection still has to send: replies of its own thread, of workers and of the committer, in one order.

Between those who answer and a socket that may be full because its client doesn't read. Nobody but the connection's own
thread ever waits for a client:

    send    the connection's thread: returns when all is handed to the kernel, so that its arena may be used again
    put     everybody else: sends what fits at once, keeps the rest, and has the drainer look after it
    pump    whoever sees that the socket takes more again: the drainer, or a thread inside `send`

Invariants
  O1  Bytes leave in the order of `send` and `put`; a reply is never torn by another.
  O2  `put` and `pump` never block.
  O3  What `put` keeps is bounded by who admits requests (transmission), not here.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections import deque

from replicator._buffer import Buffer
from replicator.exporter.transport import Transport

_DONTWAIT = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Outbox:
    """The sending half of one connection."""

    def __init__(self, transport: Transport, drainer: Drainer) -> None:
        self._transport = transport
        self._send = transport.socket.send
        self._fd = transport.socket.fileno()
        self._drainer = drainer
        self._lock = transport.lock
        self._queue: deque[memoryview] = deque()
        self._writable = select.poll()
        self._writable.register(self._fd, select.POLLOUT)
        self.closed = False

    def send(self, data: memoryview) -> None:
        """Send `data`, waiting for the client as long as it takes; OSError when it is gone."""
        with self._lock:
            self._append(data)
            left = self._flush()
        if left or self.closed:
            self.drain()

    @property
    def has_backlog(self) -> bool:
        """Whether something waits for the client."""
        return bool(self._queue)

    def drain(self, limit_s: float | None = None) -> None:
        """Wait until the client took all there is; OSError when it is gone, or took nothing for `limit_s`."""
        while self.pump():
            if not self._writable.poll(None if limit_s is None else limit_s * 1000):
                raise TimeoutError("the client doesn't take its replies")
        if self.closed:
            raise BrokenPipeError("the client is gone")

    def put(self, data: Buffer) -> None:
        """Send `data` as far as it goes now, the rest later; a client that is gone gets nothing (O2)."""
        with self._lock:
            self._append(memoryview(data))
            left = self._flush()
        if left:
            self._drainer.watch(self._fd, self)

    def pump(self) -> bool:
        """Send what goes; whether something is left."""
        with self._lock:
            return self._flush()

    def close(self) -> None:
        """Nothing more is sent, and the drainer forgets the socket."""
        with self._lock:
            self.closed = True
            self._queue.clear()
        self._drainer.forget(self._fd)

    def _append(self, data: memoryview) -> None:
        if self.closed:
            return
        try:
            self._queue.append(memoryview(self._transport.seal(data)))
        except OSError:  # TLS: after a damaged record nothing can be said any more
            self.closed = True
            self._queue.clear()

    def _flush(self) -> bool:
        queue = self._queue
        while queue:
            head = queue[0]
            try:
                sent = self._send(head, _DONTWAIT)
            except BlockingIOError:
                return True
            except OSError:
                self.closed = True
                queue.clear()
                return False
            if sent == len(head):
                queue.popleft()
            else:
                queue[0] = head[sent:]
        return False


class Drainer:
    """One thread that sends what clients were too slow to take, for all connections of a server."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._lock = threading.Lock()
        self._watched: dict[int, Outbox] = {}
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="nbd-drainer", daemon=True)
        self._thread.start()

    def watch(self, fd: int, outbox: Outbox) -> None:
        """Send what `outbox` has left as soon as its socket takes it."""
        with self._lock:
            if fd not in self._watched and not outbox.closed:
                self._watched[fd] = outbox
                self._epoll.register(fd, select.EPOLLOUT)

    def forget(self, fd: int) -> None:
        """The socket is about to be closed."""
        with self._lock:
            if self._watched.pop(fd, None) is not None:
                with contextlib.suppress(OSError):
                    self._epoll.unregister(fd)

    def close(self) -> None:
        """End the thread."""
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._epoll.close()
        os.close(self._wake)

    def _run(self) -> None:
        while True:
            for fd, _ in self._epoll.poll():
                if fd == self._wake:
                    return
                with self._lock:
                    outbox = self._watched.get(fd)
                    if outbox is not None and not outbox.pump():
                        del self._watched[fd]
                        self._epoll.unregister(fd)
