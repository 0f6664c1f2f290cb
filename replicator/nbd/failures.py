"""What can go wrong between two ends of NBD, as types, and the way between errno and NBD's error values.

NbdFormatError    the peer's bytes break the protocol: the connection is of no more use
NbdTooBigError    a string or list longer than our limit: an option is refused, the connection goes on
NbdRefusedError   the server refused an option that the client can't do without
"""

from __future__ import annotations

import errno
import os
from typing import ClassVar

from replicator.errors import FormatError, ReplicatorError
from replicator.nbd import protocol


class NbdFormatError(FormatError):
    """Bytes of the peer that aren't NBD, or not here: where, what was expected, what was found."""

    kind: ClassVar[str] = "nbd-format"


class NbdTooBigError(NbdFormatError):
    """A string or list within an option that is longer than we take."""


class NbdRefusedError(ReplicatorError):
    """The server said no, with `reply` as its reason (a REP_ERR_* value)."""

    kind: ClassVar[str] = "nbd-refused"

    def __init__(self, message: str, reply: int, *, mend: str | None = None) -> None:
        super().__init__(message, mend=mend)
        self.reply = reply


_OF_ERRNO = {
    errno.EPERM: protocol.EPERM,
    errno.EACCES: protocol.EPERM,
    errno.EROFS: protocol.EPERM,
    errno.ENOMEM: protocol.ENOMEM,
    errno.EINVAL: protocol.EINVAL,
    errno.ENOSPC: protocol.ENOSPC,
    errno.EDQUOT: protocol.ENOSPC,
    errno.EFBIG: protocol.ENOSPC,
    errno.EOVERFLOW: protocol.EOVERFLOW,
    errno.ENOTSUP: protocol.ENOTSUP,
    errno.ESHUTDOWN: protocol.ESHUTDOWN,
}


def error_of_errno(number: int) -> int:
    """The NBD error value for an errno of this machine; EIO for all that the protocol has no word for."""
    return _OF_ERRNO.get(number, protocol.EIO)


_TO_ERRNO = {
    protocol.EPERM: errno.EPERM,
    protocol.ENOMEM: errno.ENOMEM,
    protocol.EINVAL: errno.EINVAL,
    protocol.ENOSPC: errno.ENOSPC,
    protocol.EOVERFLOW: errno.EOVERFLOW,
    protocol.ENOTSUP: errno.ENOTSUP,
    protocol.ESHUTDOWN: errno.ESHUTDOWN,
}


def errno_of_error(error: int) -> int:
    """This machine's errno for an NBD error value; EIO for one that the protocol doesn't define."""
    return _TO_ERRNO.get(error, errno.EIO)


def reason_of_error(error: int, message: str = "") -> str:
    """An NBD error value in words, with the server's own message where it sent one."""
    words = os.strerror(errno_of_error(error))
    return f"{words} ({message})" if message else words
