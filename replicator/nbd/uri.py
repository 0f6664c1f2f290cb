"""Where an NBD server is, as a value: the URIs of the NBD project (doc/uri.md), as libnbd and qemu take them.

    nbd://HOST[:PORT]/EXPORT                     TCP, port 10809
    nbds://HOST[:PORT]/EXPORT                    the same, TLS required
    nbd+unix:///EXPORT?socket=PATH               Unix socket
    nbds+unix:///EXPORT?socket=PATH              the same, TLS required

Query parameters: `socket` (Unix only, required there), `tls-certificates` (a directory with ca-cert.pem,
client-cert.pem, client-key.pem, as GnuTLS and libnbd know it), `tls-hostname` (the name to verify).
EXPORT is percent-decoded; one slash before it belongs to the URI, more belong to the name; absent is
the default export, "".

Invariants
  U1  Exactly one of host and socket_path is set.
  U2  NbdUri.parse(str(uri)) == uri, but for the case of a host's letters, which doesn't matter.
  U3  TLS parameters stand only where TLS is required.

Absent: vsock, pre-shared keys (`tls-psk-file`, a user name), switching verification off. Anything that isn't
such a URI is a UsageError; unknown parameters too, since a mistyped `socket` must not go unnoticed.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from replicator.errors import UsageError
from replicator.nbd.protocol import DEFAULT_PORT, MAX_STRING_BYTES

_FORMS = "write it like nbd://HOST:PORT/EXPORT, nbds://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH"
_SCHEMES = {"nbd": (False, False), "nbds": (True, False), "nbd+unix": (False, True), "nbds+unix": (True, True)}
_PARAMETERS = frozenset({"socket", "tls-certificates", "tls-hostname"})


@dataclass(frozen=True, slots=True)
class NbdUri:
    """One server and one of its exports."""

    export: str = ""
    host: str | None = None
    port: int = DEFAULT_PORT
    socket_path: str | None = None
    tls: bool = False
    tls_certificates: str | None = None
    tls_hostname: str | None = None

    def __post_init__(self) -> None:
        if (self.host is None) == (self.socket_path is None):  # U1
            raise UsageError("an NBD URI names either a host or a socket", mend=_FORMS)
        if self.host == "" or self.socket_path == "":
            raise UsageError("an NBD URI needs the name of a host or the path of a socket", mend=_FORMS)
        if not 0 < self.port < 65536:
            raise UsageError(f"{self.port} is not a TCP port", mend=_FORMS)
        for part in (self.export, self.host, self.socket_path, self.tls_certificates, self.tls_hostname):
            if part is not None and any("\ud800" <= letter <= "\udfff" for letter in part):
                raise UsageError("an NBD URI is UTF-8 throughout", mend="write other bytes as % escapes of UTF-8")
        if "\0" in self.export or len(self.export.encode()) > MAX_STRING_BYTES:
            raise UsageError(f"an NBD export's name has no NUL and at most {MAX_STRING_BYTES} bytes")
        if not self.tls and (self.tls_certificates is not None or self.tls_hostname is not None):  # U3
            raise UsageError("TLS parameters in an NBD URI without TLS", mend="write nbds:// or nbds+unix://")

    @classmethod
    def parse(cls, text: str) -> NbdUri:
        """The value of `text`; UsageError for anything that isn't an NBD URI."""
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise UsageError(f"{text!r} is not an NBD URI: {error}", mend=_FORMS) from error
        if parts.scheme not in _SCHEMES:
            raise UsageError(f"{text!r} is not an NBD URI", mend=_FORMS)
        if parts.username is not None or parts.fragment:
            raise UsageError(f"{text!r}: an NBD URI here has neither a user nor a fragment", mend=_FORMS)
        tls, unix = _SCHEMES[parts.scheme]
        query = _parameters(text, parts)
        if unix == (parts.netloc != "") or unix != ("socket" in query):
            raise UsageError(f"{text!r}: a Unix socket is named by ?socket=PATH, a host before the export", mend=_FORMS)
        return cls(
            export=_decoded(text, parts.path.removeprefix("/")),
            host=None if unix else _decoded(text, parts.hostname or ""),
            port=DEFAULT_PORT if port is None else port,
            socket_path=query.get("socket"),
            tls=tls,
            tls_certificates=query.get("tls-certificates"),
            tls_hostname=query.get("tls-hostname"),
        )

    def __str__(self) -> str:
        scheme = ("nbds" if self.tls else "nbd") + ("" if self.socket_path is None else "+unix")
        query = {
            "socket": self.socket_path,
            "tls-certificates": self.tls_certificates,
            "tls-hostname": self.tls_hostname,
        }
        tail = urlencode({key: value for key, value in query.items() if value is not None}, quote_via=quote, safe="/")
        place = "" if self.host is None else self._place()
        return f"{scheme}://{place}/{quote(self.export, safe='/')}" + (f"?{tail}" if tail else "")

    def _place(self) -> str:
        assert self.host is not None
        host = f"[{self.host.replace('%', '%25')}]" if ":" in self.host else quote(self.host, safe="")
        return host if self.port == DEFAULT_PORT else f"{host}:{self.port}"


def _parameters(text: str, parts: SplitResult) -> dict[str, str]:
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query), errors="strict")
    except ValueError as error:
        raise UsageError(f"{text!r}: the query isn't made of NAME=VALUE: {error}", mend=_FORMS) from error
    query = dict(pairs)
    if len(query) != len(pairs):
        raise UsageError(f"{text!r} names a parameter twice", mend=_FORMS)
    if unknown := sorted(query.keys() - _PARAMETERS):
        known = ", ".join(sorted(_PARAMETERS))
        raise UsageError(f"{text!r}: unknown parameter {', '.join(unknown)}; there are {known}", mend=_FORMS)
    return query


def _decoded(text: str, part: str) -> str:
    try:
        return unquote(part, errors="strict")
    except UnicodeDecodeError as error:
        raise UsageError(f"{text!r}: what its % escapes spell isn't UTF-8", mend=_FORMS) from error
