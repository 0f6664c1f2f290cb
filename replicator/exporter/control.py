"""The control socket of the process that has a pool open: its clients' calls, leases and reservations.

Over pool/control's frames and control_values' calls; the client is pool/remote. A thread a connection, bounded, each
of which mostly waits; what it does itself is to unpack small messages, so that the threads that serve disks hardly
notice (design: no diff, hash or compression here).

    state of a connection   what comes         what happens
    new                     hello, in time     HELLO answered: CALLS
                            anything else      told, hung up
    CALLS                   a call             answered, with its result or its typed error
                            end                leases released, reserved blocks given back
    any                     no frame           told, hung up; its reserved blocks stay away (exporter/reservations, R2)

Invariants
  X1  A lease or a reservation ends with its connection, however that ends.
  X2  A client that sends rubbish, or nothing, disturbs nobody else: connections are counted, frames are bounded.
  X3  Only root, the owner's user and, by setting, one group come in (SO_PEERCRED).

Failures: ConflictError when another process listens at the socket.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import uuid
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

import msgspec

from replicator.errors import ConflictError, FormatError, NotFoundError, ReplicatorError, UnavailableError
from replicator.exporter.reservations import Reservations
from replicator.pool.control import (
    FRAME_LIMIT_BYTES,
    HELLO_LIMIT_BYTES,
    PROTOCOL_VERSION,
    Frame,
    FrameStream,
    HelloAnswer,
    HelloAsked,
    Kind,
    body_of_error,
    read_body,
    read_request,
    spoken_version,
)
from replicator.pool.control_connection import SOCKET_NAME
from replicator.pool.control_values import METHODS, ExportFacts, ListenAsked, bytes_of, words_of
from replicator.pool.interface import Pool
from replicator.pool.sockets import PoolSocket, group_id, peer_of

CONNECTIONS_LIMIT = 256
"""A publisher, a follower, a dozen commands, and a lease for every restore that reads: far below this."""

_HELLO_S = 10.0
_SEND_S = 30.0  # a client that doesn't take its answer for so long is hung, and its connection ended
_ACCEPT_AGAIN_S = 0.1
_RECEIVE_BYTES = 1 << 18


class Hooks(Protocol):
    """What the exporter does for its clients beyond the pool."""

    def listen(self, asked: ListenAsked) -> list[ExportFacts]:
        """Open one more NBD listener."""

    def exports(self) -> list[ExportFacts]:
        """All that is served."""

    def listeners(self) -> list[ListenAsked]:
        """What each listener was asked for with."""

    def let_go(self, dev_ids: Collection[int]) -> AbstractContextManager[None]:
        """Offer no volume that is one of these devices while the block lasts; ConflictError where clients use it."""

    def stop(self) -> None:
        """End the process soon; returns at once."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a client is told of the owner: who started it, and with which settings."""

    started_by: str = "own"
    settings: Mapping[str, str] = field(default_factory=dict)


class ControlServer:
    """The listening control socket in `directory`, the pool's; a context manager."""

    def __init__(
        self,
        pool: Pool,
        directory: Path,
        hooks: Hooks | None = None,
        identity: Identity | None = None,
        *,
        group: str | None = None,
        pid: int,
        connections_limit: int = CONNECTIONS_LIMIT,
    ) -> None:
        """Listens when it returns; `group` may connect too (mode 0660, else 0600)."""
        self.pool, self.hooks = pool, hooks
        self.reservations = Reservations(pool)
        identity = identity or Identity()
        self.hello = HelloAnswer(
            version=PROTOCOL_VERSION,
            pid=pid,
            started_by=identity.started_by,
            settings=dict(identity.settings),
            pool=str(pool.view().pool.uuid),
            block_bytes=pool.block_bytes,
            instance=uuid.uuid4().hex,
        )
        self._group = group_id(group)
        self._limit = connections_limit
        self._turn = threading.Lock()
        self._numbers = itertools.count(1)
        self._connections: dict[int, _Connection] = {}
        self._closing = threading.Event()
        self._socket = PoolSocket(directory, SOCKET_NAME, group=self._group)
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)
        self._thread.start()

    def __enter__(self) -> ControlServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_closing(self) -> bool:
        """Whether connections end because we end them."""
        return self._closing.is_set()

    @property
    def connection_count(self) -> int:
        """How many clients are connected."""
        with self._turn:
            return len(self._connections)

    def close(self) -> None:
        """Stop listening, and end every connection with its leases and reservations; calls in work are waited for."""
        with self._turn:
            self._closing.set()
            connections = list(self._connections.values())
        self._socket.close()
        self._thread.join()
        for connection in connections:
            connection.hang_up()
        for connection in connections:
            connection.thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connected, _ = self._socket.socket.accept()
            except OSError:
                if self._closing.wait(_ACCEPT_AGAIN_S):  # else out of descriptors, or of memory: it may pass
                    return
                continue
            self._welcome(connected)

    def _welcome(self, connected: socket.socket) -> None:
        connected.settimeout(_HELLO_S)
        if not peer_of(connected).may_enter(self._group):
            _refuse(connected, ConflictError("this socket is for the pool's user, its group and root"))
            return
        with self._turn:
            if self.is_closing or len(self._connections) >= self._limit:
                full = UnavailableError(f"{self._limit} clients are connected already", mend="try again later")
                _refuse(connected, full)
                return
            number = next(self._numbers)
            connection = _Connection(self, number, connected)
            self._connections[number] = connection
        connection.thread.start()

    def forget(self, number: int) -> None:
        """The connection has ended."""
        with self._turn:
            self._connections.pop(number, None)


