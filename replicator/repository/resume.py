"""How far an interrupted restore has come: a small file beside what is written, removed when the restore is done.

    target     written as                    its state
    FILE       .NAME.restoring beside it     .NAME.restore beside it
    DEVICE     itself                        MAJOR-MINOR.restore in /var/lib/replicator/restores, or below
                                             $XDG_STATE_HOME for who isn't root

    {"version", "volume", "timeline", "number", "digest", "size_bytes", "device", "inode", "done_bytes"}

names the point, the file (st_dev, st_ino; of a device st_rdev and 0), and up to where all of it stands, durably. JSON,
replaced as a whole: temporary file, fsync, rename, fsync of the folder.

Invariants
  R1  What lies below done_bytes was synced before the state says so.
  R2  A state of another point, another file or another size, or one that can't be read, is none.
  R3  A file named .NAME.restoring that no restore of ours made isn't written to: it is empty, or the state names it.
  R4  A number is no proof that what was written is still there: after a reboot it may be another disk's. A state whose
      target doesn't hold what the point has below done_bytes, by samples, is none.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import msgspec

from replicator.blockdev.file import sync_folder
from replicator.errors import DeviceError
from replicator.repository.point import DATA
from replicator.repository.source import OpenedPoint
from replicator.units import CHUNK_BYTES

_VERSION = 1
_LIMIT_BYTES = 64 << 10
_SYSTEM = Path("/var/lib/replicator/restores")
_SAMPLES = 16
"""Of what was written, spread over it; another disk agrees with none of them, so that a few are many."""


@dataclass(frozen=True, slots=True)
class RestoreState:
    """A restore on its way; see the module's table."""

    version: int
    volume: str
    timeline: int
    number: int
    digest: str
    size_bytes: int
    device: int
    inode: int
    done_bytes: int = 0

    def is_of(self, other: RestoreState) -> bool:
        """Whether both are of one point and one target (R2)."""
        return replace(self, done_bytes=0) == replace(other, done_bytes=0) and 0 <= self.done_bytes <= self.size_bytes

    def is_at(self, other: RestoreState) -> bool:
        """Whether both are of one target, whatever the point."""
        return (self.device, self.inode) == (other.device, other.inode)


def state_of(opened: OpenedPoint, target: Path) -> RestoreState:
    """A restore of this point to what stands at `target`, just begun."""
    status = target.stat()
    is_block = stat.S_ISBLK(status.st_mode)
    point = opened.point
    return RestoreState(
        _VERSION,
        str(opened.volume.uuid),
        point.timeline,
        point.number,
        point.digest.hex(),
        opened.disk.size_bytes,
        status.st_rdev if is_block else status.st_dev,
        0 if is_block else status.st_ino,
    )


def partial_path(target: Path) -> Path:
    """What a restore to the file `target` is written as, until it takes its name."""
    return target.with_name(f".{target.name}.restoring")


def foreign_reason(target: Path) -> str:
    """Why what stands at .NAME.restoring can't be taken for an interrupted restore's (R3); empty if it can."""
    partial = partial_path(target)
    try:
        status = partial.lstat()
    except FileNotFoundError:
        return ""
    state = read_state(state_path(target))
    is_named = state is not None and (state.device, state.inode) == (status.st_dev, status.st_ino)
    is_plain = stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid == os.geteuid()
    if is_plain and (is_named or not status.st_size):
        return ""
    return f"{partial} isn't a restore's that was interrupted: move it away"


def state_path(target: Path) -> Path:
    """Where the state of a restore to `target` (free of symlinks) is."""
    with suppress(OSError):
        status = target.stat()
        if stat.S_ISBLK(status.st_mode):
            return _device_folder() / f"{os.major(status.st_rdev)}-{os.minor(status.st_rdev)}.restore"
    return target.with_name(f".{target.name}.restore")


def _device_folder() -> Path:
    if os.geteuid() == 0:
        return _SYSTEM
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "replicator" / "restores"


def read_state(path: Path) -> RestoreState | None:
    """The state at `path`, if there is one that can be read (R2)."""
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_LIMIT_BYTES), type=RestoreState)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def still_there(opened: OpenedPoint, placed: Path, done_bytes: int) -> bool:
    """Whether what stands at `placed` holds the point's bytes below `done_bytes`, as far as samples tell (R4)."""
    try:
        fd = os.open(placed, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return all(
            os.pread(fd, length, at) == opened.disk.pread(length, at) for at, length in _witnesses(opened, done_bytes)
        )
    except OSError:
        return False
    finally:
        os.close(fd)


def _witnesses(opened: OpenedPoint, done_bytes: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of both ends, and of the first data in each of the sections: zeros prove little."""
    if done_bytes:
        yield 0, min(CHUNK_BYTES, done_bytes)
        yield max(0, done_bytes - CHUNK_BYTES), min(CHUNK_BYTES, done_bytes)
    for i in range(_SAMPLES):
        begin, end = (done_bytes // CHUNK_BYTES * j // _SAMPLES * CHUNK_BYTES for j in (i, i + 1))
        data = (run for run in opened.disk.runs(begin, end - begin) if run[2] == DATA)
        for at, length, _ in islice(data, 1):
            yield at, min(length, CHUNK_BYTES)


def write_state(path: Path, state: RestoreState) -> None:
    """Put `state`, durably."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(state))
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DeviceError(f"writing {path}", 0, error.errno or 5, error.strerror or str(error)) from error


def drop_state(path: Path) -> None:
    """The restore is done: take its state away."""
    with suppress(FileNotFoundError):
        path.unlink()
        sync_folder(path.parent)
