"""Objects in a directory: the embedded default of the object log.

An object `a/b` is the file ROOT/a/b. While it is written it is ROOT/temporary/a~b.TOKEN.

Failure table of `create(name)` ... `commit()`, the put of a segment. What a crash leaves, line by line:

    step                                  killed after it                       power cut after it
    1  open the temporary file            a stray                               nothing, or a stray
    2  write to it                        a stray, short                        a stray, short or torn
    3  fsync it                           a stray, whole                        the same
    4  mkdir the folders above            empty folders                         none, or some
    5  fsync each folder's parent         empty folders                         the same, for good
    6  link it to its name                the object stands, whole (by 3)       it stands, or not (6 isn't synced)
    7  fsync the object's folder          it stands; commit returns True        it stands
    8  unlink the temporary name          it stands                             it stands, with or without a stray

    error at 1 to 5: the object doesn't stand, the temporary file is removed (or left as a stray); at 6: EEXIST is
    somebody else's object, False; any other error at 6 or at 7: PutUnknownError; at 8: nothing but a stray.

    `put` of a small object: 1 to 5, then rename over the name, fsync the folder: old or new, never torn.

A folder that was made or found once is known to be durable, and not synced again. Where one is gone all the same (the
log was put back from an older copy), that try fails, and all of them are asked again by the next one; but only where
the log's marker stands: a folder that isn't mounted is never written into.

So a reader sees an object whole or not at all. What it sees after 6 and before 7 could still be lost by a power
cut; whoever builds on it first calls `settle`, which syncs the folders (T4): an opener may find folders and links
that a dead process made and didn't sync. Strays are never read; their stream's owner sweeps them.

Needs hard links and fsync of directories, so a local file system. Errors: NoSpaceError, UnavailableError (and
ForbiddenError with it), PutUnknownError, each with the path.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from replicator._buffer import Buffer
from replicator.errors import FormatError, NoSpaceError, ReplicatorError, UnavailableError
from replicator.log.errors import ForbiddenError, PutUnknownError
from replicator.log.files import Files, OsFiles
from replicator.log.names import MARKER
from replicator.units import MIB

TEMPORARY = "temporary"
_KNOWN_FOLDERS_MAX = 4096  # folders known to be durable; beyond it they are asked again
_WRITE_PARTS_MAX = 512  # below every system's IOV_MAX
_WRITEBACK_BYTES = 8 * MIB  # the disk begins so early, while a segment still grows: its fsync then waits for little
_READ_BYTES = 256 * MIB  # one read call's share: a segment comes without being joined


def _typed(path: str, error: OSError) -> ReplicatorError:
    """What an error of the operating system means to the log."""
    reason = f"log directory: {path}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NoSpaceError(reason, mend="make room on the log's file system, or trim the log")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ForbiddenError(reason)
    return UnavailableError(reason)


@contextmanager
def _typed_errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _typed(path, error) from error


class DirectoryStore:
    """An ObjectStore whose objects are files below `root`."""

    poll_s = 0.05  # a look costs one stat

    def __init__(self, root: Path, files: Files | None = None) -> None:
        self._root = str(root)
        self._files = files or OsFiles()
        self._durable_folders: set[str] = set()

    @property
    def name(self) -> str:
        """How messages name it."""
        return self._root

    def path(self, name: str) -> str:
        """The file of the object `name`."""
        return f"{self._root}/{name}"

    def create(self, name: str) -> DirectorySink:
        """A sink for the object `name` (steps 1 and following)."""
        self.make_folders_of(f"{TEMPORARY}/")
        return DirectorySink(self, self._files, name)

    def put(self, name: str, data: Buffer) -> None:
        """Write or replace `name`, durably."""
        sink = self.create(name)
        try:
            sink.write([data])
            sink.replace()
        finally:
            sink.abort()

    def put_if_absent(self, name: str, data: Buffer) -> bool:
        """`data` as `name`, if the name is free."""
        sink = self.create(name)
        try:
            sink.write([data])
            return sink.commit()
        finally:
            sink.abort()

    def get(self, name: str, limit_bytes: int) -> bytes | None:
        """The whole object, bounded; one that is replaced meanwhile is the old one or the new one."""
        size = self.size(name)
        if size is None:
            return None
        data = self.get_range(name, 0, size + 1) if size <= limit_bytes else None
        if data is not None and size < len(data):  # a longer one came between; its length is read with it
            data = self.get_range(name, 0, limit_bytes + 1)
            size = len(data) if data is not None else 0
        if size > limit_bytes:
            raise FormatError(self.path(name), f"at most {limit_bytes} bytes", f"{size} bytes")
        return data

    def get_range(self, name: str, offset_bytes: int, length_bytes: int) -> bytes | None:
        """A part of the object, shorter at its end."""
        path = self.path(name)
        with _typed_errors(path):
            try:
                descriptor = self._files.open(path, os.O_RDONLY)
            except FileNotFoundError:
                return None
            try:
                return self._read(descriptor, offset_bytes, length_bytes)
            finally:
                self._files.close(descriptor)

    def _read(self, descriptor: int, offset_bytes: int, length_bytes: int) -> bytes:
        parts = []
        while length_bytes:
            part = self._files.pread(descriptor, min(length_bytes, _READ_BYTES), offset_bytes)
            if not part:
                break
            parts.append(part)
            offset_bytes += len(part)
            length_bytes -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def size(self, name: str) -> int | None:
        """The object's length, or None."""
        path = self.path(name)
        with _typed_errors(path):
            try:
                return self._files.path_size(path)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def children(self, prefix: str) -> list[str]:
        """The names right below `prefix`."""
        path = self.path(prefix) if prefix else self._root
        with _typed_errors(path):
            try:
                return self._files.listdir(path)
            except (FileNotFoundError, NotADirectoryError):
                return []

    def delete(self, name: str) -> None:
        """Remove the object, if it is there."""
        path = self.path(name)
        with _typed_errors(path), suppress(FileNotFoundError):
            self._files.unlink(path)

    def drop_folder(self, prefix: str) -> None:
        """Remove a folder that is empty; one that isn't stays."""
        self._durable_folders.discard(prefix)
        with suppress(OSError):
            self._files.rmdir(self.path(prefix))

    def settle(self, name: str) -> None:
        """Sync every folder from the root down to the object's, and so the name itself."""
        folders = name.split("/")[:-1]
        for depth in range(len(folders) + 1):
            self.sync_folder("/".join(folders[:depth]))

    def settle_root(self) -> None:
        """Sync the folder that the root stands in."""
        self._sync_path(str(Path(self._root).resolve().parent))

    def sweep(self, prefix: str) -> None:
        """Remove the strays of objects that begin with `prefix`."""
        stem = prefix.replace("/", "~")
        for stray in self.children(TEMPORARY):
            if stray.startswith(stem):
                self.delete(f"{TEMPORARY}/{stray}")

    @contextmanager
    def writing(self, path: str) -> Iterator[None]:
        """Typed errors; where a folder on the way to `path` is gone, what is known of folders is doubted."""
        try:
            yield
        except FileNotFoundError as error:
            self.doubt_folders()
            raise _typed(path, error) from error
        except OSError as error:
            raise _typed(path, error) from error

    def doubt_folders(self) -> None:
        """A folder that was known to stand is gone: make sure of each again, if this still is the log."""
        with suppress(ReplicatorError):
            if self.size(MARKER) is not None:
                self._durable_folders.clear()

    def temporary_path(self, name: str) -> str:
        """Where the object `name` stands while it has no name."""
        return self.path(f"{TEMPORARY}/{name.replace('/', '~')}.{self._files.token()}")

    def sync_folder(self, folder: str) -> None:
        """fsync the folder (a read-only or special file system that can't is taken as it is)."""
        self._sync_path(self.path(folder) if folder else self._root)

    def _sync_path(self, path: str) -> None:
        with _typed_errors(path):
            descriptor = self._files.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self._files.fsync(descriptor)
            except OSError as error:
                if error.errno not in (errno.EROFS, errno.EINVAL):
                    raise
            finally:
                self._files.close(descriptor)

    def make_folders_of(self, name: str) -> None:
        """Steps 4 and 5 for the object `name`."""
        folders = name.split("/")[:-1]
        for depth in range(1, len(folders) + 1):
            folder = "/".join(folders[:depth])
            if folder in self._durable_folders:
                continue
            with self.writing(self.path(folder)), suppress(FileExistsError):
                self._files.mkdir(self.path(folder))
            self.sync_folder("/".join(folders[: depth - 1]))
            if len(self._durable_folders) >= _KNOWN_FOLDERS_MAX:
                self._durable_folders.clear()
            self._durable_folders.add(folder)


