"""Starting an exporter, or adopting the one that has the pool: how agent and receiver come to their pool.

The disks outlive whoever publishes them. A started exporter is a process in a session of its own, so that neither a
signal to its starter's group nor its starter's death ends it; the next one adopts it.

    who has the pool                    what `connect` does
    nobody                              starts `replicator serve`, waits for its READY
    an exporter                         adopts it: protocol version checked, the listener asked for, where it is missing
    a command that will end by itself   waits for it as long as pool/opening waits for an owner

A listener that somebody added by hand would be lost with its exporter: who supervises one keeps in mind what it listens
at (Listeners), and asks the next one for the same.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from replicator.errors import ConflictError, ReplicatorError, UnavailableError, UsageError
from replicator.pool.control_connection import SOCKET_NAME
from replicator.pool.control_values import ListenAsked
from replicator.pool.ending import Listening
from replicator.pool.interface import Pool
from replicator.pool.opening import require_pool
from replicator.pool.remote import RemotePool

START_S = 120.0
"""How long an exporter may take to open its pool: syncing devices and replaying what a dead one left."""

END_S = 240.0
"""How long one may take to end: its last commit. Less than those wait who stop a daemon (300 s, systemd as well)."""

_SLIM = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
_MESSAGE_BYTES = 65536


def connect(
    path: Path, *, started_by: str, listener: ListenAsked | None = None, group: str | None = None
) -> RemotePool:
    """The pool at `path` through its exporter, adopted or started; ConflictError when it can't be either."""
    require_pool(path)
    try:
        pool = RemotePool(path, role=started_by)
    except UnavailableError:
        _start(path, started_by, listener, group)
        return RemotePool(path, role=started_by)
    if listener is not None:
        try:
            pool.listen(listener)
        except BaseException:
            pool.close()
            raise
    return pool


class Listeners:
    """Connects by `connect`, and lets whoever has the pool then listen at all that its last owner did; for any thread.

    What can't be listened at any more (its volume is gone) is told to `report`, and keeps nobody from the pool.
    """

    def __init__(self, connect: Callable[[], Pool], report: Callable[[str], None]) -> None:
        self._connect, self._report = connect, report
        self._known: tuple[ListenAsked, ...] = ()

    def connect(self) -> Pool:
        """The pool, served as it was."""
        pool = self._connect()
        if not isinstance(pool, RemotePool):
            return pool
        for asked in self._known:
            try:
                pool.listen(asked)
            except UnavailableError:
                pool.close()
                raise
            except ReplicatorError as error:
                self._report(f"{asked.address} isn't served any more: {error.message}")
        return pool

    def note(self, pool: Pool | None) -> None:
        """Look at what the owner listens at; while it is away, what was known stays."""
        if isinstance(pool, RemotePool):
            with suppress(ReplicatorError):
                self._known = tuple(pool.listeners())


def end_started_by(pool: Pool, starter: str) -> None:
    """Stop the exporter behind `pool`, if `starter` started it, and return when its process is gone.

    What a clean stop of its daemon does. One that is gone already, or goes before it has answered, has ended.
    """
    if not isinstance(pool, RemotePool) or pool.owner.started_by != starter:
        return
    try:
        exporter = Listening(pool.path, SOCKET_NAME)
    except UnavailableError:
        return
    with exporter:
        try:
            pool.stop()
        except UnavailableError:
            if exporter.pid != pool.owner.pid:
                return  # another one came, who wasn't asked
        exporter.wait_gone(END_S)


def _start(path: Path, started_by: str, listener: ListenAsked | None, group: str | None) -> None:
    """Run `replicator serve` for `path`, and return when it is ready; what it says when it isn't is the error."""
    arguments = [sys.executable, "-m", "replicator.cli.main", "serve", str(path), "--started-by", started_by]
    if listener is not None:
        arguments += [*listener.names, "--listen", listener.address]
        arguments += ["--read-only"] * listener.read_only
        for name, value in listener.tls.items():
            arguments += [f"--tls-{name}"] if name == "required" else [f"--tls-{name}", value]
    if group:
        arguments += ["--group", group]
    receiving, sending = os.pipe()
    try:
        child = subprocess.Popen(
            [*arguments, "--ready-fd", str(sending)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(sending,),
            start_new_session=True,
            env={**os.environ, **_SLIM},
        )
        os.close(sending)
        sending = -1
        _await(receiving, child, path)
    finally:
        os.close(receiving)
        if sending >= 0:
            os.close(sending)


def _await(receiving: int, child: subprocess.Popen[bytes], path: Path) -> None:
    ready, _, _ = select.select([receiving], [], [], START_S)
    if not ready:
        child.kill()
        child.wait()
        raise ReplicatorError(f"the exporter of {path} wasn't ready within {START_S:.0f} s")
    said = os.read(receiving, _MESSAGE_BYTES).decode(errors="replace")
    if said.startswith("READY"):
        threading.Thread(target=child.wait, name="exporter's end", daemon=True).start()  # or it would stay a zombie
        return
    code = child.wait()
    message = said.strip() or f"it ended with exit code {code}"
    for kind in (UsageError, ConflictError):
        if code == kind.exit_code:
            raise kind(message)
    raise ReplicatorError(f"the exporter of {path} couldn't be started: {message}")
