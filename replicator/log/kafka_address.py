"""kafka:// URLs: which brokers, which topics' prefix, how to prove who we are. Secrets stand in files.

    kafka://HOST[:PORT][,HOST[:PORT]…]/PREFIX[?OPTION=VALUE[&…]]

    option          meaning
    tls             on | off; on by itself where ca, cert or key is given
    ca              file: the authority that signed the brokers' certificates; the system's own where it is left out
    cert, key       files: our client certificate and its key; the key's file is readable by its owner alone
    sasl            scram-sha-512 (where a user is given) | scram-sha-256 | plain (with TLS only)
    user            whom to log in as
    password-file   file with that user's password alone; readable by its owner alone
    timeout         how long to wait for a broker that doesn't answer; 15s
    keep            nothing younger is trimmed, by the broker's clock; 24h
    replicas        of topics that we make; the broker's default where it is left out

PREFIX becomes part of topics' names (`kafka_names`), so it has letters, digits, `.`, `_` and `-` only. Files are named
by absolute paths, since daemons remember the URL. A URL is shown in status and messages: it holds no secret.

Failure raised: UsageError, which never repeats what may be a secret; with the mend, where there is one.
"""

from __future__ import annotations

import re
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from replicator.errors import UsageError
from replicator.units import KIB, parse_duration

DEFAULT_PORT = 9092
TIMEOUT_S = 15.0
KEEP_S = 86_400.0
_TIMEOUT_LIMITS_S = (0.5, 300.0)  # a commit takes four of it at most, and a broker allows a transaction 15 minutes
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)  # a topic's name has 249, ours add at most 49
_SECRET_BYTES_MAX = 4 * KIB
_OPTIONS = ("tls", "ca", "cert", "key", "sasl", "user", "password-file", "timeout", "keep", "replicas")
_MECHANISMS = {"scram-sha-512": "SCRAM-SHA-512", "scram-sha-256": "SCRAM-SHA-256", "plain": "PLAIN"}
_FORM = "write it like kafka://broker1:9092,broker2:9092/backup"


@dataclass(frozen=True, slots=True)
class Login:
    """Whom to log in as; the password is read from its file each time that it is needed."""

    mechanism: str
    user: str
    password_file: Path

    def password(self) -> str:
        """What the file says, without the newline at its end."""
        text = read_secret(self.password_file)
        if not text:
            raise UsageError(f"{self.password_file} holds no password")
        return text


@dataclass(frozen=True, slots=True)
class Tls:
    """Whom to trust, and what to show."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """The context for client connections; names are checked always."""
        try:
            context = ssl.create_default_context(cafile=str(self.ca) if self.ca else None)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"no certificates can be read from {self.ca}: {error}") from None
        if self.cert is not None:
            key = self.key or self.cert
            require_private(key)
            try:
                context.load_cert_chain(str(self.cert), str(key))
            except (OSError, ssl.SSLError) as error:
                raise UsageError(f"{self.cert} and {key} are no certificate and its key: {error}") from None
        return context


@dataclass(frozen=True, slots=True)
class KafkaAddress:
    """What a kafka:// URL says."""

    url: str
    brokers: tuple[tuple[str, int], ...]
    prefix: str
    tls: Tls | None = None
    login: Login | None = None
    timeout_s: float = TIMEOUT_S
    keep_s: float = KEEP_S
    replicas: int = -1

    @property
    def bootstrap(self) -> list[str]:
        """The brokers as HOST:PORT."""
        return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.brokers]


def parse_kafka_url(url: str) -> KafkaAddress:
    """The address that `url` names."""
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets that hold no address, and letters that would become others
        raise UsageError("a kafka:// URL whose hosts can't be read", mend=_FORM) from None
    if parts.scheme != "kafka" or parts.fragment:
        raise UsageError("this is no kafka:// URL", mend=_FORM)
    if "@" in parts.netloc:
        mend = "give ?user=NAME&password-file=FILE"
        raise UsageError("a kafka:// URL holds neither user nor password before its hosts", mend=mend)
    prefix = parts.path.strip("/")
    if not _PREFIX.fullmatch(prefix):
        raise UsageError(f"{prefix!r} is no prefix for topics: letters, digits, '.', '_' and '-'", mend=_FORM)
    options = _options(parts.query)
    return KafkaAddress(
        url,
        tuple(_broker(text) for text in parts.netloc.split(",")),
        prefix,
        _tls(options),
        _login(options),
        _timeout(options.get("timeout")),
        parse_duration(options["keep"]) if "keep" in options else KEEP_S,
        _replicas(options.get("replicas")),
    )