class DirectorySink:
    """A file on its way to its name (the table above)."""

    def __init__(self, store: DirectoryStore, files: Files, name: str) -> None:
        self._store = store
        self._files = files
        self._name = name
        self._temporary = store.temporary_path(name)
        with store.writing(self._temporary):
            self._descriptor = files.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        self._written_bytes = self._started_bytes = 0

    def write(self, parts: list[Buffer]) -> None:
        """Add `parts` (step 2)."""
        assert self._descriptor >= 0, "the sink is spent"
        with _typed_errors(self._temporary):
            left = [memoryview(part) for part in parts if len(part)]
            while left:
                wrote = self._files.writev(self._descriptor, list(left[:_WRITE_PARTS_MAX]))
                self._written_bytes += wrote
                left = _after(left, wrote)
        waiting = self._written_bytes - self._started_bytes
        if waiting >= _WRITEBACK_BYTES:
            self._files.start_writeback(self._descriptor, self._started_bytes, waiting)
            self._started_bytes = self._written_bytes

    def commit(self) -> bool:
        """Steps 3 to 8."""
        self._finish()
        path = self._store.path(self._name)
        try:
            self._files.link(self._temporary, path)
        except FileExistsError:
            self.abort()
            return False
        except FileNotFoundError as error:  # swept by the next owner: this link didn't give the name
            if self._store.size(self._name) is not None:
                return False
            self._store.doubt_folders()
            raise _typed(self._temporary, error) from error
        except OSError as error:
            raise PutUnknownError(f"log directory: {path}: {error.strerror or error}") from error
        self._sync_name(path)
        self.abort()
        return True

    def replace(self) -> None:
        """Steps 3 to 5, and a rename over the name."""
        self._finish()
        path = self._store.path(self._name)
        with self._store.writing(path):
            self._files.rename(self._temporary, path)
        self._temporary = ""
        self._sync_name(path)

    def abort(self) -> None:
        """Close and remove the temporary file; what can't be removed is left to a sweep."""
        with suppress(OSError):
            self._close()
        if self._temporary:
            with suppress(OSError):
                self._files.unlink(self._temporary)
            self._temporary = ""

    def _finish(self) -> None:
        """Steps 3 to 5."""
        assert self._descriptor >= 0, "the sink is spent"
        with _typed_errors(self._temporary):
            self._files.fsync(self._descriptor)
            self._close()
        self._store.make_folders_of(self._name)

    def _close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            self._files.close(descriptor)

    def _sync_name(self, path: str) -> None:
        """Step 7."""
        try:
            self._store.sync_folder(self._name.rpartition("/")[0])
        except ReplicatorError as error:
            raise PutUnknownError(f"{path} may stand: {error.message}") from error


def _after(parts: list[memoryview], written_bytes: int) -> list[memoryview]:
    """What is left of `parts` once `written_bytes` of them were written."""
    for i, part in enumerate(parts):
        if written_bytes < len(part):
            return [part[written_bytes:], *parts[i + 1 :]]
        written_bytes -= len(part)
    return []
