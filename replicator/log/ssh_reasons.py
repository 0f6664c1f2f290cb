"""Why ssh ended: from its exit status and what it wrote to standard error, with what mends it. Pure.

    said or status                  mend
    host key verification failed    call ssh by hand once
    permission denied               put the key into authorized_keys
    status 127, 126                 install replicator there, or ?command=
    name not resolved, refused      the host's name, its sshd
    other words instead of answers  a login script that prints

Invariant Y1: at most TEXT_MAX characters of what the far end wrote are told, none of them a control character.
"""

from __future__ import annotations

from replicator.errors import UnavailableError

TEXT_MAX = 500
_NOT_FOUND = (126, 127)


def ssh_ended(status: int | None, errors: bytes, seen: bytes, destination: str) -> UnavailableError:
    """What to tell; `status` is None where it still runs, `seen` is what came where an answer should have been."""
    text = _plain(errors)
    mend = _mend(status, text.lower(), destination)
    if text:
        return UnavailableError(f"ssh: {text.removeprefix('ssh: ')}", mend=mend)
    if seen:
        told = f"the far end wrote {_plain(seen)!r} where replicator should have answered"
        return UnavailableError(told, mend="let its login scripts print nothing where there is no terminal")
    if status is None:
        return UnavailableError("the connection fell: no answer in time")
    if status < 0:
        return UnavailableError(f"the connection fell: ssh was ended by signal {-status}")
    return UnavailableError(f"the connection fell (exit status {status})", mend=mend)


def _mend(status: int | None, text: str, destination: str) -> str | None:
    if "host key verification failed" in text or "no matching host key" in text:
        return f"ssh {destination} once by hand, as the user that runs this, and compare the key's fingerprint"
    if "permission denied" in text and status == 255:
        return f"ssh-copy-id {destination}, with a key that needs no password typed"
    if status in _NOT_FOUND or "command not found" in text:
        return "install replicator at the far end, or name it there: ?command=/opt/replicator/bin/replicator"
    if "could not resolve" in text:
        return "is the host's name right?"
    if "connection refused" in text or "timed out" in text or "no route" in text:
        return "is the host up, its sshd running, and the port right?"
    return None


def _plain(raw: bytes) -> str:
    """Printable, on one line, its end where it is long."""
    text = raw.decode("utf-8", "replace")
    words = "".join(each if each.isprintable() else " " for each in text).split()
    return " ".join(words)[-TEXT_MAX:]
