"""An open connection to an NBD server: socket, handshake, TLS. What the transmission phase begins with.

Stands between nbd/client, which knows what to say, and nbd_pipeline, which talks on. Certificates come from the
folder that the URI names (ca-cert.pem, client-cert.pem, client-key.pem), else the system's trusted ones count; a
Unix socket's server is called "localhost" unless the URI says otherwise. TLS 1.2 is the least.

Failures: UnavailableError for a server that isn't there, doesn't answer in time, or hangs up; NotFoundError for an
unknown export; NbdRefusedError; NbdFormatError; ReplicatorError for certificates that don't convince.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from replicator.errors import ReplicatorError, UnavailableError, UsageError
from replicator.nbd import protocol as p
from replicator.nbd.client import ClientEvent, ClientHandshake, ClientSession, Listed, Ready, Wish
from replicator.nbd.handshake import Send, StartTls
from replicator.nbd.options import pack_option
from replicator.nbd.uri import NbdUri

TIMEOUT_S = 30.0
"""For each answer of a server: as long as a disk may take that is being recovered, no longer."""

_SOCKET_PATH_BYTES = 107
_RECEIVE_BYTES = 65536


@dataclass(frozen=True, slots=True)
class NbdConnection:
    """A socket past its handshake, and what was agreed on; whoever has it closes the socket."""

    uri: NbdUri
    socket: socket.socket
    session: ClientSession


def connect(
    uri: NbdUri,
    *,
    contexts: tuple[str, ...] = (p.BASE_ALLOCATION,),
    structured: bool = True,
    tls: ssl.SSLContext | None = None,
    timeout_s: float = TIMEOUT_S,
) -> NbdConnection:
    """Open the export that `uri` names; `tls` replaces the settings that follow from the URI."""
    wish = Wish(uri.export, tls=uri.tls, structured=structured, contexts=contexts)
    with contextlib.ExitStack() as undo:
        sock, last = _shake_hands(uri, wish, tls, timeout_s, undo)
        assert isinstance(last, Ready)
        undo.pop_all()
        return NbdConnection(uri, sock, last.session)


def list_exports(
    uri: NbdUri, *, tls: ssl.SSLContext | None = None, timeout_s: float = TIMEOUT_S
) -> tuple[tuple[str, str], ...]:
    """The exports of the server as (name, description); the one that `uri` names doesn't matter."""
    with contextlib.ExitStack() as undo:
        _, last = _shake_hands(uri, Wish(tls=uri.tls, listing=True), tls, timeout_s, undo)
        assert isinstance(last, Listed)
        return last.exports


def client_tls(folder: Path | None = None) -> ssl.SSLContext:
    """TLS settings from a folder of PEM files, as GnuTLS's users name them; without one, the system's trust."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if folder is None:
        context.load_default_certs()
        return context
    try:
        context.load_verify_locations(folder / "ca-cert.pem")
        if (folder / "client-cert.pem").exists():
            context.load_cert_chain(folder / "client-cert.pem", folder / "client-key.pem")
    except OSError as error:
        mend = "put ca-cert.pem, and for a client certificate client-cert.pem and client-key.pem, there"
        raise UsageError(f"no certificates from {folder}: {error}", mend=mend) from error
    return context


def _shake_hands(
    uri: NbdUri, wish: Wish, tls: ssl.SSLContext | None, timeout_s: float, undo: contextlib.ExitStack
) -> tuple[socket.socket, Ready | Listed]:
    """Dial and negotiate; the socket is closed by `undo` unless the caller takes it."""
    if uri.tls and tls is None:
        tls = client_tls(None if uri.tls_certificates is None else Path(uri.tls_certificates))
    try:
        sock = _dial(uri, timeout_s)
        undo.push(lambda *_: sock.close())
        handshake = ClientHandshake(wish)
        while True:
            for event in _hear(uri, sock, handshake):
                if isinstance(event, StartTls):
                    assert tls is not None
                    sock = tls.wrap_socket(sock, server_hostname=uri.tls_hostname or uri.host or "localhost")
                    _send(sock, handshake.tls_started())
                elif isinstance(event, Send):
                    sock.sendall(event.data)
                else:
                    return sock, event
    except ssl.SSLError as error:
        raise ReplicatorError(f"TLS with {uri} failed: {error}", mend="check both sides' certificates") from error
    except OSError as error:
        raise UnavailableError(f"{uri}: {error.strerror or error}") from error


def _hear(uri: NbdUri, sock: socket.socket, handshake: ClientHandshake) -> list[ClientEvent]:
    data = sock.recv(_RECEIVE_BYTES)
    if not data:
        raise UnavailableError(f"{uri}: the server closed the connection during the handshake")
    try:
        return handshake.receive(data)
    except ReplicatorError:
        with contextlib.suppress(OSError):
            sock.sendall(pack_option(p.OPT_ABORT))  # the soft disconnect that the specification wants of a client
        raise


def _send(sock: socket.socket, events: Iterable[ClientEvent]) -> None:
    for event in events:
        assert isinstance(event, Send)
        sock.sendall(event.data)


def _dial(uri: NbdUri, timeout_s: float) -> socket.socket:
    if uri.socket_path is not None:
        return _dial_unix(uri.socket_path, timeout_s)
    assert uri.host is not None
    sock = socket.create_connection((uri.host, uri.port), timeout_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return sock


def _dial_unix(path: str, timeout_s: float) -> socket.socket:
    """Connect to a socket file; a path longer than an address takes goes by its folder's descriptor."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(timeout_s)
        if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES:
            sock.connect(path)
            return sock
        folder = os.open(Path(path).parent, os.O_PATH | os.O_DIRECTORY)
        try:
            sock.connect(f"/proc/self/fd/{folder}/{Path(path).name}")
        finally:
            os.close(folder)
    except BaseException:
        sock.close()
        raise
    return sock
