"""The sockets beside a pool (`control`, `agent`, `receiver`): one living listener at a name, however long the path.

Used by exporter/control and pool/remote, and by the daemons for theirs. A socket's address has 107 bytes, so a pool's
directory is opened and the socket named /proc/self/fd/N/NAME.

A listener is bound under a name of its own, gets its mode and group, listens, and is then renamed to NAME: nobody sees
it before it may be used.

    dies …                     on disk                        next listener
    before the rename          .NAME.PID, dead                replaces it when its pid comes again; harmless
    after it                   NAME, dead                     finds that nobody answers, and renames over it
    at close                   NAME gone, or dead             likewise

Invariants
  S1  A socket file is replaced only when nobody listens there; ConflictError otherwise.
  S2  Looking and replacing happen under the directory's flock: of two that start at once one is refused.

Failures: ConflictError, UnavailableError (nobody listens), SocketError, UsageError (an unknown group).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from replicator.errors import ConflictError, SocketError, UnavailableError, UsageError

BACKLOG = 64
_SO_PEERGROUPS = 59  # asm-generic/socket.h; Python has no name for it
_PEER = struct.Struct("3i")
_GROUPS_BYTES = 4 * 65536  # NGROUPS_MAX


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a Unix socket, as the kernel says."""

    pid: int
    uid: int
    gids: frozenset[int]

    def may_enter(self, group: int | None) -> bool:
        """Root, our own user, or a member of `group`."""
        return self.uid in (0, os.geteuid()) or (group is not None and group in self.gids)


def peer_of(connection: socket.socket) -> Peer:
    """The process that connected (SO_PEERCRED, SO_PEERGROUPS)."""
    pid, uid, gid = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    more: tuple[int, ...] = ()
    with contextlib.suppress(OSError):  # older than Linux 4.13: the primary group only
        packed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
        more = struct.unpack(f"{len(packed) // 4}i", packed)
    return Peer(pid, uid, frozenset({gid, *more}))


def group_id(name: str | None) -> int | None:
    """The group's number; UsageError where there is no such group."""
    if name is None:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise UsageError(f"there is no group {name!r}", mend=f"create it: groupadd --system {name}") from None


class PoolSocket:
    """A listening socket at `directory`/`name`; close takes the name away."""

    def __init__(self, directory: Path, name: str, *, group: int | None = None) -> None:
        self._directory, self._name = directory, name
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _opened(directory) as folder:
                fcntl.flock(folder, fcntl.LOCK_EX)
                self._refuse_living(folder)
                self._bind(folder, group)
        except OSError as error:
            self.socket.close()
            mend = f"{directory} must be a folder, on a disk with room, that this user may write to"
            raise SocketError(f"can't listen at {directory / name}: {error.strerror or error}", mend=mend) from error
        except BaseException:
            self.socket.close()
            raise

    def _refuse_living(self, folder: int) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            reached = probe.connect_ex(_address(folder, self._name))
            pid = f" (pid {peer_of(probe).pid})" if reached == 0 else ""
        if reached in (0, errno.EAGAIN):  # EAGAIN: it lives, and its backlog is full
            where = self._directory / self._name
            raise ConflictError(f"another process listens at {where}{pid}", mend="stop it first")

    def _bind(self, folder: int, group: int | None) -> None:
        temporary = f".{self._name}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        self.socket.bind(_address(folder, temporary))
        if group is not None:
            os.chown(temporary, -1, group, dir_fd=folder)
        Path(_address(folder, temporary)).chmod(0o600 if group is None else 0o660)
        self.socket.listen(BACKLOG)
        os.rename(temporary, self._name, src_dir_fd=folder, dst_dir_fd=folder)
        self._inode = os.stat(self._name, dir_fd=folder).st_ino

    def close(self) -> None:
        """Stop listening; the file goes if it is still ours."""
        with contextlib.suppress(OSError), _opened(self._directory) as folder:
            fcntl.flock(folder, fcntl.LOCK_EX)
            if os.stat(self._name, dir_fd=folder).st_ino == self._inode:
                os.unlink(self._name, dir_fd=folder)
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept
        self.socket.close()


def connect(directory: Path, name: str, timeout_s: float) -> socket.socket:
    """A connection to who listens at `directory`/`name`; UnavailableError where nobody does."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    try:
        with _opened(directory) as folder:
            connection.connect(_address(folder, name))
    except OSError as error:
        connection.close()
        raise UnavailableError(f"nobody answers at {directory / name}: {error.strerror or error}") from error
    return connection


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield folder
    finally:
        os.close(folder)


def _address(folder: int, name: str) -> str:
    return f"/proc/self/fd/{folder}/{name}"
