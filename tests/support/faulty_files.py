"""The operating system's files with a plan: the n-th call fails, or the machine dies before, in or after it.

A killed process loses nothing that its calls did. A power cut also loses what wasn't synced: every name made in or
taken from a folder since the folder's last fsync, and half of every file that was never synced.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from enum import Enum
from pathlib import Path

from replicator._buffer import Buffer
from replicator.log.files import OsFiles


class Fault(Enum):
    """What happens at the n-th call."""

    ERROR_BEFORE = "EIO, nothing done"
    ERROR_AFTER = "EIO, though it was done"
    FULL = "ENOSPC, nothing done"
    CRASH_BEFORE = "killed before"
    CRASH_WITHIN = "killed within (writes tear)"
    CRASH_AFTER = "killed after"


class CrashError(BaseException):
    """The process is dead: nothing catches it, and every later call raises it again."""


class UnsyncedFiles(OsFiles):
    """Healthy files on a machine whose power never fails: for what a test does around the fault, quickly."""

    def fsync(self, descriptor: int) -> None:
        """The page cache will do."""


class FaultyFiles:
    """Files whose `at`-th call (from 1) meets `fault`; `at` beyond the last call changes nothing."""

    def __init__(self, at: int, fault: Fault) -> None:
        self._real = OsFiles()
        self._at = at
        self._fault = fault
        self.calls = 0
        self._dead = False
        self._open: dict[int, str] = {}
        self._undo: list[tuple[str, Callable[[], None]]] = []
        self._unsynced: set[int] = set()

    @property
    def met(self) -> bool:
        """Whether the fault happened."""
        return self.calls >= self._at

    def end(self, *, power_cut: bool) -> None:
        """Let go of what the dead process held; with `power_cut`, lose what wasn't synced."""
        self._dead = True
        for descriptor in list(self._open):
            os.close(descriptor)
        self._open.clear()
        if power_cut:
            for _, undo in reversed(self._undo):
                undo()

    def _call(self, do: Callable[[], object], torn: Callable[[], object] | None = None) -> object:
        if self._dead:
            raise CrashError
        self.calls += 1
        if self.calls != self._at:
            return do()
        if self._fault is Fault.ERROR_BEFORE:
            raise OSError(errno.EIO, "injected")
        if self._fault is Fault.FULL:
            raise OSError(errno.ENOSPC, "injected")
        if self._fault is Fault.CRASH_WITHIN and torn:
            torn()
        if self._fault in (Fault.ERROR_AFTER, Fault.CRASH_AFTER):
            do()
        if self._fault is Fault.ERROR_AFTER:
            raise OSError(errno.EIO, "injected")
        self._dead = True
        raise CrashError

    def _forgets(self, path: str, undo: Callable[[], None]) -> None:
        """`undo` happens at a power cut unless the folder of `path` is synced before."""
        self._undo.append((str(Path(path).parent), undo))

    def open(self, path: str, flags: int) -> int:
        def do() -> int:
            descriptor = self._real.open(path, flags)
            self._open[descriptor] = path
            if flags & os.O_CREAT:
                self._unsynced.add(os.fstat(descriptor).st_ino)
                self._forgets(path, lambda: Path(path).unlink(missing_ok=True))
            return descriptor

        return int(str(self._call(do)))

    def writev(self, descriptor: int, parts: list[Buffer]) -> int:
        def torn() -> object:
            return os.write(descriptor, bytes(parts[0])[: len(parts[0]) // 2])

        return int(str(self._call(lambda: self._real.writev(descriptor, parts), torn)))

    def pread(self, descriptor: int, length_bytes: int, offset_bytes: int) -> bytes:
        data = self._call(lambda: self._real.pread(descriptor, length_bytes, offset_bytes))
        assert isinstance(data, bytes)
        return data

    def start_writeback(self, descriptor: int, offset_bytes: int, length_bytes: int) -> None:
        self._call(lambda: self._real.start_writeback(descriptor, offset_bytes, length_bytes))

    def fsync(self, descriptor: int) -> None:
        def do() -> None:
            path = self._open[descriptor]
            self._undo = [(folder, undo) for folder, undo in self._undo if folder != path]
            self._unsynced.discard(os.fstat(descriptor).st_ino)

        self._call(do)

    def close(self, descriptor: int) -> None:
        def do() -> None:
            path = self._open.pop(descriptor)
            if os.fstat(descriptor).st_ino in self._unsynced and Path(path).is_file():
                self._undo.insert(0, ("", lambda: _halve(path)))
            self._real.close(descriptor)

        self._call(do)

    def link(self, source: str, target: str) -> None:
        def do() -> None:
            self._real.link(source, target)
            self._forgets(target, lambda: Path(target).unlink(missing_ok=True))

        self._call(do)

    def rename(self, source: str, target: str) -> None:
        def do() -> None:
            old = Path(target).read_bytes() if Path(target).exists() else None
            self._real.rename(source, target)
            self._forgets(target, lambda: _restore(target, old))

        self._call(do)

    def unlink(self, path: str) -> None:
        def do() -> None:
            old = Path(path).read_bytes() if Path(path).exists() else None
            self._real.unlink(path)
            self._forgets(path, lambda: _restore(path, old))

        self._call(do)

    def mkdir(self, path: str) -> None:
        def do() -> None:
            self._real.mkdir(path)
            self._forgets(path, lambda: shutil.rmtree(path, ignore_errors=True))

        self._call(do)

    def rmdir(self, path: str) -> None:
        self._call(lambda: self._real.rmdir(path))

    def listdir(self, path: str) -> list[str]:
        names = self._call(lambda: self._real.listdir(path))
        assert isinstance(names, list)
        return names

    def path_size(self, path: str) -> int:
        return int(str(self._call(lambda: self._real.path_size(path))))

    def token(self) -> str:
        return self._real.token()


def _halve(path: str) -> None:
    if Path(path).exists():
        os.truncate(path, Path(path).stat().st_size // 2)


def _restore(path: str, content: bytes | None) -> None:
    if content is None:
        Path(path).unlink(missing_ok=True)
    elif Path(path).parent.is_dir():
        Path(path).write_bytes(content)
