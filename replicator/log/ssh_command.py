"""The URL of a log behind ssh, and the command line that reaches it. Pure.

    ssh://[USER@]HOST[:PORT]/PATH[?command=PROGRAM&ssh=PROGRAM]        /~/PATH is relative to the user's home

    parameter   meaning                                                    default
    command     how replicator is called at the far end, with its options  replicator
    ssh         what is called for ssh here, with its options              $REPLICATOR_SSH, else ssh

The far end's shell reads one line: `PROGRAM log serve PATH --stdio`, each word quoted.

Invariants
  U1  No word of the URL is ever an option of ssh, nor more than one word for the far end's shell.
  U2  ssh never asks (BatchMode), and a dead line ends it: after CONNECT_TIMEOUT_S, or ALIVE_S thrice without an answer.

Failure raised: UsageError.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

from replicator.errors import UsageError

CONNECT_TIMEOUT_S = 20
ALIVE_S = 15
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}|[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9]{1,15})?", re.ASCII)
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+-]{0,254}", re.ASCII)
_PARAMETERS = ("command", "ssh")


@dataclass(frozen=True, slots=True)
class SshPlace:
    """Where the log is, and what reaches it."""

    user: str
    host: str
    port: int | None
    path: str
    command: tuple[str, ...]
    ssh: tuple[str, ...]

    @property
    def name(self) -> str:
        """How messages name it: without parameters."""
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = f":{self.port}" if self.port else ""
        return f"ssh://{user}{host}{port}{self.path if self.path.startswith('/') else f'/~/{self.path}'}"

    @property
    def destination(self) -> str:
        """Host, with the user, as ssh takes it."""
        return f"{self.user}@{self.host}" if self.user else self.host

    @property
    def by_hand(self) -> str:
        """What a person writes behind `ssh` to get there."""
        return f"-p {self.port} {self.destination}" if self.port else self.destination

    def argv(self) -> list[str]:
        """The command line (U1, U2)."""
        remote = shlex.join([*self.command, "log", "serve", self.path, "--stdio"])
        options = ["-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_TIMEOUT_S}"]
        options += ["-o", f"ServerAliveInterval={ALIVE_S}", "-o", "ServerAliveCountMax=3"]
        port = ["-p", str(self.port)] if self.port else []
        return [*self.ssh, *options, *port, "--", self.destination, remote]


def parse_ssh_url(url: str, default_ssh: str = "ssh") -> SshPlace:
    """The place that `url` names; `default_ssh` is the command where the URL has none."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        _refuse(url, str(error))
    host = parts.hostname or ""
    if parts.password is not None:
        _refuse(f"ssh://{host}", "a URL holds no password: use a key")
    try:
        url.encode()
        user, path = (unquote(each, errors="strict") for each in (parts.username or "", parts.path))
        given = dict(parse_qsl(parts.query, keep_blank_values=True, errors="strict"))
    except UnicodeError:
        _refuse(url, "it isn't text in UTF-8")
    if not _HOST.fullmatch(host) or (user and not _USER.fullmatch(user)) or parts.fragment:
        _refuse(url, "that is no host, or no user")
    path = path[3:] if path.startswith("/~/") else path
    if not path.strip("/") or "\0" in path or "\n" in path or path.startswith("-"):
        _refuse(url, "the path of the log's directory is missing")
    for key, value in given.items():
        if key not in _PARAMETERS or not value:
            _refuse(url, f"{key!r} is no parameter with a value; there are: {', '.join(_PARAMETERS)}")
    command = _words(url, given.get("command", "replicator"))
    return SshPlace(user, host, port, path, command, _words(url, given.get("ssh", default_ssh)))


def _words(url: str, text: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        _refuse(url, f"{text!r}: {error}")
    if not words:
        _refuse(url, "an empty command")
    return words


def _refuse(url: str, reason: str) -> NoReturn:
    raise UsageError(
        f"{url!r} names no log: {reason}", mend="write it like ssh://backup@host.example/srv/replicator/log"
    )