def read_secret(path: Path) -> str:
    """The text of a file that only its owner may read, without newlines at its end."""
    require_private(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from None
    if len(data) > _SECRET_BYTES_MAX:
        raise UsageError(f"{path} holds no password: it has {len(data)} bytes")
    try:
        return data.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise UsageError(f"{path} holds no password: it isn't text") from None


def require_private(path: Path) -> None:
    """UsageError unless `path` is a file that nobody but its owner may touch."""
    try:
        found = path.stat()
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{path} is no file")
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise UsageError(f"{path} may be read by others (mode {mode:04o})", mend=f"chmod 600 {path}")


def _options(query: str) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    found = dict(pairs)
    if {"password", "secret", "sasl-password"} & set(found):
        raise UsageError("a password doesn't stand in a URL", mend="put it into a file, and give password-file=FILE")
    unknown = sorted(set(found) - set(_OPTIONS))
    if unknown or len(found) != len(pairs):
        what = f"the option {unknown[0]!r} isn't known" if unknown else "an option stands twice"
        raise UsageError(f"{what} in a kafka:// URL", mend=f"there are: {', '.join(_OPTIONS)}")
    return found


def _broker(text: str) -> tuple[str, int]:
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::(\d{1,5}))?", text, re.ASCII)
    port = int(found[2] or DEFAULT_PORT) if found else 0
    if found is None or not 0 < port < 1 << 16 or not _is_host(found[1]):
        raise UsageError(f"{text!r} names no broker", mend=_FORM)
    return found[1].strip("[]"), port


def _is_host(text: str) -> bool:
    """Whether a resolver can be asked for it: each label has 1 to 63 bytes."""
    try:
        text.encode("idna")
    except UnicodeError:
        return False
    return text.isprintable()


def _file(options: dict[str, str], name: str) -> Path | None:
    if name not in options:
        return None
    path = Path(options[name])
    if not path.is_absolute():
        raise UsageError(f"{name}={path}: name the file by its absolute path")
    return path


def _tls(options: dict[str, str]) -> Tls | None:
    ca, cert, key = (_file(options, name) for name in ("ca", "cert", "key"))
    given = any(each is not None for each in (ca, cert, key))
    switch = options.get("tls", "on" if given else "off")
    if switch not in ("on", "off") or (switch == "off" and given):
        raise UsageError(f"tls={switch} isn't on or off, or goes with no certificates")
    if key is not None and cert is None:
        raise UsageError("a key goes with a certificate", mend="give cert=FILE too")
    return Tls(ca, cert, key) if switch == "on" else None


def _login(options: dict[str, str]) -> Login | None:
    given = [name for name in ("sasl", "user", "password-file") if name in options]
    if not given:
        return None
    password_file = _file(options, "password-file")
    if "user" not in options or not options["user"] or password_file is None:
        raise UsageError("logging in takes a user and a password", mend="give user=NAME&password-file=FILE")
    mechanism = options.get("sasl", "scram-sha-512").lower()
    if mechanism not in _MECHANISMS:
        raise UsageError(f"sasl={mechanism} isn't known", mend=f"there are: {', '.join(_MECHANISMS)}")
    if mechanism == "plain" and _tls(options) is None:
        raise UsageError("sasl=plain would show the password to the network", mend="add tls=on, or use scram-sha-512")
    return Login(_MECHANISMS[mechanism], options["user"], password_file)


def _timeout(text: str | None) -> float:
    seconds = TIMEOUT_S if text is None else parse_duration(text)
    low, high = _TIMEOUT_LIMITS_S
    if not low <= seconds <= high:
        raise UsageError(f"timeout={text} isn't between {low} s and {high:.0f} s")
    return seconds


def _replicas(text: str | None) -> int:
    if text is None:
        return -1
    if not re.fullmatch(r"[1-9]\d?", text, re.ASCII):
        raise UsageError(f"replicas={text!r} is no number of replicas", mend="replicas=3")
    return int(text)
