"""What can go wrong, as types: each error carries what explains it, its exit code, and what mends it.

The lowest room: everything may raise these, and nothing here imports anything. A caller that must
react (retry, wait, rebase) catches a type; the command line prints `message`, then `mend`, and exits
with `exit_code`. A bug of ours is an AssertionError, never one of these.

    exit code   type                 meaning
    1           ReplicatorError      failed
    2           UsageError           wrong usage: a size that is no size, an unknown flag
    3           DamageError          damage found: bytes on disk or from a peer are not what they must be
    4           ConflictError        busy, held, fenced, no common base
    5           NotFoundError        no such volume, point, pool, log
"""

from __future__ import annotations

from typing import ClassVar


class ReplicatorError(Exception):
    """Something failed; `mend` is the command or setting that mends it, where there is one."""

    kind: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, mend: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend

    def __str__(self) -> str:
        return self.message


class UsageError(ReplicatorError):
    """The request itself makes no sense; nothing was looked at, nothing was changed."""

    kind = "usage"
    exit_code = 2


class DamageError(ReplicatorError):
    """Stored bytes contradict themselves or each other."""

    kind = "damage"
    exit_code = 3


class FormatError(DamageError):
    """Bytes that should follow a format don't: where, what was expected, what was found."""

    kind = "format"

    def __init__(self, where: str, expected: str, found: str, *, mend: str | None = None) -> None:
        super().__init__(f"{where}: expected {expected}, found {found}", mend=mend)
        self.where = where
        self.expected = expected
        self.found = found


class ConflictError(ReplicatorError):
    """Somebody else has it, or two histories disagree: busy, held, fenced, no common base."""

    kind = "conflict"
    exit_code = 4


class NotFoundError(ReplicatorError):
    """The named thing isn't there; the message lists the names there are."""

    kind = "not-found"
    exit_code = 5


class NoSpaceError(ReplicatorError):
    """Data or metadata space is out; nothing that was acknowledged is lost (P8)."""

    kind = "no-space"


class DeviceError(ReplicatorError):
    """A disk or file failed an operation: which, at what offset, with what errno."""

    kind = "device"

    def __init__(self, what: str, offset_bytes: int, errno_: int, reason: str, *, mend: str | None = None) -> None:
        super().__init__(f"{what} at byte {offset_bytes}: {reason}", mend=mend)
        self.what = what
        self.offset_bytes = offset_bytes
        self.errno = errno_


class SocketError(ReplicatorError):
    """A socket can't be listened on: which, and why. Another address, or its folder's rights, may do."""

    kind = "socket"


class UnavailableError(ReplicatorError):
    """A peer or a log can't be reached now; trying again later may do."""

    kind = "unavailable"