class _Connection:
    """One client, and what it holds."""

    def __init__(self, server: ControlServer, number: int, connected: socket.socket) -> None:
        self._server, self._pool, self._number = server, server.pool, number
        self._socket = connected
        self._stream = FrameStream("a control client", HELLO_LIMIT_BYTES)
        self._leases = ExitStack()
        self._said_hello = False
        self.thread = threading.Thread(target=self._run, name=f"control {number}", daemon=True)

    def hang_up(self) -> None:
        """End it from outside; a call in work is finished first."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        self._server.reservations.begin(self._number)
        hung_up = False
        try:
            with self._socket:
                self._serve()
            hung_up = not self._server.is_closing
        except (ConnectionResetError, BrokenPipeError):
            hung_up = not self._server.is_closing
        except (FormatError, OSError):
            hung_up = False  # by us: it may be alive and slow, and still be writing
        finally:
            self._leases.close()
            self._server.reservations.end(self._number, cut_off=not hung_up)
            self._server.forget(self._number)

    def _serve(self) -> None:
        while data := self._socket.recv(_RECEIVE_BYTES):
            try:
                for frame in self._stream.receive(data):
                    self._answer(frame)
                self._stream.check()
            except FormatError as error:
                self._send(Frame(Kind.ERROR, 0, body_of_error(error)))
                raise

    def _answer(self, frame: Frame) -> None:
        try:
            if frame.kind is not Kind.REQUEST:
                raise FormatError("a control client", "a request", frame.kind.name)
            answer = Frame(Kind.ANSWER, frame.call, msgspec.msgpack.encode(self._do(frame.body)))
        except ReplicatorError as error:
            answer = Frame(Kind.ERROR, frame.call, body_of_error(error))
        except OSError as error:  # not the socket's: nothing is sent inside
            answer = Frame(Kind.ERROR, frame.call, body_of_error(ReplicatorError(f"the pool's owner failed: {error}")))
        self._send(answer)

    def _send(self, frame: Frame) -> None:
        self._socket.settimeout(_SEND_S)
        self._socket.sendall(frame.pack())
        self._socket.settimeout(None if self._said_hello else _HELLO_S)

    def _do(self, body: bytes) -> Any:
        method, packed = read_request(body)
        if method not in METHODS:
            raise NotFoundError(f"the pool's owner knows no call {method!r}", mend="update the owner, and restart it")
        if not self._said_hello and method != "hello":
            raise ConflictError("the first call is hello")
        arguments = read_body(packed, METHODS[method][0], f"the arguments of {method}")
        call: Callable[[Any], Any] = getattr(self, f"_do_{method}")
        return call(arguments)

    def _do_hello(self, asked: HelloAsked) -> HelloAnswer:
        spoken_version(PROTOCOL_VERSION, self._server.hello.pid, asked.version)
        self._said_hello = True
        self._stream.limit_bytes = FRAME_LIMIT_BYTES
        return self._server.hello

    def _do_status(self, _: Any) -> Any:
        return self._pool.status()

    def _do_transaction_id(self, _: Any) -> int:
        return self._pool.view().at_id

    def _do_facts(self, asked: Any) -> Any:
        return list(self._pool.facts(asked.dev_ids).values())

    def _do_switch(self, asked: Any) -> int:
        switch = asked.value()
        hooks = self._server.hooks
        let_go = nullcontext() if hooks is None or not switch.delete else hooks.let_go(switch.delete)
        with self._server.reservations.claimed(switch.fill), let_go:
            return self._pool.switch(switch)

    def _do_cut(self, asked: Any) -> Any:
        return self._pool.cut(asked)

    def _do_lease(self, asked: Any) -> Any:
        lease = self._leases.enter_context(self._pool.lease(asked.dev_ids))
        return list(lease.devices.values())

    def _do_release(self, _: Any) -> None:
        self._leases.close()

    def _do_reserve(self, asked: Any) -> bytes:
        return bytes_of(self._server.reservations.reserve(self._number, asked.count))

    def _do_give_back(self, asked: Any) -> None:
        self._server.reservations.give_back(self._number, words_of(asked.blocks))

    def _do_resize(self, asked: Any) -> int:
        if len(asked.volume) != 16:
            raise FormatError("the arguments of resize", "a UUID of 16 bytes", str(len(asked.volume)))
        return self._pool.resize(UUID(bytes=asked.volume), asked.size_bytes)

    def _do_set_metadata_snapshot(self, asked: Any) -> int:
        return self._pool.set_metadata_snapshot(asked.held)

    def _do_flush(self, _: Any) -> None:
        self._pool.flush()

    def _do_listen(self, asked: ListenAsked) -> list[ExportFacts]:
        return self._hooks().listen(asked)

    def _do_exports(self, _: Any) -> list[ExportFacts]:
        return [] if self._server.hooks is None else self._server.hooks.exports()

    def _do_listeners(self, _: Any) -> list[ListenAsked]:
        return [] if self._server.hooks is None else self._server.hooks.listeners()

    def _do_stop(self, _: Any) -> None:
        self._hooks().stop()

    def _hooks(self) -> Hooks:
        if self._server.hooks is None:
            raise ConflictError("the pool's owner serves no disks: it ends by itself")
        return self._server.hooks


def _refuse(connected: socket.socket, error: ReplicatorError) -> None:
    with contextlib.suppress(OSError), connected:
        connected.sendall(Frame(Kind.ERROR, 1, body_of_error(error)).pack())
