"""One connection to a pool's owner: calls go out, answers or typed errors come back, and whether it still stands.

Beneath pool/remote, over pool/control's frames and pool/sockets.

Invariants
  N1  A connection has said hello, to an owner whose protocol we speak, before anything else is called.
  N2  After a call that had no answer nothing more is called over it.

Failures: UnavailableError (gone, or no answer in time), FormatError, ConflictError (a newer owner), the owner's own.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from pathlib import Path
from typing import Any

from replicator.errors import FormatError, UnavailableError
from replicator.pool import sockets
from replicator.pool.control import (
    PROTOCOL_VERSION,
    Frame,
    FrameStream,
    HelloAnswer,
    HelloAsked,
    Kind,
    body_of_request,
    error_of,
    read_body,
    spoken_version,
)
from replicator.pool.control_values import METHODS

SOCKET_NAME = "control"
_HELLO_S = 10.0
_RECEIVE_BYTES = 1 << 18


class ControlConnection:
    """One connection to an owner: one call at a time, answered in turn. After a failure it is of no use.

    It is closed then, unless it is `lasting`: to hang up is to give back what was reserved over it, and threads of
    ours may still be writing there (R2 of pool/remote).
    """

    def __init__(self, directory: Path, role: str, name: str = SOCKET_NAME, *, lasting: bool = False) -> None:
        self._where = str(directory / name)
        self._lasting = lasting
        self._broken = False
        self._socket = sockets.connect(directory, name, _HELLO_S)
        self._stream = FrameStream(self._where)
        self._calls = 0
        try:
            self.owner: HelloAnswer = self.call("hello", HelloAsked(PROTOCOL_VERSION, os.getpid(), role), _HELLO_S)
            self.version = spoken_version(self.owner.version, self.owner.pid)
        except BaseException:
            self.close()
            raise

    @property
    def stands(self) -> bool:
        """Whether the other end is there: an owner that sends nothing unasked, and hasn't hung up."""
        if not self.is_open:
            return False
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLRDHUP)
        return not poll.poll(0)

    @property
    def is_open(self) -> bool:
        """Whether it wasn't closed at this end, and every call had its answer."""
        return self._socket.fileno() >= 0 and not self._broken

    def call(self, method: str, arguments: object, timeout_s: float) -> Any:
        """The owner's answer; its error, raised; UnavailableError when there is none."""
        self._calls += 1
        try:
            answer = self._exchange(Frame(Kind.REQUEST, self._calls, body_of_request(method, arguments)), timeout_s)
            if answer.kind is Kind.ERROR and answer.call == 0:  # of the connection: the owner hangs up
                self._fail()
            elif answer.call != self._calls or answer.kind is Kind.REQUEST:
                raise FormatError(self._where, f"the answer to call {self._calls}", f"{answer.kind.name} {answer.call}")
            if answer.kind is Kind.ANSWER:
                return read_body(answer.body, METHODS[method][1], f"{self._where}, answer to {method}")
            refusal = error_of(answer.body)
        except TimeoutError as error:
            self._fail()
            raise UnavailableError(
                f"{self._where}: no answer to {method} within {timeout_s:.0f} s; whether it was done isn't known"
            ) from error
        except OSError as error:
            self._fail()
            raise UnavailableError(f"{self._where}: the owner is gone ({error.strerror or error})") from error
        except BaseException:
            self._fail()
            raise
        raise refusal

    def _fail(self) -> None:
        self._broken = True
        if not self._lasting:
            self.close()

    def _exchange(self, request: Frame, timeout_s: float) -> Frame:
        self._socket.settimeout(timeout_s)
        with contextlib.suppress(BrokenPipeError):  # an owner that turned us away has said why before it hung up
            self._socket.sendall(request.pack())
        while True:
            data = self._socket.recv(_RECEIVE_BYTES)
            if not data:
                raise ConnectionResetError(0, "it hung up")
            if frames := self._stream.receive(data):
                return frames[0]

    def close(self) -> None:
        """Hang up; the owner ends what was tied to this connection."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
