"""Whether a target may be written by a restore: what stands there, and every reason against it. Nothing is changed.

Asked by restore before anything is written, again before a file is replaced, and by its dry run. What the kernel says
of mounts comes in as `Machine`.

    refused                     how it is known
    mounted                     /proc/self/mountinfo: the device, a partition of it, or something on the file
    held by another program     a block device opens with O_EXCL and has no holders (dm, md, ...); a file is free of
                                locks (flock, POSIX, OFD), loop devices and swap, and nobody has it open to write
    part of the source          the pool's or log's own folder, or the pool's devices
    a new file below /dev       a device's name that was mistyped
    smaller than the volume     a device; a file that isn't absent or empty (unless it is overwritten)
    not empty (unless it is     a byte that isn't zero: of a file all data is read, of a device SAMPLES spread pieces
    overwritten)                with the first and the last MiB, or all of it up to SAMPLED_WHOLE_BYTES; where an
                                interrupted restore left off, a byte that isn't the point's either

A device's samples can miss a byte; what a restore leaves out there it zeroes explicitly, so only what was there is at
risk, never what is restored.

Failures: UsageError (no kind of target), NotFoundError (no such folder).
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from shlex import quote

import numpy as np

from replicator.errors import ConflictError, DeviceError, NotFoundError, UsageError
from replicator.units import KIB, MIB, format_size

SAMPLES = 1024
SAMPLE_BYTES = 64 * KIB
SAMPLED_WHOLE_BYTES = 256 * MIB
_READ_BYTES = MIB
Read = Callable[[int, int], bytes]
"""(length_bytes, offset_bytes) -> what is expected there."""

_OF_CONTENT = ("it is not empty", "the file is smaller")
_OCTAL = re.compile(r"\\([0-7]{3})")


class TargetKind(StrEnum):
    """What stands at the target."""

    ABSENT = "absent"
    FILE = "file"
    DEVICE = "device"
    STREAM = "stream"


@dataclass(frozen=True, slots=True)
class Machine:
    """What the kernel tells of mounts, swap and processes."""

    mountinfo: str
    swaps: str
    devices: Path
    processes: Path

    @classmethod
    def here(cls) -> Machine:
        """This machine, now."""
        return cls(
            _text(Path("/proc/self/mountinfo")), _text(Path("/proc/swaps")), Path("/sys/dev/block"), Path("/proc")
        )


@dataclass(frozen=True, slots=True)
class Target:
    """What stands at the target, and why it may not be written; `path` is free of symlinks."""

    path: Path
    kind: TargetKind
    size_bytes: int
    refusals: tuple[str, ...] = ()

    def require_allowed(self) -> None:
        """ConflictError unless nothing speaks against it."""
        if self.refusals:
            mend = "name another target, or add --overwrite" if self.is_only_full else "name another target"
            raise ConflictError(f"{self.path} can't be restored to: {'; '.join(self.refusals)}", mend=mend)

    @property
    def is_only_full(self) -> bool:
        """Whether it is refused, and only for what it holds."""
        return bool(self.refusals) and all(each.startswith(_OF_CONTENT) for each in self.refusals)


def inspect_target(
    text: str,
    size_bytes: int,
    *,
    overwrite: bool,
    left: Read | None = None,
    own: tuple[Path, ...] = (),
    machine: Machine | None = None,
) -> Target:
    """What stands at `text`, and all that speaks against restoring `size_bytes` there; see the module's table.

    `own` are the source's folders; `left` reads what an interrupted restore of the same point may have left on
    that device, and is None where there was none.
    """
    path = Path(text).resolve()
    machine = machine or Machine.here()
    if not path.parent.is_dir():
        raise NotFoundError(f"there is no folder {path.parent}", mend=f"mkdir -p {quote(str(path.parent))}")
    try:
        status = path.stat()
    except FileNotFoundError:
        return Target(path, TargetKind.ABSENT, 0, (*_own_reasons(path, own), *_mistyped_device(path)))
    if stat.S_ISBLK(status.st_mode):
        size = _device_size(path)
        reasons = [*_own_reasons(path, own), *_device_reasons(path, status.st_rdev, machine)]
        if size < size_bytes:
            reasons.append(f"it has {format_size(size)}, the volume {format_size(size_bytes)}")
        if not reasons and not overwrite and (at := first_byte(path, size, whole=False, left=left)) is not None:
            reasons.append(_full(at) if left is None else f"{_full(at)}, nor what an interrupted restore wrote")
        return Target(path, TargetKind.DEVICE, size, tuple(reasons))
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{text} is neither a file nor a block device", mend="name one of these, or `-` for stdout")
    reasons = [*_own_reasons(path, own), *_file_reasons(path, status, machine)]
    if not overwrite and not reasons:
        if 0 < status.st_size < size_bytes:
            reasons.append(f"the file is smaller ({status.st_size} B) than the volume ({size_bytes} B)")
        if (at := first_byte(path, status.st_size, whole=True)) is not None:
            reasons.append(_full(at))
    return Target(path, TargetKind.FILE, status.st_size, tuple(reasons))


def _mistyped_device(path: Path) -> Iterator[str]:
    """A new file among the devices is a device's name that was mistyped, and would fill the machine's memory."""
    if path.is_relative_to("/dev") and not path.is_relative_to("/dev/shm"):
        yield f"there is no device {path}"


def _full(at: int) -> str:
    return f"it is not empty: byte {at} isn't zero"


def _own_reasons(path: Path, own: tuple[Path, ...]) -> Iterator[str]:
    """A restore never writes into what it reads from."""
    for place in own:
        folder = place.resolve()
        if folder in path.parents or folder == path:
            yield f"it lies in {place}, which is restored from"
        for name in ("metadata", "metadata.mirror", "data"):
            with suppress(OSError):
                if path.samefile(folder / name):
                    yield f"it is the {name} of {place}, which is restored from"


# -- devices -----------------------------------------------------------------------------------------------------------


def _device_reasons(path: Path, rdev: int, machine: Machine) -> Iterator[str]:
    family = [rdev, *_partitions(rdev, machine)]
    numbers = {f"{os.major(each)}:{os.minor(each)}" for each in family}
    for number, source, place in _mounts(machine):
        if number in numbers or _is_device(source, family):
            yield f"it is mounted at {place}"
    for line in machine.swaps.splitlines()[1:]:
        if line.split() and _is_device(line.split()[0], family):
            yield "it is used as swap"
    for each in family:
        holders = machine.devices / f"{os.major(each)}:{os.minor(each)}" / "holders"
        with suppress(OSError):
            yield from (f"it is held by {holder}" for holder in sorted(each.name for each in holders.iterdir()))
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        yield f"it is held by another program ({error.strerror})"


def _partitions(rdev: int, machine: Machine) -> Iterator[int]:
    folder = machine.devices / f"{os.major(rdev)}:{os.minor(rdev)}"
    with suppress(OSError):
        for entry in sorted(folder.iterdir()):
            if (entry / "partition").exists():
                major, _, minor = _text(entry / "dev").strip().partition(":")
                if major.isdigit() and minor.isdigit():
                    yield os.makedev(int(major), int(minor))


def _mounts(machine: Machine) -> Iterator[tuple[str, str, str]]:
    """(MAJOR:MINOR, source, mount point) of each mount."""
    for line in machine.mountinfo.splitlines():
        fields = line.split()
        if len(fields) >= 10 and "-" in fields:
            source = fields[fields.index("-") + 2] if fields.index("-") + 2 < len(fields) else ""
            yield fields[2], _unescaped(source), _unescaped(fields[4])


def _unescaped(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def _is_device(source: str, family: list[int]) -> bool:
    if not source.startswith("/"):
        return False
    with suppress(OSError):
        status = Path(source).stat()
        return stat.S_ISBLK(status.st_mode) and status.st_rdev in family
    return False


def _device_size(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DeviceError(f"opening {path}", 0, error.errno or 5, error.strerror or str(error)) from error
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)


# -- files -------------------------------------------------------------------------------------------------------------


def _file_reasons(path: Path, status: os.stat_result, machine: Machine) -> Iterator[str]:
    for _, source, place in _mounts(machine):
        if place == str(path):
            yield f"{source or 'something'} is mounted on it"
    for line in machine.swaps.splitlines()[1:]:
        if line.split() and _unescaped(line.split()[0]) == str(path):
            yield "it is used as swap"
    with suppress(OSError):
        for entry in sorted(machine.devices.iterdir()):
            if _text(entry / "loop" / "backing_file").strip() == str(path):
                yield f"it is held by the loop device {entry.resolve().name}"
    if lock := _lock_reason(path):
        yield lock
    for pid in _writers(status, machine):
        yield f"process {pid} has it open for writing"


def _lock_reason(path: Path) -> str:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"it can't be opened for writing ({error.strerror})"
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return "it is locked by another program"
    finally:
        os.close(fd)
    return ""


def _writers(status: os.stat_result, machine: Machine) -> Iterator[int]:
    """Other processes that have the file open for writing, as far as we may see."""
    with suppress(OSError):
        for process in machine.processes.iterdir():
            if process.name.isdigit() and int(process.name) != os.getpid() and _writes(process, status):
                yield int(process.name)


def _writes(process: Path, status: os.stat_result) -> bool:
    with suppress(OSError):
        for fd in (process / "fd").iterdir():
            with suppress(OSError):
                found = fd.stat()
                if (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino):
                    flags = re.search(r"flags:\s*(\d+)", _text(process / "fdinfo" / fd.name))
                    if flags and int(flags[1], 8) & os.O_ACCMODE:
                        return True
    return False


def first_byte(path: Path, size_bytes: int, *, whole: bool, left: Read | None = None) -> int | None:
    """Where the first byte that isn't zero (nor what was `left` there) was found; of a device only samples are read
    unless `whole`.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        spans = _extents(fd, size_bytes) if whole or size_bytes <= SAMPLED_WHOLE_BYTES else _samples(size_bytes)
        for begin, end in spans:
            for at in range(begin, end, _READ_BYTES):
                data = os.pread(fd, min(_READ_BYTES, end - at), at)
                if data.count(0) != len(data) and (found := _first_foreign(data, left, at)) is not None:
                    return at + found
    finally:
        os.close(fd)
    return None


def _first_foreign(data: bytes, left: Read | None, at: int) -> int | None:
    """The first byte of `data`, which was read at `at`, that is neither zero nor what was left there."""
    found = np.frombuffer(data, dtype=np.uint8)
    foreign = found != 0
    if left is not None:
        foreign &= found != np.frombuffer(left(len(data), at), dtype=np.uint8)
    places = np.flatnonzero(foreign)
    return int(places[0]) if len(places) else None


def _extents(fd: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Where there is data; all of it where the file system doesn't say."""
    at = 0
    while at < size_bytes:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
            end = os.lseek(fd, begin, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != 6:  # ENXIO: nothing but a hole to the end
                yield at, size_bytes
            return
        yield begin, min(end, size_bytes)
        at = end


def _samples(size_bytes: int) -> Iterator[tuple[int, int]]:
    yield 0, MIB
    yield size_bytes - MIB, size_bytes
    for i in range(SAMPLES):
        begin = size_bytes * i // SAMPLES
        yield begin, min(begin + SAMPLE_BYTES, size_bytes)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
