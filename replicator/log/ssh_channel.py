"""The pipes to a program such as ssh, as a Channel: one socket pair for both ways, its errors on a third pipe.

Every call ends within IDLE_S of silence. What the program writes to standard error is kept, its last ERRORS_BYTES_MAX,
for the message of a connection that falls.

Invariant H1: the program is ended, by its id, and waited for, when the channel is closed.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections import deque
from typing import IO

from replicator._buffer import Buffer
from replicator.errors import UnavailableError
from replicator.log.ssh_reasons import ssh_ended
from replicator.log.stdio_protocol import BODY_BYTES_MAX
from replicator.units import KIB

IDLE_S = 120.0  # longer than the slowest flush of a segment; a dead line is found out before by ssh
ERRORS_BYTES_MAX = 8 * KIB
_END_S = 3.0  # how long a program gets to end by itself
_PARTS_MAX = 512  # below every system's IOV_MAX


class ProcessChannel:
    """A program that runs for as long as the channel is open."""

    def __init__(self, argv: list[str], destination: str) -> None:
        self._destination = destination
        self._ours, theirs = socket.socketpair()
        self._ours.settimeout(IDLE_S)
        self._buffer = bytearray(BODY_BYTES_MAX)
        self._errors: deque[bytes] = deque(maxlen=ERRORS_BYTES_MAX // KIB)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    argv,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.PIPE,
                    start_new_session=True,  # a key press that stops us must not cut the line that we stop over
                )
        except OSError as error:
            self._ours.close()
            mend = "install OpenSSH's client, or name another command by REPLICATOR_SSH"
            raise UnavailableError(f"{argv[0]}: {error.strerror}", mend=mend) from error
        assert self._process.stderr is not None, "asked for"
        self._listener = threading.Thread(target=self._listen, args=(self._process.stderr,), daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        """The program's process id."""
        return self._process.pid

    def send(self, parts: list[Buffer]) -> None:
        """All of these."""
        left = [memoryview(part) for part in parts if len(part)]
        while left:
            sent = self._ours.sendmsg(left[:_PARTS_MAX])
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if sent:
                left[0] = left[0][sent:]

    def receive(self, length_bytes: int) -> Buffer:
        """So many bytes, valid until the next call; fewer at the end."""
        view = memoryview(self._buffer)[:length_bytes]
        have = 0
        while have < length_bytes:
            came = self._ours.recv_into(view[have:])
            if not came:
                break
            have += came
        return view[:have]

    def ended(self, seen: bytes) -> UnavailableError:
        """Why it fell."""
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_WR)
        status: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(_END_S)
            self._listener.join(_END_S)
        return ssh_ended(status, b"".join(self._errors), seen, self._destination)

    def close(self) -> None:
        """H1."""
        self._ours.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join(_END_S)

    def _listen(self, errors: IO[bytes]) -> None:
        """Keep the end of what it writes to standard error."""
        with errors, contextlib.suppress(OSError):
            while data := errors.read1(KIB):  # type: ignore[attr-defined]  # a BufferedReader, which Popen calls IO
                self._errors.append(data)
