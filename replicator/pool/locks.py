"""Who may open a pool: the files `lock` and `writers` in its directory, by flock; and which directories may hold one.

Taken first by pool/opening and pool/reading, before anything of the pool is looked at.

    file      exclusive                                 shared
    lock      the owner, for its life                   commands that read where there is no owner, until they end
    writers   a new owner, before it allocates          whoever writes data blocks: the owner after that, and clients
    the rest  the owner, for its life                   -

The rest is data and metadata, both copies of a mirrored one, where they are regular files: what a link leads to may be
linked to from a second directory, which has a `lock` of its own. Block devices are opened with O_EXCL for that.

The owner's pid stands in `lock` (text, a line), so that a second opener can name it. The kernel drops all locks when
the process ends, however it ends; what the file says then is stale, and is replaced by the next owner.

    dies …                         on disk                             next opener
    between flock and pid          an older pid, or none               takes the lock
    with the lock held             its pid                             takes the lock
    after release                  empty                               takes the lock

Invariants
  P9  One owner: while it lives, a second opener gets ConflictError with its pid; one that comes by another directory
      gets ConflictError with the file that both lead to.
  L1  A new owner waits for readers, up to READERS_S, and never for another owner.
  L2  No block is given out while a process that a dead owner gave blocks to may still write into them.

Failures: ConflictError (an owner, readers or writers that stay), UsageError (a network file system), DeviceError.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from replicator.blockdev.file import FileDevice
from replicator.errors import ConflictError, DeviceError, NotFoundError, UsageError

READERS_S = 30.0
"""How long an opener waits for commands that only read: they end by themselves, most within a second."""

_STEP_S = 0.05
_PID_BYTES = 32

_NETWORK_FILE_SYSTEMS = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFE534D42: "SMB",
    0xFF534D42: "CIFS",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x73757245: "Coda",
    0x564C: "NCP",
    0x01021997: "9P",
    0x00C36400: "Ceph",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
    0x19830326: "BeeGFS",
    0x01161970: "GFS2",
    0x7461636F: "OCFS2",
    0x65735546: "FUSE",
}
"""f_type of statfs(2), from linux/magic.h and the file systems' own sources. Shared mappings and locks of two hosts
don't agree there; FUSE may be anything, and mostly is a network."""

Waiting = Callable[[str], None]
"""Told once what is being waited for."""


class OwnedElsewhereError(ConflictError):
    """The pool has an owner; the message says its pid."""


class _StatFs(ctypes.Structure):
    _fields_ = (("f_type", ctypes.c_long), ("rest", ctypes.c_byte * 248))


