"""The sockets `agent` and `receiver` beside a pool: how a running daemon is asked, and how it answers.

Used by both daemons (the server), by their commands and by `replicator status` (the client). Frames and typed errors
are those of the control socket (pool/control); a call's arguments and its answer are plain objects, as JSON knows them,
so that one client can ask every daemon of every release: unknown fields are passed over.

    call        arguments   answer
    status      {}          {"kind", "pid", "pool", "severity", "headline", "volumes": [...], …}
    (others)    a daemon's own

    severity    0 well · 1 warning · 2 critical (history/protection)
    volumes     [{"volume", "severity", "headline", "mend", …}], worst first

Invariants
  D1  One living daemon of a kind a pool: a second one is refused (pool/sockets, S1).
  D2  A client that sends rubbish, or nothing, disturbs nobody else: connections and frames are bounded.
  D3  Only root, the daemon's user and, by setting, one group come in.

Failures: UnavailableError (nobody answers, or not in time), FormatError, and whatever the daemon raises.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from replicator.errors import FormatError, NotFoundError, ReplicatorError, UnavailableError
from replicator.pool.control import (
    Frame,
    FrameStream,
    Kind,
    body_of_error,
    body_of_request,
    error_of,
    read_body,
    read_request,
)
from replicator.pool.sockets import PoolSocket, connect, group_id, peer_of

ANSWER_S = 30.0
"""How long a daemon may take to answer; calls that wait for something (a cut in the log) say their own time."""

MESSAGE_LIMIT_BYTES = 8 << 20
"""A status of 4,096 volumes, a line each, is a megabyte."""

CONNECTIONS_LIMIT = 64
"""Commands and monitors, each for the blink of an eye."""

_IDLE_S = 60.0  # a client that has connected and says nothing
_RECEIVE_BYTES = 1 << 16
_ACCEPT_AGAIN_S = 0.1

Document = dict[str, Any]
Call = Callable[[Document], Document]


def ask(pool: Path, name: str, method: str, timeout_s: float = ANSWER_S, **arguments: Any) -> Document:
    """What the daemon at `pool`/`name` answers; its typed error is raised here."""
    where = str(pool / name)
    with contextlib.closing(connect(pool, name, timeout_s)) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.sendall(Frame(Kind.REQUEST, 1, body_of_request(method, arguments)).pack())
            answer = _one_frame(connection, FrameStream(where, MESSAGE_LIMIT_BYTES))
        except TimeoutError:
            raise UnavailableError(f"{where}: no answer to {method} within {timeout_s:.0f} s") from None
        except OSError as error:
            raise UnavailableError(f"{where}: it went away ({error.strerror or error})") from error
    if answer.kind is Kind.ERROR:
        raise error_of(answer.body)
    found: Document = read_body(answer.body, dict[str, Any], f"{where}, answer to {method}")
    return found


def _one_frame(connection: socket.socket, stream: FrameStream) -> Frame:
    while data := connection.recv(_RECEIVE_BYTES):
        if frames := stream.receive(data):
            return frames[0]
    raise ConnectionResetError(0, "it hung up")


class DaemonSocket:
    """A daemon's listening socket; `calls` are its methods by name. A context manager, closed with the daemon."""

    def __init__(self, pool: Path, name: str, calls: Mapping[str, Call], *, group: str | None = None) -> None:
        """Listens when it returns; ConflictError where a living daemon does (D1)."""
        self._calls = calls
        self._group = group_id(group)
        self._places = threading.BoundedSemaphore(CONNECTIONS_LIMIT)
        self._turn = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closing = threading.Event()
        self._socket = PoolSocket(pool, name, group=self._group)
        self._thread = threading.Thread(target=self._accept, name=f"{name} socket", daemon=True)
        self._thread.start()

    def __enter__(self) -> DaemonSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening, and hang up; a call in work goes on to its end."""
        self._closing.set()
        self._socket.close()
        self._thread.join()
        with self._turn:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RD)

    def _accept(self) -> None:
        while True:
            try:
                connected, _ = self._socket.socket.accept()
            except OSError:
                if self._closing.wait(_ACCEPT_AGAIN_S):
                    return
                continue
            if not peer_of(connected).may_enter(self._group) or not self._places.acquire(blocking=False):
                connected.close()
                continue
            with self._turn:
                self._open.add(connected)
            threading.Thread(target=self._serve, args=(connected,), name="asked", daemon=True).start()

    def _serve(self, connected: socket.socket) -> None:
        connected.settimeout(_IDLE_S)
        stream = FrameStream("a client of the daemon", MESSAGE_LIMIT_BYTES)
        try:
            with contextlib.suppress(OSError, FormatError), connected:
                while data := connected.recv(_RECEIVE_BYTES):
                    for frame in stream.receive(data):
                        connected.sendall(self._answer(frame).pack())
        finally:
            with self._turn:
                self._open.discard(connected)
            self._places.release()

    def _answer(self, frame: Frame) -> Frame:
        try:
            method, packed = read_request(frame.body)
            call = self._calls.get(method)
            if call is None:
                known = ", ".join(sorted(self._calls))
                raise NotFoundError(f"this daemon knows no call {method!r}, but: {known}", mend="update and restart it")
            arguments = read_body(packed, dict[str, Any], f"the arguments of {method}")
            return Frame(Kind.ANSWER, frame.call, msgspec.msgpack.encode(call(arguments)))
        except ReplicatorError as error:
            return Frame(Kind.ERROR, frame.call, body_of_error(error))
        except OSError as error:
            return Frame(Kind.ERROR, frame.call, body_of_error(ReplicatorError(f"the daemon failed: {error}")))
