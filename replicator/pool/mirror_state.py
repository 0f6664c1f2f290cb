"""`mirror.json` in a pool's directory: that its metadata has a mirror, and which of the two copies is lost, if one is.

Written by the pool's owner through pdata/mirror (M1), read by everybody who opens the metadata or shows it.

    field           type            meaning
    version         1
    lost            null | "first" | "second"    the copy that may lack something; `metadata` is the first
    since_ns        integer         when it was lost, in nanoseconds since 1970; 0 where none is
    why             text            the error, for people; as much of it as 1,000 bytes of JSON say
    healed_blocks   integer         metadata blocks that were bad in one copy and taken from the other, ever
    dropping        boolean         the lost copy is about to leave, and the mirror with it (pool/mirroring)

UTF-8 JSON. Written as `mirror.json.new`, synced, renamed, and the folder synced: old or new, never torn.

    dies …                    on disk
    before the rename         the old state; part of mirror.json.new, which the next one replaces
    before the folder's sync  old or new
    after it                  new

Failures: FormatError for what is none of ours, DeviceError; where it can't be written wholly, the old state stands.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path

from replicator.blockdev.file import sync_folder
from replicator.errors import DeviceError, FormatError
from replicator.pdata.mirror import MirrorState, Side

STATE = "mirror.json"
VERSION = 1
_LARGEST_BYTES = 64 * 1024  # an error's text and some numbers; more is none of ours
_WHY_BYTES = 1000  # the state is to fit into one page, which a disk gives or doesn't


def load_state(path: Path) -> MirrorState | None:
    """The state in the pool's directory `path`; None where there is no such file."""
    file = path / STATE
    try:
        with file.open("rb") as opened:
            data = opened.read(_LARGEST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _failed(file, error) from error
    return _unpacked(file, data)


def save_state(path: Path, state: MirrorState) -> None:
    """Put the state into the pool's directory; durable when it returns."""
    file, new = path / STATE, path / f"{STATE}.new"
    document = {"version": VERSION, **asdict(state), "why": _cut(state.why)}
    data = f"{json.dumps(document)}\n".encode()
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o660)
        try:
            while data:
                data = data[os.write(fd, data) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        new.replace(file)
        sync_folder(path)
    except OSError as error:
        raise _failed(file, error) from error


def stamp_of(path: Path) -> tuple[int, int, int] | None:
    """What differs once another state was saved; None where there is none."""
    try:
        found = (path / STATE).stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _failed(path / STATE, error) from error
    return found.st_ino, found.st_mtime_ns, found.st_size


def remove_state(path: Path) -> None:
    """The pool has no mirror any more; durable when it returns."""
    try:
        (path / STATE).unlink(missing_ok=True)
        sync_folder(path)
    except OSError as error:
        raise _failed(path / STATE, error) from error


def _cut(why: str) -> str:
    """As much as fits: outside of ASCII a character is six bytes of JSON, or twelve."""
    ends = accumulate(len(json.dumps(each)) - 2 for each in why[:_WHY_BYTES])
    return why[: sum(end <= _WHY_BYTES for end in ends)]


def _unpacked(file: Path, data: bytes) -> MirrorState:
    try:
        found = json.loads(data[:_LARGEST_BYTES].decode())
        version, lost, since_ns, why, healed, dropping = (
            found[name] for name in ("version", "lost", "since_ns", "why", "healed_blocks", "dropping")
        )
        sides: dict[str | None, Side | None] = {None: None, **{side.value: side for side in Side}}
        right = version == VERSION and isinstance(why, str) and isinstance(dropping, bool)
        if right and all(type(each) is int and each >= 0 for each in (since_ns, healed)):
            return MirrorState(sides[lost], since_ns, why, healed, dropping)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    mend = f"see which of metadata and metadata.mirror is good, mv the other one elsewhere, then remove {file}"
    raise FormatError(str(file), f"a mirror's state of version {VERSION}", "something else", mend=mend)


def _failed(file: Path, error: OSError) -> DeviceError:
    return DeviceError(str(file), 0, error.errno or errno.EIO, error.strerror or str(error))
