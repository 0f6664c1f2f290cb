"""What a handshake tells the loop that owns its socket; the two state machines share these values.

    Send(data)        write these bytes
    StartTls()        upgrade the socket to TLS, then call tls_started(); nothing else before
    Hangup(error)     close the connection: with no error it is the end that the peer asked for

The events of one call are acted on in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from replicator.nbd.failures import NbdFormatError


class Tls(Enum):
    """A server's stance on TLS; one for the whole of a connection."""

    NONE = "none"
    OFFERED = "offered"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class Send:
    """Write `data` to the peer."""

    data: bytes


@dataclass(frozen=True, slots=True)
class StartTls:
    """What was sent so far must leave in the clear; what comes next travels inside TLS."""


@dataclass(frozen=True, slots=True)
class Hangup:
    """The connection is over; `error` says what the peer did wrong, None that it asked for the end."""

    error: NbdFormatError | None = None
