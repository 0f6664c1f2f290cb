"""Other people's NBD servers, for as long as a test needs them.

They are started by socket activation: the test makes the listening socket and hands it over, so that a client may
connect at once, no port is guessed and nothing is polled.

Invariant S1: a server is ended, by its id, when its block ends.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.judges import Tool, nbd_tool, nbdkit_part

END_LIMIT_S = 20.0
LAUNCH = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


def unix_socket(path: Path) -> socket.socket:
    """A listening Unix socket at a path."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


def tcp_socket() -> socket.socket:
    """A listening socket on the loopback, at a port of the kernel's choice."""
    return socket.create_server(("127.0.0.1", 0))


@contextlib.contextmanager
def serving(
    tool: Tool, arguments: Sequence[str | Path], listener: socket.socket, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server that knows socket activation on `listener`, which is closed with it (S1)."""
    argv = [sys.executable, "-c", LAUNCH, str(listener.fileno()), *tool.argv(*arguments)]
    with listener, log.open("wb") as out:
        child = subprocess.Popen(
            argv, env=tool.env(), stdin=subprocess.DEVNULL, stdout=out, stderr=out, pass_fds=[listener.fileno()]
        )
        try:
            yield child
        finally:
            child.terminate()
            child.wait(END_LIMIT_S)


@contextlib.contextmanager
def nbdkit(
    plugin: str, parameters: Sequence[str], listener: socket.socket, log: Path, *, filters: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """nbdkit with a plugin, its parameters, and filters, the outermost first."""
    chosen = [f"--filter={nbdkit_part('filter', name)}" for name in filters]
    arguments = ["--foreground", *chosen, nbdkit_part("plugin", plugin), *parameters]
    with serving(nbd_tool("nbdkit"), arguments, listener, log) as child:
        yield child
