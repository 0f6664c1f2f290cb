"""Where the daemons of this machine are found: a small file each, in the runtime directory, made and removed by them.

Written by agent and receiver while they run, read by `replicator status`. A registration says where to ask, and nothing
else: what a daemon is doing it says itself, over its socket (pool/daemons).

    $REPLICATOR_RUNTIME_DIR                          where it is set, this one only (containers, tests)
    $XDG_RUNTIME_DIR/replicator, /run/replicator     else: written to the first that can be, read from both

    file          KIND-HASH.json       HASH of the pool's path: a restarted daemon replaces its own, so files don't grow
    content       {"version": 1, "kind", "pool", "socket", "pid", "started_ns"}

    dies …                     there is                                 what readers see
    before the rename          .KIND-HASH.PID                           nothing
    after it                   the file of a dead process               nobody answers at its socket: ignored
    at the end                 the same, or nothing                     the same

Failures: none from reading, since a file that is no registration is none; DeviceError never ends a daemon: one that
can't register runs unregistered, and says so (the function returns None).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

VERSION = 1
_SYSTEM = Path("/run/replicator")
_FILE_LIMIT_BYTES = 16 << 10  # a path, a pid and a few words: far below


@dataclass(frozen=True, slots=True)
class Registration:
    """A daemon that runs here, or did: its kind ("agent", "receiver"), its pool, and its socket's name beside it."""

    version: int
    kind: str
    pool: str
    socket: str
    pid: int
    started_ns: int


def runtime_directories() -> list[Path]:
    """Where registrations may be, in the order in which they are written to."""
    if only := os.environ.get("REPLICATOR_RUNTIME_DIR"):
        return [Path(only)]
    own = os.environ.get("XDG_RUNTIME_DIR")
    return [*([Path(own, "replicator")] if own else []), _SYSTEM]


@contextmanager
def registered(kind: str, pool: Path, socket: str) -> Iterator[Path | None]:
    """Be found by `replicator status` while the block lasts; gives the file, or None where none could be written."""
    found = Registration(VERSION, kind, str(pool.absolute()), socket, os.getpid(), time.time_ns())
    path = _write(found)
    try:
        yield path
    finally:
        if path is not None and _read(path) == found:
            with contextlib.suppress(OSError):
                path.unlink()


def registrations() -> list[Registration]:
    """All there are, of living and dead daemons, by kind and pool."""
    found = {}
    for directory in runtime_directories():
        with contextlib.suppress(OSError):
            for path in directory.glob("[!.]*.json"):
                each = _read(path)
                if each is not None:
                    found[each.kind, each.pool] = each
    return [found[key] for key in sorted(found)]


def _write(registration: Registration) -> Path | None:
    name = f"{registration.kind}-{hashlib.sha256(os.fsencode(registration.pool)).hexdigest()[:16]}.json"
    for directory in runtime_directories():
        temporary = directory / f".{name}.{os.getpid()}"
        try:
            directory.mkdir(mode=0o755, exist_ok=True)
            temporary.write_bytes(msgspec.json.encode(registration))
            temporary.rename(directory / name)
        except OSError:
            continue
        return directory / name
    return None


def _read(path: Path) -> Registration | None:
    try:
        with path.open("rb") as file:
            text = file.read(_FILE_LIMIT_BYTES)
        found = msgspec.json.decode(text, type=Registration)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return found if found.version == VERSION else None
