"""One connection to a server of objects: requests go out, answers come back, in step or not at all.

Below stdio_client, over a channel: the pipes to a process such as ssh (ssh_channel).

Invariants
  C1  After anything but a whole answer the connection is closed: no answer is taken for another request's.
  C2  What comes in is bounded: frames by the protocol, data by what was asked for.
  C3  A connection that falls, at whatever byte, is a FellError with what is known of the reason; bytes that aren't the
      protocol are a FormatError, or a FellError where they are some program's words instead of an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from replicator._buffer import Buffer
from replicator.errors import FormatError, ReplicatorError, UnavailableError
from replicator.log.stdio_protocol import (
    DATA_BYTES,
    HEAD_BYTES,
    MAGIC,
    NUMBERS,
    PROTOCOL,
    Head,
    Kind,
    decode_body,
    decode_failure,
    encode_body,
    encode_head,
    read_frame,
)

Value = TypeVar("Value")


class Channel(Protocol):
    """Two pipes to a server, and what can be said about its end."""

    def send(self, parts: list[Buffer]) -> None:
        """All of these; OSError when it fell."""

    def receive(self, length_bytes: int) -> Buffer:
        """So many bytes; fewer at the end; OSError when it fell."""

    def ended(self, seen: bytes) -> UnavailableError:
        """Why it fell; `seen` is what came instead of an answer."""

    def close(self) -> None:
        """Let go of it."""


class FellError(UnavailableError):
    """The connection fell before the answer."""


class Connection:
    """One connection, from its hello to its end. Not for two threads at once."""

    def __init__(self, channel: Channel, name: str, path: str, *, create: bool) -> None:
        self._channel, self._name = channel, name
        self._number = 0
        self.is_open = True
        try:
            protocol, self.append_only, self.path = self._greet(path, create)
        except BaseException:  # also what the server told: a refused greeting leaves no connection
            self.close()
            raise
        if protocol != PROTOCOL:
            self.close()
            raise FormatError(name, f"protocol {PROTOCOL}", str(protocol), mend="install one version at both ends")

    def _greet(self, path: str, create: bool) -> tuple[int, bool, str]:
        body = encode_body(Kind.HELLO, PROTOCOL, create, path)
        protocol, append_only, served = self.ask(Kind.HELLO, [body], lambda: self._expected(Kind.WELCOME))
        return protocol, append_only, served

    def tell(self, kind: Kind, parts: list[Buffer]) -> None:
        """Send a request that has no answer."""
        self._guarded(lambda: self._send(kind, parts))

    def ask(self, kind: Kind, parts: list[Buffer], read: Callable[[], Value]) -> Value:
        """Send a request, and what `read` makes of its answer; the server's errors are raised as ours."""

        def do() -> Value:
            self._send(kind, parts)
            return read()

        return self._guarded(do)

    def _guarded(self, do: Callable[[], Value]) -> Value:
        """C2: only a whole answer, or a failure that the server told, leaves the connection standing."""
        try:
            return do()
        except _ToldError as told:
            raise told.error from None
        except OSError as error:
            fell = self._fell(b"")
            self.close()
            raise fell from error
        except BaseException:
            self.close()
            raise

    def _send(self, kind: Kind, parts: list[Buffer]) -> None:
        self._number = (self._number + 1) % NUMBERS
        try:
            self._channel.send([encode_head(kind, self._number, parts), *parts])
        except OSError as error:
            self._last_words()
            raise self._fell(b"") from error

    def _last_words(self) -> None:
        """Raise what the far end told before it closed its end, if it told anything."""
        try:
            head, body = self._frame()
        except OSError:
            return
        if head.kind is Kind.FAILED:
            raise decode_failure(body, self._name)

    def _next(self) -> tuple[Kind, Buffer]:
        """The next frame of the answer."""
        head, body = self._frame()
        if head.kind is Kind.FAILED:
            raise _ToldError(decode_failure(body, self._name))
        if head.number != self._number:
            raise FormatError(self._name, f"the answer to request {self._number}", f"that to {head.number}")
        return head.kind, body

    def _frame(self) -> tuple[Head, Buffer]:
        """C3."""
        first = b""

        def read(length_bytes: int) -> Buffer:
            nonlocal first
            data = self._channel.receive(length_bytes)
            first = first or bytes(data[:HEAD_BYTES])
            if len(data) < length_bytes:
                raise EOFError
            return data

        try:
            frame = read_frame(read)
        except EOFError:
            raise self._fell(b"" if first.startswith(MAGIC) else first) from None
        except FormatError as error:
            if not first.startswith(MAGIC):
                raise self._fell(first) from None
            raise FormatError(f"{self._name}: {error.where}", error.expected, error.found, mend=error.mend) from None
        assert frame is not None, "an end is told by `read`"
        return frame

    def _fell(self, seen: bytes) -> FellError:
        told = self._channel.ended(seen)
        return FellError(f"{self._name}: {told.message}", mend=told.mend)

    def _expected(self, kind: Kind) -> tuple[Any, ...]:
        found, body = self._next()
        if found is not kind:
            raise FormatError(self._name, f"a frame {kind.name.lower()}", found.name.lower())
        return decode_body(kind, body)

    def done(self) -> int:
        """The answer's value."""
        value: int = self._expected(Kind.DONE)[0]
        return value

    def done_or_absent(self) -> int | None:
        """The answer's value, or None."""
        kind, body = self._next()
        if kind is Kind.ABSENT:
            return None
        if kind is not Kind.DONE:
            raise FormatError(self._name, "a frame done", kind.name.lower())
        value: int = decode_body(kind, body)[0]
        return value

    def data(self, limit_bytes: int) -> bytes:
        """The data of the answer, up to its short last frame (C3)."""
        parts: list[bytes] = []
        length = 0
        while True:
            kind, body = self._next()
            length += len(body)
            if kind is not Kind.DATA or len(body) > DATA_BYTES or length > limit_bytes:
                raise FormatError(self._name, f"data of at most {limit_bytes} bytes", f"{kind.name.lower()}, {length}")
            parts.append(bytes(body))
            if len(body) < DATA_BYTES:
                return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Let go of it."""
        if self.is_open:
            self.is_open = False
            self._channel.close()


class _ToldError(Exception):
    """The server's answer is an error; the connection is in step."""

    def __init__(self, error: ReplicatorError) -> None:
        super().__init__(error.message)
        self.error = error
