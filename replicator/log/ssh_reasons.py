"""Why ssh ended: from its exit status and what it wrote to standard error, with what mends it. Pure.

    said, or how it ended (the first that is so)   mend
    host key verification failed                   call ssh by hand once
    permission denied                              put the key into authorized_keys
    command not found                              install replicator there, or ?command=
    name not resolved, refused, timed out          the host's name, its sshd
    other words instead of answers                 a login script that prints
    no answer in time; a signal                    none
    status 127, 126                                install replicator there, or ?command=

A banner, or a warning of the far end's shell, is on standard error too: what is none of these phrases stands behind
what is known, and never in its place.

Invariant Y1: at most TEXT_MAX characters of each of the far end's outputs are told, none of them a control character.
"""

from __future__ import annotations

from replicator.errors import UnavailableError
from replicator.log.stdio_protocol import printable

TEXT_MAX = 500
_NOT_FOUND = (126, 127)
_INSTALL = "install replicator at the far end, or name it there: ?command=/opt/replicator/bin/replicator"


def ssh_ended(status: int | None, errors: bytes, seen: bytes, destination: str) -> UnavailableError:
    """What to tell; `status` is None where it still runs, `seen` is what came where an answer should have been."""
    text = _plain(errors).removeprefix("ssh: ")
    if mend := _mend_of_words(status, text.lower(), destination):
        return UnavailableError(f"ssh: {text}", mend=mend)
    told, mend = _ending(status, seen)
    return UnavailableError(f"{told}; it said: {text}" if text else told, mend=mend)


def _ending(status: int | None, seen: bytes) -> tuple[str, str | None]:
    if seen:
        told = f"the far end wrote {_plain(seen)!r} where replicator should have answered"
        return told, "let its login scripts print nothing where there is no terminal"
    if status is None:
        return "the connection fell: no answer in time", None
    if status < 0:
        return f"the connection fell: ssh was ended by signal {-status}", None
    return f"the connection fell (exit status {status})", _INSTALL if status in _NOT_FOUND else None


def _mend_of_words(status: int | None, text: str, destination: str) -> str | None:
    if "host key verification failed" in text or "no matching host key" in text:
        return f"ssh {destination} once by hand, as the user that runs this, and compare the key's fingerprint"
    if "permission denied" in text and status == 255:
        return f"ssh-copy-id {destination}, with a key that needs no password typed"
    if "command not found" in text:
        return _INSTALL
    if "could not resolve" in text:
        return "is the host's name right?"
    if "connection refused" in text or "timed out" in text or "no route" in text:
        return "is the host up, its sshd running, and the port right?"
    return None


def _plain(raw: bytes) -> str:
    """Printable, on one line, its end where it is long."""
    return " ".join(printable(raw.decode("utf-8", "replace")).split())[-TEXT_MAX:]
