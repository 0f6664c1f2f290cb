"""Where a server listens: `unix:PATH` or `tcp:HOST:PORT`, parsed, bound and connected to.

Used by exporter/listener and by whoever talks to a socket beside a pool. A socket's address has 107 bytes; a longer
path is reached through a descriptor of its folder, `/proc/self/fd/N/NAME`.

Binding a Unix socket, and what is there if the process dies at that line:

    line                            at PATH
    look who listens                what was there: nothing, or a dead process's socket
    bind `.NAME.PID`, set its mode  the same, and a socket file beside it that nobody listens on
    listen, rename to PATH          our socket; whoever connects is kept waiting until accepted

Invariants
  A1  A socket that a living process listens on is never replaced; one that a dead process left is.
  A2  Nobody can connect before the file has its owner and mode: 0660 with the group, 0600 without one.
"""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from replicator.errors import ConflictError, ReplicatorError, SocketError, UsageError
from replicator.nbd.protocol import DEFAULT_PORT

SOCKET_GROUP = "replicator"
_LONGEST_ADDRESS = 107  # bytes of sun_path, without its NUL
_BACKLOG = 128  # connections that the kernel keeps until they are accepted


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A socket in the file system."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host and port; port 0 lets the kernel choose one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"


Address: TypeAlias = UnixAddress | TcpAddress


def parse_address(text: str) -> Address:
    """The address that `text` names; UsageError for anything else."""
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest and "\0" not in rest:
        return UnixAddress(Path(rest))
    if kind == "tcp" and rest:
        return _parse_tcp(text, rest)
    raise UsageError(f"{text!r} is not an address", mend="write it like unix:PATH or tcp:HOST:PORT")


def _parse_tcp(text: str, rest: str) -> TcpAddress:
    host, _, port = rest.rpartition(":")
    if rest.endswith("]") or not host:
        host, port = rest, str(DEFAULT_PORT)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise UsageError(f"{text!r} is not an address", mend="write an IPv6 address in brackets: tcp:[::1]:10809")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise UsageError(f"{text!r} is not an address", mend="write it like tcp:HOST:PORT")
    return TcpAddress(host, int(port))


def check_tls(files: Mapping[str, str]) -> None:
    """UsageError unless these are what a listener's TLS takes: nothing, or a certificate with its key and what else."""
    unknown = sorted(files.keys() - {"certificate", "key", "ca", "required"})
    if unknown:
        raise UsageError(f"TLS takes certificate, key, ca and required, not {', '.join(unknown)}")
    missing = [name for name in ("certificate", "key") if name not in files]
    if files and missing:
        raise UsageError(f"TLS needs a {' and a '.join(missing)}", mend="--tls-certificate FILE --tls-key FILE")


def bind(address: Address) -> tuple[socket.socket, Address]:
    """A listening socket, and the address that it has; ConflictError when somebody else listens there."""
    if isinstance(address, UnixAddress):
        return _bind_unix(address.path), address
    try:
        listener = socket.create_server(
            (address.host, address.port),
            family=socket.AF_INET6 if ":" in address.host else socket.AF_INET,
            backlog=_BACKLOG,
        )
    except OSError as error:
        raise _refusal(address, error) from error
    return listener, TcpAddress(address.host, listener.getsockname()[1])


def connect_unix(path: Path) -> socket.socket:
    """A socket connected to the one at `path`; OSError as the kernel gives it."""
    client = socket.socket(socket.AF_UNIX)
    try:
        with _short_path(path) as short:
            client.connect(short)
    except BaseException:
        client.close()
        raise
    return client


def unlink_own(path: Path, inode: int) -> None:
    """Remove the socket file at `path` if it is still the one with `inode`."""
    with contextlib.suppress(OSError):
        if path.lstat().st_ino == inode:
            path.unlink()


def _bind_unix(path: Path) -> socket.socket:
    _refuse_living(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    listener = socket.socket(socket.AF_UNIX)
    try:
        beside.unlink(missing_ok=True)
        with _short_path(beside) as short:
            listener.bind(short)
        _set_owner(beside)
        listener.listen(_BACKLOG)
        beside.rename(path)
    except BaseException as error:
        listener.close()
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _refusal(UnixAddress(path), error) from error
        raise
    return listener


def _refuse_living(path: Path) -> None:
    """ConflictError unless `path` is free, or a socket that nobody listens on (A1)."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConflictError(f"{path} is there already, and isn't a socket", mend="name another path, or move it away")
    try:
        connect_unix(path).close()
    except (ConnectionRefusedError, FileNotFoundError):
        return
    except OSError as error:
        raise _refusal(UnixAddress(path), error) from error
    raise ConflictError(f"another process listens on {path}", mend="stop it, or name another path")


def _set_owner(path: Path) -> None:
    """0660 with the group where there is one that we may give it to, else 0600 (A2)."""
    mode = 0o600
    with contextlib.suppress(KeyError, PermissionError):
        os.chown(path, -1, grp.getgrnam(SOCKET_GROUP).gr_gid)
        mode = 0o660
    path.chmod(mode)


@contextlib.contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """`path` itself, or a name for it that fits into a socket's address."""
    if len(os.fsencode(path)) <= _LONGEST_ADDRESS:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = f"/proc/self/fd/{folder}/{path.name}"
        if len(os.fsencode(short)) > _LONGEST_ADDRESS:
            raise UsageError(f"{path.name!r} is too long for a socket's name", mend="name a shorter one")
        yield short
    finally:
        os.close(folder)


def _refusal(address: Address, error: OSError) -> ReplicatorError:
    reason = error.strerror or str(error)
    if error.errno in (98, 11):  # EADDRINUSE; EAGAIN: its backlog is full, so it lives
        return ConflictError(f"another process listens on {address}", mend="stop it, or name another address")
    return SocketError(f"can't listen on {address}: {reason}", mend="name an address that this user may listen on")
