"""Why a broker can't be used: asked before the client library is, which says "unable to bootstrap" to everything.

One connection, a few frames of Kafka's own protocol, each step with its own answer, all within one time limit:

    step                       what it tells when it fails
    name, connection           no such host; nobody listens there; no answer
    TLS                        the certificate isn't signed by `ca`, is for another name; no TLS is spoken there;
                               a client certificate is wanted
    ApiVersions (key 18)       connected, and silent; a broker that wants TLS closes the connection here
    SaslHandshake (key 17)     the broker doesn't offer this mechanism, or wants no login
    SaslAuthenticate (key 36)  user or password is wrong

    request: length i32, key i16, version i16, correlation i32, client id (length i16, text), body; big-endian

SCRAM is RFC 5802 with channel binding "n": the server's signature is checked too. Nothing else is asked of a broker,
and what it answers is bounded by ANSWER_BYTES_MAX.

Failures raised: KafkaLoginError, KafkaTlsError, UnavailableError, each with the mend where there is one.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import socket
import ssl
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from replicator.errors import UnavailableError
from replicator.log.kafka_address import KafkaAddress, Login
from replicator.log.kafka_errors import KafkaLoginError, KafkaTlsError
from replicator.units import KIB

ANSWER_BYTES_MAX = 64 * KIB  # ApiVersions of today has 700 bytes
ITERATIONS_MAX = 1 << 20  # of SCRAM, as a hostile broker might ask: a second of work
_VERSIONS, _HANDSHAKE, _AUTHENTICATE = 18, 17, 36
_BAD_MECHANISM, _ILLEGAL_STATE, _BAD_LOGIN = 33, 34, 58
_CLIENT = b"replicator"
_TLS_ALERT = b"\x15\x03"  # what a TLS listener answers to anything else


def probe(address: KafkaAddress) -> None:
    """Return when one of the brokers can be used; else raise what is wrong with the one that came farthest."""
    worst: UnavailableError | None = None
    context = address.tls.context() if address.tls else None
    password = address.login.password() if address.login else ""
    for host, port in address.brokers:
        try:
            _probe_one(host, port, address, context, password)
        except UnavailableError as error:
            worst = error if worst is None or isinstance(error, KafkaLoginError | KafkaTlsError) else worst
        else:
            return
    assert worst is not None, "an address names a broker"
    raise worst


def _probe_one(host: str, port: int, address: KafkaAddress, context: ssl.SSLContext | None, password: str) -> None:
    until, where = time.monotonic() + address.timeout_s, f"broker {host}:{port}"
    with _connected(host, port, until, where) as plain:
        secured = plain if context is None else _secured(plain, host, address, context, where)
        with secured as channel:
            broker = _Broker(channel, until, where, is_tls=context is not None)
            broker.ask(_VERSIONS, 0, b"")
            if address.login is not None:
                _log_in(broker, address.login, password)


def _connected(host: str, port: int, until: float, where: str) -> socket.socket:
    try:
        return socket.create_connection((host, port), timeout=max(0.1, until - time.monotonic()))
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise UnavailableError(f"{where} can't be reached: {reason}") from None


def _secured(
    plain: socket.socket, host: str, address: KafkaAddress, context: ssl.SSLContext, where: str
) -> ssl.SSLSocket:
    assert address.tls is not None
    authority = str(address.tls.ca or "the system's authorities")
    try:
        return context.wrap_socket(plain, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        mend = "give the authority that signed it: ca=FILE, and the name that it is for as HOST"
        raise KafkaTlsError(
            f"{where}: its certificate isn't trusted by {authority}: {error.verify_message}", mend=mend
        ) from None
    except TimeoutError:
        raise UnavailableError(f"{where} is connected and doesn't answer") from None
    except (ssl.SSLError, OSError) as error:
        mend = "name its TLS listener, or leave out tls"
        raise KafkaTlsError(f"{where}: no TLS is spoken there ({_said(error)})", mend=mend) from None


def _said(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error.strerror or "closed")


class _Broker:
    """One connection, a question at a time."""

    def __init__(self, channel: socket.socket, until: float, where: str, *, is_tls: bool) -> None:
        self._channel, self._until, self.where, self._is_tls = channel, until, where, is_tls
        self._asked = 0

    def ask(self, key: int, version: int, body: bytes) -> bytes:
        """The answer's body."""
        self._asked += 1
        head = struct.pack(">hhih", key, version, self._asked, len(_CLIENT)) + _CLIENT + body
        try:
            self._limit()
            self._channel.sendall(struct.pack(">i", len(head)) + head)
            first = self._read(4)
            if first.startswith(_TLS_ALERT):
                raise self._closed("it answers by TLS")
            (length,) = struct.unpack(">i", first)
            if not 4 <= length <= ANSWER_BYTES_MAX:
                raise UnavailableError(f"{self.where}: what answers there is no Kafka broker")
            return self._read(length)[4:]
        except TimeoutError:
            raise UnavailableError(f"{self.where} is connected and doesn't answer") from None
        except OSError as error:
            raise self._closed(_said(error)) from None

    def _read(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            self._limit()
            part = self._channel.recv(count - len(found))
            if not part:
                raise self._closed("closed")
            found += part
        return found

    def _limit(self) -> None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._channel.settimeout(left)

    def _closed(self, reason: str) -> UnavailableError:
        if "CERTIFICATE" in reason.upper():
            return KafkaTlsError(f"{self.where} wants a client certificate ({reason})", mend="give cert=FILE&key=FILE")
        if self._asked == 1 and not self._is_tls:
            mend = "if that is its TLS listener: add tls=on, and ca=FILE where it needs one"
            return KafkaTlsError(f"{self.where} closes the connection ({reason})", mend=mend)
        return UnavailableError(f"{self.where} closed the connection ({reason})")


def _log_in(broker: _Broker, login: Login, password: str) -> None:
    name = login.mechanism.encode()
    answer = broker.ask(_HANDSHAKE, 1, struct.pack(">h", len(name)) + name)
    code = struct.unpack_from(">h", answer)[0] if len(answer) >= 2 else -1
    if code == _ILLEGAL_STATE:
        raise KafkaLoginError(f"{broker.where} wants no login on this port", mend="name its SASL listener")
    if code:
        offered = answer[6:].decode("ascii", "replace")
        mend = f"it offers {' '.join(filter(None, _words(offered)))}: give sasl=…"
        raise KafkaLoginError(f"{broker.where} doesn't offer {login.mechanism}", mend=mend)
    if login.mechanism == "PLAIN":
        _authenticate(broker, login, f"\0{login.user}\0{password}".encode())
        return
    scram = _Scram(login, password)
    scram.hear(_authenticate(broker, login, scram.first()), broker.where)
    signature = _authenticate(broker, login, scram.final())
    if signature != b"v=" + base64.b64encode(scram.server_signature):
        raise KafkaLoginError(f"{broker.where} doesn't know the password itself: it may be somebody else")


def _words(text: str) -> list[str]:
    return ["".join(c for c in word if c.isalnum() or c == "-") for word in text.split("\0")]


def _authenticate(broker: _Broker, login: Login, message: bytes) -> bytes:
    answer = broker.ask(_AUTHENTICATE, 0, struct.pack(">i", len(message)) + message)
    try:
        code, length = struct.unpack_from(">hh", answer)
        data = 4 + max(0, length)
        (count,) = struct.unpack_from(">i", answer, data)
    except struct.error:
        raise UnavailableError(f"{broker.where}: what answers there is no Kafka broker") from None
    if code:
        what = "user or password is wrong" if code == _BAD_LOGIN else f"error {code}"
        mend = f"see what {login.password_file} holds, and that the broker knows the user for {login.mechanism}"
        raise KafkaLoginError(f"{broker.where} refuses user {login.user}: {what}", mend=mend)
    return answer[data + 4 : data + 4 + max(0, count)]


@dataclass(slots=True)
class _Scram:
    """One exchange of RFC 5802."""

    login: Login
    password: str
    server_signature: bytes = b""
    _bare: bytes = b""
    _final: bytes = b""

    @property
    def _hash(self) -> Callable[..., hashlib._Hash]:
        return hashlib.sha512 if self.login.mechanism.endswith("512") else hashlib.sha256

    def first(self) -> bytes:
        """The client's first message."""
        name = self.login.user.replace("=", "=3D").replace(",", "=2C").encode()
        self._bare = b"n=" + name + b",r=" + secrets.token_hex(16).encode()
        return b"n,," + self._bare

    def hear(self, challenge: bytes, where: str) -> None:
        """Take the server's first message, and prepare the proof."""
        try:
            fields = dict(part.split(b"=", 1) for part in challenge.split(b","))
            salt, rounds = base64.b64decode(fields[b"s"], validate=True), int(fields[b"i"])
            nonce = fields[b"r"]
        except (ValueError, KeyError):
            raise UnavailableError(f"{where}: its answer to the login can't be read") from None
        if not nonce.startswith(self._bare.rpartition(b",r=")[2]) or not 0 < rounds <= ITERATIONS_MAX:
            raise KafkaLoginError(f"{where}: its answer to the login isn't for us, or asks for {rounds} rounds")
        made = self._hash
        salted = hashlib.pbkdf2_hmac(made().name, self.password.encode(), salt, rounds)
        client = hmac.digest(salted, b"Client Key", made)
        without_proof = b"c=biws,r=" + nonce
        signed = b",".join((self._bare, challenge, without_proof))
        signature = hmac.digest(made(client).digest(), signed, made)
        proof = bytes(a ^ b for a, b in zip(client, signature, strict=True))
        self._final = without_proof + b",p=" + base64.b64encode(proof)
        self.server_signature = hmac.digest(hmac.digest(salted, b"Server Key", made), signed, made)

    def final(self) -> bytes:
        """The client's second message."""
        return self._final