def refuse_network_file_system(path: Path) -> None:
    """UsageError if `path` lies on a file system whose locks another host may not see."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = _StatFs()
    if libc.statfs(os.fsencode(path), ctypes.byref(found)) != 0:
        number = ctypes.get_errno()
        if number == errno.ENOENT:
            raise NotFoundError(f"{path} isn't there")
        raise DeviceError(f"looking at {path}", 0, number, os.strerror(number))
    name = _NETWORK_FILE_SYSTEMS.get(found.f_type & 0xFFFFFFFF)
    if name is not None:
        raise UsageError(
            f"{path} lies on a network file system ({name}), whose locks and shared mappings can't be relied on",
            mend="put the pool on a local disk of the host that writes it",
        )


class PoolLock:
    """A lock file of a pool's directory; a context manager, since the lock ends with it."""

    def __init__(self, path: Path, fd: int, *, owned: bool = False) -> None:
        self._path, self._fd, self._owned = path, fd, owned
        self._turn = threading.Lock()

    @classmethod
    def own(
        cls, directory: Path, *, wait_s: float = READERS_S, waiting: Waiting = lambda _: None, pid: int | None = None
    ) -> PoolLock:
        """Take `lock` for the owner; ConflictError at once beside another owner (P9), or when readers stay (L1)."""
        path = directory / "lock"
        fd = _open(path, writable=True)
        try:
            _wait_for(
                lambda: _try(fd, fcntl.LOCK_EX) or _refuse_beside_owner(path, fd),
                wait_s,
                lambda: waiting(f"waiting for commands that read {directory}"),
                ConflictError(
                    f"{directory} is being read by other commands, still after {wait_s:.0f} s",
                    mend="wait until they are done, or end them",
                ),
            )
            os.ftruncate(fd, 0)
            with suppress(OSError):  # the pid is for people: a full disk doesn't keep the pool from being opened (P8)
                os.pwrite(fd, f"{os.getpid() if pid is None else pid}\n".encode(), 0)
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd, owned=True)

    @classmethod
    def read(cls, directory: Path, *, make: bool = True) -> PoolLock | None:
        """Take `lock` for a reader where there is no owner; None where there is one.

        Where no lock file is and none can be made (read-only media), nobody can open the pool for writing either. Nor
        where nothing of ours is (`make` False): there it isn't made.
        """
        path = directory / "lock"
        try:
            fd = _open(path, writable=False)
        except (NotFoundError, DeviceError):
            if not make:
                return cls(path, -1)
            try:
                fd = _open(path, writable=True)
            except DeviceError as error:
                if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                    return cls(path, -1)
                raise
        if _try(fd, fcntl.LOCK_SH):
            return cls(path, fd)
        os.close(fd)
        return None

    @classmethod
    def write(cls, directory: Path) -> PoolLock:
        """Take `writers`, shared: before data blocks are written that an owner elsewhere reserved (L2)."""
        path = directory / "writers"
        fd = _open(path, writable=True)
        if not _try(fd, fcntl.LOCK_SH):
            os.close(fd)
            raise ConflictError(f"a new owner is opening {directory}", mend="connect to it, and reserve again")
        return cls(path, fd)

    @classmethod
    def only_writer(cls, directory: Path, *, wait_s: float = READERS_S, waiting: Waiting = lambda _: None) -> PoolLock:
        """Take `writers` for a new owner: alone first (L2), then shared with its clients. It holds `lock` already."""
        path = directory / "writers"
        fd = _open(path, writable=True)
        try:
            _wait_for(
                lambda: _try(fd, fcntl.LOCK_EX),
                wait_s,
                lambda: waiting(f"waiting for a dead owner's clients, which still write to {directory}"),
                ConflictError(
                    f"a client of the last owner still writes to {directory}, after {wait_s:.0f} s",
                    mend="end the receiver or agent that works on this pool",
                ),
            )
            fcntl.flock(fd, fcntl.LOCK_SH)
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd)

    def release(self) -> None:
        """End it; a second call does nothing."""
        with self._turn:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            if self._owned:
                os.ftruncate(fd, 0)
            os.close(fd)

    def __enter__(self) -> PoolLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def hold_files(files: Iterable[FileDevice]) -> None:
    """Take the pool's own files for its owner, until they are closed; ConflictError where another has one (P9)."""
    for file in files:
        try:
            if file.is_block_device or _try(file.fileno(), fcntl.LOCK_EX):
                continue
        except OSError as error:
            raise DeviceError(f"locking {file.name}", 0, error.errno or errno.EIO, str(error)) from error
        raise ConflictError(
            f"{file.name} is held by another pool directory, which leads to it too",
            mend="end what has that pool open; then remove the link of the directory that is a copy",
        )


def owner_pid(directory: Path) -> int | None:
    """The pid that the owner wrote into `lock`; None where there is none. Only worth something while it is held."""
    try:
        text = (directory / "lock").read_bytes()[:_PID_BYTES]
    except OSError:
        return None
    return int(text) if text.strip().isdigit() else None


def owned_elsewhere(directory: Path) -> OwnedElsewhereError:
    """What a second opener is told (P9)."""
    pid = owner_pid(directory)
    who = "another process" if pid is None else f"process {pid}"
    mend = "wait until it is done, or stop it"
    return OwnedElsewhereError(f"{directory} is open in {who}", mend=mend)


def _refuse_beside_owner(path: Path, fd: int) -> bool:
    """False where readers hold the file; ConflictError where an owner does (whom a shared lock can't join)."""
    if not _try(fd, fcntl.LOCK_SH):
        raise owned_elsewhere(path.parent)
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def _wait_for(attempt: Callable[[], bool], wait_s: float, tell: Callable[[], None], late: ConflictError) -> None:
    """Try until it works; `tell` once when it doesn't at first; `late` at the end."""
    end = time.monotonic() + wait_s
    told = False
    while not attempt():
        if not told:
            told = True
            tell()
        if time.monotonic() >= end:
            raise late
        time.sleep(_STEP_S)


def _try(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(path: Path, *, writable: bool) -> int:
    flags = os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o660)
    except OSError as error:
        _refuse(path, error)


def _refuse(path: Path, error: OSError) -> NoReturn:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        raise NotFoundError(f"{path} isn't there") from error
    raise DeviceError(f"opening {path}", 0, error.errno or errno.EIO, error.strerror or str(error)) from error
